"""What cancelling does to workflow code: to each kind of wait, in scopes, in clean-up code and behind a shield.

The driver replays each step; the real service says what becomes of activities and children.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from romancy.v1.history_pb2 import HistoryEvent

from romancy import (
    Cancellation,
    Client,
    Event,
    Worker,
    WorkflowCancelled,
    WorkflowContext,
    WorkflowFailed,
    activity,
    compensation,
    heartbeat,
    testing,
    workflow,
)
from romancy.testing import LocalService
from tests.worker_sdk.driver import Driver
from tests.worker_sdk.fresh import replay_in_fresh_process

done: list[str] = []
gate = threading.Event()
"""What is not to end before a test says so waits for it."""


@compensation
def undo(what: str) -> None:
    gate.wait(60)
    done.append(f"undo {what}")


@activity(compensation=undo)
def do(what: str) -> str:
    done.append(what)
    return what


@activity
async def last(what: str) -> str:
    """Goes on until the gate opens, and says when it is stopped."""
    try:
        while not gate.is_set():
            heartbeat()
            await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        done.append(f"{what} was stopped")
        raise
    done.append(what)
    return what


# Scopes and waits, step by step ---------------------------------------------------------------------------------------


@workflow
async def waits(ctx: WorkflowContext, what: str) -> str:
    kinds: dict[str, Callable[[], Awaitable[Any]]] = {
        "timer": lambda: ctx.sleep(60),
        "event": lambda: ctx.wait_event("paid"),
        "condition": lambda: ctx.wait_condition(lambda: False),
        "activity": lambda: do("x"),
        "child": lambda: ctx.run_child(sleeper),
        "future": lambda: asyncio.Event().wait(),
    }
    try:
        await kinds[what]()
    except asyncio.CancelledError:
        await do("cleaned up")
        assert ctx.cancellation in (Cancellation("enough", ""), Cancellation("enough", "ann"))
        raise
    return "not cancelled"


@workflow
async def sleeper(ctx: WorkflowContext) -> None:
    await ctx.sleep(3600)


@pytest.mark.parametrize(
    ("what", "gives_up"),
    [
        ("timer", ["cancel_timer 1"]),
        ("event", ["unsubscribe"]),
        ("condition", []),
        ("activity", ["cancel_activity do:1"]),
        ("child", ["cancel_child sleeper:1"]),
        ("future", []),
    ],
)
def test_a_cancelled_wait_gives_up_what_it_waited_for_and_clean_up_runs_durably(what: str, gives_up: list[str]) -> None:
    run = Driver(waits, what)
    run.start()
    number = 2 if what == "activity" else 1
    assert run.cancel() == [*gives_up, f"schedule_activity do:{number}"]
    assert run.complete(f"do:{number}", "x") == ["cancel_workflow"]


@workflow
async def shielded(ctx: WorkflowContext, fails: bool) -> str:
    async def both() -> str:
        first = await do("one")
        await asyncio.gather(do("two"), ctx.sleep(1))
        if fails:
            raise ValueError("both")
        return first

    try:
        return await ctx.shield(both())
    finally:
        assert ctx.cancellation is not None
        await do("after")


def is_shielded(run: Driver) -> bool:
    """Whether the activity that the code asked for is to survive a request to cancel the run."""
    return run.commands[0].schedule_activity.shielded


def test_what_is_shielded_runs_to_its_end_and_then_the_cancellation_is_raised() -> None:
    run = Driver(shielded, False)
    assert run.start() == ["schedule_activity do:1"]
    assert is_shielded(run)
    assert run.cancel() == [], "nothing is stopped"
    assert run.complete("do:1", "one") == ["schedule_activity do:2", "start_timer 1"]
    assert is_shielded(run), "tasks inside of it are shielded too"
    assert run.fire("1") == []
    assert run.complete("do:2", "two") == ["schedule_activity do:3"]
    assert not is_shielded(run)
    assert run.complete("do:3", "after") == ["cancel_workflow"]


def test_an_error_behind_the_shield_is_raised_although_it_was_cancelled() -> None:
    run = Driver(shielded, True)
    run.start()
    run.cancel()
    run.complete("do:1", "one")
    run.fire("1")
    assert run.complete("do:2", "two") == ["schedule_activity do:3"]
    assert run.complete("do:3", "after") == ["fail_workflow"]


@workflow
async def in_time(ctx: WorkflowContext) -> str:
    said = "in time"
    try:
        async with asyncio.timeout(5):
            await ctx.shield(ctx.sleep(10))
    except TimeoutError:
        said = f"late, and {ctx.cancellation}"
    return said


def test_a_shield_outlasts_a_timeout_around_it_which_is_raised_then() -> None:
    run = Driver(in_time)
    assert run.start() == ["start_timer 1", "start_timer 2"]
    assert run.fire("1", 5_000) == []
    run.fire("2", 5_000)
    assert run.result() == "late, and None"


# With the service -----------------------------------------------------------------------------------------------------


@workflow
async def guarded(ctx: WorkflowContext) -> None:
    await do("booked")
    try:
        await ctx.shield(last("handed over"))
    finally:
        await do("told")


@workflow
async def unguarded_one(ctx: WorkflowContext) -> None:
    await last("long")


@workflow
async def parent(ctx: WorkflowContext) -> str:
    child = await ctx.start_child(sleeper, when_parent_closes="cancel")
    await ctx.wait_event("go")
    return child.workflow_id


@workflow
async def broken(ctx: WorkflowContext) -> None:
    await do("booked")
    raise ValueError("broken")


WORKFLOWS: list[Any] = [waits, guarded, unguarded_one, parent, sleeper, broken]


@pytest.fixture
async def up() -> AsyncIterator[LocalService]:
    done.clear()
    gate.set()
    async with asyncio.timeout(60), testing.service() as service:
        yield service


def a_worker(up: LocalService, **options: Any) -> Worker:
    return Worker(up.address, workflows=WORKFLOWS, activities=[do, undo, last], **options)


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    """Ask again and again; the fixture's patience ends it."""
    while True:
        if await condition():
            return
        await asyncio.sleep(0.02)


