"""Walk: whether a step costs as much after 5,000 others as at the beginning."""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Iterator
from typing import Final

from tests.bench.database import Databases
from tests.bench.measurement import Measurement
from tests.bench.system import System, heard, system

STEPS: Final = 5_000
REPLAYS: Final = 5
"""New workers that replay the whole walk, one after the other; the quickest counts."""
RUN_OF_STEPS: Final = 40
EDGE: Final = 500
"""So many steps at the beginning are compared with so many at the end."""


def walk(databases: Databases) -> Iterator[Measurement]:
    """One workflow of 5,000 steps, alone. By the clock, and by CPU time, which does not depend on who else is busy."""
    with system(databases.fresh()) as running:
        client = running.start_client("walk", STEPS)
        warm = heard(client, "begin")["workflow_id"]
        meter = _Meter(running)
        walked = heard(client, "end")
        done_s = walked["done_s"]
        meter.stop()
        heard(client, "done")
        replays = [_replay(running, warm, walked["workflow_id"]) for _ in range(REPLAYS)]
    if len(done_s) != STEPS + 1:
        raise AssertionError(f"the history has {len(done_s) - 1} steps instead of {STEPS}")
    edges = (("first", done_s[0], done_s[EDGE]), ("last", done_s[-1 - EDGE], done_s[-1]))
    elapsed = [1e3 * (end - begin) / EDGE for _, begin, end in edges]
    used = [1e3 * (meter.cpu_s(end) - meter.cpu_s(begin)) / EDGE for _, begin, end in edges]
    for (which, _, _), elapsed_ms, used_ms in zip(edges, elapsed, used, strict=True):
        yield Measurement(f"{which}_500_steps_ms", databases.name, 1, elapsed_ms, "ms a step")
        yield Measurement(f"{which}_500_steps_cpu_ms", databases.name, 1, used_ms, "ms a step")
    yield Measurement("sequential_step_ms", databases.name, 1, _best_ms(done_s), "ms a step")
    yield Measurement("replay_of_10000_events_s", databases.name, 1, min(replays)[0], "s")
    for place, process in enumerate(("service", "worker"), start=1):
        cpu_s = min(replay[place] for replay in replays)
        yield Measurement(f"replay_of_10000_events_cpu_s_{process}", databases.name, 1, cpu_s, "s")
    yield Measurement("step_time_growth", databases.name, 1, elapsed[1] / elapsed[0], "times")
    yield Measurement("step_cpu_growth", databases.name, 1, used[1] / used[0], "times")


def _best_ms(done_s: list[float]) -> float:
    """The median over all runs of 40 steps of how long one of them takes."""
    runs = [done_s[first + RUN_OF_STEPS] - done_s[first] for first in range(0, STEPS - RUN_OF_STEPS, RUN_OF_STEPS)]
    return 1e3 * sorted(runs)[len(runs) // 2] / RUN_OF_STEPS


def _replay(running: System, warm: str, walked: str) -> tuple[float, float, float]:
    """How long a worker that is new takes to replay the walk and answer; CPU time of service and worker."""
    if running.worker is not None:
        running.worker.stop()
    running.start_worker()
    client = running.start_client("ask", warm, warm, walked)
    heard(client, "answer")
    heard(client, "answer")
    before = running.usage()
    answer = heard(client, "answer")
    used = running.usage() - before
    if answer["total"] != STEPS * (STEPS - 1) // 2:
        raise AssertionError(f"a replay of {STEPS} steps came to {answer['total']}")
    return answer["elapsed_s"], used.service, used.worker


class _Meter:
    """Reads ten times a second how much CPU time service, worker and database used."""

    def __init__(self, running: System) -> None:
        self._running = running
        self._times: list[float] = []
        self._used: list[float] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._stopping.wait(0.1):
            usage = self._running.usage()
            self._times.append(time.time())
            self._used.append(usage.service + usage.worker + usage.postgres)

    def stop(self) -> None:
        """Read no more."""
        self._stopping.set()
        self._thread.join()

    def cpu_s(self, at_s: float) -> float:
        """What was used by then, between two readings in proportion."""
        after = min(max(bisect.bisect(self._times, at_s), 1), len(self._times) - 1)
        (begin_s, end_s), (begin, end) = self._times[after - 1 : after + 1], self._used[after - 1 : after + 1]
        return begin + (end - begin) * (at_s - begin_s) / (end_s - begin_s)
