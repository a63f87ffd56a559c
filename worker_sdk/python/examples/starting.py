"""Shops that are closed for the day, one workflow for each: what happens when somebody asks twice, when the id is
taken, and when it was used before.

python starting.py [ADDRESS]        with a service at ADDRESS, by default 127.0.0.1:7233
"""

from __future__ import annotations

import asyncio
import sys

from romancy.v1.workflow_service_pb2 import WorkflowFilter

from romancy import (
    Attribute,
    Client,
    TerminalError,
    Worker,
    WorkflowAlreadyOpen,
    WorkflowContext,
    WorkflowFailed,
    WorkflowIdUsed,
    workflow,
)

CITY = Attribute("city", str)


@workflow
async def close_day(ctx: WorkflowContext, shop: str) -> int:
    """Sum up what the tills report, until the shop says that it was the last one."""
    reports: list[int] = []
    last: list[bool] = []

    @ctx.signal
    def till(amount: int, is_last: bool = False) -> None:
        reports.append(amount)
        last.extend([True] * is_last)

    await ctx.wait_condition(lambda: bool(last))
    if sum(reports) < 0:
        raise TerminalError(f"{shop} has lost {-sum(reports)}")
    return sum(reports)


async def main(address: str = "127.0.0.1:7233") -> None:
    async with Client(address) as client, Worker(address, workflows=[close_day]):
        await ask_twice(client)
        await meet_an_open_one(client)
        await come_after_a_closed_one(client)
        await be_the_first_or_not(client)


async def ask_twice(client: Client) -> None:
    """A call with the same request id is the same call: who does not know whether it arrived makes it again."""
    runs = set()
    for _ in range(2):
        handle = await client.start_workflow(
            close_day,
            "north",
            id="north",
            request_id="form 7",
            memo={"asked by": "Ann"},
            attributes={CITY: "Bern"},
        )
        runs.add(handle.run_id)
    print(f"asked twice, started once: {len(runs) == 1}")
    async for info in client.list_workflows(WorkflowFilter(attributes=[CITY.equals("Bern")])):
        print(f"in Bern: {info.workflow_id}, asked by {info.memo['asked by'].json}")


async def meet_an_open_one(client: Client) -> None:
    """The id of an open run is taken, unless the call says what then."""
    try:
        await client.start_workflow(close_day, "north", id="north")
    except WorkflowAlreadyOpen:
        print("north is being closed already")
    same = await client.start_workflow(close_day, "north", id="north", id_conflict="use_existing")
    anew = await client.start_workflow(close_day, "north", id="north", id_conflict="terminate_existing")
    print(f"begun anew: {same.run_id != anew.run_id}")
    await anew.signal("till", 120, True)
    print(f"north: {await anew.result()}")


async def come_after_a_closed_one(client: Client) -> None:
    """The id of a closed run is free, unless the call says that it is not."""
    try:
        await client.start_workflow(close_day, "north", id="north", id_reuse="allow_if_failed")
    except WorkflowIdUsed:
        print("north was closed, and did not fail")
    failing = await client.start_workflow(close_day, "south", id="south")
    await failing.signal("till", -5, True)
    try:
        await failing.result()
    except WorkflowFailed as failed:
        print(failed.message)
    south = await client.start_workflow(close_day, "south", id="south", id_reuse="allow_if_failed")
    await south.signal("till", 80, True)
    print(f"south: {await south.result()}")


async def be_the_first_or_not(client: Client) -> None:
    """Each till reports to the run of its shop; the first one that does starts it, with its report in it."""
    tills = [
        client.signal_with_start(close_day, "west", id="west", signal="till", signal_args=[amount], request_id=f"{n}")
        for n, amount in enumerate((10, 20, 30))
    ]
    runs = {handle.run_id for handle in await asyncio.gather(*tills)}
    last = await client.signal_with_start(close_day, "west", id="west", signal="till", signal_args=[40, True])
    print(f"west: {await last.result()} from {len(runs)} run")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
