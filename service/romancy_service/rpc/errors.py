"""Errors at the edge: one table, domain error -> gRPC status, and how an error travels in an answer."""

from __future__ import annotations

import secrets
from typing import Final

import grpc
import structlog
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from romancy.v1.workflow_service_pb2 import Error

from romancy_service.errors import (
    AnswersUnread,
    BatchRejected,
    ChannelModeConflict,
    ChannelNotFound,
    CompensationNotFound,
    DeadLetterNotFound,
    Draining,
    EventRuleNotFound,
    InternalError,
    InvalidField,
    PeerSilent,
    PermissionDenied,
    QueryTimeout,
    QueryTooSlow,
    RequestIdReused,
    RomancyError,
    ScheduleBusy,
    ScheduleChanged,
    ScheduleExists,
    ScheduleNotFound,
    SessionGone,
    SessionSuperseded,
    SinkNotFound,
    StaleTask,
    StoreUnavailable,
    TooManyEventRules,
    TooManyQueries,
    TooManySessions,
    TooManySinks,
    TooManyUpdates,
    TooMuchContention,
    Unauthenticated,
    UpdateAborted,
    WorkflowAlreadyOpen,
    WorkflowClosed,
    WorkflowIdUsed,
    WorkflowNotFound,
    WorkflowOpen,
    WorkflowUnsettled,
)

_log = structlog.get_logger("romancy.rpc")

DOMAIN: Final = "romancy"
_DETAILS_KEY: Final = "grpc-status-details-bin"
_TEXT_CHARACTERS: Final = 400
"""So much of a text is sent: the status must fit into 8 KiB of metadata, in which a character may take nine bytes."""
_VALUE_CHARACTERS: Final = 255
"""The same for values of an error's metadata: ids fit."""

STATUS: Final[dict[type[RomancyError], grpc.StatusCode]] = {
    InvalidField: grpc.StatusCode.INVALID_ARGUMENT,
    RequestIdReused: grpc.StatusCode.FAILED_PRECONDITION,
    WorkflowNotFound: grpc.StatusCode.NOT_FOUND,
    CompensationNotFound: grpc.StatusCode.NOT_FOUND,
    WorkflowAlreadyOpen: grpc.StatusCode.ALREADY_EXISTS,
    WorkflowIdUsed: grpc.StatusCode.ALREADY_EXISTS,
    WorkflowClosed: grpc.StatusCode.FAILED_PRECONDITION,
    TooManyUpdates: grpc.StatusCode.RESOURCE_EXHAUSTED,
    SinkNotFound: grpc.StatusCode.NOT_FOUND,
    DeadLetterNotFound: grpc.StatusCode.NOT_FOUND,
    TooManyQueries: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooManySinks: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ChannelNotFound: grpc.StatusCode.NOT_FOUND,
    ChannelModeConflict: grpc.StatusCode.FAILED_PRECONDITION,
    UpdateAborted: grpc.StatusCode.FAILED_PRECONDITION,
    QueryTimeout: grpc.StatusCode.DEADLINE_EXCEEDED,
    ScheduleNotFound: grpc.StatusCode.NOT_FOUND,
    ScheduleExists: grpc.StatusCode.ALREADY_EXISTS,
    ScheduleChanged: grpc.StatusCode.FAILED_PRECONDITION,
    ScheduleBusy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    EventRuleNotFound: grpc.StatusCode.NOT_FOUND,
    TooManyEventRules: grpc.StatusCode.RESOURCE_EXHAUSTED,
    WorkflowOpen: grpc.StatusCode.FAILED_PRECONDITION,
    WorkflowUnsettled: grpc.StatusCode.UNAVAILABLE,
    StaleTask: grpc.StatusCode.FAILED_PRECONDITION,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    TooManySessions: grpc.StatusCode.RESOURCE_EXHAUSTED,
    SessionSuperseded: grpc.StatusCode.ABORTED,
    SessionGone: grpc.StatusCode.UNAVAILABLE,
    AnswersUnread: grpc.StatusCode.UNAVAILABLE,
    PeerSilent: grpc.StatusCode.DEADLINE_EXCEEDED,
    Draining: grpc.StatusCode.UNAVAILABLE,
    StoreUnavailable: grpc.StatusCode.UNAVAILABLE,
    QueryTooSlow: grpc.StatusCode.DEADLINE_EXCEEDED,
    TooMuchContention: grpc.StatusCode.UNAVAILABLE,
    BatchRejected: grpc.StatusCode.INTERNAL,
    InternalError: grpc.StatusCode.INTERNAL,
}


def status_of(error: RomancyError) -> grpc.StatusCode:
    """The status that an error is answered with."""
    return STATUS[type(error)]


def status_details(error: RomancyError) -> tuple[tuple[str, bytes]]:
    """The trailing metadata that carry reason and metadata of an error."""
    info = ErrorInfo(reason=error.reason, domain=DOMAIN)
    for key, value in error.metadata.items():
        info.metadata[key] = value[:_VALUE_CHARACTERS]
    status = Status(code=status_of(error).value[0], message=status_text(error))
    status.details.add().Pack(info)
    return ((_DETAILS_KEY, status.SerializeToString()),)


def status_text(error: RomancyError) -> str:
    """The text of an error, cut to what an answer's metadata can hold."""
    return str(error)[:_TEXT_CHARACTERS]


def hidden(error: RomancyError, cause: BaseException | None = None, method: str = "") -> RomancyError:
    """What a caller is told of something that is our fault: a number, under which the log says everything."""
    error_id = secrets.token_hex(4)
    facts = {"error_id": error_id, "method": method, "reason": error.reason, "error": str(error)}
    _log.error("call failed", exc_info=cause or error, **facts)
    return InternalError(f"the service failed; its log says why under error_id {error_id}", error_id=error_id)


def error_of(error: RomancyError) -> Error:
    """The same error where it does not end the call: as one answer of many."""
    if status_of(error) is grpc.StatusCode.INTERNAL:
        error = hidden(error)
    return Error(code=status_of(error).value[0], reason=error.reason, message=str(error), metadata=error.metadata)
