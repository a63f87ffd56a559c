"""Outbox: where events that workflows send are delivered to, and what could not be delivered."""

from __future__ import annotations

import base64
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from romancy.v1 import outbox_service_pb2 as pb
from romancy.v1.command_pb2 import SendEvent

from romancy._checks import check_type
from romancy.events import Event, from_cloud_event, to_cloud_event
from romancy.handle import new_id
from romancy.options import Seconds, check_seconds, to_duration

if TYPE_CHECKING:
    from romancy._calls import Calls
    from romancy.client import Client

_Letters = TypeVar("_Letters", pb.RetryDeadLettersRequest, pb.DropDeadLettersRequest)
_Counted = TypeVar("_Counted", pb.RetryDeadLettersResponse, pb.DropDeadLettersResponse)

DEFAULT_SINK: Final = "default"
_SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class SinkInfo:
    """A place that events are delivered to. Counts stop at 10,000."""

    name: str
    url: str
    """Empty: it is not set, but events wait for it."""
    signed: bool
    waiting: int
    """Events that are not delivered yet."""
    dead: int
    """Dead letters."""
    oldest_time: datetime | None
    """Since when the oldest of those that wait does."""
    update_time: datetime | None
    """When it was set last."""
    secret_kept_until: datetime | None
    """Until when everything is signed with the secret before, too."""


@dataclass(frozen=True, slots=True)
class OutboxEvent:
    """An event that was sent and is not delivered, or is a dead letter."""

    position: int
    """Names it, to send it again or to drop it."""
    event: Event[Any]
    sink: str
    workflow_id: str
    run_id: str
    since: datetime
    """When it was sent, or sent again."""
    attempts: int
    last_error: str
    next_attempt_time: datetime | None
    """None: it waits for one before it, or is dead."""
    dead_time: datetime | None
    forget_time: datetime | None
    """When a dead letter is deleted."""


