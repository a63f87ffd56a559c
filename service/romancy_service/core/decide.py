"""Decide: what a trigger makes of a run. Records events through an Emitter and returns what the trigger is answered.

A trigger that cannot be is refused with a domain error before anything is recorded. When anything else is raised the
run may be half changed: the caller drops it from memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import assert_never

from romancy.v1.command_pb2 import Command, ContinueWorkflow, Subscribe
from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.failure_pb2 import FAILURE_SOURCE_SERVICE, FAILURE_SOURCE_TIMEOUT, Failure
from romancy.v1.history_pb2 import (
    COMPENSATION_RESOLUTION_RETRY,
    COMPENSATION_RESOLUTION_UNSPECIFIED,
    Author,
    CompensationResolved,
    DeliveriesReturned,
    EventReceived,
    HistoryEvent,
    Parent,
    RollbackStarted,
    SignalReceived,
    SubscriptionAnswered,
    TimerFired,
    UpdateReceived,
    WorkflowCancelRequested,
    WorkflowContinued,
    WorkflowStarted,
    WorkflowTerminated,
)
from romancy.v1.worker_service_pb2 import Then
from romancy.v1.workflow_pb2 import (
    WORKFLOW_STATUS_COMPENSATING,
    WORKFLOW_STATUS_FAILED,
    WORKFLOW_STATUS_RUNNING,
    WORKFLOW_STATUS_TIMED_OUT,
    Signal,
    WorkflowSpec,
)

from romancy_service.core import attempts, errands
from romancy_service.core.apply import see
from romancy_service.core.commands import check_commands, ends_run, record_command
from romancy_service.core.emit import Emitter
from romancy_service.core.fenced import fenced
from romancy_service.core.limits import Limits
from romancy_service.core.rollback import advance, saga_of
from romancy_service.core.run import Run
from romancy_service.core.saga import Saga
from romancy_service.core.subscription import is_answered, lasting_id
from romancy_service.core.task import ELSEWHERE, Task, TaskKind, subscription_task_id
from romancy_service.core.times import duration_ms, timestamp, timestamp_ms
from romancy_service.core.triggers import (
    AnswerSubscription,
    BeginChild,
    CompleteActivity,
    CompleteWorkflowTask,
    EndChild,
    FailWorkflowTask,
    FinishErrand,
    FinishSend,
    LoseTask,
    Note,
    ReceiveEvent,
    RequestCancel,
    RequestUpdate,
    ResolveCompensation,
    SendSignal,
    StartRun,
    TaskDue,
    TellChild,
    Terminate,
    Trigger,
)
from romancy_service.errors import CompensationNotFound, InvalidField, StaleTask, TooManyUpdates, WorkflowClosed

_CLOCK_LEEWAY_MS = 1_000
"""So far may a worker's estimate of the service's clock be ahead."""


@dataclass(slots=True)
class Reply:
    """What a decided trigger is answered, once it is committed."""

    last_event_id: int = 0
    last_event_ms: int = 0
    received_event_id: int = 0
    """The event that recorded an update."""
    held: bool = False
    """The worker that answered holds the run up to `last_event_id`."""
    alone: bool = False
    """The activity's outcome was recorded without its `then`."""
    rejection: InvalidField | None = None
    """Commands were refused: the workflow task counts as failed, or the `then` was left out."""
    not_undone: list[str] = field(default_factory=list)
    successor: tuple[str, StartRun] | None = None
    """The run that goes on, to be opened in the same transaction."""


def decide(run: Run, trigger: Trigger, now_ms: int, limits: Limits) -> Reply:
    """Make of `run` what `trigger` asks for, at `now_ms`.

    Raises StaleTask, WorkflowClosed, InvalidField or CompensationNotFound when it cannot be; the run is unchanged then.
    Raises NeedsHistory when the run must be folded from its whole history first; the run must be dropped then.
    """
    emit = Emitter(run, now_ms, limits)
    reply = _decide(emit, trigger, limits)
    if run.status == WORKFLOW_STATUS_RUNNING:
        if run.last_event_id >= limits.history_events:
            _end_too_long(emit, f"has {run.last_event_id} events", limits.history_events)
        elif run.history_bytes >= limits.history_bytes:
            _end_too_long(emit, f"has {run.history_bytes} bytes", limits.history_bytes)
    advance(emit)
    if reply.held:
        run.sticky_event_id = run.last_event_id
    reply.last_event_id = run.last_event_id
    reply.last_event_ms = run.last_event_ms
    return reply


