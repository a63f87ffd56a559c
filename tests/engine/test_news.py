"""What replicas tell each other is told once: hearing it makes nobody say it again."""

from __future__ import annotations

import asyncio
from typing import Any

from romancy.v1.worker_service_pb2 import Hello

from romancy_service.clock import DatabaseClock
from romancy_service.dispatch import Dispatch
from romancy_service.sessions import open_session
from romancy_service.tokens import Tokens


class _Store:
    """A database without tasks, that notes what it is asked and told."""

    def __init__(self) -> None:
        self.looks = 0
        self.told: list[str] = []
        self.looked = asyncio.Event()

    async def to_cancel(self, session_ids: object) -> list[Any]:
        self.looks += 1
        self.looked.set()
        return []

    async def claim(self, wants: object, now_ms: int) -> list[Any]:
        return []

    async def notify(self, payload: str) -> None:
        self.told.append(payload)


async def test_what_another_replica_told_is_looked_for_and_not_told_again() -> None:
    async def now_ms() -> int:
        return 1

    clock = DatabaseClock(now_ms)
    await clock.sync()
    store: Any = _Store()
    dispatch = Dispatch(store, clock, Tokens({"k": b"key"}, "k"), lambda run_id: None)
    dispatch.has_peers = True
    dispatch.connect(open_session("session", 1, Hello(namespace="default", activity_types=["pay"], activity_slots=1)))
    running = asyncio.create_task(dispatch.run())
    for _ in range(3):
        store.looked.clear()
        dispatch.told('{"cancelled": true}')
        async with asyncio.timeout(10):
            await store.looked.wait()
        for _ in range(10):
            await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert store.told == []
