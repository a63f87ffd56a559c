"""Check: whether one value is allowed. What the API and workers' commands have in common is checked here, alike.

Each function raises InvalidField, naming the field, the value and the limit, or returns nothing.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from romancy.v1.failure_pb2 import Failure
from romancy.v1.payload_pb2 import Payload
from romancy.v1.retry_pb2 import RetryPolicy

from romancy_service.core.limits import LONGEST_DURATION_MS, Limits
from romancy_service.core.times import duration_ms
from romancy_service.errors import InvalidField

_NANOS: Final = 10**9
_MOST_SECONDS: Final = 315_576_000_000
"""Of a protobuf Duration: 10,000 years."""
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799
"""The years 1 to 9999: what a Timestamp may say."""
_WITHIN: Final = (
    ("heartbeat_timeout", "start_to_close_timeout"),
    ("heartbeat_timeout", "schedule_to_close_timeout"),
    ("start_to_close_timeout", "schedule_to_close_timeout"),
    ("schedule_to_start_timeout", "schedule_to_close_timeout"),
)
"""Timeouts, and those that they lie within."""


def check_id(field: str, value: str, limits: Limits) -> None:
    """An id or a name: 1-255 bytes of UTF-8 without control characters."""
    if not value:
        raise InvalidField(field, "is empty", "give it a value", limit=limits.id_bytes)
    # Four bytes are the most that a character takes, so most ids need not be encoded.
    if len(value) * 4 > limits.id_bytes:
        check_text(field, value, limits.id_bytes)
    if not value.isprintable():
        _check_characters(field, value, limits)


def check_text(field: str, value: str, most_bytes: int) -> None:
    """A text for people; it may be empty."""
    size = len(value.encode(errors="surrogatepass"))
    if size > most_bytes:
        raise InvalidField(field, f"has {size} bytes, at most {most_bytes} are allowed", value=value, limit=most_bytes)


def _check_characters(field: str, value: str, limits: Limits) -> None:
    for character in value:
        if unicodedata.category(character) in ("Cc", "Cs"):
            name = f"U+{ord(character):04X}"
            raise InvalidField(
                field, f"has the control character {name}", "leave it out", value=value, limit=limits.id_bytes
            )


def check_duration(field: str, value: Duration, *, allow_negative: bool = False) -> None:
    """A length of time: at most ten years, and not negative unless that means at once."""
    seconds, nanos = value.seconds, value.nanos
    if abs(nanos) >= _NANOS or seconds * nanos < 0:
        raise InvalidField(field, f"{seconds} s and {nanos} ns are no duration", "give both the same sign")
    if seconds < -_MOST_SECONDS:
        raise InvalidField(field, f"is {seconds} s, which is no duration", f"{_MOST_SECONDS} s is the longest there is")
    if (seconds < 0 or nanos < 0) and not allow_negative:
        raise InvalidField(field, "is negative", "give zero or more", value=f"{seconds + nanos / _NANOS:g} s")
    if duration_ms(value) > LONGEST_DURATION_MS:
        shown = f"{seconds} s"
        raise InvalidField(field, f"is {shown}, at most ten years are allowed", value=shown, limit=LONGEST_DURATION_MS)


def check_durations(field: str, message: Message, names: Iterable[str]) -> None:
    """Those of a message's durations that are set."""
    for name in names:
        if message.HasField(name):
            check_duration(f"{field}.{name}", getattr(message, name))


def check_timeouts(field: str, message: Message, names: Sequence[str]) -> None:
    """Those of a message's timeouts that are set: one that is longer than what it lies within could never pass."""
    check_durations(field, message, names)
    given = {name: ms for name in names if message.HasField(name) and (ms := duration_ms(getattr(message, name)))}
    for inner, outer in _WITHIN if len(given) > 1 else ():
        if given.get(inner, 0) > given.get(outer, LONGEST_DURATION_MS):
            problem = f"is {given[inner] / 1000:g} s, longer than {outer}, {given[outer] / 1000:g} s"
            raise InvalidField(f"{field}.{inner}", problem, "make it shorter, or leave one of them out")


def check_timestamp(field: str, time: Timestamp) -> None:
    """A moment in the years 1 to 9999."""
    if not (_FIRST_SECOND <= time.seconds <= _LAST_SECOND and 0 <= time.nanos < _NANOS):
        raise InvalidField(field, f"{time.seconds} s and {time.nanos} ns are no moment in the years 1 to 9999")


def check_payload(field: str, value: Payload, limits: Limits) -> None:
    """One value of the user's."""
    _check_payload_bytes(field, value.ByteSize(), limits.payload_bytes)


