"""Saga: what a rollback undoes, and in which order. Folded from the whole history, and only when it is needed."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field

from romancy.v1.command_pb2 import (
    COMPENSATE_WHEN_ALWAYS,
    Compensation,
    CompensationArgument,
    ScheduleActivity,
    StartChild,
)
from romancy.v1.failure_pb2 import Failure
from romancy.v1.payload_pb2 import Payload

from romancy_service.core.limits import KIB
from romancy_service.core.task import COMPENSATION_ID_PREFIX

_NULL = Payload(json="null")
_UNDO_BYTES = KIB // 2
"""What one entry takes in memory besides its values, as measured."""


@dataclass(frozen=True, slots=True)
class Undo:
    """One thing to undo."""

    event_id: int
    """The event that closed the activity, or that registered the compensation: rollback goes from large to small."""
    activity_id: str
    """Empty for a compensation that belongs to no activity."""
    task_queue: str
    compensation: Compensation
    result: Payload | None = None
    """What the activity returned; None when its outcome is unknown or it failed."""
    arguments: Sequence[Payload] = ()
    """What the activity, or the child, was called with."""
    child_id: str = ""
    """The child that is undone, where it is one."""

    @property
    def compensation_id(self) -> str:
        """Its name in events and for operators."""
        if self.child_id:
            return f"undo-child/{self.child_id}"
        return COMPENSATION_ID_PREFIX + (self.activity_id or f"#{self.event_id}")

    def command(self) -> ScheduleActivity:
        """The activity that undoes it, with what the compensation asks for filled in."""
        compensation = self.compensation
        return ScheduleActivity(
            activity_id=self.compensation_id,
            activity_type=compensation.activity_type,
            task_queue=compensation.task_queue or self.task_queue,
            arguments=[self._value(argument) for argument in compensation.arguments],
            retry_policy=compensation.retry_policy if compensation.HasField("retry_policy") else None,
            start_to_close_timeout=(
                compensation.start_to_close_timeout if compensation.HasField("start_to_close_timeout") else None
            ),
            heartbeat_timeout=compensation.heartbeat_timeout if compensation.HasField("heartbeat_timeout") else None,
        )

    def _value(self, argument: CompensationArgument) -> Payload:
        match argument.WhichOneof("value"):
            case "activity_result":
                return self.result or _NULL
            case "activity_argument":
                return self.arguments[argument.activity_argument]
            case _:
                return argument.payload


@dataclass(frozen=True, slots=True)
class FailedUndo:
    """A compensation that failed for good and waits for an operator."""

    undo: Undo
    failure: Failure


@dataclass(slots=True)
class Saga:
    """The ledger of a run: what is open, what is to be undone, what is being undone, what could not be undone."""

    open: dict[str, ScheduleActivity] = field(default_factory=dict)
    """Open activities that have a compensation."""
    open_children: dict[str, StartChild] = field(default_factory=dict)
    """Open children that have one."""
    ledger: list[Undo] = field(default_factory=list)
    """What is to be undone, by event id."""
    running: Undo | None = None
    failed: dict[str, FailedUndo] = field(default_factory=dict)
    """By compensation id."""
    held_bytes: int = 0
    """About how much memory it takes, or took before the rollback began to empty it."""

    def scheduled(self, command: ScheduleActivity) -> None:
        """An activity was asked for."""
        if command.HasField("compensation"):
            self.open[command.activity_id] = command
            self.held_bytes += _UNDO_BYTES + command.ByteSize()

    def registered(self, event_id: int, task_queue: str, compensation: Compensation) -> None:
        """The code registered a compensation that belongs to no activity."""
        self.ledger.append(Undo(event_id, "", task_queue, compensation))
        self.held_bytes += _UNDO_BYTES + compensation.ByteSize()

    def closed(self, event_id: int, activity_id: str, result: Payload | None, *, attempt: int, unknown: bool) -> None:
        """An activity was closed. It is undone if it completed, or may have had its effect."""
        command = self.open.pop(activity_id, None)
        if command is None:
            return
        always = attempt > 0 and command.compensation.when == COMPENSATE_WHEN_ALWAYS
        if result is not None or unknown or always:
            queue, compensation, arguments = command.task_queue, command.compensation, command.arguments
            self.ledger.append(Undo(event_id, activity_id, queue, compensation, result, arguments))
            self.held_bytes += result.ByteSize() if result is not None else 0
        else:
            self.held_bytes -= _UNDO_BYTES + command.ByteSize()

    def child_requested(self, command: StartChild) -> None:
        """A child was asked for."""
        if command.HasField("compensation"):
            self.open_children[command.child_id] = command

    def child_closed(self, event_id: int, child_id: str, result: Payload | None) -> None:
        """A child was closed. It is undone if it completed: if not, it undid itself."""
        command = self.open_children.pop(child_id, None)
        if command is not None and result is not None:
            queue = command.spec.task_queue
            self.ledger.append(
                Undo(event_id, "", queue, command.compensation, result, command.spec.arguments, child_id)
            )

    def newest(self, up_to_event_id: int) -> Undo | None:
        """What is undone next among what was closed by then."""
        return next((undo for undo in reversed(self.ledger) if undo.event_id <= up_to_event_id), None)

    def begin(self, compensation_id: str) -> Undo:
        """A compensation is sent out."""
        undo = next(undo for undo in reversed(self.ledger) if undo.compensation_id == compensation_id)
        self.ledger.remove(undo)
        self.running = undo
        return undo

    def fail(self, compensation_id: str, failure: Failure) -> None:
        """The running compensation failed for good."""
        assert self.running is not None
        assert self.running.compensation_id == compensation_id
        self.failed[compensation_id] = FailedUndo(self.running, failure)
        self.running = None

    def retry(self, compensation_id: str) -> None:
        """An operator wants a failed compensation to be tried again: it takes its old place."""
        insort(self.ledger, self.failed.pop(compensation_id).undo, key=lambda undo: undo.event_id)

    def not_undone(self) -> list[str]:
        """Ids of all whose effects may be there still, newest first."""
        failed = [failed.undo for failed in self.failed.values()]
        undos = [*self.ledger, *([self.running] if self.running else []), *failed]
        left = sorted(undos, key=lambda undo: undo.event_id, reverse=True)
        names = (undo.activity_id or undo.child_id or undo.compensation_id for undo in left)
        return [*self.open, *self.open_children, *names]
