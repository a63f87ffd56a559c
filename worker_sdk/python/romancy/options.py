"""Options: how activities are run and tried again. Frozen values, and what they are in the contract."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import timedelta

from google.protobuf import duration_pb2

from romancy.v1 import retry_pb2
from romancy.v1.command_pb2 import Compensation, ScheduleActivity

from romancy._checks import check_type
from romancy.errors import InvalidCall

Seconds = timedelta | float
"""A span of time: a timedelta, or a number of seconds."""


def to_duration(seconds: Seconds) -> duration_pb2.Duration:
    """The span in the contract's form, in whole microseconds: floats carry noise below that. Raises InvalidCall."""
    try:
        delta = seconds if isinstance(seconds, timedelta) else timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        raise InvalidCall(f"a time is {seconds!r} seconds, but must be one that ends") from None
    microseconds = delta // timedelta(microseconds=1)
    seconds_part = abs(microseconds) // 1_000_000 * (1 if microseconds >= 0 else -1)
    # Both parts have the same sign, as the contract wants it.
    return duration_pb2.Duration(seconds=seconds_part, nanos=(microseconds - seconds_part * 1_000_000) * 1000)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Whether and when a failed attempt is followed by another. What is None has the service's default."""

    max_attempts: int | None = None
    """In all; 0: no limit. Default 5 (compensations: no limit)."""
    initial_interval: Seconds | None = None
    """Before the second attempt. Default 1 s."""
    backoff_coefficient: float | None = None
    """What the wait is multiplied with for each further attempt. Default 2."""
    max_interval: Seconds | None = None
    """The longest wait. Default 60 s, or `initial_interval` if that is longer."""
    max_elapsed: Seconds | None = None
    """So long may attempts and waits take together, but for attempts that end elsewhere; 0: no limit.

    Default: no limit where `max_attempts` is set, else 300 s (compensations: no limit).
    """
    jitter: float | None = None
    """Each wait is drawn from [wait * (1 - jitter), wait]. Default 0.1."""
    non_retryable: tuple[type[BaseException] | str, ...] = ()
    """Errors, by class or by type name, after which no further attempt is made.

    Those of the activity's definition hold for subclasses too; those that are given with a call, for just these names.
    """

    def __post_init__(self) -> None:
        _check_number("max_attempts", self.max_attempts, (int,))
        _check_number("backoff_coefficient", self.backoff_coefficient, (int, float))
        _check_number("jitter", self.jitter, (int, float))
        check_type("non_retryable", self.non_retryable, (tuple, list), "a tuple of exception classes and type names")
        for error in self.non_retryable:
            _check_error(error)
        _refuse_if(self.max_attempts is not None and self.max_attempts < 0, "max_attempts", self.max_attempts, ">= 0")
        coefficient = self.backoff_coefficient
        _refuse_if(coefficient is not None and coefficient < 1, "backoff_coefficient", coefficient, ">= 1")
        _refuse_if(self.jitter is not None and not 0 <= self.jitter <= 1, "jitter", self.jitter, "from 0 to 1")
        for name in ("initial_interval", "max_interval", "max_elapsed"):
            check_seconds(name, getattr(self, name))
        _check_order(self, "initial_interval", "max_interval")

    def lists(self, error: BaseException) -> bool:
        """Whether `non_retryable` has the error's class, one that it derives from, or the name of such a class."""
        classes = type(error).__mro__
        names = {known.__name__ for known in classes}
        return any(listed in (names if isinstance(listed, str) else classes) for listed in self.non_retryable)

    def to_proto(self) -> retry_pb2.RetryPolicy:
        """The policy in the contract's form."""
        max_elapsed = self.max_elapsed
        if max_elapsed is None and self.max_attempts is not None:
            max_elapsed = 0  # who counts attempts wants all of them, however long the waits between them
        return retry_pb2.RetryPolicy(
            max_attempts=self.max_attempts,
            initial_interval=_optional(self.initial_interval),
            backoff_coefficient=self.backoff_coefficient,
            max_interval=_optional(self.max_interval),
            max_elapsed=_optional(max_elapsed),
            jitter=self.jitter,
            non_retryable_types=[error if isinstance(error, str) else error.__name__ for error in self.non_retryable],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityOptions:
    """How one activity is run. What is None is left to the service: no limit, the run's own queue and priority."""

    task_queue: str | None = None
    timeout: Seconds | None = None
    """Longest time for one attempt (start to close)."""
    schedule_to_close_timeout: Seconds | None = None
    """Longest time from the call to the end of the last attempt."""
    schedule_to_start_timeout: Seconds | None = None
    """Longest time an attempt may wait for a worker."""
    heartbeat_timeout: Seconds | None = None
    """Longest silence between two heartbeats of an attempt."""
    retry: RetryPolicy | None = None
    at_most_once: bool | None = None
    """True: an attempt that was lost with its worker is not sent again; the activity fails with ActivityLost."""
    priority: int | None = None
    """Smaller is sooner."""

    def __post_init__(self) -> None:
        for name in ("timeout", "schedule_to_close_timeout", "schedule_to_start_timeout", "heartbeat_timeout"):
            value = getattr(self, name)
            check_seconds(name, value)
            _refuse_if(value is not None and not value, name, value, "more than nothing; leave it out for no limit")
        _check_order(self, "heartbeat_timeout", "timeout")
        _check_order(self, "heartbeat_timeout", "schedule_to_close_timeout")
        _check_order(self, "timeout", "schedule_to_close_timeout")
        _check_order(self, "schedule_to_start_timeout", "schedule_to_close_timeout")
        _check_optional("task_queue", self.task_queue, str, "the name of a queue")
        _check_optional("retry", self.retry, RetryPolicy, "a RetryPolicy")
        _check_optional("at_most_once", self.at_most_once, bool, "True or False")
        _check_number("priority", self.priority, (int,))

    def merge(self, other: ActivityOptions) -> ActivityOptions:
        """These options, with those that `other` sets instead."""
        return replace(self, **{f.name: value for f in fields(other) if (value := getattr(other, f.name)) is not None})

    def schedule(self, activity_type: str) -> ScheduleActivity:
        """The command without id, arguments and compensation."""
        return ScheduleActivity(
            activity_type=activity_type,
            task_queue=self.task_queue or "",
            retry_policy=self.retry.to_proto() if self.retry else None,
            schedule_to_close_timeout=_optional(self.schedule_to_close_timeout),
            schedule_to_start_timeout=_optional(self.schedule_to_start_timeout),
            start_to_close_timeout=_optional(self.timeout),
            heartbeat_timeout=_optional(self.heartbeat_timeout),
            at_most_once=bool(self.at_most_once),
            priority=self.priority or 0,
        )

    def compensation(self, activity_type: str) -> Compensation:
        """The compensation without arguments."""
        return Compensation(
            activity_type=activity_type,
            task_queue=self.task_queue or "",
            retry_policy=self.retry.to_proto() if self.retry else None,
            start_to_close_timeout=_optional(self.timeout),
            heartbeat_timeout=_optional(self.heartbeat_timeout),
        )


def check_seconds(name: str, value: object) -> None:
    """Raise TypeError or ValueError unless `value` is None or a span of time that is not negative."""
    if value is None:
        return
    check_type(name, value, (timedelta, int, float), "a timedelta or a number of seconds")
    assert isinstance(value, timedelta | int | float)
    seconds = in_seconds(value)
    # Written so that NaN is refused as well.
    _refuse_if(not 0 <= seconds < timedelta.max.total_seconds(), name, value, "zero or more seconds")


def _check_order(options: object, shorter: str, longer: str) -> None:
    """Raise ValueError when both are set and the first is longer than the second, so that it could never matter."""
    inner, outer = getattr(options, shorter), getattr(options, longer)
    if inner is not None and outer is not None and in_seconds(inner) > in_seconds(outer):
        raise ValueError(f"{shorter} is {inner!r}, which is longer than {longer}, {outer!r}: it could never pass")


def in_seconds(length: Seconds) -> float:
    """The span as a number of seconds."""
    return length.total_seconds() if isinstance(length, timedelta) else float(length)


def _check_error(error: object) -> None:
    if not isinstance(error, str) and not (isinstance(error, type) and issubclass(error, BaseException)):
        raise TypeError(f"non_retryable has {error!r}, but takes exception classes and type names")


def _optional(seconds: Seconds | None) -> duration_pb2.Duration | None:
    return None if seconds is None else to_duration(seconds)


def _check_number(name: str, value: object, kinds: tuple[type, ...]) -> None:
    _check_optional(name, value, kinds, "a whole number" if kinds == (int,) else "a number")


def _check_optional(name: str, value: object, kinds: type | tuple[type, ...], expected: str) -> None:
    if value is not None:
        check_type(name, value, kinds, expected)


def _refuse_if(wrong: bool, name: str, value: object, expected: str) -> None:
    if wrong:
        raise ValueError(f"{name} is {value!r}, but must be {expected}")
