"""What is kept of workflows that are closed, and for how long; and one that is forgotten at once, by hand.

python cleanup.py [ADDRESS]        with a service at ADDRESS, by default 127.0.0.1:7233
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta

from romancy import Client, Worker, WorkflowContext, WorkflowNotFound, WorkflowOpen, workflow


@workflow
async def application(ctx: WorkflowContext, name: str) -> str:
    """One who applies for something, and whose letter nobody may keep for long."""
    decided: list[str] = []
    ctx.signal(lambda word: decided.append(str(word)), name="decide")
    await ctx.wait_condition(lambda: bool(decided))
    return f"{name}: {decided[0]}"


async def main(address: str = "127.0.0.1:7233") -> None:
    # A namespace of its own: how long closed runs are kept is said for each.
    async with (
        Client(address, namespace="letters") as client,
        Worker(address, namespace="letters", workflows=[application]),
    ):
        kept = await client.set_namespace(timedelta(days=90))
        print(f"closed applications are kept for {kept.retention.ToTimedelta().days} days")
        ann, bob = [await client.start_workflow(application, name, id=name) for name in ("ann", "bob")]
        try:
            await ann.delete("she asked us to")
        except WorkflowOpen:
            print("ann is open: she is to be decided on first")
        for each in (ann, bob):
            await each.signal("decide", "yes")
            print(await each.result())
        await ann.delete("she asked us to")
        try:
            await ann.describe()
        except WorkflowNotFound:
            print("ann is forgotten")
        print(f"left: {[info.workflow_id async for info in client.list_workflows()]}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
