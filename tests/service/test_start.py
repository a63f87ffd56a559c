"""Starting runs: ids, policies, request ids, many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import grpc

from romancy.v1.admin_service_pb2 import DescribeTaskQueueRequest
from romancy.v1.workflow_pb2 import (
    WORKFLOW_STATUS_COMPLETED,
    WORKFLOW_STATUS_FAILED,
    WORKFLOW_STATUS_RUNNING,
    WORKFLOW_STATUS_TERMINATED,
    WorkflowSpec,
)
from romancy.v1.workflow_service_pb2 import (
    ID_CONFLICT_POLICY_TERMINATE_EXISTING,
    ID_CONFLICT_POLICY_USE_EXISTING,
    ID_REUSE_POLICY_ALLOW_IF_FAILED,
    ID_REUSE_POLICY_REJECT,
    StartWorkflowRequest,
    StartWorkflowResponse,
    StartWorkflowsRequest,
)

from romancy_service.starter import Starter
from romancy_service.store.store import Store
from tests.core.life import complete, fail
from tests.service.cluster import Tenant, json, refused, seconds


async def test_a_started_workflow_runs_and_its_result_comes_with_the_same_call(tenant: Tenant) -> None:
    worker = await tenant.worker()
    call = asyncio.create_task(tenant.start("order-1", arguments=[json('"book"')], wait=seconds(20)))
    task = await worker.workflow_task()
    assert task.workflow_id == "order-1"
    assert task.attempt == 1
    assert [e.workflow_started.spec.arguments[0].json for e in task.events] == ['"book"']
    acknowledged = await worker.command(task, complete('"done"'))
    response = await call
    assert acknowledged.last_event_id == 2
    assert response.started
    assert response.outcome.status == WORKFLOW_STATUS_COMPLETED
    assert response.outcome.result.json == '"done"'
    assert await tenant.kinds(response.run_id) == ["workflow_started", "workflow_completed"]


async def test_a_start_without_an_id_gets_one(tenant: Tenant) -> None:
    first, second = await tenant.start(), await tenant.start()
    assert first.workflow_id
    assert first.workflow_id != second.workflow_id


async def test_a_start_without_a_queue_means_the_default_one(tenant: Tenant) -> None:
    run = await tenant.start(task_queue="")
    assert (await tenant.get(run.run_id)).info.task_queue == "default"
    assert (await tenant.history(run.run_id))[0].workflow_started.spec.task_queue == "default"
    queue = await tenant.admin.DescribeTaskQueue(DescribeTaskQueueRequest(namespace=tenant.namespace))
    assert [backlog.type for backlog in queue.backlogs] == ["order"]
    worker = await tenant.worker(queue="default")
    assert (await worker.workflow_task()).run_id == run.run_id


async def test_the_same_request_id_starts_once_also_at_the_same_time(tenant: Tenant) -> None:
    answers = await asyncio.gather(*(tenant.start("order", request_id="once") for _ in range(20)))
    assert len({answer.run_id for answer in answers}) == 1
    assert all(answer.started for answer in answers)


class _Between:
    """A database in which something happens between a start's first look and its second."""

    def __init__(self, store: Store, happens: Callable[[], Awaitable[object]]) -> None:
        self._store = store
        self._happens = happens
        self._looks = 0

    async def _look(self) -> None:
        self._looks += 1
        if self._looks == 2:
            await self._happens()

    async def find_requests(self, ids: Sequence[tuple[str, str]]) -> object:
        await self._look()
        return await self._store.find_requests(ids)

    async def latest(self, ids: Sequence[tuple[str, str]]) -> object:
        await self._look()
        return await self._store.latest(ids)


