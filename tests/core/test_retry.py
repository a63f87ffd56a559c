"""Whether a failed attempt is followed by another, and after how long."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration

from romancy.v1.failure_pb2 import Failure
from romancy.v1.retry_pb2 import RetryPolicy

from romancy_service.core.retry import Next, next_attempt


@pytest.mark.parametrize(("failures", "wait_ms"), [(1, 1_000), (2, 2_000), (7, 60_000), (10**6, 60_000)])
def test_waits_double_up_to_a_minute_unless_the_policy_says_otherwise(failures: int, wait_ms: int) -> None:
    assert waits(RetryPolicy(), failures) == wait_ms


@pytest.mark.parametrize("failures", [1, 2, 50])
def test_a_first_wait_that_is_longer_than_the_usual_longest_is_meant(failures: int) -> None:
    assert waits(RetryPolicy(initial_interval=Duration(seconds=120)), failures) == 120_000


def waits(policy: RetryPolicy, failures: int) -> int:
    """The wait without jitter, in ms."""
    steady = RetryPolicy(jitter=0, max_attempts=0, max_elapsed=Duration())
    steady.MergeFrom(policy)
    verdict = next_attempt(steady, Failure(), failures=failures, worked_ms=0, seed="s", compensation=False)
    assert isinstance(verdict, Next)
    return verdict.wait_ms
