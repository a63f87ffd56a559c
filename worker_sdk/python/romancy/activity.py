"""Activity: what `@activity` and `@compensation` make of a function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import fields
from types import NoneType
from typing import Any, Final, Generic, Literal, ParamSpec, Protocol, Self, TypeVar, get_args, overload

from romancy.v1.command_pb2 import (
    COMPENSATE_WHEN_ALWAYS,
    ActivityResult,
    Compensation,
    CompensationArgument,
    ScheduleActivity,
)
from romancy.v1.failure_pb2 import (
    FAILURE_SOURCE_APPLICATION,
    FAILURE_SOURCE_SERVICE,
    Failure,
)
from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.payload_pb2 import Payload

from romancy._attempt import (
    ActivityContext,
    ActivityInfo,
    activity_info,
    current_activity,
    heartbeat,
    is_cancelled,
    send_event,
)
from romancy._checks import check_choice, check_type, refuse_unknown
from romancy._effect import check_undo, knows_whether_done
from romancy._failure import failed_for_good, only_error, stopped, to_failure
from romancy._loop import running_loop
from romancy._signature import Signature, is_declaration, local_names
from romancy.converter import codec
from romancy.errors import DefinitionError
from romancy.options import ActivityOptions, RetryPolicy, Seconds

__all__ = [
    "ActivityContext",
    "ActivityDefinition",
    "ActivityInfo",
    "AsyncActivity",
    "SyncActivity",
    "activity",
    "activity_info",
    "compensation",
    "current_activity",
    "heartbeat",
    "is_cancelled",
    "send_event",
]

P = ParamSpec("P")
R = TypeVar("R", covariant=True)

_RESULT: Final = "result"
"""The parameter of a compensation that takes the result of what it undoes."""
_ACTIVITY_OPTIONS: Final = tuple(field.name for field in fields(ActivityOptions))
_COMPENSATION_OPTIONS: Final = ("task_queue", "timeout", "heartbeat_timeout", "retry")
"""Those that the contract has for a compensation."""


class ActivityDefinition(Generic[P, R]):
    """A function that workflow code can call durably. Made by `@activity` and `@compensation`.

    Called inside of a workflow it returns a coroutine: awaiting that schedules the activity and waits for its result,
    or raises ActivityError. `fn` is the function itself.
    """

    fn: Callable[..., Any]

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        name: str | None = None,
        options: ActivityOptions | None = None,
        compensation: ActivityDefinition[..., Any] | None = None,
        compensate: Literal["unless_failed", "always"] = "unless_failed",
        raises: Sequence[type[BaseException]] = (),
        names: Mapping[str, Any] | None = None,
    ) -> None:
        if not inspect.isroutine(fn):
            raise DefinitionError(f"{fn!r} cannot be made an activity: it must be a function or a bound method")
        _check_definition(fn, name, compensation, compensate, raises)
        self.fn = fn
        self.name = name or fn.__name__
        self.is_async = inspect.iscoroutinefunction(fn)
        self.is_declared = is_declaration(fn)
        """True when the body is only `...`: another worker, maybe in another language, implements it."""
        self.activity_options = options or ActivityOptions()
        self.compensation = compensation
        self.raises = tuple(raises)
        self._always = compensate == "always"
        self._signature = Signature(fn, self.name, names=names)
        self._schedule = self.activity_options.schedule(self.name)
        if compensation is not None and not self.is_declared:
            check_undo(self.name, fn, compensation.name, compensation.fn)
        self._compensation = (
            None if compensation is None else undoing(self.name, self._signature, compensation, always=self._always)
        )
        self.__doc__ = fn.__doc__
        self.__name__ = fn.__name__
        self.__qualname__ = fn.__qualname__
        self.__module__ = fn.__module__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        loop = running_loop(f"the activity {self.name}", f"call {self.name}.fn for the plain function")
        return loop.call_activity(self, self._signature.encode_arguments(args, kwargs))

    def __repr__(self) -> str:
        return f"<activity {self.name}>"

    def options(
        self,
        *,
        task_queue: str | None = None,
        timeout: Seconds | None = None,
        schedule_to_close_timeout: Seconds | None = None,
        schedule_to_start_timeout: Seconds | None = None,
        heartbeat_timeout: Seconds | None = None,
        retry: RetryPolicy | None = None,
        at_most_once: bool | None = None,
        priority: int | None = None,
    ) -> Self:
        """The same activity with other options: `await charge.options(timeout=5)(order_id, amount)`."""
        others = ActivityOptions(
            task_queue=task_queue,
            timeout=timeout,
            schedule_to_close_timeout=schedule_to_close_timeout,
            schedule_to_start_timeout=schedule_to_start_timeout,
            heartbeat_timeout=heartbeat_timeout,
            retry=retry,
            at_most_once=at_most_once,
            priority=priority,
        )
        # A copy: everything that does not depend on the options is shared, codecs above all.
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.activity_options = self.activity_options.merge(others)
        twin._schedule = twin.activity_options.schedule(self.name)
        return twin

    # What a worker needs.

    def check(self) -> None:
        """Raise DefinitionError when annotations cannot be used; better when a worker starts than when a task comes."""
        _ = self._signature.codecs, self._signature.result
        if self.compensation is not None:
            self.compensation.check()
            _check_takes_none(self.compensation)

    def decode_arguments(self, payloads: Sequence[Payload]) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments for `fn`. Raises ConversionError."""
        return self._signature.decode_arguments(payloads)

    def encode_result(self, value: Any) -> Payload:
        """What `fn` returned, as a payload. Raises ConversionError."""
        return self._signature.encode_result(value)

    def encode_failure(self, error: BaseException) -> Failure:
        """What `fn` raised, as a failure. Never fails."""
        failure = Failure()
        failure.CopyFrom(to_failure(error, self.raises))
        retry = self.activity_options.retry
        if retry is not None and retry.lists(only_error(error)):
            failure.non_retryable = True  # the service knows types by their names alone, not what derives from them
        if failure.source != FAILURE_SOURCE_SERVICE:
            # An error of another run that `fn` let through, a timeout say, is no timeout of this activity.
            failure.source = FAILURE_SOURCE_APPLICATION
        return failure

    # What workflow code needs.

    def schedule_command(self, arguments: Sequence[Payload]) -> ScheduleActivity:
        """The command that asks for the activity; the machine gives it an id."""
        command = ScheduleActivity()
        command.MergeFrom(self._schedule)
        command.arguments.extend(arguments)
        if self._compensation is not None:
            command.compensation.CopyFrom(self._compensation)
        return command

    def compensation_command(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Compensation:
        """This activity as a compensation that belongs to no activity, with arguments of its own."""
        command = self.activity_options.compensation(self.name)
        for payload in self._signature.encode_arguments(args, kwargs):
            command.arguments.append(CompensationArgument(payload=payload))
        return command

    def outcome(self, event: HistoryEvent) -> R:
        """What the activity returned, by the event that closed it; raises what it raised."""
        match event.WhichOneof("attributes"):
            case "activity_completed":
                result: R = self._signature.decode_result(event.activity_completed.result)
                return result
            case "activity_failed":
                raise failed_for_good(event.activity_failed, self.raises)
            case _:
                raise stopped(event.activity_cancelled)


def undoing(name: str, signature: Signature, undo: ActivityDefinition[..., Any], *, always: bool) -> Compensation:
    """How `undo` undoes a call of `name`, with where each of its arguments comes from: by the names of its parameters.

    Raises DefinitionError when one is none of those of `signature`, and not `result`.
    """
    own = {parameter.name: place for place, parameter in enumerate(signature.parameters)}
    if _RESULT in own:
        raise DefinitionError(
            f"{name} has a parameter called 'result', which is what its compensation {undo.name} would call "
            "its result: rename the parameter"
        )
    arguments: list[CompensationArgument] = []
    for parameter in undo._signature.parameters:
        if parameter.name == _RESULT:
            if undo._signature.is_evaluable():  # else check() does it, once all names are defined
                _check_takes_none(undo)
            arguments.append(CompensationArgument(activity_result=ActivityResult()))
        elif parameter.name in own:
            arguments.append(CompensationArgument(activity_argument=own[parameter.name]))
        elif parameter.default is not inspect.Parameter.empty:
            payload = codec(Any).encode(parameter.default, f"default of {parameter.name!r} of {undo.name}")
            arguments.append(CompensationArgument(payload=payload))
        else:
            raise DefinitionError(
                f"{undo.name} cannot undo {name}: its parameter {parameter.name!r} is none of "
                f"{', '.join([*own, _RESULT])}"
            )
    template = undo.activity_options.compensation(undo.name)
    if always or knows_whether_done(undo.fn):
        template.when = COMPENSATE_WHEN_ALWAYS
    template.arguments.extend(arguments)
    return template


class AsyncActivity(ActivityDefinition[P, R]):
    """An activity that is an async function."""

    fn: Callable[P, Coroutine[Any, Any, R]]


class SyncActivity(ActivityDefinition[P, R]):
    """An activity that is an ordinary function; workers run it in a thread."""

    fn: Callable[P, R]


def _define(fn: Callable[..., Any], **definition: Any) -> ActivityDefinition[..., Any]:
    kind = AsyncActivity if inspect.iscoroutinefunction(fn) else SyncActivity
    return kind(fn, **definition)


def _check_definition(
    fn: Callable[..., Any], name: object, compensation: object, compensate: str, raises: object
) -> None:
    of = f" of {fn.__name__}"
    if name is not None:
        check_type(f"name{of}", name, str, "a text", DefinitionError)
    if str(name).startswith("undo/"):
        raise DefinitionError(f"name{of} is {name!r}: 'undo/' is how the ids of compensations begin, give another one")
    check_choice(f"compensate{of}", compensate, ("unless_failed", "always"), DefinitionError)
    if compensation is not None:
        expected = "a function decorated with @compensation"
        check_type(f"compensation{of}", compensation, ActivityDefinition, expected, DefinitionError)
    check_type(f"raises{of}", raises, (list, tuple), "a list of exception classes", DefinitionError)
    assert isinstance(raises, list | tuple)
    for declared in raises:
        if not (isinstance(declared, type) and issubclass(declared, BaseException)):
            raise DefinitionError(f"raises{of} has {declared!r}, which is no exception class")


def _check_takes_none(undo: ActivityDefinition[..., Any]) -> None:
    annotation = undo._signature.hints.get(_RESULT, Any)
    if annotation not in (Any, object, NoneType) and NoneType not in get_args(annotation):
        raise DefinitionError(
            f"'result' of {undo.name} is annotated as {annotation}, but there is no result when the outcome of what it "
            "undoes is unknown: annotate it with `| None`"
        )


class ActivityDecorator(Protocol):
    """What `@activity(...)` returns. An async function is a function too: the first overload that fits is meant."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncActivity[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, fn: Callable[P, R], /) -> SyncActivity[P, R]: ...


@overload
def activity(fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncActivity[P, R]: ...  # type: ignore[overload-overlap]  # the first that fits is meant
@overload
def activity(fn: Callable[P, R], /) -> SyncActivity[P, R]: ...
@overload
def activity(
    *,
    name: str | None = None,
    compensation: ActivityDefinition[..., Any] | None = None,
    compensate: Literal["unless_failed", "always"] = "unless_failed",
    raises: Sequence[type[BaseException]] = (),
    task_queue: str | None = None,
    timeout: Seconds | None = None,
    schedule_to_close_timeout: Seconds | None = None,
    schedule_to_start_timeout: Seconds | None = None,
    heartbeat_timeout: Seconds | None = None,
    retry: RetryPolicy | None = None,
    at_most_once: bool | None = None,
    priority: int | None = None,
) -> ActivityDecorator: ...
def activity(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    compensation: ActivityDefinition[..., Any] | None = None,
    compensate: Literal["unless_failed", "always"] = "unless_failed",
    raises: Sequence[type[BaseException]] = (),
    **options: Any,
) -> Any:
    """Make an activity of an async or sync function.

    `compensation` undoes it when the workflow fails; with `compensate="always"` also when it failed in its own words.
    Errors of the classes in `raises` come back as themselves. A body of only `...` declares an activity that another
    worker implements. Raises DefinitionError when something does not fit.
    """
    refuse_unknown("@activity", options, ("name", "compensation", "compensate", "raises", *_ACTIVITY_OPTIONS))

    def decorate(fn: Callable[..., Any]) -> ActivityDefinition[..., Any]:
        return _define(
            fn,
            name=name,
            options=ActivityOptions(**options),
            compensation=compensation,
            compensate=compensate,
            raises=raises,
            names=local_names(fn),
        )

    return decorate if fn is None else decorate(fn)


@overload
def compensation(fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncActivity[P, R]: ...  # type: ignore[overload-overlap]  # the first that fits is meant
@overload
def compensation(fn: Callable[P, R], /) -> SyncActivity[P, R]: ...
@overload
def compensation(
    *,
    name: str | None = None,
    task_queue: str | None = None,
    timeout: Seconds | None = None,
    heartbeat_timeout: Seconds | None = None,
    retry: RetryPolicy | None = None,
) -> ActivityDecorator: ...
def compensation(fn: Callable[..., Any] | None = None, /, *, name: str | None = None, **options: Any) -> Any:
    """Make an activity that undoes another one.

    It takes those of the other's arguments that its parameters name, and `result`, which is None when there is none. It
    is tried again for ever, at most 60 s apart, unless `retry` says otherwise or it raises TerminalError.
    """
    refuse_unknown("@compensation", options, ("name", *_COMPENSATION_OPTIONS))

    def decorate(fn: Callable[..., Any]) -> ActivityDefinition[..., Any]:
        return _define(fn, name=name, options=ActivityOptions(**options), names=local_names(fn))

    return decorate if fn is None else decorate(fn)
