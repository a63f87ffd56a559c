"""A trip of several legs, each a workflow of its own: what the legs did is undone when one of them cannot be had.

python family.py [ADDRESS]        with a service at ADDRESS, by default 127.0.0.1:7233
"""

from __future__ import annotations

import asyncio
import sys

from romancy import (
    ChildError,
    Client,
    TerminalError,
    Worker,
    WorkflowContext,
    WorkflowFailed,
    activity,
    compensation,
    workflow,
)


@compensation
async def give_back(place: str) -> None:
    print(f"gave back {place}")


@activity(compensation=give_back)
async def book(place: str) -> str:
    if place == "Atlantis":
        raise TerminalError("nobody goes to Atlantis")
    return f"ticket to {place}"


@compensation
async def cancel_leg(place: str) -> None:
    print(f"cancelled the leg to {place}")


@workflow
async def leg(ctx: WorkflowContext, place: str) -> str:
    return await book(place)


@workflow
async def trip(ctx: WorkflowContext, places: list[str]) -> list[str]:
    # A child that completed is undone by its compensation; one that fails undoes itself.
    return [await ctx.run_child(leg, place, compensation=cancel_leg) for place in places]


@workflow
async def with_detour(ctx: WorkflowContext, place: str) -> str:
    try:
        return await ctx.run_child(leg, place)
    except ChildError as error:
        return f"stayed at home: {error.type}"


async def main(address: str = "127.0.0.1:7233") -> None:
    activities = [book, give_back, cancel_leg]
    async with Client(address) as client, Worker(address, workflows=[trip, leg, with_detour], activities=activities):
        print(await client.execute_workflow(trip, ["Rome", "Bern"]))
        print(await client.execute_workflow(with_detour, "Atlantis"))
        try:
            await client.execute_workflow(trip, ["Rome", "Bern", "Atlantis"])
        except WorkflowFailed as failed:
            print(f"no trip: {failed.type}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
