"""Each run of the bench leaves a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.chronicle import COLUMNS, HEADING, PAGE, header, keep, line
from tests.bench.measurement import Measurement

ALL = [Measurement(name, database, in_flight, 1234.5, "") for _, name, database, in_flight in COLUMNS]


def test_a_line_has_the_key_figures() -> None:
    measured = [Measurement("other", "sqlite", 1, 1, ""), *ALL]
    cells = [cell.strip() for cell in line(measured, "2026-01-02", "abc1234", "2 x arm").split("|")[1:-1]]
    assert cells == ["2026-01-02", "abc1234", "2 x arm", *(["1,234"] * len(COLUMNS))]


def test_nothing_is_added_when_a_part_that_the_row_needs_is_not_there(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{HEADING}\n\n{header()}\n")
    measured = [each for each in ALL if each.name not in ("fan_of_5000_s", "rows_per_workflow")]
    with pytest.raises(SystemExit, match=r"gets no row: not measured: rows, fan s$"):
        keep(measured, page)
    assert page.read_text() == f"{HEADING}\n\n{header()}\n"


def test_lines_are_added_below_those_that_are_there(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{HEADING}\n\nWhat it is.\n\n{header()}\n| first |\n\n## After\n\n| other |\n")
    keep([*ALL, Measurement("fan_of_5000_s", "postgres", 1, 1.5, "s")], page)
    lines = page.read_text().split("\n")
    cells = [cell.strip() for cell in lines[lines.index("| first |") + 1].split("|")]
    assert cells[4 + [name for name, *_ in COLUMNS].index("fan s")] == "1.5"
    assert lines[lines.index("| first |") + 2] == ""
    assert lines[-3:] == ["", "| other |", ""]


def test_a_page_without_the_table_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n")
    with pytest.raises(SystemExit, match="no heading '## Over time'"):
        keep(ALL, page)
    assert page.read_text() == "# Page\n"


def test_the_documented_table_has_the_columns_that_are_kept() -> None:
    assert f"{HEADING}\n" in PAGE.read_text()
    assert header() in PAGE.read_text()
