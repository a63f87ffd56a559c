"""Attributes on the command line: `customer=ada`, `total>=100`, `urgent=true`, `due<2026-01-31T10:00:00Z`, `customer`.

A value is what it looks like as JSON, or a time, or else a text; in quotes it is a text whatever it looks like.
"""

from __future__ import annotations

import json
import math
import re
from datetime import datetime
from typing import Any, Final

import click

from romancy.v1.workflow_pb2 import AttributeValue
from romancy.v1.workflow_service_pb2 import AttributeFilter

from romancy.attributes import Attribute

_PARTS: Final = re.compile(r"(?P<name>[^=<>!]+)((?P<sign>=|!=|<=|>=|<|>)(?P<value>.*))?", re.DOTALL)
_TIME: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?(Z|[+-]\d{2}:\d{2})")
_CONDITIONS: Final = {
    "=": "equal",
    "!=": "not_equal",
    "<": "less",
    "<=": "less_or_equal",
    ">": "greater",
    ">=": "greater_or_equal",
}


def attribute_filters(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> Any:
    """The callback of an option that filters by attributes."""
    return [_filter(text) for text in texts]


def attribute_values(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> Any:
    """The callback of an option that gives attributes."""
    values: dict[Attribute[Any], Any] = {}
    for text in texts:
        name, sign, value = _parts(text)
        if sign != "=":
            raise click.BadParameter(f"{text!r} gives no value: write NAME=VALUE")
        key, read = _value(name, value)
        values[key] = read
    return values


def _filter(text: str) -> AttributeFilter:
    name, sign, value = _parts(text)
    if not sign:
        return AttributeFilter(name=name, exists=True)
    key, read = _value(name, value)
    encoded: AttributeValue = key.encode(read)
    found = AttributeFilter(name=name)
    getattr(found, _CONDITIONS[sign]).CopyFrom(encoded)
    return found


def _parts(text: str) -> tuple[str, str, str]:
    parts = _PARTS.fullmatch(text)
    if parts is None:
        raise click.BadParameter(f"{text!r} names no attribute: write NAME=VALUE")
    return parts["name"], parts["sign"] or "", parts["value"] or ""


def _value(name: str, text: str) -> tuple[Attribute[Any], Any]:
    """The key and the value that a text stands for."""
    if _TIME.fullmatch(text):
        try:
            return Attribute(name, datetime), datetime.fromisoformat(text)
        except ValueError as error:
            raise click.BadParameter(f"{text!r} is no time: {error}") from error
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return Attribute(name, str), text
    if isinstance(value, float) and not math.isfinite(value):
        raise click.BadParameter(f"{text!r} is no number that an attribute can have; a text needs quotes")
    if isinstance(value, bool | int | float | str):
        return Attribute(name, type(value)), value
    return Attribute(name, str), text
