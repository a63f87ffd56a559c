"""Calls of handlers by name: signals, queries and updates as clients and workflow code send them."""

from __future__ import annotations

from typing import Any

from romancy.v1.payload_pb2 import Payload

from romancy._methods import HandlerMethod
from romancy.converter import codec


def encode_call(kind: str, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, list[Payload]]:
    """The name of a handler and its arguments as payloads. Raises TypeError and ConversionError."""
    if isinstance(method, HandlerMethod):
        if method.handler.kind != kind:
            raise TypeError(f"{method!r} is no {kind}: it is a {method.handler.kind}")
        return method.name, method.encode_arguments(args, kwargs)
    if isinstance(method, str):
        if kwargs:
            raise TypeError(f"{kind} {method!r} is given by its name, so its arguments go by position")
        return method, [codec(Any).encode(value, f"argument {n} of {method}") for n, value in enumerate(args, 1)]
    raise TypeError(f"{method!r} is no {kind}: give a method decorated with @workflow.{kind}, or the name of one")


def decode_answer(method: Any, payload: Payload) -> Any:
    """What a handler returned. Raises ConversionError."""
    if isinstance(method, HandlerMethod):
        return method.decode_result(payload)
    return codec(Any).decode(payload, f"the answer of {method}")
