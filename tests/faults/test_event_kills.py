"""Service and workers die at each step of an event's way: each is heard once, in order, by all who wait for it."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from romancy import Client, Event
from romancy_service.faults import PUBLISH_POINTS
from tests.faults.actor import Actor
from tests.faults.listeners import EVENT_PLACES, listener, waiter
from tests.faults.scene import LIMITS, Scene, until

DEATHS = (
    "publish.stored:1",  # it is kept, and the sender does not know
    "publish.delivered:1",  # all have it, and it counts as open
    "commit.before:2",
    "commit.after:2",  # somebody has it, and nobody knows
)
CLIENTS = 8

pytestmark = pytest.mark.timeout(240)


def a_worker(stage: Scene, name: str, **environment: str) -> Actor:
    return stage.start(name, "tests.faults.listeners", f"127.0.0.1:{stage.port}", name, **environment)


def test_every_point_of_publishing_is_died_at() -> None:
    counted = {"publish.counted"}  # by rules: test_event_rule_kills.py
    assert {death.partition(":")[0] for death in DEATHS} >= set(PUBLISH_POINTS) - counted


async def listening(stage: Scene, client: Client, workflow_id: str, what: str) -> None:
    """The workflow's code waits for events."""

    async def waits() -> bool:
        return any(what in wait.sentence for wait in (await client.get_handle(workflow_id).describe()).waits)

    async with asyncio.timeout(60):
        while not await waits():
            await asyncio.sleep(0.05)


async def test_wherever_the_service_dies_an_event_reaches_each_that_waits_once(stage: Scene) -> None:
    service = await stage.service()
    worker = a_worker(stage, "worker-1")
    async with stage.client() as client:
        for number, death in enumerate(DEATHS):
            handle = await client.start_workflow(waiter, number, id=f"waiter-{number}")
            await listening(stage, client, handle.workflow_id, "paid")
            service.kill()
            service = await stage.service(ROMANCY_CRASH_AT=death)
            paid = Event("paid", {"order": number}, source="/shop", id=str(number))
            publishing = asyncio.create_task(client.publish_event(paid))
            await until(lambda: not service.alive, f"the service died at {death}", worker)  # noqa: B023
            service = await stage.service()
            await publishing
            assert not await client.publish_event(paid), "it is known by now, whoever was told so"
            assert await client.publish_event(Event("sent", 7, workflow_id=handle.workflow_id))
            assert await handle.result() == [number, 7]
    histories = (await stage.finish(losses=False)).values()
    heard = [event for history in histories for event in history if event.HasField("event_received")]
    assert len(heard) == 2 * len(DEATHS)


async def test_wherever_in_its_code_a_worker_dies_an_event_is_heard_once_by_the_next(stage: Scene) -> None:
    service = await stage.service()
    async with stage.client() as client:
        hearing = []
        for number, place in enumerate(EVENT_PLACES):
            victim = a_worker(stage, f"victim-{place}", ROMANCY_TEST_DIE=place)
            hearing.append(await client.start_workflow(waiter, number, id=f"waiter-{number}"))
            if place != "event.begin":
                await listening(stage, client, f"waiter-{number}", "paid")
                await client.publish_event(Event("paid", {"order": number}, source="/shop", id=str(number)))
            await client.publish_event(Event("sent", 7, workflow_id=f"waiter-{number}"))
            await until(lambda: not victim.alive, f"the worker died at {place}", service)  # noqa: B023
        a_worker(stage, "worker-last")
        await listening(stage, client, "waiter-0", "paid")
        await client.publish_event(Event("paid", {"order": 0}, source="/shop", id="0"))
        assert [await handle.result() for handle in hearing] == [[number, 7] for number in range(len(EVENT_PLACES))]
    histories = (await stage.finish(losses=False)).values()
    heard = [event for history in histories for event in history if event.HasField("event_received")]
    assert len(heard) == 2 * len(EVENT_PLACES)


@pytest.mark.parametrize("each", [40, pytest.param(1_250, marks=pytest.mark.slow)])
async def test_events_of_eight_clients_all_arrive_in_order_while_all_else_dies(
    stage: Scene, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIMITS, "history_recur_events", 120)
    await stage.service()
    a_worker(stage, "worker-1")
    async with stage.client() as client:
        hearing = [
            await client.start_workflow(listener, CLIENTS * each, {}, [], id=f"listener-{number}")
            for number in range(2)
        ]
        for handle in hearing:
            await listening(stage, client, handle.workflow_id, "cry")
        sent: Counter[str] = Counter()

        async def cry(name: str) -> None:
            async with stage.client() as own:
                for number in range(1, each + 1):
                    await own.publish_event(Event("cry", [name, number], source=name, id=str(number)))
                    sent[name] = number

        clients = [asyncio.create_task(cry(f"client-{number}")) for number in range(CLIENTS)]
        for third in (1, 2):
            await until(lambda: sent.total() >= CLIENTS * each * third // 3, "a third is sent")  # noqa: B023
            for actor in [actor for actor in stage.actors if actor.alive]:
                actor.kill()
            await stage.service()
            a_worker(stage, f"worker-{third + 1}")
        await asyncio.gather(*clients)
        assert [await handle.result() for handle in hearing] == [[], []]
    histories = await stage.finish(losses=False)
    # Each run but the last of the two went on when it was told, once, that its history is long.
    told = [sum(event.suggests_recurring for event in history) for history in histories.values()]
    assert len(told) >= 2 * CLIENTS * each // 200
    assert sum(told) >= len(told) - 2
    assert max(told) == 1
