"""Leases that may have been written unnoticed: what a session has and was never sent is sent, once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from romancy.v1.command_pb2 import ScheduleActivity
from romancy.v1.worker_service_pb2 import Hello

from romancy_service.clock import DatabaseClock
from romancy_service.core.run import Run
from romancy_service.core.task import Task, TaskKind
from romancy_service.dispatch import Dispatch
from romancy_service.dispatch import dispatch as dispatching
from romancy_service.errors import StoreUnavailable
from romancy_service.sessions import Session, open_session
from romancy_service.store.store import Claimed
from romancy_service.tokens import Tokens

_COMMAND = ScheduleActivity(activity_id="pay:1", activity_type="pay")
_TASK = Task("a/pay:1", TaskKind.ACTIVITY, type="pay", queue="queue", command=_COMMAND, owner="session", owner_epoch=1)
_ROW = Claimed("run", "session", _TASK, "default", "workflow", "order", 1, None, 0)


class _Store:
    """A database in which the session has one task."""

    def __init__(self, leased: Callable[[], list[Claimed]]) -> None:
        self._leased = leased
        self.asked = asyncio.Event()

    async def leased_tasks(self, session_id: str, epoch: int) -> list[Claimed]:
        try:
            return self._leased()
        finally:
            self.asked.set()

    async def claim(self, wants: object, now_ms: int) -> list[Claimed]:
        return []

    async def to_cancel(self, session_ids: object) -> list[Claimed]:
        return []


async def _now_ms() -> int:
    return 1


@asynccontextmanager
async def _dispatching(store: Any) -> Any:
    clock = DatabaseClock(_now_ms)
    await clock.sync()
    dispatch = Dispatch(store, clock, Tokens({"k": b"key"}, "k"), lambda run_id: None)
    task = asyncio.create_task(dispatch.run())
    try:
        yield dispatch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _session() -> Session:
    return open_session(
        "session", 1, Hello(namespace="default", task_queues=["queue"], activity_types=["pay"], activity_slots=2)
    )


async def _soon(answer: Coroutine[Any, Any, Any]) -> None:
    await asyncio.wait_for(answer, 10)


async def test_a_task_that_was_leased_unnoticed_is_sent_although_the_database_is_away_at_first() -> None:
    answers = [StoreUnavailable("away"), StoreUnavailable("away")]

    def leased() -> list[Claimed]:
        if answers:
            raise answers.pop()
        return [_ROW]

    async with _dispatching(_Store(leased)) as dispatch:
        session = _session()
        dispatch.connect(session)
        dispatch.uncertain()
        await _soon(session.wake.wait())
        assert [task.activity_id for task in session.activity_tasks] == ["pay:1"]


@pytest.mark.parametrize("committed", [False, True])
async def test_a_task_that_ends_while_the_database_is_asked_is_not_sent_again(committed: bool) -> None:
    session = _session()

    def leased() -> list[Claimed]:
        token = dispatch.token(_ROW)
        session.put_down(token)  # the worker reports its end just now
        if not committed:
            session.reported.add(token)
        return [_ROW]

    store = _Store(leased)
    async with _dispatching(store) as dispatch:
        dispatch.connect(session)
        dispatch.resume(session, _ROW, running=True)
        dispatch.uncertain()
        await _soon(store.asked.wait())
        await asyncio.sleep(0)
        assert not session.activity_tasks
        assert session.free[TaskKind.ACTIVITY] == 2


async def test_a_task_that_begins_to_wait_while_a_claim_runs_is_claimed_before_the_next_poll(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The claim had looked already, and found nothing; its slots were taken meanwhile, so nobody else looked."""
    monkeypatch.setattr(dispatching, "POLL_S", 1e9)
    store = _Store(list)
    claims = 0
    again = asyncio.Event()
    run = Run("default", "workflow", "run", workflow_type="order")

    async def claim(wants: object, now_ms: int) -> list[Claimed]:
        nonlocal claims
        claims += 1
        if claims == 1:
            run.touched, run.rewritten, run.tasks = {_TASK.task_id: False}, {_TASK.task_id}, {_TASK.task_id: _TASK}
            dispatch.committed(run, {})
        else:
            again.set()
        return []

    store.claim = claim  # type: ignore[method-assign]
    async with _dispatching(store) as dispatch:
        dispatch.connect(_session())
        await _soon(again.wait())
