"""Children and messages between runs: started once, told once, in order, and by rule when one of the two ends."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from romancy.v1.command_pb2 import (
    PARENT_CLOSE_POLICY_ABANDON,
    PARENT_CLOSE_POLICY_CANCEL,
    PARENT_CLOSE_POLICY_TERMINATE,
    ActivityResult,
    Command,
    CompensationArgument,
    ParentClosePolicy,
)
from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.wait_pb2 import WAIT_KIND_CHILD
from romancy.v1.worker_service_pb2 import (
    ConnectRequest,
    WorkflowTask,
    WorkflowTaskCommands,
    WorkflowTaskCompletion,
)
from romancy.v1.workflow_pb2 import (
    WORKFLOW_STATUS_CANCELLED,
    WORKFLOW_STATUS_COMPLETED,
    WORKFLOW_STATUS_FAILED,
    WORKFLOW_STATUS_RUNNING,
    WORKFLOW_STATUS_TERMINATED,
    WorkflowStatus,
)

from romancy_service.core.own import own_request_id
from tests.core.life import CANCEL, complete, fail
from tests.core.talk import cancel_child, child, recur, send, send_cancel
from tests.service.cluster import Tenant, refused, until
from tests.service.scripted_worker import ScriptedWorker

POLICIES = [PARENT_CLOSE_POLICY_CANCEL, PARENT_CLOSE_POLICY_TERMINATE, PARENT_CLOSE_POLICY_ABANDON]


async def begin(tenant: Tenant, *commands: Command, workflow_id: str = "parent") -> tuple[ScriptedWorker, str]:
    """A parent whose code asked for these, and the worker of it and of its children."""
    worker = await tenant.worker(workflows=["order", "kid"], workflow_slots=2_000)
    run_id = (await tenant.start(workflow_id)).run_id
    await worker.command(await worker.workflow_task(), *commands)
    return worker, run_id


def completion(task: WorkflowTask, *commands: Command) -> WorkflowTaskCompletion:
    """The code ran, and asked for these."""
    asked = WorkflowTaskCommands(commands=commands)
    return WorkflowTaskCompletion(token=task.token, seen_event_id=task.last_event_id, commands=asked)


async def task_of(worker: ScriptedWorker, workflow_type: str) -> WorkflowTask:
    """The next task of the parent or of a child, whichever came first."""
    passed = []
    while (task := await worker.workflow_task()).workflow_type != workflow_type:
        passed.append(task)
    worker.workflow_tasks.put(passed)
    return task


async def told(tenant: Tenant, run_id: str, kind: str) -> HistoryEvent:
    """The event of that kind in a run's history, once it is there."""

    async def there() -> bool:
        return kind in await tenant.kinds(run_id)

    await until(there, kind)
    return next(event for event in await tenant.history(run_id) if event.HasField(kind))  # type: ignore[arg-type]


async def parent_goes_on(worker: ScriptedWorker, tenant: Tenant, run_id: str, *commands: Command) -> None:
    """The parent's code answers all that it has not seen with these."""
    await tenant.signal(run_id, "go on")
    while True:
        task = await task_of(worker, "order")
        if any(event.HasField("signal_received") for event in task.events):
            break
        await worker.command(task)
    await worker.command(task, *commands)


async def status_of(tenant: Tenant, workflow_id: str) -> WorkflowStatus.ValueType:
    return (await tenant.newest(workflow_id)).info.status


async def test_a_child_runs_and_its_parent_gets_its_result(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant, child("kid:1"))
    started = (await told(tenant, run_id, "child_started")).child_started
    assert started.workflow_id == f"{run_id}/kid:1"
    task = await task_of(worker, "kid")
    begun = task.events[0].workflow_started
    assert (begun.parent.workflow_id, begun.parent.run_id, begun.parent.child_id) == ("parent", run_id, "kid:1")
    assert (task.run_id, begun.spec.task_queue) == (started.run_id, "queue")
    await worker.command(task, complete('"grown"'))
    closed = (await told(tenant, run_id, "child_closed")).child_closed
    assert (closed.run_id, closed.outcome.result.json) == (started.run_id, '"grown"')
    await tenant.errands_done(run_id, started.run_id)


async def test_what_a_parent_waits_for_names_its_children_and_messages(tenant: Tenant) -> None:
    _, run_id = await begin(tenant, child("kid:1", workflow_id="junior"))
    await told(tenant, run_id, "child_started")
    waits = (await tenant.get(run_id)).waits
    assert [(wait.id, wait.workflow_id) for wait in waits if wait.kind == WAIT_KIND_CHILD] == [("kid:1", "junior")]


