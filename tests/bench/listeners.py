"""Listeners: how soon an event wakes a run that waits for it, and what it costs that many others wait too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from typing import Final

from romancy.v1.command_pb2 import Subscribe

from romancy_service.core.run import Run
from tests.bench.database import Databases
from tests.bench.load import quantile
from tests.bench.measurement import Measurement
from tests.bench.process import Process
from tests.bench.seed import listening, seed
from tests.bench.system import System, heard, system

WOKEN: Final = 300
"""So many runs are woken, one after the other: a hundredth of them is three."""
PAUSES_S: Final = (0.0, 30.0)
"""So long they have waited when the first is woken."""
FEW: Final = 100
MANY: Final = 100_000
LONG_AGO_MS: Final = 20 * 86_400_000


def wake(databases: Databases) -> Iterator[Measurement]:
    """Runs that wait, in the memory of their worker; each is woken by an event of its own, nothing else going on."""
    for pause_s in PAUSES_S:
        with system(databases.fresh()) as running:
            client = running.start_client("wake", WOKEN, "start", pause_s)
            waited = f"_after_{pause_s:.0f}_s" if pause_s else ""
            yield from _figures(databases.name, running, client, waited)


def listeners(databases: Databases, scale: float = 1.0) -> Iterator[Measurement]:
    """The same with 100, and with 100,000 runs that wait since long ago, each for an event of its own."""
    memory_mb = []
    for count, there in ((FEW, FEW), (MANY, max(int(MANY * scale), FEW))):
        database = databases.fresh()
        asyncio.run(seed(database.url, partial(_listeners, there), there, ago_ms=LONG_AGO_MS))
        with system(database) as running:
            client = running.start_client("wake", FEW, "find", 0)
            yield from _figures(databases.name, running, client, f"_of_{count}")
            memory_mb.append(running.service.rss_mb())
        yield Measurement(f"service_rss_{count}_listening_mb", databases.name, 0, memory_mb[-1], "MB")
    grown = 1e6 * (memory_mb[1] - memory_mb[0]) / (MANY - FEW)
    yield Measurement("service_bytes_per_listener", databases.name, 0, grown, "bytes")


def _figures(database: str, running: System, client: Process, of: str) -> Iterator[Measurement]:
    heard(client, "begin")
    before, begin = running.usage(), time.perf_counter()
    measured = heard(client, "end")
    others = (running.usage() - before).others / (time.perf_counter() - begin)
    heard(client, "done")
    for name in ("publish", "wake"):
        ordered = sorted(measured[f"{name}_s"])
        for percent in (50, 99):
            value_ms = 1e3 * quantile(ordered, percent / 100)
            yield Measurement(f"{name}{of}_p{percent}_ms", database, 1, value_ms, "ms")
    yield Measurement(f"cores_used_by_others_at_wake{of}", database, 1, others, "cores")


def _listeners(count: int, then_ms: int) -> Iterator[Run]:
    """Each waits for what the code of the workload's `listener` asks for."""
    for number in range(count):
        subscribe = Subscribe(subscription_id="1", event_type="ping", where={"data.number": str(number)}, once=True)
        yield listening("listener", number, subscribe, then_ms)
