"""Apply: how each recorded event changes a run. All transitions live here; nothing else changes what is recorded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import assert_never

from romancy.v1.command_pb2 import ScheduleActivity, Send, SendEvent, Subscribe
from romancy.v1.failure_pb2 import FAILURE_SOURCE_CANCELLED, FAILURE_SOURCE_LOST, FAILURE_SOURCE_TERMINATED, Failure
from romancy.v1.history_pb2 import (
    COMPENSATION_RESOLUTION_RETRY,
    ActivityAttemptFailed,
    CompensationAttemptFailed,
    CompensationResolved,
    HistoryEvent,
    RollbackStarted,
    SubscriptionAnswered,
    WorkflowCancelRequested,
    WorkflowStarted,
)
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import (
    WORKFLOW_STATUS_CANCELLED,
    WORKFLOW_STATUS_COMPENSATING,
    WORKFLOW_STATUS_COMPLETED,
    WORKFLOW_STATUS_CONTINUED,
    WORKFLOW_STATUS_FAILED,
    WORKFLOW_STATUS_RUNNING,
    WORKFLOW_STATUS_TERMINATED,
    WORKFLOW_STATUS_TIMED_OUT,
    WorkflowOutcome,
    WorkflowSpec,
    WorkflowStatus,
)

from romancy_service.core import children
from romancy_service.core.errand import errand
from romancy_service.core.limits import WORKFLOW_TASK_MS
from romancy_service.core.replay import is_input
from romancy_service.core.run import Run
from romancy_service.core.saga import Saga
from romancy_service.core.subscription import subscription
from romancy_service.core.task import (
    DEADLINE_TASK_ID,
    NEVER_MS,
    REPORT_TASK_ID,
    WORKFLOW_TASK_ID,
    Task,
    TaskKind,
    activity_task_id,
    compensation_task_id,
    send_task_id,
    subscription_task_id,
    timer_task_id,
)
from romancy_service.core.times import duration_ms, limit_ms, timestamp_ms

_OF_CODE = (TaskKind.WORKFLOW, TaskKind.TIMER, TaskKind.DEADLINE, TaskKind.SUBSCRIPTION)
"""What a run has no use for when its code has ended."""


class CorruptHistory(Exception):
    """A stored history has an event that cannot follow the ones before it."""


def fold(namespace: str, workflow_id: str, run_id: str, events: list[HistoryEvent]) -> Run:
    """The run that a whole history makes, its saga included."""
    run = Run(namespace=namespace, workflow_id=workflow_id, run_id=run_id, saga=Saga())
    for event in events:
        apply(run, event)
    run.touched.clear()
    run.rewritten.clear()
    run.set_attributes.clear()
    run.outgoing.clear()
    return run


def apply(run: Run, event: HistoryEvent) -> None:
    """Take `event` into `run`. A commit that fails evicts the run, so that nothing has to be taken back."""
    if event.event_id != run.last_event_id + 1:
        raise CorruptHistory(f"run {run.run_id}: event {event.event_id} follows event {run.last_event_id}")
    run.last_event_id = event.event_id
    run.last_event_ms = timestamp_ms(event.time)
    run.history_bytes += event.ByteSize()
    if event.seen_event_id:
        _see(run, event.seen_event_id)
    if event.suggests_recurring:
        run.counters.told_to_recur = True
    kind = event.WhichOneof("attributes")
    match kind:
        case "workflow_started":
            _start(run, event.workflow_started)
        case "workflow_cancel_requested":
            run.cancel_requested = True
            requested = event.workflow_cancel_requested
            run.counters.cancellation = (requested.reason, requested.identity)
            run.failure = _cancellation(requested)
            _ask_activities_to_stop(run, but_shielded=True)
            children.ask_all_to_stop(run, but_shielded=True)
        case "activity_scheduled":
            _schedule(run, event.activity_scheduled.command)
        case "activity_cancel_requested":
            asked = run.tasks.get(activity_task_id(event.activity_cancel_requested.activity_id))
            if asked is not None:  # else it was closed by an input that the code had not seen
                _ask_to_stop(run, asked)
        case "activity_attempt_failed":
            failed = event.activity_attempt_failed
            _next_attempt(run, activity_task_id(failed.activity_id), failed, outcome_unknown=failed.outcome_unknown)
        case "activity_completed":
            completed = event.activity_completed
            _send_events(run, completed.events)
            _close(run, completed.activity_id, completed.result, attempt=completed.attempt, unknown=False)
        case "activity_failed":
            lost = event.activity_failed
            _close(run, lost.activity_id, None, attempt=lost.attempt, unknown=lost.outcome_unknown)
        case "activity_cancelled":
            stopped = event.activity_cancelled
            _close(run, stopped.activity_id, None, attempt=stopped.attempt, unknown=stopped.outcome_unknown)
        case "timer_started":
            timer = event.timer_started
            run.counters.timers += 1
            due_ms = timestamp_ms(timer.fire_time)
            run.put_task(Task(timer_task_id(timer.timer_id), TaskKind.TIMER, type=timer.timeout_of, due_ms=due_ms))
        case "timer_fired":
            run.drop_task(timer_task_id(event.timer_fired.timer_id))
        case "timer_cancelled":
            if (
                timer_task_id(event.timer_cancelled.timer_id) in run.tasks
            ):  # else it fired, and the code had not seen it
                run.drop_task(timer_task_id(event.timer_cancelled.timer_id))
        case "compensation_registered":
            run.counters.undoable += 1
            if run.saga is not None:
                run.saga.registered(event.event_id, run.task_queue, event.compensation_registered.compensation)
        case "compensate_requested":
            run.counters.compensates += 1
            run.counters.open_compensates[event.compensate_requested.compensate_id] = event.event_id
        case "compensate_finished":
            del run.counters.open_compensates[event.compensate_finished.compensate_id]
        case "rollback_started":
            _start_rollback(run, event.rollback_started)
        case "compensation_scheduled":
            _schedule_compensation(run, event.compensation_scheduled.compensation_id)
        case "compensation_attempt_failed":
            again = event.compensation_attempt_failed
            _next_attempt(run, compensation_task_id(again.compensation_id), again, outcome_unknown=True)
        case "compensation_completed":
            _send_events(run, event.compensation_completed.events)
            run.drop_task(compensation_task_id(event.compensation_completed.compensation_id))
            if run.saga is not None:
                run.saga.running = None
        case "compensation_failed":
            gone = event.compensation_failed
            run.drop_task(compensation_task_id(gone.compensation_id))
            if run.saga is not None:
                run.saga.fail(gone.compensation_id, gone.failure)
        case "compensation_resolved":
            _resolve(run, event.compensation_resolved)
        case "attributes_set":
            change = event.attributes_set.command
            for name in change.unset:
                run.set_attribute(name, None)
            for name in sorted(change.set):
                run.set_attribute(name, change.set[name])
        case "workflow_completed":
            outcome = WorkflowOutcome(status=WORKFLOW_STATUS_COMPLETED, result=event.workflow_completed.result)
            _end(run, WORKFLOW_STATUS_COMPLETED, outcome)
        case "workflow_failed":
            _end_rollback(run, WORKFLOW_STATUS_FAILED)
        case "workflow_cancelled":
            _end_rollback(run, WORKFLOW_STATUS_CANCELLED)
        case "workflow_timed_out":
            _end_rollback(run, WORKFLOW_STATUS_TIMED_OUT)
        case "workflow_continued":
            outcome = WorkflowOutcome(
                status=WORKFLOW_STATUS_CONTINUED, continued_run_id=event.workflow_continued.new_run_id
            )
            _end(run, WORKFLOW_STATUS_CONTINUED, outcome)
        case "signal_received":
            pass  # it is an input, and nothing else
        case "subscribed":
            run.counters.subscriptions += 1
            wanted = event.subscribed.command
            answered = not wanted.channel or wanted.once
            run.put_task(subscription(run.last_event_ms, wanted, answered=answered))
        case "unsubscribed":
            if (task_id := subscription_task_id(event.unsubscribed.subscription_id)) in run.tasks:
                run.drop_task(task_id)  # else its event came, and the code had not seen it
        case "event_received":
            _end_single_subscriptions(run, event.event_received.subscription_ids)
        case "subscription_answered":
            _answer_subscription(run, event.subscription_answered)
        case "deliveries_returned":
            for delivery in event.deliveries_returned.deliveries:
                send_id = f"{delivery.position}.{delivery.count}"
                back = Send(send_id=send_id, returned=delivery)
                run.put_task(errand(run, send_task_id(send_id), TaskKind.SEND, back))
        case "update_received":
            run.counters.open_updates[event.update_received.update_id] = False
        case "update_accepted":
            run.counters.open_updates[event.update_accepted.update_id] = True
        case "update_rejected":
            del run.counters.open_updates[event.update_rejected.update_id]
        case "update_completed":
            del run.counters.open_updates[event.update_completed.update_id]
        case "step_recorded":
            name = event.step_recorded.command.step_id.rpartition(":")[0]
            run.counters.steps[name] = run.counters.steps.get(name, 0) + 1
        case "patch_marked":
            run.counters.patches.append(event.patch_marked.patch_id)
        case "child_requested":
            children.requested(run, event.child_requested.command)
        case "child_started":
            children.started(run, event.child_started)
        case "child_start_failed":
            children.closed(run, event.child_start_failed.child_id, None)
        case "child_cancel_requested":
            children.ask_to_stop(run, event.child_cancel_requested.child_id)
        case "child_cancel_delivered":
            children.told_to_stop(run, event.child_cancel_delivered.child_id)
        case "child_closed":
            children.closed(run, event.child_closed.child_id, event.child_closed.outcome)
        case "send_requested":
            send = event.send_requested.command
            run.counters.sends += 1
            run.put_task(errand(run, send_task_id(send.send_id), TaskKind.SEND, send))
        case "send_finished":
            run.drop_task(send_task_id(event.send_finished.send_id))
        case "event_sent":
            _send_events(run, [event.event_sent.command])
        case "workflow_terminated":
            reason = event.workflow_terminated.reason
            failure = Failure(message=reason, type="Terminated", source=FAILURE_SOURCE_TERMINATED)
            _end(run, WORKFLOW_STATUS_TERMINATED, WorkflowOutcome(status=WORKFLOW_STATUS_TERMINATED, failure=failure))
        case None:
            raise CorruptHistory(f"run {run.run_id}: event {event.event_id} has no attributes")
        case _:
            assert_never(kind)
    if is_input(event):
        _note_input(run, event)


def _send_events(run: Run, sent: Sequence[SendEvent]) -> None:
    run.counters.events += len(sent)
    run.outgoing.extend(sent)


def _end_single_subscriptions(run: Run, subscription_ids: Iterable[str]) -> None:
    for task_id in map(subscription_task_id, subscription_ids):
        wanted = run.tasks[task_id].errand
        if isinstance(wanted, Subscribe) and wanted.once:
            run.drop_task(task_id)


def _answer_subscription(run: Run, answer: SubscriptionAnswered) -> None:
    task = run.drop_task(subscription_task_id(answer.subscription_id))
    if not answer.HasField("failure"):
        assert isinstance(task.errand, Subscribe)
        run.put_task(subscription(run.last_event_ms, task.errand))


def see(run: Run, event_id: int) -> None:
    """The code has seen every event up to `event_id`, in a task that was accepted."""
    _see(run, event_id)
    answered = run.drop_task(WORKFLOW_TASK_ID) if run.workflow_task is not None else None
    if run.status == WORKFLOW_STATUS_RUNNING and run.unseen:
        following = _workflow_task(run)
        if answered is not None:
            # By this their tokens differ, also within a millisecond.
            following.scheduled_ms = max(following.scheduled_ms, answered.scheduled_ms + 1)
        run.put_task(following)


def _see(run: Run, event_id: int) -> None:
    if event_id > run.seen_event_id:
        run.seen_event_id = event_id
        run.drop_inputs(event_id)


def _note_input(run: Run, event: HistoryEvent) -> None:
    if run.status == WORKFLOW_STATUS_RUNNING:
        run.hold_input(event)
        if run.workflow_task is None:
            run.put_task(_workflow_task(run))


def _workflow_task(run: Run) -> Task:
    return Task(
        WORKFLOW_TASK_ID,
        TaskKind.WORKFLOW,
        queue=run.task_queue,
        type=run.workflow_type,
        priority=run.priority,
        due_ms=run.last_event_ms,
        scheduled_ms=run.last_event_ms,
        start_to_close_ms=WORKFLOW_TASK_MS,
    )


def _start(run: Run, started: WorkflowStarted) -> None:
    spec = started.spec
    run.workflow_type = spec.workflow_type
    run.task_queue = spec.task_queue
    run.priority = spec.priority
    run.build_id = spec.build_id
    run.status = WORKFLOW_STATUS_RUNNING
    run.start_ms = run.last_event_ms
    run.counters.first_run_id = started.first_run_id
    if started.HasField("parent"):
        parent = started.parent
        run.counters.parent = (parent.run_id, parent.child_id, parent.workflow_id)
    due_ms = NEVER_MS
    for name in sorted(spec.attributes):
        run.set_attribute(name, spec.attributes[name])
    if duration_ms(spec.run_timeout):
        due_ms = _first_task_ms(run, spec) + duration_ms(spec.run_timeout)
    if started.HasField("execution_deadline"):
        run.counters.execution_deadline_ms = timestamp_ms(started.execution_deadline)
        due_ms = min(due_ms, run.counters.execution_deadline_ms)
    if due_ms < NEVER_MS:
        run.put_task(Task(DEADLINE_TASK_ID, TaskKind.DEADLINE, due_ms=due_ms))
    for wanted in started.subscriptions:
        run.put_task(subscription(0, wanted))
    task = _workflow_task(run)
    task.due_ms = _first_task_ms(run, spec)
    run.put_task(task)


def _first_task_ms(run: Run, spec: WorkflowSpec) -> int:
    return run.start_ms + duration_ms(spec.start_delay)


def _schedule(run: Run, command: ScheduleActivity) -> None:
    count = run.counters.activities.get(command.activity_type, 0)
    run.counters.activities[command.activity_type] = count + 1
    if command.HasField("compensation"):
        run.counters.undoable += 1
    if run.saga is not None:
        run.saga.scheduled(command)
    run.put_task(_activity(run, activity_task_id(command.activity_id), command))


def _activity(run: Run, task_id: str, command: ScheduleActivity) -> Task:
    now_ms = run.last_event_ms
    return Task(
        task_id,
        TaskKind.ACTIVITY,
        queue=command.task_queue or run.task_queue,
        type=command.activity_type,
        priority=command.priority or run.priority,
        due_ms=now_ms,
        command=command,
        scheduled_ms=now_ms,
        start_by_ms=now_ms + limit_ms(command.schedule_to_start_timeout),
        close_by_ms=now_ms + limit_ms(command.schedule_to_close_timeout),
        start_to_close_ms=limit_ms(command.start_to_close_timeout),
        heartbeat_timeout_ms=limit_ms(command.heartbeat_timeout),
    )


def _next_attempt(
    run: Run, task_id: str, failed: ActivityAttemptFailed | CompensationAttemptFailed, *, outcome_unknown: bool
) -> None:
    task = run.tasks[task_id]
    lost = failed.failure.source == FAILURE_SOURCE_LOST
    due_ms = timestamp_ms(failed.next_attempt_time)
    task.attempt = failed.attempt + 1
    task.failures += not lost
    task.losses = task.losses + 1 if lost else 0
    task.worked_ms += duration_ms(failed.ran_for) + due_ms - run.last_event_ms
    task.outcome_unknown |= outcome_unknown
    task.last_failure = failed.failure
    task.due_ms = due_ms
    if task.command is not None:
        task.start_by_ms = due_ms + limit_ms(task.command.schedule_to_start_timeout)
    run.put_task(task)


def _ask_activities_to_stop(run: Run, *, but_shielded: bool = False) -> None:
    for task in run.activities():
        if not (but_shielded and task.command is not None and task.command.shielded):
            _ask_to_stop(run, task)


def _ask_to_stop(run: Run, task: Task) -> None:
    if not task.cancel_requested:
        task.cancel_requested = True
        run.mark_task(task)


def _close(run: Run, activity_id: str, result: Payload | None, *, attempt: int, unknown: bool) -> None:
    run.drop_task(activity_task_id(activity_id))
    if run.saga is not None:
        run.saga.closed(run.last_event_id, activity_id, result, attempt=attempt, unknown=unknown)


def _cancellation(requested: WorkflowCancelRequested) -> Failure:
    message = f"cancelled by {requested.identity or 'a client'}" + (f": {requested.reason}" if requested.reason else "")
    return Failure(message=message, type="Cancelled", source=FAILURE_SOURCE_CANCELLED)


def _start_rollback(run: Run, rollback: RollbackStarted) -> None:
    run.status = WORKFLOW_STATUS_COMPENSATING
    run.closing_status = rollback.closing_status
    run.failure = rollback.failure
    run.drop_inputs(run.last_event_id)
    run.sticky_session = ""
    run.counters.open_compensates.clear()
    run.counters.open_updates.clear()
    for task_id in [t.task_id for t in run.tasks.values() if t.kind in _OF_CODE]:
        run.drop_task(task_id)
    _ask_activities_to_stop(run)
    children.abandon(run)
    children.ask_all_to_stop(run)


def _schedule_compensation(run: Run, compensation_id: str) -> None:
    if run.saga is None:
        raise CorruptHistory(f"run {run.run_id}: {compensation_id} scheduled on a run whose saga was not folded")
    command = run.saga.begin(compensation_id).command()
    run.put_task(_activity(run, compensation_task_id(compensation_id), command))


def _resolve(run: Run, resolved: CompensationResolved) -> None:
    if run.saga is None:
        return
    if resolved.resolution == COMPENSATION_RESOLUTION_RETRY:
        run.saga.retry(resolved.compensation_id)
    else:
        del run.saga.failed[resolved.compensation_id]


def rollback_outcome(run: Run) -> WorkflowOutcome:
    """How a run that is COMPENSATING will end."""
    return WorkflowOutcome(status=run.closing_status, failure=run.failure)


def _end_rollback(run: Run, status: WorkflowStatus.ValueType) -> None:
    if run.closing_status != status:
        raise CorruptHistory(f"run {run.run_id}: ends as {status}, its rollback began as {run.closing_status}")
    _end(run, status, rollback_outcome(run))


def _end(run: Run, status: WorkflowStatus.ValueType, outcome: WorkflowOutcome) -> None:
    run.status = status
    run.close_ms = run.last_event_ms
    run.outcome = outcome
    run.drop_inputs(run.last_event_id)
    run.sticky_session = ""
    for task_id in [t.task_id for t in run.tasks.values() if t.kind not in (TaskKind.CHILD, TaskKind.SEND)]:
        run.drop_task(task_id)
    children.let_go(run)
    if run.counters.parent is not None and status != WORKFLOW_STATUS_CONTINUED:
        run.put_task(Task(REPORT_TASK_ID, TaskKind.REPORT, due_ms=run.last_event_ms))
