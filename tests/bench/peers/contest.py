"""Contest: entrants that take turns under the same load, and what came of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tests.bench.database import PostgresCluster
from tests.bench.peers.comparison import Key, Row, rows
from tests.bench.peers.entrant import CannotRun, Entrant
from tests.bench.peers.sample import Sample, sample
from tests.bench.process import ProcessFailed


class Contest:
    """One after the other, so that each of them has what the machine gives at the time."""

    def __init__(self, entrants: Sequence[Entrant], seconds: float) -> None:
        self._entrants = list(entrants)
        self._seconds = seconds
        self._samples: dict[Key, list[Sample]] = {}
        self._left_out: dict[tuple[str, str], str] = {}
        self.failed = False
        """Whether one of them broke while it was measured."""

    def prepare(self, cluster: PostgresCluster) -> None:
        """Prepare all. One that cannot run here is left out, with the reason."""
        for entrant in list(self._entrants):
            try:
                entrant.prepare(cluster)
            except (CannotRun, ProcessFailed, TimeoutError) as error:
                self._leave_out(entrant, str(error))

    def take_turns(self, in_flight: int) -> None:
        """One round. One that breaks is left out of those that follow, with the reason."""
        for entrant in list(self._entrants):
            try:
                taken = sample(entrant, in_flight, self._seconds)
            except (CannotRun, ProcessFailed, TimeoutError) as error:
                self.failed = True
                self._leave_out(entrant, f"with {in_flight} in flight: {error}")
                continue
            self._samples.setdefault((entrant.name, entrant.database, in_flight), []).append(taken)
            print(
                f"{in_flight:>5}  {entrant.name:<12} {entrant.database:<9} {taken.workflows_per_s:>7.1f}/s"
                f"  p50 {taken.p50_ms:>7.1f} ms  p99 {taken.p99_ms:>7.1f} ms"
                f"  {taken.cpu_s_per_1000_workflows:>6.2f} CPU s/1000  others {taken.cores_used_by_others:.2f} cores",
                file=sys.stderr,
                flush=True,
            )

    def rows(self) -> list[Row]:
        """What is known by now."""
        return rows(self._samples, self._left_out)

    def _leave_out(self, entrant: Entrant, why: str) -> None:
        print(f"{entrant.name} on {entrant.database} is left out: {why}", file=sys.stderr, flush=True)
        self._entrants.remove(entrant)
        self._left_out[entrant.name, entrant.database] = why
