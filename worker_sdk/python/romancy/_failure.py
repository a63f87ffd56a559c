"""Failure: errors <-> the contract's form of them. Making a failure never fails."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, TypeVar, get_type_hints

from romancy.v1.failure_pb2 import (
    FAILURE_SOURCE_APPLICATION,
    FAILURE_SOURCE_CANCELLED,
    FAILURE_SOURCE_LOST,
    FAILURE_SOURCE_SERVICE,
    FAILURE_SOURCE_TIMEOUT,
    Failure,
)
from romancy.v1.history_pb2 import (
    RETRY_STATE_CANCEL_REQUESTED,
    RETRY_STATE_LOST,
    RETRY_STATE_MAX_ATTEMPTS,
    RETRY_STATE_MAX_ELAPSED,
    RETRY_STATE_NON_RETRYABLE,
    RETRY_STATE_TIMEOUT,
    ActivityCancelled,
    ActivityFailed,
)
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import (
    WORKFLOW_STATUS_CANCELLED,
    WORKFLOW_STATUS_TERMINATED,
    WORKFLOW_STATUS_TIMED_OUT,
    WorkflowOutcome,
)

from romancy import errors
from romancy.converter import codec
from romancy.errors import (
    ActivityError,
    ActivityLost,
    ActivityTimeout,
    ApplicationError,
    ChildCancelled,
    ChildError,
    ConversionError,
    DefinitionError,
    RemoteError,
    RetryState,
    StepError,
    WorkflowCancelled,
    WorkflowError,
    WorkflowFailed,
    WorkflowTaskError,
    WorkflowTerminated,
    WorkflowTimedOut,
    mark_outcome,
)
from romancy.options import to_duration

MESSAGE_BYTES: Final = 4 * 1024
STACK_BYTES: Final = 16 * 1024
TYPE_BYTES: Final = 255
DEPTH: Final = 20
DETAILS_BYTES: Final = 256 * 1024
"""All details of one error together: an error is repeated in the history, in tasks and in answers."""

_ANY: Final = codec(Any)
_WHY_OVER: Final[Mapping[int, tuple[RetryState, str]]] = {
    RETRY_STATE_NON_RETRYABLE: ("non_retryable", "the error is marked as one after which trying again cannot help"),
    RETRY_STATE_MAX_ATTEMPTS: ("max_attempts", "max_attempts of its retry policy is reached"),
    RETRY_STATE_MAX_ELAPSED: ("max_elapsed", "max_elapsed of its retry policy would be passed"),
    RETRY_STATE_TIMEOUT: ("timeout", "its schedule_to_close_timeout or schedule_to_start_timeout passed"),
    RETRY_STATE_LOST: ("lost", "its worker was lost, and it is at_most_once or was lost too often"),
    RETRY_STATE_CANCEL_REQUESTED: ("cancel_requested", "it had been asked to stop"),
}
_Remote = TypeVar("_Remote", bound=RemoteError)


def to_failure(error: BaseException, raises: Sequence[type[BaseException]] = (), depth: int = DEPTH) -> Failure:
    """The error with its causes. Those of the classes in `raises` can be made themselves again by `activity_error`.

    What derives from such a class is recorded as that class, the one by which whoever awaits the activity knows it.
    """
    error = only_error(error)
    if isinstance(error, RemoteError) and error.failure is not None:
        return error.failure  # as it was recorded, so that it is the same in every history that it passes through
    failure = Failure(
        message=_cut(_text(error), MESSAGE_BYTES),
        type=_cut(_type_name(error, raises), TYPE_BYTES),
        non_retryable=isinstance(error, ConversionError | DefinitionError),
        details=_details(error, raises),
        stack_trace=_stack(error),
        source=FAILURE_SOURCE_SERVICE if isinstance(error, WorkflowTaskError) else FAILURE_SOURCE_APPLICATION,
    )
    if isinstance(error, ApplicationError):
        failure.non_retryable = error.non_retryable
        if error.retry_after is not None:
            failure.retry_after.CopyFrom(to_duration(max(error.retry_after, timedelta())))
    cause = _cause(error)
    if cause is not None and depth > 1:
        failure.cause.CopyFrom(to_failure(cause, (), depth - 1))
    return failure


def from_failure(kind: type[_Remote], failure: Failure) -> _Remote:
    """The failure as an error of class `kind`, with its causes."""
    return kind(
        failure.type,
        failure.message,
        tuple(_ANY.decode(payload, "a detail of an error") for payload in failure.details),
        from_failure(RemoteError, failure.cause) if failure.HasField("cause") else None,
        failure=failure,
    )


def only_error(error: BaseException) -> BaseException:
    """The one error that a group holds, as of a TaskGroup in which one task failed; else the error as it is."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def activity_error(failure: Failure, raises: Sequence[type[BaseException]]) -> BaseException:
    """What an activity that failed for good raises where it is awaited."""
    if failure.source == FAILURE_SOURCE_TIMEOUT:
        return from_failure(ActivityTimeout, failure)
    if failure.source == FAILURE_SOURCE_LOST:
        return from_failure(ActivityLost, failure)
    error = from_failure(ActivityError, failure)
    itself = next((_itself(declared, error) for declared in raises if declared.__name__ == failure.type), error)
    if itself is error:
        error.__cause__ = from_failure(RemoteError, failure)
    return itself