def _decide(emit: Emitter, trigger: Trigger, limits: Limits) -> Reply:
    match trigger:
        case StartRun():
            return _start(emit, trigger)
        case CompleteActivity():
            return _complete_activity(emit, trigger, limits)
        case CompleteWorkflowTask():
            return _complete_workflow_task(emit, trigger, limits)
        case FailWorkflowTask():
            task = fenced(emit.run, trigger.fence)
            return _fail_workflow_task(emit, task, trigger.failure)
        case LoseTask():
            return _lose_task(emit, trigger)
        case TaskDue():
            return _task_due(emit, trigger)
        case Note():
            _check_open(emit.run)
            return Reply()
        case SendSignal():
            _check_running(emit.run)
            emit.note(signal_received=SignalReceived(signal=trigger.signal))
            return Reply()
        case ReceiveEvent():
            return _receive_event(emit, trigger)
        case AnswerSubscription():
            fenced(emit.run, trigger.fence)
            answer = SubscriptionAnswered(subscription_id=trigger.subscription_id, failure=trigger.failure)
            emit.note(subscription_answered=answer)
            return Reply()
        case RequestUpdate():
            return _request_update(emit, trigger, limits)
        case BeginChild() | TellChild() | EndChild() | FinishSend() | FinishErrand():
            errands.finish(emit, trigger)
            return Reply()
        case RequestCancel():
            return _request_cancel(emit, trigger)
        case Terminate():
            return _terminate(emit, trigger)
        case ResolveCompensation():
            return _resolve_compensation(emit, trigger)
        case _:
            assert_never(trigger)


def _start(emit: Emitter, trigger: StartRun) -> Reply:
    # A run that begins in memory keeps its saga there for as long as it is cached: a rollback then reads nothing.
    emit.run.saga = Saga()
    started = WorkflowStarted(
        spec=trigger.spec,
        identity=trigger.identity,
        continued_from_run_id=trigger.continued_from_run_id,
        first_run_id=trigger.first_run_id,
        parent=trigger.parent,
        subscriptions=trigger.subscriptions,
    )
    deadline_ms = trigger.execution_deadline_ms
    if not deadline_ms and trigger.spec.HasField("execution_timeout"):
        delay_ms = duration_ms(trigger.spec.start_delay)
        deadline_ms = emit.now_ms + delay_ms + duration_ms(trigger.spec.execution_timeout)
    if deadline_ms:
        started.execution_deadline.CopyFrom(timestamp(deadline_ms))
    emit.note(workflow_started=started)
    for received in trigger.inputs:
        match received:
            case UpdateReceived():
                emit.note(update_received=received)
            case WorkflowCancelRequested():
                emit.note(workflow_cancel_requested=received)
            case Signal():
                emit.note(signal_received=SignalReceived(signal=received))
            case CloudEvent():
                emit.note(event_received=EventReceived(event=received))
            case _:
                assert_never(received)
    return Reply()


def _receive_event(emit: Emitter, trigger: ReceiveEvent) -> Reply:
    run = emit.run
    _check_running(run)
    wanted = [each for each in trigger.subscription_ids if subscription_task_id(each) in run.tasks]
    if trigger.subscription_ids and not wanted:
        raise StaleTask(subscription_task_id(trigger.subscription_ids[0]), "nothing is waited for any more")
    emit.note(event_received=EventReceived(event=trigger.event, subscription_ids=wanted, delivery=trigger.delivery))
    return Reply()


def _request_update(emit: Emitter, trigger: RequestUpdate, limits: Limits) -> Reply:
    run, update = emit.run, trigger.update
    _check_running(run)
    if len(run.counters.open_updates) >= limits.open_updates:
        raise TooManyUpdates(run.workflow_id, run.run_id, limits.open_updates)
    emit.note(update_received=update)
    return Reply(received_event_id=run.last_event_id)


