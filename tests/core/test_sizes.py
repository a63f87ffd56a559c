"""How much memory a run is taken to need: it grows with what is open, and goes back when that ends."""

from __future__ import annotations

from romancy.v1.payload_pb2 import Payload

from romancy_service.core.run import Run
from tests.core.life import Life, complete, schedule

LONG = "x" * 100_000
LARGE = Payload(json=LONG)


def kept(run: Run) -> int:
    return run.bytes_in_memory


def test_open_activities_count_with_their_arguments_until_they_end() -> None:
    life = Life.begin()
    life.code(schedule("a:1", arguments=[LARGE]))
    assert 100_000 < kept(life.run) < 110_000
    life.fails("a:1")
    assert 100_000 < kept(life.run) < 110_000
    life.completes("a:1")
    life.code()
    assert kept(life.run) < 10_000


def test_inputs_count_until_the_code_has_seen_them() -> None:
    life = Life.begin()
    life.code(schedule("a:1"), schedule("b:1"))
    life.completes("a:1")
    life.completes("b:1", LONG)
    assert kept(life.run) > 100_000
    life.code()
    assert kept(life.run) < 10_000


def test_what_a_rollback_would_undo_counts_with_its_values() -> None:
    life = Life.begin()
    life.code(schedule("a:1", "undo_a", arguments=[LARGE]))
    life.completes("a:1", LONG)
    life.code()
    assert kept(life.run) > 200_000


def test_activities_that_leave_nothing_to_undo_leave_nothing_in_memory() -> None:
    life = Life.begin()
    life.code(schedule("a:1", "undo_a", arguments=[LARGE]))
    life.fails("a:1", non_retryable=True)
    life.code()
    assert kept(life.run) < 10_000


def test_a_run_that_ended_keeps_only_how() -> None:
    life = Life.begin()
    life.code(schedule("a:1", arguments=[LARGE]), schedule("b:1"))
    life.completes("b:1", LONG)
    life.code(complete())
    assert kept(life.run) < 10_000
    assert life.run.held_bytes == 0
