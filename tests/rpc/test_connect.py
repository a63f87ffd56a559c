"""The end of a stream: what must be written then is written, however often the call is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from romancy.v1.worker_service_pb2 import ConnectRequest, ConnectResponse, Hello, Welcome

from romancy_service.core.limits import Limits
from romancy_service.rpc.worker_service import WorkerService
from romancy_service.sessions import Session, open_session

HELLO = Hello(worker_id="worker", task_queues=["q"], activity_types=["pay"], activity_slots=1)


class _Lobby:
    """Notes ends of sessions once the database, which takes its time, has answered."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.database = asyncio.Event()
        self.left: list[str] = []

    async def admit(self, hello: Hello) -> tuple[Session, Welcome]:
        return open_session("session", 1, hello), Welcome(session_id="session")

    async def leave(self, session: Session, *, goodbye: bool) -> None:
        self.begun.set()
        await self.database.wait()
        self.left.append(session.session_id)


class _Node:
    """Of the parts of a replica only what a stream without tasks needs."""

    def __init__(self) -> None:
        self.clock = SimpleNamespace(now_ms=lambda: 0)
        self.tasks: list[asyncio.Task[Any]] = []

    def background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        self.tasks.append(asyncio.create_task(work))
        return self.tasks[-1]


class _Context:
    async def write(self, frame: ConnectResponse) -> None:
        """Taken."""


async def _frames() -> AsyncIterator[ConnectRequest]:
    yield ConnectRequest(hello=HELLO)
    await asyncio.Event().wait()


async def test_a_call_that_is_cancelled_twice_still_notes_that_its_worker_left() -> None:
    lobby, node = _Lobby(), _Node()
    service = WorkerService(node, lobby, Limits())  # type: ignore[arg-type]
    call = asyncio.create_task(service.Connect(_frames(), _Context()))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    call.cancel()
    await lobby.begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    lobby.database.set()
    await asyncio.gather(*node.tasks)
    assert lobby.left == ["session"]
