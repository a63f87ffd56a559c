"""What schedules start: each time once through crashes, overlaps, pauses, limits, and what people ask for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st

from romancy.v1.schedule_pb2 import (
    OVERLAP_POLICY_ALLOW_ALL,
    OVERLAP_POLICY_BUFFER_ONE,
    OVERLAP_POLICY_CANCEL_OTHER,
    OVERLAP_POLICY_SKIP,
    OVERLAP_POLICY_TERMINATE_OTHER,
    OVERLAP_POLICY_UNSPECIFIED,
    CronSpec,
    IntervalSpec,
    OverlapPolicy,
    Schedule,
    ScheduleSpec,
    ScheduleState,
)
from romancy.v1.workflow_pb2 import (
    WORKFLOW_STATUS_CANCELLED,
    WORKFLOW_STATUS_COMPENSATING,
    WORKFLOW_STATUS_COMPLETED,
    WORKFLOW_STATUS_FAILED,
    WORKFLOW_STATUS_RUNNING,
    WORKFLOW_STATUS_TERMINATED,
    WORKFLOW_STATUS_TIMED_OUT,
    WorkflowStatus,
)

from romancy_service.core import schedule as core
from romancy_service.core.limits import Limits
from romancy_service.core.schedule import RunStatus, ScheduleRecord
from romancy_service.core.task import NEVER_MS
from romancy_service.core.times import timestamp, timestamp_ms
from romancy_service.core.timetable import Timetable
from romancy_service.errors import InvalidField, ScheduleBusy, ScheduleChanged

T0 = 1_790_000_040_000
MINUTE = 60_000
LIMITS = Limits()
Policy: TypeAlias = OverlapPolicy.ValueType
ALL, SKIP, BUFFER, CANCEL, TERMINATE = (
    OVERLAP_POLICY_ALLOW_ALL,
    OVERLAP_POLICY_SKIP,
    OVERLAP_POLICY_BUFFER_ONE,
    OVERLAP_POLICY_CANCEL_OTHER,
    OVERLAP_POLICY_TERMINATE_OTHER,
)


def record(
    policy: Policy = OVERLAP_POLICY_UNSPECIFIED, *, every_s: int = 60, now_ms: int = T0, **fields: Any
) -> ScheduleRecord:
    spec = fields.pop("spec", ScheduleSpec(intervals=[IntervalSpec(interval=Duration(seconds=every_s))]))
    schedule = Schedule(spec=spec, overlap_policy=policy, **fields)
    state = ScheduleState(done_time=timestamp(now_ms))
    return ScheduleRecord("default", "report", "uid", schedule, state, 1, now_ms, now_ms, version=1)


@dataclass
class World:
    """The runs outside, and what was done to them: as the service does it, without its I/O."""

    record: ScheduleRecord
    runs: dict[str, WorkflowStatus.ValueType] = field(default_factory=dict)
    """By request id, which is the run's id too."""
    ended: list[str] = field(default_factory=list)

    def carry(self, now_ms: int, *, crash: int = 99) -> None:
        """One look at the schedule, that dies before its write number `crash`, or after the starts that precede it."""
        kept = self.record
        for _ in range(30):
            mine = copied(kept)
            core.see_runs(mine, {run_id: RunStatus(run_id, status) for run_id, status in self.runs.items()})
            core.take_due(mine, now_ms)
            step = core.judge(mine)
            if mine.state != kept.state:
                if (crash := crash - 1) < 0:
                    return
                kept = self.record = mine
                continue
            if not step:
                break
            if step.cancel or step.terminate:
                for run in mine.state.running:
                    self.ended.append(("cancel " if step.cancel else "terminate ") + run.run_id.split("/")[2])
                    if step.terminate:
                        self.runs[run.run_id] = WORKFLOW_STATUS_TERMINATED
            for start in step.starts:
                self.runs.setdefault(start.request_id, WORKFLOW_STATUS_RUNNING)
                core.made(mine, start, core.workflow_id(mine, start), start.request_id, now_ms)
            if (crash := crash - 1) < 0:
                return
            kept = self.record = mine
        core.plan(self.record, now_ms)

    @property
    def started(self) -> list[int]:
        """The times that runs were started for."""
        return sorted(int(request_id.split("/")[2]) for request_id in self.runs)

    def minutes(self) -> list[int]:
        """The same, in minutes from the beginning."""
        return [(time_ms - T0) // MINUTE for time_ms in self.started]

    def close(self, status: WorkflowStatus.ValueType = WORKFLOW_STATUS_COMPLETED) -> None:
        """All runs end."""
        self.runs = {run_id: status if now == WORKFLOW_STATUS_RUNNING else now for run_id, now in self.runs.items()}


def copied(record: ScheduleRecord) -> ScheduleRecord:
    """As it is read anew."""
    schedule, state = Schedule(), ScheduleState()
    schedule.CopyFrom(record.schedule)
    state.CopyFrom(record.state)
    return replace(record, schedule=schedule, state=state, version=record.version + 1)


# Once each ------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 400_000), st.integers(0, 4) | st.just(99)), max_size=30),
    jitter_s=st.sampled_from([0, 7, 90]),
    cron=st.booleans(),
)
def test_no_time_is_left_out_or_doubled_across_crashes(steps: list[tuple[int, int]], jitter_s: int, cron: bool) -> None:
    spec = ScheduleSpec(jitter=Duration(seconds=jitter_s))
    if cron:
        spec.crons.add(expression="*/2,17 * * * *", time_zone="Europe/Berlin")
    else:
        spec.intervals.add(interval=Duration(seconds=45), offset=Duration(seconds=8))
    world = World(record(ALL, spec=spec, catch_up_window=Duration(seconds=86_400)))
    now_ms = T0
    for passed_ms, crash in steps:
        now_ms += passed_ms
        world.carry(now_ms, crash=crash)
        table = Timetable(spec)
        assert all(table.due_ms(time_ms, "uid") <= now_ms for time_ms in world.started), "one was early"
    world.carry(now_ms)
    table = Timetable(spec)
    due = [time_ms for time_ms in table.times(T0 + 1, now_ms + 1) if table.due_ms(time_ms, "uid") <= now_ms]
    assert world.started == due
    state = world.record.state
    assert (state.started_count, state.missed_count, len(state.waiting)) == (len(due), 0, 0)
    assert world.record.due_ms > now_ms


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 4) | st.just(99), st.booleans()), max_size=25))
def test_each_time_is_started_skipped_or_missed_and_counted_so(steps: list[tuple[int, int, bool]]) -> None:
    world = World(record(SKIP))
    now_ms = T0
    for seconds, crash, closes in steps:
        now_ms += seconds * 1000
        if closes:
            world.close()
        world.carry(now_ms, crash=crash)
        assert list(world.runs.values()).count(WORKFLOW_STATUS_RUNNING) <= 1, "they overlap"
    world.carry(now_ms)
    state = world.record.state
    assert state.started_count == len(world.runs)
    assert state.started_count + state.skipped_count + state.missed_count == (now_ms - T0) // MINUTE


