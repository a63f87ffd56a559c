"""Dispatch: brings tasks to sessions. On the happy path a task goes in already leased and is sent after the commit;
what finds no free slot waits in the database and is claimed in batches when slots become free.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from romancy_service.clock import Clock
from romancy_service.core.run import Run
from romancy_service.core.task import Task, TaskKind, TypeKey
from romancy_service.dispatch.backlog import Backlog
from romancy_service.dispatch.claiming import Claiming
from romancy_service.dispatch.doubts import Doubts
from romancy_service.dispatch.news import News
from romancy_service.dispatch.roster import Roster
from romancy_service.dispatch.sending import Sending
from romancy_service.dispatch.stopping import Stopping
from romancy_service.errors import RomancyError, StoreUnavailable
from romancy_service.sessions import InHand, Session
from romancy_service.store.store import Claimed, Lease, LeasedRow, Store
from romancy_service.tokens import Tokens

_log = structlog.get_logger("romancy.dispatch")

POLL_S: Final = 1.0
"""How often it is looked whether leases are in doubt."""


class Dispatch:
    """Knows which sessions are connected here, gives them tasks, and takes back what they lose."""

    def __init__(self, store: Store, clock: Clock, tokens: Tokens, cached: Callable[[str], Run | None]) -> None:
        self._clock = clock
        self._wake = wake = asyncio.Event()
        self._roster = roster = Roster()
        self._backlog = Backlog(wake)
        self._sending = Sending(store, tokens, cached, self.disconnect, self.uncertain)
        self._doubts = Doubts(store, roster, self._sending, wake)
        self._claiming = Claiming(store, clock, roster, self._backlog, self._sending, self._doubts, wake)
        self._news = News(store, wake)
        self._stopping = Stopping(store, roster, self._news, wake)

    # Sessions -----------------------------------------------------------------------------------------------------

    @property
    def sessions(self) -> dict[str, Session]:
        """Those that are connected here, by id."""
        return self._roster.sessions

    def connect(self, session: Session) -> None:
        """A worker is there: give it tasks."""
        self._roster.add(session)
        for key in session.type_keys():
            self._backlog.add(key)
        self._wake.set()

    def disconnect(self, session: Session, why: RomancyError | None = None) -> None:
        """Its stream ended, or ends now because of `why`: give it nothing more."""
        if not session.closed:
            session.close(why)
            self._roster.remove(session)

    def freed(self, session: Session) -> None:
        """A slot became free, or the stream of a session that was full: something may wait for it."""
        if self._backlog and not self._wake.is_set():
            self._wake.set()
        session.check_left()

    def look_now(self) -> None:
        """Look for waiting tasks at once."""
        self._claiming.look_now()

    def types(self) -> list[TypeKey]:
        """All that somebody here takes, and has a free slot for."""
        return [key for key in self._roster.types() if self._roster.has_room(key)]

    def noticed(self, waiting: Iterable[TypeKey], *, cancelled: bool) -> None:
        """Tasks of these types wait in the database; or somebody has tasks that were asked to stop."""
        for key in waiting:
            if self._roster.serving(key):
                self._backlog.add(key)
        if cancelled:
            self._stopping.look()
        self._wake.set()

    def stop(self) -> None:
        """Give no more tasks."""
        self._claiming.stopped = True

    # Tasks of sessions --------------------------------------------------------------------------------------------

    def token(self, row: Claimed) -> str:
        """The token of a task that a session has."""
        return self._sending.token(row)

    def resume(self, session: Session, row: Claimed, *, running: bool) -> InHand:
        """After a reconnect: a task that the session had. `running`: the worker still has it; else send it again."""
        return self._sending.resume(session, row, running=running)

    async def resend_whole(self, session: Session, held: InHand) -> None:
        """The worker does not hold the run after all: send everything, under the same token."""
        await self._sending.resend_whole(session, held)

    async def return_tasks(self, session: Session, tokens: list[str]) -> None:
        """A worker gives back what it did not begin."""
        await self._claiming.return_tasks(session, tokens)

    async def give_back(self, rows: list[LeasedRow]) -> None:
        """Tasks that nobody began: others may have them at once."""
        await self._claiming.give_back(rows)

    def able(self, run: Run) -> Session | None:
        """A session here that could run the run's code: the one that holds it in memory, else another one each time."""
        return self._roster.able(run)

    # The engine's outlet ------------------------------------------------------------------------------------------

    def offer(self, run: Run, task: Task) -> Lease | None:
        """A session with a free slot for the task, its slot reserved; None if it is to be claimed instead."""
        key = _key(run.namespace, task)
        if key in self._backlog or self._claiming.stopped:
            return None
        if task.kind is TaskKind.ACTIVITY and task.attempt > 1:
            return None  # what its last attempt said of its progress is in the database: a claim brings it
        session = self._roster.choose(run, task, key)
        if session is None:
            return None
        session.free[task.kind] -= 1
        return Lease(session.session_id, session.epoch)

    def withdraw(self, task: Task, lease: Lease) -> None:
        """Nothing came of an offer: the slot is free again."""
        session = self._roster.current(lease.session_id, lease.epoch)
        if session is not None:
            session.free[task.kind] += 1
            self.freed(session)

    def uncertain(self) -> None:
        """The connection broke while leases were being written: some may be stored that nobody was told of."""
        self._doubts.note()

    def committed(self, run: Run, leases: dict[str, Lease]) -> None:
        """Send what was leased; note what waits; tell workers of what they need not finish."""
        now_ms = self._clock.latest_ms()
        self._stopping.committed(run)
        for task_id in run.touched:
            if task_id not in run.rewritten or run.tasks[task_id].kind > TaskKind.ACTIVITY:
                continue
            task = run.tasks[task_id]
            lease = leases.get(task_id)
            if lease is None:
                self._wait(_key(run.namespace, task), task.due_ms, now_ms)
                continue
            session = self._roster.current(lease.session_id, lease.epoch)
            if session is not None:  # else its stream ended just now; its next hello, or the sweep, finds the row
                self._sending.hand_out(session, run, task, now_ms)

    def _wait(self, key: TypeKey, due_ms: int, now_ms: int) -> None:
        if due_ms > now_ms:
            self._backlog.add_later(due_ms, now_ms, key)
        else:
            self._note_waiting(key)

    def _note_waiting(self, key: TypeKey) -> None:
        has_room = self._roster.has_room(key)
        if self._roster.serving(key):
            self._backlog.add(key)
        if has_room:
            self._wake.set()
        else:
            self._news.add_waiting(key)

    # Running ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Claim whenever something may wait for a free slot. Until cancelled."""
        while True:
            await self._until_something_to_do()
            self._wake.clear()
            try:
                await self._doubts.settle()
                await self._claiming.claim(self._backlog)
                await self._stopping.push()
                await self._news.tell()
            except StoreUnavailable as error:
                _log.warning("database unavailable", error=str(error))
                await asyncio.sleep(POLL_S / 2)

    async def _until_something_to_do(self) -> None:
        try:
            async with asyncio.timeout(self._backlog.wait_s(self._clock.latest_ms(), POLL_S)):
                await self._wake.wait()
        except TimeoutError:
            pass
        for key in self._backlog.ripe(self._clock.latest_ms()):
            self._note_waiting(key)

    # Other replicas -----------------------------------------------------------------------------------------------

    @property
    def has_peers(self) -> bool:
        """Whether there are other replicas, to be told of what concerns them."""
        return self._news.has_peers

    @has_peers.setter
    def has_peers(self, there_are: bool) -> None:
        self._news.has_peers = there_are

    def told(self, payload: str) -> None:
        """Another replica has tasks that wait, or activities that must stop."""
        message = json.loads(payload)
        for namespace, queue, kind, task_type in message.get("waiting", ()):
            key = (namespace, queue, TaskKind(kind), task_type)
            if self._roster.serving(key):
                self._backlog.add(key)
        for run_id, task_id, attempt in message.get("stale", ()):
            self._stopping.tell_stale(run_id, task_id, attempt)
        if message.get("cancelled"):
            self._stopping.look()
        self._wake.set()


def _key(namespace: str, task: Task) -> TypeKey:
    return namespace, task.queue, task.kind, task.type
