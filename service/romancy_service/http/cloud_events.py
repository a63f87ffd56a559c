"""CloudEvents: the events that a request carries, in any of the three modes of the HTTP binding.

The official library reads them. What it is lenient about is refused here before: two meanings of one request are none.
"""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import unquote

from cloudevents.core.base import BaseCloudEvent, EventFactory
from cloudevents.core.bindings.http import CE_PREFIX, HTTPMessage, from_binary, from_structured
from cloudevents.core.exceptions import CloudEventValidationError
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent as OfficialEvent
from multidict import CIMultiDictProxy

from romancy.v1.event_pb2 import CloudEvent

from romancy_service.core.cloud_event import is_json, strict_json, too_deep
from romancy_service.core.limits import Limits
from romancy_service.errors import InvalidField
from romancy_service.http.errors import UnsupportedMedia
from romancy_service.rpc.validate import check_events

STRUCTURED: Final = "application/cloudevents+json"
BATCH: Final = "application/cloudevents-batch+json"
_CLOUD_EVENTS: Final = "application/cloudevents"
_UTF_8: Final = ("", "utf-8", "utf8", "us-ascii", "ascii")
_INT32: Final = range(-(2**31), 2**31)
_HOW: Final = (
    f"send ce-* headers with the data as the body, or the content type {STRUCTURED} with one event, or {BATCH} with a "
    "list of events"
)
_NEEDED: Final = ("id", "source", "type", "specversion")


@dataclass(frozen=True, slots=True)
class MediaType:
    """What a Content-Type header says."""

    name: str
    charset: str

    @classmethod
    def parse(cls, text: str) -> MediaType:
        """Read it; empty for nothing."""
        name, *parameters = (part.strip() for part in text.split(";"))
        given = dict(parameter.lower().split("=", 1) for parameter in parameters if "=" in parameter)
        return cls(name.lower(), given.get("charset", "").strip('"'))

    def check_utf_8(self) -> None:
        """JSON between systems has no other encoding."""
        if self.charset not in _UTF_8:
            raise UnsupportedMedia("Content-Type", f"has the charset {self.charset[:80]!r}", "send UTF-8")


def events_of(headers: CIMultiDictProxy[str], body: bytes, limits: Limits) -> tuple[list[CloudEvent], bool]:
    """The events of a request of a checked type, and whether they are a batch.

    Raises InvalidField and UnsupportedMedia.
    """
    try:
        return _events_of(headers, body, limits)
    except RecursionError:
        raise too_deep("body", limits.json_depth) from None


def _events_of(headers: CIMultiDictProxy[str], body: bytes, limits: Limits) -> tuple[list[CloudEvent], bool]:
    media = MediaType.parse(headers.get("Content-Type", ""))
    if media.name == BATCH:
        return _batch(body, limits), True
    if media.name == STRUCTURED:
        return [_structured("event", body)], False
    return [_binary(headers, media, body)], False


def check_media_type(headers: CIMultiDictProxy[str]) -> None:
    """Raise UnsupportedMedia for what is no event at all, before anything of its body is read."""
    media = MediaType.parse(headers.get("Content-Type", ""))
    if media.name in (STRUCTURED, BATCH):
        media.check_utf_8()
    elif media.name.startswith(_CLOUD_EVENTS):
        raise UnsupportedMedia("Content-Type", f"is {media.name[:80]!r}, which is not read here", _HOW)
    elif not any(name.lower().startswith(CE_PREFIX) for name in headers):
        raise UnsupportedMedia("Content-Type", f"is {media.name[:80]!r}, and there are no ce-* headers", _HOW)


# Reading ------------------------------------------------------------------------------------------------------------


class _Strict(JSONFormat):
    """Leaves data of the binary mode as it came."""

    def read_data(self, body: bytes, datacontenttype: str | None) -> bytes | None:
        return body or None


_STRICT: Final = _Strict()


def _made(given: dict[str, Any]) -> EventFactory:
    """The library adds what is missing; an event without an id would be another one each time it is sent."""

    def make(attributes: dict[str, Any], data: Any) -> BaseCloudEvent:
        event = OfficialEvent(attributes, data)
        for name in attributes.keys() - given.keys():
            del attributes[name]
        return event

    return make


def _read(field: str, given: dict[str, Any], message: HTTPMessage, *, binary: bool) -> BaseCloudEvent:
    for name in _NEEDED:
        if name not in given:
            raise InvalidField(f"{field}.{name}", "is missing", "each event has id, source, type and specversion")
    read = from_binary if binary else from_structured
    try:
        return read(message, _STRICT, _made(given))
    except CloudEventValidationError as error:
        name, (first, *_) = next(iter(error.errors.items()))
        raise InvalidField(f"{field}.{name[:80]}", str(first)[:200], value=given.get(name)) from None
    except (ValueError, TypeError, OverflowError) as error:
        # Of all attributes only the time is parsed.
        problem, remedy = f"is no time: {error}"[:200], "give one as in 2026-01-31T10:00:00Z"
        raise InvalidField(f"{field}.time", problem, remedy, value=given.get("time")) from None


