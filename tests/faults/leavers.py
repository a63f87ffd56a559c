"""Activities that leave their worker. `python -m tests.faults.leavers ADDRESS WORKER_ID` is a worker that runs them.

What is handed out lies in the folder of the scene, one file for each attempt: whoever reads it may end the attempt.
ROMANCY_TEST_DIE=asked kills the worker after it handed the token out, before it could say so.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from romancy import CompleteElsewhere, RetryPolicy, Worker, WorkflowContext, activity, activity_info, workflow
from tests.faults.ledger import Entry, Kind, write

KINDS: tuple[Kind, ...] = ("begin", "effect")
_FOLDER = Path(os.environ.get("ROMANCY_TEST_FOLDER", "."))
_DIE = os.environ.get("ROMANCY_TEST_DIE", "")


@activity(retry=RetryPolicy(initial_interval=0.02, jitter=0))
def sign(what: str) -> str:
    info = activity_info()
    for kind in KINDS:
        write(_FOLDER / "ledger", Entry(kind, info.run_id, info.activity_id, info.attempt, str(os.getpid())))
    written = _FOLDER / f"{what}.writing"
    written.write_text(info.token)
    written.rename(_FOLDER / f"{what}-{info.attempt}.token")
    if _DIE == "asked" and info.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    raise CompleteElsewhere


@workflow
async def contract(ctx: WorkflowContext, what: str) -> str:
    return await sign(what)


def main(address: str, worker_id: str) -> None:
    """Work until SIGTERM."""
    Worker(address, worker_id=worker_id, workflows=[contract], activities=[sign], drain_timeout=5).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
