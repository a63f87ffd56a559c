"""Attributes: orders that say how far they are, so that they can be found by it.

python attributes.py [ADDRESS]        with a service at ADDRESS, by default 127.0.0.1:7233
"""

from __future__ import annotations

import asyncio
import sys

from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_RUNNING, WorkflowInfo
from romancy.v1.workflow_service_pb2 import WorkflowFilter

from romancy import Attribute, Client, Worker, WorkflowContext, activity, workflow

CUSTOMER = Attribute("customer", str)
STAGE = Attribute("stage", str)
TOTAL = Attribute("total", float)
TAGS = Attribute("tags", list[str])


@activity
async def price(items: list[str]) -> float:
    return 30.0 * len(items)


@workflow
async def order(ctx: WorkflowContext, items: list[str]) -> str:
    total = await price(items)
    ctx.set_attributes({TOTAL: total, STAGE: "priced"})
    if total > 50:
        ctx.set_attributes({STAGE: "to be approved", TAGS: ["large", *(ctx.attribute(TAGS) or [])]})
        await ctx.sleep(3600)
    ctx.set_attributes({STAGE: None})
    return f"{ctx.attribute(CUSTOMER)} pays {total:.2f}"


async def show(client: Client, title: str, where: WorkflowFilter) -> None:
    """Print what a filter finds."""

    def line(info: WorkflowInfo) -> str:
        return f"{info.workflow_id} ({STAGE.read(info.attributes) or 'done'}, {TOTAL.read(info.attributes)})"

    found = sorted([line(info) async for info in client.list_workflows(where)])
    print(f"{title}: {', '.join(found) or 'none'}")


async def main(address: str = "127.0.0.1:7233") -> None:
    async with Client(address) as client, Worker(address, workflows=[order], activities=[price]):
        books = await client.start_workflow(order, ["book"], id="books", attributes={CUSTOMER: "ada", TAGS: ["gift"]})
        print(await books.result())
        await client.start_workflow(order, ["desk", "chair"], id="office", attributes={CUSTOMER: "ada"})
        await client.start_workflow(order, ["tea"] * 3, id="tea", attributes={CUSTOMER: "bob", TAGS: ["gift"]})
        approval = WorkflowFilter(attributes=[STAGE.equals("to be approved")])
        while (await client.count_workflows(approval)).count < 2:  # noqa: ASYNC110 - lists do not tell, they are asked
            await asyncio.sleep(0.05)

        await show(client, "to be approved", approval)
        await show(client, "of ada", WorkflowFilter(attributes=[CUSTOMER.equals("ada")]))
        await show(client, "large gifts", WorkflowFilter(attributes=[TAGS.equals("gift"), TOTAL.at_least(60)]))
        running = WorkflowFilter(statuses=[WORKFLOW_STATUS_RUNNING], attributes=[CUSTOMER.differs_from("bob")])
        await show(client, "running, but not of bob", running)
        for name in ("office", "tea"):
            await client.get_handle(name).terminate("the example is over")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
