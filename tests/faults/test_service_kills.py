"""The service dies at every named point, or does not learn what became of a commit; then it is started again."""

from __future__ import annotations

import asyncio

import pytest

from romancy import WorkflowFailed, WorkflowHandle
from tests.faults.programs import order
from tests.faults.scene import Scene, until

HITS = {"sqlite": (1, 2, 4, 6), "postgres": (1, 3, 5, 7)}
"""Each database sees the points at some of the commits of a saga, so that the tests of both see all."""


async def _outcome(handle: WorkflowHandle[str]) -> str:
    try:
        return await handle.result()
    except WorkflowFailed as failed:
        return failed.message


@pytest.mark.timeout(240)
async def test_whichever_commit_it_dies_at_all_orders_end_and_nothing_is_done_twice(stage: Scene) -> None:
    """One life of the service after the other, each dying at a later commit than the one before: at first before a start
    was stored, then after, and so on through the whole saga."""
    hits = HITS["postgres" if stage.database.startswith("postgres") else "sqlite"]
    points = [f"{point}:{hit}" for hit in hits for point in ("commit.before", "commit.after")]
    worker = None
    starts: list[asyncio.Task[WorkflowHandle[str]]] = []
    async with stage.client() as client:
        for point in (*points, "claim.after:1", "claim.after:2"):
            service = await stage.service(ROMANCY_CRASH_AT=point)
            worker = worker or stage.worker("worker-1")
            for _ in range(2):
                number = len(starts)
                start = client.start_workflow(order, f"o{number}", number % 2 == 0, id=f"o{number}")
                starts.append(asyncio.create_task(start))
            await until(lambda: not service.alive, f"the service died at {point}", worker)  # noqa: B023
            assert service.process.returncode == -9
        await stage.service()
        handles = await asyncio.gather(*starts)
        outcomes = await asyncio.gather(*map(_outcome, handles))
    assert outcomes == [f"cannot ship o{n}" if n % 2 == 0 else f"shipped o{n}" for n in range(len(starts))]
    await stage.finish(losses=False)


async def test_the_service_dies_while_its_worker_is_away_and_both_come_back(stage: Scene) -> None:
    service = await stage.service()
    async with stage.client() as client:
        victim = stage.worker("worker-1", ROMANCY_TEST_DIE="pay:in")
        handle = await client.start_workflow(order, "o1", True)
        await until(lambda: not victim.alive, "the worker died", service)
        service.kill()
        await stage.service()
        stage.worker("worker-1")
        assert await _outcome(handle) == "cannot ship o1"
    await stage.finish()
