"""The service dies, or freezes, at every named point; or does not learn what became of what it sent. Then it comes back, and
the same worker, another one, or none for a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import pytest

from romancy import WorkflowFailed, WorkflowHandle
from romancy_service.faults import DOUBTS, POINTS, Doubt, Point
from tests.faults import scene as scenes
from tests.faults.programs import order
from tests.faults.scene import Scene, until

COMMITS: Final = 7
"""Start, first task, reserve, pay, ship fails and pay is refunded, then reserve is cancelled, done."""
UNDOING: Final = 6
"""The commit that ends the first compensation."""


@dataclass(frozen=True)
class Death:
    """The service dies the nth time that it comes to a point, and the worker with it."""

    point: Point
    nth: int
    then: Literal["another", "none for a while"]

    def __str__(self) -> str:
        return f"{self.point}:{self.nth}"


DEATHS: Final = (
    Death("commit.before", 4, "another"),
    Death("commit.after", 4, "none for a while"),
    Death("commit.before", UNDOING, "none for a while"),
    Death("commit.after", UNDOING, "another"),
    Death("claim.after", 1, "another"),
)
LOST_ANSWERS: Final[dict[Doubt, int]] = {"commit": COMMITS, "claim": 1}
"""What is carried out without an answer, each of so many."""


async def _outcome(handle: WorkflowHandle[str]) -> str:
    try:
        return await handle.result()
    except WorkflowFailed as failed:
        return failed.message


def _undone(stage: Scene) -> list[str]:
    return [name for name in stage.effects() if name.startswith("undo/")]


def test_every_named_point_is_died_at_and_every_doubt_is_raised() -> None:
    assert {death.point for death in DEATHS} == set(POINTS)
    assert LOST_ANSWERS.keys() == set(DOUBTS)


@pytest.mark.timeout(240)
async def test_it_dies_before_and_after_every_commit_of_a_saga_and_its_worker_stays(stage: Scene) -> None:
    """Each life ends at the first commit that it comes to: in turn before it, so that the next life must make it, and after
    it, so that the next life must find it. Only when nothing is left to commit a life ends well."""
    deaths = {"commit.before": 0, "commit.after": 0}
    undone_at_deaths = set()
    async with stage.client() as client:
        starting = asyncio.create_task(client.start_workflow(order, "o1", True, id="o1"))
        for point in deaths:
            service = await stage.service(ROMANCY_CRASH_AT=f"{point}:1")
            await until(lambda: not service.alive, f"it dies at {point}")  # noqa: B023
            deaths[point] += 1
        calm = await stage.service()
        outcome = asyncio.create_task(_outcome(await starting))
        calm.kill()
        worker = stage.worker("worker-1")
        while not outcome.done():
            point = "commit.after" if deaths["commit.before"] > deaths["commit.after"] else "commit.before"
            service = await stage.service(ROMANCY_CRASH_AT=f"{point}:1")
            await until(lambda: outcome.done() or not service.alive, f"it dies at {point}", worker)  # noqa: B023
            if not service.alive:
                assert service.exit_code == -9
                deaths[point] += 1
                undone_at_deaths.add(len(_undone(stage)))
        assert outcome.result() == "cannot ship o1"
    assert undone_at_deaths == {0, 1, 2}, "before, in the middle of and after the rollback"
    assert stage.effects() == ["reserve:1", "pay:1", "undo/pay:1", "undo/reserve:1"], "each once, whoever died"
    await stage.finish(losses=False)
    assert deaths["commit.before"] == deaths["commit.after"] == await stage.commits()


@pytest.mark.timeout(240)
async def test_it_dies_at_every_point_and_its_worker_with_it(stages: Callable[[], Scene]) -> None:
    await asyncio.gather(*(_die(stages(), death) for death in DEATHS))


async def _die(stage: Scene, death: Death) -> None:
    service = await stage.service(ROMANCY_CRASH_AT=str(death))
    async with stage.client() as client:
        starting = asyncio.create_task(client.start_workflow(order, "o1", True, id="o1"))
        if death.point == "claim.after":
            await starting  # a task that waits, which the worker's hello has claimed
        worker = stage.worker("worker-1")
        await until(lambda: not service.alive, f"it dies at {death}", worker)
        assert service.exit_code == -9
        worker.kill()
        await stage.service()
        if death.then == "none for a while":
            await asyncio.sleep(1.5 * scenes.LIMITS["session_lease_ms"] / 1000)
        stage.worker("worker-2")
        assert await _outcome(await starting) == "cannot ship o1"
    assert _undone(stage)[-1] == "undo/reserve:1"
    await stage.finish()


async def test_an_answer_that_is_lost_changes_nothing_whatever_it_was_about(stages: Callable[[], Scene]) -> None:
    lost = [f"{doubt}:{nth}" for doubt, count in LOST_ANSWERS.items() for nth in range(1, count + 1)]
    await asyncio.gather(*(_lose_answer(stages(), at) for at in lost))


async def _lose_answer(stage: Scene, at: str) -> None:
    service = await stage.service(ROMANCY_AMBIGUOUS_AT=at)
    async with stage.client() as client:
        handle = await client.start_workflow(order, "o1", True)
        stage.worker("worker-1")
        assert await _outcome(handle) == "cannot ship o1"
    assert "because a test asked for it" in service.log.read_text()
    assert stage.effects() == ["reserve:1", "pay:1", "undo/pay:1", "undo/reserve:1"], f"each once, lost: {at}"
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
