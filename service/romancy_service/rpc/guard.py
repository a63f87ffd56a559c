"""Guard: every call passes here, unary ones and streams alike. It says who calls, checks that they may, takes in only
messages that can be read, and turns whatever a method raises into an answer.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeAlias

import grpc
import structlog
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from romancy_service.core.limits import Limits
from romancy_service.errors import InternalError, InvalidField, PermissionDenied, RomancyError, Unauthenticated
from romancy_service.rpc.auth import CALLER, PUBLIC, Access, Grant
from romancy_service.rpc.errors import hidden, status_details, status_of, status_text
from romancy_service.rpc.validate import DEFAULT_NAMESPACE

_log = structlog.get_logger("romancy.rpc")

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic only in its stubs
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]

WORKER_STREAM: Final = "/romancy.v1.WorkerService/Connect"
"""The one method that takes in messages larger than a client's."""
_SERVER_FAULTS: Final = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """Stands for a message that is refused before it was looked at."""

    error: InvalidField


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic only in its stubs
    """The one interceptor."""

    def __init__(self, access: Access | None, limits: Limits) -> None:
        self._access = access
        self._limits = limits
        self._guarded: dict[str, Handler] = {}

    async def intercept_service(self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The method's handler, guarded; None when there is no such method (gRPC then says UNIMPLEMENTED)."""
        method = handler_call_details.method
        if method not in self._guarded:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            self._guarded[method] = self._guard(method, handler)
        return self._guarded[method]

    def _guard(self, method: str, handler: Handler) -> Handler:
        streaming = (handler.request_streaming, handler.response_streaming)
        arity = "_".join("stream" if each else "unary" for each in streaming)
        behaviour = getattr(handler, arity)
        make = getattr(grpc, f"{arity}_rpc_method_handler")
        call: Any
        if inspect.isasyncgenfunction(behaviour):

            async def call(request: Any, context: Context) -> AsyncIterator[Any]:
                async with (
                    self._answering(method, context) as grant,
                    aclosing(behaviour(_readable(request, grant), context)) as responses,
                ):
                    async for response in responses:
                        yield response
        else:

            async def call(request: Any, context: Context) -> Any:
                async with self._answering(method, context) as grant:
                    return await behaviour(_readable(request, grant), context)

        decoder = self._decoder(method, handler.request_deserializer)
        guarded: Handler = make(call, decoder, handler.response_serializer)
        return guarded

    def _decoder(self, method: str, decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
        limits = self._limits
        most = limits.connect_message_bytes if method == WORKER_STREAM else limits.client_message_bytes

        def decode_or_refuse(data: bytes) -> Any:
            if len(data) > most:
                problem = f"has {len(data)} bytes, at most {most} are allowed"
                return _Unreadable(
                    InvalidField("request", problem, value=len(data), limit=most, reason="MESSAGE_TOO_LARGE")
                )
            try:
                return decode(data) if decode is not None else data
            except Exception as error:  # whatever the decoder raises, it is the message that is at fault
                return _Unreadable(InvalidField("request", f"cannot be read: {error}"[:200], "send a valid message"))

        return decode_or_refuse

    @asynccontextmanager
    async def _answering(self, method: str, context: Context) -> AsyncIterator[Grant | None]:
        """Know the caller inside the block; answer with the status of what the block raises."""
        grant = None
        try:
            if self._access is not None and method not in PUBLIC:
                grant = self._access.authenticate(context.invocation_metadata() or (), context.auth_context())
                grant.check_method(method)
                CALLER.set(grant)
            yield grant
        except RomancyError as error:
            await _abort(method, context, grant, error)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await _abort(method, context, grant, InternalError(f"{type(error).__name__} was raised"), cause=error)


async def _abort(
    method: str, context: Context, grant: Grant | None, error: RomancyError, cause: Exception | None = None
) -> None:
    """Log in one line what happened, and end the call. What is our fault is named by a number only, not told."""
    code = status_of(error)
    principal = grant.principal if grant is not None else ""
    facts = {"method": method, "principal": principal, "code": code.name, "reason": error.reason, "error": str(error)}
    if code is grpc.StatusCode.INTERNAL:
        error = hidden(error, cause, method)
    elif isinstance(error, Unauthenticated | PermissionDenied):
        _log.warning("call refused", peer=context.peer(), **facts)
    elif code in _SERVER_FAULTS:
        _log.warning("call failed", **facts)
    else:
        _log.info("call refused", **facts)
    await context.abort(code, status_text(error), status_details(error))


def _readable(request: Any, grant: Grant | None) -> Any:
    """The request, or each message of the stream as it comes, if it could be read and its namespaces are granted."""
    if isinstance(request, Message | _Unreadable):
        return _check(request, grant)
    return _Readable(aiter(request), grant)


class _Readable:
    """A stream of requests. No generator, since that would be closed by a reader that stops waiting."""

    def __init__(self, messages: AsyncIterator[Message | _Unreadable], grant: Grant | None) -> None:
        self._messages = messages
        self._grant = grant

    def __aiter__(self) -> _Readable:
        return self

    async def __anext__(self) -> Message:
        return _check(await anext(self._messages), self._grant)


def _check(message: Message | _Unreadable, grant: Grant | None) -> Message:
    if isinstance(message, _Unreadable):
        raise message.error
    if grant is not None:
        for path in namespace_paths(message.DESCRIPTOR):
            for namespace in _values(message, path):
                grant.check_namespace(namespace or DEFAULT_NAMESPACE)
    return message


@lru_cache
def namespace_paths(descriptor: Descriptor, above: frozenset[str] = frozenset()) -> tuple[tuple[str, ...], ...]:
    """Where a message of this type names namespaces, at any depth: paths of field names."""
    if descriptor.full_name in above:
        return ()
    paths: list[tuple[str, ...]] = []
    for field in descriptor.fields:
        if field.name == "namespace" and field.type == field.TYPE_STRING:
            paths.append((field.name,))
        elif field.message_type is not None:
            inner = namespace_paths(field.message_type, above | {descriptor.full_name})
            paths.extend((field.name, *path) for path in inner)
    return tuple(paths)


def _values(message: Any, path: tuple[str, ...]) -> Iterator[str]:
    name, rest = path[0], path[1:]
    value = getattr(message, name)
    if not rest:
        yield value
    elif isinstance(value, Message):
        if message.HasField(name):
            yield from _values(value, rest)
    else:
        for item in value:
            yield from _values(item, rest)
