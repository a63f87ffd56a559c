"""Seeding: many runs, decided by the core and written by the store, without a service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from romancy.v1.command_pb2 import Command
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import WorkflowSpec

from romancy_service.core.decide import decide
from romancy_service.core.limits import Limits
from romancy_service.core.run import Run
from romancy_service.core.task import WORKFLOW_TASK_ID, Fence
from romancy_service.core.triggers import CompleteWorkflowTask, StartRun
from romancy_service.starter import new_id
from romancy_service.store.store import Change, Store, open_store

_BATCH: Final = 256
_LIMITS: Final = Limits()


async def seed(url: str, count: int, workflow_type: str, waits: Callable[[int], Command], ago_ms: int = 0) -> None:
    """Write so many runs, each with its number as argument and in its id, whose code has asked for one thing."""
    store = open_store(url)
    await store.open()
    try:
        then_ms = await store.now_ms() - ago_ms
        async with asyncio.TaskGroup() as lanes:
            for lane in range(store.lanes):
                numbers = range(lane, count, store.lanes)
                lanes.create_task(_seed_lane(store, numbers, workflow_type, waits, then_ms))
    finally:
        await store.close()


async def _seed_lane(
    store: Store, numbers: range, workflow_type: str, waits: Callable[[int], Command], then_ms: int
) -> None:
    for first in range(0, len(numbers), _BATCH):
        batch = numbers[first : first + _BATCH]
        changes = [Change(_waiting(number, workflow_type, waits(number), then_ms)) for number in batch]
        result = await store.commit(changes, then_ms)
        if len(result.written) != len(changes):
            raise AssertionError(f"{len(changes) - len(result.written)} of {len(changes)} runs were not stored")


def _waiting(number: int, workflow_type: str, command: Command, then_ms: int) -> Run:
    """A run whose code asked for something and waits for it: the core decided so, and it is not stored yet."""
    run = Run("default", f"{workflow_type}-{number}", new_id())
    spec = WorkflowSpec(workflow_type=workflow_type, task_queue="default", arguments=[Payload(json=str(number))])
    decide(run, StartRun(spec, "bench"), then_ms, _LIMITS)
    fence = Fence(WORKFLOW_TASK_ID, 1, "", 0)
    decide(run, CompleteWorkflowTask(fence, run.last_event_id, [command], holds_run=False), then_ms, _LIMITS)
    return run
