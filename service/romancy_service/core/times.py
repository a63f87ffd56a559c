"""Milliseconds <-> the contract's Timestamp and Duration."""

from __future__ import annotations

from functools import lru_cache

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from romancy_service.core.task import NEVER_MS


@lru_cache(maxsize=256)
def timestamp(ms: int) -> Timestamp:
    """The moment `ms` milliseconds after the epoch. Not to be changed: others may have the same one.

    All that is decided in one batch has one time, and to make a message is dear.
    """
    return Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)


def timestamp_ms(time: Timestamp) -> int:
    """Milliseconds since the epoch; what is finer is cut off."""
    return time.seconds * 1000 + time.nanos // 1_000_000


def rfc3339(ms: int) -> str:
    """The moment as text, as in 2026-01-31T10:00:00Z; with milliseconds if it has any."""
    return timestamp(ms).ToJsonString()


def timestamp_us(time: Timestamp) -> int:
    """Microseconds since the epoch; what is finer is cut off."""
    return time.seconds * 1_000_000 + time.nanos // 1_000


def duration(ms: int) -> Duration:
    """A length of `ms` milliseconds."""
    return Duration(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)


def duration_ms(length: Duration) -> int:
    """Milliseconds, rounded up: a wait is never shorter than asked for."""
    return length.seconds * 1000 - (-length.nanos // 1_000_000)


def limit_ms(length: Duration) -> int:
    """Milliseconds of a timeout, NEVER_MS when it is not set (zero)."""
    return duration_ms(length) or NEVER_MS
