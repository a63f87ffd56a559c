"""The command that compares: `python -m tests.bench.peers`, `--help` for its options."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.bench.database import databases
from tests.bench.peers import comparison
from tests.bench.peers.contest import Contest
from tests.bench.peers.dbos import Dbos
from tests.bench.peers.entrant import Entrant
from tests.bench.peers.floors import BareFrames, BareRows
from tests.bench.peers.ours import OursOnPostgres, OursOnSqlite
from tests.bench.peers.restate import Restate
from tests.bench.peers.temporal import Temporal

IN_FLIGHT: Final = (16, 256, 1024)
LONE: Final = 1


def entrants() -> dict[str, Entrant]:
    """All there are, by the name that the command knows them by, in the order in which they take their turns."""
    ours = OursOnPostgres()
    return {
        "postgres": ours,
        "sqlite": OursOnSqlite(),
        "dbos": Dbos(),
        "restate": Restate(),
        "temporal": Temporal(),
        "rows": BareRows(ours),
        "frames": BareFrames(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all in turns, print a table, and write bench-peers.json. Exits with 1 if a system failed on the way."""
    known = entrants()
    options = _parser(list(known)).parse_args(arguments)
    # Otherwise whoever stops the bench would leave a Postgres running.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    begin = time.monotonic()
    contest = Contest([known[name] for name in known if name in options.systems], options.seconds)
    with databases("postgres") as made:
        contest.prepare(made.cluster)
        if options.tune:
            contest.tune()
        for in_flight in (LONE, *options.in_flight):
            for _ in range(options.rounds):
                contest.take_turns(in_flight)
                comparison.write(contest.rows(), options.output)
    made_rows = contest.rows()
    comparison.show(made_rows)
    print(f"{len(made_rows)} rows in {options.output}, after {time.monotonic() - begin:.0f} s")
    if contest.failed:
        sys.exit(1)


def _parser(names: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers", description=__doc__)
    parser.add_argument(
        "--systems",
        nargs="+",
        choices=names,
        default=names,
        help="these; postgres and sqlite are ours, rows and frames are the floors, and rows needs postgres",
    )
    parser.add_argument(
        "--in-flight", nargs="+", type=int, default=IN_FLIGHT, metavar="N", help="loads, beside a lone order"
    )
    parser.add_argument(
        "--tune",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="first try the ways to set a peer up, and take its fastest",
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="so long, at least, is each load measured")
    parser.add_argument("--rounds", type=int, default=3, help="so often is each load measured; medians count")
    parser.add_argument(
        "--output", type=Path, default=Path("bench-peers.json"), metavar="FILE", help="where rows are kept"
    )
    return parser


if __name__ == "__main__":
    main()
