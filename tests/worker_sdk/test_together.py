"""Worker, client and the real service together."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from romancy import (
    TerminalError,
    Worker,
    WorkflowCancelled,
    WorkflowContext,
    WorkflowFailed,
    activity,
    activity_info,
    compensation,
    heartbeat,
    testing,
    workflow,
)
from romancy.options import RetryPolicy
from romancy.testing import LocalService
from tests.worker_sdk.draining_worker import wait_for_gate

PATIENCE_S = 20.0
DONE: list[str] = []


@compensation
async def undo(step: str, result: str | None) -> None:
    DONE.append(f"undo {step}, which gave {result}")


@activity(compensation=undo)
async def do(step: str) -> str:
    DONE.append(step)
    return step.upper()


@activity
async def break_down() -> None:
    raise TerminalError("broken")


@activity(retry=RetryPolicy(initial_interval=0.01))
async def third_time() -> str:
    info = activity_info()
    if info.attempt < 3:
        raise ConnectionError(f"attempt {info.attempt}")
    return f"{info.attempt}"


@activity
async def endless() -> None:
    heartbeat("begun")
    await asyncio.Event().wait()


@workflow
async def saga(ctx: WorkflowContext, breaks: bool) -> list[str]:
    first, second = await do("a"), await do("b")
    if breaks:
        await break_down()
    return [first, second]


@workflow
async def many(ctx: WorkflowContext, count: int) -> int:
    results = await asyncio.gather(*(do(str(number)) for number in range(count)))
    await ctx.sleep(0.01)
    return len(results) + int(await third_time())


@workflow
async def waits(ctx: WorkflowContext) -> None:
    await endless()


@pytest.fixture
async def service() -> AsyncIterator[LocalService]:
    DONE.clear()
    async with asyncio.timeout(3 * PATIENCE_S), testing.service() as service:
        yield service


@pytest.fixture(params=["", "1"], ids=["held", "replayed"], autouse=True)
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers hold runs in memory, or replay them from scratch at every task."""
    monkeypatch.setenv("ROMANCY_REPLAY_ALWAYS", request.param)


def worker(service: LocalService) -> Worker:
    return Worker(
        service.address,
        workflows=[saga, many, waits],
        activities=[do, break_down, third_time, endless],
    )


async def test_a_saga_completes_or_is_undone_newest_first(service: LocalService) -> None:
    async with worker(service):
        assert await service.client.execute_workflow(saga, False) == ["A", "B"]
        assert DONE == ["a", "b"]
        with pytest.raises(WorkflowFailed, match="broken") as failed:
            await service.client.execute_workflow(saga, True)
        assert failed.value.type == "TerminalError"
        assert DONE[2:] == ["a", "b", "undo b, which gave B", "undo a, which gave A"]


async def test_activities_at_once_timers_and_retries_come_together(service: LocalService) -> None:
    async with worker(service):
        handles = [await service.client.start_workflow(many, 20) for _ in range(5)]
        assert [await handle.result() for handle in handles] == [23] * 5


async def test_cancelling_a_workflow_stops_its_activity(service: LocalService) -> None:
    async with worker(service):
        handle = await service.client.start_workflow(waits)
        async for event in handle.watch():
            if event.HasField("activity_scheduled"):
                break
        await handle.cancel("no need")
        with pytest.raises(WorkflowCancelled):
            await handle.result()


async def test_a_worker_process_that_is_asked_to_stop_finishes_its_activity(
    service: LocalService, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.worker_sdk.draining_worker", service.address),
        env={"PYTHONPATH": ":".join(sys.path), "ROMANCY_REPLAY_ALWAYS": os.environ["ROMANCY_REPLAY_ALWAYS"]},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    handle = await service.client.start_workflow(wait_for_gate, str(gate))
    assert await process.stdout.readline() == b"begun\n"
    process.send_signal(signal.SIGTERM)
    assert b"SIGTERM: finishing what is in hand" in await process.stderr.readline()
    gate.touch()
    async with asyncio.timeout(PATIENCE_S):
        assert await process.wait() == 0
    # What follows needs another worker: the one that stopped took no new tasks.
    async with Worker(service.address, workflows=[wait_for_gate]):
        assert await handle.result() == "attempt 1"