def _complete_activity(emit: Emitter, trigger: CompleteActivity, limits: Limits) -> Reply:
    run = emit.run
    task = fenced(run, trigger.fence)
    then = _then_that_fits(emit, trigger)
    clock_ms = emit.now_ms
    if then is not None:
        # What the code saw is what must be recorded; the service's own clock goes on for what follows.
        emit.now_ms = timestamp_ms(then.time)
    emit.author = trigger.author
    closed = True
    if trigger.result is not None:
        attempts.completed(emit, task, trigger.result, trigger.events)
    elif trigger.failure is None:
        if task.cancel_requested and not task.is_compensation:
            unknown = not trigger.nothing_done
            attempts.cancelled(emit, task, sent=True, details=trigger.cancel_details, unknown=unknown)
        else:
            failure = Failure(message="the worker cancelled the attempt by itself", type="Cancelled")
            closed = attempts.failed(emit, task, failure, _ran_ms(emit, trigger))
    else:
        closed = attempts.failed(emit, task, trigger.failure, _ran_ms(emit, trigger))
    if then is None or not closed:
        return Reply(alone=trigger.then is not None)
    emit.now_ms = max(clock_ms, run.last_event_ms)
    try:
        check_commands(run, then.commands, limits)
    except InvalidField as rejection:
        return Reply(alone=True, rejection=rejection)
    successor = _record_commands(
        emit, then.commands, run.last_event_id, limits, trigger.successor_run_id, trigger.author
    )
    return Reply(held=True, successor=successor)


def _then_that_fits(emit: Emitter, trigger: CompleteActivity) -> Then | None:
    """The trigger's `then`, if the code that made it saw exactly what the history will say it saw."""
    run, then = emit.run, trigger.then
    if then is None or run.status != WORKFLOW_STATUS_RUNNING or run.unseen:
        return None
    if emit.suggests_recurring:
        return None  # the code could not know what this input tells it
    if run.sticky_session != trigger.fence.owner or run.last_event_id != then.after_event_id:
        return None
    if not run.last_event_ms <= timestamp_ms(then.time) <= emit.now_ms + _CLOCK_LEEWAY_MS:
        return None
    return then


def _complete_workflow_task(emit: Emitter, trigger: CompleteWorkflowTask, limits: Limits) -> Reply:
    run = emit.run
    task = fenced(run, trigger.fence)
    if 1 <= trigger.seen_event_id <= run.seen_event_id:
        # All workflow tasks of a run look alike to their fence; what one brought, no later one brings.
        raise StaleTask(task.task_id, f"what it answers, up to event {trigger.seen_event_id}, was answered before")
    try:
        if not 1 <= trigger.seen_event_id <= run.last_event_id:
            raise InvalidField(
                "seen_event_id",
                "is no event that the task brought",
                "give the task's last_event_id",
                value=trigger.seen_event_id,
            )
        check_commands(run, trigger.commands, limits)
    except InvalidField as rejection:
        failure = Failure(message=str(rejection), type=rejection.reason, source=FAILURE_SOURCE_SERVICE)
        _fail_workflow_task(emit, task, failure)
        return Reply(rejection=rejection)
    run.sticky_session = trigger.fence.owner if trigger.holds_run else ""
    successor = _record_commands(
        emit, trigger.commands, trigger.seen_event_id, limits, trigger.successor_run_id, trigger.author
    )
    return Reply(held=True, successor=successor)


def _record_commands(
    emit: Emitter,
    commands: Sequence[Command],
    seen_event_id: int,
    limits: Limits,
    successor_run_id: str,
    author: Author | None,
) -> tuple[str, StartRun] | None:
    """Returns the run that goes on, if the last command says that one does."""
    run = emit.run
    emit.seen_event_id = seen_event_id
    unseen = list(run.unseen)
    successor = None
    for command in commands:
        if ends_run(command):
            _return_unseen(emit, seen_event_id)
        emit.author, author = author, None
        if command.HasField("continue_workflow"):
            unread = [event for event in unseen if event.event_id > seen_event_id]
            successor = _continue(emit, command.continue_workflow, unread, successor_run_id)
        else:
            record_command(emit, command, limits)
    see(run, seen_event_id)
    return successor