# Overlaps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "started", "skipped", "waiting", "ended"),
    [
        (OVERLAP_POLICY_UNSPECIFIED, [1], 3, 0, []),
        (SKIP, [1], 3, 0, []),
        (BUFFER, [1], 2, 1, []),
        (ALL, [1, 2, 3, 4], 0, 0, []),
        (CANCEL, [1], 2, 1, [1, 1, 1]),
        (TERMINATE, [1, 2, 3, 4], 0, 0, [1, 2, 3]),
    ],
)
def test_times_that_come_while_a_run_is_open(
    policy: Policy, started: list[int], skipped: int, waiting: int, ended: list[int]
) -> None:
    world = World(record(policy))
    for minute in range(1, 5):
        world.carry(T0 + minute * MINUTE)
    state = world.record.state
    assert (world.minutes(), state.skipped_count, len(state.waiting)) == (started, skipped, waiting)
    assert sorted({int(text.split()[1]) for text in world.ended}) == sorted({T0 + minute * MINUTE for minute in ended})


@pytest.mark.parametrize(("policy", "buffered"), [(BUFFER, 2), (CANCEL, 4)])
def test_what_waits_is_started_when_the_run_has_closed(policy: Policy, buffered: int) -> None:
    world = World(record(policy))
    for minute in range(1, 5):
        world.carry(T0 + minute * MINUTE)
    assert world.record.look_ms <= T0 + 5 * MINUTE, "it is looked whether the run has closed"
    world.close(WORKFLOW_STATUS_CANCELLED)
    world.carry(T0 + 4 * MINUTE + 1_000)
    assert world.minutes() == [1, buffered]


@pytest.mark.parametrize(
    ("policy", "started", "skipped"),
    [(SKIP, [1], 2), (BUFFER, [1], 1), (ALL, [1, 2, 3], 0), (CANCEL, [3], 2), (TERMINATE, [3], 2)],
)
def test_times_that_are_due_together_after_a_short_outage(policy: Policy, started: list[int], skipped: int) -> None:
    world = World(record(policy, catch_up_window=Duration(seconds=3_600)))
    world.carry(T0 + 3 * MINUTE)
    assert (world.minutes(), world.record.state.skipped_count, world.ended) == (started, skipped, [])


