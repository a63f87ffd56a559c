"""Parents and their children. `python -m tests.faults.families ADDRESS WORKER_ID` is a worker that runs them."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Final, Literal

from romancy import Worker, WorkflowContext, workflow

Policy = Literal["cancel", "terminate", "abandon"]
POLICIES: Final[tuple[Policy, ...]] = ("cancel", "terminate", "abandon")


@workflow
async def toddler(ctx: WorkflowContext, number: int) -> int:
    return number


@workflow
async def crowded(ctx: WorkflowContext, count: int) -> list[int]:
    """So many children at once."""
    return await asyncio.gather(*(ctx.run_child(toddler, number) for number in range(count)))


@workflow
async def teenager(ctx: WorkflowContext) -> str:
    """Stays until it is told to go."""
    gone: list[bool] = []
    ctx.signal(lambda: gone.append(True), name="go")
    await ctx.wait_condition(lambda: bool(gone))
    return "went"


@workflow
async def leaver(ctx: WorkflowContext, name: str) -> None:
    """Has a child for each policy, and closes when it is told to, or fails."""
    told: list[str] = []
    ctx.signal(lambda word: told.append(str(word)), name="close")
    for policy in POLICIES:
        await ctx.start_child(teenager, id=f"{name}/{policy}", when_parent_closes=policy)
    await ctx.wait_condition(lambda: bool(told))
    if told[0] == "fail":
        raise ValueError("this family is no more")


@workflow
async def hasty(ctx: WorkflowContext, name: str) -> None:
    """Closes in the very task in which it asks for its children: none of their starts is delivered by then."""
    starts: list[asyncio.Task[Any]] = [
        asyncio.create_task(ctx.start_child(teenager, id=f"{name}/{policy}", when_parent_closes=policy))
        for policy in POLICIES
    ]
    await asyncio.sleep(0)
    assert not any(start.done() for start in starts)


WORKFLOWS: Final = (toddler, crowded, teenager, leaver, hasty)


def main(address: str, worker_id: str) -> None:
    """Work until SIGTERM."""
    Worker(address, worker_id=worker_id, workflows=WORKFLOWS, activities=[], drain_timeout=5).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
