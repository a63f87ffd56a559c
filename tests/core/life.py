"""Life: a run in memory, driven by triggers, as the engine would drive it. What tests of the core are written with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from google.protobuf.duration_pb2 import Duration

from romancy.v1.command_pb2 import (
    CancelActivity,
    CancelTimer,
    Command,
    Compensate,
    Compensation,
    CompleteWorkflow,
    FailWorkflow,
    RegisterCompensation,
    ScheduleActivity,
    StartTimer,
)
from romancy.v1.command_pb2 import CancelWorkflow as CancelWorkflowCommand
from romancy.v1.failure_pb2 import Failure
from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.payload_pb2 import Payload
from romancy.v1.retry_pb2 import RetryPolicy
from romancy.v1.workflow_pb2 import WorkflowSpec

from romancy_service.core.apply import fold
from romancy_service.core.decide import Reply, decide
from romancy_service.core.limits import Limits
from romancy_service.core.run import Run
from romancy_service.core.task import WORKFLOW_TASK_ID, Fence, Task
from romancy_service.core.triggers import (
    CompleteActivity,
    CompleteWorkflowTask,
    LoseTask,
    StartRun,
    TaskDue,
    Trigger,
)

T0 = 1_700_000_000_000
NO_RETRY = RetryPolicy(max_attempts=1)


def schedule(activity_id: str, undo: str = "", /, **fields: Any) -> Command:
    """The command to run an activity, with a compensation of type `undo`."""
    activity_type = activity_id.partition(":")[0]
    compensation = Compensation(activity_type=undo) if undo else None
    return Command(
        schedule_activity=ScheduleActivity(
            activity_id=activity_id,
            activity_type=activity_type,
            compensation=compensation,
            **fields,
        )
    )


def timer(timer_id: str, seconds: int) -> Command:
    """The command to start a timer."""
    return Command(start_timer=StartTimer(timer_id=timer_id, duration=Duration(seconds=seconds)))


def cancel_timer(timer_id: str) -> Command:
    """The command to forget a timer."""
    return Command(cancel_timer=CancelTimer(timer_id=timer_id))


def cancel_activity(activity_id: str) -> Command:
    """The command to ask an activity to stop."""
    return Command(cancel_activity=CancelActivity(activity_id=activity_id))


def register(undo: str) -> Command:
    """The command to register a compensation that belongs to no activity."""
    return Command(register_compensation=RegisterCompensation(compensation=Compensation(activity_type=undo)))


def compensate(number: str) -> Command:
    """The command to undo now what is on the list."""
    return Command(compensate=Compensate(compensate_id=number))


def complete(result: str = "null") -> Command:
    """The command that ends the run well."""
    return Command(complete_workflow=CompleteWorkflow(result=Payload(json=result)))


def fail(message: str = "broken") -> Command:
    """The command that ends the run badly."""
    return Command(fail_workflow=FailWorkflow(failure=Failure(message=message, type="Error")))


CANCEL = Command(cancel_workflow=CancelWorkflowCommand())


@dataclass
class Life:
    """One run and all its history. `now_ms` is the service's clock."""

    run: Run = field(default_factory=lambda: Run("default", "order-1", "run-1"))
    history: list[HistoryEvent] = field(default_factory=list)
    now_ms: int = T0
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def begin(cls, **spec: Any) -> Life:
        """A run that was just started."""
        life = cls()
        life.do(StartRun(WorkflowSpec(workflow_type="order", task_queue="default", **spec), "test"))
        return life

    def do(self, trigger: Trigger) -> Reply:
        """Decide `trigger` and keep what it recorded; check that the fold of the history is the run."""
        reply = decide(self.run, trigger, self.now_ms, self.limits)
        self.history += self.run.new_events
        self.run.committed()
        self.check_fold()
        return reply

    def check_fold(self) -> None:
        """What the run is in memory is what its history folds to."""
        folded = fold("default", "order-1", "run-1", self.history)
        names = ("status", "last_event_id", "history_bytes", "counters", "cancel_requested", "failure", "attributes")
        for name in names:
            assert getattr(folded, name) == getattr(self.run, name), name
        assert folded.saga == self.run.saga
        ours = {key: task for key, task in self.run.tasks.items() if key != WORKFLOW_TASK_ID}
        theirs = {key: task for key, task in folded.tasks.items() if key != WORKFLOW_TASK_ID}
        if not self.run.is_open:
            # Of a closed run nothing is recorded any more: what it had left to be done goes when it is done.
            theirs = {key: task for key, task in theirs.items() if key in ours}
        assert theirs == ours

    def code(self, *commands: Command, seen: int | None = None) -> Reply:
        """The worker ran the code, which asked for `commands`."""
        task = self.run.tasks[WORKFLOW_TASK_ID]
        seen_event_id = self.run.last_event_id if seen is None else seen
        return self.do(CompleteWorkflowTask(self.fence(task), seen_event_id, commands, holds_run=True))

    def fence(self, task: Task) -> Fence:
        """The task as the worker "session" has it."""
        return Fence(task.task_id, task.attempt, "session", 1)

    def task(self, name: str) -> Task:
        """An open activity, or a compensation (`undo/...`)."""
        prefix = "c/" if name.startswith("undo/") else "a/"
        return self.run.tasks[prefix + name]

    def completes(self, name: str, result: str = "1") -> Reply:
        """A worker completed the activity."""
        fence = self.fence(self.task(name))
        return self.do(CompleteActivity(fence, self.now_ms, result=Payload(json=result)))

    def fails(self, name: str, *, non_retryable: bool = False) -> Reply:
        """An attempt of the activity failed in its own words."""
        failure = Failure(message="no", type="Declined", non_retryable=non_retryable)
        return self.do(CompleteActivity(self.fence(self.task(name)), self.now_ms, failure=failure))

    def stops(self, name: str, *, nothing_done: bool) -> Reply:
        """The activity stopped because it was asked to."""
        return self.do(CompleteActivity(self.fence(self.task(name)), self.now_ms, nothing_done=nothing_done))

    def loses(self, name: str) -> Reply:
        """The worker that ran the activity is gone."""
        return self.do(LoseTask(self.fence(self.task(name))))

    def due(self, task_id: str, owner: str = "") -> Reply:
        """The service looks at the task."""
        task = self.run.tasks[task_id]
        return self.do(TaskDue(Fence(task_id, task.attempt, owner, 1 if owner else 0), self.now_ms, 0))

    def kinds(self) -> list[str | None]:
        """The kinds of all events."""
        return [event.WhichOneof("attributes") for event in self.history]

    def undone(self) -> list[str]:
        """The compensations that were sent out, in order."""
        return [
            event.compensation_scheduled.compensation_id
            for event in self.history
            if event.HasField("compensation_scheduled")
        ]
