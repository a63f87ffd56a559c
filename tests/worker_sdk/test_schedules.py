"""Schedules by the SDK, against the real service in this process, whose time is skipped."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from romancy.v1.schedule_pb2 import OVERLAP_POLICY_BUFFER_ONE, Schedule

from romancy import (
    Cron,
    Every,
    RequestRefused,
    ScheduleChanged,
    ScheduleExists,
    ScheduleNotFound,
    Worker,
    WorkflowContext,
    testing,
    workflow,
)
from romancy.schedules import ScheduleHandle

HOUR = timedelta(hours=1)
done: list[str] = []


@workflow
async def report(ctx: WorkflowContext, kind: str, pages: int = 1) -> str:
    done.append(kind)
    return f"{kind}, {pages} pages"


@workflow
async def slow(ctx: WorkflowContext) -> None:
    await ctx.sleep(90 * 60)
    done.append("slow")


@pytest.fixture
async def service() -> AsyncIterator[testing.LocalService]:
    done.clear()
    async with testing.service() as service, Worker(service.address, workflows=[report, slow]):
        yield service


async def test_a_workflow_is_started_each_hour_with_its_arguments(service: testing.LocalService) -> None:
    handle = await service.client.create_schedule("hourly", Every(HOUR), report, "sales", 7, note="for the board")
    await service.skip(timedelta(hours=5))
    assert done == ["sales"] * 5
    shown = await handle.describe()
    assert shown.info.note == "for the board"
    last = shown.state.recent[-1]
    assert await service.client.get_handle(last.workflow_id, workflow=report).result() == "sales, 7 pages"
    assert last.workflow_id == f"hourly-{last.scheduled_time.ToJsonString()}"


async def test_times_of_several_parts_are_taken_together(service: testing.LocalService) -> None:
    times: list[Cron | Every] = [
        Cron("0 6 * * *", "Europe/Berlin"),
        Cron("0 18 * * *", "America/New_York"),
        Every(12 * HOUR, offset=60),
    ]
    handle = await service.client.create_schedule("many", times, report, "sales", overlap="allow_all")
    spec = (await handle.describe()).schedule.spec
    assert [cron.time_zone for cron in spec.crons] == ["Europe/Berlin", "America/New_York"]
    assert spec.intervals[0].offset.seconds == 60
    await service.skip(timedelta(days=1))
    assert len(done) == 4


async def test_what_is_buffered_runs_when_the_one_before_has_ended(service: testing.LocalService) -> None:
    await service.client.create_schedule("slow", Every(HOUR), slow, overlap="buffer_one", max_actions=3)
    await service.skip(timedelta(hours=7))
    assert done == ["slow"] * 3


async def test_a_schedule_is_paused_resumed_triggered_changed_and_deleted(service: testing.LocalService) -> None:
    handle = await service.client.create_schedule("r", Every(HOUR), report, "sales", paused=True)
    await service.skip(3 * HOUR)
    assert await (await handle.trigger()).result() == "sales, 1 pages"
    await handle.resume("back")
    await service.skip(HOUR)
    await handle.pause("enough")
    assert [info.note async for info in service.client.list_schedules()] == ["enough"]
    assert done == ["sales"] * 2

    def change(schedule: Schedule) -> None:
        schedule.overlap_policy = OVERLAP_POLICY_BUFFER_ONE
        schedule.action.workflow.arguments[0].json = '"costs"'

    await handle.update(change)
    assert await (await handle.trigger(overlap="skip")).result() == "costs, 1 pages"
    await handle.delete()
    with pytest.raises(ScheduleNotFound):
        await handle.describe()


async def test_a_backfill_starts_each_time_of_its_range(service: testing.LocalService) -> None:
    handle = await service.client.create_schedule("r", Cron("30 6 * * *"), report, "old", paused=True)
    assert await handle.backfill(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 8, tzinfo=UTC)) == 7
    await service.skip(0)
    assert done == ["old"] * 7


async def test_a_change_is_made_again_when_somebody_else_was_quicker(service: testing.LocalService) -> None:
    handle = await service.client.create_schedule("r", Every(HOUR), report, "sales")
    other = service.client.get_schedule_handle("r")
    for quicker, expected in ((1, None), (99, ScheduleChanged)):
        left = [quicker]

        async def interfere(left: list[int] = left) -> None:
            if left[0]:
                left[0] -= 1
                await other.update(lambda schedule: None)

        slowed = _Slowed(service.client, "r", report, interfere)
        if expected is None:
            await slowed.update(lambda schedule: schedule.spec.jitter.FromSeconds(9))
            assert (await handle.describe()).schedule.spec.jitter.seconds == 9
        else:
            with pytest.raises(expected):
                await slowed.update(lambda schedule: None)


class _Slowed(ScheduleHandle[Any]):
    """Somebody does something between its look and its change."""

    def __init__(self, client: Any, schedule_id: str, definition: Any, interfere: Any) -> None:
        super().__init__(client, schedule_id, definition)
        self._interfere = interfere

    async def describe(self) -> Any:
        shown = await super().describe()
        await self._interfere()
        return shown


async def test_a_name_that_is_taken_is_refused(service: testing.LocalService) -> None:
    for _ in range(2):
        await service.client.create_schedule("r", Every(HOUR), report, "sales", request_id="same")
    with pytest.raises(ScheduleExists, match="'r'"):
        await service.client.create_schedule("r", Every(HOUR), report, "sales")


REFUSED: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    ("0 6 * * *", {}, TypeError, "times"),
    ([Every(1), 7], {}, TypeError, "times"),
    ([], {}, RequestRefused, "crons"),
    (Cron("0 0 30 2 *"), {}, RequestRefused, "expression"),
    (Cron("0 0 1 1 *", "Mars"), {}, RequestRefused, "time_zone"),
    (Every(0.5), {}, RequestRefused, "interval"),
    (Every(9), {"overlap": "wait"}, TypeError, "overlap"),
    (Every(9), {"starts": datetime(2026, 1, 1)}, ValueError, "time zone"),  # noqa: DTZ001 - what is refused
    (Every(9), {"ends": "tomorrow"}, TypeError, "ends"),
    (Every(9), {"jitter": -1}, ValueError, "jitter"),
    (Every(9), {"catch_up": 1}, RequestRefused, "catch_up_window"),
    (Every(9), {"max_actions": 1.5}, TypeError, "max_actions"),
    (Every(9), {"paused": 1}, TypeError, "paused"),
    (Every(9), {"priority": "high"}, TypeError, "priority"),
    (Every(9), {"every": 9}, TypeError, "every"),
]


async def test_what_cannot_be_is_refused_and_named(service: testing.LocalService) -> None:
    for times, options, error, text in REFUSED:
        with pytest.raises(error, match=text):
            await service.client.create_schedule("r", times, report, "sales", **options)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [(Every, ("1h",)), (Every, (-1,)), (Every, (1, None, 3)), (Cron, (5,)), (Cron, ("* * * * *", 1))],
)
def test_times_that_are_none_are_refused_at_once(kind: Any, arguments: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, ValueError)):
        kind(*arguments)
