"""Values come back as the types that annotations say, or with an error that names them."""

from __future__ import annotations

import enum
import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, Field, computed_field
from typing_extensions import TypedDict

from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import WorkflowSpec

from romancy import ConversionError
from romancy._failure import to_failure
from romancy.converter import MAX_PAYLOAD_BYTES, codec


class Color(enum.Enum):
    RED = "red"


@dataclass
class Item:
    name: str
    price: Decimal
    tags: list[str]


class Order(BaseModel):
    items: list[Item]
    at: datetime


class Extra(TypedDict):
    n: int


@dataclass
class Picky:
    """Raises whatever it likes about a value."""

    n: int

    def __post_init__(self) -> None:
        match self.n:
            case -1:
                raise TypeError("n must be positive")
            case -2:
                _ = {1: 1}[self.n]
            case -3:
                raise OSError("no database")


class Computed(BaseModel):
    n: int

    @computed_field
    def half(self) -> int:
        raise AttributeError("no half of it")


SECRET = "hunter" + str(2)  # not as it stands in the source, which stack traces show
PASSWORDS: dict[str, str] = {}
Known = Annotated[str, AfterValidator(lambda text: PASSWORDS[text])]
Odd = Annotated[str, AfterValidator(lambda text: [text])]
"""What its validator returns is not what it is annotated as."""


def round_trip(annotation: Any, value: Any) -> Any:
    encoded = codec(annotation).encode(value, "value")
    return codec(annotation).decode(Payload.FromString(encoded.SerializeToString()), "value")


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, 2**70),
        (str, "ünïcode \x00 \u2028"),
        (bool, True),
        (type(None), None),
        (Decimal, Decimal("1.10")),
        (datetime, datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=UTC)),
        (date, date(2024, 2, 29)),
        (timedelta, timedelta(days=1, microseconds=1)),
        (UUID, UUID(int=7)),
        (Color, Color.RED),
        (Item, Item("a", Decimal("0.1"), ["x"])),
        (Order, Order(items=[Item("a", Decimal(1), [])], at=datetime(2024, 1, 1, tzinfo=UTC))),
        (Extra, {"n": 1}),
        (dict[Color, tuple[int, str]], {Color.RED: (1, "a")}),
        (int | str | None, "5"),
        (Literal["a", "b"], "b"),
        (Annotated[int, Field(gt=0, examples=[1])], 5),
        (set[int], {1, 2}),
        (bytes, b"\xff\x00"),
        (bytes | None, b"\xff\x00"),
        (bytes | None, None),
        (list[bytes], [b"\xff"]),
        (WorkflowSpec, WorkflowSpec(workflow_type="t", priority=3)),
        (WorkflowSpec | None, None),
        (Any, {"a": [1, None, "x", 2.5]}),
    ],
)
def test_values_come_back_as_what_they_are_annotated_as(annotation: Any, value: Any) -> None:
    result = round_trip(annotation, value)
    assert result == value
    assert type(result) is type(value)


class Measured(BaseModel):
    value: float | None = None
    more: Any = None


@dataclass
class Weighed:
    value: float


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("annotation", "make"),
    [
        (float, float),
        (float | None, float),
        (Any, float),
        (Any, lambda number: {"a": [None, (number,)]}),
        (dict[str, float], lambda number: {"a": number}),
        (Measured, lambda number: Measured(value=number)),
        (Measured, lambda number: Measured(more={"a": number})),
        (Weighed, Weighed),
        (Any, Weighed),
    ],
)
def test_a_number_that_json_has_not_is_refused_wherever_it_is(annotation: Any, make: Any, number: float) -> None:
    with pytest.raises(ConversionError, match=r"x cannot be encoded: it has -?(NaN|nan|Infinity|inf), which JSON "):
        codec(annotation).encode(make(number), "x")


@pytest.mark.parametrize(
    ("annotation", "value"),
    [(str, "NaN"), (Any, ["Infinity", None, "null"]), (Measured, Measured(more="NaN")), (Decimal | None, None)],
)
def test_texts_that_only_look_like_such_a_number_are_sent(annotation: Any, value: Any) -> None:
    assert round_trip(annotation, value) == value


texts = st.text(st.characters(codec="utf-8"))
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts


@given(st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(texts, inner)))
def test_anything_that_json_has_comes_back_without_an_annotation(value: Any) -> None:
    assert round_trip(Any, value) == value


def test_json_is_readable_and_bytes_and_messages_are_binary() -> None:
    assert codec(Item).encode(Item("a", Decimal("0.1"), []), "x").json == '{"name":"a","price":"0.1","tags":[]}'
    assert codec(bytes).encode(b"\xff", "x").binary == b"\xff"
    message = codec(WorkflowSpec).encode(WorkflowSpec(), "x")
    assert dict(message.metadata) == {"encoding": "protobuf", "type": "romancy.v1.WorkflowSpec"}


