"""Service and workers die at each step of what runs say to each other: nothing is lost, nothing is done twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable

import pytest

from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_CONTINUED, WORKFLOW_STATUS_RUNNING

from romancy import Client
from tests.faults.actor import Actor
from tests.faults.scene import Scene, until
from tests.faults.talkers import KIDS, NOTES, PLACES, crier, guest, host

HITS = {"sqlite": (2, 4, 7, 12), "postgres": (3, 5, 9, 15)}
"""Each database sees the points at some of the commits; the later ones are between runs."""
ROUNDS = 2
CLIENTS = 8

pytestmark = pytest.mark.timeout(240)


def talker(stage: Scene, name: str, **environment: str) -> Actor:
    return stage.start(name, "tests.faults.talkers", f"127.0.0.1:{stage.port}", name, **environment)


async def be_host(client: Client, name: str) -> list[int]:
    """Start a host and ask it to go on, as often as it recurs."""
    handle = await client.start_workflow(host, name, id=name)
    newest = client.get_handle(name)
    run_ids = {(await handle.describe()).info.run_id}
    for round_ in range(1, ROUNDS + 1):
        assert await newest.update("proceed", 7) == 7
        while len(run_ids) == round_ < ROUNDS:
            info = (await newest.describe()).info
            run_ids.add(info.run_id)
            # It may go on between being found and being read.
            assert info.status in (WORKFLOW_STATUS_RUNNING, WORKFLOW_STATUS_CONTINUED), await newest.result()
            await asyncio.sleep(0.05)
    result: list[int] = await newest.result()
    return result


def of_kind(histories: Iterable[list[HistoryEvent]], kind: str) -> list[HistoryEvent]:
    return [event for events in histories for event in events if event.WhichOneof("attributes") == kind]


async def check(
    stage: Scene, client: Client, names: list[str], results: list[list[int]], *, losses: bool = False
) -> None:
    """Every host did all that it had to, once; activities may be lost with their workers only with `losses`."""
    assert results == [[*range(100, 100 + KIDS), 7]] * len(names)
    await client.get_handle("guest").signal("close")
    notes = await client.get_handle("guest").result()
    rounds = [f"{name}/{round_}" for name in names for round_ in range(ROUNDS)]
    assert notes == {each: list(range(NOTES)) for each in sorted(rounds, key=list(notes).index)}
    histories = (await stage.finish(losses=losses)).values()
    started = of_kind(histories, "workflow_started")
    kids = [event.workflow_started.parent for event in started if event.workflow_started.spec.workflow_type == "kid"]
    assert len(kids) == len({(kid.run_id, kid.child_id) for kid in kids}) == KIDS * ROUNDS * len(names)
    assert len(of_kind(histories, "step_recorded")) == ROUNDS * len(names)
    assert len(of_kind(histories, "update_completed")) == ROUNDS * len(names)


async def test_whichever_commit_the_service_dies_at_all_that_was_said_is_heard_once(stage: Scene) -> None:
    hits = HITS["postgres" if stage.database.startswith("postgres") else "sqlite"]
    points = [f"{point}:{hit}" for hit in hits for point in ("commit.before", "commit.after")]
    worker = None
    hosts: list[asyncio.Task[list[int]]] = []
    async with stage.client() as client:
        unharmed = await stage.service()
        await client.start_workflow(guest, id="guest")  # before anybody tells it something
        unharmed.kill()
        for number, point in enumerate(points):
            service = await stage.service(ROMANCY_CRASH_AT=point)
            worker = worker or talker(stage, "worker-1")
            hosts.append(asyncio.create_task(be_host(client, f"host-{number}")))
            await until(lambda: not service.alive, f"the service died at {point}", worker)  # noqa: B023
        await stage.service()
        results = await asyncio.gather(*hosts)
        await check(stage, client, [f"host-{number}" for number in range(len(points))], results)


async def test_wherever_in_its_code_a_worker_dies_another_one_goes_on(stage: Scene) -> None:
    service = await stage.service()
    async with stage.client() as client:
        await client.start_workflow(guest, id="guest")
        hosts = []
        for place in PLACES:
            victim = talker(stage, f"worker-{place}", ROMANCY_TEST_DIE=place)
            hosts.append(asyncio.create_task(be_host(client, f"host-{place}")))
            await until(lambda: not victim.alive, f"the worker died at {place}", service)  # noqa: B023
        talker(stage, "worker-last")
        results = await asyncio.gather(*hosts)
        # A worker that dies in one run's code may have an activity of another one in hand.
        await check(stage, client, [f"host-{place}" for place in PLACES], results, losses=True)


@pytest.mark.parametrize("each", [40, pytest.param(1_250, marks=pytest.mark.slow)])
async def test_signals_of_eight_clients_all_arrive_in_order_while_all_else_dies(stage: Scene, each: int) -> None:
    await stage.service()
    talker(stage, "worker-1")
    async with stage.client() as client:
        crying = await client.start_workflow(crier, CLIENTS * each, {}, [], id="crier")
        sent: Counter[str] = Counter()

        async def cry(name: str) -> None:
            async with stage.client() as own:
                for number in range(1, each + 1):
                    await own.get_handle("crier").signal("cry", name, number)
                    sent[name] = number

        clients = [asyncio.create_task(cry(f"client-{number}")) for number in range(CLIENTS)]
        for third in (1, 2):
            await until(lambda: sent.total() >= CLIENTS * each * third // 3, "a third is sent")  # noqa: B023
            for actor in [actor for actor in stage.actors if actor.alive]:
                actor.kill()
            await stage.service()
            talker(stage, f"worker-{third + 1}")
        await asyncio.gather(*clients)
        assert await crying.result() == []
    await stage.finish(losses=False)
