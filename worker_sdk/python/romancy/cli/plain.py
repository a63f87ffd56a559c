"""Messages of the contract as plain values: payloads as what they hold, enums by their short names, times as text."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from datetime import UTC
from typing import Any

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import WorkflowStatus


def plain(message: Message) -> Any:
    """The fields that are set, under their names in the contract."""
    if isinstance(message, Payload):
        return _payload(message)
    if isinstance(message, Timestamp):
        return message.ToDatetime(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(message, Duration):
        return message.ToNanoseconds() / 1e9
    return {field.name: _field(field, value) for field, value in message.ListFields()}


def enum_name(enum: EnumDescriptor, number: int) -> str:
    """The name of a value without the name of its enum: COMPLETED for WORKFLOW_STATUS_COMPLETED."""
    value = enum.values_by_number.get(number)
    if value is None:
        return str(number)
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"
    return value.name.removeprefix(prefix)


def status_name(status: WorkflowStatus.ValueType) -> str:
    """The short name of a status."""
    return enum_name(WorkflowStatus.DESCRIPTOR, status)


def moment(message: Any, field: str) -> str:
    """A time of a message for people, to the second; empty if it is not set."""
    return plain(getattr(message, field))[:19].replace("T", " ") if message.HasField(field) else ""


def _field(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, Mapping):
        assert field.message_type is not None  # that of the map's entries
        item = field.message_type.fields_by_name["value"]
        return {str(key): _one(item, value[key]) for key in sorted(value)}
    if field.is_repeated:
        return [_one(field, item) for item in value]
    return _one(field, value)


def _one(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, Message):
        return plain(value)
    if field.enum_type is not None:
        return enum_name(field.enum_type, value)
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _payload(payload: Payload) -> Any:
    if payload.metadata.get("type") == CloudEvent.DESCRIPTOR.full_name:
        try:
            return plain(CloudEvent.FromString(payload.binary))
        except DecodeError:
            pass  # shown as it is
    if payload.WhichOneof("data") == "binary":
        return {"binary": base64.b64encode(payload.binary).decode(), "metadata": dict(payload.metadata)}
    try:
        return json.loads(payload.json) if payload.json else None
    except ValueError:
        return payload.json
