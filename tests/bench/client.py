"""The client process of the bench. Prints one JSON document a line: when measuring begins, and what was measured.

`python -m tests.bench.client ADDRESS load IN_FLIGHT WARM_UP_S SECONDS` keeps so many orders open at a time;
`python -m tests.bench.client ADDRESS walk STEPS` runs one workflow of so many steps;
`python -m tests.bench.client ADDRESS fan STEPS` runs one that takes so many steps at once;
`python -m tests.bench.client ADDRESS ask WORKFLOW_ID...` asks each of these walks how far it came;
`python -m tests.bench.client ADDRESS start PER_S SECONDS` starts so many in each second;
`python -m tests.bench.client ADDRESS look TIMES` asks for lists and counts so often.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import grpc

from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_COMPLETED, WORKFLOW_STATUS_FAILED
from romancy.v1.workflow_service_pb2 import (
    CountWorkflowsRequest,
    ListWorkflowsRequest,
    WorkflowFilter,
)
from romancy.v1.workflow_service_pb2_grpc import WorkflowServiceStub

from romancy import Client
from tests.bench.workload import fan_workflow, order, order_workflow, walk_workflow

WARM_WALK: Final = 300
"""Steps of a walk that is not measured: first calls import, compile and connect."""
WARM_START_S: Final = 2
"""The same for starts."""
WARM_FAN: Final = 100
"""The same for a fan."""


def _tell(**document: object) -> None:
    print(json.dumps(document), flush=True)


@dataclass(slots=True)
class Load:
    """Orders, so many at a time. Those that end while it is measured count."""

    client: Client
    in_flight: int
    started: int = 0
    stopping: bool = False
    measuring: bool = False
    latencies_s: list[float] = field(default_factory=list)

    async def run(self, warm_up_s: float, seconds: float) -> None:
        """Warm up, measure, and let what is open end."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self.in_flight):
                group.create_task(self._place_orders())
            await asyncio.sleep(warm_up_s)
            self.measuring = True
            begin = time.perf_counter()
            _tell(at="begin")
            await asyncio.sleep(seconds)
            self.measuring = False
            self.stopping = True
            elapsed_s = time.perf_counter() - begin
            _tell(at="end", elapsed_s=elapsed_s, completed=len(self.latencies_s), latencies_s=sorted(self.latencies_s))
        _tell(at="done", started=self.started)

    async def _place_orders(self) -> None:
        while not self.stopping:
            placed = order(self.started)
            self.started += 1
            begin = time.perf_counter()
            receipt = await self.client.execute_workflow(order_workflow, placed)
            if receipt.order_id != placed.order_id or round(receipt.total_amount, 2) != 109.97:
                raise AssertionError(f"the order {placed.order_id} came back as {receipt}")
            if self.measuring:
                self.latencies_s.append(time.perf_counter() - begin)


async def walk(client: Client, steps: int) -> None:
    """Walk, and tell the second at which each step was done, as the history has it."""
    warm = await client.start_workflow(walk_workflow, WARM_WALK)
    await warm.result()
    _tell(at="begin", workflow_id=warm.workflow_id)
    handle = await client.start_workflow(walk_workflow, steps)
    total = await handle.result()
    if total != steps * (steps - 1) // 2:
        raise AssertionError(f"the walk of {steps} steps came to {total}")
    events = [event async for event in handle.history()]
    _tell(at="end", done_s=_done_s(events), events=len(events), workflow_id=handle.workflow_id)
    _tell(at="done", started=1)


async def ask(client: Client, workflow_ids: Sequence[str]) -> None:
    """Tell how long each takes to answer: whoever does not hold the run replays it first."""
    for workflow_id in workflow_ids:
        begin = time.perf_counter()
        total = await client.get_handle(workflow_id).query("so_far")
        _tell(at="answer", elapsed_s=time.perf_counter() - begin, total=total)


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
                _tell(at="begin")
            group.create_task(start_one(number))
    _tell(at="end", took_s=sorted(took_s[per_s * WARM_START_S :]))


async def look(address: str, times: int) -> None:
    """Lists of 50 and counts, each so often: the newest, further down, of one type and status, of what is rare."""
    completed = WorkflowFilter(statuses=[WORKFLOW_STATUS_COMPLETED], workflow_type="order")
    rare = WorkflowFilter(statuses=[WORKFLOW_STATUS_FAILED])
    took_s: dict[str, list[float]] = {}

    async with grpc.aio.insecure_channel(address) as channel:
        stub = WorkflowServiceStub(channel)

        async def ask(name: str, call: Callable[[], Awaitable[Any]]) -> Any:
            begin = time.perf_counter()
            answer = await call()
            took_s.setdefault(name, []).append(time.perf_counter() - begin)
            return answer

        deep = ListWorkflowsRequest(page_size=1_000)
        for _ in range(20):
            deep.page_token = (await stub.ListWorkflows(deep)).next_page_token
        deep.page_size = 50
        lists = {
            "list_page": ListWorkflowsRequest(page_size=50),
            "list_page_deep": deep,
            "list_page_filtered": ListWorkflowsRequest(page_size=50, filter=completed),
            "list_page_rare": ListWorkflowsRequest(page_size=50, filter=rare),
        }
        counts = {"count_all": None, "count_filtered": completed, "count_rare": rare}
        for _ in range(times):
            for name, request in lists.items():
                await ask(name, partial(stub.ListWorkflows, request))
            for name, wanted in counts.items():
                await ask(name, partial(stub.CountWorkflows, CountWorkflowsRequest(filter=wanted)))
    _tell(at="looked", took_s=took_s)


async def fan(client: Client, steps: int) -> None:
    """Fan out, and tell how long it took from the call to the result."""
    await client.execute_workflow(fan_workflow, WARM_FAN)
    _tell(at="begin")
    begin = time.perf_counter()
    total = await client.execute_workflow(fan_workflow, steps)
    elapsed_s = time.perf_counter() - begin
    if total != steps * (steps - 1) // 2:
        raise AssertionError(f"the fan of {steps} steps came to {total}")
    _tell(at="end", elapsed_s=elapsed_s)
    _tell(at="done", started=1)


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
            await look(address, int(numbers[0]))
        elif what == "ask":
            await ask(client, numbers)
        elif what == "fan":
            await fan(client, int(numbers[0]))
        else:
            in_flight, warm_up_s, seconds = numbers
            await Load(client, int(in_flight)).run(float(warm_up_s), float(seconds))


if __name__ == "__main__":
    asyncio.run(main())
