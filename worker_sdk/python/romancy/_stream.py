"""Carries a session over its streams: connect, reconnect, heartbeats both ways, the end.

It runs on a thread with an event loop of its own, which user code cannot block. The protocol is in `_session.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

import grpc
import grpc.aio

from romancy.v1.worker_service_pb2 import ConnectRequest, ConnectResponse
from romancy.v1.worker_service_pb2_grpc import WorkerServiceStub

from romancy._channel import Endpoint, error_details
from romancy._session import Received, Session
from romancy._threads import new_stream_loop

_log = logging.getLogger("romancy.worker")

_T = TypeVar("_T")
_Call = grpc.aio.StreamStreamCall[ConnectRequest, ConnectResponse]

MAX_BACKOFF_S: Final = 5.0
"""Longest wait before the next stream; less where leases are short, so that a shorter outage costs nothing."""
_FIRST_BACKOFF_S: Final = 0.1
_MISSES: Final = 3
"""Heartbeats missed in a row that end a stream."""
_GOODBYE_S: Final = 5.0
"""How long the service may take to close the stream after a goodbye."""
_FIRST_INTERVAL_S: Final = 5.0
"""The heartbeat interval while no welcome has told one."""
_HOPELESS: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
"""Answers to the very first hello that no further hello will change."""
_TOO_LARGE: Final = frozenset({grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT})


class StreamRefused(Exception):
    """The service refuses this worker for good; trying again cannot help."""


class Handler(Protocol):
    """Who gets what the stream brings. Called on the stream's thread; must not block."""

    def received(self, received: Received) -> None:
        """One frame from the service."""
        ...

    def tick(self) -> None:
        """Some time passed: a part of the heartbeat interval."""
        ...

    def lease_lost(self) -> None:
        """Nothing was heard for a lease: the service may have given the tasks in hand to others."""
        ...

    def ended(self, error: StreamRefused | None) -> None:
        """There will be no further frame: after a goodbye, or because of `error`."""
        ...


class _StreamEnded(Exception):
    """A stream ended otherwise than by a status that says why."""