def test_what_can_be_made_the_annotated_type_is_made_so() -> None:
    assert round_trip(list[int], (1, 2)) == [1, 2]
    assert round_trip(int, "5") == 5
    assert round_trip(Item, {"name": "a", "price": "1", "tags": []}) == Item("a", Decimal(1), [])


@pytest.mark.parametrize(
    ("annotation", "value", "text"),
    [
        (
            int,
            "five",
            "the fee cannot be encoded: a value of type str does not fit int: value: Input should be",
        ),
        (Item, Item("a", "x", []), "a value of type Item does not fit Item: price: Input should be a valid decimal"),  # type: ignore[arg-type]
        (Any, object(), "a value of type object does not fit"),
        (str, "\ud800", "surrogates not allowed"),
        (WorkflowSpec, Payload(), "a value of type Payload is no WorkflowSpec"),
        (
            Picky,
            {"n": -1},
            "a value of type dict does not fit Picky: TypeError: n must be positive (test_converter.py:",
        ),
        (Picky, {"n": -2}, "a value of type dict does not fit Picky: KeyError (test_converter.py:"),
        (
            Computed,
            Computed(n=1),
            "a value of type Computed does not fit Computed: Error serializing to JSON: AttributeError",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_its_type(annotation: Any, value: Any, text: str) -> None:
    with pytest.raises(ConversionError) as raised:
        codec(annotation).encode(value, "the fee")
    assert text in str(raised.value)


@pytest.mark.parametrize(
    ("annotation", "payload", "text"),
    [
        (int, Payload(json='"x"'), "the fee cannot be decoded: it does not fit int"),
        (int, Payload(json="{"), "Invalid JSON"),
        (int, Payload(), "Input should be a valid integer"),
        (int, Payload(binary=b"1", metadata={"encoding": "zip"}), "it is binary (encoding=zip), but int is expected"),
        (WorkflowSpec, Payload(binary=b"", metadata={"type": "x.Y"}), "but romancy.v1.WorkflowSpec is expected"),
        (WorkflowSpec, Payload(binary=b"\xff"), "cannot be decoded as romancy.v1.WorkflowSpec"),
        (WorkflowSpec, Payload(), "it is nothing (no metadata)"),
        (Picky, Payload(json='{"n": -1}'), "does not fit Picky: TypeError: n must be positive (test_converter.py:"),
        (
            Picky,
            Payload(json='{"n": -2}'),
            "the fee cannot be decoded: it does not fit Picky: KeyError (test_converter.py:",
        ),
        (
            list[Picky],
            Payload(json='[{"n": -3}]'),
            "does not fit list[tests.worker_sdk.test_converter.Picky]: OSError: ",
        ),
    ],
)
def test_what_cannot_be_decoded_is_named(annotation: Any, payload: Payload, text: str) -> None:
    with pytest.raises(ConversionError) as raised:
        codec(annotation).decode(payload, "the fee")
    assert text in str(raised.value)


def test_errors_do_not_show_the_value_which_may_be_secret() -> None:
    with pytest.raises(ConversionError) as raised:
        codec(int).decode(Payload(json='"hunter2"'), "password")
    assert "hunter2" not in str(raised.value)
    with pytest.raises(ConversionError) as raised:
        codec(Item).encode(Item("a", "hunter2", []), "password")  # type: ignore[arg-type]
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "convert",
    [
        lambda: codec(int).decode(Payload(json=f'"{SECRET}"'), "password"),
        lambda: codec(int).encode(SECRET, "password"),
        lambda: codec(Item).encode(Item("a", SECRET, []), "password"),  # type: ignore[arg-type]
        lambda: codec(Odd).encode(SECRET.encode(), "password"),
        lambda: codec(Known).decode(Payload(json=f'"{SECRET}"'), "password"),
    ],
)
def test_nothing_that_is_recorded_of_an_error_has_the_value(convert: Callable[[], object]) -> None:
    with pytest.raises(ConversionError) as raised:
        convert()
    assert SECRET.encode() not in to_failure(raised.value).SerializeToString()
    assert SECRET not in "".join(traceback.format_exception(raised.value))


def test_a_missing_value_is_read_as_none() -> None:
    assert codec(int | None).decode(Payload(), "x") is None
    assert codec(Any).decode(Payload(), "x") is None


@pytest.mark.parametrize(
    ("annotation", "value"), [(str, "x" * MAX_PAYLOAD_BYTES), (bytes, b"x" * (MAX_PAYLOAD_BYTES + 1))]
)
def test_values_that_are_too_large_say_what_to_do(annotation: Any, value: Any) -> None:
    with pytest.raises(ConversionError, match="at most 2097152 are allowed; keep the value in a store of your own"):
        codec(annotation).encode(value, "the report")


def test_a_codec_is_made_once() -> None:
    assert codec(dict[str, Item]) is codec(dict[str, Item])


def test_what_cannot_be_annotated_is_refused() -> None:
    class Opaque:
        pass

    with pytest.raises(ConversionError, match="no value can be annotated as"):
        codec(Opaque)
