"""The example programs run as they are, against the real service; then a process that has never seen their runs lives
through all that was recorded of them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import romancy
from romancy import Client, Worker, testing
from tests.worker_sdk.replayer import Recorded, save

EXAMPLES = Path(romancy.__file__).parents[1] / "examples"
PRINTED = {
    "approval": ["Ann approved: paid lunch", "Ann said no"],
    "attributes": [
        "ada pays 30.00",
        "to be approved: office (to be approved, 60.0), tea (to be approved, 90.0)",
        "of ada: books (done, 30.0), office (to be approved, 60.0)",
        "large gifts: tea (to be approved, 90.0)",
        "running, but not of bob: office (to be approved, 60.0)",
    ],
    "basket": ["90", "110", "we have no yacht", "110", "charged 1.10", "110"],
    "family": [
        "['ticket to Rome', 'ticket to Bern']",
        "stayed at home: TerminalError",
        "cancelled the leg to Bern",
        "cancelled the leg to Rome",
        "no trip: TerminalError",
    ],
    "cancellation": [
        "Bern is too far",
        "Bob: called off: snow, says Ann",
        "Bob: we come to an end",
        "Bob: your bill is paid",
        "room 7: given back",
        "the journey ended: cancelled by Ann: snow",
        "asked by Ann, because of snow",
    ],
    "channels": ["Book for Cem; Flyer for Bob; Poster for Ann; close the shop", "111 pages"],
    "cleanup": [
        "closed applications are kept for 90 days",
        "ann is open: she is to be decided on first",
        "ann: yes",
        "bob: yes",
        "ann is forgotten",
        "left: ['bob']",
    ],
    "counter": ["55"],
    "elsewhere": [
        "book: signed by Ann",
        "vase: broken on the way",
        "sofa: nothing to take back",
    ],
    "events": ["order 3: nobody paid", "order 1: 10.00 by Ann", "order 2: 20.00 by Bob", "30.00 in all"],
    "event_rule": [
        "order 1, paid by Ann, goes by train",
        "order 3, paid by Ann, goes by train",
        "2 started",
    ],
    "http_events": [
        '202 {"duplicate": false}',
        '202 {"duplicate": true}',
        '202 {"duplicates": [false, false]}',
        "400 event.id: Attribute 'id' must not be None or empty",
        "order 1: tea",
        "order 2: cup, pot",
    ],
    "timers": [
        "ready, and not too early",
        "nobody came",
        "begins later: 1 event",
        "ready, and not too early",
        "cup put away",
        "the run passed its run timeout",
        "cup put away",
        "the workflow passed its execution timeout",
        "the workflow passed its execution timeout",
    ],
    "outbox": [
        "['NoneType', 'NoneType', 'WorkflowFailed']",
        "11 events wait for a sink",
        "order 1: placed, charged, shipped, done",
        "order 2: charged, shipped, done",
        "order 3: placed, charged, refunded",
        "not taken: order.placed 2, answered 400",
    ],
    "patch": ["shipped the old one, not checked", "shipped the new one, checked"],
    "starting": [
        "asked twice, started once: True",
        'in Bern: north, asked by "Ann"',
        "north is being closed already",
        "begun anew: True",
        "north: 120",
        "north was closed, and did not fail",
        "south has lost 5",
        "south: 80",
        "west: 100 from 1 run",
    ],
    "step": ["invoice over 120.00"],
}
"""Programs that take the service's address, do everything themselves, and end."""
WITHOUT_WORKFLOWS = {"demo", "demo_stage", "demo_worker"}


@dataclass(frozen=True)
class Run:
    """What an example printed, and the file with what was recorded of its runs."""

    printed: list[str]
    histories: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """Runs an example, once."""

    @cache
    def play(name: str) -> Run:
        folder = tmp_path_factory.mktemp(name)
        return asyncio.run(_play(name, folder))

    return play


async def _play(name: str, folder: Path) -> Run:
    async with asyncio.timeout(90), testing.service() as service:
        addresses = [service.address, service.http_address] if name.startswith("http") else [service.address]
        printed = await (OTHERS[name](service, folder) if name in OTHERS else _said(service, name, *addresses))
        histories = folder / "histories"
        save(await _recorded(service), histories)
    return Run(printed, histories)


async def _recorded(service: testing.LocalService) -> list[Recorded]:
    """All runs of all namespaces."""
    recorded = []
    async for namespace in service.client.list_namespaces():
        async with Client(service.address, namespace=namespace.name) as client:
            async for info in client.list_workflows():
                events = [event async for event in client.get_handle(info.workflow_id, info.run_id).history()]
                recorded.append(Recorded(info.workflow_id, info.run_id, events))
    return recorded


async def _started(service: testing.LocalService, name: str, *arguments: str) -> asyncio.subprocess.Process:
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path), "ROMANCY_ADDRESS": service.address}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLES / f"{name}.py"), *arguments),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def _said(service: testing.LocalService, name: str, *arguments: str, code: int = 0) -> list[str]:
    """What an example prints; where it is to fail, the end of its last words."""
    process = await _started(service, name, *arguments)
    out, err = await process.communicate()
    assert process.returncode == code, err.decode()
    return (err if code else out).decode().splitlines()


# Examples that need more than an address -----------------------------------------------------------------------------