async def _is(condition: Callable[[], bool]) -> bool:
    return condition()


def kinds(events: list[HistoryEvent]) -> list[str]:
    return [str(event.WhichOneof("attributes")) for event in events]


async def runs(up: LocalService, workflow_id: str, activity_id: str) -> bool:
    """Whether an activity is with its worker."""
    answer = await up.client.get_handle(workflow_id).describe()
    return any(each.activity_id == activity_id and each.worker_id for each in answer.activities)


async def test_the_service_stops_what_runs_at_once_but_not_what_is_shielded(up: LocalService) -> None:
    gate.clear()
    async with a_worker(up):
        stopped = await up.client.start_workflow(unguarded_one, id="stopped")
        kept = await up.client.start_workflow(guarded, id="kept")
        await until(lambda: runs(up, "stopped", "last:1"))
        await until(lambda: runs(up, "kept", "last:1"))
        for handle in (stopped, kept):
            await handle.cancel("snow")
        await until(lambda: _is(lambda: "long was stopped" in done))
        assert not any(each.cancel_requested for each in (await kept.describe()).activities)
        gate.set()
        for handle in (stopped, kept):
            with pytest.raises(WorkflowCancelled, match="snow"):
                await handle.result()
        assert [each for each in done if each != "long was stopped"] == [
            "booked", "handed over", "told", "undo told", "undo booked",
        ]  # fmt: skip
        asked = (await kept.describe()).cancellation
        assert (asked.reason, asked.identity) == ("snow", up.client.identity)
        await replay_in_fresh_process(kept, __name__, "guarded")
        events = await replay_in_fresh_process(stopped, __name__, "unguarded_one")
        assert "activity_cancelled" in kinds(events)


