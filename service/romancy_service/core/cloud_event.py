"""CloudEvent: whether one is allowed, and what can be read of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from romancy.v1.event_pb2 import CloudEvent

from romancy_service.core.check import check_count, check_id, check_text, check_timestamp
from romancy_service.core.limits import Limits
from romancy_service.core.times import rfc3339, timestamp_ms
from romancy_service.errors import InvalidField

ABSENT: Final = object()
"""What an event has not: equal to nothing."""
WORKFLOW_ID: Final = "romancyworkflowid"
"""The extension that sends an event to one workflow."""
RUN_ID: Final = "romancyrunid"
"""With it, to one run of the workflow."""
CHANNEL: Final = "romancychannel"
"""The extension that makes an event a message of a channel."""
METADATA: Final = "romancymetadata"
"""With it, what else a receiver may want to know: a JSON object of texts."""
_FIXED: Final = ("id", "source", "type", "specversion")
_NAME: Final = re.compile(r"[a-z0-9]{1,20}", re.ASCII)
_ESCAPED_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")
"""Only so does a text that was UTF-8 get a surrogate. Most texts have none, and are not looked at again."""
_TEXTS: Final = ("datacontenttype", "dataschema", "subject", WORKFLOW_ID, RUN_ID, CHANNEL, METADATA)


def check_cloud_event(field: str, event: CloudEvent, limits: Limits, *, left_open: Sequence[str] = ()) -> None:
    """Raise InvalidField unless it is an event of CloudEvents 1.0 that can be kept, but for what may be `left_open`."""
    for name in ("id", "source", "type"):
        if getattr(event, name) or name not in left_open:
            check_id(f"{field}.{name}", getattr(event, name), limits)
    if event.spec_version != "1.0":
        raise InvalidField(f"{field}.spec_version", "is not '1.0'", "give '1.0'", value=event.spec_version)
    if (size := event.ByteSize()) > limits.event_bytes:
        problem = f"has {size} bytes, at most {limits.event_bytes} are allowed"
        remedy = "keep large data elsewhere and pass on where it is"
        raise InvalidField(field, problem, remedy, value=size, limit=limits.event_bytes, reason="PAYLOAD_TOO_LARGE")
    _check_attributes(field, event, limits)
    if event.HasField("data"):
        content_type = attribute(event, "datacontenttype")
        if is_json(content_type) if content_type is not ABSENT else event.HasField("text_data"):
            _check_json(f"{field}.data", data_bytes(event), limits)


def check_attribute_name(field: str, name: str) -> None:
    """The name of an attribute or extension: 1 to 20 lower-case letters and digits."""
    if not _NAME.fullmatch(name):
        raise InvalidField(field, "is no name of an attribute", "use 1 to 20 of a-z and 0-9", value=name, limit=20)


def _check_attributes(field: str, event: CloudEvent, limits: Limits) -> None:
    if len(event.attributes) > limits.event_attributes:
        problem = f"has {len(event.attributes)} attributes, at most {limits.event_attributes} are allowed"
        raise InvalidField(f"{field}.attributes", problem, limit=limits.event_attributes)
    for name in sorted(event.attributes):
        check_attribute_name(f"{field}.attributes", name)
        at, value = f"{field}.attributes[{name!r}]", event.attributes[name]
        if name in (*_FIXED, "data"):
            raise InvalidField(at, "has a field of its own", "set that one")
        kind = value.WhichOneof("attr")
        if kind is None:
            raise InvalidField(at, "has no value", "give it one, or leave it out")
        if name in _TEXTS and kind not in ("ce_string", "ce_uri", "ce_uri_ref"):
            raise InvalidField(at, "is no text", "set ce_string")
        if name == "time" and kind != "ce_timestamp":
            raise InvalidField(at, "is no time", "set ce_timestamp")
        if name in (WORKFLOW_ID, RUN_ID, CHANNEL):
            check_id(at, getattr(value, kind), limits)
        elif kind == "ce_timestamp":
            check_timestamp(at, value.ce_timestamp)
        elif kind in ("ce_string", "ce_uri", "ce_uri_ref"):
            check_text(at, getattr(value, kind), limits.event_attribute_bytes)
            if name == METADATA:
                _check_metadata(at, getattr(value, kind), limits)


def _check_json(field: str, data: bytes, limits: Limits) -> None:
    try:
        text = data.decode()
        _check_depth(field, text, strict_json(text), limits.json_depth)
    except RecursionError:
        raise too_deep(field, limits.json_depth) from None
    except ValueError as error:
        problem = f"is no JSON: {error}"
        raise InvalidField(field, problem, "send JSON, or say in datacontenttype what it is") from None


def _check_depth(field: str, text: str, read: Any, most: int) -> None:
    if text.count("[") + text.count("{") <= most:
        return
    level, depth = [read], 0
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        if depth > most:
            raise too_deep(field, most)
        level = [within for each in level for within in (each.values() if isinstance(each, dict) else each)]


def too_deep(field: str, most: int) -> InvalidField:
    """What is said of JSON that nobody should have to read."""
    problem = f"has more than {most} lists and objects within each other"
    return InvalidField(field, problem, "make it flatter", limit=most)


def _check_metadata(field: str, text: str, limits: Limits) -> None:
    remedy = "send a JSON object of texts"
    try:
        read = strict_json(text)
    except (ValueError, RecursionError):
        raise InvalidField(field, "is no JSON", remedy, value=text) from None
    if not isinstance(read, dict):
        raise InvalidField(field, "is no JSON object", remedy, value=text)
    for name, value in read.items():
        if not isinstance(value, str):
            raise InvalidField(f"{field}[{name!r}]", "is no text", remedy, value=str(value))
    check_count(field, len(read), limits.event_attributes)


def strict_json(text: str) -> Any:
    """What a JSON text says. Raises ValueError for what others read differently, and RecursionError.

    That is: NaN and infinities, numbers that are too large for a float, names that an object has twice, and halves of
    surrogate pairs, which are no characters.
    """
    value = _STRICT.decode(text)
    if _ESCAPED_SURROGATE.search(text) is not None:
        _check_characters(value)
    return value


def _check_characters(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise ValueError(f"\\u{half:04x} is half of a character, without the other half") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is too large")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read: dict[str, Any] = {}
    for name, value in pairs:
        if name in read:
            raise ValueError(f"an object has the name {name[:80]!r} twice")
        read[name] = value
    return read


_STRICT: Final = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_object)


def attribute(event: CloudEvent, name: str) -> Any:
    """An attribute or extension as JSON has it, or ABSENT."""
    if name in ("id", "source", "type"):
        return getattr(event, name)
    if name == "specversion":
        return event.spec_version
    if name not in event.attributes:
        return ABSENT
    value = event.attributes[name]
    kind = value.WhichOneof("attr")
    if kind is None or kind == "ce_bytes":
        return ABSENT
    return rfc3339(timestamp_ms(value.ce_timestamp)) if kind == "ce_timestamp" else getattr(value, kind)


def json_data(event: CloudEvent) -> Any:
    """The data, if it is JSON, or ABSENT."""
    content_type = attribute(event, "datacontenttype")
    if not event.HasField("data") or not (content_type is ABSENT or is_json(content_type)):
        return ABSENT
    try:
        return json.loads(data_bytes(event))
    except (ValueError, RecursionError):
        return ABSENT


def data_bytes(event: CloudEvent) -> bytes:
    """The data as it was sent."""
    match event.WhichOneof("data"):
        case "text_data":
            return event.text_data.encode()
        case "proto_data":
            return event.proto_data.value
        case _:
            return event.binary_data


def is_json(content_type: str) -> bool:
    """Whether a media type says that the data is JSON."""
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type in ("application/json", "text/json") or media_type.endswith("+json")
