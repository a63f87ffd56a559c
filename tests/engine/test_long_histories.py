"""A long history goes out as fast as its worker takes it, and is never in memory as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from romancy.v1.history_pb2 import HistoryEvent, WorkflowStarted
from romancy.v1.worker_service_pb2 import Hello, WorkflowTask

from romancy_service.clock import DatabaseClock
from romancy_service.core.limits import PAGES_AHEAD
from romancy_service.core.run import Run
from romancy_service.core.task import WORKFLOW_TASK_ID, Task, TaskKind
from romancy_service.dispatch import Dispatch
from romancy_service.errors import StoreUnavailable
from romancy_service.sessions import InHand, Session, open_session
from romancy_service.tokens import Tokens

PAGES = 50


class _Store:
    """A database with one run, whose history has a page of each event."""

    def __init__(self, away_after: int = PAGES) -> None:
        self.read = 0
        self._away_after = away_after

    async def load(self, run_ids: object) -> dict[str, Run]:
        run = Run("default", "order", "run", seen_event_id=1)
        run.hold_task(Task(WORKFLOW_TASK_ID, TaskKind.WORKFLOW))
        return {"run": run}

    async def history_pages(self, run_id: str) -> AsyncIterator[list[HistoryEvent]]:
        yield [HistoryEvent(event_id=1, workflow_started=WorkflowStarted())]
        for number in range(2, PAGES + 1):
            if number > self._away_after:
                raise StoreUnavailable("away")
            self.read = number
            yield [HistoryEvent(event_id=number, seen_event_id=1)]


async def _dispatch(store: Any) -> Dispatch:
    async def now_ms() -> int:
        return 1

    clock = DatabaseClock(now_ms)
    await clock.sync()
    return Dispatch(store, clock, Tokens({"k": b"key"}, "k"), lambda run_id: None)


def _holding(dispatch: Dispatch) -> tuple[Session, InHand]:
    hello = Hello(namespace="default", task_queues=["q"], workflow_types=["order"], workflow_slots=2)
    session = open_session("session", 1, hello)
    dispatch.connect(session)
    held = InHand("token", "run", WORKFLOW_TASK_ID, 1, TaskKind.WORKFLOW, 0)
    session.take(held)
    return session, held


async def _take_all(session: Session, sending: asyncio.Task[None]) -> list[WorkflowTask]:
    taken: list[WorkflowTask] = []
    while not sending.done() or session.workflow_tasks:
        frame = session.take_frame(1)
        taken += frame.workflow_tasks if frame is not None else []
        await asyncio.sleep(0)
    return taken


async def test_a_history_is_read_no_faster_than_its_worker_takes_it() -> None:
    store = _Store()
    dispatch = await _dispatch(store)
    session, held = _holding(dispatch)
    sending = asyncio.create_task(dispatch.resend_whole(session, held))
    for _ in range(10 * PAGES):
        await asyncio.sleep(0)
    assert store.read <= PAGES_AHEAD + 3

    pages = await _take_all(session, sending)
    assert [event.event_id for page in pages for event in page.events] == list(range(1, PAGES + 1))
    assert [page.more for page in pages] == [True] * (len(pages) - 1) + [False]
    assert pages[-1].last_event_id == session.brought["token"] == PAGES


async def test_a_stream_that_ends_stops_the_reading_of_histories_for_it() -> None:
    store = _Store()
    dispatch = await _dispatch(store)
    session, held = _holding(dispatch)
    sending = asyncio.create_task(dispatch.resend_whole(session, held))
    for _ in range(10 * PAGES):
        await asyncio.sleep(0)
    dispatch.disconnect(session)
    session.put_down(held.token)
    async with asyncio.timeout(10):
        await sending
    assert store.read <= PAGES_AHEAD + 3


async def test_a_history_that_cannot_be_read_to_its_end_ends_the_stream_so_that_the_worker_drops_what_it_has() -> None:
    dispatch = await _dispatch(_Store(away_after=5))
    session, held = _holding(dispatch)
    await dispatch.resend_whole(session, held)
    assert session.closed
    assert isinstance(session.closed_why, StoreUnavailable)


async def test_a_history_that_cannot_be_read_at_all_leaves_the_stream_alone() -> None:
    dispatch = await _dispatch(_Store(away_after=1))
    session, held = _holding(dispatch)
    await dispatch.resend_whole(session, held)
    assert not session.closed
    assert held.token not in session.in_hand
