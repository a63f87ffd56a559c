"""Signature: a function's parameters and result as codecs. Arguments travel by position, and names are bound here."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from inspect import Parameter
from typing import Any, Final, get_type_hints

from romancy.v1.payload_pb2 import Payload

from romancy.converter import Codec, codec
from romancy.errors import ConversionError, DefinitionError

_VARIADIC: Final = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


class Signature:
    """What a function takes, without its first `skip` parameters, and what it returns."""

    def __init__(self, fn: Callable[..., Any], name: str, *, skip: int = 0, names: Mapping[str, Any] | None = None):
        """`names` are those that its annotations may use besides the globals of its module."""
        self.fn = fn
        self.name = name
        self._names = dict(names or {})
        try:
            parameters = list(inspect.signature(fn).parameters.values())[skip:]
        except (TypeError, ValueError) as error:
            raise DefinitionError(f"{name} has no signature that can be read: {error}") from error
        for parameter in parameters:
            if parameter.kind in _VARIADIC:
                bare = parameter.replace(annotation=Parameter.empty)
                raise DefinitionError(
                    f"{name} takes {bare}, but arguments travel by position: name each parameter, or take a list"
                )
        self.parameters: Final = tuple(parameters)
        self._plain = all(parameter.kind is not Parameter.KEYWORD_ONLY for parameter in parameters)
        self._bindable = inspect.Signature(parameters)

    @cached_property
    def hints(self) -> dict[str, Any]:
        """Annotations by name, `return` included. Raises DefinitionError when a name in them is not known."""
        try:
            return get_type_hints(self.fn, localns=self._names or None, include_extras=True)
        except Exception as error:
            raise DefinitionError(f"the annotations of {self.name} cannot be evaluated: {error}") from error

    def is_evaluable(self) -> bool:
        """Whether the names in the annotations are known yet; they may be defined further down in the module."""
        try:
            _ = self.hints
        except DefinitionError:
            return False
        return True

    @cached_property
    def codecs(self) -> tuple[Codec, ...]:
        """One for each parameter."""
        return tuple(self._codec(parameter.name) for parameter in self.parameters)

    @cached_property
    def result(self) -> Codec:
        """That of the return annotation."""
        return self._codec("return")

    @cached_property
    def _whats(self) -> tuple[str, ...]:
        return tuple(f"argument {parameter.name!r} of {self.name}" for parameter in self.parameters)

    def _codec(self, name: str) -> Codec:
        try:
            return codec(self.hints.get(name, Any))
        except ConversionError as error:
            raise DefinitionError(f"{self.name}, annotation of {name}: {error}") from error

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The arguments by position, defaults filled in. Raises TypeError as a call of the function would."""
        if self._plain and not kwargs and len(args) == len(self.parameters):
            return args
        try:
            bound = self._bindable.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}(): {error}") from None
        bound.apply_defaults()
        return tuple(bound.arguments[parameter.name] for parameter in self.parameters)

    def encode_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Payload]:
        """The arguments as payloads. Raises TypeError and ConversionError, naming the argument."""
        values = self.bind(args, kwargs)
        return [
            encoder.encode(value, what) for encoder, value, what in zip(self.codecs, values, self._whats, strict=True)
        ]

    def decode_arguments(self, payloads: Sequence[Payload]) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments for a call. Those that are missing at the end must have defaults."""
        if len(payloads) > len(self.parameters):
            raise ConversionError(f"{self.name} takes {len(self.parameters)} arguments, but {len(payloads)} came")
        values = [
            decoder.decode(payload, what)
            for decoder, payload, what in zip(self.codecs, payloads, self._whats, strict=False)
        ]
        for parameter in self.parameters[len(values) :]:
            if parameter.default is Parameter.empty:
                raise ConversionError(
                    f"{self.name} takes argument {parameter.name!r}, but only {len(payloads)} arguments came"
                )
        if self._plain:
            return values, {}
        keywords: dict[str, Any] = {}
        positional: list[Any] = []
        for parameter, value in zip(self.parameters, values, strict=False):
            if parameter.kind is Parameter.KEYWORD_ONLY:
                keywords[parameter.name] = value
            else:
                positional.append(value)
        return positional, keywords

    def encode_result(self, value: Any) -> Payload:
        """The result as a payload. Raises ConversionError."""
        return self.result.encode(value, f"the result of {self.name}")

    def decode_result(self, payload: Payload) -> Any:
        """The result of a payload. Raises ConversionError."""
        return self.result.decode(payload, f"the result of {self.name}")


def local_names(fn: Callable[..., Any]) -> dict[str, Any]:
    """The names around a function that is being defined inside of another one: its annotations may use them."""
    if "<locals>" not in getattr(fn, "__qualname__", ""):
        return {}
    defined = inspect.unwrap(fn).__globals__  # a decorator's function has those of another module
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals is defined:
            return dict(frame.f_locals)
        frame = frame.f_back
    return {}


def is_declaration(fn: Callable[..., Any]) -> bool:
    """Whether the function's body is only `...` or `raise NotImplementedError`, besides a docstring."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(fn)))
    except (OSError, TypeError, SyntaxError):
        return False  # no source, as in a shell: then there is a body
    function = tree.body[0]
    if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if len(body) != 1:
        return False
    match body[0]:
        case ast.Expr(ast.Constant(value=value)):
            return value is ...
        case ast.Raise(ast.Name("NotImplementedError") | ast.Call(ast.Name("NotImplementedError"))):
            return True
    return False
