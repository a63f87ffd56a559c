"""Events: CloudEvents that workflow code waits for, and that clients publish."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, get_args

from google.protobuf.any_pb2 import Any as ProtoAny
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.payload_pb2 import Payload

from romancy._checks import check_text, check_type
from romancy.converter import Codec, MessageCodec, codec
from romancy.errors import ConversionError, EventTimeout

if TYPE_CHECKING:
    from romancy._inbox import Listener
    from romancy.options import Seconds

_T = TypeVar("_T")

Scalar = str | int | float | bool | None
WORKFLOW_ID: Final = "romancyworkflowid"
RUN_ID: Final = "romancyrunid"
CHANNEL: Final = "romancychannel"
_KNOWN: Final = ("subject", "time", "datacontenttype", WORKFLOW_ID, RUN_ID)
_JSON: Final = "application/json"
_INTEGERS: Final = 2**31
_ABSENT: Final = object()


@dataclass(frozen=True, slots=True)
class Event(Generic[_T]):
    """A fact that happened somewhere, by CloudEvents 1.0."""

    type: str
    """What happened: "payment.completed"."""
    data: _T
    """What is known about it. Sent as JSON, unless it is bytes, a text of another `content_type`, or a message."""
    source: str = ""
    """Where it happened, a URI reference. With `id` it names the event: the same pair is the same event, whatever its
    type. A client that publishes an event with an id must say it; empty otherwise: "/", or "/workflows/TYPE" for what a
    workflow sends."""
    id: str = ""
    """Give one that the next try of the same publication has too; a new one is made otherwise. What a workflow sends
    has one by itself, which stays the same."""
    subject: str = ""
    """What it happened to, within the source."""
    time: datetime | None = None
    """When it happened."""
    content_type: str = ""
    """The media type of the data; empty: as `data` says."""
    workflow_id: str = ""
    """The workflow that it is for, which keeps it until its code asks for it; empty: whoever waits for its type."""
    run_id: str = ""
    """The run of that workflow; empty: whichever is open."""
    attributes: Mapping[str, Scalar] = field(default_factory=dict)
    """Extensions: names of lower-case letters and digits."""

    @classmethod
    def __romancy_codec__(cls, annotation: Any) -> Codec:
        """How an argument that is annotated as an event travels."""
        return EventCodec(annotation)


class EventCodec(MessageCodec):
    """Sends an event as the CloudEvent that it is, as the service does with one that starts a workflow."""

    def __init__(self, annotation: Any) -> None:
        super().__init__(annotation, CloudEvent)
        self._model = next(iter(get_args(annotation)), None)

    def encode(self, value: Any, what: str) -> Payload:
        if not isinstance(value, Event):
            raise ConversionError(f"{what} cannot be encoded: a value of type {type(value).__name__} is no Event")
        return super().encode(to_cloud_event(value), what)

    def decode(self, payload: Payload, what: str) -> Event[Any]:
        return from_cloud_event(super().decode(payload, what), self._model)


class EventStream(Generic[_T]):
    """Events of one type, from `ctx.subscribe_event` on: none is missed, however long the code is busy."""

    def __init__(self, listener: Listener, model: Any) -> None:
        self._listener = listener
        self._model = model

    async def receive(self, timeout: Seconds | None = None) -> Event[_T]:
        """The next one. Raises EventTimeout when none came within `timeout`, and ConversionError."""
        return await next_event(self._listener, timeout, self._model)

    def close(self) -> None:
        """Bring no more. What came and was not received is dropped."""
        self._listener.close()

    def __aiter__(self) -> EventStream[_T]:
        return self

    async def __anext__(self) -> Event[_T]:
        return await self.receive()

    def __enter__(self) -> EventStream[_T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A run that is put out of memory goes on elsewhere. One that recurs keeps what it subscribed to, also in tasks
        # that are cancelled because of it.
        kept = isinstance(error, GeneratorExit) or (
            self._listener.lasts and error is not None and not isinstance(error, Exception)
        )
        if not kept:
            self.close()


async def next_event(listener: Listener, timeout: Seconds | None, model: Any) -> Event[Any]:
    """The next one that comes for the listener. Raises EventTimeout and ConversionError."""
    try:
        return from_cloud_event((await listener.next(timeout)).event, model)
    except TimeoutError:
        raise EventTimeout(f"no event {listener.command.event_type!r} came within {timeout}") from None


def where_of(where: Mapping[str, Scalar] | None) -> dict[str, str]:
    """What an event must have, as the service compares it. Raises TypeError and ValueError."""
    texts = {}
    for path, value in (where or {}).items():
        check_type("a name in where", path, str, "a text")
        if not isinstance(value, str | int | float | bool | None):
            raise TypeError(f"where[{path!r}] is a {type(value).__name__}: give a text, a number, a boolean or None")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"where[{path!r}] is {value}, which JSON has not")
        plain = int(value) if isinstance(value, float) and value.is_integer() else value
        texts[path] = json.dumps(plain, ensure_ascii=False)
    return texts


def fits(event: CloudEvent, event_type: str, where: Mapping[str, str]) -> bool:
    """Whether the event is of the type and has all these values: as the service compares them."""
    if event.type != event_type or attribute_text(event, CHANNEL):
        return False
    return all(_is_same(_value(event, path), json.loads(text)) for path, text in where.items())


def _is_same(found: Any, wanted: Any) -> bool:
    """7 is 7.0. True is not 1, which Python thinks it is."""
    return isinstance(found, bool) == isinstance(wanted, bool) and bool(found == wanted)


def _value(event: CloudEvent, path: str) -> Any:
    if not path.startswith("data."):
        return _attribute(event, path)
    content_type = _attribute(event, "datacontenttype")
    if not (content_type is _ABSENT or _is_json(content_type)):
        return _ABSENT
    try:
        value = json.loads(_data_bytes(event))
    except (ValueError, RecursionError):
        return _ABSENT
    for name in path.split(".")[1:]:
        if not isinstance(value, dict) or name not in value:
            return _ABSENT
        value = value[name]
    return value


def _attribute(event: CloudEvent, name: str) -> Any:
    if name in ("id", "source", "type"):
        return getattr(event, name)
    if name == "specversion":
        return event.spec_version
    if name not in event.attributes:
        return _ABSENT
    value = event.attributes[name]
    kind = value.WhichOneof("attr")
    if kind is None or kind == "ce_bytes":
        return _ABSENT
    return _to_milliseconds(value.ce_timestamp) if kind == "ce_timestamp" else getattr(value, kind)


def _to_milliseconds(time: Timestamp) -> str:
    """As the service writes it, and compares it."""
    return Timestamp(seconds=time.seconds, nanos=time.nanos // 1_000_000 * 1_000_000).ToJsonString()


def _is_json(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type in (_JSON, "text/json") or media_type.endswith("+json")


def _data_bytes(event: CloudEvent) -> bytes:
    return event.text_data.encode() if event.HasField("text_data") else event.binary_data


def to_published(event: Event[Any]) -> CloudEvent:
    """The event as a client publishes it. Raises ConversionError, and ValueError for an id that nothing goes with."""
    if event.id and not event.source:
        # With a source that all have in common, another event of that id would be taken for this one, and dropped.
        raise ValueError(
            f"event {event.type!r} has the id {event.id!r} and no source, but only together they name an event: give a "
            f"source, as in Event({event.type!r}, ..., source='/shop/orders', id={event.id!r})"
        )
    sent = to_cloud_event(event)
    sent.id = sent.id or str(uuid.uuid4())
    sent.source = sent.source or "/"
    return sent


def to_cloud_event(event: Event[Any]) -> CloudEvent:
    """The event as it is sent; what was not said of it is left open. Raises ConversionError."""
    sent = CloudEvent(id=event.id, source=event.source, spec_version="1.0", type=event.type)
    content_type = event.content_type
    if isinstance(event.data, Message):
        sent.proto_data.Pack(event.data)
        content_type = content_type or "application/protobuf"
    elif isinstance(event.data, bytes):
        sent.binary_data = event.data
        content_type = content_type or "application/octet-stream"
    elif isinstance(event.data, str) and content_type not in ("", _JSON):
        sent.text_data = event.data
    else:
        sent.text_data = codec(Any).encode(event.data, f"the data of event {event.type}").json
        content_type = content_type or _JSON
    attributes = dict(event.attributes) | {
        "datacontenttype": content_type,
        "subject": event.subject or None,
        "time": event.time,
        WORKFLOW_ID: event.workflow_id or None,
        RUN_ID: event.run_id or None,
    }
    for name, value in attributes.items():
        _set_attribute(sent, name, value)
    return sent


def _set_attribute(sent: CloudEvent, name: str, value: Scalar | datetime) -> None:
    match value:
        case None:
            pass
        case bool():
            sent.attributes[name].ce_boolean = value
        case int():
            if not -_INTEGERS <= value < _INTEGERS:
                raise ValueError(
                    f"the attribute {name!r} is {value}: events have numbers of 32 bits; give it as a text"
                )
            sent.attributes[name].ce_integer = value
        case float():
            raise TypeError(f"the attribute {name!r} is a float: events have whole numbers, texts and booleans")
        case datetime():
            if value.tzinfo is None:
                raise ValueError(f"the attribute {name!r}, {value!r}, has no time zone; use datetime(..., tzinfo=UTC)")
            moment = Timestamp()
            moment.FromDatetime(value)
            sent.attributes[name].ce_timestamp.CopyFrom(moment)
        case _:
            check_type(f"the attribute {name!r}", value, str, "a text, a whole number or a boolean")
            check_text(f"the attribute {name!r}", value)
            sent.attributes[name].ce_string = value


def from_cloud_event(event: CloudEvent, model: Any) -> Event[Any]:
    """The event as code sees it, its data as `model` says (None: as it came). Raises ConversionError."""
    texts = {name: attribute_text(event, name) for name in _KNOWN}
    when = event.attributes["time"].ce_timestamp if "time" in event.attributes else None
    return Event(
        type=event.type,
        data=data_of(event, model, f"the data of event {event.type} {event.id}"),
        source=event.source,
        id=event.id,
        subject=texts["subject"],
        time=None if when is None else when.ToDatetime(UTC),
        content_type=texts["datacontenttype"],
        workflow_id=texts[WORKFLOW_ID],
        run_id=texts[RUN_ID],
        attributes={name: _attribute(event, name) for name in sorted(event.attributes) if name not in _KNOWN},
    )


def attribute_text(event: CloudEvent, name: str) -> str:
    """An attribute or extension, if it is a text; else nothing."""
    value = _attribute(event, name)
    return value if isinstance(value, str) else ""


def data_of(event: CloudEvent, model: Any, what: str) -> Any:
    """What is known about it, as `model` says (None: as it came). Raises ConversionError, which names it `what`."""
    content_type = attribute_text(event, "datacontenttype")
    if event.HasField("proto_data"):
        return _unpack(event.proto_data, model, what)
    if not content_type or _is_json(content_type):
        return codec(Any if model is None else model).decode(Payload(json=_json_text(event, what)), what)
    if model is None:
        return event.text_data if event.HasField("text_data") else event.binary_data
    return codec(model).decode(Payload(binary=_data_bytes(event)), what)


def _json_text(event: CloudEvent, what: str) -> str:
    try:
        return _data_bytes(event).decode() or "null"
    except UnicodeDecodeError as error:
        raise ConversionError(f"{what} cannot be decoded: JSON that is no UTF-8: {error}") from None


def _unpack(packed: ProtoAny, model: Any, what: str) -> Any:
    payload = Payload()
    try:
        is_payload = packed.Unpack(payload)
    except DecodeError as error:
        raise ConversionError(f"{what} cannot be decoded as {Payload.DESCRIPTOR.full_name}: {error}") from None
    if is_payload:
        return codec(Any if model is None else model).decode(payload, what)
    if model is None:
        return packed.value
    metadata = {"encoding": "protobuf", "type": packed.type_url.rpartition("/")[2]}
    return codec(model).decode(Payload(binary=packed.value, metadata=metadata), what)
