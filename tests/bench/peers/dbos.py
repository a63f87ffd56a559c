"""DBOS: a library with its state in Postgres. The processes that use it carry workflows out by themselves."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any, Final

from tests.bench.database import PostgresCluster
from tests.bench.peers.entrant import Running, Terms, processes
from tests.bench.peers.installation import interpreter
from tests.bench.process import python

# Its async steps call the database from threads: as many as there are connections, or, by default, as many as it likes.
# Python computes on one thread of a process, so a second process has the second core. Postgres has 100 connections.
_POOLED: Final = {"sys_db_pool_size": 20, "max_executor_threads": 20}
VARIANTS: Final[dict[str, tuple[int, dict[str, Any]]]] = {
    "2 processes, 20 connections and 20 threads each": (2, _POOLED),
    "2 processes, defaults": (2, {}),
    "2 processes, 40 connections and 40 threads each": (2, {"sys_db_pool_size": 40, "max_executor_threads": 40}),
    "1 process, 20 connections and 20 threads": (1, _POOLED),
    "1 process, defaults": (1, {}),
    "1 process, 50 connections and 50 threads": (1, {"sys_db_pool_size": 50, "max_executor_threads": 50}),
}
"""Processes, and what is said in `DBOSConfig`."""
_PROGRAMS: Final = "tests.bench.peers.programs"


class Dbos:
    """See Entrant."""

    name = "dbos"
    database = "postgres"
    variants = tuple(VARIANTS)
    variant = variants[0]

    def prepare(self, cluster: PostgresCluster) -> None:
        """See Entrant."""
        self._cluster = cluster
        self._python = interpreter()

    @contextlib.contextmanager
    def running(self) -> Iterator[Running]:
        """See Entrant. The library starts with the client."""
        most, settings = VARIANTS[self.variant]

        def client(terms: Terms) -> list[str]:
            url = database.url.replace("postgresql://", "postgresql+psycopg://")
            # With one order at a time there is nothing to share, and client and worker are best in one process.
            processes_used = min(most, terms.in_flight)
            if processes_used == 1:
                return python(
                    f"{_PROGRAMS}.dbos_app", url, json.dumps(settings), *terms.words, interpreter=self._python
                )
            words = (url, json.dumps(settings), processes_used, *terms.words)
            return python(f"{_PROGRAMS}.dbos_crew", *words, interpreter=self._python)

        with self._cluster.lent() as database, processes(self._cluster) as running:
            running.client_command = client
            yield running
