"""Describe: a run as people see it, with what it waits for in sentences."""

from __future__ import annotations

from typing import Final

from romancy.v1.failure_pb2 import Failure
from romancy.v1.history_pb2 import WorkflowCancelRequested
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import (
    WORKFLOW_STATUS_COMPENSATING,
    PendingActivity,
    PendingTimer,
    PendingWorkflowTask,
    WorkflowInfo,
)
from romancy.v1.workflow_service_pb2 import GetWorkflowResponse

from romancy_service.core import children
from romancy_service.core.channel import RECEIVER, channel_of
from romancy_service.core.limits import KIB
from romancy_service.core.run import Run
from romancy_service.core.saga import Saga
from romancy_service.core.subscription import event_type_of, is_answered
from romancy_service.core.task import COMPENSATION_PREFIX, ELSEWHERE, WORKFLOW_TASK_ID, Task, TaskKind
from romancy_service.core.times import timestamp
from romancy_service.ledger import read_saga
from romancy_service.node import Node
from romancy_service.store.lookups import RunSummary, RunView

_ROOM_BYTES: Final = 64 * KIB
"""For what frames the values of an answer."""


def describe_summary(run: RunSummary) -> WorkflowInfo:
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
    return info


async def describe(node: Node, view: RunView) -> GetWorkflowResponse:
    """Everything about one run."""
    run = view.run
    events = await node.store.show_history(run.run_id, 0, 1, max_bytes=1)
    saga: Saga | None = None
    if run.status == WORKFLOW_STATUS_COMPENSATING:
        saga = await read_saga(run, node.store.history_pages(run.run_id, for_client=True))
    for task_id, size in view.left_out.items():
        run.tasks[task_id].last_failure = Failure(message=f"it has {size} bytes, too many to be shown; see the history")
    response = GetWorkflowResponse(
        info=describe_summary(view.summary),
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
                worker_id=view.workers.get(waiting.owner, ""),
                last_failure=waiting.last_failure,
            )
        )
    response.waits.extend(_waits(run, view, saga, node.clock.now_ms()))
    _add_activities(response, view, node.limits.client_message_bytes - _ROOM_BYTES)
    return response


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
            activity = _activity(task, view.workers.get(task.owner, ""), details)
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


def _waits(run: Run, view: RunView, saga: Saga | None, now_ms: int) -> list[str]:
    """Each thing that the run waits for or is blocked by. An open run always has one."""
    sentences = [sentence for task in run.tasks.values() if (sentence := _wait(task, view, now_ms))]
    if saga is not None:
        sentences += [
            f"compensation {name} failed for good ({failed.failure.type}: {failed.failure.message}): "
            "an operator must retry it, mark it done or give it up"
            for name, failed in saga.failed.items()
        ]
    unseen = sum(view.counts.values()) - len(run.tasks)
    if unseen > 0:
        sentences.append(f"and {unseen} more activities, timers, children and messages")
    if run.is_open and not sentences:
        sentences.append("its code waits for something that only the code knows: no activity, timer or input is open")
    return sentences


def _errand(task: Task) -> str:
    """What is to be brought about in another run, or is open there."""
    name = task.task_id.partition("/")[2]
    if task.kind is TaskKind.REPORT:
        return "its parent is to be told of its end"
    if task.kind is TaskKind.SEND:
        return f"message {name} is on its way"
    state = {children.START: "is to be started", children.OPEN: "is open", children.CLOSE: "is to be closed"}
    return f"child {name} {state[task.attempt]}" + (" and was asked to stop" if task.cancel_requested else "")


def _in_channel(channel: str, task: Task, since: str) -> str:
    if task.queue == RECEIVER:
        return f"a message of channel {channel} is waited for {since}"
    if not is_answered(task):
        return f"channel {channel} is to be subscribed to, {task.queue}"
    return f"channel {channel} is subscribed to, {task.queue}, {since}"


def _wait(task: Task, view: RunView, now_ms: int) -> str:
    if task.kind in (TaskKind.CHILD, TaskKind.SEND, TaskKind.REPORT):
        return _errand(task)
    if task.kind is TaskKind.SUBSCRIPTION:
        since = f"since {_seconds(now_ms - task.scheduled_ms)}" if task.scheduled_ms else "since a run before this one"
        channel = channel_of(task.type)
        if channel is not None:
            return _in_channel(channel, task, since)
        event_type, paths = event_type_of(task.type)
        chosen = f" with the {' and '.join(paths)} that it asked for" if paths else ""
        return f"event {event_type}{chosen} is waited for {since}"
    what = {TaskKind.WORKFLOW: "workflow task", TaskKind.TIMER: "timer", TaskKind.DEADLINE: "run timeout"}.get(
        task.kind, "compensation" if task.is_compensation else "activity"
    )
    name = task.task_id.partition("/")[2]
    subject = " ".join(filter(None, (what, name)))
    if task.kind in (TaskKind.TIMER, TaskKind.DEADLINE):
        return "" if task.kind is TaskKind.DEADLINE else f"{subject} fires in {_seconds(task.due_ms - now_ms)}"
    failure = (
        f"; before, {task.last_failure.type}: {task.last_failure.message}" if task.last_failure is not None else ""
    )
    if task.owner == ELSEWHERE:
        asked = ", and was asked to stop" if task.cancel_requested else ""
        since = _seconds(now_ms - task.leased_ms)
        return f"{subject}, attempt {task.attempt}, is to be completed from elsewhere since {since}{asked}{failure}"
    if task.owner:
        worker = view.workers.get(task.owner)
        doing = "was asked to stop" if task.cancel_requested else "runs"
        where = f"on worker {worker}" if worker else "on a worker that is gone; it will be lost soon"
        return f"{subject}, attempt {task.attempt}, {doing} {where} since {_seconds(now_ms - task.leased_ms)}{failure}"
    if task.due_ms > now_ms:
        return f"{subject}, attempt {task.attempt}, is due in {_seconds(task.due_ms - now_ms)}{failure}"
    served = (task.queue, task.kind, task.type) in view.served
    if served:
        blocker = "all workers that have it are busy"
    elif view.all_workers:
        blocker = "no connected worker of that queue has it"
    else:
        blocker = "none of the workers that were looked at has it"
    return (
        f"{subject}, attempt {task.attempt}, waits for a worker of queue {task.queue!r} with type {task.type!r} "
        f"since {_seconds(now_ms - task.due_ms)}: {blocker}{failure}"
    )


def _seconds(ms: int) -> str:
    return f"{max(ms, 0) / 1000:.1f} s"
