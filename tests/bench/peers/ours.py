"""Ours: the service, a worker and a client, as `make bench` measures them."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg

from tests.bench.database import PostgresCluster, SqliteDatabase
from tests.bench.peers.entrant import Running, Terms
from tests.bench.peers.programs.bare_rows import Plan
from tests.bench.process import Process
from tests.bench.system import System, system

NAME: Final = "romancy"
_WRITTEN: Final = """
select sum(n_tup_ins), sum(n_tup_upd), sum(n_tup_del), sum(pg_table_size(relid)),
    (select xact_commit from pg_stat_database where datname = current_database()),
    (select count(*) from runs)
from pg_stat_user_tables
"""


@dataclass(frozen=True, slots=True)
class _Running:
    system: System

    def start_client(self, terms: Terms) -> Process:
        return self.system.start_client("load", *terms.words)

    def cpu_s(self) -> float:
        usage = self.system.usage()
        return usage.ours + usage.postgres


class OursOnPostgres:
    """See Entrant. The others are compared with this one."""

    name = NAME
    database = "postgres"
    variants = ()
    variant = ""

    def __init__(self) -> None:
        self.wrote: Plan | None = None
        """What an order wrote in the last run."""

    def prepare(self, cluster: PostgresCluster) -> None:
        """See Entrant."""
        self._cluster = cluster

    @contextlib.contextmanager
    def running(self) -> Iterator[Running]:
        """See Entrant."""
        with self._cluster.lent() as database:
            with system(database) as started:
                yield _Running(started)
            self.wrote = asyncio.run(_wrote(database.url))


async def _wrote(url: str) -> Plan:
    """What each run wrote to this database. Connections report when they end, so the service must be gone."""
    connection = await asyncpg.connect(url)
    try:
        written = await connection.fetchrow(_WRITTEN)
    finally:
        await connection.close()
    assert written is not None  # an aggregate is always one row
    inserted, updated, deleted, size, statements, runs = map(float, written)
    return Plan(inserted / runs, updated / runs, deleted / runs, statements / runs, int(size / (inserted + updated)))


class OursOnSqlite:
    """See Entrant."""

    name = NAME
    database = "sqlite"
    variants = ()
    variant = ""

    def prepare(self, cluster: PostgresCluster) -> None:
        """Nothing is needed."""

    @contextlib.contextmanager
    def running(self) -> Iterator[Running]:
        """See Entrant."""
        with (
            tempfile.TemporaryDirectory(prefix="romancy-bench-") as folder,
            system(SqliteDatabase(Path(folder))) as started,
        ):
            yield _Running(started)
