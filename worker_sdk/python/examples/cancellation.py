"""A journey that is called off: what clean-up code may do, what is shielded from the cancellation, and what is undone.

python cancellation.py [ADDRESS]        with a service at ADDRESS, by default 127.0.0.1:7233
"""

from __future__ import annotations

import asyncio
import sys

from romancy import (
    Client,
    Worker,
    WorkflowCancelled,
    WorkflowContext,
    WorkflowHandle,
    activity,
    compensation,
    heartbeat,
    workflow,
)


@compensation
def give_back(room: str) -> None:
    print(f"{room}: given back")


@activity(compensation=give_back)
def book(room: str) -> str:
    return f"{room} booked"


@activity
async def drive(town: str) -> None:
    while True:  # a cancellation interrupts the sleep
        heartbeat(town)
        await asyncio.sleep(0.05)


@activity
def tell(who: str, what: str) -> None:
    print(f"{who}: {what}")


async def settle(guest: str) -> None:
    await tell(guest, "we come to an end")
    await tell(guest, "your bill is paid")


@workflow
async def journey(ctx: WorkflowContext, guest: str) -> None:
    await book("room 7")
    try:
        async with asyncio.timeout(60):  # a scope of its own: what is in it is stopped when the time is over
            await asyncio.gather(drive("Rome"), ctx.wait_event("arrived"))
    except asyncio.CancelledError:
        asked = ctx.cancellation
        assert asked is not None
        await tell(guest, f"called off: {asked.reason}, says {asked.requester}")
        raise  # without this the journey would go on
    finally:
        await ctx.shield(settle(guest))  # both, or none, whatever is cancelled meanwhile


@workflow
async def impatient(ctx: WorkflowContext) -> str:
    try:
        async with asyncio.timeout(0.2):
            await drive("Bern")
    except TimeoutError:
        return "Bern is too far"
    return "there"


async def main(address: str = "127.0.0.1:7233") -> None:
    async with (
        Client(address, identity="Ann") as client,
        Worker(address, workflows=[journey, impatient], activities=[book, give_back, drive, tell]),
    ):
        print(await client.execute_workflow(impatient))
        handle = await client.start_workflow(journey, "Bob")
        await on_the_road(handle)
        await handle.cancel("snow")
        try:
            await handle.result()
        except WorkflowCancelled as error:
            print(f"the journey ended: {error}")
        asked = (await handle.describe()).cancellation
        print(f"asked by {asked.identity}, because of {asked.reason}")


async def on_the_road(handle: WorkflowHandle[None]) -> None:
    while True:
        if any(each.activity_type == "drive" and each.worker_id for each in (await handle.describe()).activities):
            return
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
