"""Service and workers die at each step of a message's way: who is to have it has it, once and in order."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from romancy import Client
from tests.faults.actor import Actor
from tests.faults.listeners import MESSAGE_PLACES, audience, consumer, hearer, teller
from tests.faults.scene import Scene, until

DEATHS = (
    "publish.stored:2",  # it is kept, and the run that sent it does not know
    "publish.delivered:2",  # who is to have it has it, and it counts as open
    "commit.before:3",
    "commit.after:4",
    "commit.after:7",
    "commit.after:10",
)
CLIENTS = 8
TOLD = 6

pytestmark = pytest.mark.timeout(300)


def a_worker(stage: Scene, name: str, **environment: str) -> Actor:
    return stage.start(name, "tests.faults.listeners", f"127.0.0.1:{stage.port}", name, **environment)


async def subscribed(client: Client, channel: str, count: int = 1) -> None:
    """So many are subscribed."""
    async with asyncio.timeout(60):
        while True:
            if sum([each.subscribers async for each in client.list_channels() if each.name == channel]) >= count:
                return
            await asyncio.sleep(0.05)


async def test_wherever_the_service_dies_messages_of_one_run_to_another_arrive_once_in_order(stage: Scene) -> None:
    service = await stage.service()
    worker = a_worker(stage, "worker-1")
    async with stage.client() as client:
        for number, death in enumerate(DEATHS):
            hearing = await client.start_workflow(hearer, TOLD, id=f"hearer-{number}")
            await subscribed(client, "orders")
            service.kill()
            service = await stage.service(ROMANCY_CRASH_AT=death)
            telling = asyncio.create_task(client.execute_workflow(teller, hearing.workflow_id, TOLD))
            await until(lambda: not service.alive, f"the service died at {death}", worker)  # noqa: B023
            service = await stage.service()
            await telling
            assert await hearing.result() == [*range(1, TOLD + 1), *range(-1, -TOLD - 1, -1)]
    await stage.finish(losses=False)


async def test_wherever_in_its_code_a_worker_dies_messages_arrive_once_in_order(stage: Scene) -> None:
    service = await stage.service()
    async with stage.client() as client:
        for number, place in enumerate(MESSAGE_PLACES):
            victim = a_worker(stage, f"victim-{place}", ROMANCY_TEST_DIE=place)
            hearing = await client.start_workflow(hearer, TOLD, id=f"hearer-{number}")
            telling = asyncio.create_task(tell_when_heard(client, hearing.workflow_id))
            await until(lambda: not victim.alive, f"the worker died at {place}", service)  # noqa: B023
            other = a_worker(stage, f"other-{place}")
            await telling
            assert await hearing.result() == [*range(1, TOLD + 1), *range(-1, -TOLD - 1, -1)]
            other.kill()
    await stage.finish(losses=False)


async def tell_when_heard(client: Client, workflow_id: str) -> None:
    await subscribed(client, "orders")
    await client.execute_workflow(teller, workflow_id, TOLD)


@pytest.mark.parametrize("each", [40, pytest.param(1_250, marks=pytest.mark.slow)])
async def test_messages_of_eight_clients_to_everybody_all_arrive_in_order_while_all_else_dies(
    stage: Scene, each: int
) -> None:
    await stage.service()
    a_worker(stage, "worker-1")
    async with stage.client() as client:
        hearing = [await client.start_workflow(audience, CLIENTS * each, {}, [], id=f"seat-{n}") for n in range(2)]
        await subscribed(client, "cries", 2)
        sent: Counter[str] = Counter()

        async def cry(name: str) -> None:
            async with stage.client() as own:
                for number in range(1, each + 1):
                    await own.publish("cries", [name, number], request_id=f"{name}/{number}")
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
    await stage.finish(losses=False)


@pytest.mark.parametrize(("messages", "consumers"), [(320, 6), pytest.param(10_000, 20, marks=pytest.mark.slow)])
async def test_each_message_is_taken_by_exactly_one_while_all_else_dies(
    stage: Scene, messages: int, consumers: int
) -> None:
    await stage.service()
    a_worker(stage, "worker-1")
    each = messages // CLIENTS
    async with stage.client() as client:
        taking = [await client.start_workflow(consumer, id=f"consumer-{number}") for number in range(consumers)]
        sent: Counter[str] = Counter()

        async def send(name: str) -> None:
            async with stage.client() as own:
                for number in range(each):
                    await own.publish("work", [name, number], request_id=f"{name}/{number}")
                    sent[name] += 1

        clients = [asyncio.create_task(send(f"client-{number}")) for number in range(CLIENTS)]
        for third in (1, 2):
            await until(lambda: sent.total() >= messages * third // 3, "a third is sent")  # noqa: B023
            for actor in [actor for actor in stage.actors if actor.alive]:
                actor.kill()
            await stage.service()
            a_worker(stage, f"worker-{third + 1}")
        await asyncio.gather(*clients)
        for number in range(consumers):
            await client.publish("work", None, request_id=f"end/{number}")
        taken = [await handle.result() for handle in taking]
    assert sorted((name, count) for had in taken for name, count in had) == sorted(
        (f"client-{number}", count) for number in range(CLIENTS) for count in range(each)
    )
    await stage.finish(losses=False)
