"""Drive: runs decided by the core and stored by hand, as the engine does it, for the tests of the store."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from romancy.v1.command_pb2 import Command
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import WorkflowSpec

from romancy_service.core.decide import decide
from romancy_service.core.limits import Limits
from romancy_service.core.run import Run
from romancy_service.core.task import WORKFLOW_TASK_ID, Fence, activity_task_id
from romancy_service.core.triggers import CompleteActivity, CompleteWorkflowTask, StartRun, Terminate, Trigger
from romancy_service.store.store import Change, CommitResult, Lease, Request, SessionRow, Store
from tests.core.life import schedule

T0 = 1_700_000_000_000
NAMESPACE = "default"
_LIMITS = Limits()
_numbers = itertools.count(1)


def begin(workflow_id: str = "order-1", *, run_id: str = "", now_ms: int = T0, **spec: object) -> Run:
    """A run that was started, and is not stored yet."""
    run = Run(NAMESPACE, workflow_id, run_id or f"run-{next(_numbers):06}")
    said = WorkflowSpec(workflow_type="order", task_queue="main")
    said.MergeFrom(WorkflowSpec(**spec))  # type: ignore[arg-type]
    then(run, StartRun(said, "test"), now_ms=now_ms)
    return run


def then(run: Run, trigger: Trigger, *, now_ms: int = T0) -> Change:
    """What the trigger makes of the run, resting on the row that it names."""
    fence: Fence | None = getattr(trigger, "fence", None)
    decide(run, trigger, now_ms, _LIMITS)
    return Change(run, fences=[fence] if fence is not None else [])


def code(run: Run, *commands: Command, owner: str = "", epoch: int = 0, now_ms: int = T0) -> Change:
    """The code saw everything and asked for `commands`."""
    task = run.tasks[WORKFLOW_TASK_ID]
    fence = Fence(task.task_id, task.attempt, owner, epoch)
    return then(run, CompleteWorkflowTask(fence, run.last_event_id, commands, holds_run=True), now_ms=now_ms)


def completes(run: Run, activity_id: str, *, owner: str = "", epoch: int = 0, now_ms: int = T0) -> Change:
    """A worker completed an activity."""
    fence = Fence(activity_task_id(activity_id), run.tasks[activity_task_id(activity_id)].attempt, owner, epoch)
    return then(run, CompleteActivity(fence, now_ms, result=Payload(json="1")), now_ms=now_ms)


def terminated(run: Run) -> Change:
    """An operator ended the run."""
    return then(run, Terminate("enough", "test"))


def request(run: Run, request_id: str = "request-1") -> Request:
    """What a client asked for, with its answer."""
    return Request(run.namespace, request_id, run.run_id, "StartWorkflow", b"answer")


async def store_all(store: Store, *changes: Change, now_ms: int = T0) -> CommitResult:
    """Commit changes, all of which must be written."""
    result = await store.commit(changes, now_ms)
    assert result.written == {change.run.run_id for change in changes}
    for change in changes:
        change.run.committed()
    return result


async def waiting_activities(store: Store, names: Sequence[str], *, workflow_id: str = "") -> Run:
    """A stored run with these open activities (`type:n`), which nobody has."""
    run = begin(workflow_id or f"workflow-{next(_numbers)}")
    await store_all(store, Change(run))
    await store_all(store, code(run, *(schedule(name) for name in names)))
    return run


async def session(
    store: Store, session_id: str = "session-1", *, lease_ms: int = T0 + 20_000, hello: bytes = b""
) -> Lease:
    """A connected worker."""
    row = SessionRow(session_id, NAMESPACE, f"worker-of-{session_id}", "replica-1", 1, lease_ms, True, False, T0, hello)
    await store.open_session(row)
    return Lease(session_id, 1)


async def reloaded(store: Store, run: Run) -> Run:
    """The run as it is stored."""
    return (await store.load([run.run_id]))[run.run_id]
