"""A print shop: clients send jobs to a channel, of which each goes to one press; the presses tell everybody who listens
what they have done; and the foreman sends one of them home.

python channels.py [ADDRESS]        with a service at ADDRESS, by default 127.0.0.1:7233
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass

from romancy import Client, MessageTimeout, Worker, WorkflowContext, workflow


@dataclass
class Job:
    title: str
    pages: int


@workflow
async def press(ctx: WorkflowContext, patience: float) -> int:
    """Print jobs until there are none for `patience` seconds. Returns how many pages it printed."""
    await ctx.subscribe("jobs", mode="competing")
    pages = 0
    while True:
        try:
            job = await ctx.receive("jobs", Job, timeout=patience)
        except MessageTimeout:
            return pages
        pages += job.data.pages
        await ctx.publish("printed", job.data.title, metadata={"customer": job.metadata["customer"]})


@workflow
async def counter(ctx: WorkflowContext, jobs: int) -> list[str]:
    """Listen to what is printed, and to the foreman, who knows when it is enough."""
    await ctx.subscribe("printed")
    await ctx.subscribe("orders", mode="direct")
    done = []
    for _ in range(jobs):
        printed = await ctx.receive("printed", str)
        done.append(f"{printed.data} for {printed.metadata['customer']}")
    done.sort()
    return [*done, (await ctx.receive("orders", str)).data]


@workflow
async def foreman(ctx: WorkflowContext, workflow_id: str) -> None:
    await ctx.send_to(workflow_id, "orders", "close the shop")


async def main(address: str = "127.0.0.1:7233") -> None:
    async with Client(address) as client, Worker(address, workflows=[press, counter, foreman]):
        listening = await client.start_workflow(counter, 3)
        await subscribed(client, "printed")
        for number, (title, customer) in enumerate((("Poster", "Ann"), ("Flyer", "Bob"), ("Book", "Cem"))):
            await client.publish("jobs", Job(title, 10**number), metadata={"customer": customer})
        presses = [await client.start_workflow(press, 1.0) for _ in range(2)]
        await client.execute_workflow(foreman, listening.workflow_id)
        print("; ".join(await listening.result()))
        print(f"{sum([await each.result() for each in presses])} pages")


async def subscribed(client: Client, channel: str) -> None:
    """Until somebody listens: a message reaches those that do when it is sent."""
    while True:
        if any([each.subscribers async for each in client.list_channels() if each.name == channel]):
            return
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
