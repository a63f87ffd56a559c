"""The times of schedules: cron expressions where clocks change, intervals, jitter, and what says no times at all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from romancy.v1.schedule_pb2 import CronSpec, IntervalSpec, ScheduleSpec

from romancy_service.core.cron import END_S, Cron
from romancy_service.core.limits import Limits
from romancy_service.core.task import NEVER_MS
from romancy_service.core.times import rfc3339, timestamp
from romancy_service.core.timetable import Timetable, check_spec_times
from romancy_service.errors import InvalidField

BERLIN, NEW_YORK, LORD_HOWE, CAIRO = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo"


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def spec(*crons: str, zone: str = "", every: tuple[int, int] | None = None, **fields: Any) -> ScheduleSpec:
    intervals = [IntervalSpec(interval=Duration(seconds=every[0]), offset=Duration(seconds=every[1]))] if every else []
    return ScheduleSpec(
        crons=[CronSpec(expression=cron, time_zone=zone) for cron in crons], intervals=intervals, **fields
    )


def on(day: str, expression: str, zone: str) -> list[str]:
    """What the zone's clock shows, with its offset, at the times of a day there."""
    start = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone))
    end = start + timedelta(days=1)
    times = Timetable(spec(expression, zone=zone)).times(int(start.timestamp() * 1000), int(end.timestamp() * 1000))
    return [datetime.fromtimestamp(time / 1000, ZoneInfo(zone)).strftime("%H:%M%z") for time in times]


@pytest.mark.parametrize(
    ("day", "expression", "zone", "expected"),
    [
        # What the clocks leave out comes when they go on, once, whatever is left out together.
        ("2026-03-29", "30 2 * * *", BERLIN, ["03:00+0200"]),
        ("2026-03-29", "0,30 2,3 * * *", BERLIN, ["03:00+0200", "03:30+0200"]),
        ("2026-03-08", "30 2 * * *", NEW_YORK, ["03:00-0400"]),
        ("2026-04-24", "30 0 * * *", CAIRO, ["01:00+0300"]),
        # What they repeat comes the first time.
        ("2026-10-25", "30 2 * * *", BERLIN, ["02:30+0200"]),
        ("2026-11-01", "30 1 * * *", NEW_YORK, ["01:30-0400"]),
        ("2026-10-25", "0 3 * * *", BERLIN, ["03:00+0100"]),
        # What goes by the clock comes as the clock shows it.
        ("2026-03-29", "30 * * * *", BERLIN, [f"{h:02}:30+0{1 if h < 2 else 2}00" for h in range(24) if h != 2]),
        ("2026-03-29", "*/30 2 * * *", BERLIN, []),
        ("2026-10-25", "*/30 2 * * *", BERLIN, ["02:00+0200", "02:30+0200", "02:00+0100", "02:30+0100"]),
        ("2026-11-01", "15 */1 * * *", NEW_YORK,
            ["00:15-0400", "01:15-0400", *(f"{h:02}:15-0500" for h in range(1, 24))]),
        ("2026-04-05", "*/15 1 * * *", LORD_HOWE,
            ["01:00+1100", "01:15+1100", "01:30+1100", "01:45+1100", "01:30+1030", "01:45+1030"]),
        ("2026-10-04", "*/15 2 * * *", LORD_HOWE, ["02:30+1100", "02:45+1100"]),
    ],
)  # fmt: skip
def test_times_where_clocks_change(day: str, expression: str, zone: str, expected: list[str]) -> None:
    assert on(day, expression, zone) == expected


