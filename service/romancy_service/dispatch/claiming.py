"""Claiming: fills free slots with tasks that wait in the database, and gives back there what nobody began."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable

import structlog

from romancy_service.clock import Clock
from romancy_service.core.limits import CLAIM_BYTES
from romancy_service.core.task import TaskKind, TypeKey
from romancy_service.dispatch.backlog import Backlog
from romancy_service.dispatch.doubts import Doubts
from romancy_service.dispatch.roster import Roster
from romancy_service.dispatch.sending import Sending
from romancy_service.errors import StoreUnavailable
from romancy_service.sessions import InHand, Session
from romancy_service.store.store import LeasedRow, Store, Want

_log = structlog.get_logger("romancy.dispatch")


class Claiming:
    """Leases what waits to whoever has room for it, in batches."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        roster: Roster,
        backlog: Backlog,
        sending: Sending,
        doubts: Doubts,
        wake: asyncio.Event,
    ) -> None:
        self._store = store
        self._clock = clock
        self._roster = roster
        self._backlog = backlog
        self._sending = sending
        self._doubts = doubts
        self._wake = wake
        self.stopped = False

    async def claim(self, keys: Iterable[TypeKey]) -> None:
        """Fill free slots with waiting tasks of these types, until no slot is free or nothing waits."""
        while not self.stopped:
            noted = self._backlog.noted()
            wants = self._wants(list(keys))
            if not wants:
                return
            got: dict[tuple[TypeKey, str], int] = defaultdict(int)
            try:
                claimed = await self._store.claim(wants, self._clock.latest_ms())
            except StoreUnavailable:
                self._settle(wants, got, noted={}, whole=True)
                self._doubts.note()
                raise
            too_late = []
            for row in claimed:
                key = (row.namespace, row.task.queue, row.task.kind, row.task.type)
                session = self._roster.current(row.session_id, row.task.owner_epoch)
                if session is None or session.draining:
                    # It left meanwhile, or came back and may have found it by itself, under its new epoch. Or it
                    # leaves, or is to: it may have been promised that nothing comes, and waits only for its slots.
                    owner, epoch = row.session_id, row.task.owner_epoch
                    too_late.append(LeasedRow(row.run_id, row.task.task_id, row.task.attempt, owner, epoch))
                    continue
                got[key, row.session_id] += 1
                self._sending.hand_out_claimed(session, row)
            whole = sum(row.bytes for row in claimed) < CLAIM_BYTES
            self._settle(wants, got, noted, whole=whole)
            await self.give_back(too_late)
            if whole and len(claimed) < sum(want.slots for want in wants):
                return

    def _wants(self, keys: list[TypeKey]) -> list[Want]:
        """Share each session's free slots among those of its types. The slots are reserved by this."""
        keys_of: dict[tuple[str, TaskKind], list[TypeKey]] = defaultdict(list)
        for key in keys:
            for session in self._roster.serving(key):
                if session.takes(key[2]):
                    keys_of[session.session_id, key[2]].append(key)
        wants = []
        for (session_id, kind), wanted in keys_of.items():
            session = self._roster.sessions[session_id]
            for position, key in enumerate(wanted):
                slots = -(-session.free[kind] // (len(wanted) - position))
                if slots > 0:
                    session.free[kind] -= slots
                    wants.append(Want(key[0], key[1], kind, key[3], slots, session_id, session.epoch))
        return wants

    def _settle(
        self,
        wants: list[Want],
        got: dict[tuple[TypeKey, str], int],
        noted: dict[TypeKey, int],
        *,
        whole: bool,
    ) -> None:
        """Free the slots that found nothing. If less came than was wanted a type has no backlog any more, unless
        another one was noted meanwhile, or the claim was not `whole`: it ended at its bytes.
        """
        for want in wants:
            key = (want.namespace, want.queue, want.kind, want.type)
            count = got[key, want.session_id]
            session = self._roster.current(want.session_id, want.epoch)
            if session is not None:
                session.free[want.kind] += want.slots - count
                session.check_left()
            if whole and count < want.slots:
                self._backlog.settle(key, noted)

    async def return_tasks(self, session: Session, tokens: list[str]) -> None:
        """A worker gives back what it did not begin."""
        rows = [self._row(session, held) for token in tokens if (held := session.put_down(token)) is not None]
        session.check_left()
        await self.give_back(rows)

    async def give_back(self, rows: list[LeasedRow]) -> None:
        """Tasks that nobody began: others may have them at once."""
        if not rows:
            return
        try:
            await self._store.release(rows, self._clock.latest_ms())
        except StoreUnavailable as error:
            # Their session has them still, and gets them again if it is there.
            _log.warning("tasks not given back", tasks=len(rows), error=str(error))
            self._doubts.note()
            return
        self.look_now()

    def _row(self, session: Session, held: InHand) -> LeasedRow:
        return LeasedRow(held.run_id, held.task_id, held.attempt, session.session_id, session.epoch)

    def look_now(self) -> None:
        """Look for waiting tasks at once."""
        for key in self._roster.types():
            self._backlog.add(key)
        self._wake.set()
