"""Backlog: which tasks may wait in the database without an owner. The tasks themselves are never in memory."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterator
from typing import Final

from romancy_service.core.task import TypeKey

SOON_MS: Final = 60_000
"""Tasks that become due within this are woken for; the poll finds the others."""
STEP_MS: Final = 10
"""What becomes due within this is woken for at once, at its end: however many wait, few times are kept of a key."""


class Backlog:
    """Keys of which tasks may wait. New tasks of such a key must not overtake them."""

    def __init__(self, wake: asyncio.Event) -> None:
        self._wake = wake
        self._keys: dict[TypeKey, int] = {}
        """How often tasks of a key were noted: tells whether more were while others were looked for."""
        self._due: list[tuple[int, TypeKey]] = []
        """Heap: when waiting tasks become due."""
        self._awaited: set[tuple[int, TypeKey]] = set()
        """What is in the heap."""

    def __contains__(self, key: TypeKey) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[TypeKey]:
        return iter(self._keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def noted(self) -> dict[TypeKey, int]:
        """The keys as they are now, for `settle`."""
        return dict(self._keys)

    def add(self, key: TypeKey) -> None:
        """Something may wait."""
        self._keys[key] = self._keys.get(key, 0) + 1

    def add_later(self, due_ms: int, now_ms: int, key: TypeKey) -> None:
        """Something will wait from then on."""
        awaited = (-(-due_ms // STEP_MS) * STEP_MS, key)
        if due_ms <= now_ms + SOON_MS and awaited not in self._awaited:
            self._awaited.add(awaited)
            heapq.heappush(self._due, awaited)
            if self._due[0] == awaited:
                self._wake.set()

    def settle(self, key: TypeKey, noted: dict[TypeKey, int]) -> None:
        """All that waited when `noted` was taken was found. If more was noted meanwhile, it is looked for again."""
        if noted.get(key) == self._keys.get(key):
            self._keys.pop(key, None)
        else:
            self._wake.set()  # it was noted while the slots were reserved, so nobody looked for it

    def wait_s(self, now_ms: int, most_s: float) -> float:
        """How long it is until the next task becomes due."""
        return min(most_s, max((self._due[0][0] - now_ms) / 1000, 0)) if self._due else most_s

    def ripe(self, now_ms: int) -> list[TypeKey]:
        """Keys of tasks that have become due."""
        keys = []
        while self._due and self._due[0][0] <= now_ms:
            awaited = heapq.heappop(self._due)
            self._awaited.remove(awaited)
            keys.append(awaited[1])
        return keys
