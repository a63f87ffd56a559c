"""Load: orders a second with so many in flight, and what each of them costs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.bench.database import Databases, SqliteDatabase
from tests.bench.measurement import Measurement
from tests.bench.profile import Profile
from tests.bench.system import Usage, heard, system

STEPS: Final = 3
"""Activities of an order."""
WARM_UP_S: Final = 2.0
COUNT_S: Final = 2.0
"""Seconds of load while rows are counted, where counting slows it down."""


def load(databases: Databases, in_flight: int, seconds: float, profiles: Path | None = None) -> Iterator[Measurement]:
    """Keep `in_flight` orders open for `seconds`."""
    database = databases.fresh()
    with system(database) as running:
        client = running.start_client("load", in_flight, WARM_UP_S, seconds)
        heard(client, "begin")
        before = running.usage()
        profile = Profile(running, profiles, seconds) if profiles is not None else None
        measured = heard(client, "end")
        used = running.usage() - before
        started = _all_ended(heard(client, "done"))
        if profile is not None:
            profile.finish()

    def row(name: str, value: float, unit: str) -> Measurement:
        return Measurement(name, databases.name, in_flight, value, unit)

    per_s = measured["completed"] / measured["elapsed_s"]
    latencies_s = measured["latencies_s"]
    if in_flight == 1:
        yield row("lone_p50_ms", 1e3 * quantile(latencies_s, 0.50), "ms")
        yield row("lone_p99_ms", 1e3 * quantile(latencies_s, 0.99), "ms")
    else:
        yield row("workflows_per_s", per_s, "1/s")
        yield row("steps_per_s", per_s * STEPS, "1/s")
        yield row("latency_p50_ms", 1e3 * quantile(latencies_s, 0.50), "ms")
        yield row("latency_p99_ms", 1e3 * quantile(latencies_s, 0.99), "ms")
    yield from (row(name, value, "s") for name, value in cpu(used, measured["completed"] / 1_000, databases.name))
    yield row("cores_used", (used.ours + used.postgres) / measured["elapsed_s"], "cores")
    yield row("cores_used_by_others", used.others / measured["elapsed_s"], "cores")
    work = database.work()
    yield row("commits_per_workflow", work.versions_per_run, "")
    if work.rows_written is not None:
        yield row("rows_per_workflow", work.rows_written / started, "")
    if work.transactions is not None:
        yield row("round_trips_per_workflow", work.transactions / started, "")


def count_rows(databases: Databases, in_flight: int) -> Iterator[Measurement]:
    """Rows written for each order, where the database has to be made to count them."""
    database = databases.fresh()
    if not isinstance(database, SqliteDatabase):
        return
    with system(database) as running:
        database.count_rows()
        client = running.start_client("load", in_flight, 0, COUNT_S)
        heard(client, "begin")
        heard(client, "end")
        started = _all_ended(heard(client, "done"))
    rows = database.work().rows_written
    assert rows is not None
    yield Measurement("rows_per_workflow", databases.name, in_flight, rows / started, "")


def _all_ended(done: dict[str, Any]) -> int:
    """How many orders were placed; they must all have ended."""
    if done["unfinished"]:
        raise AssertionError(f"{done['unfinished']} of {done['started']} orders did not end")
    return int(done["started"])


def quantile(ordered: list[float], part: float) -> float:
    """The smallest value that `part` of all values do not exceed."""
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")


def cpu(used: Usage, thousands: float, database: str) -> Iterator[tuple[str, float]]:
    """CPU time for a thousand orders: of all processes together, and of each."""
    yield "cpu_s_per_1000_workflows", (used.ours + used.postgres) / thousands
    for process in ("service", "worker", "client"):
        yield f"cpu_s_per_1000_workflows_{process}", getattr(used, process) / thousands
    if database == "postgres":
        yield "cpu_s_per_1000_workflows_postgres", used.postgres / thousands