async def test_a_child_whose_id_is_taken_is_not_started(tenant: Tenant) -> None:
    other = (await tenant.start("taken", workflow_type="other")).run_id
    _, run_id = await begin(tenant, child("kid:1", workflow_id="taken"))
    failed = (await told(tenant, run_id, "child_start_failed")).child_start_failed
    assert failed.failure.type == "WORKFLOW_ALREADY_OPEN"
    assert other in failed.failure.message


async def test_a_child_that_recurs_reports_its_last_end(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant, child("kid:1"))
    first = await task_of(worker, "kid")
    await worker.command(first, recur(workflow_type="kid", task_queue="queue"))
    second = await task_of(worker, "kid")
    await worker.command(second, complete())
    closed = (await told(tenant, run_id, "child_closed")).child_closed
    assert closed.run_id == second.run_id != first.run_id


async def test_cancelling_a_child_reaches_it_also_before_its_start_is_known(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant, child("kid:1"), cancel_child("kid:1"))
    await told(tenant, run_id, "child_cancel_delivered")
    task = await task_of(worker, "kid")
    while not any(event.HasField("workflow_cancel_requested") for event in task.events):
        await worker.command(task)
        task = await task_of(worker, "kid")
    await worker.command(task, CANCEL)
    closed = (await told(tenant, run_id, "child_closed")).child_closed
    assert closed.outcome.status == WORKFLOW_STATUS_CANCELLED


async def test_cancelling_a_parent_cancels_its_children_and_waits_for_them(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant, child("kid:1", workflow_id="junior"))
    await worker.command(await task_of(worker, "kid"))
    await told(tenant, run_id, "child_started")
    await tenant.cancel(run_id)
    task = await task_of(worker, "kid")
    assert task.events[-1].HasField("workflow_cancel_requested")
    assert "its parent" in task.events[-1].workflow_cancel_requested.reason
    await worker.command(task, CANCEL)
    while not (await tenant.get(run_id)).outcome.status:
        parent = await task_of(worker, "order")
        cancelled = any(event.HasField("workflow_cancel_requested") for event in parent.events)
        await worker.command(parent, *([CANCEL] if cancelled else []))
        if cancelled:
            break
    outcome = await tenant.result(run_id)
    assert outcome is not None
    assert outcome.status == WORKFLOW_STATUS_CANCELLED


@pytest.mark.parametrize("policy", POLICIES)
async def test_an_open_child_when_its_parent_completes(tenant: Tenant, policy: ParentClosePolicy.ValueType) -> None:
    worker, run_id = await begin(tenant, child("kid:1", workflow_id="junior", parent_close_policy=policy))
    await told(tenant, run_id, "child_started")
    await worker.command(await task_of(worker, "kid"))
    await parent_goes_on(worker, tenant, run_id, complete())
    await tenant.errands_done(run_id)
    if policy == PARENT_CLOSE_POLICY_CANCEL:
        task = await task_of(worker, "kid")
        assert task.events[-1].HasField("workflow_cancel_requested")
        await worker.command(task, CANCEL)
        await tenant.result((await tenant.newest("junior")).info.run_id)
        assert await status_of(tenant, "junior") == WORKFLOW_STATUS_CANCELLED
    else:
        terminated = policy == PARENT_CLOSE_POLICY_TERMINATE
        assert await status_of(tenant, "junior") == (
            WORKFLOW_STATUS_TERMINATED if terminated else WORKFLOW_STATUS_RUNNING
        )


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_child_asked_for_in_the_very_task_that_ends_its_parent(
    tenant: Tenant, policy: ParentClosePolicy.ValueType
) -> None:
    """It is never started, unless it is to outlive its parent."""
    worker, run_id = await begin(tenant, child("kid:1", workflow_id="junior", parent_close_policy=policy), complete())
    await tenant.errands_done(run_id)
    if policy == PARENT_CLOSE_POLICY_ABANDON:
        assert await status_of(tenant, "junior") == WORKFLOW_STATUS_RUNNING
        await worker.command(await task_of(worker, "kid"), complete())
    else:
        listed = await tenant.cluster.store.latest([(tenant.namespace, "junior")])
        assert not listed


