"""Code that is changed while workflows run: those that were begun before the change go on as they began.

python patch.py [ADDRESS]        with a service at ADDRESS, by default 127.0.0.1:7233
"""

from __future__ import annotations

import asyncio
import sys

from romancy import Client, Worker, WorkflowContext, activity, workflow


@activity
async def check_fraud(order: str) -> str:
    return "checked"


@activity
async def reserve(order: str) -> None:
    pass


@activity
async def ship(order: str) -> str:
    return f"shipped {order}"


@workflow(name="order")
async def order_as_it_was(ctx: WorkflowContext, order: str) -> str:
    go: list[bool] = []
    ctx.signal(lambda: go.append(True), name="go")
    await reserve(order)
    await ctx.wait_condition(lambda: bool(go))
    return await ship(order)


@workflow(name="order")
async def order_as_it_is(ctx: WorkflowContext, order: str) -> str:
    go: list[bool] = []
    ctx.signal(lambda: go.append(True), name="go")
    checked = await check_fraud(order) if ctx.patched("check-fraud") else "not checked"
    await reserve(order)
    await ctx.wait_condition(lambda: bool(go))
    return f"{await ship(order)}, {checked}"


async def main(address: str = "127.0.0.1:7233") -> None:
    async with Client(address) as client:
        async with Worker(address, workflows=[order_as_it_was], activities=[reserve, ship]):
            old = await client.start_workflow(order_as_it_was, "the old one")
            async for event in old.watch():
                if event.HasField("activity_completed"):
                    break  # it has passed the place that is changed
        # The worker is stopped, the code is changed, and a worker with the new code takes over.
        async with Worker(address, workflows=[order_as_it_is], activities=[reserve, ship, check_fraud]):
            new = await client.start_workflow(order_as_it_is, "the new one")
            for order in (old, new):
                await order.signal("go")
                print(await order.result())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
