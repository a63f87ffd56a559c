"""Checker: whether what is recorded and what happened outside can both be true. Works on histories and the ledger alone.

Every rule returns what breaks it, in sentences; `check` applies them all. test_checker.py shows that each can fail.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from romancy.v1.failure_pb2 import FAILURE_SOURCE_LOST
from romancy.v1.history_pb2 import HistoryEvent

from tests.faults.ledger import Entry

_CLOSES: Final = ("activity_completed", "activity_failed", "activity_cancelled")
_ENDS: Final = (
    "workflow_completed",
    "workflow_continued",
    "workflow_failed",
    "workflow_cancelled",
    "workflow_terminated",
    "workflow_timed_out",
)


@dataclass(frozen=True)
class Story:
    """One run: its history, and its lines in the ledger."""

    run_id: str
    events: Sequence[HistoryEvent]
    entries: Sequence[Entry]

    def of_kind(self, *kinds: str) -> list[HistoryEvent]:
        """Its events of these kinds."""
        return [event for event in self.events if event.WhichOneof("attributes") in kinds]

    @property
    def begun(self) -> dict[str, HistoryEvent]:
        """By id: the event that asked for an activity, or sent out a compensation."""
        asked = {e.activity_scheduled.command.activity_id: e for e in self.of_kind("activity_scheduled")}
        return asked | {e.compensation_scheduled.compensation_id: e for e in self.of_kind("compensation_scheduled")}

    @property
    def closed(self) -> dict[str, HistoryEvent]:
        """By id: the event that closed an activity."""
        return {_attributes(e).activity_id: e for e in self.of_kind(*_CLOSES)}

    @property
    def done(self) -> dict[str, int]:
        """By id: the attempt that completed an activity or compensation."""
        activities = {
            e.activity_completed.activity_id: e.activity_completed.attempt for e in self.of_kind("activity_completed")
        }
        return activities | {
            e.compensation_completed.compensation_id: e.compensation_completed.attempt
            for e in self.of_kind("compensation_completed")
        }


def check(
    histories: Mapping[str, Sequence[HistoryEvent]],
    ledger: Sequence[Entry],
    *,
    losses: bool = True,
    open_runs: bool = False,
) -> list[str]:
    """All that is wrong. `losses`: workers were killed, so attempts may be lost; `open_runs`: some may not have ended."""
    by_run: dict[str, list[Entry]] = defaultdict(list)
    for entry in ledger:
        by_run[entry.run_id].append(entry)
    wrong = [f"{run_id}: has effects, but no history" for run_id in by_run.keys() - histories.keys()]
    rules = [*RULES]
    if not losses:
        rules.append(nothing_is_lost)
    if not open_runs:
        rules.append(has_ended)
    for run_id, events in histories.items():
        story = Story(run_id, events, by_run[run_id])
        wrong += [f"{run_id}: {problem}" for rule in rules for problem in rule(story)]
    return wrong


# The history by itself ----------------------------------------------------------------------------------------------


def is_numbered_without_gaps(story: Story) -> Iterator[str]:
    """1..n."""
    numbers = [event.event_id for event in story.events]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"is numbered {numbers}"


def never_goes_back_in_time(story: Story) -> Iterator[str]:
    """By the recorded times."""
    times = [event.time.ToNanoseconds() for event in story.events]
    if times != sorted(times):
        yield "its time goes back"


def begins_once_and_ends_once(story: Story) -> Iterator[str]:
    """Nothing before the beginning, nothing after the end."""
    kinds = [event.WhichOneof("attributes") for event in story.events]
    if kinds[:1] != ["workflow_started"] or kinds.count("workflow_started") != 1:
        yield "does not begin once, with its beginning"
    ends = [position for position, kind in enumerate(kinds) if kind in _ENDS]
    if len(ends) > 1 or (ends and ends[0] != len(kinds) - 1):
        yield "goes on after its end"


def closes_what_was_asked_for_and_that_once(story: Story) -> Iterator[str]:
    """Every close has one earlier schedule."""
    begun = story.begun
    counts = Counter(_attributes(event).activity_id for event in story.of_kind(*_CLOSES))
    counts.update(e.compensation_completed.compensation_id for e in story.of_kind("compensation_completed"))
    for name, count in counts.items():
        if name not in begun:
            yield f"{name} was closed, but never asked for"
        if count > 1:
            yield f"{name} was closed {count} times"
    for name, event in story.closed.items():
        if name in begun and event.event_id < begun[name].event_id:
            yield f"{name} was closed before it was asked for"
    if len({*begun}) != len(story.of_kind("activity_scheduled", "compensation_scheduled")):
        yield "something was asked for twice under one name"


def fires_timers_once_and_not_early(story: Story) -> Iterator[str]:
    """Each at or after its time."""
    due = {e.timer_started.timer_id: e.timer_started.fire_time for e in story.of_kind("timer_started")}
    for timer_id, count in Counter(e.timer_fired.timer_id for e in story.of_kind("timer_fired")).items():
        if count > 1 or timer_id not in due:
            yield f"timer {timer_id} fired {count} times"
    for event in story.of_kind("timer_fired"):
        timer_id = event.timer_fired.timer_id
        if timer_id in due and event.time.ToNanoseconds() < due[timer_id].ToNanoseconds():
            yield f"timer {timer_id} fired early"


def has_ended(story: Story) -> Iterator[str]:
    """Nothing is stuck."""
    if not story.of_kind(*_ENDS):
        yield "has not ended"


# The history against the ledger -------------------------------------------------------------------------------------


def does_nothing_that_was_not_asked_for(story: Story) -> Iterator[str]:
    """No effect without a schedule."""
    for name in {entry.activity_id for entry in story.entries} - story.begun.keys():
        yield f"{name} ran, but was never asked for"


def runs_no_attempt_twice(story: Story) -> Iterator[str]:
    """An attempt begins once, on one worker, and has its effect at most once."""
    counts = Counter((entry.kind, entry.activity_id, entry.attempt) for entry in story.entries)
    for (kind, name, attempt), count in counts.items():
        if count > 1:
            yield f"attempt {attempt} of {name}: {count} times {kind}"


def explains_every_further_attempt(story: Story) -> Iterator[str]:
    """Attempt n + 1 ran only because the history says that attempt n failed, timed out or was lost."""
    ended = {
        (e.activity_attempt_failed.activity_id, e.activity_attempt_failed.attempt)
        for e in story.of_kind("activity_attempt_failed")
    }
    ended |= {
        (e.compensation_attempt_failed.compensation_id, e.compensation_attempt_failed.attempt)
        for e in story.of_kind("compensation_attempt_failed")
    }
    for entry in story.entries:
        if entry.attempt > 1 and (entry.activity_id, entry.attempt - 1) not in ended:
            yield f"attempt {entry.attempt} of {entry.activity_id} ran, but nothing says why"


def records_as_done_only_what_was_done(story: Story) -> Iterator[str]:
    """The attempt that completed had its effect; acknowledged work never runs again."""
    effects = {(entry.activity_id, entry.attempt) for entry in story.entries if entry.kind == "effect"}
    for name, attempt in story.done.items():
        if (name, attempt) not in effects:
            yield f"attempt {attempt} of {name} is recorded as done, but had no effect"
        if any(entry.activity_id == name and entry.attempt > attempt for entry in story.entries):
            yield f"{name} ran again after attempt {attempt} completed"


def nothing_is_lost(story: Story) -> Iterator[str]:
    """No worker died, so no attempt may be taken for lost, or for silent."""
    for event in story.of_kind("activity_attempt_failed", "compensation_attempt_failed", "activity_failed"):
        failure = _attributes(event).failure
        if failure.source == FAILURE_SOURCE_LOST or failure.type.endswith("Timeout"):
            yield f"event {event.event_id}: {failure.type}, but its worker was alive"


# The rollback -------------------------------------------------------------------------------------------------------


def undoes_in_reverse_what_was_or_may_have_been_done(story: Story) -> Iterator[str]:
    """The compensations, in order, are those of what completed or has an unknown outcome, from the last close to the first."""
    rollback = story.of_kind("rollback_started")
    undone = [e.compensation_scheduled.compensation_id for e in story.of_kind("compensation_scheduled")]
    if not rollback:
        if undone:
            yield f"{undone} were undone without a rollback"
        return
    expected = [f"undo/{name}" for name in reversed(_to_undo(story))]
    if undone != expected[: len(undone)] or (story.of_kind(*_ENDS) and undone != expected):
        yield f"undoes {undone}, should be {expected}"
    if late := [e for e in story.of_kind("activity_scheduled") if e.event_id > rollback[0].event_id]:
        yield f"event {late[0].event_id} asks for something new during the rollback"


def _to_undo(story: Story) -> list[str]:
    has_undo = {name for name, e in story.begun.items() if e.activity_scheduled.command.HasField("compensation")}
    closed = sorted(story.closed.items(), key=lambda item: item[1].event_id)
    return [
        name
        for name, event in closed
        if name in has_undo and (event.HasField("activity_completed") or _attributes(event).outcome_unknown)
    ]


def leaves_nothing_behind(story: Story) -> Iterator[str]:
    """After a rollback each effect that has a compensation is undone, once at least, and after it."""
    if not (story.of_kind("rollback_started") and story.of_kind(*_ENDS)):
        return
    effects = [(entry.activity_id, position) for position, entry in enumerate(story.entries) if entry.kind == "effect"]
    for name, position in effects:
        scheduled = story.begun.get(name)
        if scheduled is None or not scheduled.activity_scheduled.command.HasField("compensation"):
            continue
        if not any(other == f"undo/{name}" and later > position for other, later in effects):
            yield f"the effect of {name} is still there"


RULES: Final[Sequence[Callable[[Story], Iterator[str]]]] = (
    is_numbered_without_gaps,
    never_goes_back_in_time,
    begins_once_and_ends_once,
    closes_what_was_asked_for_and_that_once,
    fires_timers_once_and_not_early,
    does_nothing_that_was_not_asked_for,
    runs_no_attempt_twice,
    explains_every_further_attempt,
    records_as_done_only_what_was_done,
    undoes_in_reverse_what_was_or_may_have_been_done,
    leaves_nothing_behind,
)


def _attributes(event: HistoryEvent):  # type: ignore[no-untyped-def]  # one of many messages
    return getattr(event, str(event.WhichOneof("attributes")))
