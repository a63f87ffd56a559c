"""What a run of the bench leaves, however it ends."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench import __main__ as bench
from tests.bench.measurement import Measurement


def _figure(name: str) -> Measurement:
    return Measurement(name, "sqlite", 0, 1.0, "")


def _good(*ignored: Any) -> Iterator[Measurement]:
    yield _figure("good")


def _bad(*ignored: Any) -> Iterator[Measurement]:
    yield _figure("before it broke")
    raise AssertionError("an order did not end")


def _stopped(*ignored: Any) -> Iterator[Measurement]:
    yield _figure("before it was stopped")
    raise SystemExit(143)


@contextlib.contextmanager
def _no_databases(name: str) -> Iterator[None]:
    yield None


def _run(monkeypatch: pytest.MonkeyPatch, file: Path, parts: dict[str, Any], *options: str) -> tuple[object, list[str]]:
    """The exit code, and the names of the figures that are in the file."""
    monkeypatch.setattr(bench, "PARTS", parts)
    monkeypatch.setattr(bench, "databases", _no_databases)
    monkeypatch.setattr("signal.signal", lambda *ignored: None)
    with pytest.raises(SystemExit) as ending:
        bench.main(["--databases", "sqlite", "--output", str(file), *options])
    return ending.value.code, [row["name"] for row in json.loads(file.read_text())]


def test_a_part_that_fails_is_named_and_those_after_it_are_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {"first": _good, "second": _bad, "third": _good}
    code, names = _run(monkeypatch, tmp_path / "bench.json", parts)
    assert (code, names) == (1, ["good", "before it broke", "good"])
    said = capsys.readouterr().err
    assert "second on sqlite failed" in said
    assert "an order did not end" in said


def test_a_run_that_is_stopped_leaves_what_it_had_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parts = {"first": _good, "second": _stopped, "third": _good}
    code, names = _run(monkeypatch, tmp_path / "bench.json", parts)
    assert (code, names) == (143, ["good", "before it was stopped"])


def test_each_part_is_in_the_file_before_the_next_begins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file, there = tmp_path / "bench.json", list[str]()

    def look(*ignored: Any) -> Iterator[Measurement]:
        there.append(file.read_text())
        yield from _stopped()

    _run(monkeypatch, file, {"first": _good, "second": look})
    assert '"good"' in there[0]


def test_a_run_that_is_not_complete_keeps_no_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, names = _run(monkeypatch, tmp_path / "bench.json", {"first": _good}, "--keep")
    assert "gets no row: not measured: Postgres /s" in str(code)
    assert names == ["good"]
