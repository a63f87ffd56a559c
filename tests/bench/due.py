"""Due: how late timers fire when 10,000 of as many runs are due in the same second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Final

from romancy import Client
from romancy_service.core.run import Run
from tests.bench.database import Databases
from tests.bench.lateness import lateness_ms
from tests.bench.load import quantile
from tests.bench.measurement import Measurement
from tests.bench.seed import seed, sleeping
from tests.bench.system import system

TIMERS: Final = 10_000
AHEAD_MS: Final = 20_000
"""So long before they are due they are stored and the service is started: it is up by then, and has settled."""
PATIENCE_S: Final = 60.0
"""All must have fired by then."""
_SECOND_MS: Final = 1_000
_PATTERNS: Final = 100
"""So many moments of the second have as many timers each."""


def due(databases: Databases, scale: float = 1.0) -> Iterator[Measurement]:
    """Seed the runs, start the service, let the timers fire, and read from the histories when they did."""
    total = int(TIMERS * scale)
    database = databases.fresh()
    first_ms = AHEAD_MS + asyncio.run(seed(database.url, _sleepers, total))
    last_ms = first_ms + _SECOND_MS
    with system(database, worker=False) as running:
        if time.time() * 1000 > first_ms:
            raise AssertionError("the service came up after the first timer was due")
        time.sleep(max(first_ms / 1000 - time.time(), 0))
        before_s = running.service.cpu_s()
        asyncio.run(_all_fired(running.address, total))
        seen_s = time.time() - last_ms / 1000
        cpu_s = running.service.cpu_s() - before_s
    late_ms = asyncio.run(lateness_ms(database.url, "sleeper"))
    if len(late_ms) != total:
        raise AssertionError(f"{len(late_ms)} of {total} timers fired")
    if late_ms[0] < 0:
        raise AssertionError(f"a timer fired {-late_ms[0]:.0f} ms before its time")
    yield Measurement("timer_lateness_10000_due_p50_s", databases.name, 0, quantile(late_ms, 0.50) / 1000, "s")
    yield Measurement("timer_lateness_10000_due_max_s", databases.name, 0, late_ms[-1] / 1000, "s")
    yield Measurement("timers_10000_all_fired_after_s", databases.name, 0, seen_s, "s")
    yield Measurement("timers_10000_cpu_s", databases.name, 0, cpu_s, "s")


def _sleepers(now_ms: int) -> Iterator[Run]:
    """Due one after the other, within one second."""
    for number in range(_PATTERNS):
        yield sleeping("sleeper", AHEAD_MS + number * _SECOND_MS // _PATTERNS, now_ms)


async def _all_fired(address: str, total: int) -> None:
    """Wait until the code of all runs is to be told: nobody serves them, so their tasks gather."""
    async with Client(address) as client:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            queue = await client.describe_task_queue()
            if sum(backlog.tasks for backlog in queue.backlogs) >= total:
                return
            await asyncio.sleep(0.1)
    raise AssertionError(f"not all timers fired within {PATIENCE_S:.0f} s")
