"""A failure that code caught is caught again on replay: of every kind, as the same type, with the same words."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from romancy import Client, Event, Worker, WorkflowContext, testing, workflow
from romancy_service.core.limits import Limits
from tests.worker_sdk import catcher as program
from tests.worker_sdk.replayer import Recorded, save

ROOT = Path(__file__).parents[2]
CAUGHT = {
    "an_activity_fails": ["ActivityError", "RemoteError", "RemoteError"],
    "an_activity_gives_up": ["ActivityError"],
    "an_activity_raises_what_it_lists": ["Declined"],
    "an_activity_raises_what_derives_from_it": ["Declined"],
    "an_activity_takes_too_long": ["ActivityTimeout"],
    "an_activity_finds_no_worker": ["ActivityTimeout"],
    "an_activity_is_lost": ["ActivityLost"],
    "an_activity_returns_another_type": ["ConversionError"],
    "a_task_is_cancelled": ["CancelledError"],
    "a_child_fails": ["ChildError"],
    "a_child_is_cancelled": ["ChildCancelled"],
    "a_child_is_not_started": ["ChildNotStarted"],
    "an_event_does_not_come": ["EventTimeout"],
    "an_event_does_not_fit": ["ConversionError"],
    "a_message_does_not_come": ["MessageTimeout"],
    "a_channel_is_taken": ["ChannelModeConflict"],
    "nothing_is_subscribed_to": ["ValueError"],
    "nobody_is_signalled": ["SendError"],
    "nobody_is_cancelled": ["SendError"],
    "nobody_gets_a_message": ["SendError"],
    "a_step_breaks": ["StepError"],
    "a_step_raises_what_it_lists": ["Declined"],
    "a_condition_is_not_met": ["TimeoutError"],
    "time_is_up": ["TimeoutError"],
    "something_cannot_be_undone": ["CompensationError"],
    "the_workflow_is_cancelled": ["CancelledError"],
}
LIMITS = Limits(reconnect_grace_ms=100, session_lease_ms=5_000, heartbeat_interval_ms=1_000)


@workflow
async def holder(ctx: WorkflowContext) -> None:
    await ctx.subscribe("taken", mode="competing")
    await ctx.wait_condition(lambda: False)


@pytest.fixture(params=["held in memory", "replayed at each task"])
def cached_runs(request: pytest.FixtureRequest) -> int:
    return 0 if request.param == "replayed at each task" else 100


async def test_whatever_was_caught_is_caught_again_as_the_same_type(cached_runs: int, tmp_path: Path) -> None:
    async with asyncio.timeout(100), testing.service(limits=LIMITS) as service:
        doomed = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.worker_sdk.catcher", service.address), cwd=ROOT, env=_environment()
        )
        workflows = [*program.WORKFLOWS, holder]
        async with Worker(service.address, workflows=workflows, activities=program.ACTIVITIES, cached_runs=cached_runs):
            caught = await _catch(service.client)
        assert await doomed.wait() == -9
        handle = service.client.get_handle("catcher")
        events = [event async for event in handle.history()]
    assert [name for name, *_ in caught] == program.WAYS == list(CAUGHT)
    for name, *told in caught:
        assert told[::2][: len(CAUGHT[name])] == CAUGHT[name], (name, told)
    # What it returned is what it caught: a fresh process must come to the same.
    run_id = (events[0].workflow_started.first_run_id) or handle.run_id or ""
    histories = tmp_path / "histories"
    save([Recorded("catcher", run_id, events)], histories)
    assert _replayed(histories, "tests/worker_sdk/catcher.py") == ""
    changed = tmp_path / "catcher.py"
    changed.write_text(
        (ROOT / "tests/worker_sdk/catcher.py").read_text().replace("@activity(raises=[Declined], ", "@activity(")
    )
    assert "it ends otherwise" in _replayed(histories, str(changed))


async def _catch(client: Client) -> list[list[str]]:
    await client.start_workflow(holder)
    while not [channel async for channel in client.list_channels() if channel.subscribers]:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    catching = await client.start_workflow(program.catcher, id="catcher")
    await client.publish_event(Event("odd", "text", workflow_id="catcher"))
    return await catching.result()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": ":".join(sys.path)}


def _replayed(histories: Path, file: str) -> str:
    command = [sys.executable, "-m", "tests.worker_sdk.replayer", file, str(histories)]
    return subprocess.run(
        command, cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=60, check=False
    ).stdout
