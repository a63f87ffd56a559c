"""Time in workflows: waits that survive everything, times of day, deadlines around anything, and limits from outside.

python timers.py [ADDRESS]        with a service at ADDRESS, by default 127.0.0.1:7233
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta

from romancy import (
    Client,
    Worker,
    WorkflowContext,
    WorkflowHandle,
    WorkflowTimedOut,
    activity,
    compensation,
    workflow,
)


@compensation
def put_away(cup: str) -> None:
    print(f"{cup} put away")


@activity(compensation=put_away)
def take(cup: str) -> str:
    return cup


@workflow
async def tea(ctx: WorkflowContext, minutes: float) -> str:
    begun = ctx.now()
    await ctx.sleep(timedelta(minutes=minutes))
    await ctx.sleep_until(begun)  # long past: over at once, and a step like any other
    await ctx.sleep_until(begun + timedelta(minutes=minutes, seconds=0.1))
    await asyncio.sleep(0.1)  # the same as ctx.sleep
    waited = ctx.now() - begun
    return "ready, and not too early" if waited >= timedelta(minutes=minutes, seconds=0.2) else "too early"


@workflow
async def guests(ctx: WorkflowContext, patience: float) -> str:
    try:
        async with asyncio.timeout(patience):
            return str((await ctx.wait_event("bell")).data)
    except TimeoutError:
        return "nobody came"


@workflow
async def forever(ctx: WorkflowContext) -> None:
    await take("cup")
    await ctx.sleep(timedelta(days=365))


@workflow
async def again(ctx: WorkflowContext, cups: int) -> None:
    await ctx.sleep(0.05)
    await ctx.recur(cups + 1)  # each run is short; all together are limited too


async def main(address: str = "127.0.0.1:7233") -> None:
    async with (
        Client(address) as client,
        Worker(address, workflows=[tea, guests, forever, again], activities=[take, put_away]),
    ):
        print(await client.execute_workflow(tea, 0.005))
        print(await client.execute_workflow(guests, 0.2))
        late = await client.start_workflow(tea, 0.0, start_delay=timedelta(seconds=1))
        print(f"begins later: {(await late.describe()).info.history_length} event")
        print(await late.result())
        await runs_out(await client.start_workflow(forever, run_timeout=2))
        await runs_out(await client.start_workflow(forever, execution_timeout=2))
        await runs_out(await client.start_workflow(again, 1, run_timeout=60, execution_timeout=0.5))


async def runs_out(handle: WorkflowHandle[None]) -> None:
    try:
        await handle.result()
    except WorkflowTimedOut as error:
        print(error)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
