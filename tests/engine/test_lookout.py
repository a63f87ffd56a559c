"""The lookout asks once for all parts, wakes those that have something to do, and asks less when there is nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from romancy_service.clock import DatabaseClock
from romancy_service.core.task import NEVER_MS, TaskKind, TypeKey
from romancy_service.errors import StoreUnavailable
from romancy_service.lookout import IDLE_PACE_S, PACE_S, Lookout
from romancy_service.store.store import Agenda

_KEY = ("default", "main", TaskKind.WORKFLOW, "order")


class _Parts:
    """All parts at once: what each of them was told, in order; and the database that is asked."""

    def __init__(self, *answers: Agenda | StoreUnavailable, has_peers: bool = False) -> None:
        self.answers = list(answers)
        self.told: list[str] = []
        self.paces: list[float] = []
        self.has_peers = has_peers
        self.commits = 0
        self.done = asyncio.Event()

    async def agenda(self, now_ms: int, keys: list[TypeKey]) -> Agenda:
        assert keys == [_KEY]
        answer = self.answers.pop(0)
        if isinstance(answer, StoreUnavailable):
            raise answer
        return answer

    async def sleep(self, seconds: float) -> None:
        self.paces.append(seconds)
        if not self.answers:
            self.done.set()
            await asyncio.Event().wait()

    def types(self) -> list[TypeKey]:
        return [_KEY]

    def noticed(self, waiting: list[TypeKey], *, cancelled: bool) -> None:
        self.told.append(f"dispatch {waiting} {cancelled}")

    def part(self, name: str) -> Any:
        return _Part(name, self.told)


class _Part:
    def __init__(self, name: str, told: list[str]) -> None:
        self._name = name
        self._told = told

    def look_now(self, **_: bool) -> None:
        self._told.append(self._name)

    def distrust(self) -> None:
        self._told.append(f"{self._name} distrusts")


@asynccontextmanager
async def _looking(parts: _Parts, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    async def now_ms() -> int:
        return 1

    monkeypatch.setattr(asyncio, "sleep", parts.sleep)
    clock = DatabaseClock(now_ms)
    await clock.sync()
    each = [parts.part(name) for name in ("relay", "publisher", "outbox", "schedules", "queries")]
    lookout = Lookout(parts, clock, parts, parts, *each)  # type: ignore[arg-type]
    task = asyncio.create_task(lookout.run())
    try:
        await asyncio.wait_for(parts.done.wait(), 10)
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("agenda", "told"),
    [
        (Agenda(), []),
        (Agenda(task_ms=NEVER_MS - 1, schedule_ms=NEVER_MS - 1), []),
        (Agenda(task_ms=0), ["relay"]),
        (Agenda(lost=True), ["relay"]),
        (Agenda(schedule_ms=0), ["schedules"]),
        (Agenda(events=True), ["publisher"]),
        (Agenda(outgoing_ms=0), ["outbox"]),
        (Agenda(outgoing_ms=NEVER_MS - 1), []),
        (Agenda(questions=True), ["queries"]),
        (Agenda(waiting=[_KEY]), [f"dispatch {[_KEY]} False"]),
        (Agenda(cancelled=True), ["dispatch [] True"]),
    ],
)
async def test_only_who_has_something_to_do_looks(
    agenda: Agenda, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = _Parts(agenda)
    async with _looking(parts, monkeypatch):
        assert parts.told == told


async def test_a_replica_that_is_alone_and_has_nothing_to_do_asks_half_as_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = _Parts(Agenda(), Agenda(events=True), Agenda())
    async with _looking(parts, monkeypatch):
        assert parts.paces == [PACE_S, IDLE_PACE_S, PACE_S, IDLE_PACE_S]


async def test_one_that_is_not_alone_asks_every_second(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = _Parts(Agenda(), Agenda(), has_peers=True)
    async with _looking(parts, monkeypatch):
        assert parts.paces == [PACE_S] * 3


async def test_nobody_is_declared_lost_while_the_database_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = _Parts(StoreUnavailable("away"), Agenda())
    async with _looking(parts, monkeypatch):
        assert parts.told == ["relay distrusts"]
        assert parts.paces == [PACE_S, PACE_S, IDLE_PACE_S]
