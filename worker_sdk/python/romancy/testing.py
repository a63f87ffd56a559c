"""Testing: the real service in this process, on a temporary SQLite file, with time that tests can skip.

    async with testing.service() as service, Worker(service.address, workflows=[...], activities=[...]):
        handle = await service.client.start_workflow(reminder, "ann")
        await service.skip(timedelta(days=30))
        assert await handle.result() == "reminded"

Needs the extra `romancy[service]`. This is the only module of the SDK that knows the service.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from romancy_service.config import Address, Config
from romancy_service.core.limits import Limits
from romancy_service.server import Running, running

from romancy.client import Client

__all__ = ["LocalService", "service"]


class _SkippableClock:
    """The machine's clock, and whatever tests skipped."""

    def __init__(self) -> None:
        self._ahead_ms = time.time() * 1000 - time.monotonic() * 1000

    def skip(self, length: timedelta) -> None:
        self._ahead_ms += length.total_seconds() * 1000

    def now_ms(self) -> int:
        return int(time.monotonic() * 1000 + self._ahead_ms)

    def earliest_ms(self) -> int:
        return self.now_ms()

    def latest_ms(self) -> int:
        return self.now_ms()

    def certain(self) -> bool:
        return True


@dataclass(slots=True)
class LocalService:
    """A service that runs in this process."""

    address: str
    """For workers and clients: `127.0.0.1:PORT`."""
    client: Client
    """A client of it."""
    running: Running
    """The service's parts, for tests of the service itself."""
    _clock: _SkippableClock

    async def skip(self, length: timedelta) -> None:
        """Let `length` of time pass at once: what becomes due by it happens now. Workers keep their sessions."""
        self._clock.skip(length)
        await self.running.time_moved()


@asynccontextmanager
async def service(database: str | None = None, limits: Limits | None = None) -> AsyncIterator[LocalService]:
    """A service on `database` (a SQLite file or a Postgres URL; default: a temporary file) that is gone after the block."""
    clock = _SkippableClock()

    def make_clock(_: Callable[[], Awaitable[int]]) -> _SkippableClock:
        return clock

    with tempfile.TemporaryDirectory(prefix="romancy-") as folder:
        config = Config(
            database=database or str(Path(folder) / "romancy.db"),
            listen=Address("127.0.0.1", 0),
            limits=limits or Limits(),
        )
        async with running(config, make_clock) as up:
            address = f"127.0.0.1:{up.port}"
            async with Client(address) as client:
                yield LocalService(address, client, up, clock)
