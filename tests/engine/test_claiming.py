"""Claims of large tasks: a piece at a time, as fast as the worker takes them, and none is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from romancy.v1.command_pb2 import ScheduleActivity
from romancy.v1.history_pb2 import HistoryEvent, WorkflowStarted
from romancy.v1.worker_service_pb2 import Hello

from romancy_service.clock import DatabaseClock
from romancy_service.core.limits import CLAIM_BYTES, PAGES_AHEAD
from romancy_service.core.task import WORKFLOW_TASK_ID, Task, TaskKind
from romancy_service.dispatch import Dispatch
from romancy_service.dispatch import dispatch as dispatching
from romancy_service.sessions import Session, open_session
from romancy_service.store.store import Claimed, Want
from romancy_service.tokens import Tokens

TASKS = 40
QUARTER = CLAIM_BYTES // 4
"""The bytes of a task: four of them end a claim."""


def _row(number: int, kind: TaskKind, size: int) -> Claimed:
    """A task that was claimed, and weighs so much."""
    if kind is TaskKind.WORKFLOW:
        task = Task(WORKFLOW_TASK_ID, kind, type="order", queue="q", owner="session", owner_epoch=1)
    else:
        command = ScheduleActivity(activity_id="pay:1", activity_type="pay")
        task = Task("a/pay:1", kind, type="pay", queue="q", command=command, owner="session", owner_epoch=1)
    return Claimed(f"run-{number}", "session", task, "default", f"order-{number}", "order", 1, None, size)


class _Store:
    """A database in which tasks wait, and which says how many it gave."""

    def __init__(self, kind: TaskKind, size: int) -> None:
        self.kind = kind
        self.size = size
        self.given = 0
        self.claims = 0
        self.read = 0

    async def claim(self, wants: Sequence[Want], now_ms: int) -> list[Claimed]:
        self.claims += 1
        slots = sum(want.slots for want in wants if want.kind is self.kind)
        most = -(-CLAIM_BYTES // self.size) if self.size else TASKS
        numbers = range(self.given, self.given + min(slots, most, TASKS - self.given))
        self.given += len(numbers)
        return [_row(number, self.kind, self.size) for number in numbers]

    async def history_pages(self, run_id: str) -> AsyncIterator[list[HistoryEvent]]:
        self.read += 1
        await asyncio.sleep(0)
        yield [HistoryEvent(event_id=1, workflow_started=WorkflowStarted())]

    async def to_cancel(self, session_ids: object) -> list[Claimed]:
        return []


@asynccontextmanager
async def _dispatching(store: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Dispatch]:
    """One that never polls: what is not looked for at once is never found."""
    monkeypatch.setattr(dispatching, "POLL_S", 1e9)

    async def now_ms() -> int:
        return 1

    clock = DatabaseClock(now_ms)
    await clock.sync()
    dispatch = Dispatch(store, clock, Tokens({"k": b"key"}, "k"), lambda run_id: None)
    running = asyncio.create_task(dispatch.run())
    try:
        yield dispatch
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def _session(slots: int) -> Session:
    types = {"workflow_types": ["order"], "activity_types": ["pay"]}
    hello = Hello(namespace="default", task_queues=["q"], workflow_slots=slots, activity_slots=slots, **types)  # type: ignore[arg-type]
    return open_session("session", 1, hello)


async def _rounds() -> None:
    """Let all that can go on do so."""
    for _ in range(20 * TASKS):
        await asyncio.sleep(0)


async def test_a_claim_that_ended_at_its_bytes_is_followed_by_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    store = _Store(TaskKind.ACTIVITY, QUARTER)
    async with _dispatching(store, monkeypatch) as dispatch:
        sessions = [_session(slots=TASKS)]
        dispatch.connect(sessions[0])
        taken = 0
        while taken < TASKS:
            await _rounds()
            (session,) = sessions
            assert session.is_full, "the rest of what waits was not looked for"
            assert len(session.activity_tasks) * QUARTER == CLAIM_BYTES
            while frame := session.take_frame(1):
                taken += len(frame.activity_tasks)
            dispatch.freed(session)
    assert store.given == TASKS


async def test_tasks_that_weigh_little_are_claimed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    store = _Store(TaskKind.ACTIVITY, 100)
    async with _dispatching(store, monkeypatch) as dispatch:
        session = _session(slots=2 * TASKS)
        dispatch.connect(session)
        await _rounds()
    assert len(session.activity_tasks) == TASKS
    assert store.claims == 1


async def test_nothing_is_offered_to_a_worker_whose_stream_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _dispatching(_Store(TaskKind.ACTIVITY, CLAIM_BYTES), monkeypatch) as dispatch:
        session = _session(slots=TASKS)
        dispatch.connect(session)
        await _rounds()
        assert len(session.activity_tasks) == 1
        assert not session.takes(TaskKind.ACTIVITY)
        assert session.takes(TaskKind.WORKFLOW)
        session.take_frame(1)
        assert session.takes(TaskKind.ACTIVITY)


async def test_histories_of_claimed_tasks_are_read_no_faster_than_the_worker_takes_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = _Store(TaskKind.WORKFLOW, 0)
    async with _dispatching(store, monkeypatch) as dispatch:
        session = _session(slots=TASKS)
        dispatch.connect(session)
        await _rounds()
        assert store.given == TASKS
        assert store.read <= 2 * PAGES_AHEAD
        assert len(session.unsent()) == TASKS, "all of them are given back should the stream end now"
        sent: list[str] = []
        while frame := session.take_frame(1):
            sent += [task.run_id for task in frame.workflow_tasks]
            await _rounds()
    assert sorted(sent) == sorted(f"run-{number}" for number in range(TASKS))
    assert session.unsent() == []
