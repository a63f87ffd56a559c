"""Activities that leave their worker, and the client that ends them; with the real service in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker

from romancy import (
    ActivityError,
    ActivityRef,
    ActivityStale,
    ApplicationError,
    CompleteElsewhere,
    ConversionError,
    RequestRefused,
    RetryPolicy,
    TerminalError,
    Worker,
    WorkflowContext,
    WorkflowFailed,
    activity,
    activity_info,
    heartbeat,
    testing,
    workflow,
)
from romancy.sqlalchemy import create_table, transactional
from romancy.testing import LocalService
from tests.worker_sdk.fresh import replay_in_fresh_process
from tests.worker_sdk.test_cli import Answer, run_main

tokens: SimpleQueue[str] = SimpleQueue()


async def handed_out() -> str:
    """The next token that an activity gave away."""
    return await asyncio.to_thread(tokens.get, timeout=60)


@activity(retry=RetryPolicy(initial_interval=0.01))
async def approve(what: str) -> str:
    heartbeat("asked")
    tokens.put(activity_info().token)
    raise CompleteElsewhere


@activity
async def approve_all(what: list[str]) -> None:
    async def ask() -> None:
        tokens.put(activity_info().token)
        raise CompleteElsewhere

    async with asyncio.TaskGroup() as group:
        group.create_task(ask())


@workflow
async def order(ctx: WorkflowContext, what: str) -> str:
    try:
        return f"{what}: {await approve(what)}"
    except ActivityError as error:
        return f"{what}: {error.type}"


@workflow
async def orders(ctx: WorkflowContext) -> str:
    await approve_all([])
    return "all"


@pytest.fixture
async def up() -> AsyncIterator[LocalService]:
    while not tokens.empty():
        tokens.get()
    activities: list[Any] = [approve, approve_all]
    async with (
        asyncio.timeout(60),
        testing.service() as service,
        Worker(service.address, workflows=[order, orders], activities=activities, activity_slots=1),
    ):
        yield service


async def test_a_result_from_elsewhere_is_the_activitys_result(up: LocalService) -> None:
    first = await up.client.start_workflow(order, "lunch")
    second = await up.client.start_workflow(order, "yacht")
    for answer in ("yes", "no"):
        assert await up.client.complete_activity(await handed_out(), answer)
    assert {await first.result(), await second.result()} == {"lunch: yes", "yacht: no"}


async def test_an_error_from_elsewhere_is_tried_again_by_its_policy(up: LocalService) -> None:
    handle = await up.client.start_workflow(order, "lunch")
    token = await handed_out()
    assert await up.client.fail_activity(token, ApplicationError("busy", type="Busy"))
    again = await handed_out()
    with pytest.raises(ActivityStale):
        await up.client.complete_activity(token, "yes")
    assert await up.client.fail_activity(again, TerminalError("no", type="Declined"))
    assert await handle.result() == "lunch: Declined"
    assert not await up.client.complete_activity(again, "yes"), "it had ended before"


async def test_it_is_ended_by_ids_and_says_where_it_is(up: LocalService) -> None:
    handle = await up.client.start_workflow(order, "lunch", id="lunch")
    token = await handed_out()
    ref = ActivityRef("lunch", "approve:1")
    assert not await up.client.heartbeat_activity(ref, {"desk": 3})
    (shown,) = (await handle.describe()).activities
    assert shown.heartbeat_details.json == '{"desk":3}'
    assert await up.client.complete_activity(ref, "yes", request_id="once")
    assert await up.client.complete_activity(ref, "yes", request_id="once"), "the same request, the same answer"
    assert not await up.client.complete_activity(token, "yes")
    assert await handle.result() == "lunch: yes"


async def test_it_hears_that_it_is_to_stop(up: LocalService) -> None:
    handle = await up.client.start_workflow(order, "lunch")
    token = await handed_out()
    assert not await up.client.heartbeat_activity(token)
    await handle.cancel("no money")
    assert await up.client.heartbeat_activity(token)
    assert await up.client.cancel_activity(token, nothing_done=True)
    with pytest.raises(Exception, match="no money"):
        await handle.result()


async def test_leaving_from_within_a_task_group_counts_too(up: LocalService) -> None:
    handle = await up.client.start_workflow(orders)
    await up.client.complete_activity(await handed_out())
    assert await handle.result() == "all"


async def test_a_result_that_cannot_be_written_and_a_name_that_is_none_are_refused_here(up: LocalService) -> None:
    with pytest.raises(ConversionError):
        await up.client.complete_activity("token", object())
    with pytest.raises(TypeError, match="ActivityRef"):
        await up.client.complete_activity(7)  # type: ignore[arg-type]
    with pytest.raises(RequestRefused) as refused:
        await up.client.complete_activity("token")
    assert refused.value.reason == "INVALID_TOKEN"


async def test_what_is_recorded_replays_in_a_fresh_process(up: LocalService) -> None:
    handle = await up.client.start_workflow(order, "lunch")
    await up.client.fail_activity(await handed_out(), ApplicationError("busy"))
    await up.client.fail_activity(await handed_out(), TerminalError("no", type="Declined"))
    assert await handle.result() == "lunch: Declined"
    await replay_in_fresh_process(handle, __name__, "order")


async def test_a_transaction_cannot_be_left_to_somebody_else(up: LocalService, tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'effects.db'}")
    with engine.begin() as connection:
        create_table(connection)

    @activity(retry=RetryPolicy(max_attempts=1))
    @transactional(sessionmaker(engine))
    def pay(session: Session) -> None:
        raise CompleteElsewhere

    @workflow
    async def payment(ctx: WorkflowContext) -> None:
        await pay()

    async with Worker(up.address, workflows=[payment], activities=[pay], task_queues="pay"):
        with pytest.raises(WorkflowFailed, match="CompleteElsewhere"):
            await up.client.execute_workflow(payment, task_queue="pay")


async def test_the_command_ends_activities(up: LocalService) -> None:
    async def run(*arguments: str) -> Answer:
        return await asyncio.to_thread(run_main, ["activity", *arguments, "--address", up.address])

    handle = await up.client.start_workflow(order, "lunch", id="lunch")
    assert (await run("heartbeat", await handed_out(), "--details", '"desk 3"')).out == "It is to go on.\n"
    named = ("--workflow-id", "lunch", "--activity-id", "approve:1")
    assert (await run("fail", *named, "--message", "busy")).code == 0
    token = await handed_out()
    assert (await run("complete", token, "--result", '"yes"', "--json")).json == {"duplicate": False}
    assert (await run("complete", token)).out == "The activity had ended before.\n"
    assert await handle.result() == "lunch: yes"
    for wrong in (("complete", token, *named), ("cancel", "--workflow-id", "lunch"), ("heartbeat",)):
        answer = await run(*wrong)
        assert (answer.code, "give TOKEN, or" in answer.err) == (2, True)
