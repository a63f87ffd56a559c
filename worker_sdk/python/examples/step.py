"""A local step: something cheap that is looked up once, in the worker itself, and remembered for good.

python step.py [ADDRESS]        with a service at ADDRESS, by default 127.0.0.1:7233
"""

from __future__ import annotations

import asyncio
import os
import sys

from romancy import Client, Worker, WorkflowContext, activity, workflow


def tax_rate() -> float:
    """What the process is configured with now: another one tomorrow, perhaps."""
    return float(os.environ.get("TAX_RATE", "0.2"))


@activity
async def invoice(amount: float) -> str:
    return f"invoice over {amount:.2f}"


@workflow
async def sale(ctx: WorkflowContext, price: float) -> str:
    rate = await ctx.step(tax_rate)
    paid: list[bool] = []
    ctx.signal(lambda: paid.append(True), name="paid")
    await ctx.wait_condition(lambda: bool(paid))
    return await invoice(price * (1 + rate))


async def main(address: str = "127.0.0.1:7233") -> None:
    async with Client(address) as client:
        async with Worker(address, workflows=[sale], activities=[invoice]):
            sold = await client.start_workflow(sale, 100.0)
            async for event in sold.watch():
                if event.HasField("step_recorded"):
                    break
        os.environ["TAX_RATE"] = "0.5"
        # Another worker runs the code again from its beginning, and gets the rate that was recorded.
        async with Worker(address, workflows=[sale], activities=[invoice]):
            await sold.signal("paid")
            print(await sold.result())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
