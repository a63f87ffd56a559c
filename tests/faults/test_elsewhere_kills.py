"""Service and workers die at each step of an attempt's way out of its worker: it is ended once, by whoever has its token."""

from __future__ import annotations

import asyncio

import pytest

from romancy import ActivityStale, Client
from romancy_service.faults import ELSEWHERE_POINTS
from tests.faults.actor import Actor
from tests.faults.leavers import contract
from tests.faults.scene import Scene, until

DEATHS = (
    "elsewhere.before:1",  # the worker said that it leaves it, and that is not stored
    "elsewhere.after:1",  # it is, and the worker does not know
    "commit.before:2",  # the attempt is about to be ended: the first commit is that of the start
    "commit.after:2",
    "commit.after:3",  # it is ended, and nobody knows
)

pytestmark = pytest.mark.timeout(240)


def a_worker(stage: Scene, name: str, **environment: str) -> Actor:
    return stage.start(name, "tests.faults.leavers", f"127.0.0.1:{stage.port}", name, **environment)


async def handed_out(stage: Scene, what: str, attempt: int, *needed: Actor) -> str:
    """The token of an attempt, once its worker gave it away."""
    file = stage.folder / f"{what}-{attempt}.token"
    await until(file.exists, f"attempt {attempt} of {what} gave its token away", *needed)
    return await asyncio.to_thread(file.read_text)


async def has_left(client: Client, what: str) -> bool:
    """Whether the service knows that the activity left its worker."""
    return any(activity.elsewhere for activity in (await client.get_handle(what).describe()).activities)


def test_every_point_of_leaving_is_died_at() -> None:
    assert {death.partition(":")[0] for death in DEATHS} >= set(ELSEWHERE_POINTS)


async def test_wherever_the_service_dies_an_attempt_that_leaves_is_ended_once(stage: Scene) -> None:
    service = await stage.service()
    worker = a_worker(stage, "worker-1")
    async with stage.client() as client:
        await client.list_workers()
        for number, death in enumerate(DEATHS):
            what = f"contract-{number}"
            service.kill()
            service = await stage.service(ROMANCY_CRASH_AT=death)
            starting = asyncio.create_task(client.start_workflow(contract, what, id=what))
            reviving = asyncio.create_task(_revive(stage, service, worker))
            token = await handed_out(stage, what, 1, worker)
            ended = await client.complete_activity(token, f"signed {number}", request_id=what)
            assert ended, "the same request got its own answer, whoever died meanwhile"
            handle = await starting
            service = await reviving
            assert await handle.result() == f"signed {number}"
            assert not await client.complete_activity(token, "signed twice")
    await stage.finish(losses=False)


async def _revive(stage: Scene, service: Actor, worker: Actor) -> Actor:
    await until(lambda: not service.alive, "the service died", worker)
    return await stage.service()


async def test_an_attempt_that_left_outlives_its_worker_and_the_service(stage: Scene) -> None:
    service = await stage.service()
    worker = a_worker(stage, "worker-1")
    async with stage.client() as client:
        handle = await client.start_workflow(contract, "lease", id="lease")
        token = await handed_out(stage, "lease", 1, worker)
        await until(lambda: has_left(client, "lease"), "it left", worker)
        worker.kill()
        service.kill()
        await stage.service()
        a_worker(stage, "worker-2")
        assert not await client.heartbeat_activity(token, "read")
        # Longer than a lease, so that whatever was its worker's alone is lost by now.
        other = await client.start_workflow(contract, "other", id="other")
        await until(lambda: no_worker(client, "worker-1"), "its worker is forgotten")
        assert await client.complete_activity(token, "signed")
        assert await handle.result() == "signed"
        await client.complete_activity(await handed_out(stage, "other", 1), "signed")
        assert await other.result() == "signed"
    histories = await stage.finish(losses=False)
    lost = [e for history in histories.values() for e in history if e.HasField("activity_attempt_failed")]
    assert not lost


async def no_worker(client: Client, worker_id: str) -> bool:
    """Whether a worker's session is over."""
    return worker_id not in [session.worker_id for session in await client.list_workers() if session.connected]


async def test_a_worker_that_dies_before_it_left_leaves_a_stale_token_and_another_attempt(stage: Scene) -> None:
    await stage.service()
    worker = a_worker(stage, "worker-1", ROMANCY_TEST_DIE="asked")
    async with stage.client() as client:
        handle = await client.start_workflow(contract, "will", id="will")
        stale = await handed_out(stage, "will", 1)
        await until(lambda: not worker.alive, "the worker died")
        second = a_worker(stage, "worker-2")
        token = await handed_out(stage, "will", 2, second)
        with pytest.raises(ActivityStale):
            await client.complete_activity(stale, "forged")
        assert await client.complete_activity(token, "signed")
        assert await handle.result() == "signed"
    await stage.finish()
