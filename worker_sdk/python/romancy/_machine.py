"""Machine: what one run's code asked for, matched with what its history says it asked for.

Pure: no loop, no clock, no I/O. It does not know how the code runs; whoever runs it hands in the history in replay
order and is told what each input resolves. The one rule: the nth command that the code issues is the nth that is
recorded, between the same two inputs; those beyond the end of the history are new.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Final

from google.protobuf.duration_pb2 import Duration

from romancy.v1.command_pb2 import (
    AcceptUpdate,
    CancelActivity,
    CancelChild,
    CancelTimer,
    Command,
    Compensate,
    Compensation,
    CompleteUpdate,
    MarkPatch,
    RecordStep,
    RegisterCompensation,
    RejectUpdate,
    ScheduleActivity,
    Send,
    SendEvent,
    SetAttributes,
    StartChild,
    StartTimer,
    Subscribe,
    Unsubscribe,
)
from romancy.v1.failure_pb2 import Failure
from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_CANCELLED

from romancy._frames import user_place
from romancy.errors import Divergence, NonDeterminism

Resolve = Callable[[HistoryEvent], None]
"""Called once, with the input that answers a command."""

INPUTS: Final = frozenset(
    {
        "workflow_started",
        "workflow_cancel_requested",
        "activity_completed",
        "activity_failed",
        "activity_cancelled",
        "timer_fired",
        "compensate_finished",
        "signal_received",
        "update_received",
        "child_started",
        "child_start_failed",
        "child_closed",
        "send_finished",
        "subscription_answered",
        "event_received",
    }
)
"""The events that workflow code gets to see."""

_ENDINGS: Final = frozenset({"rollback_started", "workflow_terminated"})
"""The events with which the service, as a note, takes a run out of the hands of its code."""


def is_input(event: HistoryEvent) -> bool:
    """Whether workflow code gets to see the event."""
    return event.WhichOneof("attributes") in INPUTS


def is_command(event: HistoryEvent) -> bool:
    """Whether workflow code issued what the event records."""
    return event.seen_event_id > 0


def ends_run(event: HistoryEvent) -> bool:
    """Whether the service took the run out of the hands of its code with this event."""
    return event.seen_event_id == 0 and event.WhichOneof("attributes") in _ENDINGS


def replay_order(events: Iterable[HistoryEvent]) -> list[HistoryEvent]:
    """A whole history, given in order of event_id, in the order in which the code lived it.

    Commands go directly after the last input that the code had seen. What came after the end of the code is left out:
    nobody saw it.
    """
    ordered: list[HistoryEvent] = []
    arrived: deque[HistoryEvent] = deque()
    for event in events:
        if is_input(event):
            arrived.append(event)
        elif is_command(event):
            while arrived and arrived[0].event_id <= event.seen_event_id:
                ordered.append(arrived.popleft())
            ordered.append(event)
            if event.WhichOneof("attributes") in ("workflow_completed", "rollback_started", "workflow_continued"):
                return ordered
        elif ends_run(event):
            return [*ordered, *arrived, event]
    return [*ordered, *arrived]


class Machine:
    """The commands and open requests of one run."""

    def __init__(self) -> None:
        self.commands: list[Command] = []
        """New ones: beyond the end of the history."""
        self.failure: BaseException | None = None
        """Set at the first difference, or by whoever runs the code when that broke a rule, or is broken itself."""
        self.closed = False
        """The code ended the run, or the service did: it asks for nothing any more."""
        self.halted = False
        """Closed or failed: the code must not run on, and nothing that it asks for is answered."""
        self._expected: deque[HistoryEvent] = deque()
        """Recorded commands that the code has not issued yet."""
        self._ahead: deque[str] = deque()
        """Issued commands that match recorded ones which have not been passed yet, or are new."""
        self._passed: HistoryEvent | None = None
        """The recorded command that was passed last, when no input followed it."""
        self._activity_counts: Counter[str] = Counter()
        self._timer_count = 0
        self._compensate_count = 0
        self._step_counts: Counter[str] = Counter()
        self._patches: dict[str, bool] = {}
        self.reading = ""
        """Who runs that may ask for nothing; empty: the code itself."""
        self._child_counts: Counter[str] = Counter()
        self._send_count = 0
        self._subscription_count = 0
        self._subscriptions: dict[str, str] = {}
        """Those that are open, by id: what for."""
        self._answers: dict[str, Resolve] = {}
        """Called when it is known whether a subscription may be."""
        self._activities: dict[str, Resolve] = {}
        self._children: dict[str, Resolve] = {}
        """Called with the child's start, and again with its end."""
        self._sends: dict[str, Resolve] = {}
        self._timers: dict[str, Resolve] = {}
        self._compensates: dict[str, Resolve] = {}

    # The history.

    def expect(self, events: Sequence[HistoryEvent]) -> None:
        """Take in the recorded commands among events that are about to be passed."""
        self._expected.extend(event for event in events if is_command(event))

    def pass_command(self, event: HistoryEvent) -> None:
        """A recorded command comes next in the history: the code must have issued it by now."""
        if not self._ahead:
            if self._expected and self._expected[0] is event and event.HasField("patch_marked"):
                self._expected.popleft()  # the code has no such patch any more
                return
            waits = "it ended before" if self.closed else f"it waits for {', '.join(self.waits()) or 'nothing'}"
            self._diverge(
                f"event {event.event_id} recorded {_recorded(event)}, but the code did not ask for it: {waits}"
            )
            return
        self._ahead.popleft()
        self._passed = event

    def pass_input(self, event: HistoryEvent) -> None:
        """An input comes next in the history: the task before it, if it is recorded, must have had no more commands."""
        if self._passed is not None and self._ahead and not self.closed:
            self._diverge(
                f"the code asked for {self._ahead[0]} after event {self._passed.seen_event_id}, but what is recorded "
                f"for that moment ends with event {self._passed.event_id} ({_recorded(self._passed)})"
            )
        self._passed = None

    def resolve(self, event: HistoryEvent) -> None:
        """Answer the command that the input is for. One that was given up meanwhile is left alone."""
        resolve: Resolve | None = None
        match event.WhichOneof("attributes"):
            case "activity_completed":
                resolve = self._activities.pop(event.activity_completed.activity_id, None)
            case "activity_failed":
                resolve = self._activities.pop(event.activity_failed.activity_id, None)
            case "activity_cancelled":
                resolve = self._activities.pop(event.activity_cancelled.activity_id, None)
            case "timer_fired":
                resolve = self._timers.pop(event.timer_fired.timer_id, None)
            case "child_started":
                resolve = self._children.get(event.child_started.child_id)
            case "child_start_failed":
                resolve = self._children.pop(event.child_start_failed.child_id, None)
            case "child_closed":
                resolve = self._children.pop(event.child_closed.child_id, None)
            case "send_finished":
                resolve = self._sends.pop(event.send_finished.send_id, None)
            case "subscription_answered":
                resolve = self._answers.pop(event.subscription_answered.subscription_id, None)
            case "compensate_finished":
                resolve = self._compensates.pop(event.compensate_finished.compensate_id, None)
        if resolve is not None:
            resolve(event)

    def take_commands(self) -> list[Command]:
        """The new commands. They count as recorded: if they are not, the machine must be dropped."""
        commands, self.commands = self.commands, []
        self._ahead.clear()
        self._passed = None
        return commands

    def waits(self) -> list[str]:
        """What is open, by name."""
        return [
            *(f"activity {activity_id}" for activity_id in self._activities),
            *(f"timer {timer_id}" for timer_id in self._timers),
            *(f"compensate {compensate_id}" for compensate_id in self._compensates),
            *(f"child {child_id}" for child_id in self._children),
            *(f"send {send_id}" for send_id in self._sends),
            *self._subscriptions.values(),
        ]

    # The code.

    def schedule_activity(self, command: ScheduleActivity, resolve: Resolve) -> str:
        """Ask for an activity, whose id is filled in and returned."""
        activity_type = command.activity_type
        self._activity_counts[activity_type] += 1
        activity_id = command.activity_id = f"{activity_type}:{self._activity_counts[activity_type]}"
        if self._issue("ScheduleActivity", activity_id, Command(schedule_activity=command)):
            self._activities[activity_id] = resolve
        return activity_id

    def cancel_activity(self, activity_id: str) -> None:
        """Ask an activity to stop and give its answer up; nothing happens when it is closed."""
        if self._activities.pop(activity_id, None) is not None:
            command = Command(cancel_activity=CancelActivity(activity_id=activity_id))
            self._issue("CancelActivity", activity_id, command)

    def start_timer(self, duration: Duration, resolve: Resolve, timeout_of: str = "") -> str:
        """Ask for a timer."""
        self._timer_count += 1
        timer_id = str(self._timer_count)
        command = StartTimer(timer_id=timer_id, duration=duration, timeout_of=timeout_of)
        if self._issue("StartTimer", timer_id, Command(start_timer=command)):
            self._timers[timer_id] = resolve
        return timer_id

    def cancel_timer(self, timer_id: str) -> None:
        """Forget a timer; nothing happens when it fired."""
        if self._timers.pop(timer_id, None) is not None:
            self._issue("CancelTimer", timer_id, Command(cancel_timer=CancelTimer(timer_id=timer_id)))

    def start_child(self, command: StartChild, resolve: Resolve) -> str:
        """Ask for a child, whose id is filled in and returned. Its start and its end are answered."""
        child_type = command.spec.workflow_type
        self._child_counts[child_type] += 1
        child_id = command.child_id = f"{child_type}:{self._child_counts[child_type]}"
        if self._issue("StartChild", child_id, Command(start_child=command)):
            self._children[child_id] = resolve
        return child_id

    def cancel_child(self, child_id: str) -> None:
        """Ask a child to stop; nothing happens when it is closed. Its end is still answered."""
        if child_id in self._children:
            self._issue("CancelChild", child_id, Command(cancel_child=CancelChild(child_id=child_id)))

    def send(self, command: Send, resolve: Resolve) -> str:
        """Tell another workflow something; the id is filled in and returned."""
        self._send_count += 1
        send_id = command.send_id = str(self._send_count)
        if self._issue("Send", send_id, Command(send=command)):
            self._sends[send_id] = resolve
        return send_id

    def drop_send(self, send_id: str) -> None:
        """Give the answer of a send up. It is sent all the same."""
        self._sends.pop(send_id, None)

    def send_event(self, command: SendEvent) -> None:
        """Have an event delivered to a sink. Nothing answers."""
        self._issue("SendEvent", _addressed(command), Command(send_event=command))

    def subscribe(self, command: Subscribe) -> None:
        """Ask for events; the id is filled in. Who gets them is not the machine's affair."""
        self._subscription_count += 1
        command.subscription_id = str(self._subscription_count)
        name = f"{_wanted(command)} {command.subscription_id}"
        if self._issue("Subscribe", name, Command(subscribe=command)):
            self.adopt_subscription(command)

    def await_answer(self, subscription_id: str, resolve: Resolve) -> None:
        """Whether a subscription may be is to be known."""
        if subscription_id in self._subscriptions:
            self._answers[subscription_id] = resolve

    def adopt_subscription(self, command: Subscribe) -> None:
        """A subscription is open."""
        self._subscriptions[command.subscription_id] = _wanted(command)

    def end_subscription(self, subscription_id: str) -> None:
        """A subscription ended: with its event, or because it may not be."""
        self._subscriptions.pop(subscription_id, None)

    def unsubscribe(self, subscription_id: str) -> None:
        """Give a subscription up."""
        self._answers.pop(subscription_id, None)
        if self._subscriptions.pop(subscription_id, None) is not None:
            command = Command(unsubscribe=Unsubscribe(subscription_id=subscription_id))
            self._issue("Unsubscribe", subscription_id, command)

    def register_compensation(self, compensation: Compensation) -> None:
        """Put a compensation on the saga's list."""
        command = Command(register_compensation=RegisterCompensation(compensation=compensation))
        self._issue("RegisterCompensation", compensation.activity_type, command)

    def set_attributes(self, command: SetAttributes) -> None:
        """Change the run's attributes."""
        self._issue("SetAttributes", _attribute_names(command), Command(set_attributes=command))

    def compensate(self, resolve: Resolve) -> str:
        """Ask to undo what is on the saga's list."""
        self._compensate_count += 1
        compensate_id = str(self._compensate_count)
        if self._issue("Compensate", compensate_id, Command(compensate=Compensate(compensate_id=compensate_id))):
            self._compensates[compensate_id] = resolve
        return compensate_id

    def drop_compensate(self, compensate_id: str) -> None:
        """Give the answer of a `compensate` up. It goes on: what has begun to be undone is undone."""
        self._compensates.pop(compensate_id, None)

    def record_step(self, name: str, make: Callable[[], RecordStep]) -> RecordStep | None:
        """A local step: as it is recorded, or made now. None: the code is to be ignored."""
        self._step_counts[name] += 1
        step_id = f"{name}:{self._step_counts[name]}"
        self._skip_patches()
        if self._expected and not self.halted:
            event = self._expected[0]
            return event.step_recorded.command if self._issue("RecordStep", step_id, Command()) else None
        if self.halted or self.reading:
            self._issue("RecordStep", step_id, Command())
            return None
        step = make()
        step.step_id = step_id
        return step if self._issue("RecordStep", step_id, Command(record_step=step)) else None

    def mark_patch(self, patch_id: str) -> bool:
        """Whether the run takes the changed branch of a patch: where the history does not say otherwise, it does."""
        if patch_id not in self._patches:
            issued = f"MarkPatch {patch_id}"
            self._refuse_reader(issued)  # here, since on replay it may not come to issuing
            recorded = not self._expected or any(
                _recorded(event) == issued for event in takewhile(_is_patch, self._expected)
            )
            self._patches[patch_id] = recorded and self._issue(
                "MarkPatch", patch_id, Command(mark_patch=MarkPatch(patch_id=patch_id))
            )
        return self._patches[patch_id]

    def accept_update(self, update_id: str) -> None:
        """Say that an update was found valid and runs."""
        self._issue("AcceptUpdate", update_id, Command(accept_update=AcceptUpdate(update_id=update_id)))

    def reject_update(self, update_id: str, failure: Failure) -> None:
        """Refuse an update."""
        command = RejectUpdate(update_id=update_id, failure=failure)
        self._issue("RejectUpdate", update_id, Command(reject_update=command))

    def complete_update(self, command: CompleteUpdate) -> None:
        """Answer an accepted update."""
        self._issue("CompleteUpdate", command.update_id, Command(complete_update=command))

    def end(self, kind: str, command: Command) -> None:
        """Issue the command that ends the run: CompleteWorkflow, FailWorkflow, CancelWorkflow or ContinueWorkflow."""
        if self._issue(kind, "", command):
            self.close()

    def close(self) -> None:
        """The code must not run on: it ended the run, or the service took it out of its hands."""
        self.closed = self.halted = True

    def fail(self, error: BaseException) -> None:
        """The code must not run on: it broke a rule, or is broken itself. Only the first error counts."""
        if self.failure is None:
            self.failure = error
            self.halted = True

    def forget(self) -> None:
        """Let go of whoever waits for answers."""
        self._activities.clear()
        self._timers.clear()
        self._compensates.clear()
        self._children.clear()
        self._sends.clear()
        self._subscriptions.clear()
        self._answers.clear()

    def _issue(self, kind: str, name: str, command: Command) -> bool:
        """Match a command with the next recorded one, or add it to the new ones. False: the code is to be ignored."""
        if self.halted:
            return False
        issued = f"{kind} {name}" if name else kind
        self._refuse_reader(issued)
        self._skip_patches(but=issued)
        if self._expected:
            event = self._expected.popleft()
            recorded = _recorded(event)
            if recorded != issued:
                self._diverge(
                    f"event {event.event_id} recorded {recorded}, the code now asks for {issued}{user_place()}"
                )
                return False
        else:
            self.commands.append(command)
        self._ahead.append(issued)
        return True

    def _refuse_reader(self, issued: str) -> None:
        if self.reading:
            raise NonDeterminism(f"{self.reading} asked for {issued}{user_place()}: it may only read")

    def _skip_patches(self, but: str = "") -> None:
        """Pass over recorded patches that the code does not ask for any more: it has only their changed branch."""
        while self._expected and _is_patch(self._expected[0]) and _recorded(self._expected[0]) != but:
            self._ahead.append(_recorded(self._expected.popleft()))

    def _diverge(self, difference: str) -> None:
        self.fail(
            Divergence(
                f"the workflow's code does not fit its history: {difference}. Run the code that this run was started "
                "with, or put the code right so that it asks for the same things in the same order"
            )
        )


