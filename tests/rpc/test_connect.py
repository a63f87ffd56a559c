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

QUICK = Limits(session_lease_ms=1_000, heartbeat_interval_ms=100, reconnect_grace_ms=100)
HELLO = Hello(worker_id="worker", task_queues=["q"], activity_types=["pay"], activity_slots=1)


class _Lobby:
    """Notes ends of sessions once the database, which takes its time, has answered."""

    def __init__(self) -> None:
        self.session = open_session("session", 1, HELLO)
        self.begun = asyncio.Event()
        self.database = asyncio.Event()
        self.left: list[str] = []

    async def admit(self, hello: Hello) -> tuple[Session, Welcome]:
        return self.session, Welcome(session_id="session")

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
    def __init__(self) -> None:
        self.frames: asyncio.Queue[ConnectResponse] = asyncio.Queue()

    async def write(self, frame: ConnectResponse) -> None:
        self.frames.put_nowait(frame)


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


async def test_an_idle_stream_carries_signs_of_life_however_often_its_session_is_woken() -> None:
    lobby, node, context = _Lobby(), _Node(), _Context()
    service = WorkerService(node, lobby, QUICK)  # type: ignore[arg-type]
    call = asyncio.create_task(service.Connect(_frames(), context))  # type: ignore[arg-type]
    assert (await context.frames.get()).HasField("welcome")

    async def wake() -> None:
        while True:
            lobby.session.wake.set()
            await asyncio.sleep(QUICK.heartbeat_interval_ms / 4_000)

    waking = asyncio.create_task(wake())
    async with asyncio.timeout(10):
        signs = [await context.frames.get() for _ in range(2)]
    assert all(not sign.ListFields()[1:] for sign in signs), "nothing but the time"
    for task in (waking, call):
        task.cancel()
    lobby.database.set()
    await asyncio.gather(waking, call, *node.tasks, return_exceptions=True)
