"""Errors keep their type, text, details and causes on their way; and making a failure never fails."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from romancy.v1.failure_pb2 import FAILURE_SOURCE_SERVICE, Failure
from romancy.v1.history_pb2 import (
    RETRY_STATE_MAX_ATTEMPTS,
    RETRY_STATE_MAX_ELAPSED,
    RETRY_STATE_UNSPECIFIED,
    ActivityCancelled,
    ActivityFailed,
    RetryState,
)
from romancy.v1.workflow_pb2 import (
    WORKFLOW_STATUS_CANCELLED,
    WORKFLOW_STATUS_FAILED,
    WORKFLOW_STATUS_TERMINATED,
    WORKFLOW_STATUS_TIMED_OUT,
    WorkflowOutcome,
)

from romancy import (
    ActivityError,
    ApplicationError,
    ConversionError,
    Divergence,
    RemoteError,
    TerminalError,
    WorkflowCancelled,
    WorkflowFailed,
    WorkflowTerminated,
    WorkflowTimedOut,
)
from romancy._failure import (
    DEPTH,
    MESSAGE_BYTES,
    STACK_BYTES,
    activity_error,
    failed_for_good,
    from_failure,
    outcome_error,
    stopped,
    to_failure,
)


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_an_error_becomes_its_type_text_and_stack() -> None:
    failure = to_failure(raised(ValueError("wrong")))
    assert (failure.type, failure.message, failure.non_retryable) == ("ValueError", "wrong", False)
    assert "test_failure.py" in failure.stack_trace


def test_an_application_error_says_more() -> None:
    error = ApplicationError("slow", {"a": 1}, 2, type="Busy", retry_after=timedelta(seconds=9))
    failure = to_failure(error)
    assert (failure.type, failure.retry_after.seconds) == ("Busy", 9)
    assert [payload.json for payload in failure.details] == ['{"a":1}', "2"]
    assert from_failure(RemoteError, failure).details == ({"a": 1}, 2)


def test_terminal_and_conversion_errors_are_not_tried_again() -> None:
    assert to_failure(TerminalError("no")).non_retryable
    assert to_failure(TerminalError("no")).type == "TerminalError"
    assert to_failure(ConversionError("no")).non_retryable
    assert to_failure(Divergence("no")).source == FAILURE_SOURCE_SERVICE


def test_causes_are_kept_and_cut() -> None:
    error: BaseException = ValueError("0")
    for number in range(1, 40):
        outer = ValueError(str(number))
        outer.__cause__ = error
        error = outer
    failure, depth = to_failure(error), 1
    while failure.HasField("cause"):
        failure, depth = failure.cause, depth + 1
    assert depth == DEPTH


def test_a_context_is_a_cause_unless_it_is_suppressed() -> None:
    def fail(suppressed: bool) -> None:
        try:
            raise KeyError("first")
        except KeyError:
            if suppressed:
                raise ValueError("second") from None
            raise ValueError("second")  # noqa: B904 - the context alone is the point

    with pytest.raises(ValueError, match="second") as plain:
        fail(False)
    with pytest.raises(ValueError, match="second") as suppressed:
        fail(True)
    assert to_failure(plain.value).cause.type == "KeyError"
    assert not to_failure(suppressed.value).HasField("cause")


def test_a_recorded_error_is_recorded_again_as_it_was() -> None:
    failure = Failure(type="Declined", message="no", stack_trace="line 1 of some Go file", cause=Failure(type="Root"))
    error = activity_error(failure, ())
    assert isinstance(error, ActivityError)
    assert (error.type, str(error), error.stack_trace) == ("Declined", "no", "line 1 of some Go file")
    assert isinstance(error.cause, RemoteError)
    assert (error.cause.type, str(error.cause)) == ("Declined", "no")
    assert isinstance(error.cause.cause, RemoteError)
    assert error.cause.cause.type == "Root"
    assert to_failure(raised(error)) == failure


class Declined(Exception):
    code: int

    def __init__(self, reason: str, *, code: int) -> None:
        super().__init__(reason)
        self.code = code


class Pair(Exception):
    pass


def test_declared_errors_come_back_as_themselves_with_their_attributes() -> None:
    error = activity_error(to_failure(Declined("no money", code=51), [Declined]), [Declined])
    assert isinstance(error, Declined)
    assert (str(error), error.code) == ("no money", 51)
    pair = activity_error(to_failure(Pair("a", 2), [Pair]), [Pair])
    assert isinstance(pair, Pair)
    assert pair.args == ("a", 2)


def test_declared_errors_of_other_languages_are_made_of_message_and_fields() -> None:
    failure = Failure(type="Declined", message="no money")
    failure.details.add(json='{"code": 7}')
    error = activity_error(failure, [Declined])
    assert isinstance(error, Declined)
    assert (str(error), error.code) == ("no money", 7)


def test_what_does_not_fit_the_declared_class_stays_an_activity_error() -> None:
    failure = Failure(type="Declined", message="no money")
    failure.details.add(json='{"code": "x"}')
    error = activity_error(failure, [Declined])
    assert isinstance(error, ActivityError)
    assert "could not be made a Declined" in error.__notes__[0]


class DeclinedForNow(Declined):
    pass


def test_what_derives_from_a_declared_class_comes_back_as_that_class() -> None:
    failure = to_failure(raised(DeclinedForNow("no money", code=51)), [Declined])
    assert failure.type == "Declined"
    assert "DeclinedForNow" in failure.stack_trace
    error = activity_error(failure, [Declined])
    assert type(error) is Declined
    assert error.code == 51
    assert to_failure(DeclinedForNow("x", code=1), [Declined, DeclinedForNow]).type == "DeclinedForNow"
    assert to_failure(ApplicationError("x", type="Busy"), [ApplicationError]).type == "Busy"


class Limited(ApplicationError):
    quota: int


class DailyLimited(Limited):
    pass


def test_what_derives_from_a_declared_application_error_keeps_its_attributes() -> None:
    limited = DailyLimited("too many", "a detail")
    limited.quota = 7
    error = activity_error(to_failure(limited, [Limited]), [Limited])
    assert type(error) is Limited
    assert (error.quota, error.message, list(error.details)) == (7, "too many", ["a detail"])


def test_a_group_of_one_error_is_recorded_as_that_error() -> None:
    inner = ValueError("wrong")
    failure = to_failure(ExceptionGroup("group", [ExceptionGroup("group", [inner])]))
    assert (failure.type, failure.message) == ("ValueError", "wrong")
    assert to_failure(ExceptionGroup("group", [inner, KeyError("x")])).type == "ExceptionGroup"


@pytest.mark.parametrize(
    ("state", "word", "note"),
    [
        (RETRY_STATE_MAX_ATTEMPTS, "max_attempts", "pay:1 has no attempt after number 3: max_attempts of its retry"),
        (RETRY_STATE_MAX_ELAPSED, "max_elapsed", "pay:1 has no attempt after number 3: max_elapsed of its retry"),
        (RETRY_STATE_UNSPECIFIED, "", ""),
    ],
)
def test_an_error_says_which_activity_failed_after_how_many_attempts_and_why_no_more(
    state: RetryState.ValueType, word: str, note: str
) -> None:
    failed = ActivityFailed(activity_id="pay:1", attempt=3, retry_state=state, outcome_unknown=True)
    error = failed_for_good(failed, ())
    assert isinstance(error, ActivityError)
    assert (error.activity_id, error.attempt, error.retry_state, error.outcome_unknown) == ("pay:1", 3, word, True)
    assert [said[: len(note)] for said in getattr(error, "__notes__", [])] == [note][: bool(note)]


def test_an_activity_that_was_stopped_says_whether_its_effect_is_known() -> None:
    error = stopped(ActivityCancelled(activity_id="pay:1", attempt=2, outcome_unknown=True))
    assert (error.activity_id, error.attempt, error.outcome_unknown) == ("pay:1", 2, True)


class Hostile(Exception):
    def __str__(self) -> str:
        raise RuntimeError("never")


@pytest.mark.parametrize(
    "error",
    [
        Hostile(),
        ValueError("\ud800" * 10),
        ValueError("x" * 10**6),
        ApplicationError("odd", object(), b"\xff", float("nan"), "\ud800"),
        ApplicationError("large", "x" * 10**6),
        ExceptionGroup("g", [ValueError("a")]),
        KeyboardInterrupt(),
    ],
)
def test_making_a_failure_never_fails_and_is_always_small(error: BaseException) -> None:
    failure = Failure.FromString(to_failure(raised(error)).SerializeToString())
    assert len(failure.message.encode()) <= MESSAGE_BYTES
    assert len(failure.stack_trace.encode()) <= STACK_BYTES
    assert failure.ByteSize() < 400_000
    from_failure(RemoteError, failure)


def test_the_end_of_a_long_stack_is_kept() -> None:
    def deeper(n: int) -> Any:
        return deeper(n - 1) if n else [][0]

    with pytest.raises(IndexError) as caught:
        deeper(500)
    assert to_failure(caught.value).stack_trace.endswith("IndexError: list index out of range\n")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (WORKFLOW_STATUS_FAILED, WorkflowFailed),
        (WORKFLOW_STATUS_CANCELLED, WorkflowCancelled),
        (WORKFLOW_STATUS_TERMINATED, WorkflowTerminated),
        (WORKFLOW_STATUS_TIMED_OUT, WorkflowTimedOut),
    ],
)
def test_the_outcome_of_a_run_is_an_error_of_its_own(status: Any, kind: type[Exception]) -> None:
    error = outcome_error(WorkflowOutcome(status=status, failure=Failure(type="Declined", message="no")))
    assert type(error) is kind
    assert (error.type, error.message) == ("Declined", "no")
