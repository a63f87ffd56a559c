"""Attributes: typed values of a workflow that lists are filtered on. A key names one, and says its type."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Generic, TypeVar

from romancy.v1.command_pb2 import SetAttributes
from romancy.v1.workflow_pb2 import AttributeValue, TextList
from romancy.v1.workflow_service_pb2 import AttributeFilter, AttributeValues

from romancy._checks import check_type
from romancy.errors import DefinitionError

_T = TypeVar("_T", str, int, float, bool, datetime, list[str])

_FIELDS: Final[Mapping[Any, tuple[str, str]]] = {
    str: ("text", "a text"),
    int: ("integer", "a whole number"),
    float: ("number", "a number"),
    bool: ("flag", "True or False"),
    datetime: ("time", "a datetime with a time zone"),
    list[str]: ("texts", "a list of texts, at least one"),
}
"""By the type of a key: the field of AttributeValue that has it, and what it is in words."""
_WHOLE_NUMBERS: Final = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Attribute(Generic[_T]):
    """The key of an attribute: `CUSTOMER = Attribute("customer", str)`.

    Types are str, int, float, bool, datetime and list[str]. Define a key once and use it everywhere: the service
    compares values only with values of the same type.
    """

    name: str
    type: type[_T]

    def __post_init__(self) -> None:
        check_type("the name of an attribute", self.name, str, "a text", DefinitionError)
        if self.type not in _FIELDS:
            known = ", ".join(getattr(kind, "__name__", str(kind)) for kind in list(_FIELDS)[:-1])
            raise DefinitionError(
                f"attribute {self.name!r} has the type {self.type!r}, but can have {known} or list[str]"
            )

    def encode(self, value: _T) -> AttributeValue:
        """The value in the contract's form. Raises TypeError or ValueError when it is not of the key's type."""
        field, words = _FIELDS[self.type]
        if not _fits(self.type, value):
            error = ValueError if isinstance(value, self.type if field != "texts" else list) else TypeError
            raise error(f"attribute {self.name!r} is {value!r}, but must be {words}")
        encoded = AttributeValue()
        if isinstance(value, datetime):
            encoded.time.FromDatetime(value.astimezone(UTC))
        elif isinstance(value, list):
            encoded.texts.CopyFrom(TextList(values=value))
        else:
            setattr(encoded, field, value)
        return encoded

    def read(self, attributes: Mapping[str, AttributeValue]) -> _T | None:
        """The value among the attributes of a workflow, as `info.attributes`; None if there is none of the type."""
        field, _ = _FIELDS[self.type]
        encoded = attributes.get(self.name)
        if encoded is None or encoded.WhichOneof("value") != field:
            return None
        value: Any = getattr(encoded, field)
        if self.type is datetime:
            value = value.ToDatetime(UTC)
        elif field == "texts":
            value = list(value.values)
        return value  # type: ignore[no-any-return]

    # What lists are filtered on: `WorkflowFilter(attributes=[CUSTOMER.equals("ada"), TOTAL.at_least(100)])`.

    def equals(self, value: _T | str) -> AttributeFilter:
        """Workflows whose attribute is this. That of a list of texts is one that has this text."""
        return AttributeFilter(name=self.name, equal=self._compared(value))

    def differs_from(self, value: _T | str) -> AttributeFilter:
        """Workflows that have the attribute, but with another value."""
        return AttributeFilter(name=self.name, not_equal=self._compared(value))

    def below(self, value: _T | str) -> AttributeFilter:
        """Workflows whose attribute is smaller."""
        return AttributeFilter(name=self.name, less=self._compared(value))

    def at_most(self, value: _T | str) -> AttributeFilter:
        """Workflows whose attribute is smaller, or this."""
        return AttributeFilter(name=self.name, less_or_equal=self._compared(value))

    def above(self, value: _T | str) -> AttributeFilter:
        """Workflows whose attribute is larger."""
        return AttributeFilter(name=self.name, greater=self._compared(value))

    def at_least(self, value: _T | str) -> AttributeFilter:
        """Workflows whose attribute is larger, or this."""
        return AttributeFilter(name=self.name, greater_or_equal=self._compared(value))

    def one_of(self, *values: _T | str) -> AttributeFilter:
        """Workflows whose attribute is one of these."""
        alternatives = AttributeValues(values=[self._compared(value) for value in values])
        return AttributeFilter(name=self.name, one_of=alternatives)

    def exists(self) -> AttributeFilter:
        """Workflows that have the attribute, whatever its value."""
        return AttributeFilter(name=self.name, exists=True)

    def is_missing(self) -> AttributeFilter:
        """Workflows that do not have the attribute."""
        return AttributeFilter(name=self.name, exists=False)

    def _compared(self, value: Any) -> AttributeValue:
        """A list of texts is compared by its texts."""
        return Attribute(self.name, str).encode(value) if _FIELDS[self.type][0] == "texts" else self.encode(value)


def encode_attributes(attributes: Mapping[Attribute[Any], Any]) -> dict[str, AttributeValue]:
    """Keys and their values in the contract's form. Raises TypeError or ValueError, naming the attribute."""
    return {key.name: key.encode(value) for key, value in _checked(attributes).items()}


def attributes_command(attributes: Mapping[Attribute[Any], Any]) -> SetAttributes:
    """The command that gives workflows these values; None takes an attribute away."""
    checked = _checked(attributes)
    values = {key: value for key, value in checked.items() if value is not None}
    unset = sorted(key.name for key, value in checked.items() if value is None)
    return SetAttributes(set=encode_attributes(values), unset=unset)


def _checked(attributes: Mapping[Attribute[Any], Any]) -> Mapping[Attribute[Any], Any]:
    check_type("attributes", attributes, Mapping, "a mapping of Attribute keys to values")
    names = set()
    for key in attributes:
        check_type("the key of an attribute", key, Attribute, 'an Attribute, as Attribute("customer", str)')
        if key.name in names:
            raise ValueError(f"attribute {key.name!r} is given twice, by keys of two types")
        names.add(key.name)
    return attributes


def _fits(kind: Any, value: Any) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if kind is int:
        return isinstance(value, int) and value in _WHOLE_NUMBERS
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    if kind is datetime:
        return isinstance(value, datetime) and value.tzinfo is not None
    if kind is str:
        return isinstance(value, str)
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)
