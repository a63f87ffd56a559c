"""Sleepers: a million runs that wait for a timer, and 1,000 of them due in each second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Final

from romancy_service.core.run import Run
from tests.bench.database import Databases
from tests.bench.lateness import lateness_ms
from tests.bench.load import quantile
from tests.bench.measurement import Measurement
from tests.bench.seed import execute, seed, sleeping
from tests.bench.system import System, heard, system

SLEEPERS: Final = 1_000_000
NAPS_PER_S: Final = 1_000
NAPS_S: Final = 20
"""So many seconds have so many timers."""
_TOGETHER: Final = 20
"""So many are due in the same millisecond."""
_AHEAD_MS: Final = 25_000
"""The first is due when the service and its worker are up."""
_PATIENCE_MS: Final = 180_000
_ALL_AWAKE: Final = (
    "select not exists (select 1 from runs where namespace = 'default' and workflow_type = 'nap' and status = 1)"
)
SETTLE_S: Final = 5.0
"""After its start the service looks for what is due and what was lost."""
IN_FLIGHT: Final = 64
LOAD_S: Final = 2.0
_DAY_MS: Final = 86_400_000


def sleepers(databases: Databases, scale: float = 1.0) -> Iterator[Measurement]:
    """Seed the runs, start the service on them, let timers fire, let it work a little, and look."""
    total = int(SLEEPERS * scale)
    database = databases.fresh()
    begin = time.perf_counter()
    asyncio.run(seed(database.url, _long_sleepers, total))
    yield Measurement("seeded_runs_per_s", databases.name, 0, total / (time.perf_counter() - begin), "1/s")
    first_ms = _AHEAD_MS + asyncio.run(seed(database.url, _short_sleepers, NAPS_PER_S * NAPS_S, tidy=False))
    with system(database, worker=False) as running:
        time.sleep(1.0)
        before = running.usage()
        time.sleep(SETTLE_S)
        used = running.usage() - before
        yield Measurement("service_rss_million_sleeping_mb", databases.name, 0, running.service.rss_mb(), "MB")
        yield Measurement("service_cpu_million_sleeping", databases.name, 0, used.service / SETTLE_S, "cores")
        yield Measurement("cores_used_by_others_at_sleepers", databases.name, 0, used.others / SETTLE_S, "cores")
        running.start_worker()
        most_mb, others = _all_fire(running, first_ms)
        yield Measurement("service_rss_million_sleeping_mb", databases.name, NAPS_PER_S, most_mb, "MB")
        yield Measurement("cores_used_by_others_at_sleepers", databases.name, NAPS_PER_S, others, "cores")
        client = running.start_client("load", IN_FLIGHT, 0, LOAD_S)
        for at in ("begin", "end", "done"):
            heard(client, at)
        yield Measurement("service_rss_million_sleeping_mb", databases.name, IN_FLIGHT, running.service.rss_mb(), "MB")
    late_ms = asyncio.run(lateness_ms(database.url, "nap"))
    if len(late_ms) != NAPS_PER_S * NAPS_S:
        raise AssertionError(f"{len(late_ms)} of {NAPS_PER_S * NAPS_S} timers fired")
    yield Measurement("timer_lateness_p50_ms", databases.name, NAPS_PER_S, quantile(late_ms, 0.50), "ms")
    yield Measurement("timer_lateness_p99_ms", databases.name, NAPS_PER_S, quantile(late_ms, 0.99), "ms")
    yield Measurement("timers_early", databases.name, NAPS_PER_S, sum(late < 0 for late in late_ms), "")


def _all_fire(running: System, first_ms: int) -> tuple[float, float]:
    """Wait until all timers fired. Returns the most memory that the service had, and the cores that others used."""
    time.sleep(max(first_ms / 1e3 - time.time(), 0))
    before, begin, most_mb = running.usage(), time.perf_counter(), 0.0
    deadline_ms = first_ms + NAPS_S * 1e3 + _PATIENCE_MS
    while not asyncio.run(execute(running.database.url, _ALL_AWAKE))[0][0]:
        if time.time() * 1e3 > deadline_ms:
            raise AssertionError(f"some of {NAPS_PER_S * NAPS_S} runs slept on for {_PATIENCE_MS / 1e3:.0f} s")
        time.sleep(1.0)
        most_mb = max(most_mb, running.service.rss_mb())
    return most_mb, (running.usage() - before).others / (time.perf_counter() - begin)


def _long_sleepers(now_ms: int) -> list[Run]:
    """Due within the next month, but not today."""
    return [sleeping("sleep", (1 + number % 30) * _DAY_MS + number * 997, now_ms) for number in range(1_000)]


def _short_sleepers(now_ms: int) -> list[Run]:
    """Due one after the other, soon."""
    count = NAPS_PER_S * NAPS_S // _TOGETHER
    return [sleeping("nap", _AHEAD_MS + number * 1_000 * _TOGETHER // NAPS_PER_S, now_ms) for number in range(count)]
