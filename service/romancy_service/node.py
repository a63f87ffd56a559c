"""Node: the parts of one replica that the edge talks to."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import structlog

from romancy_service.clock import Clock
from romancy_service.core.limits import Limits
from romancy_service.dispatch import Dispatch
from romancy_service.engine import Engine
from romancy_service.heartbeats import Heartbeats
from romancy_service.results import Results
from romancy_service.store.store import Store
from romancy_service.tokens import Tokens

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
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    async def closing_attempt(self, run_id: str, task_id: str) -> int:
        """The attempt of an activity or compensation that closed it; 0 while it is open, or when nothing is known."""
        name = task_id.partition("/")[2]
        for event in reversed(await self.store.read_history(run_id, 0, 1 << 40, max_bytes=1 << 40)):
            kind = event.WhichOneof("attributes")
            if kind in ("activity_completed", "activity_failed", "activity_cancelled"):
                closed = getattr(event, kind)
                if task_id.startswith("a/") and closed.activity_id == name:
                    return int(closed.attempt)
            elif kind in ("compensation_completed", "compensation_failed"):
                closed = getattr(event, kind)
                if task_id.startswith("c/") and closed.compensation_id == name:
                    return int(closed.attempt)
        return 0

    def background(self, work: Coroutine[Any, Any, Any]) -> None:
        """Have `work` done without waiting for it; what it raises is logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("background work failed", error=repr(error))
