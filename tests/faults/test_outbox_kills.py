"""Service and workers die, or freeze, at each step of an event's way to its sink: nothing is lost, the order is kept."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from romancy import Client
from romancy_service.faults import OUTBOX_POINTS
from tests.faults.actor import Actor
from tests.faults.scene import Scene, free_port, scene, until
from tests.faults.senders import expected, sender
from tests.service.sink import Received, Sink, sink

SETTINGS = {"ROMANCY_SINK_ALLOW": "127.0.0.0/8", "ROMANCY_LIMIT": "sink_answer_ms=1000 sink_connect_ms=500"}
DEATHS = (
    "outbox.claimed:2",  # it is claimed, and not sent
    "outbox.answered:2",  # the sink has it, and nobody else knows
    "outbox.delivered:2",
    "outbox.put_off:1",  # the sink answered 500, and it is to be tried again
    "outbox.buried:1",  # it answered 400, and the next one goes
    "commit.before:4",
    "commit.after:4",  # it is in the outbox, and the engine does not know
    "commit.after:7",
)
STEPS = 6
BAD = 2
"""The step whose event of the code the sink refuses for ever."""

pytestmark = pytest.mark.timeout(240)


def a_worker(stage: Scene, name: str) -> Actor:
    return stage.start(name, "tests.faults.senders", f"127.0.0.1:{stage.port}", name)


def data(received: list[Received]) -> list[Any]:
    """What came, each once, in the order in which it came first."""
    came: list[Any] = []
    for each in received:
        if each.data not in came:
            came.append(each.data)
    return came


def script(server: Callable[[], Sink]) -> Callable[[Received], int]:
    """Takes all but one of each workflow, and one only the second time."""

    def answer(received: Received) -> int:
        if received.data[1:] == [BAD, "code"]:
            return 400
        before = [each for each in server().received if each.data == received.data]
        return 500 if received.data[1:] == [1, "activity"] and len(before) == 1 else 204

    return answer


def test_every_point_of_the_outbox_is_died_at() -> None:
    assert {death.partition(":")[0] for death in DEATHS} >= set(OUTBOX_POINTS)


async def test_wherever_the_service_dies_every_event_arrives_in_order(stage: Scene) -> None:
    async with sink() as server, stage.client() as client:
        server.script = script(lambda: server)
        service = await stage.service(**SETTINGS)
        worker = a_worker(stage, "worker-1")
        await client.outbox.set_sink(server.url)
        service.kill()
        names, running = [], []
        for number, death in enumerate(DEATHS):
            service = await stage.service(ROMANCY_CRASH_AT=death, **SETTINGS)
            names.append(f"sender-{number}")
            start = client.execute_workflow(sender, names[-1], 1, STEPS, id=names[-1])
            running.append(asyncio.create_task(start))
            await until(lambda: not service.alive, f"the service died at {death}", worker)  # noqa: B023
        await stage.service(**SETTINGS)
        assert await asyncio.gather(*running) == [STEPS] * len(DEATHS)
        wanted = {name: [each for each in expected(name, STEPS) if each[1:] != [BAD, "code"]] for name in names}

        def all_came() -> bool:
            return {tuple(each) for each in data(server.taken)} == {tuple(e) for each in wanted.values() for e in each}

        await until(all_came, "every event arrived", worker)
        for name in names:
            assert [each for each in data(server.taken) if each[0] == name] == wanted[name]
        letters = [each async for each in client.outbox.list_events(dead=True)]
        assert sorted(each.event.data[0] for each in letters) == names
        await empty(client)
        # The same event has the same id, however often it is sent.
        ids = {(each.event.get_source(), each.event.get_id(), str(each.data)) for each in server.received}
        assert len(ids) == len(data(server.received)) == len(DEATHS) * 2 * STEPS
    await stage.finish()


async def test_a_worker_that_dies_and_replays_sends_nothing_twice(stage: Scene) -> None:
    await stage.service(**SETTINGS)
    async with sink() as server, stage.client() as client:
        await client.outbox.set_sink(server.url)
        worker = a_worker(stage, "worker-0")
        running = asyncio.create_task(client.execute_workflow(sender, "only", 1, 12, id="only"))
        for number in (1, 2, 3):
            came = len(server.taken)
            await until(lambda: len(server.taken) >= came + 4, "it goes on", worker)  # noqa: B023
            worker.kill()
            worker = a_worker(stage, f"worker-{number}")
        assert await running == 12
        await server.until(24)
        await empty(client)
        assert [each.data for each in server.received] == expected("only", 12)
    await stage.finish()


async def empty(client: Client) -> None:
    async with asyncio.timeout(30):
        while [each async for each in client.outbox.list_events()]:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("point", ["outbox.claimed:3", "outbox.answered:3"])
async def test_a_frozen_replica_holds_up_its_events_only_for_a_while_and_spoils_no_order(
    tmp_path: Path, fresh_postgres: Callable[[], str], point: str
) -> None:
    async with scene(tmp_path, fresh_postgres()) as stage, sink() as server:
        other = free_port()
        await stage.service(**SETTINGS)
        frozen = await stage.service(port=other, ROMANCY_STOP_AT=point, **SETTINGS)
        async with stage.client() as client, stage.client(other) as its_client:
            await client.outbox.set_sink(server.url)
            stage.start("worker-1", "tests.faults.senders", f"127.0.0.1:{other}", "worker-1")
            a_worker(stage, "worker-2")
            names = [f"sender-{number}" for number in range(4)]
            handles = [
                await its_client.start_workflow(sender, name, 1, STEPS, id=name, request_id=name) for name in names
            ]
            wanted = {name: expected(name, STEPS) for name in names}
            results = [client.get_handle(each.workflow_id) for each in handles]
            for result in results:
                await result.result()
            await server.until(len(names) * 2 * STEPS, patience_s=60)
            frozen.signal(signal.SIGCONT)
            await empty(client)
            for name in names:
                assert [each for each in data(server.received) if each[0] == name] == wanted[name]
            # What it had sent, or was about to send, may have come once more.
            assert len(server.received) <= len(names) * 2 * STEPS + 16
        await stage.finish()
