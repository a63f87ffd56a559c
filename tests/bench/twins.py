"""Twins: two services on one Postgres, against one. Each has a worker and a client of its own, as behind a balancer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

from tests.bench.database import Databases
from tests.bench.measurement import Measurement
from tests.bench.system import heard, system

IN_FLIGHT: Final = 256
"""In all, however many services share them."""
WARM_UP_S: Final = 3.0
PAIRS: Final = 2


def twins(databases: Databases, seconds: float) -> Iterator[Measurement]:
    """One and two in turn; the best of each counts. SQLite has one process only."""
    if databases.name != "postgres":
        return
    found: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for _ in range(PAIRS):
        for services in found:
            found[services].append(_orders(databases, services, seconds))
    for services, runs in found.items():
        yield Measurement(
            f"workflows_per_s_{services}_services", databases.name, IN_FLIGHT, max(rate for rate, _ in runs), "1/s"
        )
        yield Measurement(
            f"cpu_s_per_1000_{services}_services", databases.name, IN_FLIGHT, min(cpu for _, cpu in runs), "s"
        )
    ratio = max(rate for rate, _ in found[2]) / max(rate for rate, _ in found[1])
    yield Measurement("two_services_to_one", databases.name, IN_FLIGHT, ratio, "times")


def _orders(databases: Databases, services: int, seconds: float) -> tuple[float, float]:
    """Orders a second, and CPU time for a thousand of them, of all processes."""
    database = databases.fresh()
    with ExitStack() as stack:
        running = [stack.enter_context(system(database)) for _ in range(services)]
        clients = [each.start_client("load", IN_FLIGHT // services, WARM_UP_S, seconds) for each in running]
        for client in clients:
            heard(client, "begin")
        before = [each.usage() for each in running]
        measured: list[dict[str, Any]] = [heard(client, "end") for client in clients]
        used = [each.usage() - earlier for each, earlier in zip(running, before, strict=True)]
        for client in clients:
            heard(client, "done")
    completed = sum(each["completed"] for each in measured)
    # All count the one Postgres.
    cpu_s = sum(each.ours for each in used) + used[0].postgres
    return sum(each["completed"] / each["elapsed_s"] for each in measured), 1e3 * cpu_s / max(completed, 1)
