"""Converter: values <-> payloads. A codec is made once for each annotation and then kept."""

from __future__ import annotations

import json
import math
import re
from functools import lru_cache
from traceback import walk_tb
from types import NoneType, UnionType
from typing import Any, Final, Union, get_args, get_origin

from google.protobuf.message import DecodeError, Message
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from romancy.v1.payload_pb2 import Payload

from romancy._frames import place
from romancy.errors import ConversionError, WorkflowTaskError

MAX_PAYLOAD_BYTES: Final = 2 * 1024 * 1024
"""The service refuses larger ones. Checked here, so that the error names the value."""

# JSON has no bytes. It has no NaN and no Infinity either: they are written as such here, so as to be found and refused.
# Types with a configuration of their own (models, dataclasses) keep it.
_CONFIG: Final = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants")
_PLAIN: Final = (str, int, bool, NoneType)
_NULL: Final = b"null"
_NOT_FINITE: Final = re.compile(rb"NaN|Infinity|null")
"""Where none of these is, all numbers are finite. Models and dataclasses write null instead of NaN."""
_INPUT_VALUE: Final = re.compile(r"(?<=input_value=)(.*(?=, input_type=)|.*)")
"""The value in pydantic's warnings; from the first one to the last, since values may hold anything."""


class Codec:
    """Encodes and decodes values of one annotation as JSON, by pydantic's rules."""

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(annotation, config=_CONFIG)
        except PydanticUserError as error:
            if error.code != "type-adapter-config-unused":
                raise ConversionError(f"no value can be annotated as {_name(annotation)}: {error}") from error
            adapter = TypeAdapter(annotation)
        self._to_json = adapter.serializer.to_json
        self._from_json = adapter.validator.validate_json
        self._to_python = adapter.serializer.to_python
        self._plain: Any = annotation if annotation in _PLAIN else None

    def encode(self, value: Any, what: str) -> Payload:
        """The payload of `value`. Raises ConversionError, naming `what`, when it does not fit the annotation."""
        try:
            try:
                # Making errors of warnings costs more than the encoding; what has exactly the plain type gets none.
                plain = type(value) is self._plain
                data = self._to_json(value) if plain else self._to_json(value, warnings="error")
            except PydanticSerializationError:
                data = self._encode_coerced(value)
            if data != _NULL and _NOT_FINITE.search(data) and type(value) is not str:
                self._refuse_not_finite(data, value)
        except _NotFinite as found:
            raise ConversionError(
                f"{what} cannot be encoded: it has {found}, which JSON has not; give None or a text instead"
            ) from None
        except WorkflowTaskError:
            raise
        except Exception as error:
            raise ConversionError(
                f"{what} cannot be encoded: a value of type {_name(type(value))} does not fit "
                f"{_name(self.annotation)}: {_reason(error)}"
            ) from None  # pydantic's own error shows the value, which may be secret
        _check_size(len(data), what)
        return Payload(json=data.decode())

    def _refuse_not_finite(self, data: bytes, value: Any) -> None:
        json.loads(data, parse_constant=_refuse_constant)
        if _NULL in data and (number := _not_finite(self._to_python(value, warnings=False))) is not None:
            _refuse_constant(str(number))

    def _encode_coerced(self, value: Any) -> bytes:
        """Encode what is not of the annotated type but can be made so, such as a tuple for a list."""
        # By way of JSON, since that is how it will be read: models that were built unchecked are checked as well.
        fitting = self._from_json(self._to_json(value, warnings=False))
        data: bytes = self._to_json(fitting, warnings="error")
        return data

    def decode(self, payload: Payload, what: str) -> Any:
        """The value of `payload`. Raises ConversionError, naming `what`, when it does not fit the annotation."""
        kind = payload.WhichOneof("data")
        if kind == "binary":
            raise ConversionError(
                f"{what} cannot be decoded: it is binary ({_metadata(payload)}), but {_name(self.annotation)} is "
                "expected; annotate it as bytes or as its protobuf message"
            )
        try:
            return self._from_json(payload.json if kind else _NULL)
        except WorkflowTaskError:
            raise
        except Exception as error:  # a validator of the user's may raise anything, and the data are at fault, not it
            raise ConversionError(
                f"{what} cannot be decoded: it does not fit {_name(self.annotation)}: {_reason(error)}"
            ) from None