async def test_a_start_that_another_try_of_it_overtakes_is_that_start(tenant: Tenant) -> None:
    node = tenant.cluster.replicas[0].node

    def request() -> StartWorkflowRequest:
        spec = WorkflowSpec(workflow_type="order", task_queue="main")
        once = ID_REUSE_POLICY_REJECT
        return StartWorkflowRequest(workflow_id="order", request_id="once", spec=spec, id_reuse_policy=once)

    async def other_try() -> StartWorkflowResponse:
        return await Starter(node.engine, node.store).start(tenant.namespace, request(), "other")

    looks = _Between(node.store, other_try)
    answer = await Starter(node.engine, looks).start(tenant.namespace, request(), "one")  # type: ignore[arg-type]
    assert answer.started
    assert answer == await other_try()


async def test_the_same_request_id_gets_the_same_answer_after_the_run_closed(tenant: Tenant) -> None:
    worker = await tenant.worker()
    first = await tenant.start("order", request_id="once")
    await worker.command(await worker.workflow_task(), complete())
    assert await tenant.start("order", request_id="once") == first


async def test_a_request_id_of_another_rpc_is_refused(tenant: Tenant) -> None:
    run = await tenant.start("order", request_id="mine")
    refusal = await refused(tenant.cancel(run.run_id, request_id="mine"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REQUEST_ID_REUSED")
    await tenant.cancel(run.run_id, request_id="cancel")
    refusal = await refused(tenant.start("other", request_id="cancel"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REQUEST_ID_REUSED")


async def test_a_request_id_of_another_start_is_refused(tenant: Tenant) -> None:
    """Else its client would take the run of another workflow for its own."""
    first = await tenant.start("order", request_id="mine")
    others = [
        tenant.start("other", request_id="mine"),
        tenant.start("order", request_id="mine", workflow_type="refund"),
        tenant.start("", request_id="mine"),
    ]
    for other in others:
        refusal = await refused(other)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REQUEST_ID_REUSED")
        assert refusal.metadata["method"] == "StartWorkflow"
    assert await tenant.start("order", request_id="mine") == first
    made_up = await tenant.start("", request_id="nameless")
    assert await tenant.start("", request_id="nameless") == made_up


async def test_an_open_workflow_id_is_refused_unless_the_request_says_what_then(tenant: Tenant) -> None:
    run = await tenant.start("order")
    refusal = await refused(tenant.start("order"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "WORKFLOW_ALREADY_OPEN")
    assert refusal.metadata["run_id"] == run.run_id


async def test_use_existing_answers_with_the_open_run_and_does_so_again_after_it_closed(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run = await tenant.start("order")
    policy = {"id_conflict_policy": ID_CONFLICT_POLICY_USE_EXISTING, "request_id": "again"}
    found = await tenant.start("order", **policy)
    assert (found.run_id, found.started) == (run.run_id, False)
    await worker.command(await worker.workflow_task(), complete())
    assert await tenant.start("order", **policy) == found


async def test_terminate_existing_ends_the_open_run_and_starts_the_new_one(tenant: Tenant) -> None:
    run = await tenant.start("order")
    new = await tenant.start("order", id_conflict_policy=ID_CONFLICT_POLICY_TERMINATE_EXISTING)
    assert new.started
    assert (await tenant.get(run.run_id)).info.status == WORKFLOW_STATUS_TERMINATED
    assert (await tenant.get(new.run_id)).info.status == WORKFLOW_STATUS_RUNNING


async def test_many_that_terminate_the_existing_run_leave_exactly_one_open(tenant: Tenant) -> None:
    policy = ID_CONFLICT_POLICY_TERMINATE_EXISTING
    runs = await asyncio.gather(*(tenant.start("order", id_conflict_policy=policy) for _ in range(10)))
    statuses = [(await tenant.get(run.run_id)).info.status for run in runs]
    assert sorted(statuses) == [WORKFLOW_STATUS_RUNNING] + [WORKFLOW_STATUS_TERMINATED] * 9


async def test_reuse_policies_look_at_how_the_last_run_ended(tenant: Tenant) -> None:
    worker = await tenant.worker()
    await tenant.start("order")
    await worker.command(await worker.workflow_task(), fail())
    refusal = await refused(tenant.start("order", id_reuse_policy=ID_REUSE_POLICY_REJECT))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "WORKFLOW_ID_USED")
    again = await tenant.start("order", id_reuse_policy=ID_REUSE_POLICY_ALLOW_IF_FAILED)
    await worker.command(await worker.workflow_task(), complete())
    assert (await tenant.get(again.run_id)).info.status == WORKFLOW_STATUS_COMPLETED
    refusal = await refused(tenant.start("order", id_reuse_policy=ID_REUSE_POLICY_ALLOW_IF_FAILED))
    assert refusal.reason == "WORKFLOW_ID_USED"
    assert (await tenant.start("order")).started


async def test_many_starts_in_one_call_succeed_or_fail_each_for_itself(tenant: Tenant) -> None:
    open_run = await tenant.start("open")
    requests = [
        tenant.start_request("new"),
        tenant.start_request("open"),
        tenant.start_request("bad", workflow_type=""),
        tenant.start_request("open", id_conflict_policy=ID_CONFLICT_POLICY_USE_EXISTING),
        tenant.start_request("twice", request_id="t"),
        tenant.start_request("twice", request_id="t"),
    ]
    results = (await tenant.workflows.StartWorkflows(StartWorkflowsRequest(requests=requests))).results
    assert results[0].response.started
    assert (results[1].error.code, results[1].error.reason) == (6, "WORKFLOW_ALREADY_OPEN")
    assert (results[2].error.reason, results[2].error.metadata["field"]) == ("INVALID_FIELD", "spec.workflow_type")
    assert results[3].response.run_id == open_run.run_id
    assert results[4].response.run_id == results[5].response.run_id


async def test_a_thousand_starts_in_one_call_are_taken_and_one_more_is_refused(tenant: Tenant) -> None:
    requests = [tenant.start_request(f"order-{n}") for n in range(1_000)]
    results = (await tenant.workflows.StartWorkflows(StartWorkflowsRequest(requests=requests))).results
    assert len({result.response.run_id for result in results}) == 1_000
    refusal = await refused(tenant.workflows.StartWorkflows(StartWorkflowsRequest(requests=[*requests, requests[0]])))
    assert (refusal.code, refusal.field) == (grpc.StatusCode.INVALID_ARGUMENT, "requests")
    assert refusal.metadata["limit"] == "1000"


async def test_starts_of_one_id_at_the_same_time_open_one_run(tenant: Tenant) -> None:
    tenants = [tenant.workflows.StartWorkflow(tenant.start_request("order")) for _ in range(20)]
    outcomes = await asyncio.gather(*tenants, return_exceptions=True)
    started = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert len(started) == 1


async def test_what_a_run_was_started_with_is_shown(tenant: Tenant) -> None:
    run = await tenant.start(
        "order",
        identity="alice",
        priority=7,
        build_id="v1",
        headers={"traceparent": "00-1"},
        memo={"note": json('"urgent"')},
        arguments=[json("1"), json("2")],
    )
    shown = await tenant.get(run.run_id)
    assert shown.info.memo["note"].json == '"urgent"'
    assert (shown.info.priority, shown.info.build_id, shown.info.workflow_type) == (7, "v1", "order")
    assert shown.spec.headers["traceparent"] == "00-1"
    assert [argument.json for argument in shown.spec.arguments] == ["1", "2"]
    history = await tenant.history(run.run_id)
    assert history[0].workflow_started.identity == "alice"
    assert shown.waits, "an open run says what it waits for"


async def test_a_failed_run_has_its_failure_as_outcome(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run = await tenant.start("order")
    await worker.command(await worker.workflow_task(), fail("no stock"))
    outcome = await tenant.result(run.run_id)
    assert outcome is not None
    assert (outcome.status, outcome.failure.message, outcome.failure.type) == (
        WORKFLOW_STATUS_FAILED,
        "no stock",
        "Error",
    )