def _is_patch(event: HistoryEvent) -> bool:
    return event.HasField("patch_marked")


def _attribute_names(command: SetAttributes) -> str:
    return ", ".join([*sorted(command.set), *(f"without {name}" for name in sorted(command.unset))])


def _addressed(command: SendEvent) -> str:
    """What is sent where."""
    return f"{command.event.type} to {command.sink or 'default'}"


def _wanted(command: Subscribe) -> str:
    """What a subscription is for, and how."""
    if not command.channel:
        return f"event {command.event_type}"
    return f"message of {command.channel}" if command.once else f"channel {command.channel}"


def _recorded(event: HistoryEvent) -> str:
    """The command that an event records, in the words of `_issue`."""
    match event.WhichOneof("attributes"):
        case "activity_scheduled":
            return f"ScheduleActivity {event.activity_scheduled.command.activity_id}"
        case "activity_cancel_requested":
            return f"CancelActivity {event.activity_cancel_requested.activity_id}"
        case "timer_started":
            return f"StartTimer {event.timer_started.timer_id}"
        case "timer_cancelled":
            return f"CancelTimer {event.timer_cancelled.timer_id}"
        case "compensation_registered":
            return f"RegisterCompensation {event.compensation_registered.compensation.activity_type}"
        case "attributes_set":
            return f"SetAttributes {_attribute_names(event.attributes_set.command)}"
        case "compensate_requested":
            return f"Compensate {event.compensate_requested.compensate_id}"
        case "step_recorded":
            return f"RecordStep {event.step_recorded.command.step_id}"
        case "patch_marked":
            return f"MarkPatch {event.patch_marked.patch_id}"
        case "update_accepted":
            return f"AcceptUpdate {event.update_accepted.update_id}"
        case "update_rejected":
            return f"RejectUpdate {event.update_rejected.update_id}"
        case "update_completed":
            return f"CompleteUpdate {event.update_completed.update_id}"
        case "child_requested":
            return f"StartChild {event.child_requested.command.child_id}"
        case "child_cancel_requested":
            return f"CancelChild {event.child_cancel_requested.child_id}"
        case "send_requested":
            return f"Send {event.send_requested.command.send_id}"
        case "event_sent":
            return f"SendEvent {_addressed(event.event_sent.command)}"
        case "subscribed":
            return f"Subscribe {_wanted(event.subscribed.command)} {event.subscribed.command.subscription_id}"
        case "unsubscribed":
            return f"Unsubscribe {event.unsubscribed.subscription_id}"
        case "workflow_continued":
            return "ContinueWorkflow"
        case "workflow_completed":
            return "CompleteWorkflow"
        case "rollback_started":
            cancelled = event.rollback_started.closing_status == WORKFLOW_STATUS_CANCELLED
            return "CancelWorkflow" if cancelled else "FailWorkflow"
        case other:
            return str(other)  # of a newer service: never equal to what this code issues
