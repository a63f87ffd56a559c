"""A worker dies before, in and after an activity; another one, the same one or none for a while goes on."""

from __future__ import annotations

import pytest

from romancy import WorkflowFailed
from tests.faults.programs import order
from tests.faults.scene import Scene, until


@pytest.mark.parametrize("when", ["before", "in", "after"])
async def test_a_worker_that_dies_loses_nothing_and_what_it_had_in_hand_is_done_by_another(
    stage: Scene, when: str
) -> None:
    service = await stage.service()
    async with stage.client() as client:
        victim = stage.worker("worker-1", ROMANCY_TEST_DIE=f"pay:{when}")
        handle = await client.start_workflow(order, "o1", False)
        await until(lambda: not victim.alive, "the worker died", service)
        stage.worker("worker-2")
        assert await handle.result() == "shipped o1"
    effects = stage.effects()
    assert effects.count("reserve:1") == effects.count("ship:1") == 1, "what was acknowledged is not done again"
    assert effects.count("pay:1") == (2 if when == "in" else effects.count("pay:1"))
    await stage.finish()


@pytest.mark.parametrize("when", ["before", "in"])
async def test_a_worker_that_dies_in_the_middle_of_a_rollback_does_not_end_it(stage: Scene, when: str) -> None:
    service = await stage.service()
    async with stage.client() as client:
        victim = stage.worker("worker-1", ROMANCY_TEST_DIE=f"refund:{when}")
        handle = await client.start_workflow(order, "o1", True)
        await until(lambda: not victim.alive, "the worker died", service)
        stage.worker("worker-2")
        with pytest.raises(WorkflowFailed, match="cannot ship o1"):
            await handle.result()
    assert [name for name in stage.effects() if name.startswith("undo/")][-2:] == ["undo/pay:1", "undo/reserve:1"]
    await stage.finish()
