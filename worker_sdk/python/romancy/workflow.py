"""Workflow: what `@workflow` makes of a function or a class."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Concatenate, Final, Generic, ParamSpec, Protocol, TypeVar, overload

from romancy.v1.command_pb2 import Compensation
from romancy.v1.payload_pb2 import Payload

from romancy._checks import check_type
from romancy._handlers import Handler, Handlers
from romancy._lint import lint
from romancy._loop import running_loop
from romancy._methods import HandlerMethod, UpdateMethod
from romancy._signature import Signature, local_names
from romancy.activity import ActivityDefinition, undoing
from romancy.context import WorkflowContext
from romancy.converter import Codec
from romancy.errors import DefinitionError

P = ParamSpec("P")
R = TypeVar("R", covariant=True)
_T = TypeVar("_T")


class DeterminismWarning(UserWarning):
    """A workflow's source has something that would be another one on replay, or that never runs."""


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
        self.handlers: Sequence[Handler] = ()
        self.__doc__ = fn.__doc__
        self.__name__ = fn.__name__
        self.__qualname__ = fn.__qualname__
        self.__module__ = fn.__module__

    def __call__(self, ctx: WorkflowContext, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        running_loop(f"the workflow {self.name}", "start it by a client, or call it inline from another workflow")
        return self.fn(ctx, *args, **kwargs)

    def __repr__(self) -> str:
        return f"<workflow {self.name}>"

    def begin(self, context: WorkflowContext, handlers: Handlers) -> Callable[P, Coroutine[Any, Any, R]]:
        """The function of one run, with its handlers in place."""
        return functools.partial(self.fn, context)

    def check(self) -> None:
        """Raise DefinitionError when annotations cannot be used; better when a worker starts than when a task comes.

        The source is read for what would differ on replay, which is warned of (DeterminismWarning).
        """
        _ = self._signature.codecs, self._signature.result
        warned = self.fn.__globals__.setdefault("__warningregistry__", {})
        for fn in (self.fn, *(handler.fn for handler in self.handlers)):
            for finding in lint(fn):
                warnings.warn_explicit(
                    finding.text, DeterminismWarning, finding.filename, finding.line, registry=warned
                )

    @property
    def codecs(self) -> Sequence[Codec]:
        """How its arguments travel. Raises DefinitionError."""
        return self._signature.codecs

    def encode_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Payload]:
        """What a client gives, as payloads. Raises TypeError and ConversionError, naming the argument."""
        return self._signature.encode_arguments(args, kwargs)

    def undoing(self, compensation: ActivityDefinition[..., Any]) -> Compensation:
        """How a compensation undoes it, where it is a child. Raises DefinitionError."""
        return undoing(self.name, self._signature, compensation, always=False)

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


class ClassWorkflow(WorkflowDefinition[P, R]):
    """A method `run` of a class, each run of which has an instance of its own. Made by `@workflow.run`."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        if not inspect.iscoroutinefunction(fn):
            raise DefinitionError(f"{fn!r} cannot be made a workflow: it must be an async method")
        parameters = list(inspect.signature(fn).parameters)
        if len(parameters) < 2:
            raise DefinitionError(f"{fn.__qualname__} must take self and the WorkflowContext as its first parameters")
        self.fn = fn
        self.name = fn.__qualname__.rpartition(".")[0].rpartition(".")[2] or fn.__name__
        self._signature = Signature(fn, self.name, skip=2, names=local_names(fn))
        self._owner: type[Any] | None = None
        self.handlers = ()
        self.__doc__ = fn.__doc__
        self.__name__, self.__qualname__, self.__module__ = fn.__name__, fn.__qualname__, fn.__module__

    def of(self, owner: type[Any], name: str | None) -> None:
        """Belong to a class."""
        self._owner = owner
        self.name = self._signature.name = name or owner.__name__
        found: dict[str, Handler] = {}
        for base in reversed(owner.__mro__):
            for attribute, value in vars(base).items():
                if isinstance(value, HandlerMethod):
                    found[attribute] = value.handler
                else:
                    found.pop(attribute, None)
        self.handlers = tuple(found.values())

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise DefinitionError(f"the workflow {self.name} is a class: start it by a client, or as a child workflow")

    def begin(self, context: WorkflowContext, handlers: Handlers) -> Callable[P, Coroutine[Any, Any, R]]:
        if self._owner is None:
            raise DefinitionError(f"decorate the class of {self.__qualname__} with @workflow")
        instance = self._owner()
        fn: Callable[..., Coroutine[Any, Any, R]] = self.fn
        for handler in self.handlers:
            bound = functools.partial(handler.fn, instance)
            validator = handler.validator and functools.partial(handler.validator, instance)
            handlers.add(dataclasses.replace(handler, fn=bound, validator=validator))
        return functools.partial(fn, instance, context)


class WorkflowDecorator(Protocol):
    """What `@workflow(...)` returns."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # as `_Workflow`
        self, fn: Callable[Concatenate[WorkflowContext, P], Coroutine[Any, Any, R]], /
    ) -> WorkflowDefinition[P, R]: ...
    @overload
    def __call__(self, cls: type[_T], /) -> type[_T]: ...


