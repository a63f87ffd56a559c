"""A service for one run, small enough to be believed: numbers inputs as they arrive, applies commands, hands out tasks.

It decides by a seed what happens next. `Rules` has the ways in which such a service, or its worker, can be built wrong;
the tests build it wrong in each of them and expect to notice.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from romancy.v1.channel_pb2 import Delivery
from romancy.v1.command_pb2 import Command, Subscribe
from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.failure_pb2 import Failure
from romancy.v1.history_pb2 import (
    ActivityCancelled,
    ActivityCancelRequested,
    ActivityCompleted,
    ActivityFailed,
    ActivityScheduled,
    AttributesSet,
    ChildCancelRequested,
    ChildClosed,
    ChildRequested,
    ChildStarted,
    ChildStartFailed,
    CompensateFinished,
    CompensateRequested,
    CompensationRegistered,
    EventReceived,
    EventSent,
    HistoryEvent,
    PatchMarked,
    RollbackStarted,
    SendFinished,
    SendRequested,
    SignalReceived,
    StepRecorded,
    Subscribed,
    SubscriptionAnswered,
    TimerCancelled,
    TimerFired,
    TimerStarted,
    Unsubscribed,
    UpdateAccepted,
    UpdateCompleted,
    UpdateReceived,
    UpdateRejected,
    WorkflowCancelRequested,
    WorkflowCompleted,
    WorkflowContinued,
    WorkflowStarted,
)
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import (
    WORKFLOW_STATUS_CANCELLED,
    WORKFLOW_STATUS_COMPLETED,
    WORKFLOW_STATUS_FAILED,
    Signal,
    WorkflowOutcome,
    WorkflowSpec,
)

from romancy._machine import is_command, is_input, replay_order

EPOCH_MS = 1_700_000_000_000
MOST_SAID = 12
"""So many signals and updates come to one run: else the programs that answer them would never end."""


def timestamp(time_ms: int) -> Timestamp:
    return Timestamp(seconds=time_ms // 1000, nanos=time_ms % 1000 * 1_000_000)


@dataclass(frozen=True, slots=True)
class Rules:
    """What is right. Each field, turned over, is a mistake."""

    commands_follow_what_they_saw: bool = True
    """Else histories are handed out by number."""
    seen_is_taken_when_sent: bool = True
    """Else when the task is committed."""
    then_keeps_the_workers_time: bool = True
    """Else the service stamps a worker-made input anew."""
    refused_runs_are_forgotten: bool = True
    """Else the worker keeps a run in memory whose task was lost."""
    superseded_tasks_are_refused: bool = True
    """Else the late completion of a task that was given away is applied."""


@dataclass(slots=True)
class Task:
    """One workflow task as it was sent."""

    number: int
    last_event_id: int
    full: list[HistoryEvent]
    news: list[HistoryEvent]
    """What a worker that holds the run does not know yet."""


@dataclass(slots=True)
class SimulatedService:
    """One run, as the service keeps it."""

    rng: random.Random
    spec: WorkflowSpec
    rules: Rules = field(default_factory=Rules)
    talks: float = 0.15
    """How often somebody says something, where something else could happen."""
    talks_alone: bool = False
    """Whether somebody says something where nothing else could happen."""
    events: list[HistoryEvent] = field(default_factory=list)
    now_ms: int = EPOCH_MS
    seen: int = 0
    """The last input that an accepted task had seen."""
    closed: bool = False
    cancel_requested: bool = False
    activities: dict[str, bool] = field(default_factory=dict)
    """Open ones, and whether they were asked to stop."""
    timers: dict[str, int] = field(default_factory=dict)
    """Open ones, and when they are due."""
    compensates: list[str] = field(default_factory=list)
    children: dict[str, bool] = field(default_factory=dict)
    """Those whose end is not known, and whether they are open."""
    sends: list[str] = field(default_factory=list)
    subscriptions: dict[str, Subscribe] = field(default_factory=dict)
    unanswered: set[str] = field(default_factory=set)
    """Subscriptions to channels of which it is not known whether they may be."""
    given: list[Delivery] = field(default_factory=list)
    """Messages that only this run has."""
    updates: dict[str, bool] = field(default_factory=dict)
    """Those that are not answered, and whether they were accepted."""
    said: int = 0
    """How many signals and updates came."""
    tasks: int = 0

    def __post_init__(self) -> None:
        self._input(workflow_started=WorkflowStarted(spec=self.spec))

    # Inputs.

    def _input(self, **attributes: Any) -> HistoryEvent:
        event = HistoryEvent(event_id=len(self.events) + 1, time=timestamp(self.now_ms), **attributes)
        self.events.append(event)
        return event

    def has_news(self) -> bool:
        return any(is_input(event) and event.event_id > self.seen for event in self.events)

    def deliver(self) -> bool:
        """Let one thing happen that the run waits for; False when it waits for nothing."""
        timers = (f"timer {timer_id}" for timer_id in self.timers)
        wanted = [f"event {subscription_id}" for subscription_id in self.subscriptions]
        choices = [*self.activities, *timers, *self.compensates, *self.children, *self.sends, *wanted]
        if self.closed or not (choices or self.talks_alone):
            return False
        if not self.cancel_requested and self.rng.random() < 0.03:
            return self.request_cancel()
        if self.said < MOST_SAID and (not choices or self.rng.random() < self.talks):
            return self.say()
        if not choices:
            return False
        choice = self.rng.choice(choices)
        self.now_ms += self.rng.choice([0, 1, 40, 3_000])
        if choice in self.activities:
            self._input(**self.close_activity(choice))
        elif choice in self.children:
            self._input(**self._child_goes_on(choice))
        elif choice in wanted:
            self._bring(self.subscriptions[choice.removeprefix("event ")])
        elif choice in self.sends:
            self.sends.remove(choice)
            refused = Failure(message="nobody", type="NOT_FOUND") if self.rng.random() < 0.3 else None
            self._input(send_finished=SendFinished(send_id=choice.removeprefix("send "), failure=refused))
        elif choice in self.compensates:
            self.compensates.remove(choice)
            failure = Failure(message="stuck", type="Stuck") if self.rng.random() < 0.3 else None
            self._input(
                compensate_finished=CompensateFinished(compensate_id=choice.removeprefix("undo "), failure=failure)
            )
        else:
            # The earliest timer: time does not pass one by.
            timer_id, due_ms = min(self.timers.items(), key=lambda timer: (timer[1], int(timer[0])))
            del self.timers[timer_id]
            self.now_ms = max(self.now_ms, due_ms)
            self._input(timer_fired=TimerFired(timer_id=timer_id))
        return True

    def say(self) -> bool:
        """Somebody sends a signal or asks for an update."""
        self.said += 1
        arguments = [Payload(json=str(self.rng.randrange(100)))]
        if self.rng.random() < 0.3:
            self.publish(self.rng.choice(["bid", "paid"]), addressed=self.rng.random() < 0.6)
        elif self.rng.random() < 0.4:
            update_id = f"u{self.said}"
            self.updates[update_id] = False
            self._input(update_received=UpdateReceived(update_id=update_id, name="change", arguments=arguments))
        else:
            name = self.rng.choice(["poke", "nudge", "late", "nobody listens"])
            self._input(signal_received=SignalReceived(signal=Signal(name=name, arguments=arguments)))
        return True

    def _bring(self, wanted: Subscribe) -> None:
        """What a subscription is for."""
        if not wanted.channel:
            self.publish(wanted.event_type)
        elif wanted.subscription_id in self.unanswered:
            self.unanswered.remove(wanted.subscription_id)
            refused = Failure(message="taken", type="CHANNEL_MODE_CONFLICT") if self.rng.random() < 0.2 else None
            if refused is not None:
                del self.subscriptions[wanted.subscription_id]
            answer = SubscriptionAnswered(subscription_id=wanted.subscription_id, failure=refused)
            self._input(subscription_answered=answer)
        elif wanted.once:
            del self.subscriptions[wanted.subscription_id]
            delivery = Delivery(position=len(self.events) + 1, count=self.rng.choice([1, 2]))
            self.given.append(delivery)
            self._message(wanted, delivery)
        else:
            self._message(wanted, None)

    def _message(self, wanted: Subscribe, delivery: Delivery | None) -> None:
        event = CloudEvent(id=str(len(self.events)), source="/", spec_version="1.0", type="message", text_data="7")
        event.attributes["romancychannel"].ce_string = wanted.channel
        received = EventReceived(event=event, subscription_ids=[wanted.subscription_id], delivery=delivery)
        self._input(event_received=received)

    def publish(self, event_type: str, *, addressed: bool = False) -> None:
        """An event comes for all that want it, or for the run itself."""
        number = self.rng.randrange(2)
        event = CloudEvent(id=str(len(self.events)), source="/", spec_version="1.0", type=event_type)
        event.text_data = f'{{"number": {number}}}'
        fitting = [
            each.subscription_id
            for each in self.subscriptions.values()
            if each.event_type == event_type and each.where.get("data.number", str(number)) == str(number)
        ]
        if addressed:
            fitting = []
        elif not fitting:
            return
        for subscription_id in fitting:
            if self.subscriptions[subscription_id].once:
                del self.subscriptions[subscription_id]
        self._input(event_received=EventReceived(event=event, subscription_ids=fitting))

    def _child_goes_on(self, child_id: str) -> dict[str, Any]:
        """A child that was asked for begins, or cannot; one that is open ends."""
        if not self.children[child_id]:
            if self.rng.random() < 0.15:
                del self.children[child_id]
                failure = Failure(message=f"no {child_id}", type="WORKFLOW_ALREADY_OPEN")
                return {"child_start_failed": ChildStartFailed(child_id=child_id, failure=failure)}
            self.children[child_id] = True
            return {"child_started": ChildStarted(child_id=child_id, workflow_id=child_id, run_id=child_id)}
        del self.children[child_id]
        status = self.rng.choice([WORKFLOW_STATUS_COMPLETED, WORKFLOW_STATUS_COMPLETED, WORKFLOW_STATUS_FAILED])
        outcome = WorkflowOutcome(status=status)
        if status == WORKFLOW_STATUS_COMPLETED:
            outcome.result.json = str(self.rng.randrange(100))
        else:
            outcome.failure.CopyFrom(Failure(message=f"bad {child_id}", type="Bad"))
        return {"child_closed": ChildClosed(child_id=child_id, run_id=child_id, outcome=outcome)}

    def request_cancel(self) -> bool:
        self.cancel_requested = True
        self._input(workflow_cancel_requested=WorkflowCancelRequested(reason="enough"))
        return True

    def close_activity(self, activity_id: str) -> dict[str, Any]:
        """Decide how an open activity ends."""
        asked_to_stop = self.activities.pop(activity_id) or self.cancel_requested
        if asked_to_stop and self.rng.random() < 0.6:
            return {"activity_cancelled": ActivityCancelled(activity_id=activity_id)}
        if self.rng.random() < 0.12:
            failure = Failure(message=f"no {activity_id}", type=self.rng.choice(["Declined", "Broken"]))
            return {"activity_failed": ActivityFailed(activity_id=activity_id, failure=failure)}
        result = Payload(json=str(self.rng.randrange(100)))
        return {"activity_completed": ActivityCompleted(activity_id=activity_id, result=result)}

    # Tasks.

    def history(self) -> list[HistoryEvent]:
        return replay_order(self.events) if self.rules.commands_follow_what_they_saw else list(self.events)

    def send_task(self) -> Task:
        self.tasks += 1
        news = [event for event in self.events if is_input(event) and event.event_id > self.seen]
        return Task(self.tasks, len(self.events), self.history(), news)

    def complete_task(self, task: Task, commands: Sequence[Command]) -> bool:
        """Record the commands, unless another task was sent meanwhile."""
        if self.closed or (task.number != self.tasks and self.rules.superseded_tasks_are_refused):
            return False
        seen = task.last_event_id if self.rules.seen_is_taken_when_sent else len(self.events)
        self._record(commands, max(seen, self.seen))
        return True

    def complete_activity_then(self, completion: HistoryEvent, commands: Sequence[Command]) -> None:
        """Record a completion together with the commands that a worker made of it."""
        if self.rules.then_keeps_the_workers_time:
            self.now_ms = completion.time.seconds * 1000 + completion.time.nanos // 1_000_000
        else:
            self.now_ms += 7
        kind = completion.WhichOneof("attributes")
        assert kind is not None
        event = self._input(**{kind: getattr(completion, kind)})
        self._record(commands, event.event_id)

    def _record(self, commands: Sequence[Command], seen: int) -> None:
        self.seen = seen
        for command in commands:
            assert not self.closed, f"a command after the one that ends the run: {command}"
            event = HistoryEvent(
                event_id=len(self.events) + 1,
                time=timestamp(self.now_ms),
                seen_event_id=seen,
                **self._apply(command),
            )
            self.events.append(event)

    def _apply(self, command: Command) -> dict[str, Any]:
        """One command: what it makes of the run, and how it is recorded."""
        match command.WhichOneof("attributes"):
            case "schedule_activity":
                self.activities[command.schedule_activity.activity_id] = False
                return {"activity_scheduled": ActivityScheduled(command=command.schedule_activity)}
            case "cancel_activity":
                activity_id = command.cancel_activity.activity_id
                if activity_id in self.activities:
                    self.activities[activity_id] = True
                return {"activity_cancel_requested": ActivityCancelRequested(activity_id=activity_id)}
            case "start_timer":
                timer = command.start_timer
                wait_ms = timer.duration.seconds * 1000 + timer.duration.nanos // 1_000_000
                self.timers[timer.timer_id] = self.now_ms + max(0, wait_ms)
                return {"timer_started": TimerStarted(timer_id=timer.timer_id, duration=timer.duration)}
            case "cancel_timer":
                self.timers.pop(command.cancel_timer.timer_id, None)
                return {"timer_cancelled": TimerCancelled(timer_id=command.cancel_timer.timer_id)}
            case "register_compensation":
                compensation = command.register_compensation.compensation
                return {"compensation_registered": CompensationRegistered(compensation=compensation)}
            case "compensate":
                self.compensates.append(f"undo {command.compensate.compensate_id}")
                return {"compensate_requested": CompensateRequested(compensate_id=command.compensate.compensate_id)}
            case "record_step":
                return {"step_recorded": StepRecorded(command=command.record_step)}
            case "mark_patch":
                return {"patch_marked": PatchMarked(patch_id=command.mark_patch.patch_id)}
            case "start_child":
                self.children[command.start_child.child_id] = False
                return {"child_requested": ChildRequested(command=command.start_child)}
            case "cancel_child":
                return {"child_cancel_requested": ChildCancelRequested(child_id=command.cancel_child.child_id)}
            case "send":
                self.sends.append(f"send {command.send.send_id}")
                if command.send.HasField("returned"):
                    self.given.remove(command.send.returned)  # it was given, and is given back once
                return {"send_requested": SendRequested(command=command.send)}
            case "accept_update" | "reject_update" | "complete_update":
                return self._answer_update(command)
            case "subscribe":
                self.subscriptions[command.subscribe.subscription_id] = command.subscribe
                if command.subscribe.channel and not command.subscribe.once:
                    self.unanswered.add(command.subscribe.subscription_id)
                return {"subscribed": Subscribed(command=command.subscribe)}
            case "unsubscribe":
                self.subscriptions.pop(command.unsubscribe.subscription_id, None)
                self.unanswered.discard(command.unsubscribe.subscription_id)
                return {"unsubscribed": Unsubscribed(subscription_id=command.unsubscribe.subscription_id)}
            case "send_event":
                return {"event_sent": EventSent(command=command.send_event)}
            case "set_attributes":
                return {"attributes_set": AttributesSet(command=command.set_attributes)}
        self.closed = True
        match command.WhichOneof("attributes"):
            case "complete_workflow":
                return {"workflow_completed": WorkflowCompleted(result=command.complete_workflow.result)}
            case "fail_workflow":
                failure = command.fail_workflow.failure
                return {"rollback_started": RollbackStarted(closing_status=WORKFLOW_STATUS_FAILED, failure=failure)}
            case "cancel_workflow":
                assert self.cancel_requested
                return {"rollback_started": RollbackStarted(closing_status=WORKFLOW_STATUS_CANCELLED)}
            case "continue_workflow":
                continued = WorkflowContinued(new_run_id="next", spec=command.continue_workflow.spec)
                return {"workflow_continued": continued}
            case other:
                raise AssertionError(f"no such command: {other}")

    def _answer_update(self, command: Command) -> dict[str, Any]:
        """The code answers an update that is open, in the order that there is."""
        match command.WhichOneof("attributes"):
            case "accept_update":
                update_id = command.accept_update.update_id
                assert self.updates[update_id] is False
                self.updates[update_id] = True
                return {"update_accepted": UpdateAccepted(update_id=update_id)}
            case "reject_update":
                rejected = command.reject_update
                assert self.updates.pop(rejected.update_id) is False
                return {"update_rejected": UpdateRejected(update_id=rejected.update_id, failure=rejected.failure)}
        completed = command.complete_update
        assert self.updates.pop(completed.update_id) is True
        answered = UpdateCompleted(update_id=completed.update_id)
        if completed.HasField("failure"):
            answered.failure.CopyFrom(completed.failure)
        else:
            answered.result.CopyFrom(completed.result)
        return {"update_completed": answered}

    def seen_history(self) -> list[HistoryEvent]:
        """What accepted tasks have seen and asked for: what any replay must reproduce."""
        return [event for event in self.history() if is_command(event) or event.event_id <= self.seen]
