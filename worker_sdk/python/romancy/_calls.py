"""Calls: unary rpcs that outlive restarts of the service, on one channel that is opened anew when it is dead."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

import grpc
import grpc.aio

from romancy.v1.activity_service_pb2_grpc import ActivityServiceStub
from romancy.v1.admin_service_pb2_grpc import AdminServiceStub
from romancy.v1.channel_service_pb2_grpc import ChannelServiceStub
from romancy.v1.event_service_pb2_grpc import EventServiceStub
from romancy.v1.outbox_service_pb2_grpc import OutboxServiceStub
from romancy.v1.schedule_service_pb2_grpc import ScheduleServiceStub
from romancy.v1.workflow_service_pb2_grpc import WorkflowServiceStub

from romancy._channel import Endpoint, error_details
from romancy.refusals import refusal_of

if TYPE_CHECKING:
    from romancy.v1.activity_service_pb2_grpc import ActivityServiceAsyncStub
    from romancy.v1.admin_service_pb2_grpc import AdminServiceAsyncStub
    from romancy.v1.channel_service_pb2_grpc import ChannelServiceAsyncStub
    from romancy.v1.event_service_pb2_grpc import EventServiceAsyncStub
    from romancy.v1.outbox_service_pb2_grpc import OutboxServiceAsyncStub
    from romancy.v1.schedule_service_pb2_grpc import ScheduleServiceAsyncStub
    from romancy.v1.workflow_service_pb2_grpc import WorkflowServiceAsyncStub

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

ANSWER_S: Final = 10.0
"""How long one try of a call that waits for nothing may take."""
PASSING: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.DEADLINE_EXCEEDED})
"""The same request may succeed when it is sent again."""
_MAX_BACKOFF_S: Final = 2.0
_CLOSING_S: Final = 30.0
"""How long calls on a channel that was replaced may still take."""


class Calls:
    """The client's connection. Belongs to the event loop that uses it first."""

    def __init__(self, endpoint: Endpoint, patience_s: float) -> None:
        """`patience_s`: how long a call is tried again while the service cannot be reached."""
        self._endpoint = endpoint
        self._patience_s = patience_s
        self._channel: grpc.aio.Channel | None = None
        self._closes = 0
        """How often it was closed: what began before is cancelled, though the client may be used again."""
        self._closing: set[asyncio.Task[None]] = set()
        self._workflows: WorkflowServiceAsyncStub | None = None
        self._admin: AdminServiceAsyncStub | None = None
        self._schedules: ScheduleServiceAsyncStub | None = None
        self._events: EventServiceAsyncStub | None = None
        self._channels: ChannelServiceAsyncStub | None = None
        self._activities: ActivityServiceAsyncStub | None = None
        self._outbox: OutboxServiceAsyncStub | None = None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return self._endpoint.metadata

    @property
    def workflows(self) -> WorkflowServiceAsyncStub:
        """WorkflowService on the current channel."""
        if self._workflows is None:
            self._workflows = WorkflowServiceStub(self._open())
        return self._workflows

    @property
    def admin(self) -> AdminServiceAsyncStub:
        """AdminService on the current channel."""
        if self._admin is None:
            self._admin = AdminServiceStub(self._open())
        return self._admin

    @property
    def schedules(self) -> ScheduleServiceAsyncStub:
        """ScheduleService on the current channel."""
        if self._schedules is None:
            self._schedules = ScheduleServiceStub(self._open())
        return self._schedules

    @property
    def events(self) -> EventServiceAsyncStub:
        """EventService on the current channel."""
        if self._events is None:
            self._events = EventServiceStub(self._open())
        return self._events

    @property
    def channels(self) -> ChannelServiceAsyncStub:
        """ChannelService on the current channel."""
        if self._channels is None:
            self._channels = ChannelServiceStub(self._open())
        return self._channels

    @property
    def activities(self) -> ActivityServiceAsyncStub:
        """ActivityService on the current channel."""
        if self._activities is None:
            self._activities = ActivityServiceStub(self._open())
        return self._activities

    @property
    def outbox(self) -> OutboxServiceAsyncStub:
        """OutboxService on the current channel."""
        if self._outbox is None:
            self._outbox = OutboxServiceStub(self._open())
        return self._outbox

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            self._channel = self._endpoint.open()
        return self._channel

    def reopen(self) -> None:
        """Leave the connection behind: it gave no answer in time. Other calls on it may end by themselves."""
        channel, self._channel = self._channel, None
        self._forget_stubs()
        if channel is not None:
            task = asyncio.get_running_loop().create_task(channel.close(_CLOSING_S))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        self._closes += 1
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        if self._channel is not None:
            await self._channel.close(None)
        self._channel = None
        self._forget_stubs()

    def _forget_stubs(self) -> None:
        self._workflows = self._admin = self._schedules = self._events = self._channels = None
        self._activities = self._outbox = None

    async def call(
        self,
        method: Callable[[Calls], grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]],
        request: _Request,
        *,
        answer_s: float = ANSWER_S,
    ) -> _Response:
        """Call until there is an answer. The request must be safe to repeat. Raises RequestRefused."""
        deadline = time.monotonic() + self._patience_s
        closes, failures = self._closes, 0
        while True:
            if closes != self._closes:
                raise asyncio.CancelledError("the client was closed")
            stub = method(self)
            channel = self._channel
            try:
                return await stub(request, timeout=answer_s, metadata=self.metadata)
            except asyncio.CancelledError:
                if channel is self._channel or closes != self._closes or is_asked_to_stop():
                    raise
            except grpc.aio.AioRpcError as error:
                if _is_unanswered(error) and channel is self._channel:
                    self.reopen()
                if not is_passing(error) or time.monotonic() > deadline:
                    raise refusal_of(error) from error
            if closes == self._closes:
                await asyncio.sleep(backoff_s(failures))
            failures += 1


def backoff_s(failures: int) -> float:
    """How long to wait after so many failures in a row: full jitter, so that clients do not come back all at once."""
    return random.uniform(0, min(_MAX_BACKOFF_S, 0.1 * 2.0 ** min(failures, 10)))


def is_asked_to_stop() -> bool:
    """Whether somebody cancels the task. If not, what it awaited was cut off with a connection that was left behind."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def is_passing(error: grpc.aio.AioRpcError) -> bool:
    """Whether the same request may succeed when it is sent again."""
    if error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        # Without a reason it is not the service's word but the transport's: a stream was reset, no answer came in time,
        # or the other end saw that earlier than we did. Whoever cancels a call here gets no such error.
        return not error_details(error).reason
    return error.code() in PASSING


def _is_unanswered(error: grpc.aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and is_passing(error)
