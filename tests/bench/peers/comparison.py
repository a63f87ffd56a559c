"""Comparison: the rows of bench-peers.json, from the samples of all rounds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.peers.ours import NAME, OursOnPostgres
from tests.bench.peers.sample import Sample

Key = tuple[str, str, int]
"""System, database, in flight."""
_OURS = (NAME, OursOnPostgres.database)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of bench-peers.json: medians of the rounds. None: not measured."""

    system: str
    database: str
    in_flight: int | None
    workflows_per_s: float | None = None
    lone_p50_ms: float | None = None
    """Of the system with one order at a time; the same in all its rows."""
    lone_p99_ms: float | None = None
    cpu_s_per_1000_workflows: float | None = None
    ratio_to_ours: float | None = None
    """Its workflows_per_s divided by that of ours on Postgres with as many in flight."""
    lone_p50_ratio_to_ours: float | None = None
    """Its lone_p50_ms divided by that of ours on Postgres."""
    cores_used: float | None = None
    cores_used_by_others: float | None = None
    unfinished: int = 0
    """Orders of all rounds that had not ended a minute after the last one was placed."""
    rounds: int = 0
    variant: str | None = None
    """How it was set up, where there was a choice."""
    left_out: str | None = None
    """Why there are no figures, or fewer than there should be."""


def rows(
    samples: Mapping[Key, Sequence[Sample]],
    left_out: Mapping[tuple[str, str], str],
    variants: Mapping[tuple[str, str], str],
) -> list[Row]:
    """A row for each system and load, in the order in which they were first measured; then those that were left out."""
    made = [replace(_row(key, samples), variant=variants.get(key[:2])) for key in samples]
    return made + [Row(system, database, None, left_out=why) for (system, database), why in left_out.items()]


def _row(key: Key, samples: Mapping[Key, Sequence[Sample]]) -> Row:
    system, database, in_flight = key

    def median(of: Callable[[Sample], float], system: str, database: str, in_flight: int) -> float | None:
        taken = samples.get((system, database, in_flight))
        return statistics.median(map(of, taken)) if taken else None

    def own(of: Callable[[Sample], float], in_flight: int = in_flight) -> float | None:
        return median(of, system, database, in_flight)

    def ratio(of: Callable[[Sample], float], in_flight: int) -> float | None:
        mine, ours = own(of, in_flight), median(of, *_OURS, in_flight)
        return mine / ours if mine is not None and ours else None

    return Row(
        system=system,
        database=database,
        in_flight=in_flight,
        workflows_per_s=own(lambda s: s.workflows_per_s),
        lone_p50_ms=own(lambda s: s.p50_ms, 1),
        lone_p99_ms=own(lambda s: s.p99_ms, 1),
        cpu_s_per_1000_workflows=own(lambda s: s.cpu_s_per_1000_workflows),
        ratio_to_ours=ratio(lambda s: s.workflows_per_s, in_flight),
        lone_p50_ratio_to_ours=ratio(lambda s: s.p50_ms, 1),
        cores_used=own(lambda s: s.cores_used),
        cores_used_by_others=own(lambda s: s.cores_used_by_others),
        unfinished=sum(sample.unfinished for sample in samples[key]),
        rounds=len(samples[key]),
    )


def write(made: Sequence[Row], path: Path) -> None:
    """Keep the rows as JSON, one a line."""
    lines = ",\n".join(f"  {json.dumps({name: _short(value) for name, value in asdict(row).items()})}" for row in made)
    path.write_text(f"[\n{lines}\n]\n")


def _short(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def show(made: Sequence[Row]) -> None:
    """Print a table, a line for each row with figures, and below it what was left out."""
    headings = (
        "in flight",
        "system",
        "database",
        "workflows/s",
        "of ours",
        "lone p50",
        "p99 ms",
        "CPU s/1000",
        "cores",
        "others",
    )
    table = Table(*headings)
    for column in table.columns[3:]:
        column.justify = "right"
    for row in sorted((row for row in made if row.in_flight is not None), key=lambda row: row.in_flight or 0):
        figures = (
            *(row.workflows_per_s, row.ratio_to_ours, row.lone_p50_ms, row.lone_p99_ms),
            *(row.cpu_s_per_1000_workflows, row.cores_used, row.cores_used_by_others),
        )
        table.add_row(str(row.in_flight), row.system, row.database, *map(_text, figures))
    Console(width=118).print(table)
    for line in _remarks(made):
        print(line)


def _remarks(made: Sequence[Row]) -> Iterator[str]:
    for row in made:
        if row.left_out:
            yield f"{row.system} on {row.database} was left out: {row.left_out}"
        if row.unfinished:
            yield f"{row.system} on {row.database} left {row.unfinished} orders open with {row.in_flight} in flight"


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
