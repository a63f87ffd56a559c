"""Workflows that send events. `python -m tests.faults.senders ADDRESS WORKER_ID` is a worker that runs them."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from romancy import Event, Worker, WorkflowContext, activity, activity_info, send_event, workflow
from tests.faults.ledger import Entry, Kind, write

_FOLDER = Path(os.environ.get("ROMANCY_TEST_FOLDER", "."))


def _note(kind: Kind) -> None:
    info = activity_info()
    write(_FOLDER / "ledger", Entry(kind, info.run_id, info.activity_id, info.attempt, str(os.getpid())))


@activity
async def step(name: str, number: int) -> int:
    """Says that it is done; what an attempt says that is lost or fails nobody hears."""
    _note("begin")
    send_event(Event("step", [name, number, "activity"]))
    await asyncio.sleep(0.05)
    if number % 4 == 0 and activity_info().attempt == 1:
        raise ValueError("not at the first attempt")
    _note("effect")
    return number


@workflow
async def sender(ctx: WorkflowContext, name: str, first: int, last: int) -> int:
    """Sends what a sink has to get in this order, in two runs."""
    for number in range(first, last + 1):
        ctx.send_event(Event("step", [name, number, "code"]))
        await step.options(retry=None)(name, number)
        if number == last // 2 and first == 1:
            return await ctx.recur(name, number + 1, last)
    return last


@workflow
async def caller(ctx: WorkflowContext, name: str, sink: str, count: int) -> None:
    """Sends so many events to a sink, at once."""
    for number in range(count):
        ctx.send_event(Event("call", [name, number]), sink=sink)


def expected(name: str, last: int) -> list[list[object]]:
    """What the sink has to get."""
    return [[name, number, by] for number in range(1, last + 1) for by in ("code", "activity")]


def main(address: str, worker_id: str) -> None:
    """Work until SIGTERM."""
    Worker(address, worker_id=worker_id, workflows=[sender, caller], activities=[step], drain_timeout=5).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
