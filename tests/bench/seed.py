"""Seed: a database with millions of rows, as the store's own code would have left it.

The store commits some runs by itself, the *patterns*. Each is then copied by the database, row by row, under other ids:
all that tells a copy from its pattern is what names it. A test compares copies with runs that were committed. Where
each run is to wait for something else, all are patterns.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

import asyncpg

from romancy.v1.command_pb2 import Command, StartTimer, Subscribe
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import WorkflowSpec

from romancy_service.core.decide import decide
from romancy_service.core.limits import Limits
from romancy_service.core.run import Run
from romancy_service.core.task import WORKFLOW_TASK_ID, Fence
from romancy_service.core.triggers import CompleteWorkflowTask, StartRun
from romancy_service.starter import new_id
from romancy_service.store.rows import part_hash
from romancy_service.store.store import Change, Store, open_store
from romancy_service.store.tables import metadata

_LIMITS: Final = Limits()
_COMMITTED_TOGETHER: Final = 128
_COPIED: Final = ("runs", "history", "tasks", "attributes", "requests")
"""The tables that keep something of a run."""
_OWN: Final = {
    "run_id": "copy.run_id",
    "workflow_id": "copy.workflow_id",
    "request_id": "copy.run_id || requests.request_id",
    "part_hash": "copy.part_hash",
}
"""What names a copy."""

Copy = tuple[str, str, str, int]
"""The run id of the pattern; run id, workflow id and part of the copy."""


# Patterns -----------------------------------------------------------------------------------------------------------


def waiting(workflow_type: str, now_ms: int, *, number: int = 0, run_id: str = "", workflow_id: str = "") -> Run:
    """A run that was started with a number, and waits for a worker; not stored yet."""
    run = Run("default", workflow_id or new_id(), run_id or new_id())
    spec = WorkflowSpec(workflow_type=workflow_type, task_queue="default", arguments=[Payload(json=str(number))])
    decide(run, StartRun(spec, "bench"), now_ms, _LIMITS)
    return run


def sleeping(workflow_type: str, sleep_ms: int, now_ms: int, *, run_id: str = "", workflow_id: str = "") -> Run:
    """A run whose code started a timer and waits for it; not stored yet."""
    timer = StartTimer(timer_id="1")
    timer.duration.FromMilliseconds(sleep_ms)
    run = waiting(workflow_type, now_ms, run_id=run_id, workflow_id=workflow_id)
    return _having_asked(run, Command(start_timer=timer), now_ms)


def listening(workflow_type: str, number: int, subscribe: Subscribe, now_ms: int) -> Run:
    """A run whose code waits for an event, with the number as argument and in its id; not stored yet."""
    run = waiting(workflow_type, now_ms, number=number, workflow_id=f"{workflow_type}-{number}")
    return _having_asked(run, Command(subscribe=subscribe), now_ms)


def _having_asked(run: Run, command: Command, now_ms: int) -> Run:
    """The run after its code asked for one thing: the core decides so."""
    fence = Fence(WORKFLOW_TASK_ID, 1, "", 0)
    decide(run, CompleteWorkflowTask(fence, run.last_event_id, [command], holds_run=False), now_ms, _LIMITS)
    return run


async def store_runs(store: Store, runs: Iterable[Run], now_ms: int) -> list[str]:
    """Commit new runs, as the engine does, in as many lanes as the store has. Returns their ids."""
    left = iter(runs)
    stored: list[str] = []

    async def commit_some() -> None:
        while changes := [Change(run) for run in islice(left, _COMMITTED_TOGETHER)]:
            result = await store.commit(changes, now_ms)
            if len(result.written) != len(changes):
                raise AssertionError(f"{len(changes) - len(result.written)} of {len(changes)} runs were not stored")
            stored.extend(change.run.run_id for change in changes)

    async with asyncio.TaskGroup() as lanes:
        for _ in range(store.lanes):
            lanes.create_task(commit_some())
    return stored


async def seed(
    url: str, make: Callable[[int], Iterable[Run]], total: int, *, tidy: bool = True, ago_ms: int = 0
) -> int:
    """Store the runs that `make` makes of the time, `ago_ms` ago, and copies of them until there are `total`.

    Returns that time.
    """
    store = open_store(url)
    await store.open()
    try:
        then_ms = await store.now_ms() - ago_ms
        patterns = await store_runs(store, make(then_ms), then_ms)
    finally:
        await store.close()
    await copy_runs(url, copies(patterns, total - len(patterns)), tidy=tidy)
    return then_ms


# Copies -------------------------------------------------------------------------------------------------------------


def copies(patterns: Sequence[str], count: int) -> Iterator[Copy]:
    """So many copies of these, each pattern in its turn."""
    for number in range(count):
        run_id = new_id()
        yield patterns[number % len(patterns)], run_id, f"copy-{run_id}", part_hash(run_id)


async def copy_runs(url: str, wanted: Iterator[Copy], *, tidy: bool = True) -> None:
    """Copy all rows of the patterns, on a database whose service does not run. `tidy`: as autovacuum leaves it."""
    if url.startswith("postgresql://"):
        await _copy_on_postgres(url, wanted, tidy=tidy)
    else:
        _copy_on_sqlite(url, wanted)


_CREATE: Final = "create temporary table copy (pattern text, run_id text, workflow_id text, part_hash integer)"


def _copy_table(table: str) -> str:
    columns = [column.name for column in metadata.tables[table].columns]
    values = [_OWN.get(name, f"{table}.{name}") for name in columns]
    return (
        f"insert into {table} ({', '.join(columns)}) select {', '.join(values)} "
        f"from copy join {table} on {table}.run_id = copy.pattern order by copy.run_id"
    )


async def _copy_on_postgres(url: str, wanted: Iterator[Copy], *, tidy: bool) -> None:
    connection = await asyncpg.connect(url)
    try:
        # More than a service would ever want of one connection, but this is a restore.
        for setting in ("work_mem = '256MB'", "maintenance_work_mem = '512MB'", "synchronous_commit = off"):
            await connection.execute(f"set {setting}")
        await connection.execute(_CREATE)
        await connection.copy_records_to_table("copy", records=wanted)
        await connection.execute("analyze copy")
        for table in _COPIED:
            await connection.execute(_copy_table(table), timeout=3_600)
        if tidy:
            await connection.execute("vacuum (analyze)", timeout=3_600)
            await connection.execute("checkpoint", timeout=3_600)
    finally:
        await connection.close()


def _copy_on_sqlite(url: str, wanted: Iterator[Copy]) -> None:
    with contextlib.closing(sqlite3.connect(url)) as connection:
        connection.executescript("pragma cache_size = -524288; pragma temp_store = memory;")
        with connection:
            connection.execute(_CREATE)
            connection.executemany("insert into copy values (?, ?, ?, ?)", wanted)
            for table in _COPIED:
                connection.execute(_copy_table(table))
        connection.execute("pragma wal_checkpoint(truncate)")


async def execute(url: str, statement: str, *values: Any) -> list[Any]:
    """Run one statement on a database of either kind."""
    if url.startswith("postgresql://"):
        connection = await asyncpg.connect(url)
        try:
            return list(await connection.fetch(statement, *values, timeout=3_600))
        finally:
            await connection.close()
    with contextlib.closing(sqlite3.connect(url)) as file, file:
        return file.execute(statement, values).fetchall()
