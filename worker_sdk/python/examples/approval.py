"""An expense that somebody approves: a workflow that waits for a signal, or until nobody has answered for long enough.

python approval.py [ADDRESS]        with a service at ADDRESS, by default 127.0.0.1:7233
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta

from romancy import Client, Worker, WorkflowContext, activity, workflow


@activity
async def pay_out(expense: str) -> str:
    return f"paid {expense}"


@workflow
async def expense_approval(ctx: WorkflowContext, expense: str) -> str:
    decisions: list[tuple[str, bool]] = []

    @ctx.signal
    def decide(by: str, approved: bool) -> None:
        decisions.append((by, approved))

    try:
        await ctx.wait_condition(lambda: bool(decisions), timeout=timedelta(days=3))
    except TimeoutError:
        return "nobody answered in three days"
    by, approved = decisions[0]
    return f"{by} approved: {await pay_out(expense)}" if approved else f"{by} said no"


async def main(address: str = "127.0.0.1:7233") -> None:
    async with Client(address) as client, Worker(address, workflows=[expense_approval], activities=[pay_out]):
        lunch = await client.start_workflow(expense_approval, "lunch")
        yacht = await client.start_workflow(expense_approval, "yacht")
        await lunch.signal("decide", "Ann", True)
        await yacht.signal("decide", "Ann", False)
        print(await lunch.result())
        print(await yacht.result())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
