"""The checker can fail: a story that is true passes, and each way in which it could be spoilt is found."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from romancy.v1.command_pb2 import ScheduleActivity
from romancy.v1.failure_pb2 import FAILURE_SOURCE_LOST, Failure
from romancy.v1.history_pb2 import ActivityScheduled, HistoryEvent

from tests.core.life import Life, complete, fail, schedule, timer
from tests.faults.checker import RULES, Story, check, has_ended
from tests.faults.ledger import Entry

RUN = "run-1"
Mutant = Callable[[list[HistoryEvent], list[Entry]], object]


def _entries(*lines: str) -> list[Entry]:
    """`pay:1/2` is attempt 2 of `pay:1`, which began and had its effect; with `!` it only began."""
    entries = []
    for line in lines:
        name, _, attempt = line.rstrip("!").rpartition("/")
        for kind in ("begin",) if line.endswith("!") else ("begin", "effect"):
            entries.append(Entry(kind, RUN, name, int(attempt), "1"))  # type: ignore[arg-type]
    return entries


def rolled_back() -> tuple[list[HistoryEvent], list[Entry]]:
    """Reserve, pay (lost once, after its effect), two at once; then a failure and the rollback."""
    life = Life.begin()
    life.code(schedule("reserve:1", "cancel"))
    life.completes("reserve:1")
    life.code(schedule("pay:1", "refund"), schedule("ship:1", "unship"), timer("1", 5))
    life.loses("pay:1")
    life.completes("ship:1")
    life.now_ms += 5_000
    life.due("t/1")
    life.completes("pay:1")
    life.code(fail())
    for name in ("undo/pay:1", "undo/ship:1", "undo/reserve:1"):
        life.completes(name)
    lines = ("reserve:1/1", "pay:1/1", "ship:1/1", "pay:1/2", "undo/pay:1/1", "undo/ship:1/1", "undo/reserve:1/1")
    return life.history, _entries(*lines)


def completed() -> tuple[list[HistoryEvent], list[Entry]]:
    """Reserve and pay, and nothing is undone."""
    life = Life.begin()
    life.code(schedule("reserve:1", "cancel"), schedule("pay:1"))
    life.fails("reserve:1")
    life.completes("pay:1")
    life.completes("reserve:1")
    life.code(complete())
    return life.history, _entries("reserve:1/1!", "pay:1/1", "reserve:1/2")


def _check(events: list[HistoryEvent], entries: list[Entry], *, losses: bool = True) -> list[str]:
    return check({RUN: events}, entries, losses=losses)


def test_true_stories_pass() -> None:
    assert _check(*rolled_back()) == []
    assert _check(*completed(), losses=False) == []


def _at(events: list[HistoryEvent], kind: str, number: int = 0) -> int:
    return [at for at, event in enumerate(events) if event.WhichOneof("attributes") == kind][number]


def _renumber(events: list[HistoryEvent]) -> None:
    for number, event in enumerate(events, 1):
        event.event_id = number


def _swap_undos(events: list[HistoryEvent], entries: list[Entry]) -> None:
    one, two = _at(events, "compensation_scheduled", 0), _at(events, "compensation_scheduled", 1)
    events[one].compensation_scheduled.compensation_id, events[two].compensation_scheduled.compensation_id = (
        events[two].compensation_scheduled.compensation_id,
        events[one].compensation_scheduled.compensation_id,
    )


def _drop(events: list[HistoryEvent], kind: str, number: int = 0) -> None:
    del events[_at(events, kind, number)]
    _renumber(events)


def _drop_last_undo(events: list[HistoryEvent], entries: list[Entry]) -> None:
    _drop(events, "compensation_scheduled", 2)
    _drop(events, "compensation_completed", 2)
    entries[:] = [entry for entry in entries if entry.activity_id != "undo/reserve:1"]


def _schedule_late(events: list[HistoryEvent], entries: list[Entry]) -> None:
    command = ScheduleActivity(activity_id="late:1", activity_type="late")
    late = HistoryEvent(activity_scheduled=ActivityScheduled(command=command), time=events[-1].time)
    events.insert(len(events) - 1, late)
    _renumber(events)


def _close_twice(events: list[HistoryEvent], entries: list[Entry]) -> None:
    twice = HistoryEvent()
    twice.CopyFrom(events[_at(events, "activity_completed")])
    twice.time.CopyFrom(events[-2].time)
    events.insert(len(events) - 1, twice)
    _renumber(events)


def _fire_early(events: list[HistoryEvent], entries: list[Entry]) -> None:
    events[_at(events, "timer_started")].timer_started.fire_time.CopyFrom(Timestamp(seconds=2_000_000_000))


def _go_back(events: list[HistoryEvent], entries: list[Entry]) -> None:
    events[3].time.CopyFrom(Timestamp(seconds=1))


def _remember_other_attempt(events: list[HistoryEvent], entries: list[Entry]) -> None:
    events[_at(events, "activity_completed", 2)].activity_completed.attempt = 3


def _schedule_twice(events: list[HistoryEvent], entries: list[Entry]) -> None:
    events[_at(events, "activity_scheduled", 2)].activity_scheduled.command.activity_id = "pay:1"


def _only(entries: list[Entry], keep: Callable[[Entry], bool]) -> None:
    entries[:] = [entry for entry in entries if keep(entry)]


SPOILT: dict[str, Mutant] = {
    "a gap in the numbers": lambda events, entries: events.pop(4),
    "a number twice": lambda events, entries: events.insert(4, events[4]),
    "time goes back": _go_back,
    "the beginning is gone": lambda events, entries: (events.pop(0), _renumber(events)),
    "two beginnings": lambda events, entries: (events.insert(1, events[0]), _renumber(events)),
    "it goes on after its end": lambda events, entries: (events.insert(5, events[-1]), _renumber(events)),
    "it never ends": lambda events, entries: events.pop(),
    "closed twice": _close_twice,
    "closed, but never asked for": lambda events, entries: _drop(events, "activity_scheduled"),
    "asked for twice under one name": _schedule_twice,
    "a timer fires early": _fire_early,
    "a timer fires that was never started": lambda events, entries: _drop(events, "timer_started"),
    "an effect that nobody asked for": lambda events, entries: entries.extend(_entries("steal:1/1")),
    "an effect of an unknown run": lambda events, entries: entries.append(Entry("effect", "run-2", "pay:1", 1, "1")),
    "an attempt runs twice": lambda events, entries: entries.append(entries[0]),
    "an effect twice in one attempt": lambda events, entries: entries.append(entries[1]),
    "a second attempt that nothing explains": lambda events, entries: entries.extend(_entries("ship:1/2!")),
    "done, but without effect": lambda events, entries: _only(entries, lambda e: e.activity_id != "ship:1"),
    "acknowledged work runs again": lambda events, entries: entries.extend(_entries("reserve:1/2")),
    "another attempt is recorded as done": _remember_other_attempt,
    "undone in the order in which it was done": _swap_undos,
    "one is not undone": _drop_last_undo,
    "undone without a rollback": lambda events, entries: _drop(events, "rollback_started"),
    "something new during the rollback": _schedule_late,
    "an effect stays behind": lambda events, entries: _only(
        entries, lambda e: not (e.activity_id == "undo/pay:1" and e.kind == "effect")
    ),
    "undone twice": lambda events, entries: entries.extend(_entries("undo/pay:1/2")),
    "undone twice in one attempt": lambda events, entries: entries.extend(_entries("undo/pay:1/1")),
    "undone before it was done": lambda events, entries: entries.insert(0, entries.pop(-1)),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_story_that_cannot_be_true_is_found(spoil: Mutant) -> None:
    events, entries = rolled_back()
    spoil(events, entries)
    assert _check(events, entries)


@pytest.mark.parametrize("rule", [*RULES, has_ended], ids=lambda rule: rule.__name__)
def test_every_rule_finds_something_by_itself(rule: Callable[[Story], Iterator[str]]) -> None:
    found = []
    for name, spoil in SPOILT.items():
        events, entries = rolled_back()
        spoil(events, entries)
        if list(rule(Story(RUN, events, [entry for entry in entries if entry.run_id == RUN]))):
            found.append(name)
    assert found


def test_a_loss_without_a_dead_worker_is_found() -> None:
    assert _check(*rolled_back(), losses=False)


def test_a_timeout_without_a_dead_worker_is_found() -> None:
    events, entries = completed()
    failed = events[_at(events, "activity_attempt_failed")].activity_attempt_failed
    failed.failure.CopyFrom(Failure(type="HeartbeatTimeout"))
    assert _check(events, entries, losses=False)
    failed.failure.CopyFrom(Failure(type="ActivityLost", source=FAILURE_SOURCE_LOST))
    assert _check(events, entries, losses=False)
