"""Stopping: tells workers of activities that need not be finished: asked to stop, given up, or of a closed run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

from romancy.v1.failure_pb2 import FAILURE_SOURCE_LOST, FAILURE_SOURCE_TIMEOUT
from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.worker_service_pb2 import CANCELLATION_REASON_REQUESTED, CANCELLATION_REASON_STALE

from romancy_service.core.run import Run
from romancy_service.core.task import activity_task_id, compensation_task_id
from romancy_service.dispatch.news import News
from romancy_service.dispatch.roster import Roster
from romancy_service.store.store import Store

_NOT_BY_THE_WORKER: Final = (FAILURE_SOURCE_TIMEOUT, FAILURE_SOURCE_LOST)


class Stopping:
    """Finds who has what need not go on: here at once, on other replicas by telling them."""

    def __init__(self, store: Store, roster: Roster, news: News, wake: asyncio.Event) -> None:
        self._store = store
        self._roster = roster
        self._news = news
        self._wake = wake
        self._asked = False
        """Activities were asked to stop whose sessions were not told yet."""

    def committed(self, run: Run) -> None:
        """A run was written: activities of it may have been asked to stop, or attempts be given up."""
        for task_id, was_stored in run.touched.items():
            task = run.tasks.get(task_id)
            if task is None:
                if was_stored and not run.is_open:
                    self._give_up(run.run_id, task_id, 0)
            elif was_stored and task.cancel_requested and task_id not in run.rewritten:
                self._news.add_cancelled()
                self.look()
        for event in run.new_events:
            for task_id, attempt in _given_up(event):
                self._give_up(run.run_id, task_id, attempt)

    def _give_up(self, run_id: str, task_id: str, attempt: int) -> None:
        if not self.tell_stale(run_id, task_id, attempt):
            self._news.add_stale(run_id, task_id, attempt)

    def tell_stale(self, run_id: str, task_id: str, attempt: int) -> bool:
        """Tell the session here that has the attempt (0: any), if one does, that its result would be refused."""
        found = self._roster.holder(run_id, task_id, attempt)
        if found is None:
            return False
        session, held = found
        session.cancel(held, CANCELLATION_REASON_STALE)
        return True

    def look(self) -> None:
        """Ask the database soon who must be told to stop."""
        self._asked = True
        self._wake.set()

    async def push(self) -> None:
        """Tell sessions here what they were asked to stop. Raises StoreUnavailable."""
        if not self._asked:
            return
        self._asked = False
        sessions = self._roster.sessions
        for row in await self._store.to_cancel(list(sessions)) if sessions else []:
            session = sessions.get(row.owner)
            held = session.find(row.run_id, row.task_id) if session is not None else None
            if session is not None and held is not None and held.attempt == row.attempt:
                session.cancel(held, CANCELLATION_REASON_REQUESTED)


def _given_up(event: HistoryEvent) -> Iterator[tuple[str, int]]:
    """The attempt that an event ends although its worker did not: it timed out, or was lost."""
    kind = event.WhichOneof("attributes")
    if kind in ("activity_attempt_failed", "activity_failed"):
        activity = getattr(event, kind)
        if activity.failure.source in _NOT_BY_THE_WORKER:
            yield activity_task_id(activity.activity_id), activity.attempt
    elif kind in ("compensation_attempt_failed", "compensation_failed"):
        compensation = getattr(event, kind)
        if compensation.failure.source in _NOT_BY_THE_WORKER:
            yield compensation_task_id(compensation.compensation_id), compensation.attempt
    elif kind == "activity_cancelled" and event.activity_cancelled.outcome_unknown:
        yield activity_task_id(event.activity_cancelled.activity_id), event.activity_cancelled.attempt
