"""A service that is asked to stop: it takes nothing new, says so, finishes what is under way, and leaves its workers' tasks."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace

import grpc
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from romancy.v1.worker_service_pb2 import ACKNOWLEDGEMENT_RESULT_ACCEPTED
from romancy.v1.workflow_service_pb2 import WaitResultsRequest, WatchHistoryRequest
from romancy.v1.workflow_service_pb2_grpc import WorkflowServiceStub

from tests.core.life import complete, schedule
from tests.service.cluster import QUICK, Cluster, Tenant, cluster, refusal_of, refused, seconds, until

NO_PATIENCE = replace(QUICK, drain_ms=500)


@pytest_asyncio.fixture(loop_scope="session")
async def stopping(fresh_postgres: Callable[[], str]) -> AsyncIterator[tuple[Tenant, AsyncExitStack]]:
    """Two services on one database, each with its proxy; the first is stopped by closing the stack."""
    database = fresh_postgres()
    async with AsyncExitStack() as first:
        going = await first.enter_async_context(cluster(database, limits=NO_PATIENCE))
        async with cluster(database, limits=NO_PATIENCE) as staying, staying.tenant() as tenant:
            both = Cluster(database, [*going.replicas, *staying.replicas], staying.proxy)
            await until(_know_each_other(both), "they know each other")
            yield Tenant(both, tenant.namespace), first


def _know_each_other(both: Cluster) -> Callable[[], object]:
    async def known() -> bool:
        return all(replica.node.dispatch.has_peers for replica in both.replicas)

    return known


async def test_workers_of_a_replica_that_stops_go_on_at_another_one_without_losing_anything(
    stopping: tuple[Tenant, AsyncExitStack],
) -> None:
    tenant, first = stopping
    going, staying = tenant.cluster.replicas
    worker = tenant.new_worker(port=going.port)
    await worker.connect()
    run = await tenant.start("order")
    await worker.command(await worker.workflow_task(), schedule("pay:1"), schedule("ship:1"))
    pay, ship = await worker.activity(), await worker.activity()
    waiting = asyncio.create_task(tenant.result(run.run_id))
    stop = asyncio.create_task(first.aclose())
    async with asyncio.timeout(10):
        await worker.drained.wait()
    error = await worker.end()
    assert error is not None
    refusal = refusal_of(error)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    worker.channel = tenant.open_channel(staying.port)
    await worker.connect(tokens=[pay.token, ship.token])
    await stop
    for task in (pay, ship):
        assert (await worker.complete(task)).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    done = 0
    while done < 2:
        task_ = await worker.workflow_task()
        done += sum(event.HasField("activity_completed") for event in task_.events if event.event_id > 3)
        await worker.command(task_, *([complete()] if done == 2 else []))
    assert await waiting is not None
    assert "activity_attempt_failed" not in await tenant.kinds(run.run_id)
    await tenant.close()


async def test_a_replica_that_stops_says_that_it_does_not_serve_and_admits_nobody(
    stopping: tuple[Tenant, AsyncExitStack],
) -> None:
    tenant, first = stopping
    going, _ = tenant.cluster.replicas
    channel = tenant.open_channel(going.port)
    watch = health_pb2_grpc.HealthStub(channel).Watch(
        health_pb2.HealthCheckRequest(service="romancy.v1.WorkflowService")
    )
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    # A call that waits keeps the replica draining, so that what it answers meanwhile can be seen.
    worker = tenant.new_worker(port=going.port)
    await worker.connect()
    stop = asyncio.create_task(first.aclose())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()
    await stop
    await tenant.close()


async def test_a_wait_for_a_result_at_a_replica_that_stops_ends_and_can_be_asked_again_elsewhere(
    stopping: tuple[Tenant, AsyncExitStack],
) -> None:
    tenant, first = stopping
    going, _ = tenant.cluster.replicas
    stub = WorkflowServiceStub(tenant.open_channel(going.port))
    waiting = asyncio.ensure_future(stub.StartWorkflow(tenant.start_request("order", wait=seconds(30), request_id="r")))

    async def begun() -> bool:
        return await tenant.cluster.replicas[1].node.store.latest([(tenant.namespace, "order")]) != {}

    await until(begun, "the run is there")
    await first.aclose()
    refusal = await refused(waiting)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    again = await tenant.start("order", request_id="r")
    assert again.started
    await tenant.close()


async def test_streams_that_wait_at_a_replica_that_stops_end_with_the_reason(
    stopping: tuple[Tenant, AsyncExitStack],
) -> None:
    tenant, first = stopping
    going, staying = tenant.cluster.replicas
    run = await WorkflowServiceStub(tenant.open_channel(staying.port)).StartWorkflow(tenant.start_request("order"))
    stub = WorkflowServiceStub(tenant.open_channel(going.port))
    watch = stub.WatchHistory(WatchHistoryRequest(workflow=tenant.ref(run.run_id)))
    await watch.read()
    wait = stub.WaitResults()
    await wait.write(WaitResultsRequest(namespace=tenant.namespace, run_ids=[run.run_id, "unknown"]))
    await wait.read()
    await first.aclose()
    for stream in (watch, wait):
        refusal = await refused(stream.read())
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    await tenant.close()


def test_a_process_that_is_asked_to_stop_exits_with_0_and_says_so(tmp_path: object) -> None:
    command = [
        sys.executable,
        "-m",
        "romancy_service",
        "dev",
        "--database",
        f"{tmp_path}/r.db",
        "--listen",
        "127.0.0.1:0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "serving" in line:
                process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert "draining" in lines[-2]
    assert "stopped" in lines[-1]
