"""A bank whose postings are effects, on each kind of database and driver, and processes that stop in the middle.

Attempts are made as a worker makes them, without a service: that says which attempt comes when.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any, Final

import psutil
from sqlalchemy import Engine, NullPool, create_engine, event, make_url, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, Session, mapped_column, sessionmaker

from romancy import Worker, activity, compensation
from romancy.activity import ActivityContext, ActivityInfo, current_activity
from romancy.sqlalchemy import create_table, effects, metadata, transactional, undoing

SCHEDULED: Final = datetime(2026, 1, 1, tzinfo=UTC)
STEPS: Final = ("fencing", "fenced", "working", "committing", "committed")
"""Of an attempt: before and after the commit of its fence, in its function, before and after that of its effect."""
PATIENCE_S: Final = 30.0


class Base(MappedAsDataclass, DeclarativeBase):
    pass


class Posting(Base):
    __tablename__ = "postings"
    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    amount: Mapped[int]


@dataclass(frozen=True)
class Receipt:
    amount: int
    attempt: int


class Bank:
    """`pay` posts an amount, `refund` undoes that; `meanwhile` is called in their transactions."""

    def __init__(self, url: str, *, engine_options: dict[str, Any] | None = None) -> None:
        self.url = url
        self.books = create_engine(_plain(url), poolclass=NullPool)
        self.meanwhile: Callable[[Any], object] = lambda session: None
        self.answer: Callable[[Receipt], Any] = lambda receipt: receipt
        self.is_async = make_url(url).get_dialect().is_async
        options: dict[str, Any] = {"poolclass": NullPool, **(engine_options or {})}
        if self.is_async:
            engine = create_async_engine(url, **options)
            self.engine: Engine = engine.sync_engine
            self._define_async(async_sessionmaker(engine))
        else:
            self.engine = create_engine(url, **options)
            self._define_sync(sessionmaker(self.engine))

    def _define_async(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        async def post(session: AsyncSession, amount: int) -> None:
            session.add(Posting(amount))
            await session.flush()
            await asyncio.to_thread(self.meanwhile, session)

        @compensation
        @undoing(sessions)
        async def refund(session: AsyncSession, result: Receipt | None) -> None:
            assert result is not None
            await post(session, -result.amount)

        @activity(compensation=refund)
        @transactional(sessions)
        async def pay(session: AsyncSession, amount: int) -> Receipt:
            await post(session, amount)
            return self._receipt(amount)

        self.pay: Any = pay
        self.refund: Any = refund

    def _define_sync(self, sessions: sessionmaker[Session]) -> None:
        def post(session: Session, amount: int) -> None:
            session.add(Posting(amount))
            session.flush()
            self.meanwhile(session)

        @compensation
        @undoing(sessions)
        def refund(session: Session, result: Receipt | None) -> None:
            assert result is not None
            post(session, -result.amount)

        @activity(compensation=refund)
        @transactional(sessions)
        def pay(session: Session, amount: int) -> Receipt:
            post(session, amount)
            return self._receipt(amount)

        self.pay = pay
        self.refund = refund

    def _receipt(self, amount: int) -> Receipt:
        answer: Receipt = self.answer(Receipt(amount, current_activity.get().info.attempt))
        return answer

    def clear(self) -> None:
        """Take the tables away."""
        with self.books.begin() as connection:
            metadata.drop_all(connection)
            Base.metadata.drop_all(connection)

    def set_up(self) -> None:
        """Make the tables."""
        with self.books.begin() as connection:
            create_table(connection)
            Base.metadata.create_all(connection)

    async def attempt(self, number: int = 1, *, amount: int = 30, **info: Any) -> Any:
        """An attempt to pay."""
        return await self.call(self.pay.fn, an_info(number, **info), amount)

    async def undo(self, number: int = 1, *, result: Receipt | None = None, activity_id: str = "undo/pay:1") -> None:
        """An attempt to refund."""
        info = an_info(number, activity_id=activity_id, activity_type="refund", is_compensation=True)
        await self.call(self.refund.fn, info, result)

    async def call(self, fn: Callable[..., Any], info: ActivityInfo, *args: Any) -> Any:
        """Call as a worker does."""
        context = ActivityContext(info, lambda _: None)

        async def run_async() -> Any:
            current_activity.set(context)
            return await fn(*args)

        def run_sync() -> Any:
            current_activity.set(context)
            return fn(*args)

        return await (asyncio.create_task(run_async()) if self.is_async else asyncio.to_thread(run_sync))

    def postings(self) -> list[int]:
        """What is committed."""
        with Session(self.books) as session:
            return list(session.scalars(select(Posting.amount).order_by(Posting.id)))

    def fences(self) -> int:
        """How many rows the table of effects has."""
        with Session(self.books) as session:
            return len(session.execute(select(effects.c.run_id)).all())


def an_info(number: int, **changes: Any) -> ActivityInfo:
    fields: dict[str, Any] = {
        "workflow_id": "w",
        "run_id": "r",
        "workflow_type": "t",
        "activity_id": "pay:1",
        "activity_type": "pay",
        "task_queue": "q",
        "attempt": number,
        "idempotency_key": "r/pay:1",
        "scheduled_time": SCHEDULED,
        **changes,
    }
    return ActivityInfo(**fields)


def _plain(url: str) -> str:
    """The same database, by a driver that is not async."""
    return url.replace("+aiosqlite", "").replace("+asyncpg", "+psycopg")


# Processes that are stopped in the middle ---------------------------------------------------------------------------


def stop_at(bank: Bank, step: str, number: int) -> None:
    """Send this process a signal when the next attempt reaches the step."""

    def stop(*_: Any) -> None:
        # To this thread, which would go on for a moment if another one of the process took the signal.
        signal.pthread_kill(threading.get_ident(), number)

    def at_second(*_: Any, seen: list[None] = []) -> None:  # noqa: B006 - it is to be remembered
        seen.append(None)
        if len(seen) == 2:
            stop()

    match step:
        case "fencing":
            event.listen(bank.engine, "commit", stop, once=True)
        case "fenced":
            event.listen(bank.engine, "checkin", stop, once=True)
        case "working":
            bank.meanwhile = stop
        case "committing":
            event.listen(bank.engine, "commit", at_second)
        case "committed":
            event.listen(bank.engine, "checkin", at_second)
        case _:
            raise AssertionError(step)


def _make_attempt(url: str, step: str, number: int, timeout: timedelta | None, outcome: Connection) -> None:
    bank = Bank(url)
    stop_at(bank, step, number)
    try:
        outcome.send(asyncio.run(bank.attempt(start_to_close_timeout=timeout)))
    except Exception as error:
        outcome.send(type(error).__name__)


def _work(url: str, step: str, address: str) -> None:
    bank = Bank(url)
    stop_at(bank, step, signal.SIGKILL)
    Worker(address, activities=[bank.pay]).run()


@contextmanager
def doomed_worker(bank: Bank, step: str, address: str) -> Iterator[None]:
    """A worker process that kills itself when its first attempt to pay gets as far as the step."""
    process = _forkserver().Process(target=_work, args=(bank.url, step, address))
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join(PATIENCE_S)


def _forkserver() -> ForkServerContext:
    """Starts processes that have this module already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@dataclass
class Stopped:
    """A first attempt in another process, which is dead, or frozen."""

    process: Any
    outcome: Connection

    def outcome_after_waking(self) -> Any:
        """Let a frozen one go on; what it returned, or the name of what it raised."""
        psutil.Process(self.process.pid).resume()
        assert self.outcome.poll(PATIENCE_S)
        return self.outcome.recv()


@contextmanager
def stopped_at(bank: Bank, step: str, number: int, *, timeout: timedelta | None = None) -> Iterator[Stopped]:
    """A first attempt to pay that got as far as the step when it was sent a signal: SIGKILL or SIGSTOP."""
    context = _forkserver()
    outcome, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_make_attempt, args=(bank.url, step, number, timeout, theirs))
    process.start()
    theirs.close()
    try:
        if number == signal.SIGKILL:
            process.join(PATIENCE_S)
            assert process.exitcode == -signal.SIGKILL
        else:
            _wait_until_frozen(process.pid)
        yield Stopped(process, outcome)
    finally:
        process.kill()
        process.join(PATIENCE_S)
        outcome.close()


def _wait_until_frozen(pid: int | None) -> None:
    frozen = psutil.Process(pid)
    while frozen.status() != psutil.STATUS_STOPPED:
        time.sleep(0.005)