def _continue(
    emit: Emitter, command: ContinueWorkflow, unseen: Sequence[HistoryEvent], new_run_id: str
) -> tuple[str, StartRun]:
    """Close the run; what its code did not read goes on to the next one, in its order."""
    run = emit.run
    spec = WorkflowSpec()
    spec.CopyFrom(command.spec)
    spec.task_queue = spec.task_queue or run.task_queue
    spec.ClearField("attributes")
    for name, value in run.attributes.items():
        spec.attributes[name].CopyFrom(value)
    inputs: list[Signal | CloudEvent | UpdateReceived | WorkflowCancelRequested]
    inputs = [*command.unread_signals, *command.unread_events]
    for event in unseen:
        if event.HasField("signal_received"):
            inputs.append(event.signal_received.signal)
        elif event.HasField("event_received") and not event.event_received.HasField("delivery"):
            inputs.append(event.event_received.event)
        elif event.HasField("update_received"):
            inputs.append(event.update_received)
        elif event.HasField("workflow_cancel_requested"):
            inputs.append(event.workflow_cancel_requested)
    deadline_ms, parent = run.counters.execution_deadline_ms, run.counters.parent
    subscriptions = _that_go_on(run)
    emit.command(workflow_continued=WorkflowContinued(new_run_id=new_run_id, spec=spec))
    return new_run_id, StartRun(
        spec,
        identity=f"run {run.run_id}",
        inputs=inputs,
        continued_from_run_id=run.run_id,
        first_run_id=run.counters.first_run_id or run.run_id,
        execution_deadline_ms=deadline_ms,
        parent=None if parent is None else Parent(run_id=parent[0], child_id=parent[1], workflow_id=parent[2]),
        subscriptions=subscriptions,
    )


def _that_go_on(run: Run) -> list[Subscribe]:
    """The subscriptions to all events of a type, or to a channel, under the ids that they have in the next run."""
    going = []
    for task in run.tasks.values():
        if isinstance(task.errand, Subscribe) and not task.errand.once and is_answered(task):
            wanted = Subscribe()
            wanted.CopyFrom(task.errand)
            wanted.subscription_id = lasting_id(run.run_id, wanted.subscription_id)
            going.append(wanted)
    return going


def _return_unseen(emit: Emitter, seen_event_id: int) -> None:
    """The run closes: what only it was given, and its code has not seen, goes back. What the code saw and did not take
    it sends back itself.
    """
    received = [event.event_received for event in emit.run.unseen if event.event_id > seen_event_id]
    deliveries = [each.delivery for each in received if each.HasField("delivery")]
    if deliveries:
        emit.note(deliveries_returned=DeliveriesReturned(deliveries=deliveries))


def _fail_workflow_task(emit: Emitter, task: Task, failure: Failure | None) -> Reply:
    """Try the task again later: the run stays open, whatever its code does."""
    run = emit.run
    if failure is None:
        task.losses += 1
        wait_ms = 0 if task.losses == 1 else _workflow_task_wait_ms(task.losses - 1)
    else:
        task.failures += 1
        task.last_failure = failure
        wait_ms = _workflow_task_wait_ms(task.failures)
    task.attempt += 1
    task.due_ms = emit.now_ms + wait_ms
    run.sticky_session = ""
    run.put_task(task)
    return Reply()


def _workflow_task_wait_ms(failures: int) -> int:
    return min(1_000 << min(failures - 1, 20), 600_000)


def _lose_task(emit: Emitter, trigger: LoseTask) -> Reply:
    run = emit.run
    task = fenced(run, trigger.fence)
    if task.kind is TaskKind.WORKFLOW:
        return _fail_workflow_task(emit, task, None)
    attempts.lost(emit, task)
    return Reply()


def _task_due(emit: Emitter, trigger: TaskDue) -> Reply:
    run = emit.run
    task = fenced(run, trigger.fence)
    owned = bool(trigger.fence.owner)
    match task.kind:
        case TaskKind.TIMER:
            emit.note(timer_fired=TimerFired(timer_id=task.task_id.removeprefix("t/")))
        case TaskKind.DEADLINE:
            whole = task.due_ms == run.counters.execution_deadline_ms
            name, what = ("ExecutionTimeout", "workflow") if whole else ("RunTimeout", "run")
            message = f"the {what} passed its {'execution' if whole else 'run'} timeout"
            failure = Failure(message=message, type=name, source=FAILURE_SOURCE_TIMEOUT)
            _return_unseen(emit, run.seen_event_id)
            emit.note(rollback_started=RollbackStarted(closing_status=WORKFLOW_STATUS_TIMED_OUT, failure=failure))
        case TaskKind.WORKFLOW:
            return _fail_workflow_task(emit, task, None)
        case TaskKind.CHILD | TaskKind.SEND | TaskKind.REPORT | TaskKind.SUBSCRIPTION:
            raise StaleTask(task.task_id, "it has no time of its own")
        case TaskKind.ACTIVITY:
            _activity_due(emit, task, trigger, owned=owned)
        case _:
            assert_never(task.kind)
    return Reply()


