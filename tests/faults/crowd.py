"""Crowd: a hundred activities on live workers while something else is gone. None may run twice, all must end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from romancy import WorkflowHandle
from tests.faults.actor import Actor
from tests.faults.programs import crowd
from tests.faults.scene import PATIENCE_S, Scene, connected, until

COUNT: Final = 100
WORKERS: Final = 2
"""Fewer than make the service think that the fault is its own."""


@asynccontextmanager
async def running(
    stage: Scene, lease_s: float, *services: Actor, port: int = 0
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """A hundred activities run inside the block; the value lets half of them end. After the block all have ended."""
    async with stage.client(port) as client:
        workers = [stage.worker(f"worker-{number}", port=port) for number in range(WORKERS)]
        await until(lambda: connected(client, WORKERS), "the workers are connected", *workers)
        handle = await client.start_workflow(crowd, COUNT)
        await until(lambda: begun(stage) == COUNT, "all activities run", *workers, *services)

        async def end_some() -> None:
            stage.open_gates(0, 1)
            await until(lambda: len(stage.effects()) == COUNT // 2, "half of them end meanwhile", *workers)

        yield end_some
        await _finish(stage, handle, lease_s)


async def _finish(stage: Scene, handle: WorkflowHandle[int], lease_s: float) -> None:
    # That nobody is taken for lost shows only when the time in which it would happen has passed.
    await asyncio.sleep(1.5 * lease_s)
    assert begun(stage) == COUNT, "something ran twice"
    stage.open_gates(2, 3)
    async with asyncio.timeout(PATIENCE_S):
        assert await handle.result() == sum(range(COUNT))
    assert len(stage.effects()) == begun(stage) == COUNT


def begun(stage: Scene) -> int:
    """How many attempts there were."""
    return sum(entry.kind == "begin" for entry in stage.ledger)
