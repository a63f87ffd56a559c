"""The test kit: the real service in this process, with time that tests skip."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
import structlog

from romancy.v1.wait_pb2 import WAIT_KIND_TIMER

from romancy import (
    ActivityError,
    RetryPolicy,
    Worker,
    WorkflowContext,
    WorkflowFailed,
    activity,
    compensation,
    testing,
    workflow,
)

calls: list[str] = []


@compensation
async def unbook(room: str) -> None:
    calls.append(f"unbook {room}")


@activity(compensation=unbook)
async def book(room: str) -> str:
    calls.append(f"book {room}")
    return f"key of {room}"


@activity(retry=RetryPolicy(max_attempts=3, initial_interval=timedelta(hours=1), backoff_coefficient=1))
async def flaky(failures: int) -> int:
    calls.append("flaky")
    if len(calls) <= failures:
        raise ConnectionError("not yet")
    return len(calls)


@workflow
async def remind(ctx: WorkflowContext, who: str) -> tuple[str, datetime]:
    await ctx.sleep(timedelta(days=30))
    return f"reminded {who}", ctx.now()


@workflow
async def trip(ctx: WorkflowContext, room: str) -> str:
    await book(room)
    await ctx.sleep(timedelta(days=1))
    raise ValueError("no flight")


@workflow
async def monthly(ctx: WorkflowContext) -> list[datetime]:
    times = []
    for _ in range(12):
        await ctx.sleep(timedelta(days=30))
        times.append(ctx.now())
    return times


@workflow
async def patient(ctx: WorkflowContext, failures: int) -> int:
    return await flaky(failures)


@pytest.fixture(params=["", "1"], ids=["held", "replayed"], autouse=True)
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers hold runs in memory, or replay them from scratch at every task."""
    monkeypatch.setenv("ROMANCY_REPLAY_ALWAYS", request.param)


@pytest.fixture(autouse=True)
def no_calls() -> Iterator[None]:
    calls.clear()
    structlog.reset_defaults()  # another test may have set it up, and then the kit leaves it alone
    yield
    structlog.reset_defaults()


async def test_a_month_passes_at_once() -> None:
    async with testing.service() as service, Worker(service.address, workflows=[remind]):
        began = datetime.now(UTC)
        handle = await service.client.start_workflow(remind, "ann")
        await service.skip(timedelta(days=30))
        text, when = await handle.result()
    assert text == "reminded ann"
    assert when - began >= timedelta(days=30)
    assert datetime.now(UTC) - began < timedelta(days=1)


async def test_a_year_of_timers_passes_in_one_skip() -> None:
    async with testing.service() as service, Worker(service.address, workflows=[monthly]):
        handle = await service.client.start_workflow(monthly)
        await service.skip(timedelta(days=365))
        times = await handle.result()
    gaps = {round((later - earlier) / timedelta(days=1)) for earlier, later in pairwise(times)}
    assert gaps == {30}


async def test_nothing_happens_before_its_time() -> None:
    async with testing.service() as service, Worker(service.address, workflows=[remind]):
        handle = await service.client.start_workflow(remind, "ann")
        await service.skip(timedelta(days=29))
        assert [(wait.kind, wait.id) for wait in (await handle.describe()).waits] == [(WAIT_KIND_TIMER, "1")]
        await service.skip(timedelta(days=1))
        assert (await handle.result())[0] == "reminded ann"


async def test_waits_between_attempts_are_skipped_too() -> None:
    async with testing.service() as service, Worker(service.address, workflows=[patient], activities=[flaky]):
        handle = await service.client.start_workflow(patient, 2)
        await service.skip(timedelta(hours=1))
        await service.skip(timedelta(hours=1))
        assert await handle.result() == 3


async def test_a_saga_that_fails_after_a_day_is_undone() -> None:
    async with testing.service() as service, Worker(service.address, workflows=[trip], activities=[book]):
        handle = await service.client.start_workflow(trip, "12")
        await service.skip(timedelta(days=1))
        with pytest.raises(WorkflowFailed, match="no flight"):
            await handle.result()
    assert calls == ["book 12", "unbook 12"]


async def test_attempts_run_out_as_the_policy_says() -> None:
    async with testing.service() as service, Worker(service.address, workflows=[patient], activities=[flaky]):
        handle = await service.client.start_workflow(patient, 99)
        await service.skip(timedelta(hours=1))
        await service.skip(timedelta(hours=1))
        with pytest.raises((WorkflowFailed, ActivityError), match="not yet"):
            await handle.result()
    assert calls == ["flaky"] * 3


async def test_the_service_does_not_print(capfd: pytest.CaptureFixture[str]) -> None:
    async with testing.service() as service, Worker(service.address, workflows=[patient], activities=[flaky]):
        await service.client.start_workflow(patient, 1)
    assert capfd.readouterr() == ("", "")


async def test_what_the_service_logs_can_be_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with testing.service() as service, Worker(service.address, workflows=[remind]):
        pass
    assert [record.name for record in caplog.records if record.name.startswith(("romancy.lobby", "alembic."))] == []
    async with testing.service(log_level=logging.INFO) as service, Worker(service.address, workflows=[remind]):
        pass
    messages = {record.name: record.getMessage() for record in caplog.records}
    assert messages["romancy.lobby"].startswith("worker left  ")
    assert "alembic.runtime.migration" in messages
    assert not structlog.is_configured()
