"""Forgetting: whether retention deletes as fast as orders are completed, and what it costs them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Final

from tests.bench.database import Databases
from tests.bench.measurement import Measurement
from tests.bench.seed import copies, copy_runs, execute
from tests.bench.system import heard, system

OLD: Final = 200_000
IN_FLIGHT: Final = 256
WARM_UP_S: Final = 3.0
_LIMITS: Final = {"deleted_history_kept_ms": 1_000}
"""So that histories are cleared while it is measured, as they are a minute later otherwise."""
_PATTERNS: Final = 500


def forgetting(databases: Databases, seconds: float, scale: float = 1.0) -> Iterator[Measurement]:
    """Orders that are long past their retention, and new ones all the while."""
    database = databases.fresh()
    with system(database) as running:
        client = running.start_client("load", IN_FLIGHT, 0, 3.0)
        for at in ("begin", "end", "done"):
            heard(client, at)
    asyncio.run(_age(database.url, int(OLD * scale)))
    with system(database, limits=_LIMITS) as running:
        client = running.start_client("load", IN_FLIGHT, WARM_UP_S, seconds)
        heard(client, "begin")
        there, begin = _old(database.url), time.perf_counter()
        measured = heard(client, "end")
        left, elapsed_s = _old(database.url), time.perf_counter() - begin
        heard(client, "done")
    completed, gone = measured["completed"], deleted(there, left)
    per_s = completed / measured["elapsed_s"]
    yield Measurement("workflows_per_s_while_deleting", databases.name, IN_FLIGHT, per_s, "1/s")
    yield Measurement("deleted_runs_per_s", databases.name, IN_FLIGHT, gone / elapsed_s, "1/s")
    yield Measurement("deleted_to_completed", databases.name, IN_FLIGHT, gone / max(completed, 1), "times")


def deleted(there: int, left: int) -> int:
    """How many went. Raises AssertionError if none was left: retention then had nothing to do for some of the time."""
    if not left:
        raise AssertionError(
            f"all runs past their retention were deleted before the measurement ended, of {there} that were there when "
            "it began: seed more with a greater --scale, or measure for fewer --seconds"
        )
    return there - left


async def _age(url: str, count: int) -> None:
    """Copy completed orders, and have the copies closed long ago."""
    patterns = await execute(url, f"select run_id from runs where status = 3 limit {_PATTERNS}")
    await copy_runs(url, copies([row[0] for row in patterns], count))
    await execute(url, "update runs set close_ms = 1 where workflow_id like 'copy-%'")


def _old(url: str) -> int:
    """How many runs past their retention are there still, or are deleted and have left a history."""
    runs = "select count(*) from runs where namespace = 'default' and status > 2 and close_ms = 1"
    counted = f"select ({runs}) + (select count(*) from removals)"
    return int(asyncio.run(execute(url, counted))[0][0])
