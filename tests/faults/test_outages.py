"""The database, or one of two replicas, is gone for longer than leases last, while a hundred activities run.

The workers are alive all the time: none runs twice, all finish, nothing that was reported is lost. A part of the
activities ends during the outage, a part after it; half of them must beat.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.faults.crowd import running
from tests.faults.postgres_server import postgres_server
from tests.faults.scene import free_port, scene
from tests.service.proxy import proxy

LEASES: Final = 3
"""So many leases is the database away: a minute, with the usual ones."""

pytestmark = pytest.mark.timeout(240)


async def test_while_the_database_is_down_or_frozen(tmp_path: Path, lease_s: float) -> None:
    await asyncio.gather(_crash(tmp_path / "down", lease_s), _freeze(tmp_path / "frozen", lease_s))


async def _crash(folder: Path, lease_s: float) -> None:
    with postgres_server() as postgres:
        async with scene(folder, postgres.fresh()) as stage:
            service = await stage.service()
            async with running(stage, lease_s, service) as end_some:
                postgres.crash()
                await end_some()
                await asyncio.sleep(LEASES * lease_s)
                await asyncio.to_thread(postgres.start)
            await stage.finish(losses=False)


async def _freeze(folder: Path, lease_s: float) -> None:
    with postgres_server() as postgres:
        async with scene(folder, postgres.fresh()) as stage:
            service = await stage.service()
            async with running(stage, lease_s, service) as end_some:
                postgres.freeze()
                await end_some()
                await asyncio.sleep(LEASES * lease_s)
                postgres.thaw()
            await stage.finish(losses=False)


async def test_while_one_of_two_replicas_is_gone(
    fresh_postgres: Callable[[], str], tmp_path: Path, lease_s: float
) -> None:
    hows = (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP)
    await asyncio.gather(*(_lose_replica(tmp_path / how.name, fresh_postgres(), lease_s, how) for how in hows))


async def _lose_replica(folder: Path, database: str, lease_s: float, how: signal.Signals) -> None:
    ports = [free_port(), free_port()]
    async with (
        scene(folder, database) as stage,
        proxy([("127.0.0.1", port) for port in ports], alternate=True) as front,
    ):
        services = [await stage.service(port=port) for port in ports]
        async with running(stage, lease_s, *services, port=front.port) as end_some:
            front.alternate, front.turn = False, 1  # whoever connects again gets to the other one
            services[0].signal(how)
            if how == signal.SIGSTOP:
                await end_some()
                await asyncio.sleep(1.5 * lease_s)
                services[0].signal(signal.SIGCONT)
            else:
                await asyncio.to_thread(services[0].wait)
                await end_some()
        await stage.finish(losses=False)