class _Workflow:
    """`@workflow`, `@workflow(name=...)`, and in a class `@workflow.run`, `.signal`, `.query`, `.update`."""

    __name__: str

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a class is callable too, but none takes a context and is awaited
        self, fn: Callable[Concatenate[WorkflowContext, P], Coroutine[Any, Any, R]], /
    ) -> WorkflowDefinition[P, R]: ...
    @overload
    def __call__(self, cls: type[_T], /) -> type[_T]: ...
    @overload
    def __call__(self, *, name: str | None = None) -> WorkflowDecorator: ...
    def __call__(self, *decorated: Any, name: str | None = None) -> Any:
        """Make a workflow of an async function whose first parameter is a WorkflowContext, or of a class.

        A class has one method with `@workflow.run`; each run gets an instance, made without arguments.
        """

        def decorate(decorated: Any) -> Any:
            if isinstance(decorated, type):
                _class_workflow(decorated, name)
                return decorated
            return WorkflowDefinition(decorated, name=name, names=local_names(decorated))

        return decorate(*decorated) if decorated else decorate

    @staticmethod
    def run(fn: Callable[Concatenate[Any, WorkflowContext, P], Coroutine[Any, Any, R]], /) -> WorkflowDefinition[P, R]:
        """The method that is the workflow of its class."""
        return ClassWorkflow(fn)

    @overload
    @staticmethod
    def signal(fn: Callable[Concatenate[Any, P], R], /) -> HandlerMethod[P, R]: ...
    @overload
    @staticmethod
    def signal(*, name: str) -> Callable[[Callable[Concatenate[Any, P], R]], HandlerMethod[P, R]]: ...
    @staticmethod
    def signal(fn: Any = None, /, *, name: str | None = None) -> Any:
        """A method that is called with each signal of its name. It may be async."""
        return _decorated(lambda fn: HandlerMethod("signal", fn, name), fn)

    @overload
    @staticmethod
    def query(fn: Callable[Concatenate[Any, P], R], /) -> HandlerMethod[P, R]: ...
    @overload
    @staticmethod
    def query(*, name: str) -> Callable[[Callable[Concatenate[Any, P], R]], HandlerMethod[P, R]]: ...
    @staticmethod
    def query(fn: Any = None, /, *, name: str | None = None) -> Any:
        """A method that answers queries of its name. It may only read."""
        return _decorated(lambda fn: HandlerMethod("query", fn, name), fn)

    @overload
    @staticmethod
    def update(fn: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /) -> UpdateMethod[P, R]: ...
    @overload
    @staticmethod
    def update(fn: Callable[Concatenate[Any, P], R], /) -> UpdateMethod[P, R]: ...
    @overload
    @staticmethod
    def update(*, name: str) -> Callable[[Callable[Concatenate[Any, P], Any]], UpdateMethod[P, Any]]: ...
    @staticmethod
    def update(fn: Any = None, /, *, name: str | None = None) -> Any:
        """A method that carries out updates of its name. It may be async. `@NAME.validator` refuses bad ones."""
        return _decorated(lambda fn: UpdateMethod("update", fn, name), fn)


workflow: Final = _Workflow()
workflow.__name__ = "workflow"


def _decorated(make: Callable[[Any], Any], fn: Any) -> Any:
    return make if fn is None else make(fn)


def _class_workflow(cls: type[Any], name: str | None) -> None:
    runs = {value for base in cls.__mro__ for value in vars(base).values() if isinstance(value, ClassWorkflow)}
    if len(runs) != 1:
        raise DefinitionError(f"the class {cls.__name__} has {len(runs)} methods with @workflow.run: give it one")
    (definition,) = runs
    if name is not None:
        check_type(f"name of {cls.__name__}", name, str, "a text", DefinitionError)
    definition.of(cls, name)
    cls.__romancy_workflow__ = definition


def definition_of(workflow: Any) -> Any:
    """The definition that a decorated class stands for; anything else as it is."""
    return getattr(workflow, "__romancy_workflow__", workflow)


@contextmanager
def unguarded() -> Iterator[None]:
    """Let workflow code do what is refused otherwise, such as reading a file that never changes. You answer for it."""
    loop = running_loop("unguarded()", "it is needed nowhere else")
    loop.unguarded += 1
    try:
        yield
    finally:
        loop.unguarded -= 1
