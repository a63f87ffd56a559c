"""News: what the other replicas are to be told. Any of it may be lost; a poll finds what it was about."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Final

from romancy_service.core.task import TypeKey
from romancy_service.store.store import Store

_NOTIFICATION_BYTES: Final = 7_900
"""What one notification of Postgres holds, less its frame."""


class News:
    """Gathers what is worth telling, and tells it in as few notifications as it takes."""

    def __init__(self, store: Store, wake: asyncio.Event) -> None:
        self._store = store
        self._wake = wake
        self._waiting: set[TypeKey] = set()
        self._stale: list[tuple[str, str, int]] = []
        self._cancelled = False
        self.has_peers = False

    def add_waiting(self, key: TypeKey) -> None:
        """Tasks wait that nobody here can have."""
        if self.has_peers:
            self._waiting.add(key)
            self._wake.set()

    def add_stale(self, run_id: str, task_id: str, attempt: int) -> None:
        """The result of an attempt (0: any) would be refused, and nobody here has it."""
        if self.has_peers:
            self._stale.append((run_id, task_id, attempt))
            self._wake.set()

    def add_cancelled(self) -> None:
        """Activities were asked to stop, on whatever replica their session is."""
        self._cancelled = self.has_peers

    async def tell(self) -> None:
        """Tell all that was gathered. Raises StoreUnavailable."""
        if self._waiting:
            keys, self._waiting = sorted(self._waiting), set()
            await self._tell("waiting", keys)
        if self._stale:
            stale, self._stale = self._stale, []
            await self._tell("stale", stale)
        if self._cancelled:
            self._cancelled = False
            await self._store.notify(json.dumps({"cancelled": True}))

    async def _tell(self, what: str, items: Sequence[tuple[object, ...]]) -> None:
        """As many notifications as it takes: each holds less than 8,000 bytes."""
        told: list[str] = []
        room = _NOTIFICATION_BYTES
        for item in map(json.dumps, items):
            if told and len(item) + 2 > room:
                await self._store.notify(f'{{"{what}": [{", ".join(told)}]}}')
                told, room = [], _NOTIFICATION_BYTES
            told.append(item)
            room -= len(item) + 2
        await self._store.notify(f'{{"{what}": [{", ".join(told)}]}}')