async def test_a_parent_that_is_terminated_terminates_or_cancels_what_is_open(tenant: Tenant) -> None:
    worker, run_id = await begin(
        tenant,
        child("kid:1", workflow_id="k1", parent_close_policy=PARENT_CLOSE_POLICY_TERMINATE),
        child("kid:2", workflow_id="k2", parent_close_policy=PARENT_CLOSE_POLICY_CANCEL),
    )
    for _ in range(2):
        await worker.command(await task_of(worker, "kid"))
    await tenant.terminate(run_id)
    await tenant.errands_done(run_id)
    assert await status_of(tenant, "k1") == WORKFLOW_STATUS_TERMINATED
    assert (await tenant.newest("k2")).HasField("cancellation")


async def test_a_child_is_closed_with_its_parent_however_long_ago_it_was_started(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant, child("kid:1"))
    await told(tenant, run_id, "child_started")
    while await tenant.cluster.store.forget_requests(tenant.namespace, 2**62, 1_000):
        pass
    await parent_goes_on(worker, tenant, run_id, complete())
    kid = (await tenant.newest(f"{run_id}/kid:1")).info.run_id
    await told(tenant, kid, "workflow_cancel_requested")


@pytest.mark.parametrize("policy", POLICIES)
async def test_parent_and_child_that_end_at_the_same_time_leave_nothing_behind(
    tenant: Tenant, policy: ParentClosePolicy.ValueType
) -> None:
    worker, run_id = await begin(tenant, child("kid:1", workflow_id="junior", parent_close_policy=policy))
    await told(tenant, run_id, "child_started")
    kid = await task_of(worker, "kid")
    await tenant.signal(run_id)
    parent = await task_of(worker, "order")
    completions = [completion(task, complete()) for task in (parent, kid)]
    await worker.send(ConnectRequest(workflow_task_completions=completions))
    await tenant.result(run_id)
    await tenant.result(kid.run_id)
    await tenant.errands_done(run_id, kid.run_id)
    assert await status_of(tenant, "junior") in (WORKFLOW_STATUS_COMPLETED, WORKFLOW_STATUS_TERMINATED)


async def test_an_end_that_its_parent_does_not_wait_for_any_more_is_dropped(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant, child("kid:1", parent_close_policy=PARENT_CLOSE_POLICY_ABANDON))
    kid = await task_of(worker, "kid")
    await told(tenant, run_id, "child_started")
    await tenant.terminate(run_id)
    events = len(await tenant.history(run_id))
    await worker.command(kid, complete())
    await tenant.result(kid.run_id)
    await tenant.errands_done(run_id, kid.run_id)
    assert len(await tenant.history(run_id)) == events


async def test_a_workflow_that_took_the_childs_id_later_is_left_alone(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant, child("kid:1", workflow_id="junior"))
    kid = await task_of(worker, "kid")
    await worker.command(kid, complete())
    await told(tenant, run_id, "child_closed")
    await tenant.start("junior", workflow_type="other")
    await parent_goes_on(worker, tenant, run_id, cancel_child("kid:1"), complete())
    await tenant.errands_done(run_id)
    newest = await tenant.newest("junior")
    assert (newest.info.workflow_type, newest.info.status) == ("other", WORKFLOW_STATUS_RUNNING)
    assert not newest.HasField("cancellation")


async def test_a_completed_child_is_undone_with_its_result(tenant: Tenant) -> None:
    command = child("kid:1", "refund")
    command.start_child.compensation.arguments.append(CompensationArgument(activity_result=ActivityResult()))
    worker, run_id = await begin(tenant, command)
    await worker.command(await task_of(worker, "kid"), complete('"grown"'))
    await told(tenant, run_id, "child_closed")
    await parent_goes_on(worker, tenant, run_id, fail())
    refund = await worker.activity()
    assert (refund.activity_id, [a.json for a in refund.arguments]) == ("undo-child/kid:1", ['"grown"'])
    await worker.complete(refund)
    outcome = await tenant.result(run_id)
    assert outcome is not None
    assert outcome.status == WORKFLOW_STATUS_FAILED


@pytest.mark.parametrize("count", [150, pytest.param(1_000, marks=pytest.mark.slow)])
async def test_many_children_of_one_parent_all_run_and_report(tenant: Tenant, count: int) -> None:
    worker, run_id = await begin(tenant, *(child(f"kid:{n}") for n in range(1, count + 1)))
    seen: set[str] = set()
    while len(seen) < count:
        task = await worker.workflow_task()
        if task.workflow_type == "kid":
            await worker.command(task, complete())
        else:
            await worker.command(task)
            seen |= {event.child_closed.child_id for event in task.events if event.HasField("child_closed")}
    assert len(seen) == count
    await tenant.errands_done(run_id)


# Messages -------------------------------------------------------------------------------------------------------------


