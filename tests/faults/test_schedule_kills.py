"""The service dies, or freezes, at every point of starting what a schedule says; each second is started once all the same."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from romancy import Client, Every, ScheduleHandle
from romancy_service.faults import SCHEDULE_POINTS
from tests.faults.programs import order
from tests.faults.scene import Scene, free_port, scene, until

DEATHS: Final = (
    "schedule.before:1",  # nothing is stored
    "schedule.after:1",  # a start is stored as waiting, and is not made
    "commit.before:1",
    "commit.after:1",  # its run is stored, and nobody knows
    "schedule.started:1",
    "schedule.before:2",  # its run is known, and that is not stored
    "schedule.after:2",
)

FROZEN: Final = ("schedule.before:1", "schedule.before:2", "schedule.started:1", "commit.before:1")


def test_every_point_of_a_schedule_is_died_at() -> None:
    assert {death.partition(":")[0] for death in DEATHS} >= set(SCHEDULE_POINTS)


@pytest.mark.timeout(240)
async def test_each_second_is_started_once_wherever_the_service_dies(stage: Scene) -> None:
    service = await stage.service()
    async with stage.client() as client:
        await _every_second(client)
        service.kill()
        for death in DEATHS:
            service = await stage.service(ROMANCY_CRASH_AT=death)
            await until(lambda: not service.alive, f"it dies at {death}")  # noqa: B023
            assert service.exit_code == -9
        await stage.service()
        handle = client.get_schedule_handle("s")
        await until(lambda: _has_started(handle, len(DEATHS)), "it goes on")
        started = await _started(client)
    assert started == list(range(started[0], started[0] + len(started))), "each second once"


async def test_a_replica_that_freezes_in_the_middle_doubles_nothing_when_it_goes_on(
    tmp_path: Path, fresh_postgres: Callable[[], str]
) -> None:
    await asyncio.gather(*(_freeze(tmp_path / point, fresh_postgres(), point) for point in FROZEN))


async def _freeze(folder: Path, database: str, point: str) -> None:
    async with scene(folder, database) as stage:
        frozen = await stage.service(ROMANCY_STOP_AT=point)
        async with stage.client() as client:
            await _every_second(client)
        await until(lambda: psutil.Process(frozen.pid).status() == psutil.STATUS_STOPPED, f"it freezes at {point}")
        port = free_port()
        await stage.service(port=port)
        async with stage.client(port) as client:
            handle = client.get_schedule_handle("s")
            await until(lambda: _has_started(handle, 3), "the other replica goes on")
            frozen.signal(signal.SIGCONT)
            await until(lambda: _has_started(handle, 5), "both go on")
            assert await asyncio.to_thread(frozen.stop) == 0, "with what it was at"
            started = await _started(client)
    assert started == list(range(started[0], started[0] + len(started))), "each second once"


async def _every_second(client: Client) -> None:
    # Each is made up for, however long the service was away.
    window = timedelta(hours=1)
    await client.create_schedule("s", Every(1), order, "o", False, overlap="allow_all", catch_up=window)


async def _has_started(handle: ScheduleHandle[Any], number: int) -> bool:
    return (await handle.describe()).state.started_count >= number


async def _started(client: Client) -> list[int]:
    """The seconds for which runs were started, when no more are to come."""
    handle = client.get_schedule_handle("s")
    await handle.pause()

    async def all_are_known() -> bool:
        state = (await handle.describe()).state
        assert (state.missed_count, state.skipped_count, state.failed_count) == (0, 0, 0)
        return state.started_count == (await client.count_workflows()).count

    await until(all_are_known, "the schedule knows its runs")
    runs = [info async for info in client.list_workflows()]
    for info in runs:
        late_ms = info.start_time.ToMilliseconds() - info.attributes["romancy.scheduled_time"].time.ToMilliseconds()
        assert late_ms >= 0, "one was early"
    return sorted(info.attributes["romancy.scheduled_time"].time.seconds for info in runs)
