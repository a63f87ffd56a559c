"""Attempt: what an activity may ask and say while it runs, and how its worker hears it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from romancy.v1.command_pb2 import SendEvent
from romancy.v1.payload_pb2 import Payload

from romancy.converter import codec
from romancy.errors import OutsideActivity
from romancy.events import Event
from romancy.outbox import DEFAULT_SINK, outgoing


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityInfo:
    """What an activity may know about the attempt that it is."""

    workflow_id: str
    run_id: str
    workflow_type: str
    activity_id: str
    activity_type: str
    task_queue: str
    attempt: int
    """From 1."""
    token: str = ""
    """The name of this very attempt, by which a client can end it: see CompleteElsewhere. Each attempt has another."""
    idempotency_key: str
    """The same for every attempt: give it to whatever must not act twice."""
    scheduled_time: datetime
    start_to_close_timeout: timedelta | None = None
    heartbeat_timeout: timedelta | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    is_compensation: bool = False
    last_heartbeat: Payload | None = None

    def heartbeat_details(self, annotation: Any = Any) -> Any:
        """What the attempt before said last of its progress, or None."""
        if self.last_heartbeat is None:
            return None
        return codec(annotation).decode(self.last_heartbeat, f"heartbeat details of {self.activity_id}")


class ActivityContext:
    """One attempt as its worker sees it. The worker makes it, and sets `current_activity` to it around the function."""

    def __init__(self, info: ActivityInfo, send_heartbeat: Callable[[Payload | None], None]) -> None:
        """`send_heartbeat` is called in the thread of the function and must not block."""
        self.info = info
        self.send_heartbeat = send_heartbeat
        self.cancelled = threading.Event()
        """Set by the worker when the attempt is to stop. It also cancels the task of an async function."""
        self.sent: list[SendEvent] = []
        """Events that go into the outbox together with the result."""


current_activity: Final[ContextVar[ActivityContext]] = ContextVar("current_activity")


def activity_info() -> ActivityInfo:
    """What is known about the attempt that is running. Raises OutsideActivity elsewhere."""
    return _current().info


def heartbeat(details: Any = None) -> None:
    """Say that the attempt goes on, and how far it is; the next attempt can read `details`. It does not wait.

    In a sync function it raises asyncio.CancelledError once the attempt is to stop: clean up and let that through.
    """
    context = _current()
    if context.cancelled.is_set() and not _in_task():
        raise asyncio.CancelledError(f"{context.info.activity_id} is to stop")
    context.send_heartbeat(None if details is None else codec(Any).encode(details, "heartbeat details"))


def send_event(event: Event[Any], sink: str = DEFAULT_SINK) -> None:
    """Have an event delivered outside, if this attempt succeeds: it is recorded with the result, or not at all.

    From the outbox it goes to the sink of that name in the namespace, at least once, after what the workflow sent there
    before. Raises OutsideActivity, and ConversionError when its data cannot be written.
    """
    _current().sent.append(outgoing(event, sink))


def is_cancelled() -> bool:
    """Whether the attempt is to stop: for sync functions, which are not interrupted."""
    return _current().cancelled.is_set()


def _current() -> ActivityContext:
    context = current_activity.get(None)
    if context is None:
        raise OutsideActivity("no activity runs here: this can be called only from an activity that a worker runs")
    return context


def _in_task() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
