"""The Dockerfile and docker-compose.yml: parsed, and what they run is run here, on a real Postgres."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import socket
import sys
import tomllib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from romancy.v1.admin_service_pb2 import ListSessionsRequest
from romancy.v1.admin_service_pb2_grpc import AdminServiceStub

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PATIENCE_S = 60


def instructions(name: str) -> list[str]:
    """What the Dockerfile says under one instruction, in order."""
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    return [line.removeprefix(name).strip() for line in lines if line.startswith(f"{name} ")]


def image_environment() -> dict[str, str]:
    pairs = (pair.split("=", 1) for line in instructions("ENV") for pair in line.split())
    return {name: value.replace("/romancy", str(ROOT)) for name, value in pairs}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Container:
    """A process with the argv and the environment of a container, but on this machine."""

    def __init__(self, argv: list[str], environment: dict[str, str], moved: dict[str, str]) -> None:
        def move(text: str) -> str:
            for there, here in moved.items():
                text = text.replace(there, here)
            return text

        self._argv = [str(Path(sys.executable).with_name(argv[0])), *map(move, argv[1:])]
        own = {name: move(str(value)) for name, value in environment.items()}
        self._environment = {"PATH": os.environ["PATH"], **image_environment(), **own}

    async def run(self, stdout: int | None = None) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(*self._argv, env=self._environment, cwd=ROOT, stdout=stdout)

    async def succeeds(self) -> bool:
        return await (await self.run()).wait() == 0

    async def says(self) -> str:
        """What it prints until its end, which must be a good one."""
        process = await self.run(stdout=asyncio.subprocess.PIPE)
        printed = (await process.communicate())[0].decode()
        assert process.returncode == 0, printed
        return printed


def told_commands() -> list[list[str]]:
    """What the documents tell to run in the worker's container."""
    section = (ROOT / "docs" / "operations.md").read_text().partition("## With docker compose")[2]
    calls = re.findall(r"^    docker compose exec worker (.*?)(?=\n    docker|\n\n)", section, re.DOTALL | re.MULTILINE)
    return [shlex.split(call) for call in calls]


@contextlib.asynccontextmanager
async def running(*containers: Container) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """The processes are up inside the block; whatever is left of them after it is killed."""
    processes = [await container.run() for container in containers]
    try:
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def connected_workers(port: int) -> int:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = AdminServiceStub(channel)
        answer = await stub.ListSessions(ListSessionsRequest())
        return sum(session.connected for session in answer.sessions)


async def test_compose_runs_two_replicas_on_one_postgres_and_a_worker_that_finds_them(
    fresh_postgres: Callable[[], str], tmp_path: Path
) -> None:
    service, worker = SERVICES["romancy"], SERVICES["worker"]
    ports = [free_port() for _ in range(service["deploy"]["replicas"])]
    assert len(ports) == 2
    database = {service["environment"]["ROMANCY_DATABASE"]: fresh_postgres()}

    def replica(port: int) -> dict[str, str]:
        return {**database, "0.0.0.0:7233": f"0.0.0.0:{port}"}

    replicas = [Container(service["command"], service["environment"], replica(port)) for port in ports]
    kind, *health_argv = service["healthcheck"]["test"]
    assert kind == "CMD"
    checks = [Container(health_argv, {"ROMANCY_ADDRESS": f"127.0.0.1:{port}"}, {}) for port in ports]
    moved = {"romancy:7233": f"127.0.0.1:{ports[0]}", "/tmp": str(tmp_path)}  # noqa: S108 - the container's, not ours

    async with asyncio.timeout(PATIENCE_S), running(*replicas) as services:
        for check in checks:
            while not await check.succeeds():
                assert all(process.returncode is None for process in services), "a replica ended"
        async with running(Container(worker["command"], worker["environment"], moved)) as (worker_process,):
            while await connected_workers(ports[1]) == 0:
                assert worker_process.returncode is None, "the worker ended"
            start, history = [Container(argv, worker["environment"], moved) for argv in told_commands()]
            assert json.loads(await start.says())["confirmation_number"] == "TRACK-ORD-1"
            assert "ActivityCompleted" in await history.says()
            worker_process.send_signal(signal.SIGTERM)
            assert await worker_process.wait() == 0
        for process in services:
            process.send_signal(signal.SIGTERM)
        assert [await process.wait() for process in services] == [0, 0]
        assert not await checks[0].succeeds()


def test_compose_opens_ports_to_this_machine_only() -> None:
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_compose_waits_for_the_health_of_what_it_depends_on() -> None:
    for name, service in SERVICES.items():
        for dependency, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}, name
            assert "test" in SERVICES[dependency]["healthcheck"]


def test_the_image_has_what_it_copies_and_runs_what_compose_runs() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for source in (source for line in instructions("COPY") for source in line.split()[:-1]):
        assert (ROOT / source).exists()
        assert source in allowed
    assert json.loads(instructions("CMD")[0]) == SERVICES["romancy"]["command"]
    health = instructions("HEALTHCHECK")[0].partition("CMD ")[2]
    assert ["CMD", *json.loads(health)] == SERVICES["romancy"]["healthcheck"]["test"]
    assert instructions("USER") == ["romancy"]


@pytest.mark.parametrize(("lock", "extras"), [("requirements.txt", ["service"]), ("requirements-dev.txt", ["dev"])])
def test_the_lock_pins_all_dependencies_by_hash_and_says_nothing_of_where_they_come_from(
    lock: str, extras: list[str]
) -> None:
    text = (ROOT / lock).read_text()
    pinned = {line.partition("==")[0] for line in text.splitlines() if "==" in line}
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = declared["project"]
    wanted = [
        *declared["build-system"]["requires"],
        *project["dependencies"],
        *(d for extra in extras for d in project["optional-dependencies"][extra]),
    ]
    for requirement in wanted:
        name = requirement.partition(">")[0].partition("[")[0]
        assert name in pinned, f"{name} is not in {lock}: run make lock"
    assert "://" not in text
    assert "--index" not in text
    assert text.count("==") <= text.count("--hash=sha256:")
