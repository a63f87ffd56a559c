"""Commands: what each thing that workflow code asks for makes of its run. One check and one event for each kind.

All commands of a task are checked before the first one is recorded, so that a refused task leaves the run as it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from romancy.v1.command_pb2 import (
    Command,
    Compensation,
    CompleteUpdate,
    ContinueWorkflow,
    ParentClosePolicy,
    RecordStep,
    RegisterCompensation,
    ScheduleActivity,
    Send,
    StartChild,
)
from romancy.v1.history_pb2 import (
    ActivityCancelRequested,
    ActivityScheduled,
    AttributesSet,
    ChildCancelRequested,
    ChildRequested,
    CompensateRequested,
    CompensationRegistered,
    EventSent,
    PatchMarked,
    RollbackStarted,
    SendRequested,
    StepRecorded,
    Subscribed,
    TimerCancelled,
    TimerStarted,
    Unsubscribed,
    UpdateAccepted,
    UpdateCompleted,
    UpdateRejected,
    WorkflowCompleted,
)
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_CANCELLED, WORKFLOW_STATUS_FAILED, AttributeValue

from romancy_service.core.attributes import check_change
from romancy_service.core.channel import check_message
from romancy_service.core.check import (
    check_duration,
    check_event,
    check_failure,
    check_headers,
    check_id,
    check_payload,
    check_payloads,
    check_priority,
    check_retry_policy,
    check_text,
    check_timeouts,
)
from romancy_service.core.emit import Emitter
from romancy_service.core.failures import cut
from romancy_service.core.limits import Limits
from romancy_service.core.outgoing import as_recorded, check_outgoing
from romancy_service.core.run import Run
from romancy_service.core.spec import check_signal, check_spec
from romancy_service.core.subscription import check_subscribe
from romancy_service.core.task import (
    COMPENSATION_ID_PREFIX,
    DEADLINE_TASK_ID,
    WORKFLOW_TASK_ID,
    activity_task_id,
    child_task_id,
    send_task_id,
    subscription_task_id,
    timer_task_id,
)
from romancy_service.core.times import duration_ms, timestamp
from romancy_service.errors import InvalidField

_TIMEOUTS = ("schedule_to_close_timeout", "schedule_to_start_timeout", "start_to_close_timeout", "heartbeat_timeout")
_LAST = ("complete_workflow", "fail_workflow", "cancel_workflow", "continue_workflow")


@dataclass(slots=True)
class _Draft:
    """What the run will look like after the commands that were checked so far, as far as the next ones depend on it."""

    run: Run
    limits: Limits
    activities: Counter[str] = field(default_factory=Counter)
    """Scheduled in this task, by type."""
    opened: set[str] = field(default_factory=set)
    """Task ids opened in this task."""
    dropped: set[str] = field(default_factory=set)
    """Timers forgotten in this task."""
    timers: int = 0
    compensates: int = 0
    steps: Counter[str] = field(default_factory=Counter)
    """Made in this task, by name."""
    children: Counter[str] = field(default_factory=Counter)
    """Asked for in this task, by workflow type."""
    sends: int = 0
    subscriptions: int = 0
    patches: set[str] = field(default_factory=set)
    updates: dict[str, bool | None] = field(default_factory=dict)
    """Whether they were accepted in this task; None: answered."""
    attributes: Mapping[str, AttributeValue] = field(init=False)

    def __post_init__(self) -> None:
        self.attributes = self.run.attributes

    def is_open(self, task_id: str) -> bool:
        return (task_id in self.run.tasks or task_id in self.opened) and task_id not in self.dropped


def ends_run(command: Command) -> bool:
    """Whether the code asks for nothing after it."""
    return command.WhichOneof("attributes") in _LAST


def check_commands(run: Run, commands: Sequence[Command], limits: Limits) -> None:
    """Raise InvalidField, naming the command, unless all `commands` can be recorded on `run` one after the other."""
    if len(commands) > limits.commands_per_task:
        raise InvalidField(
            "commands", f"{len(commands)} commands in one task, at most {limits.commands_per_task} are allowed; "
            "let the workflow wait for some of them before it asks for more", limit=limits.commands_per_task,
        )  # fmt: skip
    draft = _Draft(run, limits)
    for number, command in enumerate(commands):
        kind = command.WhichOneof("attributes")
        try:
            if kind in _LAST and number != len(commands) - 1:
                raise InvalidField(f"{kind}", "ends the run, so it must be the task's last command")
            _check(draft, command)
        except InvalidField as error:
            raise error.inside(f"commands[{number}]") from error
    ours = sum(task_id in run.tasks for task_id in (WORKFLOW_TASK_ID, DEADLINE_TASK_ID))
    open_tasks = len(run.tasks) - ours + len(draft.opened) - len(draft.dropped)
    if open_tasks > limits.open_activities:
        raise InvalidField(
            "commands",
            f"the run would have {open_tasks} open activities, timers and children, at most {limits.open_activities} "
            "are allowed; let the workflow wait for some of them first",
            limit=limits.open_activities,
        )


def _check(draft: _Draft, command: Command) -> None:
    kind = command.WhichOneof("attributes")
    match kind:
        case "schedule_activity":
            _check_schedule(draft, command.schedule_activity)
        case "cancel_activity":
            activity_id = command.cancel_activity.activity_id
            if not draft.is_open(activity_task_id(activity_id)) and not _was_scheduled(draft, activity_id):
                raise InvalidField("cancel_activity.activity_id", f"the run has no activity {activity_id!r}")
        case "start_timer":
            draft.timers += 1
            expected = str(draft.run.counters.timers + draft.timers)
            _check_counted("start_timer.timer_id", command.start_timer.timer_id, expected)
            check_duration("start_timer.duration", command.start_timer.duration, allow_negative=True)
            if command.start_timer.timeout_of:
                check_id("start_timer.timeout_of", command.start_timer.timeout_of, draft.limits)
            draft.opened.add(timer_task_id(expected))
        case "cancel_timer":
            _check_cancel_timer(draft, command.cancel_timer.timer_id)
        case "register_compensation":
            _check_register(draft, command.register_compensation)
        case "compensate":
            draft.compensates += 1
            expected = str(draft.run.counters.compensates + draft.compensates)
            _check_counted("compensate.compensate_id", command.compensate.compensate_id, expected)
        case "set_attributes":
            changed = check_change("set_attributes", draft.attributes, command.set_attributes, draft.limits)
            draft.attributes = changed
        case "complete_workflow":
            check_payload("complete_workflow.result", command.complete_workflow.result, draft.limits)
        case "fail_workflow":
            check_failure("fail_workflow.failure", command.fail_workflow.failure, draft.limits)
        case "cancel_workflow":
            if not draft.run.cancel_requested:
                raise InvalidField("cancel_workflow", "nobody asked for the cancellation of this run")
        case "continue_workflow":
            _check_continue(draft, command.continue_workflow)
        case "record_step":
            _check_step(draft, command.record_step)
        case "mark_patch":
            _check_patch(draft, command.mark_patch.patch_id)
        case "accept_update":
            _check_update(draft, "accept_update", command.accept_update.update_id, accepted=False, then=True)
        case "reject_update":
            _check_update(draft, "reject_update", command.reject_update.update_id, accepted=False, then=None)
            check_failure("reject_update.failure", command.reject_update.failure, draft.limits)
        case "start_child":
            _check_start_child(draft, command.start_child)
        case "cancel_child":
            _check_cancel_child(draft, command.cancel_child.child_id)
        case "send":
            _check_send(draft, command.send)
        case "subscribe":
            draft.subscriptions += 1
            expected = str(draft.run.counters.subscriptions + draft.subscriptions)
            _check_counted("subscribe.subscription_id", command.subscribe.subscription_id, expected)
            check_subscribe("subscribe", command.subscribe, draft.limits)
            draft.opened.add(subscription_task_id(expected))
        case "send_event":
            check_outgoing("send_event", command.send_event, draft.limits)
        case "unsubscribe":
            _check_unsubscribe(draft, command.unsubscribe.subscription_id)
        case "complete_update":
            _check_update(draft, "complete_update", command.complete_update.update_id, accepted=True, then=None)
            _check_outcome("complete_update", command.complete_update, draft.limits)
        case None:
            raise InvalidField("attributes", "the command has no attributes, or some that this service does not know")
        case _:
            assert_never(kind)


def _check_counted(field_name: str, value: str, expected: str) -> None:
    if value != expected:
        raise InvalidField(field_name, f"is {value!r}, but the run's next one is {expected!r}")


def _check_schedule(draft: _Draft, command: ScheduleActivity) -> None:
    check_id("schedule_activity.activity_type", command.activity_type, draft.limits)
    if command.activity_type.startswith(COMPENSATION_ID_PREFIX):
        # Else its idempotency key could be that of a compensation.
        raise InvalidField(
            "schedule_activity.activity_type",
            f"begins with {COMPENSATION_ID_PREFIX!r}, as the ids of compensations do",
            "give the activity another name",
            value=command.activity_type,
        )
    if command.task_queue:
        check_id("schedule_activity.task_queue", command.task_queue, draft.limits)
    draft.activities[command.activity_type] += 1
    count = draft.run.counters.activities.get(command.activity_type, 0) + draft.activities[command.activity_type]
    _check_counted("schedule_activity.activity_id", command.activity_id, f"{command.activity_type}:{count}")
    check_payloads("schedule_activity.arguments", command.arguments, draft.limits)
    check_timeouts("schedule_activity", command, _TIMEOUTS)
    if command.HasField("retry_policy"):
        check_retry_policy("schedule_activity.retry_policy", command.retry_policy, draft.limits)
    if command.priority:
        check_priority("schedule_activity.priority", command.priority, draft.limits)
    if command.headers:
        check_headers("schedule_activity.headers", command.headers, draft.limits)
    if command.HasField("compensation"):
        compensation = command.compensation
        _check_compensation("schedule_activity.compensation", compensation, draft.limits, len(command.arguments))
        check_event("schedule_activity", command, draft.limits)
    draft.opened.add(activity_task_id(command.activity_id))


def _check_compensation(field_name: str, compensation: Compensation, limits: Limits, arguments: int = 0) -> None:
    """`arguments` is how many the activity has that it undoes."""
    check_id(f"{field_name}.activity_type", compensation.activity_type, limits)
    if compensation.task_queue:
        check_id(f"{field_name}.task_queue", compensation.task_queue, limits)
    check_payloads(f"{field_name}.arguments", [argument.payload for argument in compensation.arguments], limits)
    for number, argument in enumerate(compensation.arguments):
        name = f"{field_name}.arguments[{number}]"
        if argument.WhichOneof("value") is None:
            raise InvalidField(name, "has no value", "set payload, activity_result or activity_argument")
        if argument.HasField("activity_argument") and argument.activity_argument >= arguments:
            problem = f"asks for argument {argument.activity_argument}, but what is undone has {arguments}"
            raise InvalidField(f"{name}.activity_argument", problem, value=argument.activity_argument)
    check_timeouts(field_name, compensation, _TIMEOUTS[2:])
    if compensation.HasField("retry_policy"):
        check_retry_policy(f"{field_name}.retry_policy", compensation.retry_policy, limits)


def _check_continue(draft: _Draft, command: ContinueWorkflow) -> None:
    check_spec("continue_workflow.spec", command.spec, draft.limits)
    for number, signal in enumerate(command.unread_signals):
        check_signal(f"continue_workflow.unread_signals[{number}]", signal, draft.limits)
    for number, event in enumerate(command.unread_events):
        # It was checked when it came; only the worker could have made another one of it.
        check_event(f"continue_workflow.unread_events[{number}]", event, draft.limits)


def _check_start_child(draft: _Draft, command: StartChild) -> None:
    check_spec("start_child.spec", command.spec, draft.limits)
    child_type = command.spec.workflow_type
    draft.children[child_type] += 1
    count = draft.run.counters.children.get(child_type, 0) + draft.children[child_type]
    _check_counted("start_child.child_id", command.child_id, f"{child_type}:{count}")
    check_id("start_child.workflow_id", _child_workflow_id(draft.run, command), draft.limits)
    if command.parent_close_policy not in ParentClosePolicy.values():
        raise InvalidField(
            "start_child.parent_close_policy", "is none that this service knows", value=command.parent_close_policy
        )
    if command.HasField("compensation"):
        _check_compensation("start_child.compensation", command.compensation, draft.limits, len(command.spec.arguments))
        check_event("start_child", command, draft.limits)
    draft.opened.add(child_task_id(command.child_id))


def _check_cancel_child(draft: _Draft, child_id: str) -> None:
    child_type, _, number = child_id.rpartition(":")
    asked_for = draft.run.counters.children.get(child_type, 0) + draft.children[child_type]
    if not _is_counted(number, asked_for):
        raise InvalidField("cancel_child.child_id", f"the run has no child {child_id!r}")


def _check_send(draft: _Draft, command: Send) -> None:
    draft.sends += 1
    _check_counted("send.send_id", command.send_id, str(draft.run.counters.sends + draft.sends))
    kind = command.WhichOneof("message")
    if command.workflow_id or kind in ("signal", "cancel"):
        check_id("send.workflow_id", command.workflow_id, draft.limits)
    if command.run_id:
        check_id("send.run_id", command.run_id, draft.limits)
    match kind:
        case "signal":
            check_signal("send.signal", command.signal, draft.limits)
        case "cancel":
            check_text("send.cancel.reason", command.cancel.reason, draft.limits.reason_bytes)
        case "channel_message":
            what = command.channel_message
            check_message("send.channel_message.", what.channel, what.data, what.metadata, draft.limits)
        case "returned":
            if command.returned.position < 1 or command.returned.count < 1:
                raise InvalidField("send.returned", "is no delivery", "give that of an event_received")
        case None:
            raise InvalidField("send.message", "is missing", "set signal, cancel, channel_message or returned")
        case _:
            assert_never(kind)
    draft.opened.add(send_task_id(command.send_id))


def _check_unsubscribe(draft: _Draft, subscription_id: str) -> None:
    task_id = subscription_task_id(subscription_id)
    had = draft.run.counters.subscriptions + draft.subscriptions
    if not draft.is_open(task_id) and not _is_counted(subscription_id, had):
        problem = f"the run has no subscription {subscription_id!r}"
        raise InvalidField("unsubscribe.subscription_id", problem, value=subscription_id)
    if draft.is_open(task_id):
        draft.dropped.add(task_id)


def _check_step(draft: _Draft, command: RecordStep) -> None:
    name = command.step_id.rpartition(":")[0]
    check_id("record_step.step_id", name, draft.limits)
    draft.steps[name] += 1
    count = draft.run.counters.steps.get(name, 0) + draft.steps[name]
    _check_counted("record_step.step_id", command.step_id, f"{name}:{count}")
    _check_outcome("record_step", command, draft.limits)


def _check_outcome(field_name: str, command: RecordStep | CompleteUpdate, limits: Limits) -> None:
    match command.WhichOneof("outcome"):
        case "result":
            check_payload(f"{field_name}.result", command.result, limits)
        case "failure":
            check_failure(f"{field_name}.failure", command.failure, limits)
        case None:
            raise InvalidField(f"{field_name}.outcome", "is missing", "set result or failure")


def _check_patch(draft: _Draft, patch_id: str) -> None:
    check_id("mark_patch.patch_id", patch_id, draft.limits)
    if patch_id in draft.patches or patch_id in draft.run.counters.patches:
        raise InvalidField("mark_patch.patch_id", "is marked already", "mark a patch once in a run", value=patch_id)
    draft.patches.add(patch_id)
    patches = len(draft.run.counters.patches) + len(draft.patches)
    if patches > draft.limits.patches:
        problem = f"the run would have {patches} patches, at most {draft.limits.patches} are allowed"
        raise InvalidField("mark_patch", problem, "remove those that no open run needs", limit=draft.limits.patches)


def _check_update(draft: _Draft, field_name: str, update_id: str, *, accepted: bool, then: bool | None) -> None:
    """Whether the update is open, and `accepted` or not yet; what it is `then`."""
    there = draft.updates[update_id] if update_id in draft.updates else draft.run.counters.open_updates.get(update_id)
    if there is not accepted:
        expected = "that it accepted" if accepted else "that it has not answered"
        raise InvalidField(f"{field_name}.update_id", f"the run has no update {expected}", value=update_id)
    draft.updates[update_id] = then


def _was_scheduled(draft: _Draft, activity_id: str) -> bool:
    """Whether it is open or closed: the code may cancel what has been closed by an input that it has not seen yet."""
    activity_type, _, number = activity_id.rpartition(":")
    scheduled = draft.run.counters.activities.get(activity_type, 0) + draft.activities[activity_type]
    return _is_counted(number, scheduled)


def _is_counted(number: str, count: int) -> bool:
    """Whether `number` is written as one of 1 to `count`; text from outside may be digits of any kind and length."""
    return (
        len(number) <= len(str(count))
        and number.isdecimal()
        and 1 <= int(number) <= count
        and number == str(int(number))
    )


def _check_cancel_timer(draft: _Draft, timer_id: str) -> None:
    started = draft.run.counters.timers + draft.timers
    if not _is_counted(timer_id, started):
        raise InvalidField("cancel_timer.timer_id", f"the run has no timer {timer_id!r}")
    if draft.is_open(timer_task_id(timer_id)):
        draft.dropped.add(timer_task_id(timer_id))


def _check_register(draft: _Draft, command: RegisterCompensation) -> None:
    _check_compensation("register_compensation.compensation", command.compensation, draft.limits)
    for argument in command.compensation.arguments:
        if argument.WhichOneof("value") == "activity_result":
            raise InvalidField(
                "register_compensation.compensation.arguments", "ask for an activity's result, but it belongs to none"
            )


def record_command(emit: Emitter, command: Command, limits: Limits) -> None:
    """Record one checked command."""
    kind = command.WhichOneof("attributes")
    match kind:
        case "schedule_activity":
            emit.command(activity_scheduled=ActivityScheduled(command=command.schedule_activity))
        case "cancel_activity":
            activity_id = command.cancel_activity.activity_id
            emit.command(activity_cancel_requested=ActivityCancelRequested(activity_id=activity_id))
        case "start_timer":
            timer = command.start_timer
            fire_ms = emit.now_ms + max(duration_ms(timer.duration), 0)
            emit.command(
                timer_started=TimerStarted(
                    timer_id=timer.timer_id,
                    duration=timer.duration,
                    fire_time=timestamp(fire_ms),
                    timeout_of=timer.timeout_of,
                )
            )
        case "cancel_timer":
            emit.command(timer_cancelled=TimerCancelled(timer_id=command.cancel_timer.timer_id))
        case "register_compensation":
            compensation = command.register_compensation.compensation
            emit.command(compensation_registered=CompensationRegistered(compensation=compensation))
        case "compensate":
            emit.command(compensate_requested=CompensateRequested(compensate_id=command.compensate.compensate_id))
        case "set_attributes":
            emit.command(attributes_set=AttributesSet(command=command.set_attributes))
        case "complete_workflow":
            emit.command(workflow_completed=WorkflowCompleted(result=command.complete_workflow.result))
        case "fail_workflow":
            failure = cut(command.fail_workflow.failure, limits)
            emit.command(rollback_started=RollbackStarted(closing_status=WORKFLOW_STATUS_FAILED, failure=failure))
        case "record_step":
            step = command.record_step
            if step.HasField("failure"):
                step = RecordStep(step_id=step.step_id, failure=cut(step.failure, limits))
            emit.command(step_recorded=StepRecorded(command=step))
        case "mark_patch":
            emit.command(patch_marked=PatchMarked(patch_id=command.mark_patch.patch_id))
        case "accept_update":
            emit.command(update_accepted=UpdateAccepted(update_id=command.accept_update.update_id))
        case "reject_update":
            failure = cut(command.reject_update.failure, limits)
            update_id = command.reject_update.update_id
            emit.command(update_rejected=UpdateRejected(update_id=update_id, failure=failure))
        case "start_child":
            emit.command(child_requested=ChildRequested(command=_child(emit.run, command.start_child)))
        case "cancel_child":
            emit.command(child_cancel_requested=ChildCancelRequested(child_id=command.cancel_child.child_id))
        case "send":
            emit.command(send_requested=SendRequested(command=command.send))
        case "subscribe":
            emit.command(subscribed=Subscribed(command=command.subscribe))
        case "send_event":
            (sent,) = as_recorded(emit.run, [command.send_event], emit.now_ms)
            emit.command(event_sent=EventSent(command=sent))
        case "unsubscribe":
            emit.command(unsubscribed=Unsubscribed(subscription_id=command.unsubscribe.subscription_id))
        case "complete_update":
            emit.command(update_completed=_completed_update(command.complete_update, limits))
        case "continue_workflow":
            raise AssertionError("it opens another run, and is recorded with that")
        case "cancel_workflow":
            cancelled = RollbackStarted(closing_status=WORKFLOW_STATUS_CANCELLED, failure=emit.run.failure)
            emit.command(rollback_started=cancelled)
        case None:
            raise AssertionError("a command without attributes passed the check")
        case _:
            assert_never(kind)


def _completed_update(command: CompleteUpdate, limits: Limits) -> UpdateCompleted:
    if command.HasField("failure"):
        return UpdateCompleted(update_id=command.update_id, failure=cut(command.failure, limits))
    return UpdateCompleted(update_id=command.update_id, result=command.result)


def _child(run: Run, command: StartChild) -> StartChild:
    """The command with what it left open."""
    child = StartChild()
    child.CopyFrom(command)
    child.workflow_id = _child_workflow_id(run, command)
    child.spec.task_queue = command.spec.task_queue or run.task_queue
    return child


def _child_workflow_id(run: Run, command: StartChild) -> str:
    return command.workflow_id or f"{run.run_id}/{command.child_id}"
