"""The service dies at every named point, or does not learn what became of a commit; then it is started again."""

from __future__ import annotations

import asyncio

import pytest

from romancy import WorkflowFailed, WorkflowHandle
from tests.faults.programs import order
from tests.faults.scene import Scene, until

POINTS = ("commit.before", "commit.after", "claim.after")


async def _outcome(handle: WorkflowHandle[str]) -> str:
    try:
        return await handle.result()
    except WorkflowFailed as failed:
        return failed.message


@pytest.mark.timeout(240)
async def test_whichever_commit_it_dies_at_all_orders_end_and_nothing_is_done_twice(stage: Scene) -> None:
    """One life of the service after the other, each dying at a later commit than the one before: at first before a start
    was stored, then after, and so on through the whole saga."""
    worker = None
    starts: list[asyncio.Task[WorkflowHandle[str]]] = []
    async with stage.client() as client:
        for hit in range(1, 10):
            for point in POINTS if hit <= 2 else POINTS[:2]:
                service = await stage.service(ROMANCY_CRASH_AT=f"{point}:{hit}")
                worker = worker or stage.worker("worker-1")
                for _ in range(4 if point == "claim.after" else 1):
                    number = len(starts)
                    starts.append(asyncio.create_task(client.start_workflow(order, f"o{number}", number % 2 == 0, id=f"o{number}")))
                await until(lambda: not service.alive, f"the service died at {point}:{hit}", worker)  # noqa: B023
                assert service.process.returncode == -9
        await stage.service()
        handles = await asyncio.gather(*starts)
        outcomes = await asyncio.gather(*map(_outcome, handles))
    assert outcomes == [f"cannot ship o{n}" if n % 2 == 0 else f"shipped o{n}" for n in range(len(starts))]
    await stage.finish(losses=False)


async def test_commits_of_unknown_outcome_are_carried_out_once(stage: Scene) -> None:
    worker = None
    handles = []
    async with stage.client() as client:
        for hit in range(1, 9):
            service = await stage.service(ROMANCY_AMBIGUOUS_AT=f"commit:{hit}")
            worker = worker or stage.worker("worker-1")
            handles.append(await client.start_workflow(order, f"o{hit}", hit % 2 == 0, id=f"o{hit}"))
            await _outcome(handles[-1])
            if hit < 8:
                service.kill()
        outcomes = await asyncio.gather(*map(_outcome, handles))
    assert outcomes == [f"cannot ship o{n}" if n % 2 == 0 else f"shipped o{n}" for n in range(1, 9)]
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
