"""The order in which a history is handed to workflow code."""

from __future__ import annotations

from romancy_service.core.replay import ReplayOrder
from tests.core.life import Life, cancel_timer, complete, schedule, timer


def ids(life: Life) -> list[int]:
    """Read one by one and read at once, a history has one order."""
    order = ReplayOrder()
    one_by_one = [event for read in life.history for event in order.take([read])] + order.rest()
    order = ReplayOrder()
    at_once = order.take(life.history) + order.rest()
    assert one_by_one == at_once
    return [event.event_id for event in at_once]


def test_an_input_that_arrived_while_a_task_was_out_comes_after_its_commands() -> None:
    life = Life.begin()
    life.code(schedule("a:1"), schedule("b:1"))
    life.completes("a:1")
    seen = life.run.last_event_id
    life.completes("b:1")
    life.code(schedule("c:1"), seen=seen)
    assert ids(life) == [1, 2, 3, 4, 6, 5]


def test_what_nobody_overtook_stays_in_order_of_number() -> None:
    life = Life.begin()
    life.code(schedule("a:1"))
    life.completes("a:1")
    life.code(complete())
    assert ids(life) == [1, 2, 3, 4]


def test_a_timer_that_fired_while_the_code_forgot_it_comes_after_the_command_to_forget_it() -> None:
    life = Life.begin()
    life.code(timer("1", 5), schedule("a:1"))
    life.completes("a:1")
    seen = life.run.last_event_id
    life.now_ms += 5_000
    life.due("t/1")
    life.code(cancel_timer("1"), seen=seen)
    assert ids(life) == [1, 2, 3, 4, 6, 5]
    assert life.run.workflow_task is not None


def test_notes_are_left_out() -> None:
    life = Life.begin()
    life.code(schedule("a:1"))
    life.fails("a:1")
    life.completes("a:1")
    assert ids(life) == [1, 2, 4]
