"""Many at once: a thousand workflows through the SDK, and the same ids from two sides."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import grpc.aio
import pytest

from romancy.v1.workflow_pb2 import WorkflowSpec
from romancy.v1.workflow_service_pb2 import (
    ID_CONFLICT_POLICY_FAIL,
    ID_CONFLICT_POLICY_USE_EXISTING,
    IdConflictPolicy,
    StartWorkflowRequest,
    StartWorkflowsRequest,
    StartWorkflowsResponse,
)
from romancy.v1.workflow_service_pb2_grpc import WorkflowServiceStub

from romancy import Client, WorkflowFailed
from tests.faults.scene import Scene, free_port, scene
from tests.faults.tour import FAILS, STEPS, tour

MANY = 1_000
IDS = 64
ROUNDS = 8

pytestmark = pytest.mark.timeout(180)


async def test_a_thousand_workflows_of_ten_activities_with_retries_and_sagas_end_as_they_must(stage: Scene) -> None:
    await stage.service()
    for name, replays_always in (("worker-1", ""), ("worker-2", "1")):
        stage.start(name, "tests.faults.tour", f"127.0.0.1:{stage.port}", name, ROMANCY_REPLAY_ALWAYS=replays_always)
    async with stage.client() as client:
        outcomes = await asyncio.gather(*(_travel(client, number) for number in range(MANY)))
    assert outcomes == [_expected(number) for number in range(MANY)]
    histories = await stage.finish(losses=False)
    assert len(histories) == MANY
    undone = Counter(name.startswith("undo/") for name in stage.effects())
    assert undone == {False: STEPS * MANY, True: STEPS * MANY // FAILS}


async def _travel(client: Client, number: int) -> int | str:
    handle = await client.start_workflow(tour, number, id=f"tour-{number}")
    try:
        return await handle.result()
    except WorkflowFailed as failed:
        return failed.message


def _expected(number: int) -> int | str:
    return f"tour {number} came to nothing" if number % FAILS == 0 else sum(range(number, number + STEPS))


@pytest.mark.parametrize("policy", [ID_CONFLICT_POLICY_USE_EXISTING, ID_CONFLICT_POLICY_FAIL])
async def test_two_replicas_that_start_the_same_ids_in_opposite_order_start_each_once(
    fresh_postgres: Callable[[], str], tmp_path: Path, policy: IdConflictPolicy.ValueType
) -> None:
    ports = [free_port(), free_port()]
    async with scene(tmp_path, fresh_postgres()) as stage:
        for port in ports:
            await stage.service(port=port)
        async with (
            grpc.aio.insecure_channel(f"127.0.0.1:{ports[0]}") as left,
            grpc.aio.insecure_channel(f"127.0.0.1:{ports[1]}") as right,
        ):
            started: set[str] = set()
            for batch in range(ROUNDS):
                ids = [f"{batch}/{number}" for number in range(IDS)]
                async with asyncio.timeout(5):  # no stall: a deadlock that the database resolves takes a second
                    one, other = await asyncio.gather(_start(left, ids, policy), _start(right, ids[::-1], policy))
                _check(one, StartWorkflowsResponse(results=other.results[::-1]), policy)
                started |= {result.response.run_id for result in (*one.results, *other.results)} - {""}
        assert started == (await stage.histories()).keys(), "what is answered is what is stored"
        assert len(started) == ROUNDS * IDS


async def _start(
    channel: grpc.aio.Channel, ids: list[str], policy: IdConflictPolicy.ValueType
) -> StartWorkflowsResponse:
    spec = WorkflowSpec(workflow_type="tour", task_queue="nobody")
    requests = [
        StartWorkflowRequest(
            namespace="default", workflow_id=name, spec=spec, request_id=str(uuid.uuid4()), id_conflict_policy=policy
        )
        for name in ids
    ]
    return await WorkflowServiceStub(channel).StartWorkflows(StartWorkflowsRequest(requests=requests))


def _check(one: StartWorkflowsResponse, other: StartWorkflowsResponse, policy: IdConflictPolicy.ValueType) -> None:
    for left, right in zip(one.results, other.results, strict=True):
        if policy == ID_CONFLICT_POLICY_USE_EXISTING:
            assert left.response.run_id == right.response.run_id != ""
            assert left.response.started != right.response.started
        else:
            reasons = {result.error.reason for result in (left, right) if result.HasField("error")}
            assert left.HasField("response") != right.HasField("response"), (left, right)
            assert reasons == {"WORKFLOW_ALREADY_OPEN"}
