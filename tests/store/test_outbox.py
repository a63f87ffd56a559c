"""The outbox as it is stored: written with what sent it, claimed line by line, and gone once it was delivered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import asyncpg
import pytest

from romancy.v1.command_pb2 import Command, SendEvent
from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import Signal

from romancy_service.core.run import Run
from romancy_service.core.task import NEVER_MS, WORKFLOW_TASK_ID, Fence, activity_task_id
from romancy_service.core.triggers import CompleteActivity, SendSignal
from romancy_service.core.why.facts import Undelivered
from romancy_service.errors import BatchRejected
from romancy_service.store.outbox import OF_RUN, WITH_WORK, Outgoing, Waiting
from romancy_service.store.postgres import DIALECT
from romancy_service.store.sinks import SinkRow
from romancy_service.store.sql import compiled
from romancy_service.store.store import Change, Request, Store
from tests.core.life import schedule
from tests.store.drive import NAMESPACE, T0, begin, code, store_all, terminated, then

LEASE = 25_000


def sends(name: str, sink: str = "") -> Command:
    """The command to send an event, named by its type."""
    return Command(send_event=SendEvent(sink=sink, event=CloudEvent(type=name, spec_version="1.0")))


async def sent(store: Store, workflow_id: str, *names: str, sink: str = "default", now_ms: int = T0) -> Run:
    """A stored run whose code sent these."""
    run = begin(workflow_id)
    await store_all(store, Change(run))
    await store_all(store, code(run, *(sends(name, sink) for name in names)), now_ms=now_ms)
    return run


async def claim(
    store: Store, name: str = "me", sink: str = "default", *, now_ms: int = T0, limit: int = 100
) -> list[Outgoing]:
    """Due lines, by when they began."""
    found = await store.claim_lines(NAMESPACE, sink, name, now_ms, now_ms + LEASE, limit)
    return sorted(found, key=lambda each: each.line_id)


def asked(request_id: str, namespace: str = NAMESPACE) -> Request:
    return Request(namespace, request_id, "", "Asked", b"")


async def remembered(store: Store) -> set[str]:
    """Which of the requests that tests make are known."""
    keys = [(NAMESPACE, name) for name in ("first", "second", "third", "fourth")]
    return {request_id for _, request_id in await store.find_requests(keys)}


def types(found: list[Outgoing]) -> list[str]:
    return [each.event.type if each.event is not None else "" for each in found]


async def waiting(store: Store, *, dead: bool = False, sink: str = "", workflow_id: str = "") -> list[str]:
    """The types of what is not delivered, or dead."""
    found = await store.list_outbox(NAMESPACE, dead=dead, sink=sink, workflow_id=workflow_id, after=0, limit=100)
    return [each.event.type for each in found]


async def test_events_are_stored_with_what_sent_them_and_claimed_in_their_order(store: Store) -> None:
    run = await sent(store, "order-1", "a", "b", "c")
    assert await store.sinks_with_work(T0, 10) == [(NAMESPACE, "default")]
    assert await store.sinks_with_work(T0 - 1, 10) == []
    for name in "abc":
        (line,) = await claim(store)
        assert types([line]) == [name]
        assert line.event is not None
        assert line.event.id.startswith(f"{run.run_id}/")
        assert await claim(store, "another") == [], "it is claimed"
        await store.take_delivered("me", [line], T0)
    assert await claim(store) == []
    assert await store.sinks_with_work(NEVER_MS, 10) == [], "the line went with its last event"
    assert await waiting(store) == []


async def test_a_change_that_is_not_written_sends_nothing(store: Store) -> None:
    run = begin()
    await store_all(store, Change(run))
    (twin,) = (await store.load([run.run_id])).values()
    await store_all(store, code(run, sends("a")))
    late = await store.commit([code(twin, sends("b"))], T0)
    assert late.written == set()
    assert await waiting(store) == ["a"]


async def test_what_an_activity_sent_is_stored_with_its_result_alone(store: Store) -> None:
    run = begin()
    await store_all(store, Change(run))
    await store_all(store, code(run, schedule("pay:1")))
    fence = Fence(activity_task_id("pay:1"), 1, "", 0)
    events = [sends(name).send_event for name in "ab"]
    await store_all(store, then(run, CompleteActivity(fence, T0, result=Payload(json="1"), events=events)))
    assert await waiting(store) == ["a", "b"]
    assert (await store.load([run.run_id]))[run.run_id].counters.events == 2


async def test_each_workflow_and_each_sink_has_a_line_of_its_own(store: Store) -> None:
    await sent(store, "order-1", "a", "b")
    await sent(store, "order-2", "c")
    await sent(store, "order-3", "d", sink="other")
    assert types(await claim(store)) == ["a", "c"]
    assert types(await claim(store, sink="other")) == ["d"]
    assert sorted(await store.sinks_with_work(T0 + LEASE, 10)) == [(NAMESPACE, "default"), (NAMESPACE, "other")]
    assert await waiting(store, sink="other") == ["d"]
    assert await waiting(store, workflow_id="order-1") == ["a", "b"]


async def test_events_of_the_next_run_come_after_those_of_the_one_before(store: Store) -> None:
    run = begin("order")
    await store_all(store, Change(run))
    await store_all(store, code(run, sends("a")))
    await store_all(store, terminated(run))
    await sent(store, "order", "b")
    (line,) = await claim(store)
    assert types([line]) == ["a"]
    await store.take_delivered("me", [line], T0)
    assert types(await claim(store)) == ["b"]


async def test_a_claim_ends_by_itself(store: Store) -> None:
    await sent(store, "order", "a")
    (line,) = await claim(store, "frozen")
    (again,) = await claim(store, "other", now_ms=T0 + LEASE)
    assert again.position == line.position
    await store.put_off("frozen", line, T0, "too late: it is another's", T0)
    await store.release_lines("frozen", [line], T0)
    assert await claim(store, "third", now_ms=T0 + LEASE) == []
    await store.take_delivered("frozen", [line], T0)  # it was, whoever has the line
    assert await waiting(store) == []
    await store.take_delivered("other", [again], T0)


async def test_what_is_put_off_waits_with_all_behind_it(store: Store) -> None:
    await sent(store, "order", "a", "b")
    (line,) = await claim(store)
    await store.put_off("me", line, T0 + 500, "answered 500", T0)
    assert await claim(store, now_ms=T0 + 499) == []
    first, second = await store.list_outbox(NAMESPACE, dead=False, sink="", workflow_id="", after=0, limit=10)
    assert (first.attempts, first.error, first.next_ms) == (1, "answered 500", T0 + 500)
    assert (second.attempts, second.error, second.next_ms) == (0, "", NEVER_MS)
    (line,) = await claim(store, now_ms=T0 + 500)
    assert (types([line]), line.attempts) == (["a"], 1)


async def test_what_a_run_sent_and_no_sink_has_taken_is_told_by_sink(store: Store) -> None:
    run = await sent(store, "order", "a", "b", "c")
    await sent(store, "other", "x")
    assert await store.undelivered("nobody", 10) == []
    assert await store.undelivered(run.run_id, 10) == [Undelivered("default", False, 3, T0, 1, "", 0, T0)]
    line = next(each for each in await claim(store) if each.position == 1)
    (found,) = await store.undelivered(run.run_id, 10)
    assert (found.is_tried, found.due_ms) == (True, T0 + LEASE)
    await store.bury("me", line, "answered 400", T0 + 1, T0 + 1_000)
    (line,) = await claim(store, now_ms=T0 + 1)
    await store.put_off("me", line, T0 + 500, "answered 500", T0)
    await store_all(store, then(run, SendSignal(Signal(name="hello"))))
    await store_all(store, code(run, sends("d", "shop")), now_ms=T0 + 10)
    dead, put_off, shop = await store.undelivered(run.run_id, 10)
    assert dead == Undelivered("default", True, 1, T0 + 1, 1, "answered 400")
    assert put_off == Undelivered("default", False, 2, T0, 2, "answered 500", 1, T0 + 500)
    assert (shop.sink, shop.count, shop.is_behind) == ("shop", 1, False)
    assert await store.undelivered(run.run_id, 2) == [dead, put_off]


async def test_what_waits_behind_a_run_before_is_told_so(store: Store) -> None:
    first, second = begin("order"), begin("order", run_id="run-2")
    await store_all(store, Change(first))
    await store_all(store, code(first, sends("a")))
    await store_all(store, terminated(first))
    await store_all(store, Change(second))
    await store_all(store, code(second, sends("b")))
    assert [each.is_behind for each in await store.undelivered(first.run_id, 10)] == [False]
    assert [each.is_behind for each in await store.undelivered(second.run_id, 10)] == [True]


async def test_a_dead_letter_lets_the_next_one_go_and_can_be_sent_again_before_it(store: Store) -> None:
    await sent(store, "order", "a", "b", "c")
    (line,) = await claim(store)
    await store.bury("me", line, "answered 400", T0 + 1, T0 + 1_000)
    (dead,) = await store.list_outbox(NAMESPACE, dead=True, sink="default", workflow_id="order", after=0, limit=10)
    assert (dead.attempts, dead.error, dead.dead_ms, dead.forget_ms) == (1, "answered 400", T0 + 1, T0 + 1_000)
    assert await store.count_outbox(NAMESPACE, "default") == Waiting(2, 1, T0)
    (line,) = await claim(store, now_ms=T0 + 1)
    assert (types([line]), line.attempts) == (["b"], 0)
    assert not await store.revive_one(dead.position, asked("another namespace's", "another"), T0 + 2)
    assert await store.revive_one(dead.position, asked("first"), T0 + 2)
    assert not await store.revive_one(dead.position, asked("second"), T0 + 2)
    assert await remembered(store) == {"first"}
    assert await claim(store, "another", now_ms=T0 + 3) == [], "whoever has the line goes on"
    await store.take_delivered("me", [line], T0 + 3)
    (line,) = await claim(store, now_ms=T0 + 3)
    assert types([line]) == ["a"]
    assert line.since_ms == T0 + 2


async def test_a_dead_letter_that_is_sent_again_does_not_wait_for_what_another_one_met(store: Store) -> None:
    await sent(store, "order", "a", "b")
    (line,) = await claim(store)
    await store.bury("me", line, "answered 400", T0, T0 + 1_000)
    (line,) = await claim(store)
    assert types([line]) == ["b"]
    assert len(await store.revive(NAMESPACE, "default", 0, T0 + 1, 10)) == 1
    await store.put_off("me", line, T0 + 3_600_000, "answered 429, after an hour", T0 + 2)
    (line,) = await claim(store, now_ms=T0 + 2)
    assert (types([line]), line.attempts) == (["a"], 0)


async def test_a_dead_letter_whose_line_is_gone_gets_one(store: Store) -> None:
    for workflow_id in ("order-1", "order-2"):
        await sent(store, workflow_id, "a", "b")
    for _ in range(2):
        for line in await claim(store, now_ms=T0):
            await store.bury("me", line, "answered 400", T0, T0 + 1_000)
    await store.forget_empty("me", await claim(store), T0)
    assert await store.sinks_with_work(NEVER_MS, 10) == []
    assert await store.used_sinks(NAMESPACE, 10) == {"default"}
    assert [len(await store.revive(NAMESPACE, "default", 0, T0 + 5, 3)) for _ in range(3)] == [3, 1, 0]
    assert types(await claim(store, now_ms=T0 + 5)) == ["a", "a"]


async def test_sending_dead_letters_again_touches_no_lines_but_theirs(store: Store) -> None:
    for number in range(4):
        await sent(store, f"order-{number}", "a")
    for line in await claim(store):
        await store.bury("me", line, "answered 400", T0, T0 + 1_000)
    revived = await store.revive(NAMESPACE, "default", 0, T0, 2)
    assert len(revived) == 2
    first = {line.line_id: line.version for line in await claim(store)}
    assert min(await store.revive(NAMESPACE, "default", max(revived), T0, 2)) > max(revived)
    both = {line.line_id: line.version for line in await claim(store, now_ms=T0 + LEASE)}
    assert len(both) == 4
    assert both.items() >= first.items(), "those of the first time are as they were"


async def test_dead_letters_are_dropped_or_forgotten_when_their_time_has_come(store: Store) -> None:
    await sent(store, "order", "a", "b", "c")
    for number in range(3):
        (line,) = await claim(store)
        await store.bury("me", line, "no", T0, T0 + number)
    assert await store.drop_dead("another", "default", 0, 10) == []
    assert await store.forget_dead(T0, 10) == 0
    assert await store.forget_dead(T0 + 1, 10) == 1
    assert await waiting(store, dead=True) == ["b", "c"]
    (position, _) = [
        each.position
        for each in await store.list_outbox(NAMESPACE, dead=True, sink="", workflow_id="", after=0, limit=9)
    ]
    assert not await store.drop_one(position, asked("another namespace's", "another"), T0)
    await store.remember(asked("first"), T0)
    with pytest.raises(BatchRejected) as refused:
        await store.remember(asked("first"), T0)
    assert refused.value.conflict
    with pytest.raises(BatchRejected):
        await store.drop_one(position, asked("first"), T0)
    assert await waiting(store, dead=True) == ["b", "c"], "what is not remembered is not done"
    assert await store.drop_one(position, asked("second"), T0)
    assert not await store.drop_one(position, asked("third"), T0)
    assert await remembered(store) == {"first", "second"}
    (last,) = await store.drop_dead(NAMESPACE, "default", 0, 10)
    assert last > position


async def test_what_is_old_is_buried_also_behind_others(store: Store) -> None:
    run = await sent(store, "order", "a", "b")
    await store_all(store, then(run, SendSignal(Signal(name="hello"))))
    await store_all(store, code(run, sends("c")), now_ms=T0 + 10)
    assert await store.bury_old(NAMESPACE, "other", T0, "why", T0 + 20, T0 + 30, 10) == 0
    assert await store.bury_old(NAMESPACE, "default", T0, "why", T0 + 20, T0 + 30, 1) == 1
    assert await store.bury_old(NAMESPACE, "default", T0, "why", T0 + 20, T0 + 30, 10) == 1
    assert (await waiting(store), await waiting(store, dead=True)) == (["c"], ["a", "b"])
    assert types(await claim(store)) == ["c"]


async def test_an_event_that_comes_while_its_line_goes_is_not_left_behind(store: Store) -> None:
    run = await sent(store, "order", "a")
    (line,) = await claim(store)
    await store_all(store, then(run, SendSignal(Signal(name="hello"))))
    await store_all(store, code(run, sends("b")))
    await store.take_delivered("me", [line], T0)
    assert types(await claim(store, "another")) == ["b"]
    await store.take_delivered("another", await claim(store, "another", now_ms=T0 + LEASE), T0)


async def test_a_line_whose_event_somebody_else_took_is_free_at_once(store: Store) -> None:
    await sent(store, "order-1", "a")
    run = await sent(store, "order-2", "b")
    frozen = await claim(store, "frozen")
    again = await claim(store, "other", now_ms=T0 + LEASE)
    await store_all(store, then(run, SendSignal(Signal(name="hello"))))
    await store_all(store, code(run, sends("c")))
    await store.take_delivered("frozen", frozen, T0 + LEASE)
    await store.take_delivered("other", again, T0 + LEASE)
    third = await claim(store, "third", now_ms=T0 + LEASE)
    assert types(third) == ["c"]
    assert len(await store.sinks_with_work(NEVER_MS, 10)) == 1
    assert await store.bury_old(NAMESPACE, "default", T0, "why", T0, T0, 10) == 1
    await store.bury("third", third[0], "why", T0, T0)
    assert await store.sinks_with_work(NEVER_MS, 10) == []


async def test_lines_of_what_was_too_old_go_with_it(store: Store) -> None:
    run = await sent(store, "order-1", "a")
    await sent(store, "order-2", "b")
    await store_all(store, then(run, SendSignal(Signal(name="hello"))))
    await store_all(store, code(run, sends("c")), now_ms=T0 + 10)
    assert await store.bury_old(NAMESPACE, "default", T0, "why", T0 + 20, T0 + 30, 10) == 2
    assert types(await claim(store)) == ["c"]


LOCKERS: dict[str, Callable[[Store, list[Outgoing], list[Run]], Coroutine[Any, Any, object]]] = {
    "commits": lambda store, _, runs: store.commit([code(run, sends("more")) for run in runs], T0),
    "deliveries": lambda store, lines, _: store.take_delivered("me", lines, T0),
    "releases": lambda store, lines, _: store.release_lines("me", lines, T0),
    "ends of empty lines": lambda store, lines, _: store.forget_empty("me", lines, T0),
    "what is too old": lambda store, *_: store.bury_old(NAMESPACE, "default", T0, "why", T0, T0, 10),
}


@pytest.mark.parametrize("who", LOCKERS)
@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_all_lock_lines_in_one_order(store: Store, database_url: str, who: str) -> None:
    runs = [await sent(store, workflow_id, "event") for workflow_id in ("b", "C", "a")]
    for run in runs:
        await store_all(store, then(run, SendSignal(Signal(name="hello"))))
    lines = await claim(store)
    look = "select 1 from outbox_lines where workflow_id = $1 for update nowait"
    async with (
        asyncpg.create_pool(database_url, min_size=2) as pool,
        pool.acquire() as first,
        pool.acquire() as other,
        first.transaction(),
    ):
        await first.fetch(look, "C")
        locking = asyncio.create_task(LOCKERS[who](store, lines, runs))
        while not await other.fetchval("select count(*) from pg_locks where not granted"):
            assert not locking.done()
        for later in ("a", "b"):
            assert await other.fetchval(look, later) == 1, "who waits has none that comes after it"
    await locking


async def test_of_many_that_claim_at_once_each_line_is_one_s(store: Store) -> None:
    for number in range(20):
        await sent(store, f"order-{number}", "a")
    found = await asyncio.gather(*(claim(store, f"me-{number}", limit=7) for number in range(6)))
    positions = [line.position for lines in found for line in lines]
    # Who comes upon lines of others passes them by, and may find fewer than there are.
    assert len(positions) == len(set(positions))
    left = await claim(store, "last")
    assert len(positions) + len(left) == 20


async def test_a_sink_is_kept_as_it_was_set_last(store: Store) -> None:
    sink = SinkRow("default", "https://one", "whsec_1", "", 0, T0)
    await store.set_sink(sink, asked("first"))
    await store.set_sink(sink, asked("first", "another"))
    changed = SinkRow("default", "https://two", "whsec_2", "whsec_1", T0 + 5, T0 + 1)
    with pytest.raises(BatchRejected) as refused:
        await store.set_sink(changed, asked("first"))
    assert refused.value.conflict
    assert await store.get_sink(NAMESPACE, "default") == sink, "what is not remembered is not done"
    await store.set_sink(changed, asked("second"))
    assert await store.get_sink(NAMESPACE, "default") == changed
    assert await store.list_sinks(NAMESPACE) == [changed]
    assert await store.list_sinks("another") == [sink]
    assert await store.delete_sink("default", asked("third"), T0)
    assert not await store.delete_sink("default", asked("fourth"), T0)
    assert await remembered(store) == {"first", "second", "third"}
    assert await store.get_sink(NAMESPACE, "default") is None


async def test_a_batch_without_events_has_no_part_for_them(store: Store) -> None:
    run = begin()
    await store_all(store, Change(run))
    assert run.tasks[WORKFLOW_TASK_ID] is not None
    assert await store.used_sinks(NAMESPACE, 10) == set()


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_sinks_with_work_are_found_by_one_look_each(store: Store, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("""
        insert into outbox_lines (namespace, sink, workflow_id, version, due_ms, claim, attempts, error)
        select 'n', 'sink-' || n % 5, 'order-' || n, 1, n, '', 0, '' from generate_series(1, 20000) as n
    """)
    await connection.execute("analyze outbox_lines")
    sql, arguments = compiled(WITH_WORK, DIALECT, {"now_ms": T0, "limit": 10})
    plan = "\n".join(row[0] for row in await connection.fetch(f"explain analyze {sql}", *arguments))
    await connection.close()
    assert "Seq Scan" not in plan
    assert "outbox_lines_due" in plan
    assert len(await store.sinks_with_work(T0, 10)) == 5


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_what_a_run_sent_is_found_by_the_run_however_much_waits(store: Store, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("""
        insert into outbox (namespace, workflow_id, sink, run_id, event, since_ms, waiting, attempts, error, dead_ms,
            forget_ms)
        select 'n', 'order-' || n % 5, 'sink', 'run-' || n % 5000, '', n, n % 2 = 0, 0, '', 0, 0
        from generate_series(1, 20000) as n
    """)
    await connection.execute("""
        insert into outbox_lines (namespace, sink, workflow_id, version, due_ms, claim, attempts, error)
        select 'n', 'sink', 'order-' || n, 1, 1, '', 0, '' from generate_series(0, 4) as n
    """)
    await connection.execute("analyze outbox; analyze outbox_lines")
    sql, arguments = compiled(OF_RUN, DIALECT, {"of_run": "run-7", "limit": 10})
    plan = "\n".join(row[0] for row in await connection.fetch(f"explain analyze {sql}", *arguments))
    await connection.close()
    assert "Seq Scan on outbox " not in plan
    assert "outbox_by_run" in plan
    (found,) = await store.undelivered("run-7", 10)
    assert (found.count, found.is_dead) == (4, True)
