"""Temporal: its server on the shared Postgres, a Python worker and a client."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from tests.bench.database import PostgresCluster
from tests.bench.peers.entrant import Processes, Running, Terms, processes
from tests.bench.peers.installation import carry_out, interpreter, temporal_programs
from tests.bench.process import Process, python
from tests.bench.system import free_port, heard

WORKER: Final[dict[str, Any]] = {"slots": 1_000, "cached": 5_000, "pollers": 10}
SHARDS: Final = 4
CONNECTIONS: Final = 20
"""To Postgres, of each of the server's four services. docs/peers.md has what else was tried."""
_SETUP_S: Final = 120.0
_MAIN, _VISIBILITY = "temporal_main", "temporal_visibility"
_PLUGIN: Final = "postgres12_pgx"
_SERVICES: Final = ("frontend", "matching", "history", "worker")
_PROGRAM: Final = "tests.bench.peers.programs.temporal_worker"


class Temporal:
    """See Entrant."""

    name = "temporal"
    database = "postgres"

    def prepare(self, cluster: PostgresCluster) -> None:
        """See Entrant. Schema and namespace are made once, in databases that those of the runs are copies of."""
        self._cluster = cluster
        self._python = interpreter()
        self._programs = temporal_programs()
        self._socket = parse_qs(urlsplit(cluster.url("postgres")).query)["host"][0]
        for database, schema in ((_MAIN, "temporal"), (_VISIBILITY, "visibility")):
            cluster.fresh(name=database)
            self._set_up(database, "setup-schema", "-v", "0.0")
            self._set_up(database, "update-schema", "-s", f"postgresql/v12/{schema}")
        with processes(cluster) as running:
            address, _ = self._start_server(running, _MAIN, _VISIBILITY)
            carry_out(python(_PROGRAM, address, "register", interpreter=self._python), Path.cwd(), _SETUP_S)
        # Who was here is gone: a server that starts soon would wait for it.
        cluster.execute(_MAIN, "delete from cluster_membership")

    @contextlib.contextmanager
    def running(self) -> Iterator[Running]:
        """See Entrant."""
        main, visibility = (self._cluster.fresh(template=database).name for database in (_MAIN, _VISIBILITY))
        with processes(self._cluster) as running:
            address, server = self._start_server(running, main, visibility)
            worker = running.start(
                "worker", python(_PROGRAM, address, json.dumps(WORKER), interpreter=self._python), tells=True
            )
            heard(worker, "ready")
            server.check()

            def client(terms: Terms) -> list[str]:
                program = "tests.bench.peers.programs.temporal_client"
                return python(program, address, *terms.words, interpreter=self._python)

            running.client_command = client
            yield running

    def _set_up(self, database: str, *words: str) -> None:
        where = ("--ep", "localhost", "-p", "5432", "-u", "postgres", "--pw", "none", "--pl", _PLUGIN)
        tool = str(self._programs / "temporal-sql-tool")
        carry_out([tool, *where, "--db", database, "--ca", f"host={self._socket}", *words], self._programs, _SETUP_S)

    def _start_server(self, running: Processes, main: str, visibility: str) -> tuple[str, Process]:
        dynamic = running.folder / "dynamic.yaml"
        dynamic.write_text("{}\n")
        port = free_port()
        config = running.folder / "temporal.yaml"
        # JSON is YAML.
        config.write_text(json.dumps(self._config(port, main, visibility, dynamic), indent=1))
        server = running.start(
            "server",
            [str(self._programs / "temporal-server"), "--config-file", str(config), "--allow-no-auth", "start"],
        )
        return f"127.0.0.1:{port}", server

    def _config(self, port: int, main: str, visibility: str, dynamic: Path) -> dict[str, Any]:
        """As `development-postgres12.yaml` of the server's own repository, where nothing else is said."""
        ports = {name: free_port() for name in _SERVICES} | {"frontend": port}
        return {
            "log": {"stdout": True, "level": "error"},
            "persistence": {
                "defaultStore": "main",
                "visibilityStore": "visibility",
                "numHistoryShards": SHARDS,
                "datastores": {
                    "main": {"sql": self._store(main, CONNECTIONS)},
                    "visibility": {"sql": self._store(visibility, 2)},
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

    def _store(self, database: str, connections: int) -> dict[str, Any]:
        return {
            "pluginName": _PLUGIN,
            "databaseName": database,
            "connectAddr": "localhost:5432",
            "connectProtocol": "tcp",
            "connectAttributes": {"host": self._socket},
            "user": "postgres",
            "password": "none",
            "maxConns": connections,
            "maxIdleConns": connections,
            "maxConnLifetime": "1h",
        }
