"""Methods of class workflows that others may call by name."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from romancy.v1.payload_pb2 import Payload

from romancy._handlers import Kind, handler_of
from romancy.errors import DefinitionError

P = ParamSpec("P")
R = TypeVar("R", covariant=True)


class HandlerMethod(Generic[P, R]):
    """A method that others may call by name: a signal, a query or an update."""

    def __init__(self, kind: Kind, fn: Callable[Concatenate[Any, P], Any], name: str | None) -> None:
        self.handler = handler_of(kind, fn, name, skip=1)
        self.name = self.handler.name
        self.__doc__ = fn.__doc__

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type[Any]) -> Callable[P, R]: ...
    def __get__(self, instance: Any, owner: type[Any]) -> Any:
        return self if instance is None else functools.partial(self.handler.fn, instance)

    def __repr__(self) -> str:
        return f"<{self.handler.kind} {self.name}>"

    def encode_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Payload]:
        """What a client gives, as payloads. Raises TypeError and ConversionError, naming the argument."""
        return self.handler.signature.encode_arguments(args, kwargs)

    def decode_result(self, payload: Payload) -> R:
        """What a client gets. Raises ConversionError."""
        result: R = self.handler.signature.decode_result(payload)
        return result


class UpdateMethod(HandlerMethod[P, R]):
    """A method that others may call by name to change something. Made by `@workflow.update`."""

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type[Any]) -> Callable[P, Any]: ...  # async ones return a coroutine
    def __get__(self, instance: Any, owner: type[Any]) -> Any:
        return super().__get__(instance, owner)

    def validator(self, fn: Callable[Concatenate[Any, P], None]) -> Callable[Concatenate[Any, P], None]:
        """Have `fn` called first, with the same arguments: what it raises refuses the update. It may only read."""
        if inspect.iscoroutinefunction(fn):
            raise DefinitionError(
                f"the validator of {self.name} must be a plain function: it may not wait for anything"
            )
        self.handler = dataclasses.replace(self.handler, validator=fn)
        return fn