async def failures(tenant: Tenant, run_id: str, count: int) -> Sequence[str]:
    """How the run's messages ended, by type of failure."""

    async def all_sent() -> bool:
        return (await tenant.kinds(run_id)).count("send_finished") == count

    await until(all_sent, "all messages are sent")
    ended = {
        e.send_finished.send_id: e.send_finished for e in await tenant.history(run_id) if e.HasField("send_finished")
    }
    return [ended[str(n)].failure.type for n in range(1, count + 1)]


async def test_messages_arrive_once_and_in_order_whoever_delivers_them(tenant: Tenant) -> None:
    target = (await tenant.start("target", workflow_type="other")).run_id
    _, run_id = await begin(tenant, *(send(str(n), "target", f"m{n:03}") for n in range(1, 61)))
    for replica in tenant.cluster.replicas:
        replica.relay._courier.visit(run_id)
    assert set(await failures(tenant, run_id, 60)) == {""}
    assert await tenant.signals(target) == [f"m{n:03}" for n in range(1, 61)]
    signal = (await tenant.history(target))[1].signal_received.signal
    assert signal.identity == f"run {run_id}"


async def test_a_message_to_nobody_or_to_a_closed_run_is_answered_by_why(tenant: Tenant) -> None:
    closed = (await tenant.start("closed", workflow_type="other")).run_id
    await tenant.terminate(closed)
    _, run_id = await begin(tenant, send("1", "nobody"), send("2", "closed"), send_cancel("3", "closed"))
    assert await failures(tenant, run_id, 3) == ["WORKFLOW_NOT_FOUND", "WORKFLOW_CLOSED", "WORKFLOW_CLOSED"]


async def test_a_request_to_stop_is_a_message_too(tenant: Tenant) -> None:
    target = (await tenant.start("target", workflow_type="other")).run_id
    _, run_id = await begin(tenant, send_cancel("1", "target", "enough"))
    assert await failures(tenant, run_id, 1) == [""]
    requested = (await tenant.history(target))[-1].workflow_cancel_requested
    assert (requested.reason, requested.identity) == ("enough", f"run {run_id}")


async def test_messages_of_a_run_that_ended_still_arrive(tenant: Tenant) -> None:
    target = (await tenant.start("target", workflow_type="other")).run_id
    _, run_id = await begin(tenant, send("1", "target", "a"), send("2", "target", "b"), complete())
    await tenant.errands_done(run_id)
    assert await tenant.signals(target) == ["a", "b"]


async def test_a_child_can_be_told_something_in_the_task_that_starts_it(tenant: Tenant) -> None:
    _, run_id = await begin(tenant, child("kid:1", workflow_id="junior"), send("1", "junior", "hello"))
    assert await failures(tenant, run_id, 1) == [""]
    assert await tenant.signals((await tenant.newest("junior")).info.run_id) == ["hello"]


async def test_a_run_can_tell_itself_something(tenant: Tenant) -> None:
    _, run_id = await begin(tenant, send("1", "parent", "note"))
    assert await failures(tenant, run_id, 1) == [""]
    assert await tenant.signals(run_id) == ["note"]


async def test_nobody_else_can_be_taken_for_a_child(tenant: Tenant) -> None:
    parent_id = (await tenant.start("parent")).run_id
    other = (await tenant.start("other", workflow_type="other", request_id=f"child/{parent_id}/kid:1")).run_id
    own = own_request_id("child", parent_id, "kid:1")
    refusal = await refused(tenant.start("other", workflow_type="other", request_id=own))
    assert refusal.field == "request_id"
    worker = await tenant.worker(workflow_slots=20)
    task = await worker.workflow_task()
    await worker.command(task, child("kid:1"))

    async def begun() -> bool:
        return "child_started" in await tenant.kinds(parent_id)

    await until(begun, "the child was started")
    started = [e.child_started.run_id for e in await tenant.history(parent_id) if e.HasField("child_started")]
    assert other not in started


async def test_a_failed_message_is_not_delivered_after_all(tenant: Tenant) -> None:
    """What one replica has found undeliverable no other one delivers later."""
    _, run_id = await begin(tenant, send("1", "late"))
    assert await failures(tenant, run_id, 1) == ["WORKFLOW_NOT_FOUND"]
    late = (await tenant.start("late", workflow_type="other")).run_id
    key = (tenant.namespace, own_request_id("send", run_id, 1))
    assert (await tenant.cluster.store.find_requests([key]))[key].method == "LeftOut"
    assert await tenant.signals(late) == []
