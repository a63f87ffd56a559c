"""Crowd: many workers on one service. 100 that have nothing to do, and 200 that share a load."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from tests.bench.database import Databases
from tests.bench.load import quantile
from tests.bench.measurement import Measurement
from tests.bench.system import heard, system

IDLE_WORKERS: Final = 100
WORKERS: Final = 200
IN_FLIGHT: Final = 256
SETTLE_S: Final = 12.0
"""Connections settle, and what was looked for once at the start is done."""
WARM_UP_S: Final = 3.0


def idle(databases: Databases, seconds: float) -> Iterator[Measurement]:
    """100 workers and no work: what the service does all the same. Both sides of a stream send a frame each 4 s."""
    for workers in (0, IDLE_WORKERS):
        database = databases.fresh()
        with system(database, workers=workers) as running:
            time.sleep(SETTLE_S)
            before, asked = running.usage(), database.transactions()
            time.sleep(seconds)
            used, asked_then = running.usage() - before, database.transactions()
            rss_mb = running.service.rss_mb()
        yield Measurement("idle_service_cores", databases.name, workers, used.service / seconds, "cores")
        yield Measurement("idle_service_rss_mb", databases.name, workers, rss_mb, "MB")
        if asked is not None and asked_then is not None:
            # The question itself counts too.
            yield Measurement(
                "idle_statements_per_s", databases.name, workers, (asked_then - asked - 1) / seconds, "1/s"
            )
            yield Measurement("idle_postgres_cores", databases.name, workers, used.postgres / seconds, "cores")


def wide(databases: Databases, seconds: float) -> Iterator[Measurement]:
    """200 workers with few slots each share the orders of one client."""
    with system(databases.fresh(), workers=WORKERS) as running:
        client = running.start_client("load", IN_FLIGHT, WARM_UP_S, seconds)
        heard(client, "begin")
        before = running.usage()
        measured = heard(client, "end")
        used = running.usage() - before
        heard(client, "done")
    thousands = max(measured["completed"], 1) / 1_000
    yield Measurement(
        "workflows_per_s_200_workers", databases.name, IN_FLIGHT, measured["completed"] / measured["elapsed_s"], "1/s"
    )
    yield Measurement(
        "latency_p99_ms_200_workers", databases.name, IN_FLIGHT, 1e3 * quantile(measured["latencies_s"], 0.99), "ms"
    )
    yield Measurement("service_cpu_s_per_1000_200_workers", databases.name, IN_FLIGHT, used.service / thousands, "s")
