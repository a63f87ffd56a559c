"""A commit is sent to Postgres and its connection is cut: for every kind of trigger, wherever the statement is by then. What
was asked for happens once, and whoever asked gets an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import asyncpg
import pytest
import pytest_asyncio

from romancy.v1.command_pb2 import Command
from romancy.v1.retry_pb2 import RetryPolicy
from romancy.v1.worker_service_pb2 import (
    ACKNOWLEDGEMENT_RESULT_ACCEPTED,
    ACKNOWLEDGEMENT_RESULT_DUPLICATE,
    ACKNOWLEDGEMENT_RESULT_STALE,
    Acknowledgement,
    Then,
)
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_CANCELLED, WORKFLOW_STATUS_FAILED

from romancy_service import faults
from romancy_service.store.postgres import PostgresStore
from tests.core.life import CANCEL, complete, fail, register, schedule, timer
from tests.service.cluster import Cluster, Tenant, cluster, seconds, until
from tests.service.postgres import socket_of, through
from tests.service.proxy import Proxy, proxy
from tests.service.scripted_worker import ScriptedWorker

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(30)]

Fate = Literal["carried out, but nobody is told", "lost on its way", "carried out when nobody waits for it any more"]


@dataclass
class Wire:
    """The connection between the service and its database, and what becomes of the next commit on it."""

    database: Proxy
    url: str
    store: PostgresStore
    fate: Fate
    committing: bool = False
    happened: bool = False

    def cut_next(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have the next commit that is sent meet its fate."""
        send = self.store._fetch_on_lane

        def reached(point: faults.Point) -> None:
            self.committing = point == "commit.before"  # nothing comes between this and the statement

        async def fetch(sql: str, *values: Any) -> list[asyncpg.Record]:
            committing, self.committing = self.committing, False
            if not committing or self.happened:
                return await send(sql, *values)
            self.happened = True
            # First the database learns the statement, on the connection that comes next: then it is all that is sent.
            connection = await self.store._lane()
            with contextlib.suppress(asyncpg.InterfaceError):
                await connection.fetch(sql)  # without its values
            self.store._idle_lanes.append(connection)
            return await self._meet_fate(send(sql, *values))

        monkeypatch.setattr(faults, "point", reached)
        monkeypatch.setattr(self.store, "_fetch_on_lane", fetch)

    async def _meet_fate(self, commit: Awaitable[list[asyncpg.Record]]) -> list[asyncpg.Record]:
        told = self.fate == "carried out, but nobody is told"
        before = await self._events()
        self.database.freeze(up=not told, down=told)
        sending = asyncio.ensure_future(commit)
        try:
            await self.database.holding.wait()
            if told:
                await until(lambda: self._grew(before), "it is carried out", patience_s=5)
            if self.fate == "carried out when nobody waits for it any more":
                self.database.abandon()
            else:
                self.database.cut()
        finally:
            self.database.thaw()
        return await sending

    async def _grew(self, before: int) -> bool:
        return await self._events() > before

    async def _events(self) -> int:
        connection = await asyncpg.connect(self.url)
        try:
            return int(await connection.fetchval("select coalesce(sum(last_event_id), 0) from runs"))
        finally:
            await connection.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def behind(fresh_postgres: Callable[[], str]) -> AsyncIterator[tuple[Cluster, Proxy, str]]:
    """The service, the proxy between it and its database, and the database itself."""
    url = fresh_postgres()
    async with proxy([socket_of(url)]) as database, cluster(through(url, database.port)) as up:
        yield up, database, url


@pytest_asyncio.fixture(loop_scope="module", params=get_args(Fate))
async def wire(behind: tuple[Cluster, Proxy, str], request: pytest.FixtureRequest) -> Wire:
    up, database, url = behind
    assert isinstance(up.store, PostgresStore)
    return Wire(database, url, up.store, request.param)


@pytest_asyncio.fixture(loop_scope="module")
async def tenant(behind: tuple[Cluster, Proxy, str]) -> AsyncIterator[Tenant]:
    async with behind[0].tenant() as tenant:
        yield tenant


