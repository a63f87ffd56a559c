"""Temporal: its server on the shared Postgres, a Python worker and a client."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from tests.bench.database import PostgresCluster
from tests.bench.peers.entrant import CannotRun, Processes, Running, Terms, processes
from tests.bench.peers.installation import carry_out, interpreter, temporal_programs
from tests.bench.process import ROOT, Process, ProcessFailed, python
from tests.bench.system import free_port, heard

_WORKER: Final = {"slots": 1_000, "cached": 5_000}
# Activities go to the worker with the answer that asked for them; and a task queue has one partition instead of four.
_EAGER: Final = {
    "system.enableActivityEagerExecution": True,
    "matching.numTaskqueueReadPartitions": 1,
    "matching.numTaskqueueWritePartitions": 1,
}
VARIANTS: Final[dict[str, tuple[int, dict[str, Any]]]] = {
    "eager activities, one partition, 5 pollers": (5, _EAGER),
    "eager activities, one partition, autoscaled pollers": (0, _EAGER),
    "defaults, 5 pollers": (5, {}),
}
"""Pollers of each kind of task (0: autoscaled), and dynamic configuration."""
SHARDS: Final = 4
CONNECTIONS: Final = 20
"""To Postgres, of each of the server's four services."""
_SETUP_S: Final = 120.0
_TEMPLATE: Final = "temporal"
# What lists are made from. On Postgres it needs the extension btree_gin, which our Postgres does not have. So it is in
# memory, as Temporal's development server has it, which is quicker.
_VISIBILITY: Final = {
    "pluginName": "sqlite",
    "databaseName": "visibility",
    "connectAddr": "localhost",
    "connectProtocol": "tcp",
    "connectAttributes": {"mode": "memory", "cache": "private"},
    "maxConns": 1,
    "maxIdleConns": 1,
    "maxConnLifetime": "1h",
}
_PLUGIN: Final = "postgres12_pgx"
_SERVICES: Final = ("frontend", "matching", "history", "worker")
_PROGRAM: Final = "tests.bench.peers.programs.temporal_worker"


class Temporal:
    """See Entrant."""

    name = "temporal"
    database = "postgres"
    variants = tuple(VARIANTS)
    variant = variants[0]

    def prepare(self, cluster: PostgresCluster) -> None:
        """See Entrant. Schema and namespace are made once, in databases that those of the runs are copies of."""
        self._cluster = cluster
        self._python = interpreter()
        self._programs = temporal_programs()
        self._socket = parse_qs(urlsplit(cluster.url("postgres")).query)["host"][0]
        cluster.fresh(name=_TEMPLATE)
        self._set_up("setup-schema", "-v", "0.0")
        self._set_up("update-schema", "-s", "postgresql/v12/temporal")
        with processes(cluster) as running:
            address, server = self._start_server(running, _TEMPLATE)
            with _blamed_on(server):
                carry_out(python(_PROGRAM, address, "register", interpreter=self._python), ROOT, _SETUP_S)
        # Who was here is gone: a server that starts soon would wait for it.
        cluster.execute(_TEMPLATE, "delete from cluster_membership")

    @contextlib.contextmanager
    def running(self) -> Iterator[Running]:
        """See Entrant."""
        pollers, _ = VARIANTS[self.variant]
        with self._cluster.lent(template=_TEMPLATE) as database, processes(self._cluster) as running:
            # The schema's version is kept by the database's name.
            self._cluster.execute(database.name, f"update schema_version set db_name = '{database.name}'")
            address, server = self._start_server(running, database.name)
            worker = running.start(
                "worker",
                python(_PROGRAM, address, json.dumps(_WORKER | {"pollers": pollers}), interpreter=self._python),
                tells=True,
            )
            with _blamed_on(server):
                heard(worker, "ready")

            def client(terms: Terms) -> list[str]:
                program = "tests.bench.peers.programs.temporal_client"
                return python(program, address, *terms.words, interpreter=self._python)

            running.client_command = client
            yield running

    def _set_up(self, *words: str) -> None:
        where = ("--ep", "localhost", "-p", "5432", "-u", "postgres", "--pw", "none", "--pl", _PLUGIN)
        tool = str(self._programs / "temporal-sql-tool")
        carry_out([tool, *where, "--db", _TEMPLATE, "--ca", f"host={self._socket}", *words], self._programs, _SETUP_S)

    def _start_server(self, running: Processes, database: str) -> tuple[str, Process]:
        dynamic = running.folder / "dynamic.yaml"
        _, values = VARIANTS[self.variant]
        dynamic.write_text(json.dumps({name: [{"value": value}] for name, value in values.items()}))
        port = free_port()
        config = running.folder / "temporal.yaml"
        # JSON is YAML.
        config.write_text(json.dumps(self._config(port, database, dynamic), indent=1))
        server = running.start(
            "server",
            [str(self._programs / "temporal-server"), "--config-file", str(config), "--allow-no-auth", "start"],
        )
        return f"127.0.0.1:{port}", server

    def _config(self, port: int, database: str, dynamic: Path) -> dict[str, Any]:
        """As `development-postgres12.yaml` of the server's own repository, where nothing else is said."""
        ports = {name: free_port() for name in _SERVICES} | {"frontend": port}
        return {
            "log": {"stdout": True, "level": "error"},
            "persistence": {
                "defaultStore": "main",
                "visibilityStore": "visibility",
                "numHistoryShards": SHARDS,
                "datastores": {
                    "main": {"sql": self._store(database)},
                    "visibility": {"sql": _VISIBILITY},
                },
            },
            "global": {"membership": {"maxJoinDuration": "30s", "broadcastAddress": "127.0.0.1"}},
            "services": {
                name: {"rpc": {"grpcPort": grpc_port, "membershipPort": free_port(), "bindOnLocalHost": True}}
                for name, grpc_port in ports.items()
            },
            "clusterMetadata": {
                "enableGlobalNamespace": False,
                "failoverVersionIncrement": 10,
                "masterClusterName": "active",
                "currentClusterName": "active",
                "clusterInformation": {
                    "active": {
                        "enabled": True,
                        "initialFailoverVersion": 1,
                        "rpcName": "frontend",
                        "rpcAddress": f"localhost:{port}",
                    }
                },
            },
            "dcRedirectionPolicy": {"policy": "noop"},
            "archival": {"history": {"state": "disabled"}, "visibility": {"state": "disabled"}},
            "dynamicConfigClient": {"filepath": str(dynamic), "pollInterval": "10s"},
        }

    def _store(self, database: str) -> dict[str, Any]:
        return {
            "pluginName": _PLUGIN,
            "databaseName": database,
            "connectAddr": "localhost:5432",
            "connectProtocol": "tcp",
            "connectAttributes": {"host": self._socket},
            "user": "postgres",
            "password": "none",
            "maxConns": CONNECTIONS,
            "maxIdleConns": CONNECTIONS,
            "maxConnLifetime": "1h",
        }


@contextlib.contextmanager
def _blamed_on(server: Process) -> Iterator[None]:
    """If the block fails because the server is gone, the server's last words say why."""
    try:
        yield
    except (CannotRun, ProcessFailed):
        server.check()
        raise
