"""Clock: what time it is, for all that is stored, compared or fired. One clock for all: the database's, carried between
round trips by a monotonic one. Elsewhere time is only measured (how long ago was a stream heard of), never told.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

DRIFT: Final = 200e-6
"""How far a machine's monotonic clock may run wrong, as a share of the time passed (quartz is within 100 ppm)."""
TOO_UNCERTAIN_MS: Final = 1_000
"""With a wider estimate nothing is fired and nobody is declared lost."""


class Clock(Protocol):
    """What everybody asks for the time. All times are whole milliseconds since the epoch."""

    def now_ms(self) -> int:
        """The best estimate."""
        ...

    def earliest_ms(self) -> int:
        """The database's clock shows at least this: what is due by then may fire."""
        ...

    def latest_ms(self) -> int:
        """The database's clock shows at most this: what is computed from it never fires early."""
        ...

    def certain(self) -> bool:
        """Whether the estimate is good enough to fire timers and to declare sessions lost."""
        ...


class DatabaseClock:
    """The database's clock, estimated from round trips."""

    def __init__(self, read_ms: Callable[[], Awaitable[int]]) -> None:
        self._read_ms = read_ms
        self._offset_ms = 0.0
        self._uncertainty_ms = float("inf")
        self._synced_at = 0.0

    async def sync(self) -> None:
        """Ask the database once. The answer was true at some moment between the question and its arrival."""
        asked = time.monotonic()
        database_ms = await self._read_ms()
        answered = time.monotonic()
        half_trip_ms = (answered - asked) * 500
        if half_trip_ms <= self._uncertainty_now_ms():
            self._offset_ms = database_ms - (asked * 1000 + half_trip_ms)
            # The database answers in whole milliseconds, cut off.
            self._uncertainty_ms = half_trip_ms + 1
            self._synced_at = answered

    def now_ms(self) -> int:
        """The best estimate."""
        return int(time.monotonic() * 1000 + self._offset_ms)

    def earliest_ms(self) -> int:
        """The database's clock shows at least this."""
        return int(time.monotonic() * 1000 + self._offset_ms - self._uncertainty_now_ms())

    def latest_ms(self) -> int:
        """The database's clock shows at most this."""
        return int(time.monotonic() * 1000 + self._offset_ms + self._uncertainty_now_ms()) + 1

    def certain(self) -> bool:
        """Whether the estimate is good enough to act on."""
        return self._uncertainty_now_ms() < TOO_UNCERTAIN_MS

    def _uncertainty_now_ms(self) -> float:
        return self._uncertainty_ms + (time.monotonic() - self._synced_at) * 1000 * DRIFT
