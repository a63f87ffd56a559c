"""Chronicle: a line of docs/performance.md for each run of the bench, so that a step back is seen."""

from __future__ import annotations

import datetime
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

from tests.bench.measurement import Measurement
from tests.bench.process import ROOT

PAGE: Final = ROOT / "docs" / "performance.md"
HEADING: Final = "## Over time"
COLUMNS: Final = (
    ("Postgres /s", "workflows_per_s", "postgres", 256),
    ("SQLite /s", "workflows_per_s", "sqlite", 256),
    ("lone p50 ms", "lone_p50_ms", "postgres", 1),
    ("CPU s / 1,000", "cpu_s_per_1000_workflows", "postgres", 256),
    ("rows", "rows_per_workflow", "postgres", 256),
    ("round trips", "round_trips_per_workflow", "postgres", 256),
    ("step ms", "sequential_step_ms", "postgres", 1),
    ("replay s", "replay_of_10000_events_s", "postgres", 1),
    ("fan s", "fan_of_5000_s", "postgres", 1),
    ("idle statements /s", "idle_statements_per_s", "postgres", 100),
    ("idle cores", "idle_service_cores", "postgres", 100),
    ("others' cores", "cores_used_by_others", "postgres", 256),
)
"""Heading, and the figure's name, database and load."""


class Incomplete(Exception):
    """A row would have gaps; the text says which."""


def line(measurements: Sequence[Measurement], date: str, commit: str, machine: str) -> str:
    """A row of the table. Raises Incomplete when something was not measured: rows are there to be compared."""
    values = {(m.name, m.database, m.in_flight): m for m in measurements}
    lacking = [heading for heading, *figure in COLUMNS if tuple(figure) not in values]
    if lacking:
        raise Incomplete(f"not measured: {', '.join(lacking)}")
    cells = (values[name, database, in_flight].text for _, name, database, in_flight in COLUMNS)
    return f"| {' | '.join([date, commit, machine, *cells])} |"


def header() -> str:
    """The two lines above the rows."""
    names = ["date", "commit", "machine", *(name for name, *_ in COLUMNS)]
    return f"| {' | '.join(names)} |\n|---|---|---|{'---:|' * len(COLUMNS)}"


def keep(measurements: Sequence[Measurement], page: Path = PAGE) -> None:
    """Add a row to the table of the page, if all that it needs was measured. Raises SystemExit."""
    try:
        row = line(measurements, datetime.datetime.now(datetime.UTC).date().isoformat(), _commit(), _machine())
    except Incomplete as error:
        raise SystemExit(f"{page} gets no row: {error}") from error
    before, heading, after = page.read_text().partition(f"{HEADING}\n")
    if not heading:
        raise SystemExit(f"{page} has no heading {HEADING!r}, below which rows are kept")
    lines = after.split("\n")
    # Below the last row of the first table under the heading.
    first = lines.index(header().split("\n")[0])
    end = next(place for place in range(first, len(lines)) if not lines[place].startswith("|"))
    page.write_text(before + heading + "\n".join([*lines[:end], row, *lines[end:]]))


def _commit() -> str:
    """The commit, with a plus sign if files differ from it."""
    named = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    changed = subprocess.run(
        ["git", "status", "--porcelain", "-uno"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return named.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _machine() -> str:
    """Processors, memory and Python."""
    memory_gb = psutil.virtual_memory().total / 1e9
    return f"{psutil.cpu_count()} x {platform.machine()}, {memory_gb:.0f} GB, Python {platform.python_version()}"
