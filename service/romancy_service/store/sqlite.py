"""The store in one SQLite file: for one process, without anything to install.

One thread owns the connection that writes; others own one each that reads: for the service itself, and, cut off after a
while, for what clients find by key and for what they search for. Nobody else has the file, which a lock beside it
ensures. So a transaction waits for nobody, and what it has looked at stays true until its end.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import math
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
from sqlalchemy import Label, Select, StaticPool, create_engine, func, literal_column, select, text
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.sql.expression import Executable

from romancy_service import faults
from romancy_service.core.run import Run
from romancy_service.core.task import TypeKey
from romancy_service.errors import BatchRejected, QueryTooSlow, StoreUnavailable
from romancy_service.store import tables
from romancy_service.store.batch import Batch, batch_of
from romancy_service.store.events import NewEvent
from romancy_service.store.migrate import upgrade
from romancy_service.store.rows import Row
from romancy_service.store.sql import CLIENT_READ_S, compiled
from romancy_service.store.sqlite_commit import commit
from romancy_service.store.sqlite_events import add_events
from romancy_service.store.sqlite_removal import clear_removed, forget_requests, remove, remove_expired, set_namespace
from romancy_service.store.sqlite_tasks import agenda, beat, claim, hand_over, leased, load, release, see_replica
from romancy_service.store.store import (
    Agenda,
    Beat,
    Change,
    Claimed,
    CommitResult,
    LeasedRow,
    Namespace,
    Request,
    Store,
    StoreRefused,
    Want,
)

_log = structlog.get_logger("romancy.store")

T = TypeVar("T")

_DIALECT: Final = SQLiteDialect_pysqlite(paramstyle="qmark")
_SAMPLED: Final = 2_000
"""Runs that are looked up for an estimate: some milliseconds, for an error of a fifth where one in 100 is selected."""
_FIRST_ROW: Final = "(select min(rowid) from main.runs)"
_PARTS: Final = 2**20
_GOLDEN: Final = 648_055
"""Its multiples, modulo the parts, are spread evenly and without a period: nothing that recurs is in step with them."""
_SPAN: Final = f"((select max(rowid) from main.runs) - {_FIRST_ROW} + 1)"
_FILTERED: Final = ("run_id", "namespace", "workflow_id", "workflow_type", "status", "start_ms", "close_ms")
_SAMPLE: Final = (
    text(f"""
    select {", ".join(_FILTERED)} from main.runs where rowid in (
        with recursive places(place) as (select 0 union all select place + 1 from places where place < {_SAMPLED - 1})
        select {_FIRST_ROW} + (place * {_PARTS} + place * {_GOLDEN} % {_PARTS}) * {_SPAN} / {_SAMPLED * _PARTS}
        from places
    ) limit {_SAMPLED}
    """)
    .columns(*(tables.runs.c[name] for name in _FILTERED))
    .cte("runs")
)
"""Stands for `runs` where it is there. It has one row number out of each stretch, at no regular distance, each time the
same ones; those of deleted runs count as runs that are not selected. For its limit, SQLite asks no other index first.
"""
_THEIR_ATTRIBUTES: Final = (
    text(f"""
    select {", ".join(tables.attributes.c.keys())}
    from main.attributes where run_id in (select run_id from runs) limit -1
    """)
    .columns(*tables.attributes.c)
    .cte("attributes")
)
"""Likewise for `attributes`."""
_STEPS_BETWEEN_LOOKS: Final = 10_000
"""Of SQLite's machine, about a tenth of a millisecond."""
_TAKEN: Final = (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
_BAD_DATA: Final = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    ValueError,
    TypeError,
    OverflowError,
)

_WRITER: Final = """
pragma journal_mode = wal;
pragma synchronous = full;
pragma busy_timeout = 5000;
pragma cache_size = -65536;
pragma temp_store = memory;
pragma journal_size_limit = 67108864;
"""
_READER: Final = """
pragma query_only = on;
pragma busy_timeout = 5000;
pragma cache_size = -16384;
pragma wal_autocheckpoint = 0;
"""


_MARK_TIME: Final = "update clock set mark_ms = max(mark_ms, ?)"


