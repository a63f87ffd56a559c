"""What the comparison with other systems rests on: the load, the turns, the rows and the pins."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from tests.bench import closed_loop
from tests.bench.closed_loop import ClosedLoop
from tests.bench.database import PostgresCluster
from tests.bench.order import Order, Receipt, check_receipt, order
from tests.bench.peers import contest, dbos, installation, restate
from tests.bench.peers.__main__ import entrants
from tests.bench.peers.comparison import rows, show, write
from tests.bench.peers.contest import Contest
from tests.bench.peers.entrant import CannotRun, Running
from tests.bench.peers.programs import crew as crew_program
from tests.bench.peers.programs.crew import Crew, MemberEnded
from tests.bench.peers.programs.share import Share
from tests.bench.peers.sample import Sample
from tests.bench.process import ProcessFailed

HERE = Path(__file__).parent
NO_CLUSTER = cast("PostgresCluster", None)
"""For entrants that have no use for one."""


def _receipt(placed: Order) -> Receipt:
    return Receipt(placed.order_id, 109.97, f"TRACK-{placed.order_id}")


def _told(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, float]]:
    return {document["at"]: document for document in map(json.loads, capsys.readouterr().out.splitlines())}


def _sample(workflows_per_s: float, p50_ms: float = 10.0) -> Sample:
    return Sample(workflows_per_s, p50_ms, 2 * p50_ms, 1.5, 1.0, 0.1)


# The load -------------------------------------------------------------------------------------------------------------


async def test_a_system_that_ends_orders_in_waves_is_measured_over_a_whole_wave(
    capsys: pytest.CaptureFixture[str],
) -> None:
    waiting: list[asyncio.Future[None]] = []
    waves: list[int] = []

    def end_wave() -> None:
        waves.append(len(waiting))
        for each in waiting:
            each.set_result(None)
        waiting.clear()

    async def place(placed: Order) -> Receipt:
        loop = asyncio.get_running_loop()
        if not waiting:
            loop.call_later(0.01, end_wave)
        waiting.append(loop.create_future())
        await waiting[-1]
        return _receipt(placed)

    load = ClosedLoop(place, 8)
    await load.run(0, 0)
    told = _told(capsys)
    assert told["end"]["completed"] >= 8  # in no time at all, as far as the period says
    assert told["done"]["started"] == load.ended == sum(waves)


async def test_orders_that_do_not_end_in_time_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(closed_loop, "PATIENCE_S", 0.0)

    async def place(placed: Order) -> Receipt:
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    await ClosedLoop(place, 3).run(0, 0)
    assert _told(capsys)["done"] == {"at": "done", "started": 3, "unfinished": 3}


async def test_a_wrong_receipt_ends_the_load() -> None:
    async def place(placed: Order) -> Receipt:
        return Receipt(placed.order_id, 109.97, "TRACK-of-another")

    with pytest.raises(ExceptionGroup) as failure:
        await ClosedLoop(place, 2).run(0, 0)
    assert failure.group_contains(AssertionError, match="the order ORD-. came back as")


@pytest.mark.parametrize(
    "wrong",
    [
        Receipt("ORD-8", 109.97, "TRACK-ORD-7"),
        Receipt("ORD-7", 109.98, "TRACK-ORD-7"),
        Receipt("ORD-7", 109.97, "TRACK-ORD-8"),
    ],
)
def test_a_receipt_must_be_of_its_order_in_every_field(wrong: Receipt) -> None:
    check_receipt(order(7), _receipt(order(7)))
    with pytest.raises(AssertionError):
        check_receipt(order(7), wrong)


def test_shares_come_to_their_mean() -> None:
    share = Share(0.3)
    assert [share.next() for _ in range(10)] == [0, 0, 0, 1, 0, 0, 1, 0, 0, 1]
    assert Share(2.5).next(times=4) == 10


# Several processes ----------------------------------------------------------------------------------------------------

_MEMBER = """
import asyncio, os
from tests.bench.order import Receipt
from tests.bench.peers.programs.crew import serve
async def place(placed):
    {body}
    return Receipt(placed.order_id, 109.97, str(os.getpid()))
