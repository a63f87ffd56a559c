"""Sleepers: how much memory the service takes while 100,000 runs wait for a timer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Final

from google.protobuf.duration_pb2 import Duration

from romancy.v1.command_pb2 import Command, StartTimer

from tests.bench.database import Databases
from tests.bench.measurement import Measurement
from tests.bench.seeding import seed
from tests.bench.system import heard, system

SLEEPERS: Final = 100_000
SETTLE_S: Final = 5.0
"""After its start the service looks for what is due and what was lost."""
IN_FLIGHT: Final = 64
LOAD_S: Final = 2.0
_DAY_S: Final = 86_400


def sleepers(databases: Databases) -> Iterator[Measurement]:
    """Seed the runs, start the service on them, let it work a little, and look."""
    database = databases.fresh()
    begin = time.perf_counter()
    asyncio.run(seed(database.url, SLEEPERS, "sleeper", _timer))
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


def _timer(number: int) -> Command:
    """Of some days."""
    return Command(start_timer=StartTimer(timer_id="1", duration=Duration(seconds=_DAY_S * (1 + number % 30))))
