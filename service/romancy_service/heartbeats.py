"""Heartbeats: what activities say of their progress, gathered and written once in a while, not once a message."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from romancy.v1.worker_service_pb2 import CANCELLATION_REASON_STALE

from romancy_service.clock import Clock
from romancy_service.errors import StoreUnavailable
from romancy_service.sessions import InHand, Session
from romancy_service.store.store import Beat, Store

_log = structlog.get_logger("romancy.heartbeats")

GATHER_S: Final = 0.25
"""Heartbeats wait so long for others; the shortest heartbeat timeout that makes sense is some seconds."""


class Heartbeats:
    """Carries heartbeats to the database, the newest of each attempt."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._waiting: dict[bytes, tuple[Session, InHand, bytes | None]] = {}
        self._arrived = asyncio.Event()

    def beat(self, session: Session, held: InHand, details: bytes | None) -> None:
        """An attempt goes on; `details` is a serialised Payload, None: as before."""
        if details is None and held.token in self._waiting:
            return
        self._waiting[held.token] = (session, held, details)
        self._arrived.set()

    async def run(self) -> None:
        """Write what gathers, until cancelled."""
        while True:
            await self._arrived.wait()
            await asyncio.sleep(GATHER_S)
            self._arrived.clear()
            beats, self._waiting = self._waiting, {}
            rows = [
                Beat(held.run_id, held.task_id, held.attempt, session.session_id, session.epoch, details)
                for session, held, details in beats.values()
            ]
            try:
                alive = await self._store.heartbeat(rows, self._clock.now_ms())
            except StoreUnavailable as error:
                _log.warning("heartbeats not written", error=str(error), heartbeats=len(rows))
                continue
            for (session, held, _), is_alive in zip(beats.values(), alive, strict=True):
                if not is_alive and held.token in session.in_hand:
                    session.cancel(held, CANCELLATION_REASON_STALE)