@pytest.mark.parametrize("what", ["timer", "event", "condition", "child", "future"])
async def test_a_run_is_cancelled_whatever_it_waits_for(up: LocalService, what: str) -> None:
    async with a_worker(up), Client(up.address, identity="ann") as ann:
        handle = await ann.start_workflow(waits, what, id=what)
        await until(lambda: _begun(up, what))
        await handle.cancel("enough")
        with pytest.raises(WorkflowCancelled, match="cancelled by ann: enough"):
            await handle.result()
        assert "cleaned up" in done
        await replay_in_fresh_process(handle, __name__, "waits")


async def _begun(up: LocalService, workflow_id: str) -> bool:
    answer = await up.client.get_handle(workflow_id).describe()
    return not answer.HasField("workflow_task")


async def test_a_run_that_has_no_worker_is_cancelled_when_one_comes(up: LocalService) -> None:
    async with Client(up.address, identity="ann") as ann:
        async with a_worker(up):
            handle = await ann.start_workflow(waits, "timer", id="alone")
            await until(lambda: _begun(up, "alone"))
        never = await ann.start_workflow(broken, id="never")
        for each in (handle, never):
            await each.cancel("enough")
            assert (await each.describe()).cancellation.reason == "enough"
            assert not (await each.describe()).HasField("outcome"), "its code has not had its say"
        async with a_worker(up):
            for each in (handle, never):
                with pytest.raises(WorkflowCancelled):
                    await each.result()
    assert "booked" not in done, "what was cancelled before it began begins nothing"


async def test_a_run_that_undoes_itself_takes_no_notice_of_being_cancelled(up: LocalService) -> None:
    gate.clear()
    async with a_worker(up):
        handle = await up.client.start_workflow(broken, id="broken")

        async def undoes() -> bool:
            return any("undo" in wait.id for wait in (await handle.describe()).waits)

        await until(undoes)
        await handle.cancel("too late")
        assert not (await handle.describe()).HasField("cancellation")
        gate.set()
        with pytest.raises(WorkflowFailed, match="broken"):
            await handle.result()
    assert done == ["booked", "undo booked"]
    assert "workflow_cancel_requested" not in kinds([event async for event in handle.history()])


async def test_a_child_is_cancelled_while_its_parent_closes_and_says_so(up: LocalService) -> None:
    async with a_worker(up):
        handle = await up.client.start_workflow(parent, id="parent")

        async def waits_for_event() -> bool:
            return any("event go" in wait.sentence for wait in (await handle.describe()).waits)

        await until(waits_for_event)
        await asyncio.gather(
            handle.cancel("at the same time"), up.client.publish_event(Event("go", None, workflow_id="parent"))
        )
        try:
            child_id = await handle.result()
        except WorkflowCancelled:
            run_id = (await handle.describe()).info.run_id
            child_id = f"{run_id}/sleeper:1"
        child = up.client.get_handle(child_id)
        with pytest.raises(WorkflowCancelled):
            await child.result()
        assert (await child.describe()).HasField("cancellation")


async def test_time_that_is_past_is_reached_at_once_and_is_a_step(up: LocalService) -> None:
    async with Worker(up.address, workflows=[past], activities=[]):
        handle = await up.client.start_workflow(past)
        assert await handle.result() == 4
        events = await replay_in_fresh_process(handle, __name__, "past")
    assert kinds(events).count("timer_fired") == 4


@workflow
async def past(ctx: WorkflowContext) -> int:
    begun = ctx.now()
    await ctx.sleep_until(begun - timedelta(days=365 * 100))
    await ctx.sleep_until(begun - timedelta(seconds=1.5))
    await ctx.sleep(-0.3)
    await ctx.sleep(0)
    assert ctx.now() - begun < timedelta(seconds=5)
    return 4
