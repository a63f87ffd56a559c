"""Floors: what the database and gRPC could do at most, with as many rows and frames as ours takes for an order."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Final

from tests.bench.database import PostgresCluster
from tests.bench.peers.entrant import CannotRun, Processes, Running, Terms, processes
from tests.bench.peers.ours import OursOnPostgres
from tests.bench.peers.programs.bare_frames import Kind
from tests.bench.process import Process, python
from tests.bench.system import System, free_port, heard, system

_COUNT_S: Final = 3.0
_COUNTED: Final = "tests.bench.peers.programs.counted"
_FRAMES: Final = "tests.bench.peers.programs.bare_frames"


class BareRows:
    """See Entrant. It writes what ours wrote for each order in its last run, in statements as large."""

    name = "bare asyncpg"
    database = "postgres"
    variants = ()
    variant = ""

    def __init__(self, ours: OursOnPostgres) -> None:
        self._ours = ours

    def prepare(self, cluster: PostgresCluster) -> None:
        """See Entrant."""
        self._cluster = cluster

    @contextlib.contextmanager
    def running(self) -> Iterator[Running]:
        """See Entrant."""
        if self._ours.wrote is None:
            raise CannotRun("ours on Postgres must be measured before it")
        plan = json.dumps(asdict(self._ours.wrote))
        with self._cluster.lent() as database, processes(self._cluster) as running:
            running.client_command = lambda terms: python(
                "tests.bench.peers.programs.bare_rows", database.url, plan, *terms.words
            )
            yield running


class BareFrames:
    """See Entrant. It exchanges what ours does for each order under the same load, which is counted first."""

    name = "bare grpc.aio"
    database = "none"
    variants = ()
    variant = ""

    def prepare(self, cluster: PostgresCluster) -> None:
        """See Entrant."""
        self._cluster = cluster
        self._plans: dict[int, str] = {}

    @contextlib.contextmanager
    def running(self) -> Iterator[Running]:
        """See Entrant. The server starts with the client, when the load is known."""
        with processes() as running:
            yield _Exchange(running, self)

    def plan(self, in_flight: int) -> str:
        """What ours exchanges for each order."""
        if in_flight not in self._plans:
            with self._cluster.lent() as database, system(database, worker=False) as started:
                counts, orders = _count(started, Terms(in_flight, 0, _COUNT_S))
            kinds = {name: asdict(_kind(counts, name, orders)) for name in ("call", "reply", "up", "down")}
            self._plans[in_flight] = json.dumps(kinds)
        return self._plans[in_flight]


@dataclass(frozen=True, slots=True)
class _Exchange:
    processes: Processes
    entrant: BareFrames

    def start_client(self, terms: Terms) -> Process:
        plan = self.entrant.plan(terms.in_flight)
        address = f"127.0.0.1:{free_port()}"
        server = self.processes.start("server", python(_FRAMES, "serve", address, plan), tells=True)
        heard(server, "ready")
        return self.processes.start("client", python(_FRAMES, "load", address, plan, *terms.words), tells=True)

    def cpu_s(self) -> float:
        return self.processes.cpu_s()


def _count(started: System, terms: Terms) -> tuple[Counter[str], int]:
    """Load a service whose worker and client count; and how many orders that was."""
    files = [started.folder / f"{name}.json" for name in ("worker", "client")]
    worker_words = ("tests.bench.worker", started.address)
    client_words = ("tests.bench.client", started.address, "load", *terms.words)
    worker = Process("counting-worker", python(_COUNTED, files[0], *worker_words), started.folder)
    client = Process("counting-client", python(_COUNTED, files[1], *client_words), started.folder)
    try:
        heard(client, "begin")
        heard(client, "end")
        orders = heard(client, "done")["started"]
        client.finish()
    finally:
        client.stop()
        worker.stop()
    return sum((Counter(json.loads(file.read_text())) for file in files), Counter()), orders


def _kind(counts: Counter[str], name: str, orders: int) -> Kind:
    messages, items = counts[name], counts[f"{name}_items"]
    return Kind(messages / orders, items / messages, counts[f"{name}_bytes"] / max(1, items))
