"""Two replicas, of which one freezes at some commit and goes on when the other has gone on without it, while that one's
worker is killed and replaced: what runs bring about in one another happens once and in order all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from romancy import Client
from tests.faults.actor import Actor
from tests.faults.families import hasty
from tests.faults.listeners import hearer, teller
from tests.faults.scene import Scene, free_port, scene, until
from tests.faults.talkers import guest
from tests.faults.test_channel_kills import TOLD, subscribed
from tests.faults.test_family_kills import NEVER, status_of
from tests.faults.test_talk_kills import be_host, check

FROZEN = ("commit.before:5", "commit.after:9")
ALL = tuple(f"commit.{when}:{hit}" for hit in range(1, 21) for when in ("before", "after"))
AT_ONCE = 4

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("frozen", [FROZEN, pytest.param(ALL, marks=pytest.mark.slow)], ids=["some", "all"])
async def test_a_replica_that_freezes_doubles_and_overtakes_nothing_when_it_goes_on(
    fresh_postgres: Callable[[], str], tmp_path: Path, frozen: tuple[str, ...]
) -> None:
    for first in range(0, len(frozen), AT_ONCE):
        points = frozen[first : first + AT_ONCE]
        await asyncio.gather(*(_freeze(tmp_path / point, fresh_postgres(), point) for point in points))


async def _freeze(folder: Path, database: str, point: str) -> None:
    ports = [free_port(), free_port()]
    async with scene(folder, database) as stage:
        mortal = await stage.service(port=ports[0], ROMANCY_STOP_AT=point)
        awake = await stage.service(port=ports[1])
        _, ours = [_worker(stage, f"worker-{port}", port) for port in ports]
        async with stage.client(ports[1]) as client:
            telling = asyncio.create_task(_tell(client))
            await until(
                lambda: _is_frozen(mortal) or telling.done(), f"it freezes at {point}, or comes too late", awake
            )
            mortal.signal(signal.SIGSTOP)  # the other one may have done so much that it does not come there
            ours.kill()
            _worker(stage, "worker-again", ports[1])
            results = await telling
            going_on = asyncio.create_task(_keep_awake(mortal))
            # It finds that all it was at is done; then it must still be of use.
            async with stage.client(ports[0]) as other:
                await other.start_workflow(hasty, "late", id="late")
                await until(lambda: status_of(client, "late/abandon"), "both go on")
            for family in ("hasty", "late"):
                await client.get_handle(f"{family}/abandon").signal("go")
                await client.get_handle(f"{family}/abandon").result()
                assert [await status_of(client, f"{family}/{policy}") for policy in NEVER][:2] == [None, None]
            # Of hosts, their kids, what they told the guest, and their next runs.
            await check(stage, client, ["host-0", "host-1"], results, losses=True)
            await going_on


async def _keep_awake(replica: Actor) -> None:
    """Until it ended: one that did not come to its point before may come there now."""
    while replica.alive:
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
            if _is_frozen(replica):
                replica.signal(signal.SIGCONT)
        await asyncio.sleep(0.05)


def _worker(stage: Scene, name: str, port: int) -> Actor:
    return stage.start(name, "tests.faults.everyone", f"127.0.0.1:{port}", name)


async def _tell(client: Client) -> list[list[int]]:
    """All that runs can bring about in one another."""
    await client.start_workflow(guest, id="guest")
    await client.start_workflow(hasty, "hasty", id="hasty")
    hearing = await client.start_workflow(hearer, TOLD, id="hearer")

    async def send_messages() -> None:
        await subscribed(client, "orders")
        await client.execute_workflow(teller, "hearer", TOLD)
        assert await hearing.result() == [*range(1, TOLD + 1), *range(-1, -TOLD - 1, -1)]

    one, other, _ = await asyncio.gather(be_host(client, "host-0"), be_host(client, "host-1"), send_messages())
    return [one, other]


def _is_frozen(actor: Actor) -> bool:
    return bool(psutil.Process(actor.pid).status() == psutil.STATUS_STOPPED)
