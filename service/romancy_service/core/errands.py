"""Errands: what becomes of a run when something that it had brought about in other runs is done."""

from __future__ import annotations

from romancy.v1.history_pb2 import ChildCancelDelivered, ChildClosed, ChildStarted, ChildStartFailed, SendFinished

from romancy_service.core import children
from romancy_service.core.emit import Emitter
from romancy_service.core.fenced import fenced
from romancy_service.core.task import NEVER_MS, child_task_id
from romancy_service.core.triggers import BeginChild, EndChild, FinishErrand, FinishSend, TellChild
from romancy_service.errors import StaleTask


def finish(emit: Emitter, trigger: BeginChild | TellChild | EndChild | FinishSend | FinishErrand) -> None:
    """Record it; of a run that is closed nothing is recorded any more, its row just goes. Raises StaleTask."""
    run = emit.run
    if isinstance(trigger, EndChild):
        _end_child(emit, trigger)
        return
    task = fenced(run, trigger.fence)
    if not run.is_open:
        run.drop_task(task.task_id)
        return
    match trigger:
        case BeginChild() if trigger.failure is not None:
            emit.note(child_start_failed=ChildStartFailed(child_id=trigger.child_id, failure=trigger.failure))
        case BeginChild():
            emit.note(child_started=_started(trigger))
        case TellChild():
            if task.due_ms == NEVER_MS:
                raise StaleTask(task.task_id, "it was told before")
            emit.note(child_cancel_delivered=ChildCancelDelivered(child_id=trigger.child_id))
        case FinishSend():
            emit.note(send_finished=SendFinished(send_id=trigger.send_id, failure=trigger.failure))
        case FinishErrand():
            raise StaleTask(task.task_id, "the run is open")


def _end_child(emit: Emitter, trigger: EndChild) -> None:
    run = emit.run
    task = run.tasks.get(child_task_id(trigger.child_id))
    if task is None:
        raise StaleTask(child_task_id(trigger.child_id), "its end is known")
    if not run.is_open:
        run.drop_task(task.task_id)
        return
    if task.attempt == children.START:
        emit.note(child_started=_started(trigger))
    # Between the two the run may have let go of a child that it had abandoned.
    if task.task_id in run.tasks:
        closed = ChildClosed(child_id=trigger.child_id, run_id=trigger.run_id, outcome=trigger.outcome)
        emit.note(child_closed=closed)


def _started(trigger: BeginChild | EndChild) -> ChildStarted:
    return ChildStarted(child_id=trigger.child_id, workflow_id=trigger.workflow_id, run_id=trigger.run_id)
