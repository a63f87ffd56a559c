"""Measurement: one figure of the bench, and how figures are shown and kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row of bench.json."""

    name: str
    database: str
    in_flight: int
    """Workflows that were open at a time."""
    value: float
    unit: str

    @property
    def text(self) -> str:
        """The value, as tables show it."""
        return _text(self.value)

    def __str__(self) -> str:
        return f"{self.text} {self.unit}"


def write(measurements: Sequence[Measurement], path: Path) -> None:
    """Keep the figures as JSON, one row a line so that two runs can be compared by diff."""
    rows = ",\n".join(f"  {json.dumps(asdict(measurement))}" for measurement in measurements)
    path.write_text(f"[\n{rows}\n]\n")


def show(measurements: Sequence[Measurement]) -> None:
    """Print a table: a line for each figure and load, a column for each database."""
    databases = sorted({m.database for m in measurements})
    table = Table("figure", "in flight", *databases, "unit")
    for column in table.columns[1 : 2 + len(databases)]:
        column.justify = "right"
    values = {(m.name, m.in_flight, m.database): m for m in measurements}
    for name, in_flight, unit in dict.fromkeys((m.name, m.in_flight, m.unit) for m in measurements):
        cells = (values.get((name, in_flight, database)) for database in databases)
        table.add_row(name, str(in_flight or ""), *(_text(cell.value) if cell else "" for cell in cells), unit)
    Console(width=100).print(table)


def _text(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
