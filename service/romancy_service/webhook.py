"""Webhook: sends one event to one sink, and says what became of it.

An event is sent whole in the body (the structured mode of the CloudEvents HTTP binding), so that its signature covers
all of it. Where to, is judged by `Destinations` twice: the host when the request is made, and each address when it is
connected to, which is the one that the socket then gets. Redirects are not followed, and no proxy is asked.
"""

from __future__ import annotations

import base64
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver
from cloudevents.core.bindings.http import HTTPMessage, to_structured_event
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent as StructuredEvent
from yarl import URL

from romancy.v1.event_pb2 import CloudEvent

from romancy_service.core.cloud_event import ABSENT, attribute, data_bytes, is_json, strict_json
from romancy_service.core.destinations import Destinations
from romancy_service.core.limits import KIB, Limits
from romancy_service.core.sink import Verdict, verdict

READ_BYTES: Final = 1 * KIB
"""So much of an answer is read: it is shown to people, and only when it refuses."""
_SHOWN: Final = 200
_KEPT_OPEN_S: Final = 15.0
"""So long is a connection kept for the next event: less than usual servers keep it."""
_MOST_HEADERS_BYTES: Final = 8 * KIB
_TEXTS: Final = ("subject", "datacontenttype", "dataschema")


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one try."""

    verdict: Verdict
    why: str = ""
    """Why the event is not delivered: for people."""
    wait_ms: int = 0
    """The sink asks not to be tried before so long."""
    unreachable: bool = False
    """Nothing was sent: whatever the event, it would have been the same."""


class NotAllowed(OSError):
    """The service must not connect there."""


class Webhooks:
    """Sends events, inside of `async with`."""

    def __init__(self, destinations: Destinations, limits: Limits, resolver: AbstractResolver | None = None) -> None:
        self._destinations = destinations
        # Each read of an answer is within the whole, so that one that comes drop by drop ends as well.
        self._timeout = aiohttp.ClientTimeout(total=limits.sink_answer_ms / 1000, connect=limits.sink_connect_ms / 1000)
        self._retry_after_ms = limits.retry_after_ms
        self._resolver = resolver
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Webhooks:
        connector = aiohttp.TCPConnector(
            limit=0, resolver=self._resolver, socket_factory=self._socket, keepalive_timeout=_KEPT_OPEN_S
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
            auto_decompress=False,
            trust_env=False,
            max_line_size=_MOST_HEADERS_BYTES,
            max_field_size=_MOST_HEADERS_BYTES,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    def _socket(self, address: Any) -> socket.socket:
        """The socket for an address that is about to be connected to."""
        family, kind, protocol, _, place = address
        host, port = str(place[0]), int(place[1])
        if not self._destinations.allow_address(ip_address(host), port):
            raise NotAllowed(f"{host} port {port} is not allowed by --sink-allow")
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        return made

    async def post(self, url: str, message: HTTPMessage, headers: Mapping[str, str], now_ms: int) -> Answer:
        """Send an event. Raises nothing but what cancels."""
        try:
            target = URL(url)
            allowed = bool(target.host) and self._may_be(target)  # `host` is read from xn--, which may be none
        except ValueError as error:
            return Answer(Verdict.LATER, f"the sink's URL is none: {_text(error)}", unreachable=True)
        if not allowed:
            why = f"{target.raw_host} port {target.port} is not allowed by --sink-allow"
            return Answer(Verdict.LATER, why, unreachable=True)
        sent = {**message.headers, **headers, "user-agent": "romancy"}
        try:
            async with self._session.post(target, data=message.body, headers=sent, allow_redirects=False) as response:
                return await self._answer(response, now_ms)
        except aiohttp.ConnectionTimeoutError:
            seconds = self._timeout.connect
            return Answer(Verdict.LATER, f"no connection within {seconds:g} s", unreachable=True)
        except TimeoutError:
            return Answer(Verdict.LATER, f"no answer within {self._timeout.total:g} s")
        except (aiohttp.ClientConnectorError, aiohttp.InvalidURL, NotAllowed) as error:
            return Answer(Verdict.LATER, _text(error), unreachable=True)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Answer(Verdict.LATER, _text(error))

    def _may_be(self, target: URL) -> bool:
        return bool(target.raw_host) and self._destinations.allow_host(target.raw_host or "", target.port or 0)

    async def _answer(self, response: aiohttp.ClientResponse, now_ms: int) -> Answer:
        meaning = verdict(response.status)
        try:
            body = await response.content.read(READ_BYTES)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            body = b""  # its status is known, and counts
        if meaning is Verdict.DELIVERED:
            return Answer(meaning)
        why = f"answered {response.status}"
        if location := response.headers.get("location"):
            why += f" to {location[:_SHOWN]!r}, and redirects are not followed"
        elif body:
            why += f": {body[:_SHOWN].decode(errors='replace')!a}"
        wait_ms = 0
        if meaning is Verdict.LATER:
            wait_ms = min(_wait_ms(response.headers.get("retry-after", ""), now_ms), self._retry_after_ms)
        return Answer(meaning, why, wait_ms)


def _wait_ms(retry_after: str, now_ms: int) -> int:
    """What `Retry-After` asks for: seconds, or until a date."""
    text = retry_after.strip()
    if text.isascii() and text.isdecimal():
        return int(text[:9]) * 1000
    try:
        until = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return 0
    until = until if until.tzinfo is not None else until.replace(tzinfo=UTC)
    return max(0, round(until.timestamp() * 1000) - now_ms)


def _text(error: BaseException) -> str:
    cause = getattr(error, "os_error", None)
    return str(cause) if isinstance(cause, NotAllowed) else text_of(error)


def text_of(error: BaseException) -> str:
    """An error for people, in characters that every database keeps."""
    return f"{type(error).__name__}: {error}"[:_SHOWN].encode("ascii", "backslashreplace").decode().replace("\0", "")


def to_message(event: CloudEvent) -> HTTPMessage:
    """The event as it is sent: application/cloudevents+json."""
    attributes: dict[str, Any] = {
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "specversion": event.spec_version,
    }
    for name in event.attributes:
        value = _attribute(event, name)
        if value is not ABSENT and not (name in _TEXTS and value == ""):
            attributes[name] = value
    text = _json_text(event)
    message = to_structured_event(StructuredEvent(attributes, None if text is not None else _data(event)))
    if text is None:
        return message
    # Not read and written anew: that would change numbers that no float holds.
    return HTTPMessage(message.headers, b'%s, "data": %s}' % (message.body[:-1], text.encode()))


def _attribute(event: CloudEvent, name: str) -> Any:
    value = event.attributes[name]
    match value.WhichOneof("attr"):
        case "ce_timestamp":
            return value.ce_timestamp.ToDatetime(UTC)
        case "ce_bytes":
            return base64.b64encode(value.ce_bytes).decode()
        case _:
            return attribute(event, name)


def _content_type(event: CloudEvent) -> str:
    content_type = attribute(event, "datacontenttype")
    return JSONFormat.DEFAULT_CONTENT_TYPE if content_type in (ABSENT, "") else str(content_type)


def _json_text(event: CloudEvent) -> str | None:
    """The data as it is, where it is JSON."""
    if not event.HasField("data") or event.HasField("proto_data"):
        return None
    if JSONFormat.JSON_CONTENT_TYPE_PATTERN.match(_content_type(event)) is None:
        return None
    try:
        text = data_bytes(event).decode()
        strict_json(text)
    except (ValueError, RecursionError):
        return None
    return text


def _data(event: CloudEvent) -> Any:
    """Other data as the format takes it: text as text, and bytes, which it writes in base64."""
    if not event.HasField("data"):
        return None
    known = _content_type(event)
    if event.HasField("text_data") and not (is_json(known) or JSONFormat.JSON_CONTENT_TYPE_PATTERN.match(known)):
        return event.text_data
    return data_bytes(event)
