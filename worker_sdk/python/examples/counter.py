"""A counter that runs for ever: it goes on in a new run now and then, so that its history stays short.

python counter.py [ADDRESS]        with a service at ADDRESS, by default 127.0.0.1:7233
"""

from __future__ import annotations

import asyncio
import sys

from romancy import Client, Worker, WorkflowContext, workflow

AT_A_TIME = 3
"""So that it is seen soon: a real one asks `ctx.should_recur` alone, which is true when the history has become long."""


@workflow
async def counter(ctx: WorkflowContext, total: int = 0) -> int:
    numbers: list[int] = []
    stopped: list[bool] = []

    @ctx.signal
    def add(number: int) -> None:
        numbers.append(number)

    @ctx.signal
    def stop() -> None:
        stopped.append(True)

    await ctx.wait_condition(lambda: ctx.should_recur or len(numbers) >= AT_A_TIME or bool(stopped))
    # Its handlers are plain functions; of async ones, that wait for something, some may be half done.
    await ctx.wait_condition(ctx.all_handlers_finished)
    total += sum(numbers)
    if stopped:
        return total
    # Signals that come meanwhile are not lost: the next run gets them.
    return await ctx.recur(total)


async def main(address: str = "127.0.0.1:7233") -> None:
    async with Client(address) as client, Worker(address, workflows=[counter]):
        for number in range(1, 11):
            # Whoever comes first starts it; whichever run is open gets the signal.
            await client.signal_with_start(counter, id="counter", signal="add", signal_args=[number])
        counting = client.get_handle("counter")
        await counting.signal("stop")
        print(await counting.result())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
