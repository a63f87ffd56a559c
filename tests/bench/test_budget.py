"""The budget fails what became dearer, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from romancy_service.core.decide import decide
from romancy_service.engine import drafting
from tests.bench import budget
from tests.bench.budget import ALLOWED, RECORD, risen


def test_what_rose_too_far_is_named_with_both_figures_and_the_remedy() -> None:
    before = {"rows_per_workflow_sqlite": 20.0, "commits_per_workflow": 5.0}
    (sentence,) = risen({"rows_per_workflow_sqlite": 21.0, "commits_per_workflow": 5.0}, before)
    assert "rows_per_workflow_sqlite is 21" in sentence
    assert "the 20 that is recorded" in sentence
    assert "make budget RECORD=--record" in sentence


@pytest.mark.parametrize("name", ALLOWED)
def test_what_differs_by_itself_passes_and_so_does_anything_less(name: str) -> None:
    assert risen({name: 20 * ALLOWED[name]}, {name: 20.0}) == []
    assert risen({name: 1.0}, {name: 20.0}) == []


def test_one_commit_or_row_more_for_each_order_is_too_much() -> None:
    recorded = json.loads(RECORD.read_text())
    for name in recorded:
        if name.startswith(("commits", "rows")):
            assert risen(recorded | {name: recorded[name] + 1}, recorded), name


def test_each_figure_that_ci_compares_is_recorded() -> None:
    assert set(json.loads(RECORD.read_text())) == set(ALLOWED)


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