class BytesCodec(Codec):
    """Sends bytes as they are; anything else as JSON."""

    def encode(self, value: Any, what: str) -> Payload:
        if not isinstance(value, bytes):
            return super().encode(value, what)
        _check_size(len(value), what)
        return Payload(binary=value)

    def decode(self, payload: Payload, what: str) -> Any:
        if payload.WhichOneof("data") == "binary":
            return payload.binary
        return super().decode(payload, what)


class MessageCodec(Codec):
    """Sends protobuf messages in their own encoding, and names their type."""

    def __init__(self, annotation: Any, message_type: type[Message]) -> None:
        self.annotation = annotation
        self._message_type = message_type
        self._optional = annotation is not message_type

    def encode(self, value: Any, what: str) -> Payload:
        if value is None and self._optional:
            return Payload(json="null")
        if not isinstance(value, self._message_type):
            raise ConversionError(
                f"{what} cannot be encoded: a value of type {_name(type(value))} is no {_name(self._message_type)}"
            )
        data = value.SerializeToString(deterministic=True)
        _check_size(len(data), what)
        return Payload(binary=data, metadata={"encoding": "protobuf", "type": self._message_type.DESCRIPTOR.full_name})

    def decode(self, payload: Payload, what: str) -> Any:
        kind = payload.WhichOneof("data")
        if self._optional and (kind is None or payload.json == "null"):
            return None
        expected = self._message_type.DESCRIPTOR.full_name
        if kind != "binary" or payload.metadata.get("type", expected) != expected:
            raise ConversionError(
                f"{what} cannot be decoded: it is {kind or 'nothing'} ({_metadata(payload)}), "
                f"but {expected} is expected"
            )
        try:
            return self._message_type.FromString(payload.binary)
        except DecodeError as error:
            raise ConversionError(f"{what} cannot be decoded as {expected}: {error}") from error


class AnyCodec(BytesCodec):
    """For what has no annotation: bytes and messages as they are, else whatever pydantic can make JSON of."""

    def encode(self, value: Any, what: str) -> Payload:
        if isinstance(value, Message):
            return MessageCodec(type(value), type(value)).encode(value, what)
        return super().encode(value, what)


def codec(annotation: Any) -> Codec:
    """The codec for an annotation; the same one each time."""
    try:
        return _cached(annotation)
    except TypeError:  # unhashable, as Annotated with a list
        return _make(annotation)


def _make(annotation: Any) -> Codec:
    if annotation is Any or annotation is object:
        return AnyCodec(Any)
    own = getattr(get_origin(annotation) or annotation, "__romancy_codec__", None)
    if own is not None:
        made: Codec = own(annotation)
        return made
    plain = _without_none(annotation)
    if plain is bytes:
        return BytesCodec(annotation)
    if isinstance(plain, type) and issubclass(plain, Message):
        return MessageCodec(annotation, plain)
    return Codec(annotation)


_cached = lru_cache(maxsize=4096)(_make)


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        others = [argument for argument in get_args(annotation) if argument is not NoneType]
        if len(others) == 1:
            return others[0]
    return annotation


class _NotFinite(Exception):
    """A number that JSON has not."""


def _refuse_constant(name: str) -> Any:
    raise _NotFinite(name)


def _not_finite(value: Any) -> float | None:
    """The first number in a value that is not finite."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case float() as number if not math.isfinite(number):
                return number
            case dict() as named:
                waiting += named.values()
            case list() | tuple() | set() | frozenset() as many:
                waiting += many
    return None


def _check_size(size: int, what: str) -> None:
    if size > MAX_PAYLOAD_BYTES:
        raise ConversionError(
            f"{what} is {size} bytes long, at most {MAX_PAYLOAD_BYTES} are allowed; "
            "keep the value in a store of your own and pass on where it is"
        )


def _name(annotation: Any) -> str:
    return annotation.__qualname__ if isinstance(annotation, type) else str(annotation)


def _metadata(payload: Payload) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(payload.metadata.items())) or "no metadata"


def _reason(error: Exception) -> str:
    """What is said against a value, in one line, without the value: errors are logged, values may be secret."""
    if isinstance(error, PydanticSerializationError):
        return _INPUT_VALUE.sub("...", " ".join(str(error).split()), count=1)
    if not isinstance(error, ValidationError):
        # What is not found, a LookupError names: that is the value.
        said = type(error).__qualname__ if isinstance(error, LookupError) else f"{type(error).__qualname__}: {error}"
        frame, line = list(walk_tb(error.__traceback__))[-1]
        return f"{' '.join(said.split())} ({place(frame.f_code, line)})"
    problems = [
        f"{'.'.join(map(str, problem['loc'])) or 'value'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_input=False)[:3]
    ]
    return "; ".join(problems)
