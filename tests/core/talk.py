"""Talk: commands and triggers by which runs are told something, and tell something themselves."""

from __future__ import annotations

from typing import Any

from romancy.v1.command_pb2 import (
    AcceptUpdate,
    CancelChild,
    Command,
    Compensation,
    CompleteUpdate,
    ContinueWorkflow,
    MarkPatch,
    RecordStep,
    RejectUpdate,
    Send,
    SendCancel,
    StartChild,
)
from romancy.v1.failure_pb2 import Failure
from romancy.v1.history_pb2 import UpdateReceived
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_COMPLETED, Signal, WorkflowOutcome, WorkflowSpec

from romancy_service.core.task import Fence, child_task_id, send_task_id
from romancy_service.core.triggers import (
    BeginChild,
    EndChild,
    FinishErrand,
    FinishSend,
    RequestUpdate,
    SendSignal,
    TellChild,
)
from tests.core.life import Life

NO = Failure(message="no", type="Refused")
DONE = WorkflowOutcome(status=WORKFLOW_STATUS_COMPLETED, result=Payload(json="1"))


def child(child_id: str, undo: str = "", /, **fields: Any) -> Command:
    """The command to start a child, with a compensation of type `undo`."""
    spec = WorkflowSpec(workflow_type=child_id.partition(":")[0], **fields.pop("spec", {}))
    compensation = Compensation(activity_type=undo) if undo else None
    return Command(start_child=StartChild(child_id=child_id, spec=spec, compensation=compensation, **fields))


def cancel_child(child_id: str) -> Command:
    """The command to ask a child to stop."""
    return Command(cancel_child=CancelChild(child_id=child_id))


def send(send_id: str, workflow_id: str = "other", name: str = "hello") -> Command:
    """The command to send a signal."""
    return Command(send=Send(send_id=send_id, workflow_id=workflow_id, signal=Signal(name=name)))


def send_cancel(send_id: str, workflow_id: str = "other", reason: str = "") -> Command:
    """The command to ask another workflow to stop."""
    return Command(send=Send(send_id=send_id, workflow_id=workflow_id, cancel=SendCancel(reason=reason)))


def step(step_id: str, **outcome: Any) -> Command:
    """The command to keep what a local step returned."""
    return Command(record_step=RecordStep(step_id=step_id, **(outcome or {"result": Payload(json="1")})))


def patch(patch_id: str) -> Command:
    """The command to keep that the changed branch is taken."""
    return Command(mark_patch=MarkPatch(patch_id=patch_id))


def accept(update_id: str) -> Command:
    """The command to say that an update runs."""
    return Command(accept_update=AcceptUpdate(update_id=update_id))


def reject(update_id: str) -> Command:
    """The command to refuse an update."""
    return Command(reject_update=RejectUpdate(update_id=update_id, failure=NO))


def answer(update_id: str, **outcome: Any) -> Command:
    """The command to answer an update."""
    return Command(complete_update=CompleteUpdate(update_id=update_id, **(outcome or {"result": Payload(json="1")})))


def recur(*unread: str, **spec: Any) -> Command:
    """The command to go on in another run, with these signals that were not read."""
    fields = {"workflow_type": "order", "task_queue": "default", **spec}
    signals = [Signal(name=name) for name in unread]
    return Command(continue_workflow=ContinueWorkflow(spec=WorkflowSpec(**fields), unread_signals=signals))


def signal(name: str = "hello") -> SendSignal:
    """Somebody sends a signal."""
    return SendSignal(Signal(name=name, identity="test"))


def update(update_id: str, name: str = "change") -> RequestUpdate:
    """Somebody asks for an update."""
    return RequestUpdate(UpdateReceived(update_id=update_id, name=name))


def child_fence(life: Life, child_id: str) -> Fence:
    """The child's row as the service knows it."""
    return Fence(child_task_id(child_id), life.run.tasks[child_task_id(child_id)].attempt, "")


def begun(life: Life, child_id: str, failure: Failure | None = None) -> BeginChild:
    """The child is open, or cannot be."""
    run_id = "" if failure else f"run-of-{child_id}"
    return BeginChild(child_fence(life, child_id), child_id, f"wf-{child_id}", run_id, failure)


def told(life: Life, child_id: str) -> TellChild:
    """The child knows that it is to stop."""
    return TellChild(child_fence(life, child_id), child_id)


def ended(child_id: str, outcome: WorkflowOutcome = DONE) -> EndChild:
    """The child is closed."""
    return EndChild(child_id, f"wf-{child_id}", f"run-of-{child_id}", outcome)


def sent(life: Life, send_id: str, failure: Failure | None = None) -> FinishSend:
    """The other workflow was told, or could not be."""
    return FinishSend(Fence(send_task_id(send_id), 1, ""), send_id, failure)


def finished(life: Life, task_id: str) -> FinishErrand:
    """What a closed run had left to be done is done."""
    return FinishErrand(Fence(task_id, life.run.tasks[task_id].attempt, ""))
