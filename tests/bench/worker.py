"""The worker process of the bench: `python -m tests.bench.worker ADDRESS`."""

from __future__ import annotations

import sys

from romancy import Worker
from tests.bench.workload import (
    fan_workflow,
    listener_workflow,
    order_workflow,
    pay,
    reserve,
    ship,
    step,
    walk_workflow,
)


def main() -> None:
    """Serve until SIGTERM."""
    worker = Worker(
        sys.argv[1],
        workflows=[order_workflow, walk_workflow, fan_workflow, listener_workflow],
        activities=[reserve, pay, ship, step],
        activity_slots=1_000,
        workflow_slots=1_000,
        cached_runs=5_000,
        worker_id="bench",
    )
    worker.run()


if __name__ == "__main__":
    main()