def test_a_run_that_undoes_itself_is_open() -> None:
    world = World(record(SKIP))
    world.carry(T0 + MINUTE)
    world.close(WORKFLOW_STATUS_COMPENSATING)
    world.carry(T0 + 2 * MINUTE)
    assert world.minutes() == [1]


def test_a_run_that_goes_on_as_another_one_is_open() -> None:
    it = record(SKIP)
    world = World(it)
    world.carry(T0 + MINUTE)
    (run,) = world.record.state.running
    core.see_runs(world.record, {run.run_id: RunStatus("next", WORKFLOW_STATUS_RUNNING)})
    assert [run.run_id for run in world.record.state.running] == ["next"]


# Late -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("window_s", "started", "missed"), [(0, [120], 119), (600, list(range(111, 121)), 110)])
def test_what_is_past_by_more_than_the_window_is_missed(window_s: int, started: list[int], missed: int) -> None:
    world = World(record(ALL, catch_up_window=Duration(seconds=window_s)))
    world.carry(T0 + 120 * MINUTE + 100)
    assert world.minutes() == started
    assert world.record.state.missed_count == missed


def test_a_year_of_seconds_that_were_missed_is_passed_over_at_once() -> None:
    world = World(record(ALL, every_s=1))
    world.carry(T0 + 365 * 86_400_000)
    assert len(world.started) == 61
    assert world.record.state.missed_count == core.MISSED


# Pauses ---------------------------------------------------------------------------------------------------------------


def test_times_that_pass_during_a_pause_are_not_made_up_for() -> None:
    world = World(record(ALL))
    world.carry(T0 + MINUTE)
    core.pause(world.record, "maintenance")
    core.plan(world.record, T0 + MINUTE)
    assert (world.record.due_ms, world.record.look_ms, core.next_times(world.record)) == (NEVER_MS, NEVER_MS, [])
    world.carry(T0 + 3 * MINUTE)
    core.resume(world.record, "done", T0 + 3 * MINUTE + 1)
    world.carry(T0 + 4 * MINUTE)
    assert world.minutes() == [1, 4]
    assert (world.record.state.missed_count, world.record.state.note) == (0, "done")


@pytest.mark.parametrize(("pause_s", "started", "missed"), [(20, [1, 2], 0), (120, [1], 1)])
def test_what_waited_before_a_pause_is_made_after_it_if_it_is_not_too_late(
    pause_s: int, started: list[int], missed: int
) -> None:
    world = World(record(BUFFER))
    world.carry(T0 + MINUTE)
    world.carry(T0 + 2 * MINUTE)
    core.pause(world.record, "")
    world.close()
    now_ms = T0 + 2 * MINUTE + pause_s * 1000
    world.carry(now_ms)
    assert world.minutes() == [1]
    core.resume(world.record, "", now_ms)
    world.carry(now_ms)
    assert (world.minutes(), world.record.state.missed_count) == (started, missed)


@pytest.mark.parametrize(
    ("status", "pauses"),
    [
        (WORKFLOW_STATUS_FAILED, True),
        (WORKFLOW_STATUS_TIMED_OUT, True),
        (WORKFLOW_STATUS_COMPLETED, False),
        (WORKFLOW_STATUS_CANCELLED, False),
        (WORKFLOW_STATUS_TERMINATED, False),
    ],
)
@pytest.mark.parametrize("asked", [True, False])
def test_it_pauses_when_a_run_failed_if_that_was_asked_for(
    status: WorkflowStatus.ValueType, pauses: bool, asked: bool
) -> None:
    world = World(record(ALL, pause_on_failure=asked))
    world.carry(T0 + MINUTE)
    assert (world.record.look_ms <= T0 + MINUTE + 1_000) == asked, "it is looked what becomes of the run"
    world.close(status)
    world.carry(T0 + 2 * MINUTE)
    assert world.record.state.paused == (pauses and asked)
    assert world.minutes() == ([1] if pauses and asked else [1, 2])


# Limits ---------------------------------------------------------------------------------------------------------------


def test_a_limited_number_of_starts_is_made_and_what_is_skipped_or_asked_for_does_not_count() -> None:
    world = World(record(SKIP, max_actions=2))
    for minute in range(1, 7):
        if minute in (3, 5):
            world.close()
        assert bool(core.next_times(world.record)) == (minute <= 3)
        world.carry(T0 + minute * MINUTE)
        if minute == 1:
            core.trigger(world.record, ALL, T0 + MINUTE + 5, LIMITS)
    assert world.minutes() == [1, 1, 3]
    assert world.record.due_ms == NEVER_MS
    assert (world.record.state.started_count, world.record.state.requested_count) == (2, 1)


