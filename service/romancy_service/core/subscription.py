"""Subscription: which events a run wants. Found by key, however many runs there are: a subscription says by what its
events are told apart (its topic), and which values these have (its key), and an event has one key for each topic.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

from romancy.v1.command_pb2 import Subscribe
from romancy.v1.event_pb2 import CloudEvent

from romancy_service.core.channel import channel_key, check_channel_subscription, topic_of_channel
from romancy_service.core.check import check_id
from romancy_service.core.cloud_event import ABSENT, attribute, check_attribute_name, json_data, strict_json
from romancy_service.core.limits import Limits
from romancy_service.core.task import NEVER_MS, Task, TaskKind, subscription_task_id
from romancy_service.errors import InvalidField

_DATA: Final = "data."
_BETWEEN: Final = "\n"
"""Between the type of a topic and its paths. In no id: ids have no control characters."""
_AFTER: Final = "\x0b"
"""The character after it."""
_JSON: Final = json.JSONEncoder(separators=(",", ":"))
"""In ASCII, so that there is no text that cannot be hashed."""


def check_subscribe(field: str, command: Subscribe, limits: Limits) -> None:
    """Raise InvalidField for what no event could be compared with."""
    if command.channel:
        check_channel_subscription(field, command, limits)
        return
    if command.channel_mode:
        raise InvalidField(f"{field}.channel_mode", "is set, but no channel", "name the channel, or leave it out")
    check_wanted(field, command.event_type, command.where, limits)


def check_wanted(field: str, event_type: str, where: Mapping[str, str], limits: Limits) -> None:
    """Raise InvalidField for a type, or values, that no event could have."""
    check_id(f"{field}.event_type", event_type, limits)
    if len(where) > limits.subscription_values:
        problem = f"has {len(where)} values, at most {limits.subscription_values} are allowed"
        raise InvalidField(f"{field}.where", problem, limit=limits.subscription_values)
    for path, value in where.items():
        _check_path(f"{field}.where", path, limits)
        _check_value(f"{field}.where[{path!r}]", value, limits)


def _check_path(field: str, path: str, limits: Limits) -> None:
    check_id(field, path, limits)
    if not path.startswith(_DATA):
        check_attribute_name(field, path)
    elif not all(path.removeprefix(_DATA).split(".")):
        raise InvalidField(field, f"{path!r} has an empty part", "name fields of the data, as in data.order.id")


def _check_value(field: str, text: str, limits: Limits) -> None:
    if len(text.encode()) > limits.subscription_value_bytes:
        problem = f"is longer than {limits.subscription_value_bytes} bytes"
        raise InvalidField(field, problem, limit=limits.subscription_value_bytes)
    try:
        value = strict_json(text)
    except (ValueError, RecursionError):
        value = ABSENT
    if value is ABSENT or isinstance(value, list | dict):
        raise InvalidField(
            field, "is no JSON text, number, boolean or null", 'a text has quotes: "\\"7\\""', value=text
        )


def subscription(since_ms: int, command: Subscribe, *, answered: bool = True) -> Task:
    """The row by which an event finds it. `since_ms` is 0 for one that goes on from the run before.

    One to a channel is found once it is answered; until then it is an errand.
    """
    if command.channel:
        topic, key = topic_of_channel(command.channel), channel_key(command)
    else:
        topic, key = topic_and_key(command.event_type, command.where)
    return Task(
        subscription_task_id(command.subscription_id),
        TaskKind.SUBSCRIPTION,
        queue=key,
        type=topic,
        due_ms=NEVER_MS if answered else since_ms,
        scheduled_ms=since_ms,
        errand=command,
    )


def topic_and_key(event_type: str, where: Mapping[str, str]) -> tuple[str, str]:
    """By what events of the type are told apart, and which of them are wanted."""
    paths = sorted(where)
    return _BETWEEN.join((event_type, *paths)), _key([json.loads(where[path]) for path in paths])


def is_answered(task: Task) -> bool:
    """Whether a subscription brings what it asked for."""
    return task.due_ms == NEVER_MS


def lasting_id(run_id: str, subscription_id: str) -> str:
    """The id that a subscription has in the runs that go on after the one that asked for it."""
    return subscription_id if "/" in subscription_id else f"{run_id}/{subscription_id}"


def topics_of(event_type: str) -> tuple[str, str]:
    """The topics that events of a type can have: from this one on, before that one."""
    return event_type, event_type + _AFTER


def event_type_of(topic: str) -> tuple[str, list[str]]:
    """What a topic is made of: the type, and the paths of the values."""
    event_type, *paths = topic.split(_BETWEEN)
    return event_type, paths


class Content:
    """What an event can be told apart by. Its data is read only if somebody asks for a field of it."""

    def __init__(self, event: CloudEvent) -> None:
        self._event = event
        self._data: Any = ABSENT
        self._is_read = False

    def key(self, topic: str) -> str | None:
        """The key of those subscriptions of the topic that want the event; None: it has not all the values."""
        values = [self._value(path) for path in event_type_of(topic)[1]]
        return None if ABSENT in values else _key(values)

    def _value(self, path: str) -> Any:
        if not path.startswith(_DATA):
            return attribute(self._event, path)
        if not self._is_read:
            self._is_read = True
            self._data = json_data(self._event)
        value = self._data
        for name in path.removeprefix(_DATA).split("."):
            if not isinstance(value, Mapping) or name not in value:
                return ABSENT
            value = value[name]
        return ABSENT if isinstance(value, list | dict) else value


def _key(values: list[Any]) -> str:
    """The same for the same values; empty for none."""
    return sha256(_JSON.encode([_plain(value) for value in values]).encode()).hexdigest()[:32] if values else ""


def _plain(value: Any) -> Any:
    """Numbers that are equal are written alike."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
