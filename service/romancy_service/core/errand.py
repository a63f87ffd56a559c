"""Errand: what a run has the service bring about in another run. A row until it is done; a run's are done in order."""

from __future__ import annotations

from romancy.v1.command_pb2 import Send, StartChild

from romancy_service.core.run import Run
from romancy_service.core.task import Task, TaskKind


def errand(run: Run, task_id: str, kind: TaskKind, what: StartChild | Send) -> Task:
    """Due at once. `scheduled_ms` is the number of the event that asked for it, by which they are done in order."""
    return Task(task_id, kind, due_ms=run.last_event_ms, scheduled_ms=run.last_event_id, errand=what)
