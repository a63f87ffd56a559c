"""Timetable: the times of a schedule's spec, and when each of them is due."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from zlib import crc32

from romancy.v1.schedule_pb2 import IntervalSpec, ScheduleSpec

from romancy_service.core.cron import END_S, Cron
from romancy_service.core.limits import Limits
from romancy_service.core.task import NEVER_MS
from romancy_service.core.times import duration_ms, timestamp_ms
from romancy_service.errors import InvalidField

_SECOND_MS: Final = 1_000


class Timetable:
    """All times of a spec, each once, in order."""

    def __init__(self, spec: ScheduleSpec) -> None:
        """Raises InvalidField for a cron that is none."""
        self._crons = [_cron(number, cron.expression, cron.time_zone) for number, cron in enumerate(spec.crons)]
        self._intervals = [(duration_ms(each.interval), duration_ms(each.offset)) for each in spec.intervals]
        self._start_ms = timestamp_ms(spec.start_time) if spec.HasField("start_time") else 0
        self._end_ms = min(timestamp_ms(spec.end_time) if spec.HasField("end_time") else NEVER_MS, END_S * _SECOND_MS)
        self._jitter_ms = duration_ms(spec.jitter)

    @property
    def jitter_ms(self) -> int:
        """So much later than its time may a start be."""
        return self._jitter_ms

    def after(self, ms: int) -> int:
        """The first time after `ms`, NEVER_MS if there is none."""
        ms = max(ms, self._start_ms - 1)
        if ms >= self._end_ms:
            return NEVER_MS
        times = [_interval_after(ms, *interval) for interval in self._intervals]
        times += [cron.after(ms) for cron in self._crons]
        time_ms = min(times, default=NEVER_MS)
        return time_ms if time_ms < self._end_ms else NEVER_MS

    def times(self, from_ms: int, before_ms: int) -> Iterator[int]:
        """The times from `from_ms` on and before `before_ms`."""
        time_ms = self.after(from_ms - 1)
        while time_ms < before_ms:
            yield time_ms
            time_ms = self.after(time_ms)

    def due_ms(self, time_ms: int, seed: str) -> int:
        """When the start for a time is due: the same each time it is asked, and not beyond the next time."""
        if not self._jitter_ms or time_ms == NEVER_MS:
            return time_ms
        room_ms = min(self._jitter_ms, self.after(time_ms) - time_ms)
        return time_ms + crc32(f"{seed}/{time_ms}".encode()) * room_ms // 2**32


def check_spec_times(field: str, spec: ScheduleSpec, now_ms: int, limits: Limits) -> None:
    """Whether a spec says times at all. Raises InvalidField."""
    if not spec.crons and not spec.intervals:
        raise InvalidField(f"{field}.crons", "is empty, and so is intervals", "give at least one of them")
    for name, most in (("crons", limits.crons), ("intervals", limits.intervals)):
        if (count := len(getattr(spec, name))) > most:
            problem = f"has {count} entries, at most {most} are allowed"
            raise InvalidField(f"{field}.{name}", problem, value=count, limit=most)
    for number, interval in enumerate(spec.intervals):
        _check_interval(f"{field}.intervals[{number}]", interval)
    for number, cron in enumerate(spec.crons):
        try:
            if _cron(number, cron.expression, cron.time_zone).after(now_ms) != NEVER_MS:
                continue
        except InvalidField as error:
            raise error.inside(field) from error
        name = f"{field}.crons[{number}].expression"
        problem, remedy = "never matches: no such day comes in 50 years", "look at its days and months"
        raise InvalidField(name, problem, remedy, value=cron.expression)


def _cron(number: int, expression: str, time_zone: str) -> Cron:
    try:
        return Cron(expression, time_zone)
    except InvalidField as error:
        raise error.inside(f"crons[{number}]") from error


def _check_interval(field: str, spec: IntervalSpec) -> None:
    interval_ms, offset_ms = duration_ms(spec.interval), duration_ms(spec.offset)
    for name, ms in (("interval", interval_ms), ("offset", offset_ms)):
        if ms % _SECOND_MS or getattr(spec, name).nanos:
            raise InvalidField(f"{field}.{name}", f"is {ms / _SECOND_MS:g} s", "give whole seconds", value=ms)
    if interval_ms < _SECOND_MS:
        raise InvalidField(f"{field}.interval", "is nothing", "give 1 s or more", value=interval_ms, limit=_SECOND_MS)
    if not offset_ms < interval_ms:
        problem = f"is {offset_ms // _SECOND_MS} s, which is not less than the interval"
        raise InvalidField(f"{field}.offset", problem, value=offset_ms, limit=interval_ms)


def _interval_after(ms: int, interval_ms: int, offset_ms: int) -> int:
    return ((ms - offset_ms) // interval_ms + 1) * interval_ms + offset_ms
