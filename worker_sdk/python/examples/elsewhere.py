"""Parcels that a courier delivers: an activity that hands out its token and leaves its worker, and is completed by
whoever has the token, hours later if need be.

python elsewhere.py [ADDRESS]        with a service at ADDRESS, by default 127.0.0.1:7233
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from queue import SimpleQueue

from romancy import (
    Client,
    CompleteElsewhere,
    TerminalError,
    Worker,
    WorkflowCancelled,
    WorkflowContext,
    WorkflowFailed,
    activity,
    activity_info,
    compensation,
    workflow,
)

ORDERS: SimpleQueue[tuple[str, str]] = SimpleQueue()
"""What the courier is to deliver, with the tokens by which it reports. In life: a call of the courier's API."""


@compensation
def take_back(parcel: str) -> None:
    print(f"{parcel}: taken back")


@activity(compensation=take_back, timeout=timedelta(days=2), heartbeat_timeout=timedelta(hours=6))
def deliver(parcel: str) -> str:
    ORDERS.put((parcel, activity_info().token))
    raise CompleteElsewhere


@workflow
async def ship(ctx: WorkflowContext, parcel: str) -> str:
    return f"{parcel}: signed by {await deliver(parcel)}"


async def courier(client: Client, cancelled: asyncio.Event) -> None:
    """Somebody else's program. It needs the right `complete`, and the tokens."""
    for _ in range(3):
        parcel, token = await asyncio.to_thread(ORDERS.get)
        await client.heartbeat_activity(token, "on the van")
        match parcel:
            case "book":
                await client.complete_activity(token, "Ann")
                await client.complete_activity(token, "Bob")  # a second report changes nothing
            case "vase":
                await client.fail_activity(token, TerminalError("broken on the way"))
            case _:
                await cancelled.wait()
                assert await client.heartbeat_activity(token), "it is asked to stop"
                await client.cancel_activity(token, nothing_done=True)


async def main(address: str = "127.0.0.1:7233") -> None:
    cancelled = asyncio.Event()
    async with (
        Client(address) as client,
        Worker(address, workflows=[ship], activities=[deliver, take_back], activity_slots=1),
    ):
        parcels = {parcel: await client.start_workflow(ship, parcel) for parcel in ("book", "vase", "sofa")}
        delivering = asyncio.create_task(courier(client, cancelled))
        print(await parcels["book"].result())
        await parcels["sofa"].cancel("not wanted any more")
        cancelled.set()
        for parcel in ("vase", "sofa"):
            try:
                await parcels[parcel].result()
            except WorkflowCancelled:
                print(f"{parcel}: nothing to take back")
            except WorkflowFailed as error:
                print(f"{parcel}: {error.message}")
        await delivering


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
