"""The service dies at each step of what people ask of a schedule: each start that was asked for is made once, a pause holds
from when it was answered, and a request that is repeated is answered as before and changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from romancy.v1.schedule_pb2 import ScheduleState
from romancy.v1.schedule_service_pb2 import (
    BackfillScheduleRequest,
    CreateScheduleRequest,
    PauseScheduleRequest,
    ResumeScheduleRequest,
    TriggerScheduleRequest,
)

from romancy import Client, Every
from romancy.schedules import to_schedule
from romancy_service.faults import CHANGE_POINTS, SCHEDULE_POINTS
from tests.faults.families import toddler
from tests.faults.scene import Scene, until

START_DEATHS = (
    "change.before:1",  # nothing is stored
    "change.after:1",  # what was asked for is stored as waiting, and nobody is told
    "commit.before:1",
    "commit.after:1",  # the run is stored, and the schedule does not know
    "schedule.started:1",
    "schedule.before:1",
    "schedule.after:1",  # all is stored
)
BACKFILLED = 5

pytestmark = pytest.mark.timeout(240)
Call = Callable[[], Coroutine[Any, Any, Any]]


def test_every_point_of_a_change_and_of_its_starts_is_died_at() -> None:
    assert {death.partition(":")[0] for death in START_DEATHS} >= {*CHANGE_POINTS, *SCHEDULE_POINTS}


async def create(client: Client, schedule_id: str, request_id: str = "") -> int:
    """A paused schedule of each minute: it starts what it is asked to."""
    request = CreateScheduleRequest(
        namespace="default",
        schedule_id=schedule_id,
        schedule=to_schedule(Every(60), toddler, (1,), {}),
        paused=True,
        request_id=request_id,
    )
    return (await client.calls.call(lambda calls: calls.schedules.CreateSchedule, request)).revision


async def trigger(client: Client, request_id: str) -> str:
    request = TriggerScheduleRequest(namespace="default", schedule_id="s", request_id=request_id)
    return (await client.calls.call(lambda calls: calls.schedules.TriggerSchedule, request)).workflow_id


async def backfill(client: Client, start: datetime, request_id: str) -> int:
    request = BackfillScheduleRequest(namespace="default", schedule_id="s", request_id=request_id)
    request.start_time.FromDatetime(start)
    request.end_time.FromDatetime(start + timedelta(minutes=BACKFILLED))
    return (await client.calls.call(lambda calls: calls.schedules.BackfillSchedule, request)).starts


async def pause(client: Client, request_id: str) -> None:
    request = PauseScheduleRequest(namespace="default", schedule_id="s", request_id=request_id)
    await client.calls.call(lambda calls: calls.schedules.PauseSchedule, request)


async def resume(client: Client, request_id: str) -> None:
    request = ResumeScheduleRequest(namespace="default", schedule_id="s", request_id=request_id)
    await client.calls.call(lambda calls: calls.schedules.ResumeSchedule, request)


async def state(client: Client, schedule_id: str = "s") -> ScheduleState:
    return (await client.get_schedule_handle(schedule_id).describe()).state


async def settled(client: Client) -> bool:
    """Whether nothing waits to be started."""
    return not (await state(client)).waiting


async def check_asked(stage: Scene, client: Client, wanted: list[str]) -> None:
    """These are the runs, each once, and the schedule knows of no others."""
    stage.start("worker", "tests.faults.families", f"127.0.0.1:{stage.port}", "worker")
    for workflow_id in wanted:
        assert await client.get_handle(workflow_id).result() == 1
    assert sorted([info.workflow_id async for info in client.list_workflows()]) == sorted(wanted)
    shown = await state(client)
    assert (shown.requested_count, shown.started_count) == (len(wanted), 0)
    assert (shown.skipped_count, shown.failed_count, shown.missed_count) == (0, 0, 0)
    await stage.finish(losses=False)


async def test_wherever_the_service_dies_each_trigger_starts_one_run(stage: Scene) -> None:
    async with stage.client() as client:
        for point in CHANGE_POINTS:
            made = partial(create, client, "s" if point == CHANGE_POINTS[0] else "other", point)
            assert await stage.outlive(f"{point}:1", made) == await made() == 1
        wanted = []
        for death in START_DEATHS:
            call = partial(trigger, client, death)
            wanted.append(await stage.outlive(death, call))
            assert await call() == wanted[-1], "the same request, the same answer"
        await until(lambda: settled(client), "all are started")
        await check_asked(stage, client, wanted)


async def test_wherever_the_service_dies_each_time_of_a_backfill_is_started_once(stage: Scene) -> None:
    wanted: list[str] = []
    async with stage.client() as client:
        await stage.service()
        await create(client, "s")
        for number, death in enumerate(START_DEATHS):
            start = datetime(2024, 5, 1, number, tzinfo=UTC)
            call = partial(backfill, client, start, death)
            assert await stage.outlive(death, call) == BACKFILLED
            assert await call() == BACKFILLED
            wanted += [f"s-{start + timedelta(minutes=minute):%Y-%m-%dT%H:%M:%SZ}" for minute in range(BACKFILLED)]
            await until(lambda: settled(client), "all are started")
        await check_asked(stage, client, wanted)


async def test_wherever_the_service_dies_a_pause_holds_and_ends_when_it_was_said(stage: Scene) -> None:
    """Spans are of seconds: none was said to be free of starts but had one, or had to have them and had none."""
    unsure: list[tuple[float, float]] = []
    free: list[tuple[float, float]] = []
    await stage.service()
    async with stage.client() as client:
        for name in ("s", "witness"):
            await client.create_schedule(
                name, Every(1), toddler, 1, overlap="allow_all", catch_up=timedelta(hours=1), workflow_id_prefix=name
            )
        for death in CHANGE_POINTS:
            begun = await up_to_date(client, "s")
            pausing, resuming = partial(pause, client, f"p {death}"), partial(resume, client, f"r {death}")
            await stage.outlive(f"{death}:1", pausing)
            paused = time.time()
            await up_to_date(client, "witness", 3)
            assert (await state(client)).paused
            before_resuming = time.time()
            await stage.outlive(f"{death}:1", resuming)
            await pausing()  # once more, much too late
            assert not (await state(client)).paused
            unsure.append((begun, time.time()))
            free.append((paused, before_resuming))
        last = await up_to_date(client, "s", 2)
        await client.get_schedule_handle("s").pause()
        await until(lambda: settled(client), "all are started")
        runs = [info async for info in client.list_workflows() if info.workflow_id.startswith("s-")]
    started = [info.attributes["romancy.scheduled_time"].time.seconds for info in runs]
    assert len(started) == len({*started}), "each second once"
    assert not [second for second in started if any(begin < second < end for begin, end in free)]
    due = [s for s in range(min(started), last + 1) if not any(begin <= s <= end for begin, end in unsure)]
    assert len(due) >= len(CHANGE_POINTS)
    assert {*due} <= {*started}, "all others are started"


async def up_to_date(client: Client, schedule_id: str, more: int = 0) -> int:
    """Wait until so many more seconds have passed and were started. Returns the last one that was."""
    from_s = int(time.time()) + more
    seen: list[int] = []

    async def caught_up() -> bool:
        recent = (await state(client, schedule_id)).recent
        seen[:] = [run.scheduled_time.seconds for run in recent]
        return bool(seen) and max(seen) >= from_s

    await until(caught_up, f"{schedule_id} goes on")
    return max(seen)
