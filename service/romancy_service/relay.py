"""Relay: the one arc back. Finds the tasks that the service itself must look at, and feeds them to the engine.

Timers, deadlines, timeouts, cancelled tasks that nobody has, tasks of lost sessions: each becomes a trigger that names
its row. It does not matter how often, or by how many replicas, a trigger is found: its fence lets it through once.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

import structlog

from romancy_service.clock import Clock
from romancy_service.core.run import Run
from romancy_service.core.task import Fence, Task, TaskKind
from romancy_service.core.triggers import LoseTask, TaskDue
from romancy_service.courier import Courier
from romancy_service.engine import Engine
from romancy_service.errors import StaleTask, StoreUnavailable, WorkflowNotFound
from romancy_service.sessions import Session
from romancy_service.store.store import DueTask, Store

_log = structlog.get_logger("romancy.relay")

TICK_S: Final = 1.0
"""How often the database is asked for what is due while there is something; what is due sooner is held in memory."""
HORIZON_MS: Final = 3_000
"""What is due within this is held in memory, so that it fires to the millisecond."""
BATCH: Final = 500
MOST_BUSY: Final = 1_000
"""So many triggers are under way at most: eight commits' worth, so that one that takes long holds up nobody."""
_HELD: Final = 20_000
EXPIRE_MS: Final = 30_000
"""How often sessions that are over and have no tasks are forgotten."""
FROZEN_S: Final = 3.0
"""A gap this long means that we, or the database, did not run: others look lost because nobody could hear them."""

_Found = tuple[str, TaskDue | LoseTask]
"""Run id, and what is to be decided on it."""
_Key = tuple[str, str, int]
"""Run id, task id, attempt."""


