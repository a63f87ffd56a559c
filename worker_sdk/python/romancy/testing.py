"""Testing: the real service in this process, on a temporary SQLite file, with time that tests can skip.

    async with testing.service() as service, Worker(service.address, workflows=[...], activities=[...]):
        handle = await service.client.start_workflow(reminder, "ann")
        await service.skip(timedelta(days=30))
        assert await handle.result() == "reminded"

Needs the extra `romancy[service]`. This is the only module of the SDK that knows the service.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog

from romancy.client import Client
from romancy_service.config import Address, Config
from romancy_service.core.destinations import LOOPBACK, Destinations
from romancy_service.core.limits import Limits
from romancy_service.core.task import NEVER_MS, Task
from romancy_service.server import Running, running

__all__ = ["LocalService", "service"]

_ROUND_S = 0.002
_QUIET_ROUNDS = 5
"""So many looks in a row must find nothing under way: what an acknowledgement sets off is on its way for a moment."""


class _SkippableClock:
    """The machine's clock, and whatever tests skipped."""

    def __init__(self) -> None:
        self._ahead_ms = time.time() * 1000 - time.monotonic() * 1000

    def move_to(self, time_ms: int) -> None:
        self._ahead_ms += max(time_ms - self.now_ms(), 0)

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
    http_address: str
    """For events by HTTP: `127.0.0.1:PORT`."""
    client: Client
    """A client of it."""
    running: Running
    """The service's parts, for tests of the service itself."""
    _clock: _SkippableClock

    async def skip(self, length: timedelta | float, *, patience: timedelta = timedelta(seconds=1)) -> None:
        """Let `length` (a timedelta, or seconds) pass: all that becomes due meanwhile happens, one after the other.

        Goes from one due time to the next, and waits each time until all that runs waits for something; for an activity
        that goes on and on no longer than `patience`. Workers keep their sessions.
        """
        length = length if isinstance(length, timedelta) else timedelta(seconds=length)
        await self._quiet(patience)
        end_ms = self._clock.now_ms() + int(length.total_seconds() * 1000)
        while (next_ms := await self._next_due_ms()) <= end_ms:
            await self._move_to(next_ms, patience)
        await self._move_to(end_ms, patience)

    async def _move_to(self, time_ms: int, patience: timedelta) -> None:
        self._clock.move_to(time_ms)
        await self.running.time_moved()
        await self._quiet(patience)

    async def _next_due_ms(self) -> int:
        scheduled_ms = await self.running.schedules.next_ms()
        now_ms = self._clock.now_ms()
        times = (time for task in self._open_tasks() for time in (task.due_ms, task.unowned_relay_ms) if time > now_ms)
        return min(min(times, default=NEVER_MS), scheduled_ms)

    def _open_tasks(self) -> Iterator[Task]:
        return (task for run in self.running.node.engine.open_runs() for task in run.tasks.values())

    async def _quiet(self, patience: timedelta) -> None:
        """Wait until nothing is under way, and nothing is due that nobody has taken up."""
        deadline = time.monotonic() + patience.total_seconds()
        quiet = 0
        while quiet < _QUIET_ROUNDS and time.monotonic() < deadline:
            now_ms = self._clock.now_ms()
            under_way = not (self.running.node.engine.idle and self.running.schedules.idle)
            busy = under_way or any(task.due_ms <= now_ms for task in self._open_tasks())
            quiet = 0 if busy else quiet + 1
            await asyncio.sleep(_ROUND_S)


@asynccontextmanager
async def service(
    database: str | None = None, limits: Limits | None = None, *, log_level: int = logging.ERROR
) -> AsyncIterator[LocalService]:
    """A service on `database` (a SQLite file or a Postgres URL; default: a temporary file), gone after the block.

    What it logs from `log_level` on goes to the loggers `romancy.*` of `logging`; a process that has configured
    structlog itself gets all of it there.
    """
    clock = _SkippableClock()

    def make_clock(_: Callable[[], Awaitable[int]]) -> _SkippableClock:
        return clock

    with _logging(log_level), tempfile.TemporaryDirectory(prefix="romancy-") as folder:
        config = Config(
            database=database or str(Path(folder) / "romancy.db"),
            listen=Address("127.0.0.1", 0),
            http=Address("127.0.0.1", 0),
            limits=limits or Limits(),
            destinations=Destinations.parse(LOOPBACK),
        )
        async with running(config, make_clock) as up:
            address = f"127.0.0.1:{up.port}"
            async with Client(address) as client:
                yield LocalService(address, f"127.0.0.1:{up.http_port}", client, up, clock)


@contextmanager
def _logging(level: int) -> Iterator[None]:
    """The service's logs, and those of its migrations, as those of a library: structlog alone prints them."""
    alembic = logging.getLogger("alembic")
    level_before = alembic.level
    alembic.setLevel(level)
    is_ours = not structlog.is_configured()
    if is_ours:
        structlog.configure(
            processors=[structlog.processors.format_exc_info, _render],
            wrapper_class=structlog.make_filtering_bound_logger(level),
            logger_factory=lambda name="romancy": logging.getLogger(name),
            cache_logger_on_first_use=False,
        )
    try:
        yield
    finally:
        if is_ours:
            structlog.reset_defaults()
        alembic.setLevel(level_before)


def _render(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    text, trace = event.pop("event", ""), event.pop("exception", "")
    fields = " ".join(f"{name}={value!r}" for name, value in event.items())
    return "\n".join(part for part in (f"{text}  {fields}".rstrip(), trace) if part)
