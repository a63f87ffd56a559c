"""A worker in a process of its own: it prints a line when its activity begins, which ends when a file appears."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

from romancy import Worker, WorkflowContext, activity, activity_info, workflow


@activity
def slow(gate: str) -> str:
    print("begun", flush=True)  # noqa: T201 - for the test that reads it
    while not Path(gate).exists():
        time.sleep(0.01)
    return f"attempt {activity_info().attempt}"


@workflow
async def wait_for_gate(ctx: WorkflowContext, gate: str) -> str:
    return await slow(gate)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    Worker(sys.argv[1], workflows=[wait_for_gate], activities=[slow], worker_id="draining").run()
