"""The service and workers die while workflows wait to begin: each begins once, not before its delay is over, and its timeouts
count from then on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import pytest

from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_COMPLETED, WORKFLOW_STATUS_TIMED_OUT

from romancy import Client, WorkflowHandle
from tests.faults.actor import Actor
from tests.faults.latecomers import idler, reader, recurrer
from tests.faults.scene import Scene, connected, until

DELAY_S = 5.0
TIMEOUT_S = 2.0
ROUNDS = 2
START_DEATHS = ("commit.before:1", "commit.after:1")
DEATHS = ("claim.after:1", "commit.before:1", "commit.after:1")
MOST_LIVES = 60
DELAYED: dict[str, tuple[Any, tuple[Any, ...], dict[str, float]]] = {
    "reader": (reader, (), {}),
    "idler of one run": (idler, (), {"run_timeout": TIMEOUT_S}),
    "recurrer": (recurrer, (ROUNDS,), {"execution_timeout": TIMEOUT_S}),
}
TOLD = "told"

pytestmark = pytest.mark.timeout(240)


def a_worker(stage: Scene, name: str, **environment: str) -> Actor:
    return stage.start(name, "tests.faults.latecomers", f"127.0.0.1:{stage.port}", name, **environment)


async def start(client: Client, name: str) -> WorkflowHandle[Any]:
    workflow, args, timeouts = DELAYED[name]
    options: dict[str, Any] = {"id": name, "request_id": name, "start_delay": DELAY_S, **timeouts}
    return await client.start_workflow(workflow, *args, **options)


async def start_and_tell(client: Client) -> WorkflowHandle[Any]:
    """One that is told something before it begins."""
    options: dict[str, Any] = {"id": TOLD, "request_id": TOLD, "start_delay": DELAY_S}
    return await client.signal_with_start(reader, signal="tell", signal_args=["first"], **options)


def check(histories: Mapping[str, Sequence[HistoryEvent]]) -> None:
    """Each of them began once, and did nothing before its delay was over."""
    first = [h for h in histories.values() if not h[0].workflow_started.continued_from_run_id]
    assert sorted(h[0].workflow_started.spec.workflow_type for h in first) == ["idler", "reader", "reader", "recurrer"]
    for history in first:
        started_ms = history[0].time.ToMilliseconds()
        early = [e for e in history[1:] if e.time.ToMilliseconds() < started_ms + DELAY_S * 1_000]
        assert {str(event.WhichOneof("attributes")) for event in early} <= {"signal_received"}
    for history in histories.values():
        started = history[0].workflow_started
        assert started.spec.HasField("start_delay") == (not started.first_run_id), "the delay is of the first run"
        late = [event.time.ToMilliseconds() for event in history if event.HasField("rollback_started")]
        begun_ms = (histories[started.first_run_id] if started.first_run_id else history)[0].time.ToMilliseconds()
        assert all(time_ms >= begun_ms + (DELAY_S + TIMEOUT_S) * 1_000 for time_ms in late), "it counts from the begin"


async def test_wherever_the_service_dies_a_delayed_workflow_begins_once_and_not_early(stage: Scene) -> None:
    await stage.service()
    worker = a_worker(stage, "worker")
    async with stage.client() as client:
        await until(lambda: connected(client, 1), "the worker is there", worker)

        async def start_all() -> list[WorkflowHandle[Any]]:
            return await asyncio.gather(*(start(client, name) for name in DELAYED), start_and_tell(client))

        stage.kill_services()
        starting = asyncio.create_task(start_all())
        await stage.outlive_all(START_DEATHS, starting.done)
        handles = await starting
        assert [handle.run_id for handle in await start_all()] == [handle.run_id for handle in handles]
        await client.get_handle(TOLD).signal("tell", "second")
        outcomes = [asyncio.create_task(handle.outcome()) for handle in handles]
        assert not stage.ledger, "none has begun"

        def all_ended() -> bool:
            return all(outcome.done() for outcome in outcomes)

        deaths = ("commit.before:1", *islice(cycle(DEATHS), MOST_LIVES))
        assert await stage.outlive_all(deaths, all_ended) > len(DEATHS)
        statuses = [outcome.status for outcome in await asyncio.gather(*outcomes)]
        assert statuses == [WORKFLOW_STATUS_COMPLETED, *[WORKFLOW_STATUS_TIMED_OUT] * 2, WORKFLOW_STATUS_COMPLETED]
        assert await handles[-1].result() == ["first", "second"]
    check(await stage.finish(losses=False))


async def test_a_worker_that_dies_while_workflows_wait_or_as_they_begin_has_none_begin_early_or_twice(
    stage: Scene,
) -> None:
    service = await stage.service()
    async with stage.client() as client:
        sleeper = a_worker(stage, "sleeper")
        await until(lambda: connected(client, 1), "the worker is there", service)
        handles = [await start(client, name) for name in DELAYED]
        handles.append(await start_and_tell(client))
        sleeper.kill()
        victim = a_worker(stage, "victim", ROMANCY_TEST_DIE="reserve")
        await until(lambda: not victim.alive, "it died in the first activity", service)
        a_worker(stage, "last")
        outcomes = [await handle.outcome() for handle in handles]
        statuses = [outcome.status for outcome in outcomes]
        assert statuses == [WORKFLOW_STATUS_COMPLETED, *[WORKFLOW_STATUS_TIMED_OUT] * 2, WORKFLOW_STATUS_COMPLETED]
    check(await stage.finish())
