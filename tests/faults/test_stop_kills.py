"""Service and workers die at each step of a cancellation, and of waits: all is done as if nobody had died."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from romancy.v1.history_pb2 import HistoryEvent

from romancy import Client, WorkflowCancelled
from tests.faults.actor import Actor
from tests.faults.scene import Scene, until
from tests.faults.stoppers import stopped, timed

SERVICE_DEATHS = ("commit.before:1", *(f"commit.after:{number}" for number in range(1, 6)))
"""The request, the code's answer, the clean-up, what is shielded and the end, the compensation."""
WORKER_DEATHS = ("tell", "hand_over", "release")
TIMER_DEATHS = ("commit.before:2", "commit.after:3", "commit.after:5", "commit.before:7")

pytestmark = pytest.mark.timeout(300)


def a_worker(stage: Scene, name: str, **environment: str) -> Actor:
    return stage.start(name, "tests.faults.stoppers", f"127.0.0.1:{stage.port}", name, **environment)


async def waits(client: Client, workflow_id: str) -> bool:
    """Whether the workflow waits for its event."""
    return any("event never" in wait.sentence for wait in (await client.get_handle(workflow_id).describe()).waits)


def check_stopped(history: list[HistoryEvent]) -> None:
    """It was cancelled once, cleaned up once, and was undone."""
    counts = Counter(str(event.WhichOneof("attributes")) for event in history)
    assert counts["workflow_cancel_requested"] == 1
    assert counts["activity_scheduled"] == 3, "reserve, tell and hand_over"
    assert counts["timer_cancelled"] == counts["unsubscribed"] == 1
    assert counts["compensation_completed"] == counts["workflow_cancelled"] == 1


async def stopping(stage: Scene, client: Client, name: str, *needed: Actor) -> None:
    """A workflow that waits for its cancellation."""
    await client.start_workflow(stopped, name, id=name)
    await until(lambda: waits(client, name), f"{name} waits", *needed)


async def test_wherever_the_service_dies_a_run_is_cancelled_once_and_undone(stage: Scene) -> None:
    service = await stage.service()
    worker = a_worker(stage, "worker-1")
    async with stage.client() as client:
        for number, death in enumerate(SERVICE_DEATHS):
            name = f"stopped-{number}"
            await stopping(stage, client, name, service, worker)
            service.kill()
            service = await stage.service(ROMANCY_CRASH_AT=death)
            cancelling = asyncio.create_task(client.get_handle(name).cancel("enough"))
            await until(lambda: not service.alive, f"the service died at {death}", worker)  # noqa: B023
            service = await stage.service()
            await cancelling
            with pytest.raises(WorkflowCancelled, match="enough"):
                await client.get_handle(name).result()
    for history in (await stage.finish(losses=False)).values():
        check_stopped(history)


async def test_wherever_a_worker_dies_a_run_is_cancelled_once_and_undone(stage: Scene) -> None:
    service = await stage.service()
    async with stage.client() as client:
        for number, death in enumerate(WORKER_DEATHS):
            worker = a_worker(stage, f"worker-{number}", ROMANCY_TEST_DIE=death)
            await stopping(stage, client, death, service, worker)
            await client.get_handle(death).cancel("enough")
            await until(lambda: not worker.alive, f"the worker died in {death}", service)  # noqa: B023
            other = a_worker(stage, f"other-{number}")
            with pytest.raises(WorkflowCancelled, match="enough"):
                await client.get_handle(death).result()
            await asyncio.to_thread(other.stop)
    for history in (await stage.finish()).values():
        check_stopped(history)


async def test_wherever_service_and_workers_die_timers_fire_once_and_never_early(stage: Scene) -> None:
    service = await stage.service(ROMANCY_CRASH_AT=TIMER_DEATHS[0])
    worker = a_worker(stage, "worker-0")
    async with stage.client() as client:
        handle = await client.start_workflow(timed, 6, id="timed")
        for number, death in enumerate([*TIMER_DEATHS[1:], ""], 1):
            await until(lambda: not service.alive, "the service died", worker)  # noqa: B023
            worker.kill()
            service = await stage.service(ROMANCY_CRASH_AT=death)
            worker = a_worker(stage, f"worker-{number}")
        assert await handle.result() == 6
    (history,) = (await stage.finish()).values()
    due = {e.timer_started.timer_id: e.timer_started.fire_time for e in history if e.HasField("timer_started")}
    fired = [(e.timer_fired.timer_id, e.time) for e in history if e.HasField("timer_fired")]
    assert len(fired) == len({timer_id for timer_id, _ in fired}), "each fires once"
    assert all(time.ToMilliseconds() >= due[timer_id].ToMilliseconds() for timer_id, time in fired)
