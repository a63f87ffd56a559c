"""The bench's command: `python -m tests.bench`, `--help` for its parts."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
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
from tests.bench.measurement import Measurement, show
from tests.bench.record import Record
from tests.bench.sleepers import sleepers
from tests.bench.starts import starts
from tests.bench.twins import twins
from tests.bench.walk import walk

DATABASES: Final = ("postgres", "sqlite")
IDLE_S: Final = 40.0
"""Long enough for what happens once in half a minute."""
IN_FLIGHT: Final = (16, 256, 1024)


Part = Callable[[Databases, argparse.Namespace], Iterator[Measurement]]


def _loads(made: Databases, options: argparse.Namespace) -> Iterator[Measurement]:
    for in_flight in options.in_flight:
        profiles = options.profile and options.profile / f"{made.name}-{in_flight}"
        yield from load(made, in_flight, options.seconds, profiles)
        yield from count_rows(made, in_flight)


PARTS: Final[dict[str, Part]] = {
    "lone": lambda made, options: load(made, 1, options.seconds),
    "load": _loads,
    "walk": lambda made, options: walk(made),
    "fan": lambda made, options: fan(made),
    "idle": lambda made, options: idle(made, IDLE_S),
    "wide": lambda made, options: wide(made, options.seconds),
    "backlog": lambda made, options: backlog(made, options.scale),
    "grown": lambda made, options: grown(made, options.seconds, options.scale),
    "forgetting": lambda made, options: forgetting(made, options.seconds, options.scale),
    "starts": lambda made, options: starts(made),
    "twins": lambda made, options: twins(made, options.seconds),
    "sleepers": lambda made, options: sleepers(made, options.scale),
    "due": lambda made, options: due(made, options.scale),
    "wake": lambda made, options: wake(made),
    "listeners": lambda made, options: listeners(made, options.scale),
}
"""In the order in which they are measured."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write bench.json after each part. Exits with 1 if a part failed."""
    options = _parser().parse_args(arguments)
    # Otherwise whoever stops the bench would leave a Postgres running.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    begin = time.monotonic()
    record = Record(options.output)
    for name in options.databases:
        with databases(name) as made:
            for part, measure in PARTS.items():
                if part in options.only:
                    record.take(f"{part} on {name}", measure(made, options))
    show(record.measurements)
    print(f"{len(record.measurements)} figures in {options.output}, after {time.monotonic() - begin:.0f} s")
    for part in record.failed:
        print(f"{part} failed; what it said is above", file=sys.stderr)
    if options.keep:
        keep(record.measurements)
    if record.failed:
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="these parts")
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