ZONES = st.sampled_from(
    [BERLIN, NEW_YORK, LORD_HOWE, CAIRO, "UTC", "Africa/Casablanca", "America/St_Johns", "Asia/Gaza"]
)
MINUTES = st.sets(st.integers(0, 59), min_size=1, max_size=4)
HOURS = st.sets(st.integers(0, 23), min_size=1, max_size=6)
STARTS = st.integers(ms("2024-01-01T00:00Z") // 1000, ms("2028-01-01T00:00Z") // 1000)


@settings(max_examples=40, deadline=None)
@given(zone=ZONES, minutes=MINUTES, hours=HOURS, start=STARTS)
def test_an_expression_that_goes_by_the_clock_matches_each_minute_that_shows_it(
    zone: str, minutes: set[int], hours: set[int], start: int
) -> None:
    start -= start % 60
    found = list(
        Timetable(spec(_cron(minutes, hours, by_clock=True), zone=zone)).times(start * 1000, (start + DAYS) * 1000)
    )
    shown = ((at, datetime.fromtimestamp(at, ZoneInfo(zone))) for at in range(start, start + DAYS, 60))
    assert found == [at * 1000 for at, clock in shown if clock.minute in minutes | {0} and clock.hour in hours]


DAYS = 3 * 86_400


def _cron(minutes: set[int], hours: set[int], *, by_clock: bool) -> str:
    """Those minutes and hours; to go by the clock it begins with a star, which stands for minute 0."""
    listed = ",".join(map(str, sorted(minutes)))
    return f"{'*/60,' if by_clock else ''}{listed} {','.join(map(str, sorted(hours)))} * * *"


@settings(max_examples=40, deadline=None)
@given(zone=ZONES, minutes=MINUTES, hours=HOURS, start=STARTS)
def test_an_expression_with_minute_and_hour_comes_when_the_clock_first_shows_it_or_more(
    zone: str, minutes: set[int], hours: set[int], start: int
) -> None:
    first = datetime.fromtimestamp(start, UTC).replace(hour=0, minute=0, second=0)
    expected = set()
    for day in range(-2, 6):
        date = (first + timedelta(days=day)).date()
        for hour in hours:
            for minute in minutes:
                wall = datetime(date.year, date.month, date.day, hour, minute)  # noqa: DTZ001 - a reading of a clock
                expected.add(_first_shown(wall, zone))
    end = start + DAYS
    found = Timetable(spec(_cron(minutes, hours, by_clock=False), zone=zone)).times(start * 1000, end * 1000)
    assert list(found) == [at * 1000 for at in sorted(expected) if start <= at < end]


def _first_shown(wall: datetime, zone: str) -> int:
    """By going through the minutes: the first one at which the clock shows `wall`, or has passed over it."""
    at = int(wall.replace(tzinfo=UTC).timestamp()) - 15 * 3600
    while datetime.fromtimestamp(at, ZoneInfo(zone)).replace(tzinfo=None) < wall:
        at += 900 if datetime.fromtimestamp(at + 900, ZoneInfo(zone)).replace(tzinfo=None) < wall else 60
    return at


@settings(max_examples=100, deadline=None)
@given(
    zone=ZONES,
    expression=st.sampled_from(
        ["*/7 * * * *", "30 2 * * *", "0 0 1 * *", "*/20 */10 * * * *", "0 0 L * *", "15 1 * * SUN#1"]
    ),
    after=st.integers(0, END_S * 1000 + 10**6),
)
def test_the_next_time_lies_after_and_nothing_lies_between(zone: str, expression: str, after: int) -> None:
    cron = Cron(expression, zone)
    found = cron.after(after)
    assert found > after
    assume(found != NEVER_MS)
    middle = (after + found) // 2
    assert cron.after(middle) == found or middle == found
    assert cron.after(found - 1) == found


def test_several_crons_and_intervals_have_each_time_once() -> None:
    both = spec("0 6 * * *", "0 */6 * * *", zone="UTC", every=(43_200, 3_600))
    times = islice(Timetable(both).times(ms("2026-01-01T00:00Z"), NEVER_MS), 6)
    assert [rfc3339(time)[11:16] for time in times] == ["00:00", "01:00", "06:00", "12:00", "13:00", "18:00"]


@given(every=st.integers(1, 10**6), offset=st.integers(0, 10**6), after=st.integers(0, 2**42))
def test_intervals_count_from_1970(every: int, offset: int, after: int) -> None:
    offset %= every
    found = Timetable(spec(every=(every, offset))).after(after)
    assert after < found <= after + every * 1000
    assert (found // 1000 - offset) % every == 0


def test_times_lie_between_start_and_end() -> None:
    start, end = ms("2026-01-01T10:00Z"), ms("2026-01-01T12:00Z")
    times = Timetable(spec("0 * * * *", start_time=timestamp(start), end_time=timestamp(end)))
    assert list(times.times(0, NEVER_MS)) == [start, start + 3_600_000]
    assert times.after(end - 3_600_000) == NEVER_MS


def test_nothing_comes_after_the_end_of_calendars() -> None:
    times = Timetable(spec("* * * * *", "0 0 1 1 *", zone=BERLIN, every=(1, 0)))
    assert times.after(END_S * 1000 - 1) == NEVER_MS
    assert times.after(NEVER_MS) == NEVER_MS


@given(seed=st.text(max_size=5), jitter=st.integers(1, 200))
def test_jitter_keeps_the_order_and_is_drawn_the_same_each_time(seed: str, jitter: int) -> None:
    times = Timetable(spec(every=(60, 0), jitter=Duration(seconds=jitter)))
    due = [times.due_ms(time, seed) for time in range(600_000, 1_200_000, 60_000)]
    assert due == [times.due_ms(time, seed) for time in range(600_000, 1_200_000, 60_000)]
    assert all(one < other for one, other in pairwise(due))
    assert all(
        0 <= at - time <= min(jitter * 1000, 60_000)
        for at, time in zip(due, range(600_000, 1_200_000, 60_000), strict=True)
    )


def test_jitter_spreads_schedules_of_the_same_times() -> None:
    times = Timetable(spec(every=(3_600, 0), jitter=Duration(seconds=600)))
    assert len({times.due_ms(3_600_000, str(n)) for n in range(100)}) > 90


NOW = ms("2026-06-01T00:00Z")


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (spec(), "crons"),
        (spec("0 0 30 2 *"), "crons[0].expression"),
        (spec("0 6 * * *", "0 0 31 4,6 *"), "crons[1].expression"),
        (spec("0 0 */20 * 1L"), "crons[0].expression"),
        (spec("61 * * * *"), "crons[0].expression"),
        (spec("* * * *"), "crons[0].expression"),
        (spec("@daily"), "crons[0].expression"),
        (spec("* * * * * * *"), "crons[0].expression"),
        (spec("*/0 * * * *"), "crons[0].expression"),
        (spec("5-1 * * * *"), "crons[0].expression"),
        (spec("0 0 * * *", zone="Mars/Olympus"), "crons[0].time_zone"),
        (spec("0 0 * * *", zone="../../etc/passwd"), "crons[0].time_zone"),
        (spec("0 0 * * *", zone="/etc/localtime"), "crons[0].time_zone"),
        (spec("0 0 * * *", zone="Europe"), "crons[0].time_zone"),
        (spec(*["0 0 * * *"] * 17), "crons"),
        (ScheduleSpec(intervals=[IntervalSpec(interval=Duration(seconds=1))] * 17), "intervals"),
        (spec(every=(0, 0)), "intervals[0].interval"),
        (spec(every=(60, 60)), "intervals[0].offset"),
        (ScheduleSpec(intervals=[IntervalSpec(interval=Duration(nanos=500_000_000))]), "intervals[0].interval"),
        (ScheduleSpec(intervals=[IntervalSpec(interval=Duration(seconds=9, nanos=1))]), "intervals[0].interval"),
        (ScheduleSpec(intervals=[IntervalSpec(interval=Duration(seconds=9), offset=Duration(nanos=1))]),
            "intervals[0].offset"),
    ],
)  # fmt: skip
def test_a_spec_that_says_no_times_is_refused(wrong: ScheduleSpec, field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        check_spec_times("spec", wrong, NOW, Limits())
    assert refused.value.field == f"spec.{field}"


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="0123456789*/,-LW#MONJAN ²?\t", max_size=30))
def test_any_text_is_an_expression_or_is_refused(text: str) -> None:
    try:
        check_spec_times("spec", spec(text), NOW, Limits())
    except InvalidField as error:
        refused = error.field
    else:
        refused = "spec.crons[0].expression"
    assert refused == "spec.crons[0].expression"
