"""Retention: deletes closed runs once they are past what their namespace keeps, and all that belongs to them.

In small batches with pauses between, on a connection of its own, by the first of the replicas. Nothing depends on its
being one alone, nor on how far it comes: what is left is found again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Final

import structlog

from romancy_service import faults
from romancy_service.clock import Clock
from romancy_service.core.limits import Limits
from romancy_service.errors import StoreUnavailable
from romancy_service.store.store import Namespace, Store

_log = structlog.get_logger("romancy.retention")

LOOK_S: Final = 60.0
"""How often it is looked whether something is past its retention."""
RUNS: Final = 200
REQUESTS: Final = 500
"""So many go in one batch: some milliseconds of the database."""
CHANNELS: Final = 500
NAMESPACES: Final = 500
REQUEST_KEPT_MS: Final = 86_400_000
"""Requests are remembered a day at least: clients that were cut off ask again within it. For as long as events too."""
OVERDUE_SLACK_MS: Final = 3_600_000
"""What is overdue may have been done so long before it fell due: a schedule that waits for a run is looked at later."""
REST: Final = 1
"""After each batch it rests so many times as long as that took: at most half of one connection, or of the writer.
So it deletes faster than one service completes runs, as the bench shows, which counts their histories too."""
SHORTEST_REST_S: Final = 0.01


class Retention:
    """Deletes what is past its retention, until cancelled.

    Requests are forgotten last, and none that is younger than what is overdue: so what was done before the service went
    away for long is known to be done when it comes back.
    """

    def __init__(self, store: Store, clock: Clock, limits: Limits) -> None:
        self._store = store
        self._clock = clock
        self._limits = limits
        self._wake = asyncio.Event()
        self._leads = False

    def lead(self, leads: bool) -> None:
        """Whether this replica is the one that deletes."""
        if leads and not self._leads:
            self._wake.set()
        self._leads = leads

    def look_now(self) -> None:
        """Do not wait for the next look."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._wake.clear()
            try:
                if self._leads and self._clock.certain():
                    await self._sweep(self._clock.earliest_ms())
            except StoreUnavailable as error:
                _log.warning("database unavailable", error=str(error))
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _sweep(self, now_ms: int) -> None:
        """One batch of each namespace after the other, so that a large one does not keep the others waiting."""
        while await self._rested(self._store.forget_events(now_ms, REQUESTS)) == REQUESTS:
            pass
        forget_ms = await self._forget_ms(now_ms)
        removed = cleared = 0
        pending = await self._namespaces()
        while pending:
            left = []
            for namespace in pending:
                expired = await self._rested(self._expire(namespace, now_ms))
                forgotten = await self._rested(self._forget(namespace, now_ms, forget_ms))
                removed += expired
                if expired == RUNS or forgotten == REQUESTS:
                    left.append(namespace)
            pending = left
            cleared += await self._clear()
        while piece := await self._clear():
            cleared += piece
        while await self._rested(self._store.forget_dead(now_ms, REQUESTS)) == REQUESTS:
            pass
        unused_ms = now_ms - self._limits.event_window_ms
        while await self._rested(self._store.forget_channels(unused_ms, now_ms, CHANNELS)):
            pass
        await self._store.forget_offers(now_ms - self._limits.offer_kept_ms)
        if removed or cleared:
            _log.info("deleted what was past its retention", runs=removed, cleared_rows=cleared)

    async def _namespaces(self) -> list[Namespace]:
        found: list[Namespace] = []
        while page := await self._store.list_namespaces(found[-1].name if found else "", NAMESPACES):
            found += page
        return found

    async def _expire(self, namespace: Namespace, now_ms: int) -> int:
        return await self._store.remove_expired(namespace.name, now_ms - self._kept_ms(namespace), now_ms, RUNS)

    async def _forget_ms(self, now_ms: int) -> int:
        """Only requests older than this may be forgotten."""
        before_ms = now_ms - max(REQUEST_KEPT_MS, self._limits.event_window_ms)
        since_ms = await self._store.overdue_since(now_ms, before_ms)
        if since_ms == before_ms:
            return before_ms
        _log.warning("requests are kept: something is overdue", hours=round((now_ms - since_ms) / 3_600_000, 1))
        return since_ms - OVERDUE_SLACK_MS

    async def _forget(self, namespace: Namespace, now_ms: int, forget_ms: int) -> int:
        before_ms = min(forget_ms, now_ms - self._kept_ms(namespace))
        return await self._store.forget_requests(namespace.name, before_ms, REQUESTS)

    def _kept_ms(self, namespace: Namespace) -> int:
        return namespace.retention_ms or self._limits.retention_ms

    async def _clear(self) -> int:
        # Counted from now, and not from when the sweep began: a long one also clears what it deletes.
        before_ms = self._clock.earliest_ms() - self._limits.deleted_history_kept_ms
        return await self._rested(self._store.clear_removed(before_ms))

    async def _rested(self, batch: Awaitable[int]) -> int:
        """Do a batch, and rest if there was something to do."""
        began = time.monotonic()
        count = await batch
        if count:
            faults.point("retention.batch")
            await asyncio.sleep(max(SHORTEST_REST_S, REST * (time.monotonic() - began)))
        return count
