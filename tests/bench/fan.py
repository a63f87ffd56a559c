"""Fan: one workflow that calls 5,000 activities at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tests.bench.database import Databases
from tests.bench.measurement import Measurement
from tests.bench.system import heard, system

STEPS: Final = 5_000


def fan(databases: Databases) -> Iterator[Measurement]:
    """From the start of the workflow to its result."""
    with system(databases.fresh()) as running:
        client = running.start_client("fan", STEPS)
        heard(client, "begin")
        before = running.usage()
        elapsed_s = heard(client, "end")["elapsed_s"]
        used = running.usage() - before
        heard(client, "done")
    yield Measurement("fan_of_5000_s", databases.name, 1, elapsed_s, "s")
    yield Measurement("fan_of_5000_cpu_s", databases.name, 1, used.ours + used.postgres, "s")
