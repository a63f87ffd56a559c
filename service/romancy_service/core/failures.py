"""Failures: cut to size, since a failure must not fail for being too long."""

from __future__ import annotations

from romancy.v1.failure_pb2 import Failure

from romancy_service.core.limits import Limits


def cut(failure: Failure, limits: Limits) -> Failure:
    """The failure, its texts and its chain of causes no longer than allowed. The same object when nothing is cut."""
    if _fits(failure, limits):
        return failure
    short = Failure()
    short.CopyFrom(failure)
    link, depth = short, 1
    while True:
        link.message = _cut_text(link.message, limits.failure_message_bytes)
        link.stack_trace = _cut_text(link.stack_trace, limits.failure_stack_bytes)
        link.type = _cut_text(link.type, limits.id_bytes)
        if not link.HasField("cause"):
            return short
        if depth == limits.failure_depth:
            link.ClearField("cause")
            return short
        link, depth = link.cause, depth + 1


def _fits(failure: Failure, limits: Limits) -> bool:
    return (
        not failure.HasField("cause")
        and len(failure.message.encode()) <= limits.failure_message_bytes
        and len(failure.stack_trace.encode()) <= limits.failure_stack_bytes
        and len(failure.type.encode()) <= limits.id_bytes
    )


def _cut_text(text: str, most_bytes: int) -> str:
    data = text.encode()
    if len(data) <= most_bytes:
        return text
    return data[: most_bytes - 3].decode(errors="ignore") + "..."
