"""The length of a history: when the code is told, once, that it is time to recur, and on replay at the same place."""

from __future__ import annotations

import pytest

from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.payload_pb2 import Payload
from romancy.v1.worker_service_pb2 import Then

from romancy_service.core.limits import Limits
from romancy_service.core.replay import is_input
from romancy_service.core.times import timestamp
from romancy_service.core.triggers import CompleteActivity
from tests.core.life import Life, schedule
from tests.core.talk import signal


def telling(history: list[HistoryEvent]) -> list[int]:
    return [event.event_id for event in history if event.suggests_recurring]


def test_the_first_input_after_so_many_events_tells_it_and_no_other() -> None:
    life = Life.begin()
    life.limits = Limits(history_recur_events=5)
    for _ in range(10):
        life.do(signal())
    assert telling(life.history) == [6]


def test_so_many_bytes_tell_it_too() -> None:
    life = Life.begin()
    life.limits = Limits(history_recur_bytes=5_000)
    life.code(schedule("a:1"), schedule("a:2"))
    life.completes("a:1", "x" * 5_000)
    assert telling(life.history) == []
    life.completes("a:2")
    assert telling(life.history) == [life.run.last_event_id]


def test_commands_and_notes_do_not_tell_it_for_the_code_reads_inputs_only() -> None:
    life = Life.begin()
    life.limits = Limits(history_recur_events=2)
    life.code(*(schedule(f"a:{n}") for n in range(1, 6)))
    life.fails("a:1")
    assert telling(life.history) == []
    life.completes("a:2")
    (told,) = telling(life.history)
    assert is_input(life.history[told - 1])


def test_a_limit_that_is_raised_later_does_not_tell_it_again() -> None:
    life = Life.begin()
    life.limits = Limits(history_recur_events=2)
    life.do(signal())
    life.do(signal())
    life.limits = Limits(history_recur_events=4)
    for _ in range(4):
        life.do(signal())
    assert telling(life.history) == [3]


@pytest.mark.parametrize(("most", "alone"), [(100, False), (2, True)])
def test_commands_of_code_that_could_not_know_it_are_not_taken_along(most: int, alone: bool) -> None:
    """The worker let the code see the result before it was recorded, so without what that would tell."""
    life = Life.begin()
    life.code(schedule("a:1"))
    life.limits = Limits(history_recur_events=most)
    then = Then(after_event_id=life.run.last_event_id, time=timestamp(life.now_ms), commands=[schedule("b:1")])
    done = CompleteActivity(life.fence(life.task("a:1")), life.now_ms, result=Payload(json="1"), then=then)
    assert life.do(done).alone is alone
    assert bool(telling(life.history)) is alone
    assert ("a/b:1" in life.run.tasks) is not alone