def test_state_does_not_grow_with_what_was_started() -> None:
    world = World(record(ALL, every_s=1, catch_up_window=Duration(seconds=86_400)))
    world.carry(T0 + 500_000)
    state = world.record.state
    assert state.started_count == 500
    assert (len(state.recent), len(state.running), len(state.waiting)) == (core.RECENT, core.FOLLOWED, 0)


# What people ask ------------------------------------------------------------------------------------------------------


def test_starts_that_are_asked_for_are_made_although_it_is_paused_and_a_run_is_open() -> None:
    world = World(record(SKIP))
    world.carry(T0 + MINUTE)
    core.pause(world.record, "")
    names = {core.trigger(world.record, OVERLAP_POLICY_UNSPECIFIED, T0 + MINUTE, LIMITS) for _ in range(3)}
    world.carry(T0 + MINUTE + 10)
    assert len(names) == 3, "each has a workflow id of its own"
    assert names == {run.workflow_id for run in world.record.state.recent[1:]}
    assert len(world.runs) == 4


def test_a_backfill_starts_each_time_of_its_range_also_those_that_were_started_before() -> None:
    world = World(record(SKIP))
    world.carry(T0 + MINUTE)
    assert core.backfill(world.record, T0 - 2 * MINUTE, T0 + 2 * MINUTE, OVERLAP_POLICY_UNSPECIFIED, LIMITS) == 4
    world.carry(T0 + MINUTE)
    assert world.minutes() == [-2, -1, 0, 1, 1]


def test_a_backfill_with_a_policy_of_its_own_obeys_it() -> None:
    world = World(record(ALL))
    core.backfill(world.record, T0 - 5 * MINUTE, T0, BUFFER, LIMITS)
    world.carry(T0)
    assert (world.minutes(), world.record.state.skipped_count, len(world.record.state.waiting)) == ([-5], 3, 1)


def test_more_than_may_wait_is_refused() -> None:
    it = record(every_s=1)
    with pytest.raises(InvalidField, match="end_time"):
        core.backfill(it, T0 - 1_001_000, T0, ALL, LIMITS)
    assert core.backfill(it, T0 - 1_000_000, T0, ALL, LIMITS) == 1_000
    with pytest.raises(ScheduleBusy):
        core.trigger(it, ALL, T0, LIMITS)
    assert len(it.state.waiting) == 1_000


def test_two_requests_for_the_same_time_are_two_starts() -> None:
    it = record(ALL)
    for version in (3, 4):
        it.version = version
        core.backfill(it, T0, T0 + 1, ALL, LIMITS)
    assert len({start.request_id for start in it.state.waiting}) == 2


# Changes --------------------------------------------------------------------------------------------------------------


def test_a_changed_spec_counts_from_the_change_and_what_was_due_before_is_done() -> None:
    world = World(record(ALL))
    new = Schedule(spec=ScheduleSpec(crons=[CronSpec(expression="* * * * *")]), overlap_policy=ALL)
    core.update(world.record, new, 1, T0 + MINUTE + 30_000)
    assert [timestamp_ms(start.scheduled_time) for start in world.record.state.waiting] == [T0 + MINUTE]
    world.carry(T0 + 2 * MINUTE)
    assert world.minutes() == [1, 2]
    assert world.record.revision == 2


def test_a_change_of_what_is_started_loses_no_time_that_jitter_puts_off() -> None:
    spec = ScheduleSpec(intervals=[IntervalSpec(interval=Duration(seconds=60))], jitter=Duration(seconds=60))
    world = World(record(ALL, spec=spec))
    due_ms = Timetable(spec).due_ms(T0 + MINUTE, "uid")
    assert due_ms > T0 + MINUTE, "put off"
    new = Schedule(spec=spec, overlap_policy=ALL, pause_on_failure=True)
    core.update(world.record, new, 0, T0 + MINUTE)
    world.carry(due_ms)
    assert world.minutes() == [1]


def test_a_change_that_rests_on_an_older_revision_is_refused() -> None:
    it = record()
    core.update(it, it.schedule, 1, T0)
    with pytest.raises(ScheduleChanged):
        core.update(it, it.schedule, 1, T0)


def test_a_limit_that_is_raised_makes_up_for_nothing() -> None:
    world = World(record(ALL, max_actions=1))
    world.carry(T0 + MINUTE)
    more = Schedule(spec=world.record.schedule.spec, overlap_policy=ALL, max_actions=2)
    core.update(world.record, more, 0, T0 + 10 * MINUTE)
    world.carry(T0 + 11 * MINUTE)
    assert (world.minutes(), world.record.state.missed_count) == ([1, 11], 0)
