"""The worker process of the bench: `python -m tests.bench.worker ADDRESS [COUNT]`, so many workers in one process."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import AsyncExitStack
from typing import Final

from romancy import Worker
from tests.bench.workload import (
    fan_workflow,
    listener_workflow,
    nap_workflow,
    nothing_workflow,
    order_workflow,
    pay,
    reserve,
    ship,
    step,
    walk_workflow,
)

_WORKFLOWS: Final = (
    order_workflow,
    walk_workflow,
    fan_workflow,
    nap_workflow,
    nothing_workflow,
    listener_workflow,
)
_ACTIVITIES: Final = (reserve, pay, ship, step)
_CROWD_SLOTS: Final = 20


def main() -> None:
    """Serve until SIGTERM."""
    if len(sys.argv) > 2:
        asyncio.run(_crowd(sys.argv[1], int(sys.argv[2])))
    else:
        _worker(sys.argv[1], "bench", 1_000).run()


def _worker(address: str, worker_id: str, slots: int) -> Worker:
    return Worker(
        address,
        workflows=_WORKFLOWS,
        activities=_ACTIVITIES,
        activity_slots=slots,
        workflow_slots=slots,
        cached_runs=5 * slots,
        worker_id=worker_id,
    )


async def _crowd(address: str, count: int) -> None:
    """Many workers with a few slots each; says so when all are welcomed."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with AsyncExitStack() as stack:
        for number in range(count):
            await stack.enter_async_context(_worker(address, f"bench-{number}", _CROWD_SLOTS))
        print("connected", flush=True)
        await stop.wait()


if __name__ == "__main__":
    main()
