"""A hundred activities are running when the database, the service or a replica is gone for longer than leases last.

The workers are alive all the time: none runs twice, all finish, nothing that was reported is lost. A part of the
activities ends during the outage, a part after it; half of them must beat.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from romancy import Client, WorkflowHandle
from tests.faults import scene as scenes
from tests.faults.postgres_server import PostgresServer, postgres_server
from tests.faults.programs import crowd
from tests.faults.scene import Actor, Scene, free_port, scene, until
from tests.service.proxy import proxy

COUNT = 100
WORKERS = 2
"""Fewer than make the service think that the fault is its own."""
SHORT = {"session_lease_ms": 3_000, "heartbeat_interval_ms": 600, "reconnect_grace_ms": 500, "drain_ms": 2_000}
"""The usual times in short: an outage of three leases takes seconds."""
USUAL = {"session_lease_ms": 20_000, "heartbeat_interval_ms": 4_000, "reconnect_grace_ms": 3_000, "drain_ms": 10_000}

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.parametrize("limits", [pytest.param(SHORT, id="short"), pytest.param(USUAL, id="usual", marks=pytest.mark.slow)]),
]


@pytest.fixture(autouse=True)
def lease_s(limits: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> float:
    """How long the leases of this test are."""
    for name, value in limits.items():
        monkeypatch.setitem(scenes.LIMITS, name, value)
    return limits["session_lease_ms"] / 1000


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """A server of these tests' own."""
    with postgres_server() as server:
        yield server


@asynccontextmanager
async def _running(
    stage: Scene, lease_s: float, *services: Actor, port: int = 0
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """A hundred activities are running inside the block; the value lets a part of them end. At its end all have ended."""
    async with stage.client(port) as client:
        workers = [stage.worker(f"worker-{number}", port=port) for number in range(WORKERS)]
        await until(lambda: _connected(client, WORKERS), "the workers are connected", *workers)
        handle = await client.start_workflow(crowd, COUNT)
        await until(lambda: _begun(stage) == COUNT, "all activities run", *workers, *services)

        async def end_some() -> None:
            stage.open_gates(0, 1)
            await until(lambda: len(stage.effects()) == COUNT // 2, "half of them end meanwhile", *workers)

        yield end_some
        await _finish(stage, handle, lease_s)


async def _finish(stage: Scene, handle: WorkflowHandle[int], lease_s: float) -> None:
    # That nobody is taken for lost shows only when the time in which it would happen has passed.
    await asyncio.sleep(1.5 * lease_s)
    assert _begun(stage) == COUNT, "something ran twice"
    stage.open_gates(2, 3)
    async with asyncio.timeout(scenes.PATIENCE_S):
        assert await handle.result() == sum(range(COUNT))
    assert len(stage.effects()) == _begun(stage) == COUNT


def _begun(stage: Scene) -> int:
    return sum(entry.kind == "begin" for entry in stage.ledger)


async def _connected(client: Client, count: int) -> bool:
    return sum(session.connected for session in await client.list_workers()) == count


# The database ---------------------------------------------------------------------------------------------------------


async def test_while_the_database_is_down(postgres: PostgresServer, tmp_path: Path, lease_s: float) -> None:
    async with scene(tmp_path, postgres.fresh()) as stage:
        service = await stage.service()
        async with _running(stage, lease_s, service) as end_some:
            postgres.crash()
            await end_some()
            await asyncio.sleep(3 * lease_s)
            await asyncio.to_thread(postgres.start)
        await stage.finish(losses=False)


async def test_while_the_database_is_frozen(postgres: PostgresServer, tmp_path: Path, lease_s: float) -> None:
    async with scene(tmp_path, postgres.fresh()) as stage:
        service = await stage.service()
        async with _running(stage, lease_s, service) as end_some:
            postgres.freeze()
            await end_some()
            await asyncio.sleep(3 * lease_s)
            postgres.thaw()
        await stage.finish(losses=False)


# The service ----------------------------------------------------------------------------------------------------------


async def test_while_the_service_is_frozen(stage: Scene, lease_s: float) -> None:
    service = await stage.service()
    async with _running(stage, lease_s, service) as end_some:
        service.signal(signal.SIGSTOP)
        await end_some()
        await asyncio.sleep(1.5 * lease_s)
        service.signal(signal.SIGCONT)
    await stage.finish(losses=False)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_while_the_service_is_started_again(stage: Scene, lease_s: float, how: signal.Signals) -> None:
    service = await stage.service()
    async with _running(stage, lease_s, service) as end_some:
        service.signal(how)
        assert await asyncio.to_thread(service.process.wait, 20) == (0 if how == signal.SIGTERM else -how)
        await end_some()
        await asyncio.sleep(1.5 * lease_s)  # longer than anybody's lease, so only what the new one knows of itself counts
        await stage.service()
    await stage.finish(losses=False)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP])
async def test_while_one_of_two_replicas_is_gone(
    fresh_postgres: Callable[[], str], tmp_path: Path, lease_s: float, how: signal.Signals
) -> None:
    ports = [free_port(), free_port()]
    async with (
        scene(tmp_path, fresh_postgres()) as stage,
        proxy([("127.0.0.1", port) for port in ports], alternate=True) as front,
    ):
        services = [await stage.service(port=port) for port in ports]
        async with _running(stage, lease_s, *services, port=front.port) as end_some:
            front.alternate, front.turn = False, 1  # whoever connects again gets to the other one
            services[0].signal(how)
            if how == signal.SIGSTOP:
                await end_some()
                await asyncio.sleep(1.5 * lease_s)
                services[0].signal(signal.SIGCONT)
            else:
                await asyncio.to_thread(services[0].process.wait, 20)
                await end_some()
        await stage.finish(losses=False)
