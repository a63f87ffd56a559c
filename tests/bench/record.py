"""Record: all that a run of the bench measured so far, in its file too, and which parts failed."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from tests.bench.measurement import Measurement, write


class Record:
    """Grows by a part at a time. What is measured by then survives whatever ends the run."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.measurements: list[Measurement] = []
        self.failed: list[str] = []

    def take(self, part: str, measured: Iterable[Measurement]) -> None:
        """Measure a part, and write the file. One that fails is told, and leaves what it had measured."""
        try:
            for measurement in measured:
                self.measurements.append(measurement)
                _tell(measurement)
        except Exception:
            # Whatever it is: the other parts have nothing to do with it.
            traceback.print_exc()
            self.failed.append(part)
        finally:
            write(self.measurements, self._file)


def _tell(measurement: Measurement) -> None:
    load_of = f" {measurement.in_flight:>5}" if measurement.in_flight else " " * 6
    print(f"{measurement.database:<9}{load_of}  {measurement.name:<36} {measurement}", file=sys.stderr, flush=True)
