"""Sample: what an entrant did under one load, once."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

from tests.bench.load import quantile
from tests.bench.peers.entrant import Entrant, Terms
from tests.bench.process import machine_cpu_s
from tests.bench.system import heard

WARM_UP_S: Final = 3.0
LIMIT_S: Final = 240.0
"""By then a client has ended, or is taken to hang: four times its own patience."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Figures of one run."""

    workflows_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_s_per_1000_workflows: float
    """Of all processes together: servers, database, workers, client."""
    cores_used: float
    cores_used_by_others: float
    unfinished: int = 0
    """Orders that had not ended a minute after the last one was placed. All that ended were checked."""


def sample(entrant: Entrant, in_flight: int, seconds: float) -> Sample:
    """Start it, load it, and end it. Raises ProcessFailed."""
    with entrant.running() as running:
        client = running.start_client(Terms(in_flight, WARM_UP_S, seconds))
        watchdog = threading.Timer(LIMIT_S, client.kill)
        watchdog.start()
        try:
            heard(client, "begin")
            used, busy = running.cpu_s(), machine_cpu_s()
            measured = heard(client, "end")
            used, busy = running.cpu_s() - used, machine_cpu_s() - busy
            unfinished = heard(client, "done").get("unfinished", 0)
        finally:
            watchdog.cancel()
    completed, elapsed_s = measured["completed"], measured["elapsed_s"]
    return Sample(
        workflows_per_s=completed / elapsed_s,
        p50_ms=1e3 * quantile(measured["latencies_s"], 0.50),
        p99_ms=1e3 * quantile(measured["latencies_s"], 0.99),
        cpu_s_per_1000_workflows=1e3 * used / completed if completed else float("nan"),
        cores_used=used / elapsed_s,
        cores_used_by_others=max(0.0, busy - used) / elapsed_s,
        unfinished=unfinished,
    )
