"""Due: how late timers fire when 10,000 of as many runs are due in the same second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Final

from google.protobuf.duration_pb2 import Duration

from romancy.v1.command_pb2 import Command, StartTimer
from romancy.v1.workflow_pb2 import WorkflowSpec
from romancy.v1.workflow_service_pb2 import WorkflowFilter

from romancy import Client
from romancy_service.core.decide import decide
from romancy_service.core.limits import Limits
from romancy_service.core.run import Run
from romancy_service.core.task import WORKFLOW_TASK_ID, Fence
from romancy_service.core.times import timestamp_ms
from romancy_service.core.triggers import CompleteWorkflowTask, StartRun
from romancy_service.starter import new_id
from romancy_service.store.store import Change, open_store
from tests.bench.database import Databases
from tests.bench.measurement import Measurement
from tests.bench.system import system

TIMERS: Final = 10_000
AHEAD_S: Final = 20.0
"""So long before they are due they are stored and the service is started: it is up by then, and has settled."""
PATIENCE_S: Final = 60.0
_SECOND_MS: Final = 1_000
_BATCH: Final = 250
_LIMITS: Final = Limits()


def due(databases: Databases) -> Iterator[Measurement]:
    """Seed the runs, start the service, let the timers fire, and read from the histories when they did."""
    database = databases.fresh()
    first_ms = asyncio.run(_seed(database.url))
    last_ms = first_ms + _SECOND_MS
    with system(database, worker=False) as running:
        time.sleep(max(first_ms / 1000 - time.time(), 0))
        before_s = running.service.cpu_s()
        asyncio.run(_all_fired(running.address))
        seen_s = time.time() - last_ms / 1000
        cpu_s = running.service.cpu_s() - before_s
    lateness = sorted(asyncio.run(_lateness(database.url)))
    if lateness[0] < 0:
        raise AssertionError(f"a timer fired {-lateness[0]} ms before its time")
    yield Measurement("timer_lateness_10000_due_p50_s", databases.name, 0, lateness[TIMERS // 2] / 1000, "s")
    yield Measurement("timer_lateness_10000_due_max_s", databases.name, 0, lateness[-1] / 1000, "s")
    yield Measurement("timers_10000_all_fired_after_s", databases.name, 0, seen_s, "s")
    yield Measurement("timers_10000_cpu_s", databases.name, 0, cpu_s, "s")


async def _seed(url: str) -> int:
    """Returns when the first timer is due."""
    store = open_store(url)
    await store.open()
    try:
        now_ms = await store.now_ms()
        first_ms = now_ms + int(AHEAD_S * 1000)
        for first in range(0, TIMERS, _BATCH):
            changes = [Change(_sleeper(number, now_ms, first_ms)) for number in range(first, first + _BATCH)]
            if len((await store.commit(changes, now_ms)).written) != len(changes):
                raise AssertionError("not all runs were stored")
    finally:
        await store.close()
    return first_ms


def _sleeper(number: int, now_ms: int, first_ms: int) -> Run:
    """A run that waits for a timer, within one second of all others': decided by the core, and not stored yet."""
    run = Run("default", f"sleeper-{number}", new_id())
    decide(run, StartRun(WorkflowSpec(workflow_type="sleeper", task_queue="default"), "bench"), now_ms, _LIMITS)
    length = Duration()
    length.FromMilliseconds(first_ms - now_ms + number * _SECOND_MS // TIMERS)
    timer = Command(start_timer=StartTimer(timer_id="1", duration=length))
    fence = Fence(WORKFLOW_TASK_ID, 1, "", 0)
    decide(run, CompleteWorkflowTask(fence, run.last_event_id, [timer], holds_run=False), now_ms, _LIMITS)
    return run


async def _all_fired(address: str) -> None:
    """Wait until the code of all runs is to be told: nobody serves them, so their tasks gather."""
    async with Client(address) as client:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            queue = await client.describe_task_queue()
            if sum(backlog.tasks for backlog in queue.backlogs) >= TIMERS:
                return
            await asyncio.sleep(0.1)
    raise AssertionError(f"not all timers fired within {PATIENCE_S:.0f} s")


async def _lateness(url: str) -> list[int]:
    """How many ms after its time each timer fired."""
    store = open_store(url)
    await store.open()
    try:
        run_ids = [run.run_id for run in await store.list_runs("default", WorkflowFilter(), None, TIMERS)]
        late = []
        for run_id in run_ids:
            events = await store.show_history(run_id, 0, 10, max_bytes=1 << 20)
            started = next(event.timer_started for event in events if event.HasField("timer_started"))
            fired = next(event.time for event in events if event.HasField("timer_fired"))
            late.append(timestamp_ms(fired) - timestamp_ms(started.fire_time))
    finally:
        await store.close()
    if len(late) != TIMERS:
        raise AssertionError(f"{len(late)} runs are there, {TIMERS} were stored")
    return late
