"""A payment that another system reports: a workflow that waits for an event, or until none came for long enough, and
one that listens to all events of a type.

python events.py [ADDRESS]        with a service at ADDRESS, by default 127.0.0.1:7233
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from datetime import timedelta

from romancy.v1.wait_pb2 import WAIT_KIND_EVENT, WAIT_KIND_SUBSCRIPTION

from romancy import Client, Event, EventTimeout, Worker, WorkflowContext, workflow

LISTENING = (WAIT_KIND_EVENT, WAIT_KIND_SUBSCRIPTION)


@dataclass
class Payment:
    order: int
    amount: float


@workflow
async def pay_order(ctx: WorkflowContext, order: int, patience: float) -> str:
    try:
        paid = await ctx.wait_event(
            "payment.completed", Payment, where={"data.order": order}, timeout=timedelta(seconds=patience)
        )
    except EventTimeout:
        return f"order {order}: nobody paid"
    return f"order {order}: {paid.data.amount:.2f} by {paid.subject}"


@workflow
async def count_payments(ctx: WorkflowContext, count: int) -> float:
    total = 0.0
    with ctx.subscribe_event("payment.completed", Payment) as payments:
        for _ in range(count):
            total += (await payments.receive()).data.amount
    return total


async def main(address: str = "127.0.0.1:7233") -> None:
    async with Client(address) as client, Worker(address, workflows=[pay_order, count_payments]):
        total = await client.start_workflow(count_payments, 2)
        orders = [await client.start_workflow(pay_order, number, 60) for number in (1, 2)]
        late = await client.start_workflow(pay_order, 3, 0.1)
        print(await late.result())
        await all_wait(client)
        for number, amount, who in ((2, 20.0, "Bob"), (1, 10.0, "Ann")):
            paid = Event("payment.completed", Payment(number, amount), source="/bank", id=f"tx-{number}", subject=who)
            await client.publish_event(paid)
            await client.publish_event(paid)  # the bank's second try: nothing happens twice
        for order in orders:
            print(await order.result())
        print(f"{await total.result():.2f} in all")


async def all_wait(client: Client) -> None:
    """Until the code of all open workflows has run up to where it waits: an event that nobody waits for is dropped."""
    while True:
        shown = [await client.get_handle(info.workflow_id).describe() async for info in client.list_workflows()]
        if all(any(wait.kind in LISTENING for wait in each.waits) for each in shown if each.waits):
            return
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
