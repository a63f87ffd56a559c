"""Messages and events as code sees them: whatever comes that cannot be read is a ConversionError."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as ProtoAny

from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.payload_pb2 import Payload

from romancy import ConversionError, Event
from romancy.channels import to_message
from romancy.events import from_cloud_event, to_published


def a_message(metadata: str = "", **data: object) -> CloudEvent:
    message = CloudEvent(id="1", source="/shop", spec_version="1.0", type="job", **data)  # type: ignore[arg-type]
    message.attributes["romancychannel"].ce_string = "jobs"
    message.attributes["romancymetadata"].ce_string = metadata
    return message


def test_metadata_are_texts_by_name() -> None:
    assert to_message(a_message('{"n": "1"}', text_data="2"), None, None).metadata == {"n": "1"}
    assert to_message(a_message(text_data="2"), None, None).metadata == {}


@pytest.mark.parametrize("metadata", ["notjson", "[]", '{"n": 1}', "[" * 100_000, "null"])
def test_metadata_that_are_none_cannot_be_converted(metadata: str) -> None:
    with pytest.raises(ConversionError, match="metadata of message 1 of channel jobs"):
        to_message(a_message(metadata, text_data="1"), None, None)


GARBAGE = ProtoAny(type_url=f"type.googleapis.com/{Payload.DESCRIPTOR.full_name}", value=b"\xff")
UNREADABLE: dict[str, dict[str, Any]] = {
    "no JSON": {"text_data": "{"},
    "no UTF-8": {"binary_data": b"\xff"},
    "nested deeply": {"text_data": "[" * 100_000 + "]" * 100_000},
    "no message of its type": {"proto_data": GARBAGE},
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_data_that_cannot_be_read_cannot_be_converted(data: dict[str, Any]) -> None:
    with pytest.raises(ConversionError, match="message 1 of channel jobs cannot be decoded"):
        to_message(a_message(**data), None, None)
    with pytest.raises(ConversionError, match="the data of event job 1 cannot be decoded"):
        from_cloud_event(a_message(**data), None)


def test_an_id_without_a_source_is_refused_since_it_would_be_that_of_somebody_elses_event() -> None:
    with pytest.raises(ValueError, match="the id 'order-1' and no source"):
        to_published(Event("order.paid", 2, id="order-1"))
    sent = to_published(Event("order.paid", 2, source="/orders", id="order-1"))
    assert (sent.source, sent.id) == ("/orders", "order-1")
    assert to_published(Event("order.paid", 2)).id != to_published(Event("order.paid", 2)).id
