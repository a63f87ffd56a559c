"""The client process of the bench. Prints one JSON document a line: when measuring begins, and what was measured.

`python -m tests.bench.client ADDRESS load IN_FLIGHT WARM_UP_S SECONDS` keeps so many orders open at a time;
`python -m tests.bench.client ADDRESS walk STEPS` runs one workflow of so many steps;
`python -m tests.bench.client ADDRESS fan STEPS` runs one that takes so many steps at once;
`python -m tests.bench.client ADDRESS ask WORKFLOW_ID...` asks each of these walks how far it came;
`python -m tests.bench.client ADDRESS start PER_S SECONDS` starts so many in each second;
`python -m tests.bench.client ADDRESS look TIMES OPEN` asks for lists and counts so often; so many orders are open;
`python -m tests.bench.client ADDRESS wake COUNT start|find PAUSE_S` wakes so many that it starts, or that are there.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.wait_pb2 import WAIT_KIND_EVENT

from romancy import Client, Event
from tests.bench.closed_loop import closed_loop, tell
from tests.bench.lists import look
from tests.bench.order import order
from tests.bench.workload import fan_workflow, listener_workflow, order_workflow, walk_workflow

WARM_WALK: Final = 300
"""Steps of a walk that is not measured: first calls import, compile and connect."""
WARM_START_S: Final = 2
"""The same for starts."""
WARM_FAN: Final = 100
"""The same for a fan."""


async def walk(client: Client, steps: int) -> None:
    """Walk, and tell the second at which each step was done, as the history has it."""
    warm = await client.start_workflow(walk_workflow, WARM_WALK)
    await warm.result()
    tell(at="begin", workflow_id=warm.workflow_id)
    handle = await client.start_workflow(walk_workflow, steps)
    total = await handle.result()
    if total != steps * (steps - 1) // 2:
        raise AssertionError(f"the walk of {steps} steps came to {total}")
    events = [event async for event in handle.history()]
    tell(at="end", done_s=_done_s(events), events=len(events), workflow_id=handle.workflow_id)
    tell(at="done", started=1)


async def ask(client: Client, workflow_ids: Sequence[str]) -> None:
    """Tell how long each takes to answer: whoever does not hold the run replays it first."""
    for workflow_id in workflow_ids:
        begin = time.perf_counter()
        total = await client.get_handle(workflow_id).query("so_far")
        tell(at="answer", elapsed_s=time.perf_counter() - begin, total=total)


async def start(client: Client, per_s: int, seconds: int) -> None:
    """Start at a steady rate, whatever the answers take, and tell how long each took. They end by themselves."""
    took_s: list[float] = []

    async def start_one(number: int) -> None:
        begin = time.perf_counter()
        await client.start_workflow(order_workflow, order(number))
        took_s.append(time.perf_counter() - begin)

    async with asyncio.TaskGroup() as group:
        begin = time.perf_counter()
        for number in range(per_s * (seconds + WARM_START_S)):
            await asyncio.sleep(max(begin + number / per_s - time.perf_counter(), 0))
            if number == per_s * WARM_START_S:
                tell(at="begin")
            group.create_task(start_one(number))
    tell(at="end", took_s=sorted(took_s[per_s * WARM_START_S :]))


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


async def wake(client: Client, count: int, how: str, pause_s: float) -> None:
    """Wake workflows by events, one after the other, and tell how long that took."""
    warm = await client.start_workflow(listener_workflow, -1, id="listener--1")
    if how == "start":
        for number in range(count):
            await client.start_workflow(listener_workflow, number, id=f"listener-{number}")
    for number in (-1, *range(count)):
        await _listening(client, f"listener-{number}")
    await asyncio.sleep(pause_s)
    await client.publish_event(Event("ping", {"number": -1, "sent_s": time.time()}))
    await warm.result()
    publish_s, wake_s = [], []
    tell(at="begin")
    for number in range(count):
        begin = time.perf_counter()
        known = await client.publish_event(Event("ping", {"number": number, "sent_s": time.time()}))
        publish_s.append(time.perf_counter() - begin)
        wake_s.append(await client.get_handle(f"listener-{number}", workflow=listener_workflow).result())
        if not known:
            raise AssertionError(f"event {number} was known before")
    tell(at="end", publish_s=publish_s, wake_s=wake_s)
    tell(at="done", started=count)


async def _listening(client: Client, workflow_id: str) -> None:
    handle = client.get_handle(workflow_id)
    while not any(wait.kind == WAIT_KIND_EVENT for wait in (await handle.describe()).waits):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def _done_s(events: Sequence[HistoryEvent]) -> list[float]:
    done = [event.time for event in events if event.HasField("activity_completed")]
    return [events[0].time.ToMilliseconds() / 1e3, *(time.ToMilliseconds() / 1e3 for time in done)]


async def main() -> None:
    """Do what the arguments say."""
    address, what, *numbers = sys.argv[1:]
    async with Client(address) as client:
        if what == "walk":
            await walk(client, int(numbers[0]))
        elif what == "start":
            await start(client, *map(int, numbers))
        elif what == "look":
            await look(address, *map(int, numbers))
        elif what == "ask":
            await ask(client, numbers)
        elif what == "fan":
            await fan(client, int(numbers[0]))
        elif what == "wake":
            await wake(client, int(numbers[0]), numbers[1], float(numbers[2]))
        else:
            await closed_loop(partial(client.execute_workflow, order_workflow), numbers)


if __name__ == "__main__":
    asyncio.run(main())
