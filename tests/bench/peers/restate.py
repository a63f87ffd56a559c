"""Restate: its server with its own store, a Python service that it calls, and a client of its HTTP ingress."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.bench.database import PostgresCluster
from tests.bench.peers.entrant import Processes, Running, Terms, processes
from tests.bench.peers.installation import interpreter, restate_server
from tests.bench.process import Process, python
from tests.bench.system import free_port

PARTITIONS: Final = 24
"""Its default; docs/peers.md has what else was tried."""
_START_S: Final = 60.0
# fsync of the log is on by default (`bifrost.local` and `log-server`); it is said here so that no default can change it.
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
workers = 1
h2_max_concurrent_streams = 2147483647
keep_alive_max_requests = 2147483647
keep_alive_timeout = 2147483647
"""


class Restate:
    """See Entrant."""

    name = "restate"
    database = "its own"

    def prepare(self, cluster: PostgresCluster) -> None:
        """See Entrant."""
        self._server = restate_server()
        self._python = interpreter()

    @contextlib.contextmanager
    def running(self) -> Iterator[Running]:
        """See Entrant."""
        node_port, ingress_port, admin_port, service_port = (free_port() for _ in range(4))
        ingress, admin = (f"http://127.0.0.1:{port}" for port in (ingress_port, admin_port))

        def client(terms: Terms) -> list[str]:
            program = "tests.bench.peers.programs.restate_client"
            return python(program, ingress, *terms.words, interpreter=self._python)

        with processes() as running:
            running.client_command = client
            config = _write(
                running.folder / "restate.toml",
                _SERVER.format(
                    folder=running.folder,
                    partitions=PARTITIONS,
                    node_port=node_port,
                    ingress_port=ingress_port,
                    admin_port=admin_port,
                ),
            )
            server = running.start("server", [str(self._server), "--no-logo", "--config-file", str(config)])
            service = self._start_service(running, service_port)
            _ask(f"{admin}/health", server)
            _ask(f"{ingress}/restate/health", server)
            _ask(f"{admin}/deployments", service, {"uri": f"http://127.0.0.1:{service_port}"})
            yield running

    def _start_service(self, running: Processes, port: int) -> Process:
        config = _write(running.folder / "hypercorn.toml", _SERVICE.format(port=port))
        program = "tests.bench.peers.programs.restate_service:app"
        return running.start("service", python("hypercorn", "--config", config, program, interpreter=self._python))


def _write(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


def _ask(url: str, process: Process, document: object = None) -> None:
    """Ask until the answer is good."""
    deadline = time.monotonic() + _START_S
    while True:
        process.check()
        body = json.dumps(document).encode() if document is not None else None
        request = urllib.request.Request(url, body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=10):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{url} did not answer within {_START_S:.0f} s: {error}") from error
            time.sleep(0.1)
