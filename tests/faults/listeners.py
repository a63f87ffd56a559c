"""Workflows that listen to events and to channels. `python -m tests.faults.listeners ADDRESS WORKER_ID` is a worker that
runs them; ROMANCY_TEST_DIE=PLACE kills it when code comes to that place for the first time, see `places`.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from romancy import Event, Worker, WorkflowContext, workflow
from tests.faults.places import come_to

EVENT_PLACES: Final = ("event.begin", "event.heard", "event.end")
MESSAGE_PLACES: Final = ("told.begin", "told.one", "told.end", "hear.begin", "hear.subscribed", "hear.one", "hear.end")


@workflow
async def listener(ctx: WorkflowContext, expected: int, last: dict[str, int], wrong: list[str]) -> list[str]:
    """Hears what each client numbers from 1, through many runs. Returns what was lost, doubled or out of order."""
    with ctx.subscribe_event("cry") as cries:
        async for cry in cries:
            by, number = cry.data
            if number != last.get(by, 0) + 1:
                wrong.append(f"{by}: {number} after {last.get(by, 0)}")
            last[by] = number
            if wrong or sum(last.values()) >= expected:
                return wrong
            if ctx.should_recur:
                return await ctx.recur(expected, last, wrong)
    return wrong


@workflow
async def waiter(ctx: WorkflowContext, number: int) -> list[int]:
    """Waits for an event that is its own, then for one that is sent to it."""
    come_to("event.begin")
    paid = await ctx.wait_event("paid", where={"data.order": number})
    come_to("event.heard")
    sent = await ctx.wait_event("sent")
    come_to("event.end")
    return [paid.data["order"], sent.data]


@workflow
async def opened(ctx: WorkflowContext, event: Event[list[Any]]) -> list[Any]:
    """Is started by an event."""
    return event.data


@workflow
async def consumer(ctx: WorkflowContext) -> list[list[Any]]:
    """Takes what it gets of the channel for which all compete, until it gets nothing but None."""
    await ctx.subscribe("work", mode="competing")
    taken = []
    while (message := await ctx.receive("work")).data is not None:
        taken.append(message.data)
    return taken


@workflow
async def teller(ctx: WorkflowContext, workflow_id: str, count: int) -> None:
    """Tells everybody, and one by name, numbers from 1."""
    come_to("told.begin")
    for number in range(1, count + 1):
        await ctx.publish("news", number)
        await ctx.send_to(workflow_id, "orders", -number)
        come_to("told.one")
    come_to("told.end")


@workflow
async def hearer(ctx: WorkflowContext, count: int) -> list[int]:
    """Hears as many of both."""
    come_to("hear.begin")
    await ctx.subscribe("news")
    await ctx.subscribe("orders", mode="direct")
    come_to("hear.subscribed")
    told = []
    for channel in ("news", "orders"):
        for _ in range(count):
            told.append((await ctx.receive(channel)).data)
            come_to("hear.one")
    come_to("hear.end")
    return told


@workflow
async def audience(ctx: WorkflowContext, expected: int, last: dict[str, int], wrong: list[str]) -> list[str]:
    """As `listener`, of messages that everybody who is subscribed gets."""
    at = sum(last.values())
    await ctx.subscribe("cries")
    while not wrong and sum(last.values()) < expected:
        by, number = (await ctx.receive("cries")).data
        if number != last.get(by, 0) + 1:
            wrong.append(f"{by}: {number} after {last.get(by, 0)}")
        last[by] = number
        if sum(last.values()) >= at + 200:
            return await ctx.recur(expected, last, wrong)
    return wrong


WORKFLOWS: Final = (listener, waiter, opened, consumer, teller, hearer, audience)


def main(address: str, worker_id: str) -> None:
    """Work until SIGTERM."""
    Worker(
        address,
        worker_id=worker_id,
        workflows=WORKFLOWS,
        activities=[],
        drain_timeout=5,
    ).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
