"""Fresh: replays a recorded history in a process that was started for it, and nothing else.

`python -m tests.worker_sdk.fresh MODULE WORKFLOW RUN_ID` reads a GetHistoryResponse and fails unless the code asks for
exactly what is recorded.
"""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module

from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.workflow_service_pb2 import GetHistoryResponse

from romancy import WorkflowHandle
from romancy._instance import WorkflowInstance
from romancy_service.core.replay import ReplayOrder


async def replay_in_fresh_process(handle: WorkflowHandle[object], module: str, workflow: str) -> list[HistoryEvent]:
    """Raise AssertionError unless a workflow of a module fits the history of one of its runs, which is returned."""
    events = [event async for event in handle.history()]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.worker_sdk.fresh", module, workflow, str(handle.run_id)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate(GetHistoryResponse(events=events).SerializeToString())
    assert process.returncode == 0, said.decode()
    return events


def main(module: str, workflow: str, run_id: str) -> None:
    """Replay what stands on standard input."""
    order = ReplayOrder()
    recorded = GetHistoryResponse.FromString(sys.stdin.buffer.read()).events
    events = [*order.take(list(recorded)), *order.rest()]
    instance = WorkflowInstance(getattr(import_module(module), workflow), workflow_id="replayed", run_id=run_id)
    activation = instance.activate(events)
    assert activation.closed, "the code waits for something although its run is closed"
    assert not activation.commands, activation.commands
    instance.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
