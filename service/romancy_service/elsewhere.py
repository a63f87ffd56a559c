"""Elsewhere: ends attempts, and hears of their progress, for who is no worker. Whoever has an attempt then, it is the
attempt that is ended: its worker may not have said yet that it leaves it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from romancy_service.core.decide import Reply
from romancy_service.core.task import (
    COMPENSATION_ID_PREFIX,
    WORKFLOW_TASK_ID,
    Fence,
    Task,
    activity_task_id,
    compensation_task_id,
)
from romancy_service.core.triggers import CompleteActivity
from romancy_service.errors import InvalidField, StaleTask, TooMuchContention, WorkflowNotFound
from romancy_service.node import Node
from romancy_service.store.store import Beat
from romancy_service.submission import Recorded, RequestKey
from romancy_service.tokens import InvalidToken

_TRIES: Final = 10
"""An attempt that changes hands so often while somebody ends it is left to itself."""
NOBODY: Final = Fence("", 1, "")


@dataclass(frozen=True, slots=True)
class AttemptRef:
    """An activity or compensation of a run, and which attempt of it; 0: the current one."""

    run_id: str
    task_id: str
    attempt: int = 0


class Elsewhere:
    """Ends attempts by their names."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def by_token(self, namespace: str, token: str) -> AttemptRef:
        """The attempt that a token names. Raises InvalidField."""
        try:
            ref = self._node.tokens.read(token)
        except InvalidToken as error:
            raise _invalid_token(str(error)) from error
        if ref.namespace != namespace:
            raise _invalid_token(f"is not of namespace {namespace!r}")
        if ref.task_id == WORKFLOW_TASK_ID:
            raise _invalid_token("is of a workflow task, which only its worker can complete")
        return AttemptRef(ref.run_id, ref.task_id, ref.attempt)

    async def by_id(self, namespace: str, workflow_id: str, run_id: str, activity_id: str) -> AttemptRef:
        """The current attempt of an activity. Raises WorkflowNotFound."""
        (found,) = await self._node.store.find_runs([(namespace, workflow_id, run_id)])
        if found is None:
            raise WorkflowNotFound(run_id or workflow_id)
        undoes = activity_id.startswith(COMPENSATION_ID_PREFIX)
        return AttemptRef(found, compensation_task_id(activity_id) if undoes else activity_task_id(activity_id))

    async def complete(self, ref: AttemptRef, outcome: CompleteActivity, key: RequestKey) -> Reply | Recorded | None:
        """End the attempt with an outcome, whose fence is filled in. None: it had ended before. Raises StaleTask."""
        tried: Fence | None = None
        for _ in range(_TRIES):
            task = await self._find(ref)
            fence = _fence(ref, task)
            leased_ms = task.leased_ms if task is not None and task.leased_ms else self._node.clock.now_ms()
            meant = replace(outcome, fence=fence, leased_ms=leased_ms)
            try:
                # Also of one that is not there: the same request may have ended it, and knows its answer then.
                return await self._node.engine.submit(ref.run_id, meant, key)
            except StaleTask as stale:
                if fence == tried:
                    await self._check_ended(ref, stale)
                    return None
                tried = fence  # somebody else has it now, perhaps
        raise TooMuchContention(ref.run_id)

    async def _check_ended(self, ref: AttemptRef, stale: StaleTask) -> None:
        """Raise `stale` unless it was this very attempt that closed the activity."""
        closed_by = await self._node.closing_attempt(ref.run_id, ref.task_id)
        if closed_by is None:
            raise StaleTask(ref.task_id, "its run never had it; GetWorkflow lists what is open")
        if not closed_by or ref.attempt not in (0, closed_by):
            raise stale

    async def beat(self, ref: AttemptRef, details: bytes | None) -> bool:
        """The attempt goes on. Returns whether it is asked to stop. Raises StaleTask."""
        for _ in range(_TRIES):
            task = await self._find(ref)
            if task is None:
                raise StaleTask(ref.task_id, "it is closed, or its run has no such activity")
            if ref.attempt not in (0, task.attempt):
                raise StaleTask(ref.task_id, f"attempt {ref.attempt} was replaced by attempt {task.attempt}")
            if not task.owner:
                raise StaleTask(ref.task_id, f"attempt {task.attempt} is not begun")
            beat = Beat(ref.run_id, ref.task_id, task.attempt, task.owner, task.owner_epoch, details)
            (heard,) = await self._node.store.heartbeat([beat], self._node.clock.now_ms())
            if heard:
                return task.cancel_requested
        raise TooMuchContention(ref.run_id)

    async def _find(self, ref: AttemptRef) -> Task | None:
        return await self._node.store.find_task(ref.run_id, ref.task_id)


def _fence(ref: AttemptRef, task: Task | None) -> Fence:
    """What is consumed: the attempt that is meant, as whoever has it now has it."""
    if task is None:
        return Fence(ref.task_id, ref.attempt, "")
    return Fence(ref.task_id, ref.attempt or task.attempt, task.owner, task.owner_epoch)


def _invalid_token(problem: str) -> InvalidField:
    return InvalidField("activity.token", problem, "give the token of an ActivityTask", reason="INVALID_TOKEN")
