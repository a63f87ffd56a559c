"""DBOS in several processes, each an executor of its own, and a client that deals orders to them.

`python -m tests.bench.peers.programs.dbos_crew URL SETTINGS PROCESSES IN_FLIGHT WARM_UP_S SECONDS`; settings are JSON.
"""

from __future__ import annotations

import json
import sys

import uvloop

from tests.bench.closed_loop import closed_loop
from tests.bench.peers.programs.crew import Crew


async def main() -> None:
    """Load until told."""
    url, settings, processes, *numbers = sys.argv[1:]
    program = [sys.executable, "-m", "tests.bench.peers.programs.dbos_app", url]
    executors = [{"executor_id": f"bench-{number}"} for number in range(int(processes))]
    commands = [[*program, json.dumps(json.loads(settings) | executor)] for executor in executors]
    async with Crew(commands) as crew:
        await closed_loop(crew.place, numbers)


if __name__ == "__main__":
    uvloop.run(main())
