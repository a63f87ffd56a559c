"""Workflows that take too long. `python -m tests.faults.latecomers ADDRESS WORKER_ID` is a worker that runs them.

ROMANCY_TEST_DIE names the activity in whose first attempt the worker dies, after the effect; ROMANCY_TEST_QUEUE is the
task queue that it serves.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final

from romancy import RetryPolicy, Worker, WorkflowContext, activity, compensation, workflow
from tests.faults.effect import have_effect

_AT_ONCE: Final = RetryPolicy(initial_interval=0.02, jitter=0)


@compensation(retry=_AT_ONCE)
async def release(what: str) -> None:
    have_effect()


@activity(compensation=release, retry=_AT_ONCE)
async def reserve(what: str) -> str:
    have_effect()
    return what


@activity(compensation=release, retry=_AT_ONCE)
async def hold(what: str) -> None:
    """Never ends by itself."""
    have_effect()
    await asyncio.sleep(3_600)


@workflow
async def idler(ctx: WorkflowContext) -> None:
    """Has nothing to undo."""
    await ctx.wait_event("never")


@workflow
async def holder(ctx: WorkflowContext) -> None:
    """Has something to undo, and something that is still under way."""
    await reserve("it")
    await hold("it")


@workflow
async def recurrer(ctx: WorkflowContext, rounds: int, number: int = 0) -> None:
    """Has something to undo in each of its runs, and waits in the last one."""
    await reserve(str(number))
    await ctx.sleep(0.1)
    if number == rounds:
        await ctx.wait_event("never")
    await ctx.recur(rounds, number + 1)


@workflow
async def reader(ctx: WorkflowContext) -> list[str]:
    """Notes what it was told before it began, and does one thing."""
    told: list[str] = []
    ctx.signal(lambda word: told.append(str(word)), name="tell")
    await reserve("it")
    return told


WORKFLOWS: Final = (idler, holder, recurrer, reader)


def main(address: str, worker_id: str) -> None:
    """Work until SIGTERM."""
    Worker(
        address,
        worker_id=worker_id,
        task_queues=[os.environ.get("ROMANCY_TEST_QUEUE", "default")],
        workflows=WORKFLOWS,
        activities=[reserve, hold],
        drain_timeout=5,
    ).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
