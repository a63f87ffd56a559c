"""Walk: whether a step costs as much after 5,000 others as at the beginning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tests.bench.database import Databases
from tests.bench.measurement import Measurement
from tests.bench.system import heard, system

STEPS: Final = 5_000
EDGE: Final = 500
"""So many steps at the beginning are compared with so many at the end."""


def walk(databases: Databases) -> Iterator[Measurement]:
    """One workflow of 5,000 steps, alone."""
    with system(databases.fresh()) as running:
        client = running.start_client("walk", STEPS)
        heard(client, "begin")
        done_s = heard(client, "end")["done_s"]
        heard(client, "done")
    if len(done_s) != STEPS + 1:
        raise AssertionError(f"the history has {len(done_s) - 1} steps instead of {STEPS}")
    first_s, last_s = done_s[EDGE] - done_s[0], done_s[-1] - done_s[-1 - EDGE]
    yield Measurement("first_500_steps_ms", databases.name, 1, 1e3 * first_s / EDGE, "ms a step")
    yield Measurement("last_500_steps_ms", databases.name, 1, 1e3 * last_s / EDGE, "ms a step")
    yield Measurement("step_cost_growth", databases.name, 1, last_s / first_s, "times")
