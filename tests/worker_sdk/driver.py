"""Driver: lives through one run by hand, input by input, and replays the whole of it after each."""

from __future__ import annotations

import random
from typing import Any

from romancy.v1.command_pb2 import Command
from romancy.v1.failure_pb2 import FAILURE_SOURCE_APPLICATION, Failure, FailureSource
from romancy.v1.history_pb2 import (
    ActivityCancelled,
    ActivityCompleted,
    ActivityFailed,
    ChildClosed,
    ChildStarted,
    CompensateFinished,
    HistoryEvent,
    SendFinished,
    SignalReceived,
    TimerFired,
    UpdateReceived,
    WorkflowCancelRequested,
)
from romancy.v1.workflow_pb2 import Signal, WorkflowOutcome, WorkflowSpec

from romancy._instance import WorkflowInstance
from romancy.converter import codec
from romancy.workflow import WorkflowDefinition
from tests.worker_sdk.simulated import SimulatedService

_NAMES = ("activity_id", "timer_id", "compensate_id", "child_id", "send_id", "step_id", "patch_id", "update_id")


def told(command: Command) -> str:
    """A command in a few words."""
    kind = command.WhichOneof("attributes")
    assert kind is not None
    value = getattr(command, kind)
    name = next((getattr(value, field) for field in _NAMES if hasattr(value, field)), "")
    return f"{kind} {name}".strip()


class Driver:
    """One run that is held by a worker."""

    def __init__(
        self, definition: WorkflowDefinition[..., Any], *args: Any, run_id: str = "run-1", **kwargs: Any
    ) -> None:
        self.definition = definition
        self.run_id = run_id
        spec = WorkflowSpec(
            workflow_type=definition.name, task_queue="q", arguments=definition.encode_arguments(args, kwargs)
        )
        self.service = SimulatedService(random.Random(0), spec)
        self.instance = self.new_instance()
        self.commands: list[Command] = []
        """What the code asked for last."""

    def new_instance(self) -> WorkflowInstance:
        return WorkflowInstance(self.definition, workflow_id="w", run_id=self.run_id)

    def start(self) -> list[str]:
        return self.step()

    def complete(self, activity_id: str, value: Any = None) -> list[str]:
        completed = ActivityCompleted(activity_id=activity_id, result=codec(Any).encode(value, "value"))
        return self.step(activity_completed=completed)

    def fail(
        self,
        activity_id: str,
        kind: str,
        message: str = "",
        source: FailureSource.ValueType = FAILURE_SOURCE_APPLICATION,
        **fields: Any,
    ) -> list[str]:
        failure = Failure(type=kind, message=message, source=source, **fields)
        return self.step(activity_failed=ActivityFailed(activity_id=activity_id, failure=failure))

    def cancelled(self, activity_id: str) -> list[str]:
        return self.step(activity_cancelled=ActivityCancelled(activity_id=activity_id))

    def fire(self, timer_id: str, after_ms: int = 0) -> list[str]:
        return self.step(after_ms, timer_fired=TimerFired(timer_id=timer_id))

    def finish_compensate(self, compensate_id: str, failure: Failure | None = None) -> list[str]:
        finished = CompensateFinished(compensate_id=compensate_id, failure=failure)
        return self.step(compensate_finished=finished)

    def cancel(self) -> list[str]:
        self.service.cancel_requested = True
        return self.step(workflow_cancel_requested=WorkflowCancelRequested(reason="enough"))

    def signal(self, name: str, *args: Any) -> list[str]:
        """Somebody sends a signal."""
        self.arrive_signal(name, *args)
        return self.step()

    def arrive_signal(self, name: str, *args: Any) -> None:
        """A signal comes, and no task brings it yet."""
        signal = Signal(name=name, arguments=[codec(Any).encode(value, "value") for value in args])
        self.service._input(signal_received=SignalReceived(signal=signal))

    def update(self, update_id: str, name: str, *args: Any) -> list[str]:
        """Somebody asks for an update."""
        self.service.updates[update_id] = False
        arguments = [codec(Any).encode(value, "value") for value in args]
        return self.step(update_received=UpdateReceived(update_id=update_id, name=name, arguments=arguments))

    def child_started(self, child_id: str) -> list[str]:
        return self.step(child_started=ChildStarted(child_id=child_id, workflow_id=f"wf-{child_id}", run_id="r"))

    def child_closed(self, child_id: str, outcome: WorkflowOutcome) -> list[str]:
        return self.step(child_closed=ChildClosed(child_id=child_id, run_id="r", outcome=outcome))

    def sent(self, send_id: str, failure: Failure | None = None) -> list[str]:
        return self.step(send_finished=SendFinished(send_id=send_id, failure=failure))

    def step(self, after_ms: int = 0, **attributes: Any) -> list[str]:
        """Give the code one input and record what it asks for; a replay of everything must ask for nothing more."""
        self.service.now_ms += after_ms
        if attributes:
            self.service._input(**attributes)
        task = self.service.send_task()
        activation = self.instance.activate(task.news)
        assert self.service.complete_task(task, activation.commands)
        self.replay()
        self.commands = activation.commands
        return [told(command) for command in activation.commands]

    def replay(self) -> None:
        again = self.new_instance()
        activation = again.activate(self.history())
        assert not activation.commands
        assert activation.closed == self.service.closed
        again.close()

    def history(self) -> list[HistoryEvent]:
        return self.service.history()

    def result(self) -> Any:
        """What the workflow returned."""
        assert self.commands[-1].WhichOneof("attributes") == "complete_workflow", self.commands
        return self.definition.decode_result(self.commands[-1].complete_workflow.result)

    def failure(self) -> Failure:
        """How the workflow failed."""
        assert self.commands[-1].WhichOneof("attributes") == "fail_workflow", self.commands
        return self.commands[-1].fail_workflow.failure
