"""Deleting runs: at once for whoever looks, piece by piece for the database, and never in part."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import func, select

from romancy.v1.workflow_pb2 import AttributeValue, WorkflowSpec
from romancy.v1.workflow_service_pb2 import WorkflowFilter

from romancy_service.clock import DatabaseClock
from romancy_service.core.channel import topic_of_channel
from romancy_service.core.limits import Limits
from romancy_service.core.run import Run
from romancy_service.core.task import Fence
from romancy_service.core.triggers import FinishErrand, StartRun
from romancy_service.errors import BatchRejected
from romancy_service.retention import Retention
from romancy_service.store import postgres, sqlite_removal, tables
from romancy_service.store.events import NewEvent
from romancy_service.store.namespaces import Namespace
from romancy_service.store.postgres import WALKING
from romancy_service.store.postgres_removal import CLEAR_HISTORY, FORGET_REQUESTS, REMOVE, REMOVE_EXPIRED, clear, forget
from romancy_service.store.removal import BELONGINGS
from romancy_service.store.store import Change, Request, Store, open_store
from tests.core.life import complete, schedule
from tests.core.talk import send
from tests.store.drive import NAMESPACE, T0, begin, code, completes, request, store_all, then
from tests.store.test_plans import plan

EVERYTHING = 2**40
DAY_MS = 86_400_000


async def closed(store: Store, name: str, *, now_ms: int = T0, activities: int = 0) -> Run:
    """A stored run that closed at `now_ms`, with attributes, its request, and a commit for each activity."""
    run = begin(name, now_ms=now_ms, attributes={"customer": AttributeValue(text="ada")})
    await store_all(store, Change(run, requests=[request(run, f"start-{name}")]), now_ms=now_ms)
    names = [f"pay:{n}" for n in range(1, activities + 1)]
    if names:
        await store_all(store, code(run, *map(schedule, names), now_ms=now_ms), now_ms=now_ms)
        for activity in names:
            await store_all(store, completes(run, activity, now_ms=now_ms), now_ms=now_ms)
    await store_all(store, code(run, complete(), now_ms=now_ms), now_ms=now_ms)
    return run


def deletion(run: Run, request_id: str = "delete-1") -> Request:
    return Request(run.namespace, request_id, run.run_id, "DeleteWorkflow", b"answer")


async def count(store: Store, table: str) -> int:
    rows = await store._read(select(func.count().label("count")).select_from(tables.metadata.tables[table]))
    return int(rows[0]["count"])


async def left(store: Store) -> dict[str, int]:
    """How many rows there are of all that belongs to runs."""
    return {name: found for name in ("runs", *BELONGINGS, "removals") if (found := await count(store, name))}


async def test_a_deleted_run_is_gone_for_whoever_looks_and_its_rest_is_cleared_away(store: Store) -> None:
    run = await closed(store, "order-1")
    kept = await closed(store, "order-2")
    assert await store.remove_run(deletion(run), T0 + 5) == "order-1"
    assert await store.load([run.run_id]) == {}
    assert await store.find_runs([(NAMESPACE, "", run.run_id), (NAMESPACE, "order-1", "")]) == [None, None]
    assert await store.outcomes([run.run_id]) == {}
    assert [found.run_id for found in await store.list_runs(NAMESPACE, WorkflowFilter(), None, 10)] == [kept.run_id]

    assert await store.clear_removed(T0 + 4) == 0, "whoever found it before may be reading it"
    assert await store.show_history(run.run_id, 0, 10, EVERYTHING)
    while await store.clear_removed(T0 + 5):
        pass
    assert await left(store) == {"runs": 1, "history": 2, "attributes": 1}
    assert await store.show_history(run.run_id, 0, 10, EVERYTHING) == []
    assert len(await store.show_history(kept.run_id, 0, 10, EVERYTHING)) == 2


async def test_an_open_run_is_not_deleted_and_its_request_not_remembered(store: Store) -> None:
    run = begin("order-1")
    await store_all(store, Change(run))
    assert await store.remove_run(deletion(run), T0) is None
    assert run.run_id in await store.load([run.run_id])
    assert await store.find_requests([(NAMESPACE, "delete-1")]) == {}


async def test_a_run_that_owes_others_something_is_kept_until_it_is_settled(store: Store) -> None:
    run = begin("order-1")
    await store_all(store, Change(run))
    await store_all(store, code(run, send("1"), complete()))
    other = await closed(store, "order-2")
    assert await store.remove_run(deletion(run), T0) is None
    assert await store.find_requests([(NAMESPACE, "delete-1")]) == {}
    assert await store.remove_expired(NAMESPACE, T0 + 1, T0, 10) == 1
    assert set(await store.load([run.run_id, other.run_id])) == {run.run_id}
    await store_all(store, then(run, FinishErrand(Fence("s/1", 1, ""))))
    assert await store.remove_run(deletion(run), T0) == "order-1"


async def test_a_request_is_kept_while_the_message_that_was_taken_by_it_counts_as_open(store: Store) -> None:
    new = [NewEvent("/s", str(n), topic_of_channel("jobs"), b"", T0 + EVERYTHING) for n in range(2)]
    await store.add_events(NAMESPACE, new, T0)
    first, second = await store.open_events(NAMESPACE, topic_of_channel("jobs"), 10)
    asked = [
        Request(NAMESPACE, request_id, "run-1", "ReceiveEvent", b"")
        for request_id in (f"message/{first.position}/1", f"message/{second.position}/1", "message/x/1", "message/7")
    ]
    asked.append(Request(NAMESPACE, f"of a client message/{first.position}/1", "run-1", "SignalWorkflow", b""))
    await store_all(store, Change(begin(), requests=asked))
    await store.close_events(NAMESPACE, topic_of_channel("jobs"), [second], kept=True)
    assert await store.forget_requests(NAMESPACE, T0 + 1, 10) == 4
    assert set(await store.find_requests([(NAMESPACE, each.request_id) for each in asked])) == {
        (NAMESPACE, f"message/{first.position}/1")
    }
    await store.close_events(NAMESPACE, topic_of_channel("jobs"), [first], kept=True)
    assert await store.forget_requests(NAMESPACE, T0 + 1, 10) == 1


async def test_what_is_overdue_is_an_errand_or_an_event_that_was_not_delivered(store: Store) -> None:
    before_ms = T0 + 1_000
    assert await store.overdue_since(before_ms, before_ms) == before_ms
    messages = [NewEvent("/s", "1", topic_of_channel("jobs"), b"", T0)]
    await store.add_events(NAMESPACE, messages, T0 - 9)
    assert await store.overdue_since(before_ms, before_ms) == before_ms, "nobody need take a message"
    await store.add_events(NAMESPACE, [NewEvent("/s", "2", "paid", b"", T0 + 500)], T0 + 20)
    assert await store.overdue_since(T0 + 500, before_ms) == before_ms, "it is not to be forgotten yet"
    assert await store.overdue_since(before_ms, before_ms) == T0 + 20
    run = begin()
    await store_all(store, Change(run))
    await store_all(store, code(run, send("1"), complete(), now_ms=T0 + 7))
    assert await store.overdue_since(before_ms, before_ms) == T0 + 7
    assert await store.overdue_since(before_ms, T0 + 5) == T0 + 5


async def test_requests_outlive_what_they_guard_however_long_the_service_was_away(store: Store) -> None:
    """A run took an event, and its replica died before it noted that: it is delivered again when that is back."""
    await store.add_events(NAMESPACE, [NewEvent("/s", "1", "paid", b"", T0 + DAY_MS)], T0)
    (event,) = await store.open_events(NAMESPACE, "paid", 10)
    run = begin()
    taken = Request(NAMESPACE, f"event/{event.position}/{run.run_id}", run.run_id, "ReceiveEvent", b"")
    await store_all(store, Change(run, requests=[taken]), now_ms=T0 + 5)
    limits = Limits(retention_ms=3_600_000)
    clock = DatabaseClock(store.now_ms)
    await clock.sync()
    retention = Retention(store, clock, limits)
    await retention._sweep(T0 + 3 * DAY_MS)
    assert await store.find_requests([(NAMESPACE, taken.request_id)])
    await store.close_events(NAMESPACE, "paid", [event])
    await retention._sweep(T0 + 3 * DAY_MS)
    assert not await store.find_requests([(NAMESPACE, taken.request_id)])


async def test_a_deletion_is_remembered_with_its_answer_and_its_id_is_taken_then(store: Store) -> None:
    run, other = await closed(store, "order-1"), await closed(store, "order-2")
    asked = deletion(run)
    await store.remove_run(asked, T0)
    assert await store.find_requests([(NAMESPACE, "delete-1")]) == {(NAMESPACE, "delete-1"): asked}
    assert await store.remove_run(asked, T0) is None
    with pytest.raises(BatchRejected) as refused:
        await store.remove_run(deletion(other), T0)
    assert refused.value.conflict
    assert other.run_id in await store.load([other.run_id])


async def test_runs_deleted_at_the_same_time_are_deleted_once_each(store: Store) -> None:
    closed_runs = [await closed(store, f"order-{n}") for n in range(8)]
    twice = [store.remove_run(deletion(run, f"{run.run_id}/{n}"), T0) for run in closed_runs for n in range(2)]
    batches = [store.remove_expired(NAMESPACE, T0 + 1, T0, 3) for _ in range(4)]
    removed, expired = await asyncio.gather(asyncio.gather(*twice), asyncio.gather(*batches))
    by_hand = [name for name in removed if name is not None]
    assert len(by_hand) == len(set(by_hand))
    assert len(by_hand) + sum(expired) == 8
    assert await count(store, "removals") == 8


async def test_what_closed_before_goes_oldest_first_and_what_is_open_stays(store: Store) -> None:
    for n in range(5):
        await closed(store, f"order-{n}", now_ms=T0 + n)
    await store_all(store, Change(begin("open")))
    assert await store.remove_expired("elsewhere", T0 + 100, T0, 10) == 0
    assert await store.remove_expired(NAMESPACE, T0, T0, 10) == 0
    assert await store.remove_expired(NAMESPACE, T0 + 4, T0, 3) == 3
    assert await store.remove_expired(NAMESPACE, T0 + 4, T0, 3) == 1
    assert {run.workflow_id for run in await store.list_runs(NAMESPACE, WorkflowFilter(), None, 10)} == {
        "open",
        "order-4",
    }


async def test_a_workflow_id_can_be_used_again_while_the_rest_of_its_run_is_cleared(store: Store) -> None:
    run = await closed(store, "order-1")
    await store.remove_run(deletion(run), T0)
    again = begin("order-1")
    await store_all(store, Change(again))
    while await store.clear_removed(T0):
        pass
    assert await left(store) == {"runs": 1, "history": 1, "tasks": 1}


@pytest.mark.parametrize("bytes_at_a_time", [1, 10**9])
async def test_a_long_history_is_cleared_in_pieces(
    store: Store, monkeypatch: pytest.MonkeyPatch, bytes_at_a_time: int
) -> None:
    for module in (postgres, sqlite_removal):
        monkeypatch.setattr(module, "PIECE_ROWS", 3)
        monkeypatch.setattr(module, "PIECE_BYTES", bytes_at_a_time)
    run = await closed(store, "order-1", activities=6)
    rows = await count(store, "history")
    await store.remove_run(deletion(run), T0)
    sizes = [rows]
    while await store.clear_removed(T0):
        sizes.append(await count(store, "history"))
    steps = [before - after for before, after in itertools.pairwise(sizes)]
    assert max(steps) == (1 if bytes_at_a_time == 1 else 3)
    assert await left(store) == {}


async def test_requests_are_forgotten_by_their_age_alone(store: Store) -> None:
    for n in range(4):
        await store_all(store, Change(begin(f"o{n}"), requests=[request(begin(f"x{n}"), f"r{n}")]), now_ms=T0 + n)
    assert await store.forget_requests("elsewhere", T0 + 10, 10) == 0
    assert await store.forget_requests(NAMESPACE, T0 + 3, 2) == 2
    assert await store.forget_requests(NAMESPACE, T0 + 3, 2) == 1
    assert {key for _, key in await store.find_requests([(NAMESPACE, f"r{n}") for n in range(4)])} == {"r3"}


async def test_namespaces_are_those_that_were_set_and_those_that_are_used(store: Store) -> None:
    for name in ("b", "ä", "a"):
        run = Run(name, "order", f"run-{name}")
        await store_all(store, Change(_started(run)))
    await store.set_namespace(Namespace("b", 7_200_000, 0), Request("b", "one", "", "SetNamespace", b""), T0)
    await store.set_namespace(Namespace("quiet", 3_600_000, 0), Request("quiet", "one", "", "SetNamespace", b""), T0)
    await store.set_namespace(Namespace("b", 10_800_000, 0), Request("b", "two", "", "SetNamespace", b""), T0 + 1)
    expected = [
        Namespace("a", 0, 0),
        Namespace("b", 10_800_000, T0),
        Namespace("quiet", 3_600_000, T0),
        Namespace("ä", 0, 0),
    ]
    assert await store.list_namespaces("", 10) == expected
    assert await store.list_namespaces("", 2) == expected[:2]
    assert await store.list_namespaces("b", 1) == expected[2:3]
    assert await store.list_namespaces("ä", 10) == []
    assert await store.get_namespace("b") == expected[1]
    assert await store.get_namespace("unknown") == Namespace("unknown", 0, 0)
    with pytest.raises(BatchRejected):
        await store.set_namespace(Namespace("b", 1, 0), Request("b", "two", "", "SetNamespace", b""), T0)
    assert await store.get_namespace("b") == expected[1]


def _started(run: Run) -> Run:
    then(run, StartRun(WorkflowSpec(workflow_type="order", task_queue="main"), "test"))
    return run


def test_every_table_that_names_a_run_is_cleared_with_it_or_says_why_not() -> None:
    kept = {
        "runs",  # the run itself
        "removals",  # what is to be cleared
        "outbox",  # what was sent is delivered, whatever becomes of who sent it
        "requests",  # forgotten by age, so that the same request id gets the same answer also after a deletion
    }
    naming = {table.name for table in tables.metadata.sorted_tables if "run_id" in table.columns}
    assert naming == kept | set(BELONGINGS)


@pytest.mark.parametrize(
    "sql",
    [
        pytest.param(REMOVE, id="by hand"),
        pytest.param(REMOVE_EXPIRED, id="expired"),
        pytest.param(FORGET_REQUESTS, id="requests"),
        pytest.param(CLEAR_HISTORY, id="history"),
        *(pytest.param(clear(table), id=table) for table in BELONGINGS if table != "history"),
        pytest.param(forget(BELONGINGS), id="removals"),
    ],
)
async def test_no_deletion_walks_over_a_table(fresh_postgres: Callable[[], str], sql: str) -> None:
    nodes = await plan(fresh_postgres(), WALKING, sql)
    assert [node for node in nodes if node["Node Type"] == "Seq Scan"] == []
    unbounded = [n for n in nodes if "Index Name" in n and "Index Cond" not in n]
    assert unbounded == []


async def test_the_file_of_sqlite_grows_no_more_once_as_much_is_deleted_as_comes(tmp_path: Path) -> None:
    path = tmp_path / "romancy.db"
    store = open_store(str(path))
    await store.open()

    async def round_of_runs(number: int) -> int:
        for n in range(20):
            await closed(store, f"order-{number}-{n}", now_ms=T0 + number, activities=3)
        await store.remove_expired(NAMESPACE, T0 + number + 1, T0, 100)
        await store.forget_requests(NAMESPACE, T0 + number + 1, 100)
        while await store.clear_removed(T0):
            pass
        rows: Any = await store._writing.run(lambda c: c.execute("pragma page_count").fetchone())  # type: ignore[attr-defined]
        return int(rows[0])

    sizes = [await round_of_runs(number) for number in range(5)]
    assert sizes[1] <= sizes[0] * 1.1
    assert sizes[4] == sizes[1]
    await store.close()


async def test_a_frozen_replica_that_holds_expired_runs_does_not_stop_the_others(
    fresh_postgres: Callable[[], str],
) -> None:
    url = fresh_postgres()
    store = open_store(url)
    await store.open()
    run, other = await closed(store, "order-1"), await closed(store, "order-2", now_ms=T0 + 1)
    frozen = await asyncpg.connect(url)
    async with frozen.transaction():
        await frozen.execute("select from runs where run_id = $1 for update", run.run_id)
        assert await store.remove_expired(NAMESPACE, T0 + 10, T0, 10) == 1
        assert other.run_id not in await store.load([other.run_id])
    await frozen.close()
    assert await store.remove_expired(NAMESPACE, T0 + 10, T0, 10) == 1
    await store.close()
