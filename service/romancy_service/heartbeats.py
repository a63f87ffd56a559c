"""Heartbeats: what activities say of their progress, gathered and written once in a while, not once a message."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Final

import structlog

from romancy.v1.worker_service_pb2 import CANCELLATION_REASON_STALE

from romancy_service.clock import Clock
from romancy_service.core.limits import MIB
from romancy_service.errors import StoreUnavailable
from romancy_service.sessions import InHand, Session
from romancy_service.store.store import Beat, Store

_log = structlog.get_logger("romancy.heartbeats")

GATHER_S: Final = 0.25
"""Heartbeats wait so long for others; the shortest heartbeat timeout that makes sense is some seconds."""

BATCH_BYTES: Final = 4 * MIB
"""So many bytes of details go into one statement, and the last ones besides: any number of attempts may tell much."""

_Waiting = tuple[Session, InHand, bytes | None]


class Heartbeats:
    """Carries heartbeats to the database, the newest of each attempt."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._waiting: dict[str, _Waiting] = {}
        self._being_written: dict[str, asyncio.Future[None]] = {}
        """Attempts whose details are on their way to the database."""
        self._arrived = asyncio.Event()

    def beat(self, session: Session, held: InHand, details: bytes | None) -> None:
        """An attempt goes on; `details` is a serialised Payload, None: as before."""
        if details is None and held.token in self._waiting:
            return  # what waits says more
        self._waiting[held.token] = (session, held, details)
        self._arrived.set()

    def has_news(self, token: str) -> bool:
        """Whether details of an attempt are not written yet."""
        waiting = self._waiting.get(token)
        return token in self._being_written or (waiting is not None and waiting[2] is not None)

    async def write(self, token: str) -> None:
        """Write what waits for one attempt now: it ends, and the next one wants to know how far it got."""
        if (written := self._being_written.get(token)) is not None:
            await written
        if (beat := self._waiting.pop(token, None)) is not None:
            await self._write([beat])

    async def run(self) -> None:
        """Write what gathers, until cancelled."""
        while True:
            await self._arrived.wait()
            await asyncio.sleep(GATHER_S)
            self._arrived.clear()
            beats, self._waiting = self._waiting, {}
            if beats:
                written = asyncio.get_running_loop().create_future()
                self._being_written = {
                    token: written for token, (_, _, details) in beats.items() if details is not None
                }
                try:
                    for part in _parts(beats.values()):
                        await self._write(part)
                finally:
                    self._being_written = {}
                    written.set_result(None)

    async def _write(self, beats: list[_Waiting]) -> None:
        rows = [
            Beat(held.run_id, held.task_id, held.attempt, session.session_id, session.epoch, details)
            for session, held, details in beats
        ]
        try:
            alive = await self._store.heartbeat(rows, self._clock.now_ms())
        except StoreUnavailable as error:
            _log.warning("heartbeats not written", error=str(error), heartbeats=len(rows))
            return
        for (session, held, _), is_alive in zip(beats, alive, strict=True):
            if not is_alive and held.token in session.in_hand:
                session.cancel(held, CANCELLATION_REASON_STALE)


def _parts(beats: Iterable[_Waiting]) -> Iterator[list[_Waiting]]:
    """What is written by one statement each."""
    part: list[_Waiting] = []
    room = BATCH_BYTES
    for beat in beats:
        part.append(beat)
        room -= len(beat[2] or b"")
        if room <= 0:
            yield part
            part, room = [], BATCH_BYTES
    if part:
        yield part
