"""Activities that are held until a gate opens, and say their idempotency key. `python -m tests.faults.busy ADDRESS
WORKER_ID KIND...` is a worker that runs `workflows`, `activities` or both.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from romancy import ActivityError, Worker, WorkflowContext, activity, activity_info, workflow
from tests.faults.ledger import Entry, Kind, write

_FOLDER = Path(os.environ.get("ROMANCY_TEST_FOLDER", "."))


def _note(kind: Kind) -> None:
    info = activity_info()
    worker = str(os.getpid())
    write(_FOLDER / "ledger", Entry(kind, info.run_id, info.activity_id, info.attempt, worker))
    # The same again by the key under which the world outside knows it.
    write(_FOLDER / "keys", Entry(kind, info.run_id, info.idempotency_key, info.attempt, worker))


@activity
async def hold(gate: str) -> str:
    """Returns whose effect it was."""
    _note("begin")
    while not (_FOLDER / gate).exists():
        await asyncio.sleep(0.05)
    _note("effect")
    return str(os.getpid())


@workflow
async def busy(ctx: WorkflowContext, gates: list[str], once: int) -> list[str]:
    """An activity at each gate, the last `once` of them at most once. Each gives its worker, or why there is none."""
    first = len(gates) - once
    calls = [(hold.options(at_most_once=True) if n >= first else hold)(gate) for n, gate in enumerate(gates)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    return [outcome.type if isinstance(outcome, ActivityError) else str(outcome) for outcome in outcomes]


def main(address: str, worker_id: str, *kinds: str) -> None:
    """Work until SIGTERM."""
    Worker(
        address,
        worker_id=worker_id,
        workflows=[busy] if "workflows" in kinds else (),
        activities=[hold] if "activities" in kinds else (),
        drain_timeout=5,
    ).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
