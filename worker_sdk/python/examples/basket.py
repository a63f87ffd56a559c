"""A basket that is filled by updates and looked into by queries: a workflow that is a class.

python basket.py [ADDRESS]        with a service at ADDRESS, by default 127.0.0.1:7233
"""

from __future__ import annotations

import asyncio
import sys

from romancy import Client, UpdateRejected, Worker, WorkflowContext, activity, workflow

PRICES = {"apple": 30, "pear": 40, "plum": 20}
"""In cents."""


@activity
async def charge(amount: int) -> str:
    return f"charged {amount / 100:.2f}"


@workflow
class Basket:
    def __init__(self) -> None:
        self.items: list[str] = []
        self.paid = False

    @workflow.run
    async def run(self, ctx: WorkflowContext) -> str:
        await ctx.wait_condition(lambda: self.paid)
        return await charge(self.total())

    @workflow.update
    def add(self, item: str, count: int = 1) -> int:
        """Put items in. Answers what all of them cost by then."""
        self.items += [item] * count
        return self.total()

    @add.validator
    def can_add(self, item: str, count: int = 1) -> None:
        """What raises here changes nothing, and leaves no trace in the history but that it was refused."""
        if item not in PRICES:
            raise ValueError(f"we have no {item}")

    @workflow.signal
    def check_out(self) -> None:
        self.paid = True

    @workflow.query
    def total(self) -> int:
        return sum(PRICES[item] for item in self.items)


async def main(address: str = "127.0.0.1:7233") -> None:
    async with Client(address) as client, Worker(address, workflows=[Basket], activities=[charge]):
        basket = await client.start_workflow(Basket.run)
        print(await basket.update(Basket.add, "apple", 3))
        print(await basket.update(Basket.add, "plum"))
        try:
            await basket.update(Basket.add, "yacht")
        except UpdateRejected as refused:
            print(refused)
        print(await basket.query(Basket.total))
        await basket.signal(Basket.check_out)
        print(await basket.result())
        print(await basket.query(Basket.total))  # a closed one answers too


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
