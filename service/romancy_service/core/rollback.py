"""Rollback: drives compensations one after the other, newest first. Called after whatever a trigger changed."""

from __future__ import annotations

from romancy.v1.history_pb2 import (
    CompensateFinished,
    CompensationScheduled,
    WorkflowCancelled,
    WorkflowFailed,
    WorkflowTimedOut,
)
from romancy.v1.workflow_pb2 import (
    WORKFLOW_STATUS_CANCELLED,
    WORKFLOW_STATUS_COMPENSATING,
    WORKFLOW_STATUS_RUNNING,
    WORKFLOW_STATUS_TIMED_OUT,
)

from romancy_service.core import children
from romancy_service.core.apply import rollback_outcome
from romancy_service.core.emit import Emitter
from romancy_service.core.run import Run
from romancy_service.core.saga import Saga, Undo


class NeedsHistory(Exception):
    """The decision depends on the saga, and the run was read without its history: fold it, and ask again."""


def saga_of(run: Run) -> Saga:
    """The run's saga. Raises NeedsHistory when it was not folded, unless nothing was ever registered."""
    if run.saga is None:
        if run.counters.undoable:
            raise NeedsHistory(run.run_id)
        run.saga = Saga()
    return run.saga


def advance(emit: Emitter) -> None:
    """Send out the next compensation if it is its turn, or end what was waiting for the last one."""
    # Called for every decision, so what walks over the run's tasks comes last, and only where it must.
    run = emit.run
    if run.status == WORKFLOW_STATUS_COMPENSATING:
        # Otherwise `pay` could complete after `refund` ran.
        if not any(run.activities()) and not children.waited_for(run) and run.compensation() is None:
            _advance_rollback(emit)
    elif run.status == WORKFLOW_STATUS_RUNNING and run.counters.open_compensates and run.compensation() is None:
        _advance_compensates(emit)


def _advance_rollback(emit: Emitter) -> None:
    run = emit.run
    saga = saga_of(run)
    undo = saga.newest(run.last_event_id)
    if undo is not None:
        _send(emit, undo)
    elif saga.failed:
        # Nothing more can happen by itself: whoever waits for the result gets it, an operator has the last word.
        run.outcome = rollback_outcome(run)
    elif run.closing_status == WORKFLOW_STATUS_CANCELLED:
        emit.note(workflow_cancelled=WorkflowCancelled())
    elif run.closing_status == WORKFLOW_STATUS_TIMED_OUT:
        emit.note(workflow_timed_out=WorkflowTimedOut())
    else:
        emit.note(workflow_failed=WorkflowFailed())


def _advance_compensates(emit: Emitter) -> None:
    run = emit.run
    saga = saga_of(run)
    undo = saga.newest(max(run.counters.open_compensates.values()))
    if undo is not None:
        _send(emit, undo)
        return
    failure = next((failed.failure for failed in saga.failed.values()), None)
    for compensate_id in list(run.counters.open_compensates):
        emit.note(compensate_finished=CompensateFinished(compensate_id=compensate_id, failure=failure))


def _send(emit: Emitter, undo: Undo) -> None:
    compensation = undo.compensation
    emit.note(
        compensation_scheduled=CompensationScheduled(
            compensation_id=undo.compensation_id,
            activity_type=compensation.activity_type,
            task_queue=compensation.task_queue or undo.task_queue,
            undoes_event_id=undo.event_id,
        )
    )
