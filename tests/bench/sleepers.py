"""Sleepers: how much memory the service takes while 100,000 runs wait for a timer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Final

from google.protobuf.duration_pb2 import Duration

from romancy.v1.command_pb2 import Command, StartTimer
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import WorkflowSpec

from romancy_service.core.decide import decide
from romancy_service.core.limits import Limits
from romancy_service.core.run import Run
from romancy_service.core.task import WORKFLOW_TASK_ID, Fence
from romancy_service.core.triggers import CompleteWorkflowTask, StartRun
from romancy_service.starter import new_id
from romancy_service.store.store import Change, Store, open_store
from tests.bench.database import Databases
from tests.bench.measurement import Measurement
from tests.bench.system import heard, system

SLEEPERS: Final = 100_000
SETTLE_S: Final = 5.0
"""After its start the service looks for what is due and what was lost."""
IN_FLIGHT: Final = 64
LOAD_S: Final = 2.0
_BATCH: Final = 256
_DAY_S: Final = 86_400


def sleepers(databases: Databases) -> Iterator[Measurement]:
    """Seed the runs, start the service on them, let it work a little, and look."""
    database = databases.fresh()
    begin = time.perf_counter()
    asyncio.run(_seed(database.url))
    yield Measurement("seeded_runs_per_s", databases.name, 0, SLEEPERS / (time.perf_counter() - begin), "1/s")
    with system(database, worker=False) as running:
        begin = time.perf_counter()
        before_s = running.service.cpu_s()
        time.sleep(SETTLE_S)
        idle_s = (running.service.cpu_s() - before_s) / (time.perf_counter() - begin)
        yield Measurement("service_rss_100000_sleeping_mb", databases.name, 0, running.service.rss_mb(), "MB")
        yield Measurement("service_cpu_100000_sleeping", databases.name, 0, idle_s, "cores")
        running.start_worker()
        client = running.start_client("load", IN_FLIGHT, 0, LOAD_S)
        for at in ("begin", "end", "done"):
            heard(client, at)
        yield Measurement("service_rss_100000_sleeping_mb", databases.name, IN_FLIGHT, running.service.rss_mb(), "MB")


async def _seed(url: str) -> None:
    store = open_store(url)
    await store.open()
    try:
        now_ms = await store.now_ms()
        async with asyncio.TaskGroup() as lanes:
            for lane in range(store.lanes):
                lanes.create_task(_seed_lane(store, range(lane, SLEEPERS, store.lanes), now_ms))
    finally:
        await store.close()


async def _seed_lane(store: Store, numbers: range, now_ms: int) -> None:
    for first in range(0, len(numbers), _BATCH):
        changes = [Change(_sleeper(number, now_ms)) for number in numbers[first : first + _BATCH]]
        result = await store.commit(changes, now_ms)
        if len(result.written) != len(changes):
            raise AssertionError(
                f"{len(changes) - len(result.written)} of {len(changes)} sleeping runs were not stored"
            )


def _sleeper(number: int, now_ms: int) -> Run:
    """A run whose code started a timer of some days and waits for it: the core decided so, and it is not stored yet."""
    run = Run("default", f"sleeper-{number}", new_id())
    spec = WorkflowSpec(workflow_type="sleeper", task_queue="default", arguments=[Payload(json=str(number))])
    decide(run, StartRun(spec, "bench"), now_ms, _LIMITS)
    timer = Command(start_timer=StartTimer(timer_id="1", duration=Duration(seconds=_DAY_S * (1 + number % 30))))
    fence = Fence(WORKFLOW_TASK_ID, 1, "", 0)
    decide(run, CompleteWorkflowTask(fence, run.last_event_id, [timer], holds_run=False), now_ms, _LIMITS)
    return run


_LIMITS: Final = Limits()
