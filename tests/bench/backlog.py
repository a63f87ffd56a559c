"""Backlog: a million tasks that wait, of a type that is served and of one that nobody serves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Final

from romancy_service.core.task import TaskKind
from romancy_service.store.presence import SessionRow
from romancy_service.store.store import Claimed, LeasedRow, Store, Want, open_store
from tests.bench.database import Databases
from tests.bench.load import quantile
from tests.bench.measurement import Measurement
from tests.bench.seed import execute, seed, waiting
from tests.bench.system import heard, system

TASKS: Final = 1_000_000
CLAIMS: Final = 300
SLOTS: Final = 10
"""A claim asks for so many."""
DRAIN_S: Final = 10.0
WARM_UP_S: Final = 4.0
_PATTERNS: Final = 1_000
_SESSION: Final = "bench"


def backlog(databases: Databases, scale: float = 1.0) -> Iterator[Measurement]:
    """Claims, alone and behind what waits; then how fast a worker drains it, from the beginning on and long after."""
    total = int(TASKS * scale)
    database = databases.fresh()
    asyncio.run(seed(database.url, lambda now_ms: [waiting("orphan", now_ms) for _ in range(_PATTERNS)], total))
    asyncio.run(seed(database.url, lambda now_ms: [waiting("nap", now_ms) for _ in range(_PATTERNS)], 20_000))
    yield from _quantiles("behind_orphans", databases.name, asyncio.run(_claims(database.url, "nap")))
    with system(database) as running:
        client = running.start_client("load", 64, 2.0, 5.0)
        heard(client, "begin")
        measured = heard(client, "end")
        heard(client, "done")
    yield Measurement(
        "workflows_per_s_behind_orphans", databases.name, 64, measured["completed"] / measured["elapsed_s"], "1/s"
    )
    database = databases.fresh()
    asyncio.run(seed(database.url, lambda now_ms: [waiting("nothing", now_ms) for _ in range(_PATTERNS)], total))
    yield from _quantiles("of_a_million", databases.name, asyncio.run(_claims(database.url, "nothing")))
    yield from _drain(databases, total)
    yield from _drain(databases, 10_000)


def _quantiles(name: str, database: str, milliseconds: list[float]) -> Iterator[Measurement]:
    yield Measurement(f"claim_{name}_p50_ms", database, 0, quantile(milliseconds, 0.50), "ms")
    yield Measurement(f"claim_{name}_p99_ms", database, 0, quantile(milliseconds, 0.99), "ms")


async def _claims(url: str, workflow_type: str) -> list[float]:
    """How long each of some claims takes, one after the other, in ms and in order. What is claimed stays so."""
    store = open_store(url)
    await store.open()
    try:
        now_ms = await store.now_ms()
        row = SessionRow(_SESSION, "default", "bench", "bench", 1, now_ms + 10**9, True, False, now_ms, b"")
        await store.open_session(row)
        want = Want("default", "default", TaskKind.WORKFLOW, workflow_type, SLOTS, _SESSION, 1)
        took_ms = []
        for _ in range(CLAIMS):
            begin = time.perf_counter()
            claimed = await store.claim([want], now_ms + 1_000)
            took_ms.append(1e3 * (time.perf_counter() - begin))
            if len(claimed) != SLOTS:
                raise AssertionError(f"a claim of {SLOTS} got {len(claimed)}")
        await _give_back(store, now_ms)
        return sorted(took_ms)
    finally:
        await store.close()


async def _give_back(store: Store, now_ms: int) -> None:
    held: list[Claimed] = await store.leased_tasks(_SESSION, 1)
    rows = [LeasedRow(row.run_id, row.task.task_id, row.task.attempt, _SESSION, 1) for row in held]
    await store.release(rows, now_ms)
    await store.close_session(_SESSION, 1, now_ms)


def _drain(databases: Databases, total: int) -> Iterator[Measurement]:
    """Runs a second that are completed while so many wait."""
    database = databases.fresh()
    asyncio.run(seed(database.url, lambda now_ms: [waiting("nothing", now_ms) for _ in range(_PATTERNS)], total))
    with system(database) as running:
        time.sleep(WARM_UP_S)
        before, used_before, begin = _done(database.url), running.usage(), time.perf_counter()
        time.sleep(DRAIN_S if total > 100_000 else DRAIN_S / 4)
        done, used, elapsed_s = _done(database.url), running.usage() - used_before, time.perf_counter() - begin
    count = done - before
    yield Measurement("drained_runs_per_s", databases.name, total, count / elapsed_s, "1/s")
    if count:
        yield Measurement("drain_cpu_s_per_1000", databases.name, total, 1e3 * (used.ours + used.postgres) / count, "s")


def _done(url: str) -> int:
    rows = asyncio.run(
        execute(url, "select count(*) from runs where namespace = 'default' and status = 3 and start_ms > 0")
    )
    return int(rows[0][0])