def check_payloads(field: str, values: Sequence[Payload], limits: Limits) -> None:
    """Values of the user's that belong together."""
    total = 0
    for number, value in enumerate(values):
        size = value.ByteSize()
        total += size
        if size > limits.payload_bytes:
            _check_payload_bytes(f"{field}[{number}]", size, limits.payload_bytes)
    _check_payload_bytes(field, total, limits.payloads_bytes)


def check_event(field: str, event: Message, limits: Limits) -> None:
    """What becomes one event although its values are in several places."""
    _check_payload_bytes(field, event.ByteSize(), limits.payloads_bytes)


def _check_payload_bytes(field: str, size: int, limit: int) -> None:
    if size > limit:
        problem = f"{size} bytes, at most {limit} are allowed"
        remedy = "keep large values elsewhere and pass on where they are"
        raise InvalidField(field, problem, remedy, value=size, limit=limit, reason="PAYLOAD_TOO_LARGE")


def check_failure(field: str, failure: Failure, limits: Limits) -> None:
    """What a failure and its causes carry. Their texts are no reason to refuse them: those are cut."""
    check_duration(f"{field}.retry_after", failure.retry_after)
    link, name = failure, field
    for _ in range(limits.failure_depth):
        check_payloads(f"{name}.details", link.details, limits)
        if not link.HasField("cause"):
            break
        name, link = f"{name}.cause", link.cause
    details = 0
    for _ in range(limits.failure_depth):
        details += sum(value.ByteSize() for value in failure.details)
        if not failure.HasField("cause"):
            break
        failure = failure.cause
    _check_payload_bytes(f"{field}.details and those of its causes", details, limits.payloads_bytes)


def check_headers(field: str, headers: Mapping[str, str], limits: Limits) -> None:
    """Context that travels with tasks."""
    if len(headers) > limits.headers:
        problem = f"has {len(headers)} entries, at most {limits.headers} are allowed"
        raise InvalidField(field, problem, value=len(headers), limit=limits.headers)
    size = 0
    for key, value in headers.items():
        check_id(f"{field} key", key, limits)
        size += len(key.encode()) + len(value.encode())
    if size > limits.headers_bytes:
        problem = f"has {size} bytes, at most {limits.headers_bytes} are allowed"
        raise InvalidField(field, problem, value=size, limit=limits.headers_bytes)


def check_priority(field: str, value: int, limits: Limits) -> None:
    """Smaller is sooner; zero is ordinary."""
    if abs(value) > limits.priority:
        problem = f"is {value}, allowed are {-limits.priority} to {limits.priority}"
        raise InvalidField(field, problem, value=value, limit=limits.priority)


def check_retry_policy(field: str, policy: RetryPolicy, limits: Limits) -> None:
    """Numbers that make sense: a wait that shrinks, or a chance above one, is a mistake."""
    if policy.max_attempts < 0:
        problem = f"is {policy.max_attempts}"
        raise InvalidField(f"{field}.max_attempts", problem, "give zero for no limit", value=policy.max_attempts)
    check_durations(field, policy, ("initial_interval", "max_interval", "max_elapsed"))
    if policy.HasField("initial_interval") and policy.HasField("max_interval"):
        initial_ms, max_ms = duration_ms(policy.initial_interval), duration_ms(policy.max_interval)
        if initial_ms > max_ms:
            problem = f"is {initial_ms / 1000:g} s, longer than max_interval, {max_ms / 1000:g} s"
            raise InvalidField(f"{field}.initial_interval", problem, "make it shorter, or leave max_interval out")
    coefficient = policy.backoff_coefficient
    if policy.HasField("backoff_coefficient") and not (math.isfinite(coefficient) and coefficient >= 1):
        raise InvalidField(f"{field}.backoff_coefficient", f"is {coefficient}", "give 1 or more", value=coefficient)
    if not 0 <= policy.jitter <= 1:
        raise InvalidField(f"{field}.jitter", f"is {policy.jitter}", "give 0 to 1", value=policy.jitter)
    types = len(policy.non_retryable_types)
    if types > limits.non_retryable_types:
        problem = f"has {types} entries, at most {limits.non_retryable_types} are allowed"
        raise InvalidField(f"{field}.non_retryable_types", problem, value=types, limit=limits.non_retryable_types)
    for name in policy.non_retryable_types:
        check_id(f"{field}.non_retryable_types", name, limits)


def check_count(field: str, count: int, most: int) -> None:
    """How many entries a list or map may have."""
    if count > most:
        raise InvalidField(field, f"has {count} entries, at most {most} are allowed", value=count, limit=most)


def check_size(field: str, size: int, most: int) -> None:
    """How large something may be in all."""
    if size > most:
        raise InvalidField(field, f"has {size} bytes, at most {most} are allowed", value=size, limit=most)
