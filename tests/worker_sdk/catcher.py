"""A workflow that meets every kind of failure, catches each, and returns what it caught.

`python -m tests.worker_sdk.catcher ADDRESS` is a worker with an activity that kills it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from romancy import (
    ActivityDefinition,
    RetryPolicy,
    TerminalError,
    Worker,
    WorkflowContext,
    activity,
    compensation,
    workflow,
)

ONCE = RetryPolicy(max_attempts=1)
TWICE = RetryPolicy(max_attempts=2, initial_interval=0.01, jitter=0)


class Declined(Exception):
    """Comes back as itself where it is listed in `raises`."""


class Refused(Declined):
    """One that derives from it."""


@compensation(retry=ONCE)
async def cannot_undo() -> None:
    raise TerminalError("it cannot be undone")


@activity(retry=TWICE)
async def breaks(text: str) -> None:
    try:
        raise KeyError("deep down")
    except KeyError as error:
        raise ValueError(text) from error


@activity(retry=TWICE)
async def gives_up() -> None:
    raise TerminalError("no use", 7, {"why": "it is broken"}, type="Broken")


@activity(raises=[Declined], retry=ONCE)
async def declines(how: str) -> None:
    raise (Refused if how == "refuse" else Declined)(how)


@activity(retry=ONCE, timeout=0.2)
async def takes_long() -> None:
    await asyncio.sleep(60)


@activity(retry=ONCE, task_queue="nobody", schedule_to_start_timeout=0.2)
async def finds_nobody() -> None: ...


@activity(task_queue="doomed", at_most_once=True)
async def kills() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@activity
async def stops() -> None:
    await asyncio.sleep(60)


@activity
async def wrong_type() -> Any:
    return "no number"


@activity(name="wrong_type")
async def declared_otherwise() -> int: ...  # type: ignore[empty-body]  # it is declared


@workflow
async def fails(ctx: WorkflowContext) -> None:
    raise TerminalError("no such luck", type="Unlucky")


@workflow
async def stays(ctx: WorkflowContext) -> None:
    await ctx.wait_condition(lambda: False)


def broken_step(how: str) -> None:
    """Fails in the worker itself."""
    if how == "decline":
        raise Declined("the step is declined")
    raise LookupError("the step is broken")


class Catcher:
    """All the ways to fail, each a method."""

    def __init__(self, ctx: WorkflowContext) -> None:
        self.ctx = ctx

    async def an_activity_fails(self) -> None:
        await breaks("twice")

    async def an_activity_gives_up(self) -> None:
        await gives_up()

    async def an_activity_raises_what_it_lists(self) -> None:
        await declines("decline")

    async def an_activity_raises_what_derives_from_it(self) -> None:
        await declines("refuse")

    async def an_activity_takes_too_long(self) -> None:
        await takes_long()

    async def an_activity_finds_no_worker(self) -> None:
        await finds_nobody()

    async def an_activity_is_lost(self) -> None:
        await kills()

    async def an_activity_returns_another_type(self) -> None:
        await declared_otherwise()

    async def a_task_is_cancelled(self) -> None:
        task = asyncio.create_task(stops())
        await asyncio.sleep(0)
        task.cancel()
        await task

    async def a_child_fails(self) -> None:
        await self.ctx.run_child(fails)

    async def a_child_is_cancelled(self) -> None:
        child = await self.ctx.start_child(stays)
        child.request_cancel()
        await child.result()

    async def a_child_is_not_started(self) -> None:
        await self.ctx.start_child(stays, id=self.ctx.info.workflow_id)

    async def an_event_does_not_come(self) -> None:
        await self.ctx.wait_event("never", timeout=0.01)

    async def an_event_does_not_fit(self) -> None:
        await self.ctx.wait_event("odd", int)

    async def a_message_does_not_come(self) -> None:
        await self.ctx.subscribe("quiet")
        await self.ctx.receive("quiet", timeout=0.01)

    async def a_channel_is_taken(self) -> None:
        await self.ctx.subscribe("taken", mode="direct")

    async def nothing_is_subscribed_to(self) -> None:
        await self.ctx.receive("unknown")

    async def nobody_is_signalled(self) -> None:
        await self.ctx.workflow("nobody").signal("hello")

    async def nobody_is_cancelled(self) -> None:
        await self.ctx.workflow("nobody").cancel()

    async def nobody_gets_a_message(self) -> None:
        await self.ctx.send_to("nobody", "letters", 1)

    async def a_step_breaks(self) -> None:
        await self.ctx.step(broken_step, "break")

    async def a_step_raises_what_it_lists(self) -> None:
        await self.ctx.step(broken_step, "decline", raises=[Declined])

    async def a_condition_is_not_met(self) -> None:
        await self.ctx.wait_condition(lambda: False, timeout=0.01)

    async def time_is_up(self) -> None:
        async with asyncio.timeout(0.01):
            await stops()

    async def something_cannot_be_undone(self) -> None:
        self.ctx.compensate_with(cannot_undo)
        await self.ctx.compensate()

    async def the_workflow_is_cancelled(self) -> None:
        await self.ctx.workflow(self.ctx.info.workflow_id).cancel("enough")
        await self.ctx.sleep(60)


WAYS = [name for name in vars(Catcher) if not name.startswith("_")]


@workflow
async def catcher(ctx: WorkflowContext) -> list[list[str]]:
    """Each way to fail, and what was caught: its class, its text, and the same of what it was caused by."""
    caught = []
    for name in WAYS:
        way: Callable[[], Awaitable[None]] = getattr(Catcher(ctx), name)
        try:
            await way()
        except BaseException as error:
            if isinstance(error, GeneratorExit):
                raise
            caught.append([name, *told(error)])
        else:
            caught.append([name, "nothing"])
    return caught


def told(error: BaseException | None) -> list[str]:
    """Its class and all that it says, then the same of its cause."""
    if error is None:
        return []
    said = {name: value for name, value in vars(error).items() if name in ("type", "details", "retry_state", "attempt")}
    return [type(error).__name__, f"{error} {sorted(said.items())}", *told(error.__cause__)]


WORKFLOWS = [catcher, fails, stays]
ACTIVITIES: list[ActivityDefinition[..., Any]] = [
    breaks,
    gives_up,
    declines,
    takes_long,
    stops,
    wrong_type,
    cannot_undo,
]

if __name__ == "__main__":
    Worker(sys.argv[1], task_queues=["doomed"], activities=[kills]).run()