def failed_for_good(failed: ActivityFailed, raises: Sequence[type[BaseException]]) -> BaseException:
    """`activity_error` with what the history says besides: which activity, after how many attempts, and why no more."""
    error = activity_error(failed.failure, raises)
    state, reason = _WHY_OVER.get(failed.retry_state, ("", ""))
    if isinstance(error, ActivityError):
        error.activity_id, error.attempt = failed.activity_id, failed.attempt
        error.retry_state, error.outcome_unknown = state, failed.outcome_unknown
    if reason:
        error.add_note(f"{failed.activity_id} has no attempt after number {failed.attempt}: {reason}")
    return error


def child_error(outcome: WorkflowOutcome) -> ChildError:
    """What awaiting a child raises that ended without a result."""
    kind = ChildCancelled if outcome.status == WORKFLOW_STATUS_CANCELLED else ChildError
    return from_failure(kind, outcome.failure)


def step_error(failure: Failure, raises: Sequence[type[BaseException]]) -> BaseException:
    """What a local step that failed raises."""
    error = from_failure(StepError, failure)
    return next((_itself(declared, error) for declared in raises if declared.__name__ == failure.type), error)


def stopped(cancelled: ActivityCancelled) -> errors.ActivityCancelled:
    """What an activity raises, where it is awaited, that stopped because it was asked to."""
    failure = Failure(
        message=f"{cancelled.activity_id} stopped because it was asked to",
        type="ActivityCancelled",
        details=cancelled.details,
        source=FAILURE_SOURCE_CANCELLED,
    )
    error = from_failure(errors.ActivityCancelled, failure)
    error.activity_id, error.attempt = cancelled.activity_id, cancelled.attempt
    error.outcome_unknown = cancelled.outcome_unknown
    return error


def outcome_error(outcome: WorkflowOutcome) -> WorkflowError:
    """What waiting for the result of a run raises that ended without one."""
    kinds: dict[int, type[WorkflowError]] = {
        WORKFLOW_STATUS_CANCELLED: WorkflowCancelled,
        WORKFLOW_STATUS_TERMINATED: WorkflowTerminated,
        WORKFLOW_STATUS_TIMED_OUT: WorkflowTimedOut,
    }
    return from_failure(kinds.get(outcome.status, WorkflowFailed), outcome.failure)


def service_failure(kind: str, message: str) -> Failure:
    """A failure that the SDK itself found."""
    return Failure(message=_cut(message, MESSAGE_BYTES), type=kind, source=FAILURE_SOURCE_SERVICE)


def _itself(declared: type[BaseException], remote: RemoteError) -> BaseException:
    """An instance of a declared class, from its attributes (first detail) and constructor arguments (second).

    The constructor is not called: it need not take what `args` holds. What does not fit stays an ActivityError.
    """
    details = remote.details
    attributes = details[0] if details and isinstance(details[0], dict) else {}
    args = details[1] if len(details) > 1 and isinstance(details[1], list) else [remote.message]
    try:
        hints = get_type_hints(declared)
        error = declared.__new__(declared, *args)
        error.args = tuple(args)
        for name, value in attributes.items():
            what = f"{declared.__name__}.{name}"
            typed = codec(hints[name]).decode(_ANY.encode(value, what), what) if name in hints else value
            setattr(error, name, typed)
    except Exception as misfit:
        remote.add_note(f"could not be made a {declared.__name__}: {misfit}")
        return remote
    error.__cause__ = remote.cause
    mark_outcome(error)
    return error


def _details(error: BaseException, raises: Sequence[type[BaseException]]) -> list[Payload]:
    declared = _declared(error, raises)
    if isinstance(error, ApplicationError) and declared is None:
        values: list[Any] = list(error.details)
    elif isinstance(error, RemoteError):
        values = list(error.details)
    elif declared is not None:
        values = [_attributes(error)]
        if error.args != (_text(error),):
            values.append(list(error.args))
    else:
        return []
    payloads = [_encode_leniently(value) for value in values]
    return payloads if sum(payload.ByteSize() for payload in payloads) <= DETAILS_BYTES else []


def _attributes(error: BaseException) -> dict[str, Any]:
    return {name: value for name, value in vars(error).items() if name != "__notes__" and not name.startswith("_")}


def _encode_leniently(value: Any) -> Payload:
    try:
        return _ANY.encode(value, "a detail of an error")
    except ConversionError:
        return _ANY.encode(_cut(repr(value), MESSAGE_BYTES), "a detail of an error")


def _cause(error: BaseException) -> BaseException | None:
    if error.__cause__ is not None:
        return error.__cause__
    if isinstance(error, BaseExceptionGroup):
        first: BaseException = error.exceptions[0]  # the message of a group says nothing of what is in it
        return first
    return None if error.__suppress_context__ else error.__context__


def _type_name(error: BaseException, raises: Sequence[type[BaseException]]) -> str:
    declared = _declared(error, raises)
    if declared is not None:
        return declared.__name__
    return error.type if isinstance(error, ApplicationError | RemoteError) else type(error).__name__


def _declared(error: BaseException, raises: Sequence[type[BaseException]]) -> type[BaseException] | None:
    """The nearest of the classes in `raises`, unless whoever raised the error gave it another type."""
    if isinstance(error, ApplicationError | RemoteError) and error.type != type(error).__name__:
        return None
    return next((known for known in type(error).__mro__ if known in raises), None)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return f"<{type(error).__name__} whose text cannot be made>"


def _stack(error: BaseException) -> str:
    """The end of the traceback: what raised stands there."""
    try:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__, chain=False))
    except Exception:
        return ""
    data = text.encode("utf-8", "backslashreplace")
    return data[-STACK_BYTES:].decode("utf-8", "ignore")


def _cut(text: str, limit: int) -> str:
    return text.encode("utf-8", "backslashreplace")[:limit].decode("utf-8", "ignore")