async def _transfer(service: testing.LocalService, folder: Path) -> list[str]:
    bank = folder / "bank.db"
    worker = await _started(service, "transfer", "work", f"sqlite+aiosqlite:///{bank}")
    try:
        printed = await _said(service, "transfer", "alice", "bob", "30")
        printed += (await _said(service, "transfer", "alice", "nobody", "30", code=1))[-1:]
        printed += (await _said(service, "transfer", "alice", "bob", "300", code=1))[-1:]
        async for info in service.client.list_workflows():
            await service.client.get_handle(info.workflow_id).outcome()  # what was taken for nobody is given back
    finally:
        worker.terminate()
        await worker.communicate()
    with closing(sqlite3.connect(bank)) as connection:
        balances = connection.execute("select name, balance from accounts order by name").fetchall()
    return [*printed, str(balances)]


async def _nightly_report(service: testing.LocalService, folder: Path) -> list[str]:
    example = _module("nightly_report")
    printed: list[str] = []
    example.print = printed.append  # type: ignore[attr-defined]  # its worker is this process, so that time can be skipped
    workflows, activities = [example.sales_report], [example.count_sales, example.send]
    async with Worker(service.address, workflows=workflows, activities=activities):
        await example.arrange(service.client)
        await service.skip(timedelta(days=7))
        await example.arrange(service.client)
        await example.catch_up(service.client, datetime(2026, 1, 5, tzinfo=UTC), datetime(2026, 1, 10, tzinfo=UTC))
        await service.skip(0)
    return printed


async def _order_saga(service: testing.LocalService, folder: Path) -> list[str]:
    saga = _module("order_saga")
    printed: list[str] = []
    saga.print = printed.append  # type: ignore[attr-defined]
    activities = [saga.reserve_inventory, saga.process_payment, saga.ship_order]
    async with Worker(service.address, workflows=[saga.order_processing], activities=activities):
        for street in ("1-2-3 Dogenzaka", "FAIL"):
            items = [saga.OrderItem("PROD-1", 2, 29.99)]
            address = saga.ShippingAddress(street, "Shibuya", "150-0001", "Japan")
            order = saga.Order(street, "customer@example.com", items, address)
            await (await service.client.start_workflow(saga.order_processing, order)).outcome()
    return printed


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


OTHERS: dict[str, Callable[[testing.LocalService, Path], Any]] = {
    "transfer": _transfer,
    "nightly_report": _nightly_report,
    "order_saga": _order_saga,
}

# The tests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_prints_what_it_promises(run: Callable[[str], Run], name: str) -> None:
    assert run(name).printed == PRINTED[name]


def test_money_is_transferred_or_stays_where_it_was(run: Callable[[str], Run]) -> None:
    left, nobody, too_much, balances = run("transfer").printed
    assert left == "70"
    assert "nobody has no account" in nobody
    assert "alice does not have 300" in too_much
    assert balances == "[('alice', 70), ('bob', 130)]"


def test_the_nightly_report_is_made_every_working_day(run: Callable[[str], Run]) -> None:
    printed = run("nightly_report").printed
    assert sum("sales report of" in line for line in printed) == 5 + 5
    assert any("2026-01-09" in line for line in printed)


def test_an_order_that_cannot_be_shipped_is_undone(run: Callable[[str], Run]) -> None:
    assert [line.split()[1] for line in run("order_saga").printed] == [
        *("Reserving", "Processing", "Shipping"),
        *("Reserving", "Processing", "Shipping", "Refunding", "Cancelling"),
    ]


def test_every_example_is_run_and_replayed() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*PRINTED, *OTHERS, *WITHOUT_WORKFLOWS}


def _replayed(name: str, histories: Path, program: Path | None = None) -> list[str]:
    """What a fresh process says against what is recorded."""
    command = [sys.executable, "-m", "tests.worker_sdk.replayer", str(program or EXAMPLES / f"{name}.py")]
    replay = subprocess.run(
        [*command, str(histories)],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert replay.returncode in (0, 1), replay.stderr
    assert "Traceback" not in replay.stderr, replay.stderr
    return replay.stdout.splitlines() if replay.returncode else []


@pytest.mark.parametrize("name", [*PRINTED, *OTHERS])
def test_what_was_recorded_of_an_example_is_what_a_fresh_process_asks_for(run: Callable[[str], Run], name: str) -> None:
    histories = run(name).histories
    assert histories.read_text(), "nothing ran"
    assert _replayed(name, histories) == []


CHANGES = {
    "approval": ("await pay_out(expense)", "await pay_out(expense.upper()) + await pay_out(expense)"),
    "counter": ("total += sum(numbers)", "total += sum(numbers) + 1"),
    "patch": ('if ctx.patched("check-fraud") else "not checked"', 'if True else ""'),
    "step": ("rate = await ctx.step(tax_rate)", "rate = tax_rate()"),
}
"""Of each of these examples something is changed that its runs would notice."""


@pytest.mark.parametrize("name", CHANGES)
def test_code_that_was_changed_under_its_runs_is_found_out(
    run: Callable[[str], Run], name: str, tmp_path: Path
) -> None:
    source = (EXAMPLES / f"{name}.py").read_text()
    before, after = CHANGES[name]
    assert before in source
    changed = tmp_path / f"{name}.py"
    changed.write_text(source.replace(before, after))
    assert _replayed(name, run(name).histories, changed)