class Relay:
    """Feeds the engine with what is due."""

    def __init__(self, store: Store, clock: Clock, engine: Engine, courier: Courier, lease_ms: int) -> None:
        self._store = store
        self._clock = clock
        self._engine = engine
        self._courier = courier
        self._lease_ms = lease_ms
        self._heap: list[tuple[int, str, str]] = []
        """Timers and deadlines that will soon be due: (due_ms, run id, task id)."""
        self._held: dict[tuple[str, str], int] = {}
        """Those of them that were not cancelled: when they are due."""
        self._wake = asyncio.Event()
        self._look_now = False
        self._look_whole = True
        self._busy: set[_Key] = set()
        """What was submitted and is not answered yet."""
        self._answered = asyncio.Event()
        self._trust_losses_from = 0.0
        self._distrusts_since = 0.0
        self._seen_ending: set[str] = set()
        self._expired_ms = 0
        self._owing_after = ""
        """The run after which it is looked next for errands."""
        self._ran_at = 0.0
        """When we last ran, and the database last answered."""
        self.part = 0
        self.parts = 1
        """Which share of all runs is this replica's to look at first."""

    def distrust(self) -> None:
        """For one lease nobody is declared lost: we were away ourselves, and workers could not be heard."""
        self._distrusts_since = time.monotonic()
        self._trust_losses_from = self._distrusts_since + self._lease_ms / 1000
        self._seen_ending.clear()

    def saw_end(self, session: Session) -> None:
        """A stream ended here. If it had begun since we were away, we know of ourselves that the worker left."""
        if session.connected_at > self._distrusts_since:
            self._seen_ending.add(session.session_id)

    def _notice_gap(self) -> None:
        """To be called before anybody is judged: we may have been frozen, or have waited long for the database."""
        now = time.monotonic()
        gap_s, self._ran_at = now - self._ran_at, now
        if gap_s > FROZEN_S:
            _log.warning("did not run for a while; declaring nobody lost for one lease", seconds=round(gap_s, 1))
            self.distrust()

    def _trusts_losses(self) -> bool:
        return time.monotonic() >= self._trust_losses_from

    def look_now(self, *, whole: bool = False) -> None:
        """Something is due that nobody waited for; `whole`: look for all that a tick looks for."""
        self._look_now = True
        self._look_whole |= whole
        self._wake.set()

    def observe(self, run: Run) -> None:
        """A run was written here: hold what will soon be due in it."""
        horizon_ms = self._clock.latest_ms() + HORIZON_MS
        for task_id in run.touched:
            task = run.tasks.get(task_id)
            if task is None:
                self._held.pop((run.run_id, task_id), None)
                continue
            if task.kind in (TaskKind.TIMER, TaskKind.DEADLINE):
                if task.due_ms <= horizon_ms:
                    self._hold(task.due_ms, run.run_id, task_id)
            elif task.cancel_requested and task.kind is TaskKind.ACTIVITY:
                self.look_now()

    def _hold(self, due_ms: int, run_id: str, task_id: str) -> None:
        if self._held.get((run_id, task_id)) == due_ms:
            return
        self._held[run_id, task_id] = due_ms
        heapq.heappush(self._heap, (due_ms, run_id, task_id))
        if self._heap[0] == (due_ms, run_id, task_id):
            self._wake.set()

    async def run(self) -> None:
        """Look at what is due, until cancelled."""
        self.distrust()
        self._ran_at = time.monotonic()
        self._look_now = True
        while True:
            await self._sleep()
            self._notice_gap()
            try:
                if not self._clock.certain():
                    await asyncio.sleep(TICK_S / 10)
                    continue
                if self._look_now:
                    whole, self._look_now, self._look_whole = self._look_whole, False, False
                    await self._look(whole=whole)
                await self._fire_held()
            except StoreUnavailable as error:
                _log.warning("database unavailable", error=str(error))
                self.distrust()
                self._ran_at = time.monotonic()
                self.look_now(whole=True)
                await asyncio.sleep(random.uniform(0.2, TICK_S))

    async def _sleep(self) -> None:
        timeout = TICK_S  # and not longer, so that a gap in our own running is noticed
        if self._heap:
            timeout = min(timeout, max((self._heap[0][0] - self._clock.earliest_ms()) / 1000, 0))
        if self._look_now:
            timeout = 0
        self._wake.clear()
        try:
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _look(self, *, whole: bool) -> None:
        """Ask the database for what is due, and for what will be soon."""
        now_ms = self._clock.earliest_ms()

        def due(row: DueTask) -> _Found | None:
            return _due(row) if self._trusts_losses() or not _is_silent_only(row.task, now_ms) else None

        def lost(row: DueTask) -> _Found | None:
            believed = self._trusts_losses() or row.task.owner in self._seen_ending
            return (row.run_id, LoseTask(_fence(row))) if believed else None

        await self._feed_all(lambda limit: self._store.due(now_ms, limit, self.part, self.parts), due)
        if not whole:
            return
        owing, self._owing_after = await self._store.with_errands(
            self._owing_after, now_ms, BATCH, self.part, self.parts
        )
        for run_id in owing:
            self._courier.visit(run_id)
        for run_id, task_id, due_ms in await self._store.due_within(now_ms, HORIZON_MS, _HELD, self.part, self.parts):
            self._hold(due_ms, run_id, task_id)
        any_lost = await self._feed_all(lambda limit: self._store.lost(self._clock.earliest_ms(), limit), lost)
        if not any_lost and self._trusts_losses() and now_ms - self._expired_ms >= EXPIRE_MS:
            self._expired_ms = now_ms
            self._seen_ending.clear()
            await self._store.expire_sessions(now_ms)

    async def _fire_held(self) -> None:
        now_ms = self._clock.earliest_ms()
        ripe = set()
        while self._heap and self._heap[0][0] <= now_ms:
            due_ms, run_id, task_id = heapq.heappop(self._heap)
            if self._held.get((run_id, task_id)) == due_ms:
                del self._held[run_id, task_id]
                ripe.add((run_id, task_id))
        # A timer has one attempt and no owner, ever: its fence is known without reading its row.
        await self._feed([(run_id, TaskDue(Fence(task_id, 1, ""), 0, 0)) for run_id, task_id in ripe])

    async def _feed_all(
        self, read: Callable[[int], Awaitable[list[DueTask]]], judge: Callable[[DueTask], _Found | None]
    ) -> bool:
        """Feed all that `read` finds and `judge` makes a trigger of, a batch after the other. Whether there was any."""
        any_found = False
        while True:
            # What is under way is still there to be found, so as many more are asked for.
            limit = BATCH + len(self._busy)
            rows = await read(limit)
            self._notice_gap()
            any_found |= bool(rows)
            found = [found for row in rows if (found := judge(row)) is not None and _key(*found) not in self._busy]
            await self._feed(found)
            if len(rows) < limit or not found:
                return any_found

    async def _feed(self, found: Sequence[_Found]) -> None:
        """Submit triggers that are not under way already. Waits only while too many are."""
        for run_id, trigger in found:
            key = _key(run_id, trigger)
            if key not in self._busy:
                await self._room()
                self._busy.add(key)
                self._engine.submit(run_id, trigger).add_done_callback(partial(self._settle, key))

    async def _room(self) -> None:
        while len(self._busy) >= MOST_BUSY:
            self._answered.clear()
            try:
                async with asyncio.timeout(TICK_S):
                    await self._answered.wait()
            except TimeoutError:
                pass
            self._notice_gap()  # to wait for an answer is not to be frozen

    def _settle(self, key: _Key, outcome: asyncio.Future[Any]) -> None:
        self._busy.discard(key)
        self._answered.set()
        error = None if outcome.cancelled() else outcome.exception()
        if error is not None and not isinstance(error, StaleTask | WorkflowNotFound):
            _log.error("due task refused", run_id=key[0], task_id=key[1], error=str(error))


def _key(run_id: str, trigger: TaskDue | LoseTask) -> _Key:
    return run_id, trigger.fence.task_id, trigger.fence.attempt


def _fence(row: DueTask) -> Fence:
    task = row.task
    return Fence(task.task_id, task.attempt, task.owner, task.owner_epoch, row.relay_ms)


def _is_silent_only(task: Task, now_ms: int) -> bool:
    """Whether a task is due only because no heartbeat was written: perhaps because nobody could write one."""
    return bool(task.owner) and now_ms < min(task.close_by_ms, task.leased_ms + task.start_to_close_ms)


def _due(row: DueTask) -> _Found:
    return row.run_id, TaskDue(_fence(row), row.task.leased_ms, row.task.heartbeat_ms)
