"""Receivers of one subscription: who gets which event, and when a subscription ends; each step replayed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.history_pb2 import EventReceived, SubscriptionAnswered

from romancy import EventTimeout, WorkflowContext, workflow
from romancy.channels import MODE_NUMBERS
from tests.worker_sdk.driver import Driver


def came(run: Driver, *numbers: int, channel: str = "") -> list[str]:
    """Events of the type "bid", or messages, that come one after the other and are brought by one task."""
    for number in numbers:
        event = CloudEvent(id=str(number), source="/", spec_version="1.0", type="bid", text_data=str(number))
        if channel:
            event.attributes["romancychannel"].ce_string = channel
        received = EventReceived(event=event, subscription_ids=list(run.service.subscriptions))
        run.service._input(event_received=received)
    return run.step()


@workflow
async def crowd(ctx: WorkflowContext, receivers: int) -> list[Any]:
    with ctx.subscribe_event("bid", int) as bids:
        return [event.data for event in await asyncio.gather(*(bids.receive() for _ in range(receivers)))]


def test_each_receiver_of_a_stream_gets_an_event_the_first_one_first() -> None:
    run = Driver(crowd, 3)
    run.start()
    assert came(run, 1) == []
    assert came(run, 2, 3) == ["unsubscribe", "complete_workflow"]
    assert run.result() == [1, 2, 3]


@workflow
async def two_of_a_channel(ctx: WorkflowContext) -> list[int]:
    await ctx.subscribe("jobs")
    return [message.data for message in await asyncio.gather(ctx.receive("jobs", int), ctx.receive("jobs", int))]


def test_each_receiver_of_a_channel_gets_a_message() -> None:
    run = Driver(two_of_a_channel)
    run.start()
    (wanted,) = run.service.subscriptions.values()
    assert wanted.channel_mode == MODE_NUMBERS["broadcast"]
    run.step(subscription_answered=SubscriptionAnswered(subscription_id=wanted.subscription_id))
    came(run, 1, channel="jobs")
    came(run, 2, channel="jobs")
    assert run.result() == [1, 2]


@workflow
async def impatient(ctx: WorkflowContext, give_up: int) -> list[str]:
    """Four wait in line; one of them gives up, the first one when its event is there already."""
    seen: list[str] = []
    line: list[asyncio.Task[None]] = []

    async def stop() -> None:
        """Woken by the same event as the first in line, and before it."""
        await ctx.wait_event("bid")
        line[give_up].cancel()

    stopping = asyncio.create_task(stop())
    await asyncio.sleep(0)
    with ctx.subscribe_event("bid", int) as bids:

        async def receive(place: int) -> None:
            try:
                seen.append(f"{place} got {(await bids.receive()).data}")
            except asyncio.CancelledError:
                seen.append(f"{place} gave up")
                raise

        line += [asyncio.create_task(receive(place)) for place in range(4)]
        await asyncio.wait([*line, stopping])
    return seen


@pytest.mark.parametrize("give_up", range(4))
def test_who_gives_up_passes_its_turn_on(give_up: int) -> None:
    run = Driver(impatient, give_up)
    run.start()
    came(run, 1, 2)
    came(run, 3)
    left = [place for place in range(4) if place != give_up]
    assert sorted(run.result()) == sorted([f"{give_up} gave up", *(f"{p} got {n}" for n, p in enumerate(left, 1))])


@workflow
async def latecomer(ctx: WorkflowContext) -> list[str]:
    """One comes just when the event of another one is there."""
    seen: list[str] = []
    with ctx.subscribe_event("bid", int) as bids:

        async def receive(who: str) -> None:
            seen.append(f"{who} got {(await bids.receive()).data}")

        async def late() -> None:
            await ctx.wait_event("bid")
            await receive("late")

        later = asyncio.create_task(late())
        await asyncio.sleep(0)
        await asyncio.gather(receive("first"), receive("second"), later)
    return seen


def test_who_comes_later_overtakes_nobody() -> None:
    run = Driver(latecomer)
    run.start()
    came(run, 1)
    came(run, 2)
    came(run, 3)
    assert run.result() == ["first got 1", "second got 2", "late got 3"]


# Ends of subscriptions ------------------------------------------------------------------------------------------------


@workflow
async def given_up(ctx: WorkflowContext) -> str:
    async def listen() -> None:
        with ctx.subscribe_event("bid") as bids:
            await bids.receive()

    try:
        async with asyncio.timeout(5):
            await listen()
    except TimeoutError:
        await ctx.sleep(1)
        return "nobody bid"
    return "somebody did"


def test_a_stream_that_is_left_because_its_task_is_cancelled_ends() -> None:
    run = Driver(given_up)
    assert run.start() == ["start_timer 1", "subscribe"]
    assert "unsubscribe" in run.fire("1")
    assert not run.service.subscriptions
    run.fire("2")
    assert run.result() == "nobody bid"


def test_a_cancelled_workflow_ends_its_streams() -> None:
    run = Driver(crowd, 1)
    run.start()
    assert run.cancel() == ["unsubscribe", "cancel_workflow"]


@workflow
async def on_and_on(ctx: WorkflowContext, how: str) -> None:
    async def listen() -> None:
        with ctx.subscribe_event("bid") as bids:
            while True:
                await bids.receive()
                if how == "by itself":
                    await ctx.recur(how)

    async with asyncio.TaskGroup() as group:
        group.create_task(listen())
        if how == "by another":
            await ctx.sleep(1)
            await ctx.recur(how)


@pytest.mark.parametrize("how", ["by itself", "by another"])
def test_a_stream_lasts_when_the_run_recurs_whoever_says_so(how: str) -> None:
    run = Driver(on_and_on, how)
    run.start()
    ended = came(run, 1) if how == "by itself" else run.fire("1")
    assert ended == ["continue_workflow"]
    assert len(run.service.subscriptions) == 1


@workflow
async def half_read(ctx: WorkflowContext) -> str:
    async def bids() -> AsyncIterator[Any]:
        with ctx.subscribe_event("bid") as stream:
            async for bid in stream:
                yield bid

    try:
        async with asyncio.timeout(2):
            async for _ in bids():
                pass
    except TimeoutError:
        pass
    try:
        await ctx.wait_event("bid", timeout=1)
    except EventTimeout:
        pass
    return "done"


def test_a_run_that_is_put_out_of_memory_asks_for_nothing() -> None:
    run = Driver(half_read)
    run.start()
    machine = run.instance.machine
    run.instance.close()
    assert machine.take_commands() == []
    again = run.new_instance()
    assert again.activate(run.history()).commands == []
