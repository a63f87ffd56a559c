"""Grown: what the service does on a database that has 10 million history events, against an empty one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any, Final

from romancy_service.core.run import Run
from tests.bench.database import Database, Databases
from tests.bench.load import quantile
from tests.bench.measurement import Measurement
from tests.bench.seed import copies, copy_runs, execute, seed, waiting
from tests.bench.system import Usage, heard, system

EVENTS: Final = 10_000_000
IN_FLIGHT: Final = 256
WARM_UP_S: Final = 3.0
LOOKS: Final = 200
FEW_OPEN: Final = 20
"""Orders that are open while lists are asked for, and that were started before all others."""
_LONG_AGO_MS: Final = 20 * 86_400_000
_PATTERNS: Final = 1_000
_PAIRS: Final = 2
"""Loads on the grown database, each between two on empty ones."""


def grown(databases: Databases, seconds: float, scale: float = 1.0) -> Iterator[Measurement]:
    """Orders are placed; those that completed are copied until there are so many events; more orders are placed."""
    database = databases.fresh()
    empty = [_orders(database, seconds)]
    begin = time.perf_counter()
    events = asyncio.run(_grow(database.url, int(EVENTS * scale)))
    yield Measurement("grown_events", databases.name, 0, events, "")
    yield Measurement("seeding_s", databases.name, 0, time.perf_counter() - begin, "s")
    full = []
    for _ in range(_PAIRS):
        full.append(_orders(database, seconds))
        empty.append(_orders(databases.fresh(), seconds))
    for name, runs in (("empty", empty), ("grown", full)):
        yield Measurement(f"workflows_per_s_{name}", databases.name, IN_FLIGHT, max(rate for rate, _ in runs), "1/s")
        least_s = min(cpu_s for _, cpu_s in runs)
        yield Measurement(f"cpu_s_per_1000_workflows_{name}", databases.name, IN_FLIGHT, least_s, "s")
    ratio = max(rate for rate, _ in full) / max(rate for rate, _ in empty)
    yield Measurement("grown_to_empty", databases.name, IN_FLIGHT, ratio, "times")
    yield from _looks(database, databases.name)


def _orders(database: Database, seconds: float) -> tuple[float, float]:
    """Orders a second, and CPU time for a thousand, all processes together."""
    with system(database) as running:
        client = running.start_client("load", IN_FLIGHT, WARM_UP_S, seconds)
        heard(client, "begin")
        before = running.usage()
        measured = heard(client, "end")
        used: Usage = running.usage() - before
        heard(client, "done")
    completed = max(measured["completed"], 1)
    return completed / measured["elapsed_s"], 1e3 * (used.ours + used.postgres) / completed


async def _grow(url: str, wanted: int) -> int:
    """Copy completed orders until there are so many events. Returns how many there are."""
    found = "from runs where namespace = 'default' and status = 3 and workflow_type = 'order'"
    patterns = await execute(url, f"select run_id, last_event_id {found} order by start_ms desc limit {_PATTERNS}")
    there = int((await execute(url, "select sum(last_event_id) from runs"))[0][0])
    each = sum(row[1] for row in patterns) / len(patterns)
    count = max(int((wanted - there) / each) + 1, 0)
    await copy_runs(url, copies([row[0] for row in patterns], count))
    return int((await execute(url, "select sum(last_event_id) from runs"))[0][0])


def _looks(database: Database, name: str) -> Iterator[Measurement]:
    """Lists and counts as a person would ask for them, through the service."""
    asyncio.run(seed(database.url, _open_orders, FEW_OPEN, tidy=False, ago_ms=_LONG_AGO_MS))
    with system(database, worker=False) as running:
        client = running.start_client("look", LOOKS, FEW_OPEN)
        looks: dict[str, Any] = heard(client, "looked")["took_s"]
    for what, took_s in looks.items():
        took_s = sorted(took_s)
        yield Measurement(f"{what}_p50_ms", name, 0, 1e3 * quantile(took_s, 0.50), "ms")
        yield Measurement(f"{what}_p99_ms", name, 0, 1e3 * quantile(took_s, 0.99), "ms")


def _open_orders(then_ms: int) -> list[Run]:
    """They wait for a worker, and there is none."""
    return [waiting("order", then_ms) for _ in range(FEW_OPEN)]
