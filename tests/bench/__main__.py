"""The bench's command: `python -m tests.bench`, `--help` for its parts."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tests.bench.backlog import backlog
from tests.bench.chronicle import keep
from tests.bench.crowd import idle, wide
from tests.bench.database import Databases, databases
from tests.bench.due import due
from tests.bench.fan import fan
from tests.bench.forgetting import forgetting
from tests.bench.grown import grown
from tests.bench.listeners import listeners, wake
from tests.bench.load import count_rows, load
from tests.bench.measurement import Measurement, show, write
from tests.bench.sleepers import sleepers
from tests.bench.starts import starts
from tests.bench.twins import twins
from tests.bench.walk import walk

PARTS: Final = (
    "load",
    "lone",
    "walk",
    "fan",
    "sleepers",
    "due",
    "wake",
    "listeners",
    "idle",
    "wide",
    "backlog",
    "grown",
    "starts",
    "twins",
    "forgetting",
)
DATABASES: Final = ("postgres", "sqlite")
IDLE_S: Final = 40.0
"""Long enough for what happens once in half a minute."""
IN_FLIGHT: Final = (16, 256, 1024)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write bench.json."""
    options = _parser().parse_args(arguments)
    # Otherwise whoever stops the bench would leave a Postgres running.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    begin = time.monotonic()
    measurements = []
    for name in options.databases:
        with databases(name) as made:
            for measurement in _measure(made, options):
                measurements.append(measurement)
                _progress(measurement)
    show(measurements)
    write(measurements, options.output)
    if options.keep:
        keep(measurements)
    print(f"{len(measurements)} figures in {options.output}, after {time.monotonic() - begin:.0f} s")


def _measure(made: Databases, options: argparse.Namespace) -> Iterator[Measurement]:
    if "lone" in options.only:
        yield from load(made, 1, options.seconds)
    if "load" in options.only:
        for in_flight in options.in_flight:
            profiles = options.profile and options.profile / f"{made.name}-{in_flight}"
            yield from load(made, in_flight, options.seconds, profiles)
            yield from count_rows(made, in_flight)
    if "walk" in options.only:
        yield from walk(made)
    if "fan" in options.only:
        yield from fan(made)
    if "idle" in options.only:
        yield from idle(made, IDLE_S)
    if "wide" in options.only:
        yield from wide(made, options.seconds)
    if "backlog" in options.only:
        yield from backlog(made, options.scale)
    if "grown" in options.only:
        yield from grown(made, options.seconds, options.scale)
    if "forgetting" in options.only:
        yield from forgetting(made, options.seconds, options.scale)
    if "starts" in options.only:
        yield from starts(made)
    if "twins" in options.only:
        yield from twins(made, options.seconds)
    if "sleepers" in options.only:
        yield from sleepers(made, options.scale)
    if "due" in options.only:
        yield from due(made, options.scale)
    if "wake" in options.only:
        yield from wake(made)
    if "listeners" in options.only:
        yield from listeners(made, options.scale)


def _progress(measurement: Measurement) -> None:
    load_of = f" {measurement.in_flight:>5}" if measurement.in_flight else " " * 6
    print(f"{measurement.database:<9}{load_of}  {measurement.name:<36} {measurement}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts")
    parser.add_argument("--databases", nargs="+", choices=DATABASES, default=DATABASES, help="on these")
    parser.add_argument(
        "--in-flight", nargs="+", type=int, default=IN_FLIGHT, metavar="N", help="loads of the part load"
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="so long is each load measured")
    parser.add_argument("--scale", type=float, default=1.0, help="so much of what is seeded; figures need all, 1")
    parser.add_argument(
        "--output", type=Path, default=Path("bench.json"), metavar="FILE", help="where figures are kept"
    )
    parser.add_argument("--keep", action="store_true", help="add a line to the table of docs/performance.md")
    parser.add_argument(
        "--profile", type=Path, metavar="FOLDER", help="sample the processes under load into this folder"
    )
    return parser


if __name__ == "__main__":
    main()