def _binary(headers: CIMultiDictProxy[str], media: MediaType, body: bytes) -> CloudEvent:
    given: dict[str, str] = {}
    for header, value in headers.items():
        name = header.lower().removeprefix(CE_PREFIX)
        if not header.lower().startswith(CE_PREFIX):
            continue
        if name in given:
            raise InvalidField(f"event.{name}", "is given twice", "send each header once")
        if name == "datacontenttype":
            raise InvalidField("event.datacontenttype", "is a header of its own", "say it in Content-Type")
        given[name] = _plain_header(f"event.{name}", value)
    wire = {f"{CE_PREFIX}{name}": value for name, value in given.items()}
    if (content_type := headers.get("Content-Type", "")) != "":
        wire["content-type"] = content_type
        given["datacontenttype"] = content_type
    elif body:
        raise UnsupportedMedia("Content-Type", "is missing", "say what the body is, as application/json")
    event = _to_proto("event", _read("event", given, HTTPMessage(wire, body), binary=True))
    if body:
        _set_body(event, media, body)
    return event


def _plain_header(field: str, value: str) -> str:
    """A header's value without quotes, still percent-encoded. Raises InvalidField for what is no UTF-8."""
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = value[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    try:
        unquote(value, errors="strict").encode()
    except UnicodeError:
        raise InvalidField(field, "is no UTF-8", "encode what is not ASCII as %XX of UTF-8") from None
    return value


def _set_body(event: CloudEvent, media: MediaType, body: bytes) -> None:
    is_text = is_json(media.name) or media.name.startswith("text/")
    if is_json(media.name):
        media.check_utf_8()
    if not is_text or media.charset not in _UTF_8:
        event.binary_data = body
        return
    try:
        event.text_data = body.decode()
    except UnicodeDecodeError as error:
        if is_json(media.name):
            raise InvalidField("event.data", f"is no UTF-8: {error}", "send UTF-8") from None
        event.binary_data = body


def _structured(field: str, body: bytes) -> CloudEvent:
    return _of_document(field, _json("body", body))


def _batch(body: bytes, limits: Limits) -> list[CloudEvent]:
    documents = _json("body", body)
    if not isinstance(documents, list):
        raise InvalidField("body", "is no list", f"send a list of events, or one event as {STRUCTURED}")
    check_events(documents, limits)
    return [_of_document(f"events[{number}]", document) for number, document in enumerate(documents)]


def _json(field: str, body: bytes) -> Any:
    try:
        return strict_json(body.decode())
    except UnicodeDecodeError as error:
        raise InvalidField(field, f"is no UTF-8: {error}", "send UTF-8") from None
    except ValueError as error:
        raise InvalidField(field, f"is no JSON: {error}"[:200], "send JSON") from None


def _of_document(field: str, document: Any) -> CloudEvent:
    """An event in the JSON format."""
    if not isinstance(document, dict):
        raise InvalidField(field, "is no JSON object", "send an event in the JSON format of CloudEvents")
    given = {name: value for name, value in document.items() if value is not None}
    data, encoded = given.pop("data", None), given.pop("data_base64", None)
    if data is not None and encoded is not None:
        raise InvalidField(f"{field}.data_base64", "is there, and data too", "send one of them")
    message = HTTPMessage({"content-type": STRUCTURED}, json.dumps(given).encode())
    event = _to_proto(field, _read(field, given, message, binary=False))
    if encoded is not None:
        event.binary_data = _base64(f"{field}.data_base64", encoded)
    elif data is not None:
        event.text_data = _text(f"{field}.data", data, given.get("datacontenttype", "application/json"))
    return event


def _base64(field: str, encoded: Any) -> bytes:
    try:
        return b64decode(encoded, validate=True)
    except (ValueError, TypeError):
        raise InvalidField(field, "is no base64", "send a text in base64") from None


def _text(field: str, data: Any, content_type: str) -> str:
    if is_json(content_type):
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    elif isinstance(data, str):
        text = data
    else:
        raise InvalidField(field, f"is no text, but datacontenttype is {content_type[:80]!r}", "send a text")
    return _utf_8(field, text)


def _utf_8(field: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidField(field, "has half of a surrogate pair", "send whole characters") from None
    return text


def _to_proto(field: str, read: BaseCloudEvent) -> CloudEvent:
    attributes = dict(read.get_attributes())
    id_, source, type_, version = (_utf_8(f"{field}.{name}", attributes.pop(name)) for name in _NEEDED)
    event = CloudEvent(id=id_, source=source, spec_version=version, type=type_)
    for name, value in attributes.items():
        _set(f"{field}.{name}", event, name, value)
    return event


def _set(field: str, event: CloudEvent, name: str, value: Any) -> None:
    match value:
        case bool():
            event.attributes[name].ce_boolean = value
        case int() if value in _INT32:
            event.attributes[name].ce_integer = value
        case str() if name == "dataschema":
            event.attributes[name].ce_uri = _utf_8(field, value)
        case str():
            event.attributes[name].ce_string = _utf_8(field, value)
        case datetime():
            try:
                event.attributes[name].ce_timestamp.FromDatetime(value)
            except (ValueError, OverflowError):
                raise InvalidField(field, "is before the year 1", "give a later one", value=value) from None
        case _:
            problem, remedy = "is no text, boolean or whole number of 32 bits", "put it into the data"
            raise InvalidField(field, problem, remedy, value=value)
