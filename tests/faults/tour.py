"""Workflows to run many of: ten activities each, retries and a saga among them.

`python -m tests.faults.tour ADDRESS WORKER_ID` is a worker that runs them.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from romancy import RetryPolicy, TerminalError, Worker, WorkflowContext, activity, activity_info, compensation, workflow
from tests.faults.ledger import Entry

STEPS = 10
STUMBLES = 7
"""Every so many steps the first attempt fails."""
FAILS = 5
"""Every so many tours come to nothing and are undone."""
_LEDGER = Path(os.environ.get("ROMANCY_TEST_FOLDER", ".")) / "ledger"
_AT_ONCE = RetryPolicy(initial_interval=0.02, jitter=0)


def _have_effect() -> None:
    info = activity_info()
    entry = Entry("effect", info.run_id, info.activity_id, info.attempt, str(os.getpid()))
    # Not synced, unlike the ledger of those who die: ten thousand of them would take longer than all the rest.
    file = os.open(_LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, json.dumps(asdict(entry)).encode() + b"\n")
    finally:
        os.close(file)


@compensation(retry=_AT_ONCE)
async def leave(place: int) -> None:
    _have_effect()


@activity(compensation=leave, retry=_AT_ONCE)
async def visit(place: int) -> int:
    if place % STUMBLES == 0 and activity_info().attempt == 1:
        raise ConnectionError(f"place {place} is closed")
    _have_effect()
    return place


@workflow
async def tour(ctx: WorkflowContext, number: int) -> int:
    """Some places one after the other, some at once. The sum of them, or an error."""
    places = range(number, number + STEPS)
    total = sum([await visit(place) for place in places[:3]])
    total += sum(await asyncio.gather(*(visit(place) for place in places[3:])))
    await ctx.sleep(0.01)
    if number % FAILS == 0:
        raise TerminalError(f"tour {number} came to nothing")
    return total


def main(address: str, worker_id: str) -> None:
    """Work until SIGTERM."""
    Worker(address, worker_id=worker_id, workflows=[tour], activities=[visit], drain_timeout=5).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
