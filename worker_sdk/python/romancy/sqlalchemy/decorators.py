"""Decorators: `@transactional` and `@undoing` run a function in a transaction that records what it returns."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar, overload
from weakref import WeakSet

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from romancy._attempt import ActivityContext, activity_info, current_activity
from romancy._effect import Effect, mark
from romancy._signature import Signature, local_names
from romancy.converter import codec
from romancy.errors import CompleteElsewhere, DefinitionError, TerminalError
from romancy.sqlalchemy.ledger import Attempt, Begun, NothingToUndo, Recorded, begin, open_work, record

P = ParamSpec("P")
R = TypeVar("R")
S_co = TypeVar("S_co", bound=Session, covariant=True)
A_co = TypeVar("A_co", bound=AsyncSession, covariant=True)
S = TypeVar("S", bound=Session)
A = TypeVar("A", bound=AsyncSession)

_RESULT: Final = "result"
_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Transactional(Protocol[S_co]):
    """What `transactional(sessionmaker)` returns: the session is filled in, the other parameters are left."""

    def __call__(self, fn: Callable[Concatenate[S_co, P], R], /) -> Callable[P, R]: ...


class AsyncTransactional(Protocol[A_co]):
    """What `transactional(async_sessionmaker)` returns."""

    def __call__(
        self, fn: Callable[Concatenate[A_co, P], Coroutine[Any, Any, R]], /
    ) -> Callable[P, Coroutine[Any, Any, R]]: ...


class Undoing(Protocol[S_co]):
    """What `undoing(sessionmaker)` returns."""

    def __call__(self, fn: Callable[Concatenate[S_co, P], None], /) -> Callable[P, None]: ...


class AsyncUndoing(Protocol[A_co]):
    """What `undoing(async_sessionmaker)` returns."""

    def __call__(
        self, fn: Callable[Concatenate[A_co, P], Coroutine[Any, Any, None]], /
    ) -> Callable[P, Coroutine[Any, Any, None]]: ...


@overload
def transactional(sessions: async_sessionmaker[A]) -> AsyncTransactional[A]: ...
@overload
def transactional(sessions: sessionmaker[S]) -> Transactional[S]: ...
def transactional(sessions: Any) -> Any:
    """Run the function of an activity in a transaction that also records its result. Below `@activity`.

    The function takes a session first, and must not commit it. When an attempt has committed, those after it return
    what it returned, without calling the function.
    """
    return lambda fn: _Work(fn, sessions, undoes=False).run


@overload
def undoing(sessions: async_sessionmaker[A]) -> AsyncUndoing[A]: ...
@overload
def undoing(sessions: sessionmaker[S]) -> Undoing[S]: ...
def undoing(sessions: Any) -> Any:
    """Run the function of a compensation in a transaction, if what it undoes is committed. Below `@compensation`.

    For activities that are `@transactional` with the same sessionmaker. From then on no attempt of the activity can
    commit; where none had, the function is not called. A parameter `result` gets what the activity returned, also when
    the service never heard of it.
    """
    return lambda fn: _Work(fn, sessions, undoes=True).run


class _Work:
    """A decorated function, as those see it who call it: without its session."""

    def __init__(self, fn: Callable[..., Any], sessions: Any, *, undoes: bool) -> None:
        _check(fn, sessions)
        self.fn = fn
        self.undoes = undoes
        signature = inspect.signature(fn)
        session, *others = signature.parameters.values()
        self.signature = signature.replace(parameters=others)
        self.run = self._runner(sessions)
        self.run.__signature__ = self.signature  # type: ignore[attr-defined]  # `inspect` reads it
        self.run.__annotations__ = {name: hint for name, hint in fn.__annotations__.items() if name != session.name}
        self.codecs = Signature(self.run, fn.__name__, names=local_names(fn))
        mark(self.run, Effect(sessions, undoes))

    def _runner(self, sessions: Any) -> Callable[..., Any]:
        if isinstance(sessions, async_sessionmaker):

            @wraps(self.fn)
            async def run_async(*args: Any, **kwargs: Any) -> Any:
                return await _run_async(sessions, _Call(self, args, kwargs))

            return run_async

        @wraps(self.fn)
        def run_sync(*args: Any, **kwargs: Any) -> Any:
            return _run_sync(sessions, _Call(self, args, kwargs))

        return run_sync


class _Call:
    """One attempt at a function. Its methods with a session are parts of a transaction that the caller ends."""

    def __init__(self, work: _Work, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.fn = work.fn
        self.attempt = _attempt(work.fn)
        self._sent = current_activity.get().sent
        self._work = work
        self._bound = work.signature.bind(*args, **kwargs)
        self._standing: Begun | Recorded | NothingToUndo = NothingToUndo()

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to do but to return `result`."""
        return not isinstance(self._standing, Begun)

    def begin(self, session: Session) -> None:
        """Find out what there is to do."""
        self._standing = begin(session, self.attempt, only_if_done=self._work.undoes)

    def open(self, session: Session) -> inspect.BoundArguments:
        """Begin the work; what to call the function with, besides the session."""
        assert isinstance(self._standing, Begun)
        undone = self._standing.undone
        if self._work.undoes and undone is not None and _RESULT in self._bound.arguments:
            hint = self._work.codecs.hints.get(_RESULT, Any)
            what = f"the recorded result of {self.attempt.undone_id}"
            self._bound.arguments[_RESULT] = codec(hint).decode(undone, what)
        open_work(session, self.attempt, self._standing.fence)
        return self._bound

    @contextmanager
    def ends_here(self) -> Iterator[None]:
        """Around the function. Raises DefinitionError when it means to be completed elsewhere, unrecorded."""
        try:
            yield
        except CompleteElsewhere:
            raise DefinitionError(
                f"{self.fn.__name__} raised CompleteElsewhere, but what it did would be rolled back, and its result "
                "not recorded: leave @transactional and @undoing out, or return a result"
            ) from None

    def record(self, session: Session, value: Any) -> None:
        """End the work."""
        assert isinstance(self._standing, Begun)
        payload = self._work.codecs.encode_result(value)
        self._work.codecs.decode_result(payload)  # what nobody could read must not be committed
        recorded = Recorded(payload, tuple(self._sent))
        record(session, self.attempt, self._standing.fence, recorded)
        self._standing = recorded

    def result(self) -> Any:
        """What the function returned, in this attempt or in one before. Raises TerminalError when its undoing cannot
        know whether there is something to undo."""
        if isinstance(self._standing, Recorded):
            self._sent[:] = self._standing.events
            # Decoded also where the value is at hand: it may hang on the session, and must be the same each time.
            return self._work.codecs.decode_result(self._standing.result)
        if self._bound.arguments.get(_RESULT) is not None:
            raise TerminalError(
                f"{self.attempt.run_id}/{self.attempt.undone_id} returned a result, but the database of "
                f"{self.fn.__name__} has no record of its effect: its row was deleted too early, or is elsewhere",
                type="EffectNotRecorded",
            )
        return None


