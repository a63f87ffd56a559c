"""The client process of the bench. Prints one JSON document a line: when measuring begins, and what was measured.

`python -m tests.bench.client ADDRESS load IN_FLIGHT WARM_UP_S SECONDS` keeps so many orders open at a time;
`python -m tests.bench.client ADDRESS walk STEPS` runs one workflow of so many steps;
`python -m tests.bench.client ADDRESS fan STEPS` runs one that takes so many steps at once.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

from romancy.v1.history_pb2 import HistoryEvent

from romancy import Client
from tests.bench.closed_loop import closed_loop, tell
from tests.bench.workload import fan_workflow, order_workflow, walk_workflow

WARM_WALK: Final = 300
"""Steps of a walk that is not measured: first calls import, compile and connect."""
WARM_FAN: Final = 100
"""The same for a fan."""


async def walk(client: Client, steps: int) -> None:
    """Walk, and tell the second at which each step was done, as the history has it."""
    await client.execute_workflow(walk_workflow, WARM_WALK)
    tell(at="begin")
    handle = await client.start_workflow(walk_workflow, steps)
    total = await handle.result()
    if total != steps * (steps - 1) // 2:
        raise AssertionError(f"the walk of {steps} steps came to {total}")
    events = [event async for event in handle.history()]
    tell(at="end", done_s=_done_s(events), events=len(events))
    tell(at="done", started=1)


async def fan(client: Client, steps: int) -> None:
    """Fan out, and tell how long it took from the call to the result."""
    await client.execute_workflow(fan_workflow, WARM_FAN)
    tell(at="begin")
    begin = time.perf_counter()
    total = await client.execute_workflow(fan_workflow, steps)
    elapsed_s = time.perf_counter() - begin
    if total != steps * (steps - 1) // 2:
        raise AssertionError(f"the fan of {steps} steps came to {total}")
    tell(at="end", elapsed_s=elapsed_s)
    tell(at="done", started=1)


def _done_s(events: Sequence[HistoryEvent]) -> list[float]:
    done = [event.time for event in events if event.HasField("activity_completed")]
    return [events[0].time.ToMilliseconds() / 1e3, *(time.ToMilliseconds() / 1e3 for time in done)]


async def main() -> None:
    """Do what the arguments say."""
    address, what, *numbers = sys.argv[1:]
    async with Client(address) as client:
        if what == "walk":
            await walk(client, int(numbers[0]))
        elif what == "fan":
            await fan(client, int(numbers[0]))
        else:
            await closed_loop(partial(client.execute_workflow, order_workflow), numbers)


if __name__ == "__main__":
    asyncio.run(main())
