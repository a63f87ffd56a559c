"""Handlers: what others may say to a run's code, and what they said before anybody listened.

Signals wait until there is a handler of their name. An update is refused when there is none at the moment it arrives,
and a query when there is none by now.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Literal

from romancy.v1.command_pb2 import CompleteUpdate
from romancy.v1.history_pb2 import UpdateReceived
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import Signal

from romancy._failure import to_failure
from romancy._loop import WorkflowLoop
from romancy._signature import Signature, local_names
from romancy.errors import ApplicationError, ConversionError, DefinitionError, bug_in

Kind = Literal["signal", "query", "update"]
handling: Final = ContextVar("handling", default="")
"""The handler whose code runs; empty: it is the workflow function's."""
_log: Final = logging.getLogger("romancy.workflow")


class UnknownHandler(ApplicationError):
    """A run was asked something that its code has no handler for."""


@dataclass(frozen=True, slots=True)
class Handler:
    """One function that others may call by name."""

    kind: Kind
    name: str
    fn: Callable[..., Any]
    signature: Signature
    validator: Callable[..., None] | None = None


def handler_of(
    kind: Kind, fn: Callable[..., Any], name: str | None, validator: Callable[..., None] | None = None, *, skip: int = 0
) -> Handler:
    """A function as a handler, without its first `skip` parameters. Raises DefinitionError."""
    name = name or fn.__name__
    if kind == "query" and inspect.iscoroutinefunction(fn):
        raise DefinitionError(f"the query {name} must be a plain function: it may not wait for anything")
    return Handler(kind, name, fn, Signature(fn, name, skip=skip, names=local_names(fn)), validator)


class Handlers:
    """The handlers of one run. Its methods are called inside of the run's loop."""

    def __init__(self, loop: WorkflowLoop) -> None:
        self._loop = loop
        self._handlers: dict[tuple[Kind, str], Handler] = {}
        self._unread: list[Signal] = []
        self._running: dict[int, str] = {}
        self._count = 0

    def add(self, handler: Handler) -> None:
        """Answer by this from now on; signals of its name that wait are given to it, in their order."""
        if (handler.kind, handler.name) in self._handlers:
            raise DefinitionError(f"the run has a {handler.kind} {handler.name!r} already: give one another name")
        self._handlers[handler.kind, handler.name] = handler
        if handler.kind == "signal":
            waiting = [signal for signal in self._unread if signal.name == handler.name]
            self._unread = [signal for signal in self._unread if signal.name != handler.name]
            for signal in waiting:
                self.signal(signal)

    @property
    def unread(self) -> Sequence[Signal]:
        """Signals that no handler took."""
        return self._unread

    @property
    def running(self) -> Sequence[str]:
        """The handlers that were given something and have not ended, oldest first."""
        return list(self._running.values())

    def _begin(self, name: str, call: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        self._count += 1
        self._running[self._count] = name
        self._loop.create_task(self._run(self._count, call, *args), name=name)

    async def _run(self, number: int, call: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        handling.set(self._running[number])
        try:
            await call(*args)
        finally:
            del self._running[number]

    def signal(self, signal: Signal) -> None:
        """Somebody sent a signal."""
        handler = self._handlers.get(("signal", signal.name))
        if handler is None:
            self._unread.append(signal)
            return
        try:
            args, kwargs = handler.signature.decode_arguments(signal.arguments)
        except ConversionError as error:
            # The sender is at fault, and gone: the run must not pay for it.
            if not self._loop.replaying:
                _log.error("signal %r of %r dropped: %s", signal.name, signal.identity, error)
            return
        self._begin(f"signal {signal.name}", self._call_signal, handler, args, kwargs)

    async def _call_signal(self, handler: Handler, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        try:
            await _called(handler.fn, args, kwargs)
        except (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # Nobody else will ever see it: a run that goes on as if nothing were wrong would hide it.
            if (bug := bug_in(error)) is not None:
                self._loop.machine.fail(bug)
            else:
                self._loop.fail_run(error)

    def update(self, received: UpdateReceived) -> None:
        """Somebody asks for an update."""
        self._begin(f"update {received.name}", self._call_update, received)

    async def _call_update(self, received: UpdateReceived) -> None:
        machine = self._loop.machine
        try:
            handler = self._find("update", received.name)
            args, kwargs = handler.signature.decode_arguments(received.arguments)
            if handler.validator is not None:
                with self._loop.only_reading("a validator"):
                    handler.validator(*args, **kwargs)
        except Exception as error:
            machine.reject_update(received.update_id, to_failure(error))
            return
        machine.accept_update(received.update_id)
        answer = CompleteUpdate(update_id=received.update_id)
        try:
            result = await _called(handler.fn, args, kwargs)
            answer.result.CopyFrom(handler.signature.encode_result(result))
        except (GeneratorExit, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            if (bug := bug_in(error)) is not None:
                self._loop.machine.fail(bug)
                return
            answer.failure.CopyFrom(to_failure(error))
        machine.complete_update(answer)

    def query(self, name: str, arguments: Sequence[Payload]) -> Payload:
        """Answer a query. Raises what its handler raises, UnknownHandler and ConversionError."""
        handler = self._find("query", name)
        args, kwargs = handler.signature.decode_arguments(arguments)
        with self._loop.only_reading("a query"):
            return handler.signature.encode_result(handler.fn(*args, **kwargs))

    def _find(self, kind: Kind, name: str) -> Handler:
        handler = self._handlers.get((kind, name))
        if handler is None:
            known = ", ".join(sorted(each for other, each in self._handlers if other == kind)) or "none"
            raise UnknownHandler(f"the run has no {kind} {name!r}; it has {known}", non_retryable=True)
        return handler


async def _called(fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    result: Any | Coroutine[Any, Any, Any] = fn(*args, **kwargs)
    return await result if inspect.isawaitable(result) else result
