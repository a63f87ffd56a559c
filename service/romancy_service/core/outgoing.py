"""Outgoing: events that runs send to sinks: whether one may be sent, and what it is once it is recorded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import quote

from romancy.v1.command_pb2 import SendEvent
from romancy.v1.payload_pb2 import Payload

from romancy_service.core.check import check_id
from romancy_service.core.cloud_event import check_cloud_event
from romancy_service.core.limits import Limits
from romancy_service.core.run import Run
from romancy_service.core.times import timestamp
from romancy_service.errors import InvalidField

DEFAULT_SINK: Final = "default"
"""The sink of those that name none."""


def sink_name(given: str) -> str:
    """The sink that is meant."""
    return given or DEFAULT_SINK


def check_outgoing(field: str, command: SendEvent, limits: Limits) -> None:
    """Raise InvalidField unless the event may be sent. Its id and source may be left to be filled in."""
    check_cloud_event(f"{field}.event", command.event, limits, left_open=("id", "source"))
    if command.sink:
        check_id(f"{field}.sink", command.sink, limits)


def check_all_outgoing(field: str, commands: Sequence[SendEvent], result: Payload, limits: Limits) -> None:
    """The same for all events of an activity, which are recorded in one event together with its result."""
    if len(commands) > limits.sent_events:
        problem = f"has {len(commands)} events, at most {limits.sent_events} are allowed"
        raise InvalidField(field, problem, "send them from several activities", limit=limits.sent_events)
    for number, command in enumerate(commands):
        check_outgoing(f"{field}[{number}]", command, limits)
    size = result.ByteSize() + sum(command.ByteSize() for command in commands)
    if size > limits.payloads_bytes:
        problem = f"have {size} bytes together with the result, at most {limits.payloads_bytes} are allowed"
        remedy = "keep large data elsewhere and pass on where it is"
        raise InvalidField(field, problem, remedy, value=size, limit=limits.payloads_bytes, reason="PAYLOAD_TOO_LARGE")


def as_recorded(run: Run, commands: Iterable[SendEvent], now_ms: int) -> list[SendEvent]:
    """What the run sends next, with all that was left open: what repeats itself must not be made anew later."""
    filled = []
    for number, command in enumerate(commands, run.counters.events + 1):
        sent = SendEvent(event=command.event, sink=sink_name(command.sink))
        event = sent.event
        event.id = event.id or f"{run.run_id}/{number}"
        event.source = event.source or f"/workflows/{quote(run.workflow_type, safe='')}"
        if "time" not in event.attributes:
            event.attributes["time"].ce_timestamp.CopyFrom(timestamp(now_ms))
        filled.append(sent)
    return filled
