"""Workflow: what `@workflow` makes of a function, and what workflow code may call besides activities and asyncio."""

from __future__ import annotations

import inspect
import uuid
import warnings
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from random import Random
from types import MappingProxyType
from typing import Any, Concatenate, Final, Generic, ParamSpec, Protocol, TypeVar, overload

from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import AttributeValue

from romancy._checks import check_type
from romancy._failure import from_failure
from romancy._lint import lint
from romancy._loop import WorkflowLoop, running_loop
from romancy._signature import Signature, local_names
from romancy.activity import ActivityDefinition
from romancy.attributes import Attribute, attributes_command
from romancy.errors import CompensationError, DefinitionError
from romancy.options import Seconds, to_duration

P = ParamSpec("P")
T = TypeVar("T", str, int, float, bool, datetime, list[str])
R = TypeVar("R", covariant=True)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class DeterminismWarning(UserWarning):
    """A workflow's source has something that would be another one on replay, or that never runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowInfo:
    """What a run may know about itself."""

    workflow_id: str
    run_id: str
    workflow_type: str
    task_queue: str
    start_time: datetime
    priority: int
    headers: Mapping[str, str]


def from_ms(time_ms: int) -> datetime:
    """A time in ms since 1970, in UTC. Exact: no float is involved."""
    return _EPOCH + timedelta(milliseconds=time_ms)


class WorkflowContext:
    """What workflow code may call. The first argument of every workflow function."""

    def __init__(
        self, loop: WorkflowLoop, info: WorkflowInfo, attributes: Mapping[str, AttributeValue] = MappingProxyType({})
    ) -> None:
        self._loop = loop
        self._attributes = dict(attributes)
        self.info = info

    @property
    def is_replaying(self) -> bool:
        """True while the code does again what is recorded: for logs, never to decide anything by."""
        return self._loop.replaying

    def now(self) -> datetime:
        """The time of the last thing that happened to the run, in UTC. The same on replay."""
        return from_ms(self._loop.now_ms)

    def random(self) -> Random:
        """The run's own generator of random numbers: `ctx.random().choice(...)`. The same on replay."""
        return self._random

    def uuid4(self) -> uuid.UUID:
        """A new random id. The same on replay."""
        return uuid.UUID(int=self._uuids.getrandbits(128), version=4)

    # One stream for each purpose: a change that draws once more from one does not shift the other.

    @cached_property
    def _random(self) -> Random:
        return Random(f"{self.info.run_id}/random")

    @cached_property
    def _uuids(self) -> Random:
        return Random(f"{self.info.run_id}/uuid4")

    def set_attributes(self, attributes: Mapping[Attribute[Any], Any]) -> None:
        """Change the workflow's attributes: `ctx.set_attributes({STAGE: "paid", TOTAL: 99.9})`. None takes one away.

        Those that are not named stay. Raises TypeError or ValueError for a value that is not of its key's type.
        """
        command = attributes_command(attributes)
        if command.set or command.unset:
            self._loop.machine.set_attributes(command)
        for name in command.unset:
            self._attributes.pop(name, None)
        self._attributes.update(command.set)

    def attribute(self, key: Attribute[T]) -> T | None:
        """The attribute as the code set it last, or as the workflow was started; None if there is none of the type."""
        return key.read(self._attributes)

    async def sleep(self, duration: Seconds) -> None:
        """Wait durably. A duration of zero or less is over at once, and recorded all the same."""
        await self._loop.run_timer(to_duration(duration))

    async def sleep_until(self, time: datetime) -> None:
        """Wait durably until a time, which must have a time zone. One in the past is reached at once."""
        if time.tzinfo is None:
            raise ValueError(f"{time!r} has no time zone; use ctx.now() or datetime(..., tzinfo=UTC)")
        await self._loop.run_timer(to_duration(time - self.now()))

    def compensate_with(self, compensation: ActivityDefinition[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """Register a compensation that belongs to no activity: it runs, in its turn, when the workflow is undone."""
        self._loop.machine.register_compensation(compensation.compensation_command(args, kwargs))

    async def compensate(self) -> None:
        """Undo now, newest first, what is registered, and go on when that is done.

        Raises CompensationError when a compensation failed for good; the others have run all the same.
        """
        finished = (await self._loop.run_compensate()).compensate_finished
        if finished.HasField("failure"):
            raise from_failure(CompensationError, finished.failure)


class WorkflowDefinition(Generic[P, R]):
    """A function that can be run durably. Made by `@workflow`; inside of another workflow it can be called inline."""

    fn: Callable[Concatenate[WorkflowContext, P], Coroutine[Any, Any, R]]

    def __init__(
        self, fn: Callable[..., Any], *, name: str | None = None, names: Mapping[str, Any] | None = None
    ) -> None:
        if not inspect.isroutine(fn):
            raise DefinitionError(f"{fn!r} cannot be made a workflow: it must be an async function")
        if name is not None:
            check_type(f"name of {fn.__name__}", name, str, "a text", DefinitionError)
        self.fn = fn
        self.name = name or fn.__name__
        if not inspect.iscoroutinefunction(fn):
            raise DefinitionError(f"the workflow {self.name} must be an async function: write `async def`")
        if not inspect.signature(fn).parameters:
            raise DefinitionError(f"the workflow {self.name} must take the WorkflowContext as its first parameter")
        self._signature = Signature(fn, self.name, skip=1, names=names)
        self.__doc__ = fn.__doc__
        self.__name__ = fn.__name__
        self.__qualname__ = fn.__qualname__
        self.__module__ = fn.__module__

    def __call__(self, ctx: WorkflowContext, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        running_loop(f"the workflow {self.name}", "start it by a client, or call it inline from another workflow")
        return self.fn(ctx, *args, **kwargs)

    def __repr__(self) -> str:
        return f"<workflow {self.name}>"

    def check(self) -> None:
        """Raise DefinitionError when annotations cannot be used; better when a worker starts than when a task comes.

        The source is read for what would differ on replay, which is warned of (DeterminismWarning).
        """
        _ = self._signature.codecs, self._signature.result
        warned = self.fn.__globals__.setdefault("__warningregistry__", {})
        for finding in lint(self.fn):
            warnings.warn_explicit(finding.text, DeterminismWarning, finding.filename, finding.line, registry=warned)

    def encode_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Payload]:
        """What a client gives, as payloads. Raises TypeError and ConversionError, naming the argument."""
        return self._signature.encode_arguments(args, kwargs)

    def decode_arguments(self, payloads: Sequence[Payload]) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments for `fn`, after the context. Raises ConversionError."""
        return self._signature.decode_arguments(payloads)

    def encode_result(self, value: Any) -> Payload:
        """What `fn` returned, as a payload. Raises ConversionError."""
        return self._signature.encode_result(value)

    def decode_result(self, payload: Payload) -> R:
        """What a client gets. Raises ConversionError."""
        result: R = self._signature.decode_result(payload)
        return result


class WorkflowDecorator(Protocol):
    """What `@workflow(...)` returns."""

    def __call__(
        self, fn: Callable[Concatenate[WorkflowContext, P], Coroutine[Any, Any, R]], /
    ) -> WorkflowDefinition[P, R]: ...


@overload
def workflow(fn: Callable[Concatenate[WorkflowContext, P], Coroutine[Any, Any, R]], /) -> WorkflowDefinition[P, R]: ...
@overload
def workflow(*, name: str | None = None) -> WorkflowDecorator: ...
def workflow(fn: Callable[..., Any] | None = None, /, *, name: str | None = None) -> Any:
    """Make a workflow of an async function whose first parameter is a WorkflowContext."""

    def decorate(fn: Callable[..., Any]) -> WorkflowDefinition[..., Any]:
        return WorkflowDefinition(fn, name=name, names=local_names(fn))

    return decorate if fn is None else decorate(fn)


@contextmanager
def unguarded() -> Iterator[None]:
    """Let workflow code do what is refused otherwise, such as reading a file that never changes. You answer for it."""
    loop = running_loop("unguarded()", "it is needed nowhere else")
    loop.unguarded += 1
    try:
        yield
    finally:
        loop.unguarded -= 1
