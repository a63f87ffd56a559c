"""Cron: a cron expression in a time zone, as moments. Calendar arithmetic: nothing here asks what time it is.

The library knows the expressions and is only ever asked about clock readings. What these are as moments is said here:

- An expression whose minute and hour are given has each of its readings once a day. One that the clocks leave out comes
  when they go on; one that they repeat comes the first time.
- Any other one matches what the clock shows, moment by moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from romancy_service.core.task import NEVER_MS
from romancy_service.errors import InvalidField

END_S: Final = int(datetime(9000, 1, 1, tzinfo=UTC).timestamp())
"""No schedule goes beyond this: calendars of computers end with the year 9999, and a search looks 50 years ahead."""
_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - a reading of a clock, in no zone
_NEAR_S: Final = 2 * 86_400
"""Clock readings of one moment differ by less than this, and so do two changes of one clock."""


class Cron:
    """The moments of a cron expression."""

    def __init__(self, expression: str, time_zone: str) -> None:
        """Raises InvalidField for `expression` or `time_zone`; what never matches is found by asking for a moment."""
        if time_zone and time_zone not in _zones():
            raise InvalidField("time_zone", "is no IANA name", 'give one as "Europe/Berlin"', value=time_zone)
        self._expression = expression
        self._zone = ZoneInfo(time_zone or "UTC")
        try:
            CronSim(expression, _EPOCH)
        except CronSimError as error:
            problem, remedy = str(error).lower(), 'give five fields, as "30 6 * * MON-FRI"'
            raise InvalidField("expression", f"is no cron expression: {problem}", remedy, value=expression) from error
        minute, hour = expression.split()[-5:-3]
        self._has_clock_time = not minute.startswith("*") and not hour.startswith("*")

    def after(self, ms: int) -> int:
        """The first moment after `ms`; NEVER_MS if none comes within 50 years."""
        at = ms // 1000
        found = self._after_by_day(at) if self._has_clock_time else self._after_by_clock(at)
        return NEVER_MS if found is None or found >= END_S else found * 1000

    def _after_by_day(self, at: int) -> int | None:
        return next((s for s in map(self._moment, self._readings(at + self._offset(at))) if s > at), None)

    def _after_by_clock(self, at: int) -> int | None:
        offset = self._offset(at)
        while at < END_S:
            reading = next(self._readings(at + offset), None)
            if reading is None:
                return None
            # No clock of the zone shows anything that matches before this.
            if reading - offset - at > _NEAR_S:
                at = reading - offset - _NEAR_S
                offset = self._offset(at)
            found = reading - offset
            if self._offset(found) == offset:
                return found
            # The clocks change before: look at what they show from then on.
            at = self._change(at, found) - 1
            offset = self._offset(at + 1)
        return None

    def _readings(self, reading: int) -> Iterator[int]:
        """The clock readings that match after this one, in seconds, as if they were of UTC."""
        if reading >= END_S:
            return
        for match in CronSim(self._expression, _EPOCH + timedelta(seconds=reading)):
            yield int((match - _EPOCH).total_seconds())

    def _moment(self, reading: int) -> int:
        """When the clock first shows this or more."""
        local = (_EPOCH + timedelta(seconds=reading)).replace(tzinfo=self._zone)
        first, second = int(local.timestamp()), int(local.replace(fold=1).timestamp())
        # Where the reading is left out, the later rule gives the earlier moment; the change lies between.
        return first if second >= first else self._change(second, first)

    def _offset(self, at: int) -> int:
        """What the zone's clock shows more than UTC."""
        offset = datetime.fromtimestamp(at, self._zone).utcoffset()
        assert offset is not None
        return int(offset.total_seconds())

    def _change(self, before: int, after: int) -> int:
        """The first second with another offset than `before`; there is one up to `after`."""
        offset = self._offset(before)
        while after - before > 1:
            middle = (before + after) // 2
            if self._offset(middle) == offset:
                before = middle
            else:
                after = middle
        return after


@lru_cache(maxsize=1)
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())