async def _run_async(sessions: async_sessionmaker[Any], call: _Call) -> Any:
    async with sessions.begin() as session:
        await session.run_sync(call.begin)
    if call.is_over:
        return call.result()
    async with sessions() as session:
        arguments = await session.run_sync(call.open)
        with call.ends_here():
            value = await call.fn(session, *arguments.args, **arguments.kwargs)
        await session.run_sync(call.record, value)
        failed: Exception | None = None
        try:
            await _to_the_end(session.commit())
        except Exception as error:
            failed = error
    if failed is not None:
        with _settling(call, failed):
            async with sessions.begin() as session:
                await session.run_sync(call.begin)
    return call.result()


def _run_sync(sessions: sessionmaker[Any], call: _Call) -> Any:
    with sessions.begin() as session:
        call.begin(session)
    if call.is_over:
        return call.result()
    with sessions() as session:
        arguments = call.open(session)
        with call.ends_here():
            value = call.fn(session, *arguments.args, **arguments.kwargs)
        call.record(session, value)
        failed: Exception | None = None
        try:
            session.commit()
        except Exception as error:
            failed = error
    if failed is not None:
        with _settling(call, failed), sessions.begin() as session:
            call.begin(session)
    return call.result()


@contextmanager
def _settling(call: _Call, failed: Exception) -> Iterator[None]:
    """Around beginning anew after a commit failed, which may have happened all the same: that waits for its end, and
    finds its record or raises the fence above it. Raises `failed` unless there is a record."""
    try:
        yield
    except Exception as error:
        failed.add_note(f"whether it was committed could not be found out, the next attempt will: {error}")
        raise failed from None
    if not call.is_over:
        raise failed


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Wait for `work`, which goes on although the attempt is asked to stop: what is committed must be told."""
    task = asyncio.ensure_future(work)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():  # the event loop itself comes to its end
                raise
    task.result()


_begun: Final[WeakSet[ActivityContext]] = WeakSet()


def _attempt(fn: Callable[..., Any]) -> Attempt:
    """The attempt that runs. Raises OutsideActivity, and DefinitionError for a second function in one attempt."""
    attempt = Attempt.of(activity_info())
    context = current_activity.get()
    if context in _begun:
        raise DefinitionError(
            f"{attempt} calls {fn.__name__}, its second function with @transactional or @undoing: an activity has one "
            "transaction and one result; call a plain function with the session"
        )
    _begun.add(context)
    return attempt


def _check(fn: Any, sessions: object) -> None:
    if not isinstance(sessions, sessionmaker | async_sessionmaker):
        raise DefinitionError(
            f"@transactional and @undoing take a sessionmaker or an async_sessionmaker, and not {sessions!r}"
        )
    if not inspect.isroutine(fn):
        raise DefinitionError(f"{fn!r} is no function: put @transactional and @undoing below @activity, @compensation")
    if inspect.iscoroutinefunction(fn) != isinstance(sessions, async_sessionmaker):
        raise DefinitionError(
            f"{fn.__name__} does not fit its sessionmaker: an async function takes its session from an "
            "async_sessionmaker, an ordinary one from a sessionmaker"
        )
    first = next(iter(inspect.signature(fn).parameters.values()), None)
    if first is None or first.kind not in _POSITIONAL or first.name in ("self", "cls"):
        raise DefinitionError(f"{fn.__name__} must take a session first (decorate a method once it is bound)")
