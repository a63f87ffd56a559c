"""Describe: a run as people see it, with what it waits for."""

from __future__ import annotations

from typing import Final

from romancy.v1.failure_pb2 import Failure
from romancy.v1.history_pb2 import WorkflowCancelRequested
from romancy.v1.payload_pb2 import Payload
from romancy.v1.wait_pb2 import Wait
from romancy.v1.workflow_pb2 import (
    WORKFLOW_STATUS_COMPENSATING,
    PendingActivity,
    PendingTimer,
    PendingWorkflowTask,
    WorkflowInfo,
)
from romancy.v1.workflow_service_pb2 import GetWorkflowResponse

from romancy_service.core.limits import KIB, MIB, Limits
from romancy_service.core.run import OPEN_STATUSES, Run
from romancy_service.core.saga import Saga
from romancy_service.core.task import COMPENSATION_PREFIX, ELSEWHERE, WORKFLOW_TASK_ID, Task, TaskKind
from romancy_service.core.times import timestamp
from romancy_service.core.why.facts import Facts, FailedCompensation, Undelivered
from romancy_service.core.why.waits import waits
from romancy_service.core.why.whole import is_long
from romancy_service.ledger import read_saga
from romancy_service.node import Node
from romancy_service.store.lookups import RunSummary, RunView

_WAITS_BYTES: Final = MIB
"""For what a run waits for, the failures that it names included."""
_ROOM_BYTES: Final = 64 * KIB
"""For what frames the values of an answer."""


def describe_summary(run: RunSummary, limits: Limits) -> WorkflowInfo:
    """A line of a list."""
    info = WorkflowInfo.FromString(run.memo)
    info.MergeFromString(run.attributes)
    info.workflow_id = run.workflow_id
    info.run_id = run.run_id
    info.workflow_type = run.workflow_type
    info.task_queue = run.task_queue
    info.status = run.status
    info.start_time.CopyFrom(timestamp(run.start_ms))
    if run.close_ms:
        info.close_time.CopyFrom(timestamp(run.close_ms))
    info.history_length = run.last_event_id
    info.priority = run.priority
    info.build_id = run.build_id
    info.history_bytes = run.history_bytes
    info.first_run_id = info.first_run_id or run.run_id
    info.history_warning = run.status in OPEN_STATUSES and is_long(run, limits)
    return info


async def describe(node: Node, view: RunView) -> GetWorkflowResponse:
    """Everything about one run."""
    run = view.run
    events = await node.store.show_history(run.run_id, 0, 1, max_bytes=1)
    for task_id, size in view.left_out.items():
        run.tasks[task_id].last_failure = Failure(message=f"it has {size} bytes, too many to be shown; see the history")
    response = GetWorkflowResponse(
        info=describe_summary(view.summary, node.limits),
        spec=events[0].workflow_started.spec if events else None,
        outcome=run.outcome,
        cancellation=_cancellation(run),
        open_activities=view.counts.get(TaskKind.ACTIVITY, 0),
        open_timers=view.counts.get(TaskKind.TIMER, 0),
    )
    for task in run.tasks.values():
        if task.kind is TaskKind.TIMER:
            timer_id = task.task_id.removeprefix("t/")
            response.timers.append(PendingTimer(timer_id=timer_id, fire_time=timestamp(task.due_ms)))
    if (waiting := run.tasks.get(WORKFLOW_TASK_ID)) is not None:
        response.workflow_task.CopyFrom(
            PendingWorkflowTask(
                attempt=waiting.attempt,
                due_time=timestamp(waiting.due_ms),
                worker_id=_worker(view, waiting),
                last_failure=waiting.last_failure,
            )
        )
    saga = await _saga(node, run)
    # Most runs send nothing, and most of what is sent is delivered at once: then nothing more is read than an index.
    undelivered = await node.store.undelivered(run.run_id, node.limits.shown_tasks) if run.counters.events else []
    _add_waits(response, waits(_facts(node, view, saga, undelivered)))
    _add_activities(response, view, node.limits.client_message_bytes - _ROOM_BYTES)
    return response


async def _saga(node: Node, run: Run) -> Saga | None:
    """What a run that undoes itself has left to undo, and could not undo. Read from its history where that is cheap, or
    where nothing else tells what it is blocked by.
    """
    if run.status != WORKFLOW_STATUS_COMPENSATING or not run.counters.undoable:
        return None
    if run.outcome is None and run.history_bytes > node.limits.shown_saga_bytes:
        return None
    return await read_saga(run, node.store.history_pages(run.run_id, for_client=True))


def _facts(node: Node, view: RunView, saga: Saga | None, undelivered: list[Undelivered]) -> Facts:
    failed = saga.failed if saga is not None else {}
    details = view.heartbeat_details
    return Facts(
        run=view.run,
        now_ms=node.clock.now_ms(),
        limits=node.limits,
        counts=view.counts,
        progress={task_id: Payload.FromString(value) for task_id, value in details.items()},
        holders=view.holders,
        serving=view.workforce.serving,
        last_served=view.workforce.last_served,
        all_workers=view.workforce.all_workers,
        children=view.children,
        undelivered=undelivered,
        failed=[
            FailedCompensation(name, each.undo.compensation.activity_type, each.failure)
            for name, each in list(failed.items())[: node.limits.shown_tasks]
        ],
        to_undo=len(saga.ledger) if saga is not None else 0,
    )


def _add_waits(response: GetWorkflowResponse, found: list[Wait]) -> None:
    """A failure that is too large to be shown twice is left to the activity that it belongs to."""
    room = _WAITS_BYTES
    for wait in found:
        if (size := wait.ByteSize()) > room:
            wait.ClearField("last_failure")
            size = wait.ByteSize()
        room -= size
        response.waits.append(wait)


def _worker(view: RunView, task: Task) -> str:
    holder = view.holders.get(task.owner)
    return holder.worker_id if holder is not None else ""


def _cancellation(run: Run) -> WorkflowCancelRequested | None:
    if run.counters.cancellation is None:
        return None
    reason, identity = run.counters.cancellation
    return WorkflowCancelRequested(reason=reason, identity=identity)


def _add_activities(response: GetWorkflowResponse, view: RunView, most_bytes: int) -> None:
    """As many as fit; before none fits the run's arguments are left out, which its history has too."""
    room = most_bytes - response.ByteSize()
    if room < 0:
        room += sum(argument.ByteSize() for argument in response.spec.arguments)
        response.spec.ClearField("arguments")
    for task in view.run.tasks.values():
        if task.kind is TaskKind.ACTIVITY:
            details = view.heartbeat_details.get(task.task_id)
            activity = _activity(task, _worker(view, task), details)
            room -= activity.ByteSize()
            if room < 0:
                break
            response.activities.append(activity)


def _activity(task: Task, worker_id: str, details: bytes | None) -> PendingActivity:
    return PendingActivity(
        activity_id=task.task_id.removeprefix(COMPENSATION_PREFIX if task.is_compensation else "a/"),
        activity_type=task.type,
        task_queue=task.queue,
        attempt=task.attempt,
        due_time=None if task.owner else timestamp(task.due_ms),
        worker_id=worker_id,
        started_time=timestamp(task.leased_ms) if task.owner else None,
        heartbeat_details=Payload.FromString(details) if details else None,
        heartbeat_time=timestamp(task.heartbeat_ms) if task.heartbeat_ms else None,
        last_failure=task.last_failure,
        cancel_requested=task.cancel_requested,
        compensation=task.is_compensation,
        elsewhere=task.owner == ELSEWHERE,
    )
