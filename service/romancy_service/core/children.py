"""Children: the life of a run's children, as its own history sees it.

A child's row is there from the request until its end is known. Its attempt says what is to be done about it: START it,
nothing while it is OPEN, or CLOSE it because its parent is closed; PREVENT its start if that is not known to have been.
"""

from __future__ import annotations

from typing import Final

from romancy.v1.command_pb2 import PARENT_CLOSE_POLICY_ABANDON, StartChild
from romancy.v1.history_pb2 import ChildStarted
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_COMPLETED, WORKFLOW_STATUS_RUNNING, WorkflowOutcome

from romancy_service.core.errand import errand
from romancy_service.core.run import Run
from romancy_service.core.task import NEVER_MS, Task, TaskKind, child_task_id

START: Final = 1
OPEN: Final = 2
CLOSE: Final = 3
PREVENT: Final = 4


def requested(run: Run, command: StartChild) -> None:
    """The code asked for a child."""
    counters = run.counters
    counters.children[command.spec.workflow_type] = counters.children.get(command.spec.workflow_type, 0) + 1
    if command.HasField("compensation"):
        counters.undoable += 1
        if run.saga is not None:
            run.saga.child_requested(command)
    run.put_task(errand(run, child_task_id(command.child_id), TaskKind.CHILD, command))


def started(run: Run, event: ChildStarted) -> None:
    """The child is open."""
    task = run.tasks[child_task_id(event.child_id)]
    if is_abandoned(task) and run.status != WORKFLOW_STATUS_RUNNING:
        run.drop_task(task.task_id)
        return
    task.attempt, task.due_ms = OPEN, run.last_event_ms if task.cancel_requested else NEVER_MS
    run.put_task(task)


def closed(run: Run, child_id: str, outcome: WorkflowOutcome | None) -> None:
    """The child ended; None: it never began."""
    run.drop_task(child_task_id(child_id))
    if run.saga is not None:
        result = outcome.result if outcome is not None and outcome.status == WORKFLOW_STATUS_COMPLETED else None
        run.saga.child_closed(run.last_event_id, child_id, result)


def ask_to_stop(run: Run, child_id: str) -> None:
    """Have the child told to stop, after it is started."""
    task = run.tasks.get(child_task_id(child_id))
    if task is None or task.cancel_requested:
        return  # it was closed by an input that the code had not seen
    task.cancel_requested = True
    task.due_ms = run.last_event_ms
    run.put_task(task)


def told_to_stop(run: Run, child_id: str) -> None:
    """The child knows that it is to stop."""
    task = run.tasks[child_task_id(child_id)]
    task.due_ms = NEVER_MS
    run.put_task(task)


def ask_all_to_stop(run: Run, *, but_shielded: bool = False) -> None:
    """Have all children told to stop, or all but those that the code shields."""
    for task in list(run.children()):
        assert isinstance(task.errand, StartChild)
        if not (but_shielded and task.errand.shielded):
            ask_to_stop(run, task.errand.child_id)


def abandon(run: Run) -> None:
    """Children that outlive their parent are not waited for when it is undone."""
    for task in list(run.children()):
        if is_abandoned(task) and task.attempt == OPEN:
            run.drop_task(task.task_id)


def let_go(run: Run) -> None:
    """The run is closed: its children go on without it, or are closed as well. Those not started yet are not lost."""
    for task in list(run.children()):
        if not is_abandoned(task) and task.attempt == START:
            # Due since it was asked for: as long as it is, it stays known whether it was started.
            task.attempt = PREVENT
            run.put_task(task)
        elif not is_abandoned(task):
            task.attempt, task.due_ms = CLOSE, run.last_event_ms
            run.put_task(task)
        elif task.attempt == OPEN:
            run.drop_task(task.task_id)


def waited_for(run: Run) -> bool:
    """Whether the run has children whose end its rollback waits for."""
    return any(not is_abandoned(task) for task in run.children())


def is_abandoned(task: Task) -> bool:
    """Whether the child outlives its parent."""
    assert isinstance(task.errand, StartChild)
    return task.errand.parent_close_policy == PARENT_CLOSE_POLICY_ABANDON