asyncio.run(serve(place))
"""


def _members(count: int, body: str) -> list[list[str]]:
    return [[sys.executable, "-c", _MEMBER.format(body=body)] for _ in range(count)]


async def test_orders_that_are_open_together_are_dealt_evenly_to_the_processes_of_a_crew() -> None:
    async with Crew(_members(2, "await asyncio.sleep(0.01)")) as crew:
        receipts = await asyncio.gather(*(crew.place(order(number)) for number in range(8)))
    assert [receipt.order_id for receipt in receipts] == [f"ORD-{number}" for number in range(8)]
    assert sorted(Counter(receipt.tracking_number for receipt in receipts).values()) == [4, 4]


async def test_a_process_of_a_crew_that_ends_fails_what_it_was_given() -> None:
    async with Crew(_members(1, "os._exit(3)")) as crew:
        for number in range(2):
            with pytest.raises(MemberEnded, match="a process of the crew ended with 3"):
                await crew.place(order(number))


async def test_a_crew_ends_though_orders_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_program, "END_S", 60.0)
    async with asyncio.timeout(50), Crew(_members(1, "await asyncio.Event().wait()")) as crew:
        never = asyncio.create_task(crew.place(order(1)))
        await asyncio.sleep(0)
    with pytest.raises(MemberEnded, match="ended with 0"):
        await never


async def test_sigterm_ends_all_processes_of_a_crew_at_once() -> None:
    async with Crew(_members(2, "await asyncio.Event().wait()")) as crew:
        placed = [asyncio.create_task(crew.place(order(number))) for number in range(2)]
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)
        for never in placed:
            with pytest.raises(MemberEnded, match="ended with -9"):
                await never


def test_what_runs_in_python_processes_is_tried_with_one_and_with_two() -> None:
    assert {count for count, _ in dbos.VARIANTS.values()} == {1, 2}
    assert {count for _, count in restate.VARIANTS.values()} == {1, 2}


def test_processes_that_share_postgres_leave_it_connections_to_spare() -> None:
    for count, settings in dbos.VARIANTS.values():
        assert count * settings.get("sys_db_pool_size", 20) <= 80


# The turns ------------------------------------------------------------------------------------------------------------


class _Entrant:
    database = "memory"

    def __init__(self, name: str, lacks: str = "", breaks: str = "", rates: dict[str, float] | None = None) -> None:
        self.name = name
        self.rates = rates or {}
        self.variants = tuple(self.rates)
        self.variant = self.variants[0] if rates else ""
        self.lacks = lacks
        self.breaks = breaks

    def prepare(self, cluster: PostgresCluster) -> None:
        if self.lacks:
            raise CannotRun(self.lacks)

    @contextlib.contextmanager
    def running(self) -> Iterator[Running]:
        raise AssertionError("not started here")


def _take(entrant: _Entrant, in_flight: int, seconds: float) -> Sample:
    if entrant.breaks:
        raise ProcessFailed(entrant.breaks)
    if entrant.rates.get(entrant.variant) == 0:
        raise ProcessFailed(f"{entrant.variant} does not work")
    return _sample(entrant.rates.get(entrant.variant, 100))


def test_a_system_that_cannot_run_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contest, "sample", _take)
    turns = Contest([_Entrant("one"), _Entrant("two", lacks="there is no go on this machine")], 1.0)
    turns.prepare(NO_CLUSTER)
    turns.take_turns(16)
    assert not turns.failed
    assert [(row.system, row.in_flight, row.left_out) for row in turns.rows()] == [
        ("one", 16, None),
        ("two", None, "there is no go on this machine"),
    ]
    assert "two on memory is left out: there is no go on this machine" in capsys.readouterr().err


def test_a_system_that_breaks_does_not_end_the_turns_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "sample", _take)
    turns = Contest([_Entrant("one", breaks="server ended with 1"), _Entrant("two")], 1.0)
    turns.prepare(NO_CLUSTER)
    turns.take_turns(16)
    turns.take_turns(16)
    assert turns.failed
    assert [(row.system, row.rounds, row.left_out) for row in turns.rows()] == [
        ("two", 2, None),
        ("one", 0, "with 16 in flight: server ended with 1"),
    ]


def test_a_system_is_measured_in_the_way_in_which_it_was_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "sample", _take)
    one = _Entrant("one", rates={"as it comes": 50, "tuned": 70, "broken": 0})
    turns = Contest([one, _Entrant("two", rates={"broken": 0}), _Entrant("three")], 1.0)
    turns.tune()
    turns.take_turns(16)
    assert [(row.system, row.workflows_per_s, row.variant, row.left_out) for row in turns.rows()] == [
        ("one", 70, "tuned", None),
        ("three", 100, None, None),
        ("two", None, None, "with broken: broken does not work"),
    ]


# The rows -------------------------------------------------------------------------------------------------------------


def test_a_row_has_the_medians_of_the_rounds_and_the_ratio_to_ours(tmp_path: Path) -> None:
    samples = {
        ("romancy", "postgres", 1): [_sample(50, 20)],
        ("dbos", "postgres", 1): [_sample(100, 8), _sample(100, 10), _sample(100, 90)],
        ("romancy", "postgres", 256): [_sample(500), _sample(1_000), _sample(900)],
        ("dbos", "postgres", 256): [_sample(90), _sample(30), _sample(80)],
    }
    write(rows(samples, {}, {("dbos", "postgres"): "defaults"}), tmp_path / "bench-peers.json")
    kept = {(row["system"], row["in_flight"]): row for row in json.loads((tmp_path / "bench-peers.json").read_text())}
    theirs = kept["dbos", 256]
    assert (theirs["workflows_per_s"], theirs["ratio_to_ours"], theirs["rounds"]) == (80, 0.08889, 3)
    assert (theirs["lone_p50_ms"], theirs["lone_p99_ms"], theirs["lone_p50_ratio_to_ours"]) == (10, 20, 0.5)
    assert kept["romancy", 256]["ratio_to_ours"] == 1
    assert (theirs["variant"], kept["romancy", 256]["variant"]) == ("defaults", None)
    assert kept["dbos", 1]["ratio_to_ours"] == 2


def test_without_ours_there_is_no_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    made = rows({("dbos", "postgres", 16): [_sample(90)]}, {("temporal", "postgres"): "no server"}, {})
    assert made[0].ratio_to_ours is None
    show(made)
    assert "temporal on postgres was left out: no server" in capsys.readouterr().out


def test_all_that_is_promised_takes_part() -> None:
    assert {(entrant.name, entrant.database) for entrant in entrants().values()} == {
        ("romancy", "postgres"),
        ("romancy", "sqlite"),
        ("dbos", "postgres"),
        ("restate", "its own"),
        ("temporal", "postgres"),
        ("bare asyncpg", "postgres"),
        ("bare grpc.aio", "none"),
    }


# The pins -------------------------------------------------------------------------------------------------------------


def test_what_peers_need_is_pinned_and_says_nothing_of_where_it_comes_from() -> None:
    requirements = (HERE / "requirements.txt").read_text()
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host", requirements)
    names = re.findall(r"^([a-z0-9-]+)==", requirements, re.MULTILINE)
    assert {"dbos", "restate-sdk", "temporalio"} <= set(names)
    assert requirements.count("==") == len(names)
    packages = json.loads((HERE / "restate_server" / "package-lock.json").read_text())["packages"]
    assert all("integrity" in package for name, package in packages.items() if name)
    assert not any("resolved" in package for package in packages.values())


def test_what_peers_need_is_fetched_once_and_again_when_a_pin_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation, "FOLDER", tmp_path / ".peers")
    pin, fetched = tmp_path / "pin", list[str]()

    def install(folder: Path) -> None:
        fetched.append((folder / "pin").read_text())

    for text in ("1", "1", "2"):
        pin.write_text(text)
        installation.installed("it", [pin], install)
    assert fetched == ["1", "2"]


def test_what_was_not_fetched_to_the_end_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "FOLDER", tmp_path / ".peers")
    pin = tmp_path / "pin"
    pin.write_text("1")

    def fail(folder: Path) -> None:
        raise CannotRun("no network")

    with pytest.raises(CannotRun, match="no network"):
        installation.installed("it", [pin], fail)
    assert (installation.installed("it", [pin], lambda folder: None) / "made-from").exists()


def test_a_command_that_fails_says_so_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="sh -c ended with 3: no such module"):
        installation.carry_out(["sh", "-c", "echo no such module; exit 3"], tmp_path, 10)
    with pytest.raises(CannotRun, match="there is no such-a-tool on this machine"):
        installation.tool("such-a-tool")
