"""The budget fails what became a quarter dearer, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from romancy_service.core.decide import decide
from romancy_service.engine import drafting
from tests.bench import budget
from tests.bench.budget import ALLOWED, RECORD, risen


def test_what_rose_by_more_than_a_quarter_is_named_with_both_figures_and_the_remedy() -> None:
    (sentence,) = risen({"rows_per_workflow": 25.1, "commits": 5.0}, {"rows_per_workflow": 20.0, "commits": 5.0})
    assert "rows_per_workflow is 25.1" in sentence
    assert "the 20 that is recorded" in sentence
    assert "make budget RECORD=--record" in sentence


def test_a_quarter_more_and_anything_less_passes() -> None:
    assert risen({"rows": 20 * ALLOWED}, {"rows": 20.0}) == []
    assert risen({"rows": 1.0}, {"rows": 20.0}) == []


def test_each_figure_that_ci_compares_is_recorded() -> None:
    assert set(json.loads(RECORD.read_text())) == {
        "calls_per_workflow",
        "cpu_units_per_workflow",
        "commits_per_workflow",
        "rows_per_workflow_sqlite",
        "rows_per_workflow_postgres",
        "round_trips_per_lone_workflow_postgres",
    }


async def test_calls_are_counted_in_the_threads_of_service_and_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "COUNTED_ROUNDS", 1)
    before = await budget.calls(str(tmp_path / "before.db"))

    def dearer(*arguments: Any) -> Any:
        for number in range(200):
            abs(number)
        return decide(*arguments)

    monkeypatch.setattr(drafting, "decide", dearer)
    more = await budget.calls(str(tmp_path / "after.db")) - before
    # An order takes five decisions.
    assert 900 < more < 1_300