Cut = Callable[[], None]
Story = Callable[[Tenant, Cut], Awaitable[tuple[str, Sequence[str]]]]
"""Something happens to a run, and the commit of it is cut off. Gives the run, and what its history must be at the end."""
DONE: Final = (ACKNOWLEDGEMENT_RESULT_ACCEPTED, ACKNOWLEDGEMENT_RESULT_DUPLICATE)
_AT_ONCE: Final = RetryPolicy(initial_interval=seconds(0.01))


async def _begun(tenant: Tenant, *commands: Command) -> tuple[ScriptedWorker, str, Acknowledgement]:
    worker = await tenant.worker()
    run = await tenant.start("order")
    return worker, run.run_id, await worker.command(await worker.workflow_task(), *commands)


async def _close(tenant: Tenant, worker: ScriptedWorker, run_id: str) -> None:
    await worker.command(await worker.workflow_task(), complete())
    assert await tenant.result(run_id) is not None


async def _start(tenant: Tenant, cut: Cut) -> tuple[str, Sequence[str]]:
    worker = await tenant.worker()
    cut()
    run = await tenant.start("order", request_id="start")
    assert (await tenant.start("order", request_id="start")).run_id == run.run_id
    await _close(tenant, worker, run.run_id)
    return run.run_id, ("workflow_started", "workflow_completed")


async def _activity(tenant: Tenant, cut: Cut) -> tuple[str, Sequence[str]]:
    worker, run_id, _ = await _begun(tenant, schedule("pay:1"))
    task = await worker.activity()
    cut()
    assert (await worker.complete(task)).result in DONE
    await _close(tenant, worker, run_id)
    return run_id, ("workflow_started", "activity_scheduled", "activity_completed", "workflow_completed")


async def _failed_attempt(tenant: Tenant, cut: Cut) -> tuple[str, Sequence[str]]:
    worker, run_id, _ = await _begun(tenant, schedule("pay:1", retry_policy=_AT_ONCE))
    task = await worker.activity()
    cut()
    await worker.fail(task)
    again = await worker.activity()
    assert again.attempt == 2
    await worker.complete(again)
    await _close(tenant, worker, run_id)
    kinds = ("activity_scheduled", "activity_attempt_failed", "activity_completed")
    return run_id, ("workflow_started", *kinds, "workflow_completed")


async def _lost_worker(tenant: Tenant, cut: Cut) -> tuple[str, Sequence[str]]:
    other = await tenant.worker(workflows=[], activities=["pay"])
    worker = await tenant.worker(activities=[])
    run = await tenant.start("order")
    await worker.command(await worker.workflow_task(), schedule("pay:1"))
    await other.activity()
    third = await tenant.worker(workflows=[], activities=["pay"])
    cut()
    await other.goodbye()
    again = await third.activity()
    assert again.attempt == 2
    await third.complete(again)
    await _close(tenant, worker, run.run_id)
    kinds = ("activity_scheduled", "activity_attempt_failed", "activity_completed")
    return run.run_id, ("workflow_started", *kinds, "workflow_completed")


async def _workflow_task(tenant: Tenant, cut: Cut) -> tuple[str, Sequence[str]]:
    worker = await tenant.worker()
    run = await tenant.start("order")
    task = await worker.workflow_task()
    cut()
    answer = await worker.command(task, register("refund"), schedule("pay:1"))
    assert answer.result in (*DONE, ACKNOWLEDGEMENT_RESULT_STALE)
    assert (await worker.complete(await worker.activity())).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    await _close(tenant, worker, run.run_id)
    kinds = ("compensation_registered", "activity_scheduled", "activity_completed")
    return run.run_id, ("workflow_started", *kinds, "workflow_completed")


