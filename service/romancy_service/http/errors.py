"""Errors at the HTTP edge: one table, error -> status, and how an error travels in an answer."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from romancy_service.errors import (
    BatchRejected,
    Draining,
    InternalError,
    InvalidField,
    PermissionDenied,
    QueryTooSlow,
    RomancyError,
    StoreUnavailable,
    TooMuchContention,
    Unauthenticated,
    WorkflowClosed,
    WorkflowNotFound,
    shown,
)


class NoSuchPath(RomancyError):
    """Nothing is served there."""

    reason = "NO_SUCH_PATH"

    def __init__(self, path: str) -> None:
        super().__init__(f"nothing is at {shown(path)}; send events to /events or /events/NAMESPACE", path=path)


class MethodNotAllowed(RomancyError):
    """The path is served, but not by this method."""

    reason = "METHOD_NOT_ALLOWED"

    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(f"{shown(method)} does nothing here; use {allowed}", allowed=allowed)
        self.allowed = allowed


class UnsupportedMedia(RomancyError):
    """The body is in a form that is not read here."""

    reason = "UNSUPPORTED_MEDIA"

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        super().__init__(f"{field}: {problem}; {remedy}", field=field)


class BodyTooSlow(RomancyError):
    """The body did not come in time."""

    reason = "BODY_TOO_SLOW"

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"the body was not there within {limit_s:g} s; send it again", limit_s=f"{limit_s:g}")


class TooManyBodies(RomancyError):
    """So much is being read that another body does not fit: try again later, or elsewhere."""

    reason = "TOO_MANY_BODIES"

    def __init__(self, limit: int) -> None:
        super().__init__(f"bodies of {limit} bytes are under way, which is all that fits; try again", limit=str(limit))


STATUS: Final[dict[type[RomancyError], HTTPStatus]] = {
    InvalidField: HTTPStatus.BAD_REQUEST,
    Unauthenticated: HTTPStatus.UNAUTHORIZED,
    PermissionDenied: HTTPStatus.FORBIDDEN,
    NoSuchPath: HTTPStatus.NOT_FOUND,
    WorkflowNotFound: HTTPStatus.NOT_FOUND,
    WorkflowClosed: HTTPStatus.NOT_FOUND,
    MethodNotAllowed: HTTPStatus.METHOD_NOT_ALLOWED,
    BodyTooSlow: HTTPStatus.REQUEST_TIMEOUT,
    UnsupportedMedia: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    TooManyBodies: HTTPStatus.SERVICE_UNAVAILABLE,
    Draining: HTTPStatus.SERVICE_UNAVAILABLE,
    StoreUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    QueryTooSlow: HTTPStatus.SERVICE_UNAVAILABLE,
    TooMuchContention: HTTPStatus.SERVICE_UNAVAILABLE,
    BatchRejected: HTTPStatus.INTERNAL_SERVER_ERROR,
    InternalError: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""What publishing events can end with. Anything else is a fault of ours."""
_TOO_LARGE: Final = ("PAYLOAD_TOO_LARGE", "MESSAGE_TOO_LARGE")
RETRY_AFTER_S: Final = 1
"""When to try again what cannot be done now: restarts of a database take seconds."""


def status_of(error: RomancyError) -> HTTPStatus:
    """The status that an error is answered with."""
    if error.reason in _TOO_LARGE:
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    return STATUS.get(type(error), HTTPStatus.INTERNAL_SERVER_ERROR)


def headers_of(error: RomancyError) -> dict[str, str]:
    """What a client must know besides the body."""
    if isinstance(error, Unauthenticated):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, MethodNotAllowed):
        return {"Allow": error.allowed}
    if status_of(error) is HTTPStatus.SERVICE_UNAVAILABLE:
        return {"Retry-After": str(RETRY_AFTER_S)}
    return {}


def body_of(error: RomancyError) -> dict[str, str]:
    """What is wrong: the same reason, text and metadata as over gRPC."""
    return {**error.metadata, "reason": error.reason, "message": str(error)}
