"""Two replicas on one Postgres: runs, workers and clients move between them, and neither steps on the other."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable

import grpc
import pytest_asyncio

from romancy.v1.worker_service_pb2 import ACKNOWLEDGEMENT_RESULT_ACCEPTED, ACKNOWLEDGEMENT_RESULT_STALE
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_COMPLETED
from romancy.v1.workflow_service_pb2 import StartWorkflowsRequest
from romancy.v1.workflow_service_pb2_grpc import WorkflowServiceStub

from romancy import Client, Worker, WorkflowContext, activity, activity_info, workflow
from tests.core.life import complete, schedule
from tests.service.cluster import Cluster, Tenant, cluster


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pair(fresh_postgres: Callable[[], str]) -> AsyncIterator[Cluster]:
    """Two replicas."""
    async with cluster(fresh_postgres(), replicas=2) as up:
        yield up


@pytest_asyncio.fixture(loop_scope="session")
async def tenant(pair: Cluster) -> AsyncIterator[Tenant]:
    """A namespace on both."""
    async with pair.tenant() as tenant:
        yield tenant


def _stubs(tenant: Tenant) -> list[WorkflowServiceStub]:
    return [WorkflowServiceStub(tenant.open_channel(replica.port)) for replica in tenant.cluster.replicas]


async def test_both_start_the_same_64_ids_in_opposite_order_and_one_run_of_each_is_there(tenant: Tenant) -> None:
    one, two = _stubs(tenant)
    for attempt in range(5):
        requests = [tenant.start_request(f"order-{attempt}-{n:02}") for n in range(64)]
        async with asyncio.timeout(20):
            answers = await asyncio.gather(
                one.StartWorkflows(StartWorkflowsRequest(requests=requests)),
                two.StartWorkflows(StartWorkflowsRequest(requests=requests[::-1])),
            )
        pairs = zip(answers[0].results, reversed(answers[1].results), strict=True)
        for first, second in pairs:
            started = [r.response.run_id for r in (first, second) if r.HasField("response")]
            refused = [r.error.reason for r in (first, second) if r.HasField("error")]
            assert (len(started), refused) == (1, ["WORKFLOW_ALREADY_OPEN"])


async def test_the_same_request_ids_on_both_start_one_run_each(tenant: Tenant) -> None:
    one, two = _stubs(tenant)
    requests = [tenant.start_request(f"order-{n:02}", request_id=f"request-{n}") for n in range(64)]
    answers = await asyncio.gather(
        one.StartWorkflows(StartWorkflowsRequest(requests=requests)),
        two.StartWorkflows(StartWorkflowsRequest(requests=requests[::-1])),
    )
    first = [result.response.run_id for result in answers[0].results]
    second = [result.response.run_id for result in reversed(answers[1].results)]
    assert first == second


async def test_a_run_goes_on_wherever_its_worker_and_its_client_are(tenant: Tenant) -> None:
    one, two = tenant.cluster.replicas
    worker = tenant.new_worker(port=one.port)
    await worker.connect()
    stub = _stubs(tenant)[1]
    run = await stub.StartWorkflow(tenant.start_request("order"))
    await worker.command(await worker.workflow_task(), schedule("pay:1"))
    activity = await worker.activity()
    worker.channel = tenant.open_channel(two.port)
    await worker.cut()
    await worker.connect(tokens=[activity.token])
    assert (await worker.complete(activity)).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    await worker.command(await worker.workflow_task(), complete())
    outcome = await tenant.result(run.run_id)
    assert outcome is not None
    assert outcome.status == WORKFLOW_STATUS_COMPLETED


async def test_a_session_that_moved_is_ended_on_the_replica_that_it_left(tenant: Tenant) -> None:
    one, two = tenant.cluster.replicas
    worker = tenant.new_worker(port=one.port)
    await worker.connect()
    await tenant.start("order")
    task = await worker.workflow_task()
    twin = tenant.new_worker(port=two.port)
    twin.welcome.session_id = worker.welcome.session_id
    await twin.connect(tokens=[task.token])
    # Until the older replica notices, its stream is open, and its words count no more.
    late = asyncio.create_task(worker.command(task, complete()))
    await asyncio.wait((late, worker.ended), return_when=asyncio.FIRST_COMPLETED)
    if late.done() and late.exception() is None:
        assert late.result().result == ACKNOWLEDGEMENT_RESULT_STALE
    late.cancel()
    assert (await twin.command(task, complete())).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    error = await worker.end()
    assert error is not None
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_task_without_a_free_slot_here_is_taken_by_the_other_replica(tenant: Tenant) -> None:
    one, two = tenant.cluster.replicas
    worker = tenant.new_worker(port=two.port)
    await worker.connect()
    stub = WorkflowServiceStub(tenant.open_channel(one.port))
    for n in range(20):
        await stub.StartWorkflow(tenant.start_request(f"order-{n}"))
        task = await worker.workflow_task()
        await worker.command(task, complete())


async def test_many_types_that_nobody_serves_are_told_to_the_other_replica(tenant: Tenant) -> None:
    requests = [tenant.start_request(f"order-{n}", workflow_type=f"type-{n}-{'x' * 200}") for n in range(200)]
    await tenant.workflows.StartWorkflows(StartWorkflowsRequest(requests=requests))
    types = [request.spec.workflow_type for request in requests]
    worker = await tenant.worker(workflows=types, activities=[], workflow_slots=200)
    for _ in requests:
        await worker.workflow_task()


@workflow
async def moved(ctx: WorkflowContext, number: int) -> int:
    """Three steps, one after the other."""
    return await count(number) + await count(number) + await count(number)


EFFECTS: Counter[str] = Counter()


@activity
async def count(number: int) -> int:
    EFFECTS[activity_info().idempotency_key] += 1
    await asyncio.sleep(0.05)
    return number


async def test_work_goes_on_while_connections_are_cut_and_moved_all_the_time(tenant: Tenant) -> None:
    """Each cut loses frames in both directions: what was said is said again, and every step is done and recorded once."""
    proxy = tenant.cluster.proxy
    target = f"127.0.0.1:{proxy.port}"
    EFFECTS.clear()
    worker = Worker(target, namespace=tenant.namespace, workflows=[moved], activities=[count], activity_slots=5)
    async with worker, Client(target, namespace=tenant.namespace) as client, asyncio.timeout(60):
        calls = [asyncio.create_task(client.execute_workflow(moved, n, id=f"moved-{n}")) for n in range(100)]
        while not all(call.done() for call in calls):
            proxy.move(1 - proxy.turn)
            await asyncio.wait(calls, timeout=0.4, return_when=asyncio.ALL_COMPLETED)
        assert await asyncio.gather(*calls) == [3 * n for n in range(100)]
    assert len(EFFECTS) == 300
    assert set(EFFECTS.values()) == {1}, "a worker that is alive runs nothing twice"
