"""Code that no longer fits its history is told so, readably, and the run is left alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from romancy.v1.history_pb2 import HistoryEvent

from romancy import Divergence, WorkflowContext, activity, compensation, workflow
from romancy._machine import replay_order
from romancy.workflow import WorkflowDefinition
from romancy_service.core.replay import ReplayOrder
from tests.worker_sdk.campaign import Campaign
from tests.worker_sdk.driver import Driver
from tests.worker_sdk.simulated import SimulatedService


@compensation
async def undo(n: int) -> None:
    pass


@activity
async def reserve(n: int) -> int:
    return n


@activity
async def pay(n: int) -> int:
    return n


@workflow
async def order(ctx: WorkflowContext) -> int:
    n = await reserve(1)
    return await pay(n)


def lived(definition: WorkflowDefinition[..., Any]) -> Driver:
    """The order, until after its payment."""
    run = Driver(definition)
    run.start()
    run.complete("reserve:1", 1)
    run.complete("pay:1", 1)
    return run


def difference(recorded: Driver, code: WorkflowDefinition[..., Any]) -> str:
    recorded.definition = code
    with pytest.raises(Divergence) as raised:
        recorded.new_instance().activate(recorded.history())
    return str(raised.value)


def test_another_kind_of_command_names_the_event_both_sides_and_the_place() -> None:
    @workflow
    async def changed(ctx: WorkflowContext) -> int:
        await ctx.sleep(5)
        return await reserve(1)

    text = difference(lived(order), changed)
    assert (
        "event 2 recorded ScheduleActivity reserve:1, the code now asks for StartTimer 1 at test_divergence.py:" in text
    )
    assert "put the code right" in text


def test_another_activity_is_a_difference_and_other_arguments_are_not() -> None:
    @workflow
    async def changed(ctx: WorkflowContext) -> int:
        n = await reserve(99)
        await undo.options(timeout=5)(n)
        return 1

    assert "event 4 recorded ScheduleActivity pay:1, the code now asks for ScheduleActivity undo:1" in difference(
        lived(order), changed
    )


def test_a_command_that_is_not_asked_for_any_more_says_what_the_code_waits_for() -> None:
    @workflow
    async def changed(ctx: WorkflowContext) -> None:
        await reserve(1)
        await asyncio.Event().wait()

    text = difference(lived(order), changed)
    assert "event 4 recorded ScheduleActivity pay:1, but the code did not ask for it: it waits for nothing" in text


def test_a_workflow_that_returns_too_early_is_a_difference() -> None:
    @workflow
    async def changed(ctx: WorkflowContext) -> int:
        return await reserve(1)

    assert "event 4 recorded ScheduleActivity pay:1, the code now asks for CompleteWorkflow" in difference(
        lived(order), changed
    )


def test_a_command_more_between_recorded_ones_is_a_difference() -> None:
    @workflow
    async def changed(ctx: WorkflowContext) -> int:
        await asyncio.gather(reserve(1), pay(1))
        return 1

    text = difference(lived(order), changed)
    assert "the code asked for ScheduleActivity pay:1 after event 1" in text
    assert "ends with event 2 (ScheduleActivity reserve:1)" in text


def test_a_workflow_that_fails_where_it_completed_is_a_difference() -> None:
    @workflow
    async def changed(ctx: WorkflowContext) -> None:
        await pay(await reserve(1))
        raise ValueError("new")

    assert "event 6 recorded CompleteWorkflow, the code now asks for FailWorkflow" in difference(lived(order), changed)


def test_swallowing_every_exception_does_not_hide_a_difference_nor_suspend_less() -> None:
    @workflow
    async def changed(ctx: WorkflowContext) -> int:
        for _ in range(3):
            try:
                await pay(1)
            except BaseException:  # noqa: S112 - what careless code does
                continue
        return 1

    assert "event 2 recorded ScheduleActivity reserve:1" in difference(lived(order), changed)


def test_new_commands_after_the_end_of_the_history_are_no_difference() -> None:
    @workflow
    async def longer(ctx: WorkflowContext) -> int:
        n = await pay(await reserve(1))
        return await reserve(n)

    run = Driver(order)
    run.start()
    run.complete("reserve:1", 1)
    run.definition = longer
    fresh = run.new_instance()
    assert fresh.activate(run.history()).commands == []
    event = HistoryEvent(event_id=5)
    event.activity_completed.activity_id = "pay:1"
    event.activity_completed.result.json = "1"
    [command] = fresh.activate([event]).commands
    assert command.schedule_activity.activity_id == "reserve:2"


def test_an_event_of_a_newer_service_is_a_difference_and_no_crash() -> None:
    run = lived(order)
    history = run.history()
    for event in history:
        if event.HasField("activity_scheduled"):
            event.ClearField("activity_scheduled")
    with pytest.raises(Divergence, match="event 2 recorded None"):
        run.new_instance().activate(history)


def test_histories_are_put_in_order_here_as_in_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    services: list[SimulatedService] = []
    send_task = SimulatedService.send_task

    def remember(self: SimulatedService) -> Any:
        services.append(self)
        return send_task(self)

    monkeypatch.setattr(SimulatedService, "send_task", remember)
    for seed in range(100):
        Campaign(seed).run()
    for service in services:
        order = ReplayOrder()
        ours, theirs = replay_order(service.events), [*order.take(service.events), *order.rest()]
        assert ours == theirs[: len(ours)]
        assert not any(event.seen_event_id for event in theirs[len(ours) :])
