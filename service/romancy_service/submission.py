"""Submission: a trigger on its way through the engine, and what makes it safe to submit again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from romancy_service.core.decide import Reply
from romancy_service.core.run import Run
from romancy_service.core.task import Fence
from romancy_service.core.triggers import StartRun, Trigger


@dataclass(frozen=True, slots=True)
class RequestKey:
    """Makes a trigger safe to submit again: the same id gets the same answer."""

    namespace: str
    request_id: str
    method: str
    encode: Callable[[Reply], bytes]
    """The answer that is stored with what the request caused."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """The request was carried out before; this is what it was answered."""

    method: str
    run_id: str
    reply: bytes


@dataclass(slots=True, eq=False)
class Submission:
    """A trigger on its way through the engine."""

    run_id: str
    trigger: Trigger
    future: asyncio.Future[Reply | Recorded]
    request: RequestKey | None = None
    new_run: Run | None = None
    """The run that it opens, of which only the ids are set."""
    successor: tuple[Run, StartRun] | None = None
    """A run to open in the same transaction, of the workflow id whose run the trigger closes."""
    tries: int = 0
    outages: int = 0
    """So often was the database not there for it."""
    fresh: bool = False
    """Its run, and its request id, must be read from the database: an earlier try was not written."""
    history: bool = False
    """Its run must be folded from its whole history."""
    alone: bool = False
    """The database refused what was decided for its run: it is tried without the others, so that one culprit fails."""

    @property
    def fence(self) -> Fence | None:
        """The row that it consumes, if it does."""
        return getattr(self.trigger, "fence", None)

    def resolve(self, reply: Reply | Recorded) -> None:
        """It is stored, or was before."""
        if not self.future.done():
            self.future.set_result(reply)

    def fail(self, error: Exception) -> None:
        """It will not be stored."""
        if not self.future.done():
            self.future.set_exception(error)
