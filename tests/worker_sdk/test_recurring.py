"""Recurring when the history is long: the service says when, and code that is replayed is told the same."""

from __future__ import annotations

import pytest

from romancy.v1.workflow_service_pb2 import WorkflowFilter

from romancy import WorkflowContext, activity, testing, workflow
from romancy.worker import Worker
from romancy_service.core.limits import Limits


@activity
async def add(total: int) -> int:
    return total + 1


@workflow
async def add_up(ctx: WorkflowContext, until: int, total: int = 0) -> int:
    while total < until:
        total = await add(total)
        if ctx.should_recur:
            return await ctx.recur(until, total)
    return total


@workflow
async def listen(ctx: WorkflowContext, heard: list[str]) -> list[str]:
    ctx.signal(heard.append, name="say")
    await ctx.wait_condition(lambda: ctx.should_recur or "end" in heard)
    return heard if "end" in heard else await ctx.recur(heard)


@pytest.mark.parametrize("replays", [False, True])
async def test_code_that_asks_recurs_when_the_service_finds_its_history_long(replays: bool) -> None:
    async with (
        testing.service(limits=Limits(history_recur_events=12)) as service,
        Worker(service.address, workflows=[add_up], activities=[add], replay_always=replays),
    ):
        client = service.client
        assert await client.execute_workflow(add_up, 20, id="sum") == 20
        runs = [info async for info in client.list_workflows(WorkflowFilter(workflow_id="sum"))]
    assert len(runs) >= 3
    # The last one completed; all before it went on as soon as they were told.
    assert all(12 < info.history_length <= 16 for info in runs[1:])
    assert {info.first_run_id for info in runs} == {runs[-1].run_id}
    assert [info.continued_from_run_id for info in runs] == [*(info.run_id for info in runs[1:]), ""]


async def test_signals_that_come_while_it_recurs_again_and_again_are_all_heard() -> None:
    async with (
        testing.service(limits=Limits(history_recur_events=10)) as service,
        Worker(service.address, workflows=[listen]),
    ):
        handle = await service.client.start_workflow(listen, [], id="ear")
        words = [f"word-{n}" for n in range(60)]
        for word in words:
            await service.client.get_handle("ear").signal("say", word)
        await service.client.get_handle("ear").signal("say", "end")
        assert await handle.result() == [*words, "end"]
        runs = [info async for info in service.client.list_workflows(WorkflowFilter(workflow_id="ear"))]
    assert len(runs) > 2