async def _then(tenant: Tenant, cut: Cut) -> tuple[str, Sequence[str]]:
    worker, run_id, known = await _begun(tenant, schedule("pay:1"))
    task = await worker.activity()
    then = Then(after_event_id=known.last_event_id, time=known.last_event_time, commands=[schedule("ship:1")])
    cut()
    assert (await worker.complete(task, then=then)).result in DONE
    shipping = await worker.activity()
    assert shipping.activity_id == "ship:1"
    await worker.complete(shipping)
    await _close(tenant, worker, run_id)
    kinds = ("activity_scheduled", "activity_completed") * 2
    return run_id, ("workflow_started", *kinds, "workflow_completed")


async def _timer(tenant: Tenant, cut: Cut) -> tuple[str, Sequence[str]]:
    worker, run_id, _ = await _begun(tenant, timer("1", 1))
    cut()
    await _close(tenant, worker, run_id)
    return run_id, ("workflow_started", "timer_started", "timer_fired", "workflow_completed")


async def _cancel(tenant: Tenant, cut: Cut) -> tuple[str, Sequence[str]]:
    worker, run_id, _ = await _begun(tenant)
    cut()
    await tenant.cancel(run_id, request_id="cancel")
    await tenant.cancel(run_id, request_id="cancel")
    await worker.command(await worker.workflow_task(), CANCEL)
    outcome = await tenant.result(run_id)
    assert outcome is not None
    assert outcome.status == WORKFLOW_STATUS_CANCELLED
    return run_id, ("workflow_started", "workflow_cancel_requested", "rollback_started", "workflow_cancelled")


async def _terminate(tenant: Tenant, cut: Cut) -> tuple[str, Sequence[str]]:
    worker, run_id, _ = await _begun(tenant, schedule("pay:1", "refund"))
    await worker.complete(await worker.activity())
    await worker.workflow_task()
    cut()
    answer = await tenant.terminate(run_id, request_id="terminate")
    assert list(answer.not_undone) == ["pay:1"]
    assert await tenant.terminate(run_id, request_id="terminate") == answer
    return run_id, ("workflow_started", "activity_scheduled", "activity_completed", "workflow_terminated")


async def _compensation(tenant: Tenant, cut: Cut) -> tuple[str, Sequence[str]]:
    worker, run_id, _ = await _begun(tenant, schedule("reserve:1", "cancel"), schedule("pay:1", "refund"))
    for _ in range(2):
        await worker.complete(await worker.activity())
    task = await worker.workflow_task()
    while task.events[-1].activity_completed.activity_id != "pay:1":
        await worker.command(task)
        task = await worker.workflow_task()
    await worker.command(task, fail())
    undoing = await worker.activity()
    assert undoing.activity_id == "undo/pay:1"
    cut()
    assert (await worker.complete(undoing)).result in DONE
    assert (await worker.complete(await worker.activity())).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    outcome = await tenant.result(run_id)
    assert outcome is not None
    assert outcome.status == WORKFLOW_STATUS_FAILED
    begun = ("workflow_started", *("activity_scheduled",) * 2, *("activity_completed",) * 2, "rollback_started")
    return run_id, (*begun, *("compensation_scheduled", "compensation_completed") * 2, "workflow_failed")


STORIES: Final[dict[str, Story]] = {
    "a start": _start,
    "the completion of an activity": _activity,
    "a failed attempt": _failed_attempt,
    "the loss of a worker": _lost_worker,
    "the completion of a workflow task": _workflow_task,
    "a completion that carries commands": _then,
    "a timer": _timer,
    "a cancellation": _cancel,
    "a termination": _terminate,
    "the completion of a compensation": _compensation,
}


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
async def test_what_is_cut_off_happens_once(
    tenant: Tenant, wire: Wire, monkeypatch: pytest.MonkeyPatch, story: Story
) -> None:
    run_id, kinds = await story(tenant, lambda: wire.cut_next(monkeypatch))
    assert wire.happened
    assert await tenant.kinds(run_id) == list(kinds)
    for worker in tenant.workers:
        assert not worker.activities, "nothing is given twice"
        assert not worker.workflow_tasks
