"""What clients catch when the service refuses a request, or cannot be reached. Split by what the caller does next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import grpc
import grpc.aio

from romancy._channel import error_details
from romancy.errors import RomancyError


class RequestRefused(RomancyError):
    """The service refused a request. `reason` is for programs, as the contract lists it; the text is for people."""

    def __init__(
        self, message: str, *, code: grpc.StatusCode, reason: str = "", metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.metadata: dict[str, str] = dict(metadata or {})
        """The field, the value and the limit, where there are such."""

    def copy(self) -> RequestRefused:
        """The same refusal, for another one who waits for it."""
        return type(self)(str(self), code=self.code, reason=self.reason, metadata=self.metadata)


class InvalidRequest(RequestRefused):
    """The request is wrong: mend it. `metadata["field"]` names what is; `reason` may say more exactly why."""


class RequestIdReused(InvalidRequest):
    """The request id was used before, for something else."""


class WorkflowNotFound(RequestRefused):
    """No run of that name is kept."""


class WorkflowAlreadyOpen(RequestRefused):
    """A run of the workflow id is open. `metadata["run_id"]` names it."""


class WorkflowIdUsed(RequestRefused):
    """A run of the workflow id was there before, and the reuse policy forbids another."""


class WorkflowClosed(RequestRefused):
    """The run is closed: nothing can be asked of it any more."""


class UpdateAborted(RequestRefused):
    """The workflow ended, or began to undo itself, before it answered the update."""


class QueryTimeout(RequestRefused):
    """No worker answered the query in time."""


class ActivityStale(RequestRefused):
    """The attempt timed out, was replaced by another one, or its run is closed: nothing is recorded."""


class CompensationNotFound(RequestRefused):
    """The run has no compensation of that id that failed for good."""


class ChannelNotFound(RequestRefused):
    """Nobody uses a channel of that name."""


class SinkNotFound(RequestRefused):
    """There is no sink of that name."""


class DeadLetterNotFound(RequestRefused):
    """There is no dead letter at that position, or not any more."""


class ScheduleNotFound(RequestRefused):
    """There is no schedule of that id."""


class ScheduleExists(RequestRefused):
    """There is a schedule of that id already."""


class ScheduleChanged(RequestRefused):
    """Somebody else changed the schedule meanwhile."""


class EventRuleNotFound(RequestRefused):
    """There is no event rule of that id."""


class WorkflowOpen(RequestRefused):
    """The run is open: what was asked can be done only with a closed one."""


class ServiceBusy(RequestRefused):
    """As many queries, updates or starts of a schedule are under way as may be, `metadata["limit"]`: ask later."""


class LimitReached(RequestRefused):
    """There are as many as there may be, `metadata["limit"]`: sinks, event rules of a type. Delete one first."""


class AccessDenied(RequestRefused):
    """The credentials are missing, wrong, or not enough."""


class ServiceUnavailable(RequestRefused):
    """The service could not be reached, or could not answer, for as long as the client tried.

    Whether the last try was carried out is not known; the same request id makes it safe to ask again.
    """


class ServiceFailed(RequestRefused):
    """The service is at fault. Its log says why, under `metadata["error_id"]`: tell its operators."""


_BY_REASON: Final[Mapping[str, type[RequestRefused]]] = {
    "UPDATE_ABORTED": UpdateAborted,
    "QUERY_TIMEOUT": QueryTimeout,
    "WORKFLOW_NOT_FOUND": WorkflowNotFound,
    "WORKFLOW_ALREADY_OPEN": WorkflowAlreadyOpen,
    "WORKFLOW_ID_USED": WorkflowIdUsed,
    "WORKFLOW_CLOSED": WorkflowClosed,
    "STALE_TASK": ActivityStale,
    "CHANNEL_NOT_FOUND": ChannelNotFound,
    "SINK_NOT_FOUND": SinkNotFound,
    "DEAD_LETTER_NOT_FOUND": DeadLetterNotFound,
    "SCHEDULE_NOT_FOUND": ScheduleNotFound,
    "SCHEDULE_EXISTS": ScheduleExists,
    "SCHEDULE_CHANGED": ScheduleChanged,
    "EVENT_RULE_NOT_FOUND": EventRuleNotFound,
    "WORKFLOW_OPEN": WorkflowOpen,
    "REQUEST_ID_REUSED": RequestIdReused,
    "COMPENSATION_NOT_FOUND": CompensationNotFound,
    "TOO_MANY_QUERIES": ServiceBusy,
    "TOO_MANY_UPDATES": ServiceBusy,
    "SCHEDULE_BUSY": ServiceBusy,
    "TOO_MANY_SINKS": LimitReached,
    "TOO_MANY_EVENT_RULES": LimitReached,
}
_BY_CODE: Final[Mapping[grpc.StatusCode, type[RequestRefused]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.UNAUTHENTICATED: AccessDenied,
    grpc.StatusCode.PERMISSION_DENIED: AccessDenied,
    grpc.StatusCode.UNAVAILABLE: ServiceUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: ServiceUnavailable,
    grpc.StatusCode.INTERNAL: ServiceFailed,
}
_CODES: Final[Mapping[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}


def refusal(code: grpc.StatusCode, reason: str, message: str, metadata: Mapping[str, str]) -> RequestRefused:
    """The exception for a status."""
    kind = _BY_REASON.get(reason) or _BY_CODE.get(code, RequestRefused)
    return kind(message, code=code, reason=reason, metadata=metadata)


def refusal_of(error: grpc.aio.AioRpcError) -> RequestRefused:
    """The exception for a failed call."""
    details = error_details(error)
    return refusal(error.code(), details.reason, error.details() or error.code().name, details.metadata)


def status_code(number: int) -> grpc.StatusCode:
    """The status code of that number; UNKNOWN for one that gRPC does not have."""
    return _CODES.get(number, grpc.StatusCode.UNKNOWN)
