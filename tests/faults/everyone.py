"""`python -m tests.faults.everyone ADDRESS WORKER_ID` is a worker that runs talkers, listeners and families."""

from __future__ import annotations

import sys
from typing import Final

from romancy import Worker
from tests.faults import families, listeners, talkers

WORKFLOWS: Final = (*talkers.WORKFLOWS, *listeners.WORKFLOWS, *families.WORKFLOWS)


def main(address: str, worker_id: str) -> None:
    """Work until SIGTERM."""
    Worker(address, worker_id=worker_id, workflows=WORKFLOWS, activities=[talkers.grow], drain_timeout=5).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