def _activity_due(emit: Emitter, task: Task, trigger: TaskDue, *, owned: bool) -> None:
    if task.cancel_requested and not owned:
        attempts.cancelled(emit, task, sent=False)
        return
    timeout = attempts.due_timeout(task, trigger.leased_ms, trigger.heartbeat_ms, emit.now_ms, owned=owned)
    if timeout in ("StartToCloseTimeout", "HeartbeatTimeout"):
        attempts.timed_out(emit, task, timeout, _ran_ms(emit, trigger))
    elif timeout:
        attempts.expired(emit, task, timeout, sent=owned)
    else:
        raise StaleTask(task.task_id, "nothing is due")


def _ran_ms(emit: Emitter, trigger: CompleteActivity | TaskDue) -> int:
    """How long the attempt ran. One that left its worker waits for somebody: that is no trying, however long it is."""
    return 0 if trigger.fence.owner == ELSEWHERE else max(emit.now_ms - trigger.leased_ms, 0)


def _request_cancel(emit: Emitter, trigger: RequestCancel) -> Reply:
    run = emit.run
    _check_open(run)
    if run.status == WORKFLOW_STATUS_RUNNING and not run.cancel_requested:
        requested = WorkflowCancelRequested(reason=trigger.reason, identity=trigger.identity)
        emit.note(workflow_cancel_requested=requested)
    return Reply()


def _terminate(emit: Emitter, trigger: Terminate) -> Reply:
    run = emit.run
    _check_open(run)
    not_undone = saga_of(run).not_undone()
    _return_unseen(emit, run.seen_event_id)
    emit.note(
        workflow_terminated=WorkflowTerminated(reason=trigger.reason, identity=trigger.identity, not_undone=not_undone)
    )
    return Reply(not_undone=not_undone)


def _resolve_compensation(emit: Emitter, trigger: ResolveCompensation) -> Reply:
    run = emit.run
    _check_open(run)
    if trigger.resolution == COMPENSATION_RESOLUTION_UNSPECIFIED:
        raise InvalidField("resolution", "is not set", "say RETRY, MARK_DONE or GIVE_UP")
    if trigger.compensation_id not in saga_of(run).failed:
        raise CompensationNotFound(trigger.compensation_id)
    emit.note(
        compensation_resolved=CompensationResolved(
            compensation_id=trigger.compensation_id,
            resolution=trigger.resolution,
            reason=trigger.reason,
            identity=trigger.identity,
        )
    )
    if trigger.resolution == COMPENSATION_RESOLUTION_RETRY and run.status == WORKFLOW_STATUS_COMPENSATING:
        run.outcome = None
    return Reply()


def _check_open(run: Run) -> None:
    if not run.is_open:
        raise WorkflowClosed(run.workflow_id, run.run_id)


def _check_running(run: Run) -> None:
    """Whether the code of the run can still be told something."""
    if run.status != WORKFLOW_STATUS_RUNNING:
        raise WorkflowClosed(run.workflow_id, run.run_id, undoing=run.is_open)


def _end_too_long(emit: Emitter, problem: str, limit: int) -> None:
    failure = Failure(
        message=f"the history {problem}, at most {limit} are allowed; let the workflow recur when should_recur says "
        "so, split the work into several workflows, or keep large values elsewhere",
        type="HistoryTooLong",
        non_retryable=True,
        source=FAILURE_SOURCE_SERVICE,
    )
    _return_unseen(emit, emit.run.seen_event_id)
    emit.note(rollback_started=RollbackStarted(closing_status=WORKFLOW_STATUS_FAILED, failure=failure))