class Stream:
    """The life of one session. `post` may be called from any thread; all else happens on the stream's own."""

    def __init__(self, endpoint: Endpoint, session: Session, handler: Handler) -> None:
        self._endpoint = endpoint
        self._session = session
        self._handler = handler
        self._loop: asyncio.AbstractEventLoop
        """Made by start: one that is never started would have to be closed."""
        self._thread = threading.Thread(target=self._main, name="romancy-stream", daemon=True)
        self._posted: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._is_posted = False
        self._wake = asyncio.Event()
        self._welcomed = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._was_welcomed = False
        self._finishing = False
        self._written_at = self._heard_at = self._ticked_at = self._stream_began_at = time.monotonic()
        self._lease_lost = False
        self._failures = 0

    def start(self) -> None:
        """Begin to connect."""
        self._loop = new_stream_loop()
        self._thread.start()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until the thread ended."""
        self._thread.join(timeout_s)

    def post(self, say: Callable[[_T], None], what: _T) -> None:
        """Call `say(what)` on the stream's thread, then write what waits. Many posts cost one wake-up."""
        self._posted.append((say, what))
        if not self._is_posted:
            self._is_posted = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: the session is over
                self._loop.call_soon_threadsafe(self._run_posted)

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call on the stream's thread after `delay_s`. Must itself be called there."""
        self._loop.call_later(delay_s, call)

    def finish(self, _: object = None) -> None:
        """Say goodbye after what waits is sent, and end. Without a stream, end at once. To be posted."""
        self._finishing = True
        if self._welcomed.is_set():
            self._session.say_goodbye()
            self._loop.call_later(_GOODBYE_S, self._drop_stream)
        else:
            self._drop_stream()

    def _run_posted(self) -> None:
        self._is_posted = False
        while self._posted:
            say, what = self._posted.popleft()
            say(what)
        self._wake.set()

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._run())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()

    async def _run(self) -> None:
        error: StreamRefused | None = None
        self._tick()
        try:
            while not self._finishing:
                try:
                    await self._serve()
                except Exception as why:
                    await self._recover(why)
        except StreamRefused as refused:
            error = refused
        self._handler.ended(error)

    # One stream -----------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        """From hello to the end, which is an exception unless it came after a goodbye."""
        self._welcomed.clear()
        self._stream_began_at = time.monotonic()
        async with self._endpoint.open() as channel:
            call = WorkerServiceStub(channel).Connect(None, metadata=self._endpoint.metadata)
            reader = self._reader = self._loop.create_task(self._read(call))
            writer = self._loop.create_task(self._write(call))
            try:
                await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)  # the writer only by a bug
                if reader.cancelled():
                    raise _StreamEnded(f"heard nothing for {self._silent_for(self._stream_began_at):.1f} s")
                (reader if reader.done() else writer).result()
            finally:
                self._reader = None
                self._welcomed.clear()
                reader.cancel()
                writer.cancel()
                call.cancel()
                await asyncio.gather(reader, writer, return_exceptions=True)

    async def _read(self, call: _Call) -> None:
        while True:
            frame = await call.read()
            if not isinstance(frame, ConnectResponse):
                if self._finishing or self._session.draining:
                    self._finishing = True
                    return  # all is done, and the service knows that it was the last
                raise _StreamEnded("the service closed the stream")
            now = self._heard_at = time.monotonic()
            self._lease_lost = False
            received = self._session.receive(frame, now)
            if not self._welcomed.is_set() and self._session.is_welcomed:
                self._be_welcomed()
            if self._welcomed.is_set() and now - self._written_at >= self._interval_s / 2:
                self._beat()  # both ends are awake now; a timer would wake them again
            self._handler.received(received)

    def _be_welcomed(self) -> None:
        self._failures = 0
        self._was_welcomed = True
        self._welcomed.set()
        self._wake.set()
        self._ticking.cancel()  # the interval may be another one now
        self._tick()

    async def _write(self, call: _Call) -> None:
        try:
            await self._write_frame(call, self._session.hello())
            await self._welcomed.wait()
            if self._finishing:
                self._session.say_goodbye()
            said_goodbye = False
            while not said_goodbye:
                self._wake.clear()
                while (frame := self._session.next_frame()) is not None:
                    await self._write_frame(call, frame)
                    said_goodbye = said_goodbye or frame.HasField("goodbye")
                if not said_goodbye:
                    await self._wake.wait()
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the call has ended
        await self._loop.create_future()  # how it ends is for the reader to learn

    async def _write_frame(self, call: _Call, frame: ConnectRequest) -> None:
        self._written_at = time.monotonic()  # before it is written: what is heard meanwhile asks for no other frame
        await call.write(frame)

    # Silence --------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Several times in a heartbeat interval: beat if nobody asked for it, and listen whether the service does."""
        interval_s = self._interval_s
        now = time.monotonic()
        if now - self._ticked_at > interval_s:
            self._stream_began_at = now  # we did not run ourselves: first hear what came meanwhile
        self._ticked_at = now
        if self._welcomed.is_set() and now - self._written_at >= interval_s:
            self._beat()
        if self._reader is not None and self._silent_for(self._stream_began_at) > _MISSES * interval_s:
            self._drop_stream()
        lease_s = self._session.welcome.lease.ToMilliseconds() / 1000
        if lease_s and not self._lease_lost and now - self._heard_at > lease_s:
            self._lease_lost = True
            self._handler.lease_lost()
        self._handler.tick()
        self._ticking = self._loop.call_later(min(interval_s, lease_s or interval_s) / 4, self._tick)

    def _beat(self) -> None:
        self._session.beat()
        self._wake.set()

    @property
    def _interval_s(self) -> float:
        return self._session.welcome.heartbeat_interval.ToMilliseconds() / 1000 or _FIRST_INTERVAL_S

    def _silent_for(self, since: float) -> float:
        return time.monotonic() - max(self._heard_at, since)

    def _drop_stream(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
        self._wake.set()

    # Between streams --------------------------------------------------------------------------------------------------

    async def _recover(self, why: Exception) -> None:
        if not self._finishing:
            self._judge(why)
            await self._back_off()

    def _judge(self, why: Exception) -> None:
        """Log the end of a stream; raise StreamRefused if there is to be no other one."""
        if isinstance(why, grpc.aio.AioRpcError):
            reason = error_details(why).reason
            text = f"{why.code().name} {reason}: {why.details()}"
            hopeless = reason in ("SESSION_SUPERSEDED", "INVALID_HELLO")
            if hopeless or (not self._was_welcomed and why.code() in _HOPELESS):
                raise StreamRefused(text) from why
            if why.code() in _TOO_LARGE and self._session.ended_by_size(text):
                _log.error("a completion ended the stream by its size; it is reported as failed instead: %s", text)
        else:
            text = str(why)
            if not isinstance(why, _StreamEnded | OSError):
                _log.error("the stream broke the worker's own code", exc_info=why)
        if self._failures == 0 or self._failures % 12 == 0:
            _log.warning("disconnected from %s, connecting again: %s", self._endpoint.target, text)

    async def _back_off(self) -> None:
        if self._session.service_draining and self._failures == 0:
            self._failures = 1
            return
        lease_s = self._session.welcome.lease.ToMilliseconds() / 1000 or 4 * MAX_BACKOFF_S
        most_s = min(MAX_BACKOFF_S, lease_s / 4, _FIRST_BACKOFF_S * 2 ** min(self._failures, 10))
        self._failures += 1
        self._wake.clear()
        deadline = time.monotonic() + random.uniform(0, most_s)
        while not self._finishing and (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._wake.wait()
            self._wake.clear()
