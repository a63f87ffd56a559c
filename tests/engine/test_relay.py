"""The relay feeds the engine without waiting for each answer, and never with more than so many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from romancy_service.clock import DatabaseClock
from romancy_service.core.decide import Reply
from romancy_service.core.task import Task, TaskKind
from romancy_service.core.triggers import LoseTask, TaskDue
from romancy_service.courier import Courier
from romancy_service.errors import StaleTask
from romancy_service.relay import BATCH, MOST_BUSY, Relay
from romancy_service.store.store import DueTask
from tests.core.life import Life

MANY = 3 * MOST_BUSY


class _Store:
    """A database with timers that are due, until their triggers are answered, and nothing else."""

    def __init__(self, many: int) -> None:
        self.rows = {f"run-{n:05}": DueTask(f"run-{n:05}", Task("t/1", TaskKind.TIMER), 0) for n in range(many)}

    async def due(self, now_ms: int, limit: int, part: int, parts: int) -> list[DueTask]:
        return list(self.rows.values())[:limit]

    async def due_within(self, *_: object) -> list[Any]:
        return []

    async def with_errands(self, *_: object) -> tuple[list[str], str]:
        return [], ""

    async def lost(self, now_ms: int, limit: int) -> list[DueTask]:
        return []

    async def expire_sessions(self, now_ms: int) -> int:
        return 0


class _Engine:
    """Answers when it is told to."""

    def __init__(self, store: _Store) -> None:
        self._store = store
        self.open: dict[str, asyncio.Future[Reply]] = {}
        self.most_open = 0
        self.submitted = 0
        self._came = asyncio.Event()
        self.relay: Relay

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what triggers bring about."""
        async with asyncio.timeout(20):
            while not condition():
                self._came.clear()
                await self._came.wait()

    def submit(self, run_id: str, trigger: TaskDue | LoseTask) -> asyncio.Future[Reply]:
        assert run_id not in self.open, "it is under way already"
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.open[run_id] = future
        self.submitted += 1
        self._came.set()
        self.most_open = max(self.most_open, len(self.open))
        return future

    def answer(self, run_id: str) -> None:
        del self._store.rows[run_id]
        self.open.pop(run_id).set_result(Reply())


@asynccontextmanager
async def _relaying(many: int) -> AsyncIterator[_Engine]:
    async def now_ms() -> int:
        return 1

    clock = DatabaseClock(now_ms)
    await clock.sync()
    store = _Store(many)
    engine = _Engine(store)
    courier = Courier(store, clock, engine, None, None)  # type: ignore[arg-type]
    relay = Relay(store, clock, engine, courier, 1_000)  # type: ignore[arg-type]
    engine.relay = relay
    task = asyncio.create_task(relay.run())
    try:
        yield engine
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_more_is_fed_before_what_was_fed_is_answered_but_only_so_much() -> None:
    async with _relaying(MANY) as engine:
        await engine.until(lambda: len(engine.open) > BATCH)
        await engine.until(lambda: len(engine.open) == MOST_BUSY)
        for _ in range(100):
            await asyncio.sleep(0)
        assert engine.most_open == MOST_BUSY


async def test_one_trigger_that_takes_long_holds_up_no_other() -> None:
    async with _relaying(MANY) as engine:
        await engine.until(lambda: "run-00000" in engine.open)
        while engine.submitted < MANY or len(engine.open) > 1:
            await engine.until(lambda: len(engine.open) > 1 or engine.submitted == MANY)
            for run_id in [run_id for run_id in engine.open if run_id != "run-00000"]:
                engine.answer(run_id)
        assert engine.most_open <= MOST_BUSY
        assert engine.submitted == MANY


async def test_a_timer_that_was_cancelled_is_fed_to_nobody() -> None:
    async with _relaying(0) as engine:
        now_ms = engine.relay._clock.latest_ms()
        cancelled, kept = Life.begin().run, Life.begin().run
        for run, run_id, due_ms in ((cancelled, "cancelled", now_ms + 50), (kept, "kept", now_ms + 100)):
            run.run_id = run_id
            run.put_task(Task("t/1", TaskKind.TIMER, due_ms=due_ms))
            engine.relay.observe(run)
        cancelled.drop_task("t/1")
        engine.relay.observe(cancelled)
        await engine.until(lambda: "kept" in engine.open)
        assert engine.submitted == 1
        assert not engine.relay._held


async def test_a_trigger_that_was_refused_is_fed_again_as_long_as_its_row_is_there() -> None:
    async with _relaying(1) as engine:
        await engine.until(lambda: bool(engine.open))
        engine.open.pop("run-00000").set_exception(StaleTask("t/1", "somebody else looks at it"))
        engine.relay.look_now()
        await engine.until(lambda: engine.submitted == 2)
