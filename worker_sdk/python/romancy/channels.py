"""Channels: messages that workflows send each other under a name, and that clients send them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, TypeVar, get_args

from romancy.v1.channel_pb2 import (
    CHANNEL_MODE_BROADCAST,
    CHANNEL_MODE_COMPETING,
    CHANNEL_MODE_DIRECT,
    Delivery,
)
from romancy.v1.channel_pb2 import ChannelMode as ModeNumber
from romancy.v1.channel_service_pb2 import Channel
from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.payload_pb2 import Payload

from romancy._checks import check_text, check_type
from romancy.converter import codec
from romancy.events import CHANNEL, attribute_text, data_of

_T = TypeVar("_T")

ChannelMode = Literal["broadcast", "competing", "direct"]
"""Who gets a message: all that are subscribed, one that receives, or only the workflow to which it is sent."""
MODES: Final = get_args(ChannelMode)
MODE_NUMBERS: Final[Mapping[ChannelMode, ModeNumber.ValueType]] = {
    "broadcast": CHANNEL_MODE_BROADCAST,
    "competing": CHANNEL_MODE_COMPETING,
    "direct": CHANNEL_MODE_DIRECT,
}
MODE_NAMES: Final[Mapping[ModeNumber.ValueType, ChannelMode]] = {number: name for name, number in MODE_NUMBERS.items()}
_METADATA: Final = "romancymetadata"
_METADATA_CODEC: Final = codec(dict[str, str])


@dataclass(frozen=True, slots=True)
class Message(Generic[_T]):
    """What came through a channel."""

    channel: str
    data: _T
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What the sender said besides."""
    id: str = ""
    """With `sender` it names the message."""
    sender: str = ""
    """"/runs/RUN-ID" for a workflow, "/clients/NAME" for a client."""
    deliveries: int = 1
    """How often it was given to a workflow. More than once: another one closed without having taken it."""


@dataclass(frozen=True, slots=True)
class ChannelInfo:
    """A channel, as an operator sees it. Counts stop at 10,000."""

    name: str
    mode: ChannelMode | None
    """That of its last subscriber; None: nobody has subscribed yet."""
    subscribers: int
    receivers: int
    """Workflows that wait for a message for which all compete."""
    unread: int
    """Messages that nobody has taken yet."""


def channel_of(event: CloudEvent) -> str:
    """The channel whose message it is; empty: it is none."""
    return attribute_text(event, CHANNEL)


def to_message(event: CloudEvent, delivery: Delivery | None, model: Any) -> Message[Any]:
    """The message as code sees it, its data as `model` says (None: as it came). Raises ConversionError."""
    what = f"message {event.id} of channel {channel_of(event)}"
    return Message(
        channel=channel_of(event),
        data=data_of(event, model, what),
        metadata=_METADATA_CODEC.decode(Payload(json=attribute_text(event, _METADATA) or "{}"), f"metadata of {what}"),
        id=event.id,
        sender=event.source,
        deliveries=1 if delivery is None else delivery.count,
    )


def to_channel_info(channel: Channel) -> ChannelInfo:
    """As the service shows it."""
    return ChannelInfo(
        name=channel.name,
        mode=MODE_NAMES.get(channel.mode),
        subscribers=channel.subscribers,
        receivers=channel.receivers,
        unread=channel.unread,
    )


def check_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """The metadata as they are sent. Raises TypeError and ValueError."""
    for name, value in (metadata or {}).items():
        check_type("a name in metadata", name, str, "a text")
        check_type(f"metadata[{name!r}]", value, str, "a text")
        check_text(f"the name {name!r} in metadata", name)
        check_text(f"metadata[{name!r}]", value)
    return dict(metadata or {})
