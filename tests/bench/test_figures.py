"""What the bench makes of what it measured."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tests.bench.forgetting import deleted
from tests.bench.load import cpu, quantile
from tests.bench.measurement import Measurement, show, write
from tests.bench.process import tree_cpu_s
from tests.bench.profile import summary
from tests.bench.system import Usage


def test_a_quantile_is_a_value_that_was_measured() -> None:
    values = [float(value) for value in range(1, 101)]
    assert quantile(values, 0.50) == 51.0
    assert quantile(values, 0.99) == 100.0
    assert quantile([7.0], 0.99) == 7.0


def test_figures_are_kept_as_rows_of_json(tmp_path: Path) -> None:
    write([Measurement("workflows_per_s", "sqlite", 16, 321.5, "1/s")], tmp_path / "bench.json")
    (row,) = json.loads((tmp_path / "bench.json").read_text())
    assert row == {"name": "workflows_per_s", "database": "sqlite", "in_flight": 16, "value": 321.5, "unit": "1/s"}


def test_the_table_has_a_column_for_each_database(capsys: pytest.CaptureFixture[str]) -> None:
    show([Measurement("workflows_per_s", name, 16, value, "1/s") for name, value in (("postgres", 300), ("sqlite", 4))])
    printed = capsys.readouterr().out
    assert "postgres" in printed
    assert "300" in printed


def test_a_profile_counts_a_function_once_for_each_stack_that_it_is_in(tmp_path: Path) -> None:
    folded = tmp_path / "service.folded"
    folded.write_text("main (a/b.py:1);walk (a/b.py:2);walk (a/b.py:3) 3\nmain (a/b.py:9) 1\n")
    lines = list(summary(folded))
    assert "   0.0%  75.0%  walk (a/b.py)" not in lines
    assert any(line.split() == ["75.0%", "75.0%", "walk", "(a/b.py)"] for line in lines)
    assert any(line.split() == ["25.0%", "100.0%", "main", "(a/b.py)"] for line in lines)


def test_the_cpu_time_of_a_workflow_is_that_of_all_processes() -> None:
    used = Usage(service=1.0, worker=2.0, client=3.0, postgres=4.0, machine=50.0)
    assert dict(cpu(used, 2.0, "postgres")) == {
        "cpu_s_per_1000_workflows": 5.0,
        "cpu_s_per_1000_workflows_service": 0.5,
        "cpu_s_per_1000_workflows_worker": 1.0,
        "cpu_s_per_1000_workflows_client": 1.5,
        "cpu_s_per_1000_workflows_postgres": 2.0,
    }


def test_retention_is_measured_only_while_there_is_something_to_delete() -> None:
    assert deleted(1_000, 400) == 600
    for there in (0, 1_000):
        with pytest.raises(AssertionError, match=f"of {there} that were there when it began: seed more"):
            deleted(there, 0)


class _Parent:
    """A process whose only child, which used 5 s, ends before it can be looked at."""

    def __init__(self, pid: int) -> None:
        self.ended_s = 0.0

    def cpu_times(self) -> SimpleNamespace:
        return SimpleNamespace(user=1.0, system=0.0, children_user=self.ended_s, children_system=0.0)

    def children(self, *, recursive: bool) -> list[psutil.Process]:
        self.ended_s = 5.0
        return []


def test_the_time_of_a_child_that_ends_while_it_is_read_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "Process", _Parent)
    assert tree_cpu_s(1) == 6.0
