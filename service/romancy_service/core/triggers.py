"""Triggers: the inputs that make a run change. Each names what it consumes, so that nothing acts twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from romancy.v1.channel_pb2 import Delivery
from romancy.v1.command_pb2 import Command, SendEvent, Subscribe
from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.failure_pb2 import Failure
from romancy.v1.history_pb2 import Author, CompensationResolution, Parent, UpdateReceived, WorkflowCancelRequested
from romancy.v1.payload_pb2 import Payload
from romancy.v1.worker_service_pb2 import Then
from romancy.v1.workflow_pb2 import Signal, WorkflowOutcome, WorkflowSpec

from romancy_service.core.task import Fence


@dataclass(frozen=True, slots=True)
class StartRun:
    """Open a run. It is new: nothing but its ids is known of it."""

    spec: WorkflowSpec
    identity: str
    inputs: Sequence[Signal | CloudEvent | UpdateReceived | WorkflowCancelRequested] = ()
    """What the code gets directly after its start."""
    continued_from_run_id: str = ""
    first_run_id: str = ""
    execution_deadline_ms: int = 0
    """0: as its spec says."""
    parent: Parent | None = None
    subscriptions: Sequence[Subscribe] = ()
    """Those that go on from the run before."""


@dataclass(frozen=True, slots=True)
class SendSignal:
    """Somebody tells the code something."""

    signal: Signal


@dataclass(frozen=True, slots=True)
class ReceiveEvent:
    """An event came for some subscriptions of the run; for none: for the run itself."""

    event: CloudEvent
    subscription_ids: Sequence[str] = ()
    delivery: Delivery | None = None
    """Set where nobody else gets it."""


@dataclass(frozen=True, slots=True)
class AnswerSubscription:
    """Whether the run is subscribed to a channel is known."""

    fence: Fence
    subscription_id: str
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class RequestUpdate:
    """Somebody asks the code to change something."""

    update: UpdateReceived


@dataclass(frozen=True, slots=True)
class CompleteActivity:
    """A worker, or somebody elsewhere, ended an attempt: with a result, a failure, or because it was cancelled
    (neither).
    """

    fence: Fence
    leased_ms: int
    result: Payload | None = None
    events: Sequence[SendEvent] = ()
    """What it sent; recorded with its result only."""
    failure: Failure | None = None
    cancel_details: Sequence[Payload] = ()
    nothing_done: bool = False
    """It was cancelled and had no effect, or took it back."""
    then: Then | None = None
    successor_run_id: str = ""
    """What the next run is called, should `then` continue the workflow."""
    author: Author | None = None


@dataclass(frozen=True, slots=True)
class CompleteWorkflowTask:
    """A worker ran the code until it had to wait, or ended."""

    fence: Fence
    seen_event_id: int
    commands: Sequence[Command]
    holds_run: bool
    successor_run_id: str = ""
    """What the next run is called, should the commands continue the workflow."""
    author: Author | None = None


@dataclass(frozen=True, slots=True)
class FailWorkflowTask:
    """A worker could not run a workflow task; None: it was lost, or did not answer in time."""

    fence: Fence
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class LoseTask:
    """The session that had a task is gone."""

    fence: Fence


@dataclass(frozen=True, slots=True)
class TaskDue:
    """The time came at which the service must look at a task: a timer, a deadline, a timeout, a cancelled one."""

    fence: Fence
    leased_ms: int
    heartbeat_ms: int


@dataclass(frozen=True, slots=True)
class BeginChild:
    """A child is open now, or cannot be."""

    fence: Fence
    child_id: str
    workflow_id: str
    run_id: str = ""
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class TellChild:
    """A child was told to stop."""

    fence: Fence
    child_id: str


@dataclass(frozen=True, slots=True)
class EndChild:
    """A child is closed."""

    child_id: str
    workflow_id: str
    run_id: str
    outcome: WorkflowOutcome


@dataclass(frozen=True, slots=True)
class FinishSend:
    """Another workflow was told what it was to be told, or could not be."""

    fence: Fence
    send_id: str
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class FinishErrand:
    """What a closed run had left to be done is done."""

    fence: Fence


@dataclass(frozen=True, slots=True)
class RequestCancel:
    """Somebody wants the run to stop and undo what it did."""

    reason: str
    identity: str


@dataclass(frozen=True, slots=True)
class Terminate:
    """Somebody wants the run to end at once."""

    reason: str
    identity: str


@dataclass(frozen=True, slots=True)
class ResolveCompensation:
    """An operator says what becomes of a compensation that failed for good."""

    compensation_id: str
    resolution: CompensationResolution.ValueType
    reason: str
    identity: str


@dataclass(frozen=True, slots=True)
class Note:
    """Nothing changes, but the run must be open, and the request is recorded with it."""


Trigger = (
    StartRun
    | Note
    | SendSignal
    | ReceiveEvent
    | AnswerSubscription
    | RequestUpdate
    | CompleteActivity
    | CompleteWorkflowTask
    | FailWorkflowTask
    | LoseTask
    | TaskDue
    | BeginChild
    | TellChild
    | EndChild
    | FinishSend
    | FinishErrand
    | RequestCancel
    | Terminate
    | ResolveCompensation
)
