"""Contest: entrants that take turns under the same load, and what came of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from tests.bench.database import PostgresCluster
from tests.bench.peers.comparison import Key, Row, rows
from tests.bench.peers.entrant import CannotRun, Entrant
from tests.bench.peers.sample import Sample, sample
from tests.bench.process import ProcessFailed

TUNE_TIMES: Final = 2
"""So often is each variant tried, in turns, and the better one counts: a machine may be slow just then."""
TUNE_IN_FLIGHT: Final = 256
"""What variants are tried with: the load that figures are read for first, and enough to keep several processes busy."""


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

    def tune(self) -> None:
        """Try the variants of each in turns, and leave it with the one that was fastest."""
        for entrant in list(self._entrants):
            rates: dict[str, float] = {}
            why = ""
            for variant in [*entrant.variants] * TUNE_TIMES:
                entrant.variant = variant
                try:
                    rate = sample(entrant, TUNE_IN_FLIGHT, self._seconds).workflows_per_s
                    rates[variant] = max(rate, rates.get(variant, 0.0))
                except (CannotRun, ProcessFailed, TimeoutError) as error:
                    why = f"with {variant}: {error}"
                    _tell(f"{entrant.name} does not run {why}")
            if rates:
                entrant.variant = max(rates, key=lambda variant: rates[variant])
                tried = ", ".join(f"{variant} {rate:.1f}/s" for variant, rate in rates.items())
                _tell(f"{entrant.name} has {entrant.variant} ({tried})")
            elif entrant.variants:
                self.failed = True
                self._leave_out(entrant, why)

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
            _tell(
                f"{in_flight:>5}  {entrant.name:<12} {entrant.database:<9} {taken.workflows_per_s:>7.1f}/s"
                f"  p50 {taken.p50_ms:>7.1f} ms  p99 {taken.p99_ms:>7.1f} ms"
                f"  {taken.cpu_s_per_1000_workflows:>6.2f} CPU s/1000  others {taken.cores_used_by_others:.2f} cores"
            )

    def rows(self) -> list[Row]:
        """What is known by now."""
        variants = {(entrant.name, entrant.database): entrant.variant for entrant in self._entrants if entrant.variant}
        return rows(self._samples, self._left_out, variants)

    def _leave_out(self, entrant: Entrant, why: str) -> None:
        _tell(f"{entrant.name} on {entrant.database} is left out: {why}")
        self._entrants.remove(entrant)
        self._left_out[entrant.name, entrant.database] = why


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
