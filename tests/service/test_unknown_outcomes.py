"""Nobody knows what became of a commit: it was carried out and the answer was lost, or it is carried out later, or never."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from romancy.v1.worker_service_pb2 import (
    ACKNOWLEDGEMENT_RESULT_ACCEPTED,
    ActivityCompletion,
    ActivityTask,
    ConnectRequest,
)
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_RUNNING

from romancy import Client, TerminalError, Worker, WorkflowContext, WorkflowFailed, activity, compensation, workflow
from romancy_service import faults
from tests.core.life import complete, register, schedule
from tests.service.cluster import QUICK, Cluster, Tenant, cluster, json
from tests.service.postgres import socket_of, through
from tests.service.proxy import Proxy, proxy
from tests.service.scripted_worker import ScriptedWorker


@compensation
async def unbook(number: int) -> None:
    DONE.append(f"unbook {number}")


@activity(compensation=unbook)
async def book(number: int) -> int:
    DONE.append(f"book {number}")
    return number


@workflow
async def booking(ctx: WorkflowContext, number: int) -> int:
    """Three bookings; every other one fails in the end, and is undone."""
    for part in range(3):
        await book(number * 10 + part)
    if number % 2:
        raise TerminalError(f"booking {number} failed")
    return number


DONE: list[str] = []


@pytest.mark.parametrize(("every", "replay_always"), [(1, False), (2, False), (3, True)])
async def test_a_campaign_of_lost_answers_does_everything_once(
    database_url: str, monkeypatch: pytest.MonkeyPatch, every: int, replay_always: bool
) -> None:
    """Every first, second or third commit ends with an unknown outcome, although it was carried out."""
    DONE.clear()
    reached = 0

    def lose(name: str) -> bool:
        nonlocal reached
        reached += name == "commit"
        # A commit that tries again what was lost must not be lost for ever.
        return name == "commit" and (reached % every == 0 if every > 1 else reached % 7 < 5)

    count = 30
    async with cluster(database_url) as up, up.tenant() as tenant:
        target = f"127.0.0.1:{up.proxy.port}"
        worker = Worker(
            target,
            namespace=tenant.namespace,
            workflows=[booking],
            activities=[book],
            replay_always=replay_always,
        )
        async with Client(target, namespace=tenant.namespace) as client, asyncio.timeout(90):
            await worker.start()
            monkeypatch.setattr(faults, "ambiguous", lose)
            calls = [client.execute_workflow(booking, n, id=f"booking-{n}") for n in range(count)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            monkeypatch.setattr(faults, "ambiguous", lambda name: False)
            await worker.stop()
    for number, outcome in enumerate(outcomes):
        assert isinstance(outcome, WorkflowFailed) if number % 2 else outcome == number
        mine = [line for line in DONE if int(line.split()[1]) // 10 == number]
        booked = [f"book {number * 10 + part}" for part in range(3)]
        undone = [f"unbook {number * 10 + part}" for part in (2, 1, 0)] if number % 2 else []
        assert mine == booked + undone
    assert reached >= 8


@pytest_asyncio.fixture(loop_scope="session")
async def behind(fresh_postgres: Callable[[], str]) -> AsyncIterator[tuple[Cluster, Proxy]]:
    """The service, and the proxy between it and its Postgres."""
    url = fresh_postgres()
    async with proxy([socket_of(url)]) as database, cluster(through(url, database.port)) as up:
        yield up, database
        database.refusing = False
        database.thaw()


async def _twenty_running(tenant: Tenant) -> tuple[ScriptedWorker, str, list[ActivityTask]]:
    worker = await tenant.worker()
    run = await tenant.start("order")
    await worker.command(await worker.workflow_task(), *(schedule(f"pay:{n}") for n in range(1, 21)))
    return worker, run.run_id, [await worker.activity() for _ in range(20)]


async def test_while_the_database_is_away_results_are_kept_and_nothing_is_sent_again(
    behind: tuple[Cluster, Proxy],
) -> None:
    up, database = behind
    async with up.tenant() as tenant:
        worker, run_id, tasks = await _twenty_running(tenant)
        database.refusing = True
        assert database.cut() > 0
        early, late = tasks[:10], tasks[10:]
        completions = [ActivityCompletion(token=task.token, result=json("1")) for task in early]
        await worker.send(ConnectRequest(activity_completions=completions))
        starting = asyncio.create_task(tenant.start("other", request_id="s"))
        await asyncio.sleep(2 * QUICK.heartbeat_interval_ms / 1000)
        assert not worker.acknowledgements, "nothing is acknowledged before it is stored"
        database.refusing = False
        answers = [await worker.acknowledgements.take("acknowledgement") for _ in early]
        for task in late:
            assert (await worker.complete(task)).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
        assert {answer.result for answer in answers} == {ACKNOWLEDGEMENT_RESULT_ACCEPTED}
        assert (await starting).started
        assert not worker.activities, "what the worker has, or has reported, is not sent again"
        assert (await tenant.kinds(run_id)).count("activity_completed") == 20


@pytest.mark.parametrize("repeat", range(3))
async def test_a_commit_that_is_carried_out_after_its_connection_was_lost_happens_once(
    behind: tuple[Cluster, Proxy], repeat: int
) -> None:
    """The statement was sent and is under way when the connection breaks; the service tries again, and then the first one
    arrives at the database after all."""
    up, database = behind
    async with up.tenant() as tenant:
        worker = await tenant.worker()
        run = await tenant.start("order")
        task = await worker.workflow_task()
        database.freeze(down=False)
        commanding = asyncio.create_task(worker.command(task, register("undo"), schedule("pay:1"), schedule("pay:2")))
        starting = asyncio.create_task(tenant.start("other", request_id="s"))
        await asyncio.sleep(0.2)  # the statements lie in the proxy
        database.abandon()
        database.thaw()
        await commanding
        await starting
        kinds = await tenant.kinds(run.run_id)
        assert kinds == ["workflow_started", "compensation_registered", "activity_scheduled", "activity_scheduled"]
        paid = [await worker.activity() for _ in range(2)]
        assert sorted(activity.activity_id for activity in paid) == ["pay:1", "pay:2"]
        for activity_task in paid:
            await worker.complete(activity_task)
        assert not worker.activities, "no task is given twice"
        assert (await tenant.start("other", request_id="s")).run_id == (await starting).run_id


async def test_a_database_that_does_not_answer_for_a_moment_is_waited_for(behind: tuple[Cluster, Proxy]) -> None:
    up, database = behind
    async with up.tenant() as tenant:
        worker, run_id, tasks = await _twenty_running(tenant)
        database.freeze()
        completing = asyncio.create_task(worker.complete(tasks[0]))
        await asyncio.sleep(1)
        assert not completing.done()
        database.thaw()
        assert (await completing).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
        for task in tasks[1:]:
            await worker.complete(task)
        assert (await tenant.get(run_id)).info.status == WORKFLOW_STATUS_RUNNING


async def test_a_slow_database_only_makes_things_slow(behind: tuple[Cluster, Proxy]) -> None:
    up, database = behind
    async with up.tenant() as tenant:
        database.delay_s = 0.03
        worker = await tenant.worker()
        runs = [await tenant.start(f"order-{n}") for n in range(5)]
        for _ in runs:
            await worker.command(await worker.workflow_task(), complete())
        for run in runs:
            assert await tenant.result(run.run_id) is not None
        database.delay_s = 0


async def test_connections_that_are_cut_all_the_time_lose_nothing(behind: tuple[Cluster, Proxy]) -> None:
    """The campaign of lost answers, on the wire: what was sent may have been carried out, or not."""
    DONE.clear()
    up, database = behind
    async with up.tenant() as tenant:
        target = f"127.0.0.1:{up.proxy.port}"
        worker = Worker(target, namespace=tenant.namespace, workflows=[booking], activities=[book])
        async with worker, Client(target, namespace=tenant.namespace) as client, asyncio.timeout(90):
            calls = [asyncio.create_task(client.execute_workflow(booking, n, id=f"b-{n}")) for n in range(0, 80, 2)]
            while not all(call.done() for call in calls):
                await asyncio.wait(calls, timeout=0.5)
                database.cut()
            assert await asyncio.gather(*calls) == list(range(0, 80, 2))
    assert sorted(DONE) == sorted(f"book {n * 10 + part}" for n in range(0, 80, 2) for part in range(3))
