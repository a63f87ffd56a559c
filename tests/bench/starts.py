"""Starts: how long StartWorkflow takes to answer at 200 a second, while the workers do what was started."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tests.bench.database import Databases
from tests.bench.load import quantile
from tests.bench.measurement import Measurement
from tests.bench.system import heard, system

PER_S: Final = 200
SECONDS: Final = 8


def starts(databases: Databases) -> Iterator[Measurement]:
    """Starts come at a steady rate, not one after the answer to another."""
    with system(databases.fresh()) as running:
        client = running.start_client("start", PER_S, SECONDS)
        heard(client, "begin")
        before = running.usage()
        took_s = heard(client, "end")["took_s"]
        used = running.usage() - before
    yield Measurement("start_answered_p50_ms", databases.name, PER_S, 1e3 * quantile(took_s, 0.50), "ms")
    yield Measurement("start_answered_p99_ms", databases.name, PER_S, 1e3 * quantile(took_s, 0.99), "ms")
    yield Measurement("cores_used_by_others_at_starts", databases.name, PER_S, used.others / SECONDS, "cores")
