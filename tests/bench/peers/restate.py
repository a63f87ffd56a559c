"""Restate: its server with its own store, a Python service that it calls, and a client of its HTTP ingress."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.bench.database import PostgresCluster
from tests.bench.peers.entrant import Processes, Running, Terms, processes
from tests.bench.peers.installation import interpreter, restate_server
from tests.bench.process import Process, python
from tests.bench.system import free_port

# The default is 24 partitions. The fewer there are, the more commands share a write of the log. Python computes on one
# thread of a process, so a second process of the service has the second core.
VARIANTS: Final = {
    "4 partitions, 2 processes": (4, 2),
    "24 partitions, 2 processes": (24, 2),
    "1 partition, 2 processes": (1, 2),
    "4 partitions, 1 process": (4, 1),
    "24 partitions, 1 process": (24, 1),
    "1 partition, 1 process": (1, 1),
}
"""Partitions of the server, and processes of the service."""
_START_S: Final = 60.0
# fsync of the log is on by default; it is said here so that no default can change it.
_SERVER: Final = """
base-dir = "{folder}/restate"
cluster-name = "bench"
node-name = "bench"
listen-mode = "tcp"
bind-ip = "127.0.0.1"
bind-port = {node_port}
log-filter = "error"
disable-telemetry = true
default-num-partitions = {partitions}
[bifrost.local]
rocksdb-disable-wal = false
rocksdb-disable-wal-fsync = false
[log-server]
rocksdb-disable-wal-fsync = false
[ingress]
bind-port = {ingress_port}
[admin]
bind-port = {admin_port}
disable-web-ui = true
"""
# As its documentation has it for production: neither side ever closes a connection.
_SERVICE: Final = """
bind = "127.0.0.1:{port}"
worker_class = "uvloop"
workers = {workers}
h2_max_concurrent_streams = 2147483647
keep_alive_max_requests = 2147483647
keep_alive_timeout = 2147483647
"""


class Restate:
    """See Entrant."""

    name = "restate"
    database = "its own"
    variants = tuple(VARIANTS)
    variant = variants[0]

    def prepare(self, cluster: PostgresCluster) -> None:
        """See Entrant."""
        self._server = restate_server()
        self._python = interpreter()

    @contextlib.contextmanager
    def running(self) -> Iterator[Running]:
        """See Entrant."""
        partitions, workers = VARIANTS[self.variant]
        node_port, ingress_port, admin_port, service_port = (free_port() for _ in range(4))

        def client(terms: Terms) -> list[str]:
            program = "tests.bench.peers.programs.restate_client"
            return python(program, f"http://127.0.0.1:{ingress_port}", *terms.words, interpreter=self._python)

        with processes() as running:
            running.client_command = client
            config = _write(
                running.folder / "restate.toml",
                _SERVER.format(
                    folder=running.folder,
                    partitions=partitions,
                    node_port=node_port,
                    ingress_port=ingress_port,
                    admin_port=admin_port,
                ),
            )
            server = running.start("server", [str(self._server), "--no-logo", "--config-file", str(config)])
            service = self._start_service(running, service_port, workers)
            _ask(admin_port, "/health", server)
            _ask(ingress_port, "/restate/health", server)
            _ask(admin_port, "/deployments", service, {"uri": f"http://127.0.0.1:{service_port}"})
            yield running

    def _start_service(self, running: Processes, port: int, workers: int) -> Process:
        config = _write(running.folder / "hypercorn.toml", _SERVICE.format(port=port, workers=workers))
        program = "tests.bench.peers.programs.restate_service:app"
        return running.start("service", python("hypercorn", "--config", config, program, interpreter=self._python))


def _write(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


def _ask(port: int, path: str, process: Process, document: object = None) -> None:
    """Ask until the answer is good."""
    deadline = time.monotonic() + _START_S
    while not _answers(port, path, document):
        process.check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"{process.name} did not answer on {path} within {_START_S:.0f} s")
        time.sleep(0.1)


def _answers(port: int, path: str, document: object) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        if document is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, json.dumps(document), {"content-type": "application/json"})
        return connection.getresponse().status < http.HTTPStatus.BAD_REQUEST
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
