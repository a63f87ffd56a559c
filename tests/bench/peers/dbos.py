"""DBOS: a library with its state in Postgres. One process is worker and client, which spares it all messages."""

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
VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "20 connections, 20 threads": {"sys_db_pool_size": 20, "max_executor_threads": 20},
    "defaults": {},
    "50 connections, 50 threads": {"sys_db_pool_size": 50, "max_executor_threads": 50},
}
"""Of `DBOSConfig`."""


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

        def client(terms: Terms) -> list[str]:
            program = "tests.bench.peers.programs.dbos_app"
            url = database.url.replace("postgresql://", "postgresql+psycopg://")
            return python(program, url, json.dumps(VARIANTS[self.variant]), *terms.words, interpreter=self._python)

        with self._cluster.lent() as database, processes(self._cluster) as running:
            running.client_command = client
            yield running