class Outbox:
    """The outbox of a client's namespace: `client.outbox`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def set_sink(
        self,
        url: str,
        *,
        name: str = DEFAULT_SINK,
        secret: str | None = None,
        unsigned: bool = False,
        keep_secret: Seconds = 0,
        request_id: str | None = None,
    ) -> SinkInfo:
        """Have events for this sink delivered to `url`. Needs the right `admin`.

        `secret` signs what is sent, by Standard Webhooks; see `new_secret`. Without one the sink keeps what it has, or
        with `unsigned` has none any more. `keep_secret`: so long is everything signed with the secret before, too.
        `request_id`, here and below, makes it happen once, however often it is called with it within a day; a new one
        unless given. Raises RequestRefused, with the reason SINK_NOT_ALLOWED where the service must not send.
        """
        check_type("url", url, str, "a text")
        check_type("name", name, str, "a text")
        check_seconds("keep_secret", keep_secret)
        request = pb.SetSinkRequest(
            namespace=self._client.namespace,
            name=name,
            url=url,
            secret=secret or "",
            unsigned=unsigned,
            keep_secret=to_duration(keep_secret),
            **self._asked(request_id),
        )
        return _sink((await self._client.calls.call(lambda calls: calls.outbox.SetSink, request)).sink)

    async def list_sinks(self) -> list[SinkInfo]:
        """All sinks, by name, also those that are not set and that events wait for. Needs the right `admin`."""
        request = pb.ListSinksRequest(namespace=self._client.namespace)
        response = await self._client.calls.call(lambda calls: calls.outbox.ListSinks, request)
        return [_sink(each) for each in response.sinks]

    async def delete_sink(self, name: str = DEFAULT_SINK, *, request_id: str | None = None) -> None:
        """Forget a sink; what waits for it waits on. Needs the right `admin`. Raises SinkNotFound."""
        asked = self._asked(request_id)
        request = pb.DeleteSinkRequest(namespace=self._client.namespace, name=name, **asked)
        await self._client.calls.call(lambda calls: calls.outbox.DeleteSink, request)

    async def list_events(
        self, *, dead: bool = False, sink: str = "", workflow_id: str = ""
    ) -> AsyncIterator[OutboxEvent]:
        """What is not delivered yet, or dead letters, the oldest first; of a sink or a workflow, or all."""
        request = pb.ListOutboxRequest(namespace=self._client.namespace, dead=dead, sink=sink, workflow_id=workflow_id)
        while True:
            page = await self._client.calls.call(lambda calls: calls.outbox.ListOutbox, request)
            for each in page.events:
                yield _event(each)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def retry(
        self, position: int | None = None, *, sink: str | None = None, request_id: str | None = None
    ) -> int:
        """Send one dead letter again, or all of a sink. Returns how many. Raises DeadLetterNotFound."""
        return await self._page_by_page(
            lambda calls: calls.outbox.RetryDeadLetters,
            pb.RetryDeadLettersRequest(
                namespace=self._client.namespace, **_which(position, sink), **self._asked(request_id)
            ),
        )

    async def drop(self, position: int | None = None, *, sink: str | None = None, request_id: str | None = None) -> int:
        """Delete one dead letter, or all of a sink. Needs the right `admin`. Returns how many.

        Raises DeadLetterNotFound.
        """
        return await self._page_by_page(
            lambda calls: calls.outbox.DropDeadLetters,
            pb.DropDeadLettersRequest(
                namespace=self._client.namespace, **_which(position, sink), **self._asked(request_id)
            ),
        )

    async def _page_by_page(
        self,
        method: Callable[[Calls], grpc.aio.UnaryUnaryMultiCallable[_Letters, _Counted]],
        request: _Letters,
    ) -> int:
        """Call until no letter is left; how many there were."""
        request_id = request.request_id
        answer = await self._client.calls.call(method, request)
        count = answer.count
        while answer.next_after_position:
            # By where it goes on: the same command again asks the same of the service.
            request.after_position = answer.next_after_position
            request.request_id = f"{request_id}/{request.after_position}"
            answer = await self._client.calls.call(method, request)
            count += answer.count
        return count

    def _asked(self, request_id: str | None) -> dict[str, Any]:
        return {"identity": self._client.identity, "request_id": request_id or new_id()}


def new_secret() -> str:
    """A secret for a sink, as Standard Webhooks writes it. Keep it where what takes the events can read it."""
    return f"whsec_{base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()}"


def outgoing(event: object, sink: object) -> SendEvent:
    """What is sent, as the service takes it. Raises TypeError, ValueError and ConversionError."""
    check_type("event", event, Event, "an Event")
    check_type("sink", sink, str, "a text")
    assert isinstance(event, Event)
    return SendEvent(event=to_cloud_event(event), sink=str(sink))


def _which(position: int | None, sink: str | None) -> dict[str, Any]:
    if (position is None) == (sink is None):
        raise ValueError("give the position of one dead letter, or the sink of all that are meant")
    return {"sink": sink} if position is None else {"position": position}


def _time(message: Any, name: str) -> datetime | None:
    if not message.HasField(name):
        return None
    moment: Timestamp = getattr(message, name)
    return moment.ToDatetime(UTC)


def _sink(sink: pb.Sink) -> SinkInfo:
    return SinkInfo(
        name=sink.name,
        url=sink.url,
        signed=sink.signed,
        waiting=sink.waiting,
        dead=sink.dead,
        oldest_time=_time(sink, "oldest_time"),
        update_time=_time(sink, "update_time"),
        secret_kept_until=_time(sink, "secret_kept_until"),
    )


def _event(found: pb.OutboxEvent) -> OutboxEvent:
    return OutboxEvent(
        position=found.position,
        event=from_cloud_event(found.event, None),
        sink=found.sink,
        workflow_id=found.workflow_id,
        run_id=found.run_id,
        since=found.since.ToDatetime(UTC),
        attempts=found.attempts,
        last_error=found.last_error,
        next_attempt_time=_time(found, "next_attempt_time"),
        dead_time=_time(found, "dead_time"),
        forget_time=_time(found, "forget_time"),
    )
