"""Service and workers die at each step from an event to the workflow that it starts: each starts one, and counts once."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import aiohttp
import psutil
import pytest

from romancy import Client, Event
from romancy_service.faults import PUBLISH_POINTS
from tests.faults.actor import Actor
from tests.faults.listeners import opened
from tests.faults.scene import Scene, free_port, scene, until

DEATHS = (
    "publish.stored:1",  # it is kept, and the sender does not know
    "commit.before:1",
    "commit.after:1",  # its workflow is stored, and nobody knows
    "publish.delivered:1",  # its workflow is started, and it counts as open
    "publish.counted:1",
)
FROZEN = ("commit.before:1", "publish.delivered:1", "publish.counted:1")
CLIENTS = 8

pytestmark = pytest.mark.timeout(240)


def test_every_point_of_starting_by_an_event_is_died_at() -> None:
    assert {death.partition(":")[0] for death in DEATHS} >= set(PUBLISH_POINTS)


def a_worker(stage: Scene, name: str) -> Actor:
    return stage.start(name, "tests.faults.listeners", f"127.0.0.1:{stage.port}", name)


async def send(session: aiohttp.ClientSession, port: int, event_id: str, source: str = "/shop") -> None:
    """Send an event by HTTP until it is accepted, as senders do."""
    document = {"specversion": "1.0", "id": event_id, "source": source, "type": "opened", "data": [event_id]}
    headers = {"Content-Type": "application/cloudevents+json"}
    async with asyncio.timeout(60):
        while True:
            try:
                url = f"http://127.0.0.1:{port}/events"
                async with session.post(url, json=document, headers=headers) as answer:
                    if answer.status == 202:
                        return
                    assert answer.status == 503, await answer.text()
            except aiohttp.ClientError:
                pass  # it is away
            await asyncio.sleep(0.05)


async def all_started(client: Client, expected: list[str]) -> None:
    """These workflows, once each, and the rule counts as many."""

    async def counted() -> bool:
        shown = await client.describe_event_rule("open")
        assert (shown.skipped_count, shown.failed_count, shown.last_error) == (0, 0, "")
        return shown.started_count >= len(expected)

    await until(counted, "all are started")
    found = [info.workflow_id async for info in client.list_workflows()]
    assert sorted(found) == sorted(expected)
    assert (await client.describe_event_rule("open")).started_count == len(expected)


async def test_wherever_the_service_dies_an_event_starts_one_workflow(stage: Scene) -> None:
    http = free_port()
    where = {"ROMANCY_HTTP": f"127.0.0.1:{http}"}
    service = await stage.service(**where)
    a_worker(stage, "worker-1")
    expected = []
    async with stage.client() as client, aiohttp.ClientSession() as session:
        await client.set_event_rule("open", "opened", opened)
        for number, death in enumerate(DEATHS):
            service.kill()
            service = await stage.service(ROMANCY_CRASH_AT=death, **where)
            sending = asyncio.create_task(send(session, http, str(number)))
            await until(lambda: not service.alive, f"the service died at {death}")  # noqa: B023
            service = await stage.service(**where)
            await sending
            expected.append(f"open#/shop#{number}")
            handle = client.get_handle(expected[-1], workflow=opened)
            await all_started(client, expected)
            assert await handle.result() == [str(number)]
    await stage.finish(losses=False)


@pytest.mark.parametrize("each", [25, pytest.param(1_250, marks=pytest.mark.slow)])
async def test_events_of_eight_clients_each_start_one_while_all_else_dies(stage: Scene, each: int) -> None:
    http = free_port()
    where = {"ROMANCY_HTTP": f"127.0.0.1:{http}"}
    await stage.service(**where)
    a_worker(stage, "worker-1")
    async with stage.client() as client:
        await client.set_event_rule("open", "opened", opened)
        sent: Counter[str] = Counter()

        async def by_http(name: str) -> None:
            async with aiohttp.ClientSession() as session:
                for number in range(each):
                    await send(session, http, str(number), name)
                    sent[name] += 1

        async def by_grpc(name: str) -> None:
            async with stage.client() as own:
                for number in range(each):
                    await own.publish_event(Event("opened", [str(number)], source=name, id=str(number)))
                    sent[name] += 1

        sending = [asyncio.create_task((by_http, by_grpc)[number % 2](f"/{number}")) for number in range(CLIENTS)]
        for third in (1, 2):
            await until(lambda: sent.total() >= CLIENTS * each * third // 3, "a third is sent")  # noqa: B023
            for actor in [actor for actor in stage.actors if actor.alive]:
                actor.kill()
            await stage.service(**where)
            a_worker(stage, f"worker-{third + 1}")
        await asyncio.gather(*sending)
        expected = [f"open#/{name}#{number}" for name in range(CLIENTS) for number in range(each)]
        await all_started(client, expected)
        # By run ids, which are waited for on one stream: ten thousand calls at once would look for them one by one.
        runs = [(info.workflow_id, info.run_id) async for info in client.list_workflows()]
        results = await asyncio.gather(*(client.get_handle(*run).result() for run in runs))
        assert results == [[workflow_id.rpartition("#")[2]] for workflow_id, _ in runs]
    await stage.finish(losses=False)


async def test_a_replica_that_freezes_in_the_middle_starts_and_counts_nothing_twice_when_it_goes_on(
    tmp_path: Path, fresh_postgres: Callable[[], str]
) -> None:
    for point in FROZEN:
        await _freeze(tmp_path / point, fresh_postgres(), point)


async def _freeze(folder: Path, database: str, point: str) -> None:
    async with scene(folder, database) as stage:
        frozen = await stage.service(ROMANCY_STOP_AT=point)
        async with stage.client() as client:
            await client.set_event_rule("open", "opened", opened)
            await client.publish_event(Event("opened", [0], source="/shop", id="0"))
        await until(lambda: psutil.Process(frozen.pid).status() == psutil.STATUS_STOPPED, f"it freezes at {point}")
        port = free_port()
        await stage.service(port=port)
        async with stage.client(port) as client:
            for number in range(1, 5):
                await client.publish_event(Event("opened", [number], source="/shop", id=str(number)))
            expected = [f"open#/shop#{number}" for number in range(5)]
            await all_started(client, expected)
            frozen.signal(signal.SIGCONT)
            await client.publish_event(Event("opened", [5], source="/shop", id="5"))
            await all_started(client, [*expected, "open#/shop#5"])
            assert await asyncio.to_thread(frozen.stop) == 0, "with what it was at"
            await all_started(client, [*expected, "open#/shop#5"])
