"""Waits and their cancellation. `python -m tests.faults.stoppers ADDRESS WORKER_ID` is a worker that runs them.

ROMANCY_TEST_DIE names what kills the worker in its first attempt: `reserve`, `tell` or `hand_over`, after the effect.
"""

from __future__ import annotations

import asyncio
import sys

from romancy import RetryPolicy, Worker, WorkflowContext, activity, compensation, workflow
from tests.faults.effect import have_effect

_AT_ONCE = RetryPolicy(initial_interval=0.02, jitter=0)


@compensation(retry=_AT_ONCE)
def release(what: str) -> None:
    have_effect()


@activity(compensation=release, retry=_AT_ONCE)
def reserve(what: str) -> str:
    have_effect()
    return what


@activity(retry=_AT_ONCE)
def tell(what: str) -> None:
    have_effect()


@activity(retry=_AT_ONCE)
def hand_over(what: str) -> None:
    have_effect()


@workflow
async def stopped(ctx: WorkflowContext, what: str) -> None:
    """Waits until it is cancelled, cleans up, and finishes what is shielded."""
    await reserve(what)
    try:
        async with asyncio.timeout(3600):
            await ctx.wait_event("never")
    except asyncio.CancelledError:
        assert ctx.cancellation is not None
        await tell(ctx.cancellation.reason)
        raise
    finally:
        await ctx.shield(hand_over(what))


@workflow
async def timed(ctx: WorkflowContext, steps: int) -> int:
    """Waits in each of the ways there are; each takes a moment."""
    begun = ctx.now()
    for step in range(steps):
        await ctx.sleep(0.3)
        await ctx.sleep_until(begun)
        try:
            async with asyncio.timeout(0.3):
                await asyncio.sleep(60)
        except TimeoutError:
            await tell(str(step))
    return steps


def main(address: str, worker_id: str) -> None:
    """Work until SIGTERM."""
    Worker(
        address,
        worker_id=worker_id,
        workflows=[stopped, timed],
        activities=[reserve, tell, hand_over],
        drain_timeout=5,
    ).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
