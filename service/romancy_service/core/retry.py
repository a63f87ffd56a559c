"""Retry: whether a failed attempt is followed by another, and when. The defaults of the contract stand here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from zlib import crc32

from romancy.v1.failure_pb2 import Failure
from romancy.v1.history_pb2 import (
    RETRY_STATE_MAX_ATTEMPTS,
    RETRY_STATE_MAX_ELAPSED,
    RETRY_STATE_NON_RETRYABLE,
    RetryState,
)
from romancy.v1.retry_pb2 import RetryPolicy

from romancy_service.core.times import duration_ms

LOSSES_IN_A_ROW: Final = 5
"""So often is a task sent again after its worker was lost; then it is taken to be what kills its workers."""

_NO_LIMIT: Final = 0
_LONGEST_EXPONENT: Final = 64
"""A coefficient of 2 has passed every interval long before; keeps huge attempt numbers from overflowing a float."""


@dataclass(frozen=True, slots=True)
class Next:
    """Another attempt follows after a wait."""

    wait_ms: int


@dataclass(frozen=True, slots=True)
class Over:
    """No further attempt."""

    state: RetryState.ValueType


def next_attempt(
    policy: RetryPolicy,
    failure: Failure,
    *,
    failures: int,
    worked_ms: int,
    seed: str,
    compensation: bool,
) -> Next | Over:
    """What follows the failure number `failures` (from 1) after `worked_ms` of attempts and waits.

    `seed` names the attempt; the jitter is drawn from it, so that the same decision made twice is the same.
    """
    if failure.non_retryable or failure.type in policy.non_retryable_types:
        return Over(RETRY_STATE_NON_RETRYABLE)
    max_attempts = policy.max_attempts if policy.HasField("max_attempts") else (_NO_LIMIT if compensation else 5)
    if max_attempts and failures >= max_attempts:
        return Over(RETRY_STATE_MAX_ATTEMPTS)
    wait_ms = duration_ms(failure.retry_after) if failure.HasField("retry_after") else _backoff(policy, failures, seed)
    if policy.HasField("max_elapsed"):
        max_elapsed_ms = duration_ms(policy.max_elapsed)
    else:
        max_elapsed_ms = _NO_LIMIT if compensation else 300_000
    if max_elapsed_ms and worked_ms + wait_ms > max_elapsed_ms:
        return Over(RETRY_STATE_MAX_ELAPSED)
    return Next(wait_ms)


def _backoff(policy: RetryPolicy, failures: int, seed: str) -> int:
    initial_ms = duration_ms(policy.initial_interval) if policy.HasField("initial_interval") else 1_000
    max_ms = duration_ms(policy.max_interval) if policy.HasField("max_interval") else max(60_000, initial_ms)
    coefficient = policy.backoff_coefficient if policy.HasField("backoff_coefficient") else 2.0
    jitter = policy.jitter if policy.HasField("jitter") else 0.1
    try:
        wait_ms = min(initial_ms * coefficient ** min(failures - 1, _LONGEST_EXPONENT), max_ms)
    except OverflowError:
        wait_ms = max_ms
    drawn = crc32(seed.encode()) / 2**32
    return int(wait_ms * (1 - jitter * drawn))
