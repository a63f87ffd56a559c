"""Errors: what users raise, and what they catch. Split by what whoever catches them does next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from datetime import timedelta
from typing import Any, Final, Literal

from romancy.v1.failure_pb2 import Failure

RetryState = Literal["", "non_retryable", "max_attempts", "max_elapsed", "timeout", "lost", "cancel_requested"]


class RomancyError(Exception):
    """The root of everything that this package raises by itself."""


class ApplicationError(RomancyError):
    """Raised by user code that wants to say more than an ordinary exception can.

    `details` reach whoever catches the error. `type` is what retry policies match on (default: the class's name).
    `retry_after` replaces the wait that the retry policy would make.
    """

    def __init__(
        self,
        message: str,
        *details: Any,
        type: str | None = None,  # noqa: A002 - the word of the contract
        non_retryable: bool = False,
        retry_after: timedelta | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.type = type or self.__class__.__name__
        self.non_retryable = non_retryable
        self.retry_after = retry_after


class TerminalError(ApplicationError):
    """Raised by an activity when trying again cannot help: there is no further attempt."""

    def __init__(self, message: str, *details: Any, type: str | None = None) -> None:  # noqa: A002
        super().__init__(message, *details, type=type, non_retryable=True)


class NothingDone(TerminalError):
    """Raised by an activity that is asked to stop and surely had no effect, or took it back: it is not undone.

    One that lets the cancellation through instead may have been interrupted after its effect, and is undone.
    """


class CompleteElsewhere(BaseException):
    """Raised by an activity that somebody else ends, who was given `activity_info().token`: `raise CompleteElsewhere`.

    The attempt stays open without its worker until `Client.complete_activity` or `fail_activity` ends it, or a timeout.
    Not an Exception, so that `except Exception` lets it through.
    """


class RemoteError(RomancyError):
    """An error that was raised elsewhere: its type and text, the raiser's details, and what it was caused by."""

    def __init__(
        self,
        type: str,  # noqa: A002
        message: str,
        details: tuple[Any, ...] = (),
        cause: BaseException | None = None,
        *,
        failure: Failure | None = None,
    ) -> None:
        super().__init__(message)
        self.type = type
        self.message = message
        self.details = details
        self.failure = failure
        """The error as it was recorded; None for one that was made here."""
        self.__cause__ = cause

    @property
    def cause(self) -> BaseException | None:
        """The error that led to this one."""
        return self.__cause__

    @property
    def stack_trace(self) -> str:
        """Where it was raised, in the words of the language that raised it."""
        return self.failure.stack_trace if self.failure is not None else ""


class ActivityError(RemoteError):
    """An activity failed for good. `cause` is the error of its last attempt, whose type, message and details it has."""

    activity_id: str = ""
    attempt: int = 0
    """The number of the last attempt; 0 when none was sent to a worker."""
    retry_state: RetryState = ""
    """Why there was no further attempt; empty if the history does not say."""
    outcome_unknown: bool = False
    """Whether an attempt may have had its effect although nobody heard how it ended."""


class ActivityTimeout(ActivityError):
    """An activity took too long; `type` names the timeout, `cause` is the last attempt's error if there was one."""


class ActivityLost(ActivityError):
    """An activity's worker was lost and the activity is not sent again: nobody knows whether it had its effect."""


class ActivityCancelled(ActivityError):
    """An activity stopped because it was asked to, while workflow code still awaited it."""


class ChildError(RemoteError):
    """A child ended without a result. `type` and `message` are those of its failure."""


class ChildCancelled(ChildError):
    """A child was cancelled, and what it did was undone, or will be."""


class ChildNotStarted(ChildError):
    """A child could not be started, for example because a run of its workflow id is open."""


class SendError(RemoteError):
    """Another workflow could not be told something: it is not there, or closed."""


class ChannelModeConflict(RemoteError):
    """Others have subscribed to the channel in another mode."""


class StepError(RemoteError):
    """A local step failed. `type` and `message` are those of what it raised."""


class UpdateError(RemoteError):
    """An update failed, or was refused. `type` and `message` are those of what the workflow's code raised."""


class UpdateRejected(UpdateError):
    """An update was refused by the workflow's code: it changed nothing."""


class QueryError(RemoteError):
    """A query failed. `type` and `message` are those of what the workflow's code raised."""


class CompensationError(RemoteError):
    """A compensation failed for good while workflow code awaited `ctx.compensate()`."""


class WorkflowError(RemoteError):
    """A run ended without a result."""


class WorkflowFailed(WorkflowError):
    """The run failed, and what it did was undone, or will be."""


class WorkflowCancelled(WorkflowError):
    """The run was cancelled, and what it did was undone, or will be."""


class WorkflowTerminated(WorkflowError):
    """An operator ended the run at once; nothing was undone."""


class WorkflowTimedOut(WorkflowError):
    """The run took longer than it was allowed, and what it did was undone, or will be."""


class EventTimeout(RomancyError, TimeoutError):
    """No event came in time."""


class MessageTimeout(RomancyError, TimeoutError):
    """No message came in time."""


class ConversionError(RomancyError):
    """A value cannot be encoded, or does not fit the annotation that it is decoded for."""


class DefinitionError(RomancyError):
    """A decorated function cannot be used as it stands."""


class OutsideWorkflow(RomancyError):
    """Something that only workflow code can do was called elsewhere."""


class OutsideActivity(RomancyError):
    """Something that only activities can do was called elsewhere."""


class WorkflowTaskError(RomancyError):
    """Workflow code cannot be run as it stands. The run stays open, and goes on once the code is put right."""


class InvalidCall(RomancyError, ValueError):
    """Workflow code asked for something with a value that is never allowed, such as a sleep that has no end."""


class NonDeterminism(WorkflowTaskError):
    """Workflow code did something whose outcome would be another one on replay."""


class Divergence(WorkflowTaskError):
    """Workflow code no longer asks for what its history says that it asked for."""


BUGS: Final[frozenset[type[BaseException]]] = frozenset(
    {
        NameError, UnboundLocalError, AttributeError, FrozenInstanceError, TypeError,
        ImportError, ModuleNotFoundError, SyntaxError, IndentationError, TabError, InvalidCall,
    }
)  # fmt: skip
"""What workflow code raises by mistake only. The run stays open until the code is put right; nothing is undone.

Exactly these classes: one of the user's that derives from them is raised on purpose, and fails the run as others do.
"""
_OUTCOME: Final = "_romancy_outcome"


def mark_outcome(error: BaseException) -> None:
    """Note that something else than the workflow's own code raised it: it is an outcome, whatever its class."""
    vars(error)[_OUTCOME] = True


def bug_in(error: BaseException) -> BaseException | None:
    """The mistake of the workflow's own code that the error is, or that a group holds; None: it is an outcome."""
    return next((each for each in _leaves(error) if type(each) in BUGS and _OUTCOME not in vars(each)), None)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    for each in error.exceptions:
        yield from _leaves(each)
