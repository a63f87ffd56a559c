"""The agenda says what is to be done, by one statement, and nothing when there is nothing."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from romancy.v1.command_pb2 import Command, StartTimer

from romancy_service.core.task import NEVER_MS, TaskKind
from romancy_service.core.triggers import RequestCancel
from romancy_service.store.agenda import Agenda
from romancy_service.store.events import NewEvent
from romancy_service.store.questions import Question
from romancy_service.store.store import Change, Lease, LeasedRow, Store, Want
from tests.store.drive import NAMESPACE, T0, begin, code, session, store_all, then, waiting_activities
from tests.store.test_outbox import sent

_ORDER = (NAMESPACE, "main", TaskKind.WORKFLOW, "order")
_PAY = (NAMESPACE, "main", TaskKind.ACTIVITY, "pay")


async def test_an_empty_database_has_nothing_to_do(store: Store) -> None:
    assert await store.agenda(T0, [_ORDER, _PAY]) == Agenda()


async def test_the_types_are_named_of_which_a_task_waits_that_is_due(store: Store) -> None:
    await store_all(store, Change(begin()))
    assert (await store.agenda(T0, [_PAY, _ORDER])).waiting == [_ORDER]
    assert (await store.agenda(T0, [_PAY])).waiting == []
    assert (await store.agenda(T0 - 1, [_PAY, _ORDER])).waiting == []


async def test_the_next_task_that_the_service_must_look_at_is_told_whenever_that_is(store: Store) -> None:
    run = begin()
    await store_all(store, Change(run))
    assert (await store.agenda(T0, [])).task_ms == NEVER_MS
    timer = StartTimer(timer_id="1", duration=Duration(seconds=86_400))
    await store_all(store, code(run, Command(start_timer=timer)))
    assert (await store.agenda(T0, [])).task_ms == T0 + 86_400_000


async def test_sessions_that_are_over_and_tasks_of_those_that_are_gone_are_lost(store: Store) -> None:
    lease = await session(store)
    await waiting_activities(store, ["pay:1"])
    await store.claim([Want(*_PAY, 1, *_lease(lease))], T0)
    assert not (await store.agenda(T0, [])).lost
    assert (await store.agenda(T0 + 20_000, [])).lost
    await store.close_session(lease.session_id, 1, T0)
    assert (await store.agenda(T0, [])).lost


async def test_an_attempt_that_left_its_worker_is_neither_lost_nor_anybodys_to_stop(store: Store) -> None:
    lease = await session(store)
    run = await waiting_activities(store, ["pay:1"])
    (taken,) = await store.claim([Want(*_PAY, 1, *_lease(lease))], T0)
    held = LeasedRow(run.run_id, taken.task.task_id, 1, *_lease(lease))
    assert await store.hand_over([held], T0) == [True]
    await store.close_session(lease.session_id, 1, T0)
    assert not (await store.agenda(T0, [])).lost
    run = (await store.load([run.run_id]))[run.run_id]
    await store_all(store, then(run, RequestCancel("enough", "test")))
    assert (await store.load([run.run_id]))[run.run_id].tasks["a/pay:1"].cancel_requested
    agenda = await store.agenda(T0, [])
    assert not agenda.cancelled
    assert not agenda.lost


async def test_the_next_event_that_a_sink_is_to_get_is_told_whichever_sink_it_is_for(store: Store) -> None:
    await sent(store, "order-1", "a", sink="slow", now_ms=T0 + 9)
    assert (await store.agenda(T0, [])).outgoing_ms == T0 + 9
    await sent(store, "order-2", "b", sink="after", now_ms=T0 + 5)
    await sent(store, "order-3", "c", sink="zeal", now_ms=T0 + 7)
    assert (await store.agenda(T0, [])).outgoing_ms == T0 + 5


async def test_events_and_questions_that_are_open_are_to_be_seen_to(store: Store) -> None:
    await store.add_events(NAMESPACE, [NewEvent("source", "1", "paid", b"", T0 + 1)], T0)
    assert (await store.agenda(T0, [])).events
    assert not (await store.agenda(T0, [])).questions
    await store.leave_question(Question("1", T0 + 1, b""))
    assert (await store.agenda(T0, [])).questions


def _lease(lease: Lease) -> tuple[str, int]:
    return lease.session_id, lease.epoch
