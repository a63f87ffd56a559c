"""A payment starts a workflow: a rule says which events start what, and a sender that tries again starts nothing twice.

python event_rule.py [ADDRESS]        with a service at ADDRESS, by default 127.0.0.1:7233
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass

from romancy import Client, Event, Worker, WorkflowContext, workflow


@dataclass
class Payment:
    order: int
    amount: float


@workflow
async def ship(ctx: WorkflowContext, paid: Event[Payment], carrier: str) -> str:
    return f"order {paid.data.order}, paid by {paid.subject}, goes by {carrier}"


async def main(address: str = "127.0.0.1:7233") -> None:
    async with Client(address) as client, Worker(address, workflows=[ship]):
        await client.set_event_rule("ship", "payment.completed", ship, "train", where={"currency": "EUR"})
        for order, currency in ((1, "EUR"), (2, "USD"), (3, "EUR")):
            paid = Event(
                "payment.completed",
                Payment(order, 9.0),
                source="/bank",
                id=f"tx-{order}",
                subject="Ann",
                attributes={"currency": currency},
            )
            await client.publish_event(paid)
            await client.publish_event(paid)  # the bank's second try: nothing happens twice
        for order in (1, 3):
            print(await result(client, f"ship#/bank#tx-{order}"))
        print(f"{(await client.describe_event_rule('ship')).started_count} started")


async def result(client: Client, workflow_id: str) -> str:
    """That of a workflow that is being started."""
    while True:
        if workflow_id in [info.workflow_id async for info in client.list_workflows()]:
            return await client.get_handle(workflow_id, workflow=ship).result()
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
