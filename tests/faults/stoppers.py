"""Waits and their cancellation. `python -m tests.faults.stoppers ADDRESS WORKER_ID` is a worker that runs them.

ROMANCY_TEST_DIE names what kills the worker in its first attempt: `reserve`, `tell` or `hand_over`, after the effect.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from romancy import RetryPolicy, Worker, WorkflowContext, activity, activity_info, compensation, workflow
from tests.faults.ledger import Entry, Kind, write

KINDS: tuple[Kind, ...] = ("begin", "effect")
_FOLDER = Path(os.environ.get("ROMANCY_TEST_FOLDER", "."))
_DIE = os.environ.get("ROMANCY_TEST_DIE", "")
_AT_ONCE = RetryPolicy(initial_interval=0.02, jitter=0)


def _have_effect() -> None:
    info = activity_info()
    for kind in KINDS:
        write(_FOLDER / "ledger", Entry(kind, info.run_id, info.activity_id, info.attempt, str(os.getpid())))
    if info.activity_type == _DIE and info.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)


@compensation(retry=_AT_ONCE)
def release(what: str) -> None:
    _have_effect()


@activity(compensation=release, retry=_AT_ONCE)
def reserve(what: str) -> str:
    _have_effect()
    return what


@activity(retry=_AT_ONCE)
def tell(what: str) -> None:
    _have_effect()


@activity(retry=_AT_ONCE)
def hand_over(what: str) -> None:
    _have_effect()


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
