"""Node: the parts of one replica that the edge talks to."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import structlog

from romancy_service.clock import Clock
from romancy_service.core.limits import Limits
from romancy_service.core.task import activity_task_id, compensation_task_id
from romancy_service.dispatch import Dispatch
from romancy_service.engine import Engine
from romancy_service.heartbeats import Heartbeats
from romancy_service.queries import Queries
from romancy_service.results import Results
from romancy_service.store.store import Store
from romancy_service.tokens import Tokens
from romancy_service.updates import Updates

_log = structlog.get_logger("romancy.node")


@dataclass(slots=True)
class Node:
    """What a call may use."""

    replica_id: str
    store: Store
    clock: Clock
    limits: Limits
    tokens: Tokens
    engine: Engine
    dispatch: Dispatch
    heartbeats: Heartbeats
    results: Results
    queries: Queries
    updates: Updates
    _closings: dict[str, asyncio.Task[dict[str, int]]] = field(default_factory=dict)
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    async def closing_attempt(self, run_id: str, task_id: str) -> int | None:
        """The attempt of an activity or compensation that closed it in its own words; 0 while it is open, or when an
        attempt that timed out or was lost closed it: that one never ended. None: the run has no such one.

        The history is read once for all who ask for the same run at the same time: after a reconnect these are many.
        """
        reading = self._closings.get(run_id)
        if reading is None:
            reading = self._closings[run_id] = asyncio.get_running_loop().create_task(self._read_closings(run_id))
            reading.add_done_callback(lambda _: self._closings.pop(run_id, None))
        return (await asyncio.shield(reading)).get(task_id)

    async def _read_closings(self, run_id: str) -> dict[str, int]:
        closings: dict[str, int] = {}
        async for page in self.store.history_pages(run_id):
            for event in page:
                kind = event.WhichOneof("attributes")
                if kind == "activity_scheduled":
                    closings[activity_task_id(event.activity_scheduled.command.activity_id)] = 0
                elif kind == "compensation_scheduled":
                    closings[compensation_task_id(event.compensation_scheduled.compensation_id)] = 0
                elif not event.HasField("author"):
                    continue  # nobody answered
                elif kind in ("activity_completed", "activity_failed", "activity_cancelled"):
                    activity = getattr(event, kind)
                    closings[activity_task_id(activity.activity_id)] = activity.attempt
                elif kind in ("compensation_completed", "compensation_failed"):
                    compensation = getattr(event, kind)
                    closings[compensation_task_id(compensation.compensation_id)] = compensation.attempt
            await asyncio.sleep(0)  # a long history must not hold up the rest
        return closings

    def background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Have `work` done, whether anybody waits for it or not; what it raises is logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("background work failed", error=repr(error))
