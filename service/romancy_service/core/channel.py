"""Channel: messages under a name. A message is an event that says its channel, and is kept and found as events are.

What tells messages apart is the channel, and the key of a subscription to it is what its run is there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from romancy.v1.channel_pb2 import (
    CHANNEL_MODE_BROADCAST,
    CHANNEL_MODE_COMPETING,
    CHANNEL_MODE_DIRECT,
    ChannelMode,
)
from romancy.v1.command_pb2 import Subscribe
from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.payload_pb2 import Payload

from romancy_service.core.check import check_id, check_payload, check_text
from romancy_service.core.cloud_event import ABSENT, CHANNEL, METADATA, RUN_ID, WORKFLOW_ID, attribute
from romancy_service.core.limits import Limits
from romancy_service.errors import InvalidField

MESSAGE_TYPE: Final = "io.romancy.message"
"""The type of those messages that were not events before."""
RECEIVER: Final = "receiver"
"""The key of a run that waits for a message of a competing channel."""
MODE_KEYS: Final[Mapping[ChannelMode.ValueType, str]] = {
    CHANNEL_MODE_BROADCAST: "broadcast",
    CHANNEL_MODE_COMPETING: "competing",
    CHANNEL_MODE_DIRECT: "direct",
}
"""The keys of those that are subscribed."""
_BEFORE: Final = "\n"
"""Before a channel, so that it is never taken for a type. In no id: ids have no control characters."""
CHANNELS_END: Final = "\v"
"""After the topics of all channels, which sort together, and in no type either."""
_TO_ONE: Final = "\t"
"""Before a channel and before the workflow that a message there is for."""


_ASIDE: Final = "\b"
"""Before a line, for those of its events that a run failed to take. In no id either."""


def aside_of(line: str) -> str:
    """Where the events of a line wait that a run failed to take, so that those behind them do not wait."""
    return _ASIDE + line


def line_before_aside(line: str) -> str:
    """The line that this one is aside of; itself if it is aside of none."""
    return line.removeprefix(_ASIDE)


def topic_of_channel(channel: str) -> str:
    """By what messages of the channel, and subscriptions to it, are found."""
    return _BEFORE + channel


def channel_of(topic: str) -> str | None:
    """The channel whose topic this is; None: it is that of a type of events."""
    return topic.removeprefix(_BEFORE) if topic.startswith(_BEFORE) else None


def line_of(event: CloudEvent) -> str:
    """Where the event waits to be delivered, in order with others: under its type; its channel; or its addressee there,
    so that it does not wait behind what nobody takes.
    """
    channel = attribute(event, CHANNEL)
    if channel is ABSENT:
        return event.type
    workflow_id = attribute(event, WORKFLOW_ID)
    return topic_of_channel(channel) if workflow_id is ABSENT else f"{_TO_ONE}{channel}{_TO_ONE}{workflow_id}"


def address_of(event: CloudEvent) -> tuple[str, str] | None:
    """The workflow and the run (empty: any) that an event names."""
    workflow_id, run_id = attribute(event, WORKFLOW_ID), attribute(event, RUN_ID)
    return None if workflow_id is ABSENT else (workflow_id, "" if run_id is ABSENT else run_id)


def message(
    channel: str, data: Payload, metadata: Mapping[str, str], *, source: str, message_id: str, workflow_id: str = ""
) -> CloudEvent:
    """A message as an event."""
    event = CloudEvent(id=message_id, source=source, spec_version="1.0", type=MESSAGE_TYPE)
    if data.WhichOneof("data") == "json" and not data.metadata:
        event.text_data = data.json
        event.attributes["datacontenttype"].ce_string = "application/json"
    else:
        event.proto_data.Pack(data)
    event.attributes[CHANNEL].ce_string = channel
    if workflow_id:
        event.attributes[WORKFLOW_ID].ce_string = workflow_id
    if metadata:
        event.attributes[METADATA].ce_string = _metadata_text(metadata)
    return event


def id_of(channel: str, workflow_id: str, request_id: str) -> str:
    """The id of the message that a request sends: of another one to somebody else, should that have the same id."""
    return json.dumps([channel, workflow_id, request_id])


def check_message(field: str, channel: str, data: Payload, metadata: Mapping[str, str], limits: Limits) -> None:
    """Raise InvalidField unless such a message can be kept."""
    check_id(f"{field}channel", channel, limits)
    check_payload(f"{field}data", data, limits)
    for name, value in metadata.items():
        check_text(f"{field}metadata", name, limits.metadata_name_bytes)
        check_text(f"{field}metadata[{name!r}]", value, limits.event_attribute_bytes)
    if len(metadata) > limits.event_attributes:
        problem = f"has {len(metadata)} names, at most {limits.event_attributes} are allowed"
        raise InvalidField(f"{field}metadata", problem, limit=limits.event_attributes)
    if (size := len(_metadata_text(metadata).encode())) > limits.event_attribute_bytes:
        problem = f"has {size} bytes as JSON, at most {limits.event_attribute_bytes} are allowed"
        raise InvalidField(f"{field}metadata", problem, "put it into the data", limit=limits.event_attribute_bytes)


def _metadata_text(metadata: Mapping[str, str]) -> str:
    return json.dumps(dict(metadata), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def check_channel_subscription(field: str, command: Subscribe, limits: Limits) -> None:
    """Raise InvalidField for what is no wish for messages."""
    check_id(f"{field}.channel", command.channel, limits)
    if command.event_type or command.where:
        raise InvalidField(f"{field}.channel", "is set, and event_type or where too", "set one or the other")
    if command.once:
        if command.channel_mode:
            raise InvalidField(f"{field}.channel_mode", "is set where one message is asked for", "leave it out")
    elif command.channel_mode not in MODE_KEYS:
        problem, remedy = "is none that this service knows", "give broadcast (1), competing (2) or direct (3)"
        raise InvalidField(f"{field}.channel_mode", problem, remedy, value=command.channel_mode)


def channel_key(command: Subscribe) -> str:
    """What the run is in the channel."""
    return RECEIVER if command.once else MODE_KEYS[command.channel_mode]


def mode_name(mode: ChannelMode.ValueType) -> str:
    """As code says it."""
    return MODE_KEYS.get(mode, "no mode")