def _resets_its_log_safely(version: tuple[int, ...]) -> bool:
    """Whether one connection may begin the write-ahead log anew while another one copies it back into the file.

    Older ones could then lose committed pages. This store never does both at once: only its writer writes and copies.
    """
    return version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)


class SqliteStore(Store):
    """See Store."""

    lanes = 1

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._lock: int | None = None
        self._writing = _Connection("store-writer")
        self._reading = _Connection("store-reader")
        self._showing = _Connection("store-shower", limit_s=CLIENT_READ_S)
        self._searching = _Connection("store-searcher", limit_s=CLIENT_READ_S)
        self._clock = _SteadyClock()

    async def open(self) -> None:
        if not _resets_its_log_safely(sqlite3.sqlite_version_info):
            _log.warning(
                "this SQLite can damage a file that two programs write to at once; let no other program open the "
                "database while the service runs, or use SQLite 3.51.3 or newer",
                version=sqlite3.sqlite_version,
            )
        self._take_file()
        await self.migrate()
        for connection in (self._reading, self._showing, self._searching):
            await connection.open(self._path, _READER)

    async def migrate(self) -> None:
        self._take_file()
        await self._writing.open(self._path, _WRITER)
        await self._writing.run(_upgrade)
        mark = await self._writing.run(lambda connection: connection.execute("select mark_ms from clock").fetchone())
        self._clock.not_before(mark["mark_ms"])

    def _take_file(self) -> None:
        if self._lock is not None:
            return
        lock_path = self._path.with_name(self._path.name + ".lock")
        try:
            self._lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreRefused(f"cannot use the database file {self._path}: {error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._lock, 20).decode(errors="replace").strip()
            self._release_file()
            raise StoreRefused(
                f"the database file {self._path} is in use by process {holder or '(unknown)'}, and only one can"
                " have it: stop that one, or use Postgres, which any number of replicas can share"
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _release_file(self) -> None:
        if self._lock is not None:
            os.close(self._lock)  # the lock goes with it
            self._lock = None

    async def close(self) -> None:
        # The writer last: it clears the log, and is the only one that ever does.
        for connection in (self._reading, self._showing, self._searching, self._writing):
            await connection.close()
        self._release_file()

    async def now_ms(self) -> int:
        now_ms = self._clock.now_ms()
        await self._writing.run(lambda connection: connection.execute(_MARK_TIME, (now_ms,)))
        return self._clock.now_ms()

    # Runs ---------------------------------------------------------------------------------------------------------

    async def commit(self, changes: Sequence[Change], now_ms: int) -> CommitResult:
        try:
            batch = batch_of(changes, now_ms)
            result = await self._writing.run(lambda connection: _commit(connection, batch))
        except _BAD_DATA as error:
            raise _rejected(error) from error
        faults.point("commit.after")
        if faults.ambiguous("commit"):
            raise StoreUnavailable("what became of a commit is unknown, because a test asked for it")
        return result

    async def load(self, run_ids: Sequence[str]) -> dict[str, Run]:
        return await self._reading.run(lambda connection: load(connection, run_ids))

    # Removal ------------------------------------------------------------------------------------------------------

    async def remove_run(self, request: Request, now_ms: int) -> str | None:
        return await self._remember(lambda connection: remove(connection, request, now_ms))

    async def remove_expired(self, namespace: str, before_ms: int, now_ms: int, limit: int) -> int:
        return await self._writing.run(
            lambda connection: remove_expired(connection, namespace, before_ms, now_ms, limit)
        )

    async def forget_requests(self, namespace: str, before_ms: int, limit: int) -> int:
        return await self._writing.run(lambda connection: forget_requests(connection, namespace, before_ms, limit))

    async def clear_removed(self, before_ms: int) -> int:
        return await self._writing.run(lambda connection: clear_removed(connection, before_ms))

    async def set_namespace(self, namespace: Namespace, request: Request, now_ms: int) -> None:
        await self._remember(lambda connection: set_namespace(connection, namespace, request, now_ms))

    async def _remember(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._writing.run(work)
        except sqlite3.IntegrityError as error:
            raise BatchRejected(str(error), conflict=error.sqlite_errorcode in _TAKEN) from error

    # Events -------------------------------------------------------------------------------------------------------

    async def add_events(self, namespace: str, new: Sequence[NewEvent], now_ms: int) -> set[tuple[str, str]]:
        return await self._writing.run(lambda connection: add_events(connection, namespace, new, now_ms))

    # Tasks --------------------------------------------------------------------------------------------------------

    async def claim(self, wants: Sequence[Want], now_ms: int) -> list[Claimed]:
        claimed = await self._writing.run(lambda connection: claim(connection, wants, now_ms))
        faults.point("claim.after")
        if faults.ambiguous("claim"):
            raise StoreUnavailable("what became of a claim is unknown, because a test asked for it")
        return claimed

    async def agenda(self, now_ms: int, keys: Sequence[TypeKey]) -> Agenda:
        return await self._reading.run(lambda connection: agenda(connection, now_ms, keys))

    async def beat(self, replica_id: str, now_ms: int) -> list[str]:
        return await self._writing.run(lambda connection: see_replica(connection, replica_id, now_ms))

    async def leased_tasks(self, session_id: str, epoch: int) -> list[Claimed]:
        return await self._writing.run(lambda connection: leased(connection, session_id, epoch))

    async def release(self, leases: Sequence[LeasedRow], now_ms: int) -> None:
        await self._writing.run(lambda connection: release(connection, leases, now_ms))

    async def heartbeat(self, beats: Sequence[Beat], now_ms: int) -> list[bool]:
        return await self._writing.run(lambda connection: beat(connection, beats, now_ms))

    async def hand_over(self, leases: Sequence[LeasedRow], now_ms: int) -> list[bool]:
        return await self._writing.run(lambda connection: hand_over(connection, leases, now_ms))

    # The rest -----------------------------------------------------------------------------------------------------

    async def _read(self, statement: Executable, **values: Any) -> Sequence[Row]:
        return await self._reading.run(lambda connection: _execute(connection, statement, values))

    async def _show(self, statement: Executable, **values: Any) -> Sequence[Row]:
        return await self._showing.run(lambda connection: _execute(connection, statement, values))

    async def _search(self, statement: Executable, **values: Any) -> Sequence[Row]:
        return await self._searching.run(lambda connection: _execute(connection, statement, values))

    async def _write(self, statement: Executable, **values: Any) -> Sequence[Row]:
        return await self._writing.run(lambda connection: _execute(connection, statement, values))

    async def _write_apart(self, statement: Executable, **values: Any) -> Sequence[Row]:
        return await self._write(statement, **values)

    async def _sweep(self, statement: Executable, **values: Any) -> Sequence[Row]:
        return await self._write(statement, **values)

    async def _write_together(self, first: Executable, *others: Executable, **values: Any) -> Sequence[Row]:
        def write(connection: sqlite3.Connection) -> Sequence[Row]:
            rows: Sequence[Any] = _execute(connection, first, values)
            found = [row[0] for row in rows]
            for other in others if rows else ():
                _execute(connection, other, {**values, "found": found})
            return rows

        try:
            return await self._writing.run(write)
        except _BAD_DATA as error:
            raise _rejected(error) from error

    async def _estimate(self, query: Select[tuple[str]]) -> int:
        found = func.count().label("found")
        span: Label[int] = literal_column(_SPAN).label("span")
        counted = select(found, span).select_from(query.subquery()).add_cte(_SAMPLE, _THEIR_ATTRIBUTES)
        (row,) = await self._search(counted)
        return int(row["found"] * max(row["span"], _SAMPLED) / _SAMPLED)

    async def notify(self, payload: str) -> None:
        """There are no others."""

    async def listen(self, callback: Callable[[str], None]) -> None:
        """There are no others."""


class _Connection:
    """A connection, and the only thread that uses it."""

    def __init__(self, name: str, *, limit_s: float = math.inf) -> None:
        self._name = name
        self._limit_s = limit_s
        """What is asked for is not begun, or is stopped, so long after."""
        self._thread: ThreadPoolExecutor | None = None
        self._connection: sqlite3.Connection

    async def open(self, path: Path, settings: str) -> None:
        if self._thread is None:
            thread = ThreadPoolExecutor(1, self._name)
            try:
                await asyncio.get_running_loop().run_in_executor(thread, self._open, path, settings)
            except StoreRefused:
                thread.shutdown()
                raise
            self._thread = thread

    def _open(self, path: Path, settings: str) -> None:
        try:
            self._connection = sqlite3.connect(path, isolation_level=None)
            self._connection.row_factory = sqlite3.Row
            self._connection.executescript(settings)
            (mode,) = self._connection.execute("pragma journal_mode").fetchone()
        except sqlite3.Error as error:
            raise StoreRefused(f"cannot use the database file {path}: {error}") from error
        if mode != "wal":
            raise StoreRefused(
                f"the file system of {path} cannot keep a write-ahead log (it is {mode}): use a local disk"
            )

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work` in a transaction of its own. StoreUnavailable when the file cannot be read or written."""
        if self._thread is None:
            raise StoreUnavailable("the database file is closed")
        stop_at = time.monotonic() + self._limit_s
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work, stop_at)

    def _run(self, work: Callable[[sqlite3.Connection], T], stop_at: float) -> T:
        connection = self._connection
        if self._limit_s < math.inf:
            connection.set_progress_handler(lambda: time.monotonic() > stop_at, _STEPS_BETWEEN_LOOKS)
            if time.monotonic() > stop_at:
                raise QueryTooSlow(self._limit_s)
        try:
            connection.execute("begin immediate" if self._name == "store-writer" else "begin")
            result = work(connection)
            connection.commit()
        except BaseException as error:
            self._roll_back()
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
                raise QueryTooSlow(self._limit_s) from error
            if isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError:
                raise StoreUnavailable(f"the database file cannot be used: {error}") from error
            raise
        return result

    def _roll_back(self) -> None:
        try:
            self._connection.rollback()
        except sqlite3.Error as error:
            _log.error("a transaction was not rolled back", error=str(error))

    async def close(self) -> None:
        if self._thread is not None:
            thread, self._thread = self._thread, None
            if self._limit_s < math.inf:
                self._connection.interrupt()  # nobody waits for it any more
            await asyncio.get_running_loop().run_in_executor(thread, self._connection.close)
            thread.shutdown()


class _SteadyClock:
    """Wall time that neither goes back nor stands still: not even when the machine's clock is set back."""

    def __init__(self) -> None:
        self._reached_ms = 0
        self._reached_at = time.monotonic()

    def not_before(self, mark_ms: int) -> None:
        self._reached_ms = max(self._reached_ms, mark_ms)

    def now_ms(self) -> int:
        at = time.monotonic()
        passed_ms = int((at - self._reached_at) * 1000)
        now_ms = max(time.time_ns() // 1_000_000, self._reached_ms + passed_ms)
        if now_ms > self._reached_ms:
            self._reached_ms, self._reached_at = now_ms, at
        return now_ms


def _commit(connection: sqlite3.Connection, batch: Batch) -> CommitResult:
    """Write a batch. The transaction is open still: whoever dies here leaves nothing of it."""
    result = commit(connection, batch)
    faults.point("commit.before")
    return result


def _execute(connection: sqlite3.Connection, statement: Executable, values: dict[str, Any]) -> Sequence[Row]:
    sql, arguments = compiled(statement, _DIALECT, values)
    encoded = [json.dumps(list(value)) if isinstance(value, list | tuple) else value for value in arguments]
    rows: list[sqlite3.Row] = connection.execute(sql, encoded).fetchall()
    return rows


def _rejected(error: Exception) -> BatchRejected:
    conflict = getattr(error, "sqlite_errorcode", None) in _TAKEN
    return BatchRejected(f"{type(error).__name__}: {error}", conflict=conflict)


def _upgrade(connection: sqlite3.Connection) -> None:
    """Migrate within the transaction that is under way."""
    row_factory, connection.row_factory = connection.row_factory, None
    engine = create_engine("sqlite://", creator=lambda: connection, poolclass=StaticPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as borrowed:
        upgrade(borrowed)
    connection.row_factory = row_factory
