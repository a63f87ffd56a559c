"""A worker dies before, in and after an activity or a compensation; the same one again, another one, or none for a while
goes on.
"""

from __future__ import annotations

import asyncio
from typing import Final

import pytest

from romancy import Client, WorkflowFailed
from tests.faults import scene as scenes
from tests.faults.actor import Actor
from tests.faults.programs import order
from tests.faults.scene import Scene, until

DEATHS: Final = (
    ("pay:before", "same"),
    ("pay:before", "another"),
    ("pay:in", "another"),
    ("pay:in", "none for a while"),
    ("pay:after", "same"),
    ("pay:after", "another"),
    ("refund:before", "another"),
    ("refund:before", "none for a while"),
    ("refund:in", "same"),
    ("refund:in", "another"),
    ("refund:after", "another"),
    ("refund:after", "none for a while"),
)
"""Where the first worker dies, and who comes after it."""


@pytest.mark.timeout(180)
async def test_a_worker_that_dies_anywhere_loses_nothing_and_what_it_had_in_hand_is_done_by_whoever_comes(
    stage: Scene,
) -> None:
    service = await stage.service()
    async with stage.client() as client:
        await asyncio.gather(*(_die(stage, service, client, when, then) for when, then in DEATHS))
    histories = await stage.finish()
    assert len(histories) == len(DEATHS)


async def _die(stage: Scene, service: Actor, client: Client, when: str, then: str) -> None:
    """On a task queue of its own: the order fails in shipping if its worker is to die in the rollback."""
    name = f"{when}, {then}"
    queue = {"ROMANCY_TEST_QUEUE": name}
    undone = when.startswith("refund")
    victim = stage.worker(name, ROMANCY_TEST_DIE=when, **queue)
    handle = await client.start_workflow(order, name, undone, task_queue=name)
    await until(lambda: not victim.alive, f"the worker died: {name}", service)
    if then == "none for a while":
        await asyncio.sleep(1.5 * scenes.LIMITS["session_lease_ms"] / 1000)
    successor = stage.worker(name if then == "same" else f"{name} (2)", **queue)
    if undone:
        with pytest.raises(WorkflowFailed, match="cannot ship"):
            await handle.result()
    else:
        assert await handle.result() == f"shipped {name}"
    effects = [e for e in stage.ledger if e.run_id == handle.run_id and e.kind == "effect"]
    names = [entry.activity_id for entry in effects]
    died_in = "undo/pay:1" if undone else "pay:1"
    assert all(names.count(done) == 1 for done in names[: names.index(died_in)]), (
        f"acknowledged, but done again: {names}"
    )
    if when.endswith("before"):
        assert [e.worker for e in effects if e.activity_id == died_in] == [str(successor.pid)]
    if when.endswith("in"):
        assert [e.worker for e in effects if e.activity_id == died_in] == [str(victim.pid), str(successor.pid)]
