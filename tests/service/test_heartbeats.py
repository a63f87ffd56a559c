"""Heartbeats on their way to the database: an attempt that ends waits for what it said."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from romancy.v1.worker_service_pb2 import Hello

from romancy_service.clock import DatabaseClock
from romancy_service.core.task import TaskKind
from romancy_service.heartbeats import Heartbeats
from romancy_service.sessions import InHand, open_session
from romancy_service.store.store import Beat

_HELD = InHand(b"token", "run", "a/pay:1", 1, TaskKind.ACTIVITY, 0)


class _SlowStore:
    """A database that answers when it is let."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()
        self.written: list[bytes | None] = []
        self.together: list[int] = []
        """Bytes of each statement."""

    async def heartbeat(self, beats: Sequence[Beat], now_ms: int) -> list[bool]:
        self.asked.set()
        await self.answers.wait()
        self.written += [beat.details for beat in beats]
        self.together.append(sum(len(beat.details or b"") for beat in beats))
        return [True for _ in beats]


async def _now_ms() -> int:
    return 1


async def test_details_that_are_being_written_are_news_until_they_are_there() -> None:
    store: Any = _SlowStore()
    clock = DatabaseClock(_now_ms)
    await clock.sync()
    heartbeats = Heartbeats(store, clock)
    writing = asyncio.create_task(heartbeats.run())
    heartbeats.beat(open_session("session", 1, Hello(namespace="default")), _HELD, b"half")
    await store.asked.wait()
    assert heartbeats.has_news(b"token")
    ending = asyncio.create_task(heartbeats.write(b"token"))
    await asyncio.sleep(0)
    assert not ending.done(), "the end would overtake what was said before it"
    store.answers.set()
    await ending
    assert store.written == [b"half"]
    assert not heartbeats.has_news(b"token")
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)


async def test_what_many_attempts_tell_is_written_a_part_at_a_time() -> None:
    store: Any = _SlowStore()
    store.answers.set()
    clock = DatabaseClock(_now_ms)
    await clock.sync()
    heartbeats = Heartbeats(store, clock)
    session = open_session("session", 1, Hello(namespace="default"))
    for number in range(20):
        held = InHand(f"token-{number}", "run", f"a/pay:{number}", 1, TaskKind.ACTIVITY, 0)
        heartbeats.beat(session, held, b"x" * (1 << 20))
    writing = asyncio.create_task(heartbeats.run())
    async with asyncio.timeout(20):
        while len(store.written) < 20:
            await asyncio.sleep(0.01)
    assert store.together == [4 << 20] * 5
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
