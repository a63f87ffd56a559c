"""System: a service, a worker and clients on a database, each a process of its own."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc

from tests.bench.database import Database
from tests.bench.process import Process, machine_cpu_s, python

_START_S: Final = 30.0
_PORTS: Final = (20_000, 32_000)
"""Below those that the system gives to connections, and within what a signed number of 16 bits can hold."""


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds by process, so far."""

    service: float
    worker: float
    client: float
    postgres: float
    machine: float
    """All processes there are, others included."""

    def __sub__(self, other: Usage) -> Usage:
        return Usage(
            self.service - other.service,
            self.worker - other.worker,
            self.client - other.client,
            self.postgres - other.postgres,
            self.machine - other.machine,
        )

    @property
    def ours(self) -> float:
        """Of what is written here: all but Postgres."""
        return self.service + self.worker + self.client

    @property
    def others(self) -> float:
        """Of processes that have nothing to do with the bench, and of the kernel by itself."""
        return max(0.0, self.machine - self.ours - self.postgres)


@dataclass(slots=True)
class System:
    """Processes that run. `close` ends them."""

    database: Database
    folder: Path
    address: str
    service: Process
    worker: Process | None = None
    clients: list[Process] = field(default_factory=list)

    def start_worker(self) -> None:
        """Start the worker that has the workload."""
        self.worker = Process("worker", python("tests.bench.worker", self.address), self.folder)

    def start_crowd(self, count: int) -> None:
        """Start so many workers with it, in one process, and wait until they are connected."""
        self.worker = Process("crowd", python("tests.bench.worker", self.address, count), self.folder)
        self.worker.line()

    def start_client(self, *arguments: object) -> Process:
        """Start a client; see tests/bench/client.py for the arguments."""
        client = Process("client", python("tests.bench.client", self.address, *arguments), self.folder)
        self.clients.append(client)
        return client

    def usage(self) -> Usage:
        """What the processes used so far, the last client's included."""
        worker = self.worker.cpu_s() if self.worker is not None else 0.0
        client = self.clients[-1].cpu_s() if self.clients else 0.0
        return Usage(self.service.cpu_s(), worker, client, self.database.cpu_s(), machine_cpu_s())

    def close(self) -> None:
        """End all, the service last."""
        for process in (*self.clients, self.worker, self.service):
            if process is not None:
                process.stop()


def heard(process: Process, at: str) -> dict[str, Any]:
    """The next thing that a client tells, which must be `at`."""
    document: dict[str, Any] = json.loads(process.line())
    if document["at"] != at:
        raise AssertionError(f"{process.name} told {document['at']!r} where {at!r} was expected")
    return document


@contextlib.contextmanager
def system(
    database: Database, *, worker: bool = True, workers: int | None = None, limits: Mapping[str, int] | None = None
) -> Iterator[System]:
    """A service on `database`, with a worker, or with `workers` that have few slots each, for the time of the block."""
    with tempfile.TemporaryDirectory(prefix="romancy-bench-") as folder:
        address = f"127.0.0.1:{free_port()}"
        options = [f"--limit={name}={value}" for name, value in (limits or {}).items()]
        serve = python("romancy_service", "serve", "--database", database.url, "--listen", address, *options)
        running = System(database, Path(folder), address, Process("service", serve, Path(folder)))
        try:
            _wait_for(running)
            if workers is not None:
                if workers:
                    running.start_crowd(workers)
            elif worker:
                running.start_worker()
            yield running
        finally:
            running.close()


def _wait_for(running: System) -> None:
    deadline = time.monotonic() + _START_S
    with grpc.insecure_channel(running.address, [("grpc.max_reconnect_backoff_ms", 200)]) as channel:
        ready = grpc.channel_ready_future(channel)
        while not ready.done():
            running.service.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"the service did not listen on {running.address} within {_START_S:.0f} s")
            time.sleep(0.05)


def free_port() -> int:
    """A port of the loopback that nobody listens on now, and that no connection is given by chance."""
    while True:
        port = random.randint(*_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
