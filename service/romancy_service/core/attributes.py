"""Attributes: typed values of a run that lists filter on. What is allowed, and what each is compared by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import IntEnum

from romancy.v1.command_pb2 import SetAttributes
from romancy.v1.workflow_pb2 import AttributeValue

from romancy_service.core.check import check_id, check_timestamp
from romancy_service.core.limits import Limits
from romancy_service.core.times import timestamp_us
from romancy_service.errors import InvalidField


class AttributeType(IntEnum):
    """What a value is compared as. Stored."""

    TEXT = 1
    INTEGER = 2
    NUMBER = 3
    FLAG = 4
    TIME = 5


Comparable = tuple[AttributeType, str, int, float]
"""A value in the form in which it is stored and compared: its type, and it itself as text, whole number or number."""


def comparables(value: AttributeValue) -> list[Comparable]:
    """What a value is compared by: one for each text of a list, without those that are there twice, else one."""
    match value.WhichOneof("value"):
        case "text":
            return [_text(value.text)]
        case "integer":
            return [(AttributeType.INTEGER, "", value.integer, 0.0)]
        case "number":
            return [(AttributeType.NUMBER, "", 0, value.number)]
        case "flag":
            return [(AttributeType.FLAG, "", int(value.flag), 0.0)]
        case "time":
            return [(AttributeType.TIME, "", timestamp_us(value.time), 0.0)]
        case "texts":
            return [_text(text) for text in dict.fromkeys(value.texts.values)]
        case None:
            raise AssertionError("an attribute without a value passed the check")


def _text(text: str) -> Comparable:
    return AttributeType.TEXT, text, 0, 0.0


def check_attributes(field: str, attributes: Mapping[str, AttributeValue], limits: Limits) -> None:
    """All attributes of a run."""
    if len(attributes) > limits.attributes:
        problem = f"has {len(attributes)} entries, at most {limits.attributes} are allowed"
        raise InvalidField(field, problem, value=len(attributes), limit=limits.attributes)
    size = 0
    for name, value in attributes.items():
        check_id(f"{field} name", name, limits)
        check_attribute(f"{field}[{name!r}]", value, limits)
        size += len(name.encode()) + value.ByteSize()
    if size > limits.attributes_bytes:
        problem = f"has {size} bytes, at most {limits.attributes_bytes} are allowed"
        raise InvalidField(field, problem, value=size, limit=limits.attributes_bytes)


def check_attribute(field: str, value: AttributeValue, limits: Limits) -> None:
    """One value."""
    match value.WhichOneof("value"):
        case "text":
            _check_text(field, value.text, limits)
        case "number" if not math.isfinite(value.number):
            raise InvalidField(field, f"is {value.number}", "give a finite number", value=value.number)
        case "time":
            check_timestamp(field, value.time)
        case "texts":
            count, most = len(value.texts.values), limits.attribute_texts
            if not 1 <= count <= most:
                problem = f"has {count} texts, allowed are 1 to {most}"
                raise InvalidField(field, problem, "leave out an attribute that has none", value=count, limit=most)
            for text in value.texts.values:
                _check_text(field, text, limits)
        case None:
            raise InvalidField(field, "has no value", "give it one, or leave it out")


def _check_text(field: str, text: str, limits: Limits) -> None:
    if text:
        check_id(field, text, limits)


def check_change(
    field: str, attributes: Mapping[str, AttributeValue], change: SetAttributes, limits: Limits
) -> dict[str, AttributeValue]:
    """Raise InvalidField unless `attributes` can be changed so. Returns what they are then."""
    if not change.set and not change.unset:
        raise InvalidField(field, "sets and unsets nothing", "name an attribute, or leave the command out")
    for name in change.unset:
        check_id(f"{field}.unset", name, limits)
        if name in change.set:
            raise InvalidField(f"{field}.unset", "names an attribute that is set too", "do one of both", value=name)
    changed = {name: value for name, value in attributes.items() if name not in change.unset} | dict(change.set)
    check_attributes(f"{field}.set", changed, limits)
    return changed
