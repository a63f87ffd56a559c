"""Fenced: the task that a trigger consumes."""

from __future__ import annotations

from romancy_service.core.run import Run
from romancy_service.core.task import Fence, Task
from romancy_service.errors import StaleTask


def fenced(run: Run, fence: Fence) -> Task:
    """The task that a fence names. Raises StaleTask. Whether the lease is right too is checked by the commit."""
    task = run.tasks.get(fence.task_id)
    if task is None:
        raise StaleTask(fence.task_id, "it is closed")
    if task.attempt != fence.attempt:
        raise StaleTask(fence.task_id, f"attempt {fence.attempt} was replaced by attempt {task.attempt}")
    return task
