"""Doubts: leases that may have been stored although nobody was told, because the answer of the database was lost."""

from __future__ import annotations

import asyncio
from typing import Final

from romancy_service.dispatch.roster import Roster
from romancy_service.dispatch.sending import Sending
from romancy_service.errors import StoreUnavailable
from romancy_service.sessions import Session
from romancy_service.store.store import Store

DOUBTS_S: Final = (0.0, 1.0, 5.0, 30.0)
"""So long after an answer was lost leases are compared: a database that was frozen carries out late what it got."""


class Doubts:
    """Compares what the database says our sessions have with what was sent to them."""

    def __init__(self, store: Store, roster: Roster, sending: Sending, wake: asyncio.Event) -> None:
        self._store = store
        self._roster = roster
        self._sending = sending
        self._wake = wake
        self._moments: list[float] = []
        """When to compare, soonest first."""

    def note(self) -> None:
        """An answer was lost."""
        now = asyncio.get_running_loop().time()
        self._moments = [now + later_s for later_s in DOUBTS_S]
        self._wake.set()

    async def settle(self) -> None:
        """If it is time: send what our sessions have by the database, and we never sent. Raises StoreUnavailable."""
        asked_at = asyncio.get_running_loop().time()
        if not self._moments or self._moments[0] > asked_at:
            return
        try:
            for session in list(self._roster.sessions.values()):
                await self._compare(session)
        except StoreUnavailable:
            self.note()
            raise
        self._moments = [moment for moment in self._moments if moment > asked_at]

    async def _compare(self, session: Session) -> None:
        # A task that ended while the database was asked is in the answer, and neither in hand nor reported any more.
        known = session.known = {*session.in_hand, *session.reported}
        try:
            rows = await self._store.leased_tasks(session.session_id, session.epoch)
        finally:
            session.known = None
        for row in rows:
            if not session.closed and self._sending.token(row) not in known:
                self._sending.resume(session, row, running=False)
