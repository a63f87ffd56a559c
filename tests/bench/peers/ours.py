"""Ours: the service, a worker and a client, as `make bench` measures them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.database import Database, PostgresCluster, SqliteDatabase
from tests.bench.peers.entrant import Running, Terms
from tests.bench.process import Process
from tests.bench.system import System, system

NAME: Final = "romancy"


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
        self.last: Database | None = None
        """What was written to in the last run."""

    def prepare(self, cluster: PostgresCluster) -> None:
        """See Entrant."""
        self._cluster = cluster

    @contextlib.contextmanager
    def running(self) -> Iterator[Running]:
        """See Entrant."""
        self.last = self._cluster.fresh()
        with system(self.last) as started:
            yield _Running(started)


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
