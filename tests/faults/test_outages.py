"""A hundred activities are running when the database, the service or a replica is gone for longer than leases last.

The workers are alive all the time: none runs twice, all finish. Half of the activities end during the outage.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.faults.programs import crowd
from tests.faults.scene import LEASE_S, Actor, Scene, free_port, outage, scene, until
from tests.service.postgres import socket_of, through
from tests.service.proxy import proxy

pytestmark = pytest.mark.timeout(180)
COUNT = 100


@asynccontextmanager
async def _running(stage: Scene, *, services: list[Actor], port: int = 0) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """A hundred activities are running inside the block; the value lets the rest of them end, and waits for all."""
    async with stage.client(port) as client:
        worker = stage.worker("worker-1", port=port)
        handle = await client.start_workflow(crowd, COUNT)
        begun = lambda: sum(entry.kind == "begin" for entry in stage.ledger) == COUNT  # noqa: E731
        await until(begun, "all activities run", worker, *services)

        async def end() -> None:
            stage.open_gates(0, 1, 2, 3)
            assert await handle.result() == sum(range(COUNT))

        yield end


async def _half_end(stage: Scene) -> None:
    stage.open_gates(0, 1)
    await until(lambda: len(stage.effects()) >= COUNT // 2, "half of them end meanwhile")


async def test_while_the_database_is_down(fresh_postgres: Callable[[], str], tmp_path: Path) -> None:
    url = fresh_postgres()
    async with scene(tmp_path, url) as stage, proxy([socket_of(url)]) as database:
        service = await stage.service(database=through(url, database.port))
        async with _running(stage, services=[service]) as end:
            async with outage(database):
                await _half_end(stage)
                await asyncio.sleep(LEASE_S + 3)
            await end()
        await stage.finish(losses=False)


async def test_while_the_service_is_frozen(stage: Scene) -> None:
    service = await stage.service()
    async with _running(stage, services=[service]) as end:
        service.signal(signal.SIGSTOP)
        await _half_end(stage)
        await asyncio.sleep(LEASE_S + 3)
        service.signal(signal.SIGCONT)
        await end()
    await stage.finish(losses=False)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_while_the_service_is_started_again(stage: Scene, how: signal.Signals) -> None:
    service = await stage.service()
    async with _running(stage, services=[service]) as end:
        service.signal(how)
        await asyncio.to_thread(service.process.wait, 20)
        assert service.process.returncode == (0 if how == signal.SIGTERM else -9)
        await _half_end(stage)
        await stage.service()
        await end()
    await stage.finish(losses=False)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_while_one_of_two_replicas_is_killed_or_frozen(
    fresh_postgres: Callable[[], str], tmp_path: Path, how: signal.Signals
) -> None:
    ports = [free_port(), free_port()]
    async with scene(tmp_path, fresh_postgres()) as stage, proxy([("127.0.0.1", port) for port in ports]) as front:
        services = [await stage.service(port=port) for port in ports]
        async with _running(stage, services=services, port=front.port) as end:
            services[0].signal(how)
            front.turn = 1  # whoever connects again gets to the other one
            await _half_end(stage)
            if how == signal.SIGKILL:
                front.cut(0)
            await asyncio.sleep(LEASE_S + 3)
            services[0].signal(signal.SIGCONT)
            await end()
        await stage.finish(losses=False)
