"""Workflow code that does not come to an end by itself is ended."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from romancy import _interrupt
from romancy._interrupt import Interrupt
from romancy._machine import Machine
from romancy.errors import WorkflowTaskError


def _spin() -> None:
    while True:
        pass


def _catch_once() -> None:
    try:
        _spin()
    except BaseException:
        _spin()


@pytest.mark.parametrize("code", [_spin, _catch_once])
def test_code_that_runs_for_too_long_is_interrupted_also_when_it_catches_that(
    code: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_interrupt, "LONGEST_S", 0.01)
    monkeypatch.setattr(_interrupt, "_AGAIN_S", 0.01)
    interrupt, machine, errors = Interrupt(), Machine(), list[BaseException]()

    def run() -> None:
        try:
            with interrupt.watching(machine):
                code()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        interrupt.check()
        thread.join(0.01)
    assert [type(error) for error in errors] == [WorkflowTaskError]
    assert "without waiting for anything, and was interrupted" in str(errors[0])
    assert machine.halted


def test_code_that_ended_is_not_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_interrupt, "LONGEST_S", 0.0)
    interrupt, machine = Interrupt(), Machine()
    with interrupt.watching(machine):
        pass
    interrupt.check()
    assert machine.failure is None
