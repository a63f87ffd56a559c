"""WorkerService: joins one gRPC stream to one session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Final

import grpc
import structlog

from romancy.v1.worker_service_pb2 import ActivityHeartbeat, ConnectRequest, ConnectResponse, Hello
from romancy.v1.worker_service_pb2_grpc import WorkerServiceServicer

from romancy_service.core.check import check_payload
from romancy_service.core.limits import Limits
from romancy_service.core.times import timestamp
from romancy_service.errors import Draining, InvalidField, PeerSilent
from romancy_service.lobby import Lobby
from romancy_service.node import Node
from romancy_service.rpc.auth import CALLER
from romancy_service.rpc.chunks import Chunker, Joiner
from romancy_service.rpc.completions import Completions
from romancy_service.rpc.validate import check_hello, namespace_of
from romancy_service.sessions import Session

_log = structlog.get_logger("romancy.worker_service")

STREAMS_IN_STEP: Final = 50
"""So many streams have their signs of life at the same moments: enough to share what it costs to wake up, and too few
to hold up anybody else for more than some milliseconds."""
_GOLDEN: Final = 0.6180339887
"""Multiples of it, less their whole parts, lie as far from each other as they can, however many there are."""


class WorkerService(WorkerServiceServicer):
    """Connect, and nothing else: each stream is served by a `_Connection`."""

    def __init__(self, node: Node, lobby: Lobby, limits: Limits) -> None:
        self._node = node
        self._lobby = lobby
        self._limits = limits
        self._streams = 0
        """So many began."""

    async def Connect(  # type: ignore[override]  # it writes to the context; the stub knows only generators
        self,
        request_iterator: AsyncIterator[ConnectRequest],
        context: grpc.aio.ServicerContext[ConnectRequest, ConnectResponse],
    ) -> None:
        """Serve one stream until either side ends it."""
        joiner = Joiner(self._limits.connect_message_bytes)
        hello = await _first_frame(request_iterator, joiner, self._limits.hello_ms / 1000)
        check_hello(hello, self._limits)
        hello.namespace = namespace_of(hello.namespace, self._limits)
        # The guard sees frames as they come; this hello may have come in chunks.
        if (caller := CALLER.get()) is not None:
            caller.check_namespace(hello.namespace)
        session, welcome = await self._lobby.admit(hello)
        step = self._streams // STREAMS_IN_STEP
        self._streams += 1
        connection = _Connection(self._node, session, context, self._limits, joiner, phase=step * _GOLDEN % 1)
        goodbye = False
        try:
            await connection.write(ConnectResponse(welcome=welcome))
            goodbye = await connection.serve(request_iterator)
        finally:
            # A call whose peer is gone may be cancelled more than once; what is to be written then must not be cut off.
            await asyncio.shield(self._node.background(self._lobby.leave(session, goodbye=goodbye)))


async def _first_frame(frames: AsyncIterator[ConnectRequest], joiner: Joiner, patience_s: float) -> Hello:
    try:
        async with asyncio.timeout(patience_s):
            async for piece in frames:
                frame = joiner.join(piece)
                if frame is None:
                    continue
                if not frame.HasField("hello"):
                    raise InvalidField(
                        "hello", "is missing", "the first frame of a stream carries it", reason="INVALID_HELLO"
                    )
                return frame.hello
    except TimeoutError as error:
        raise PeerSilent(patience_s) from error
    raise InvalidField("hello", "is missing", "the stream ended before its first frame", reason="INVALID_HELLO")


class _Connection:
    """One stream of one session: reads frames, writes what the session has to say."""

    def __init__(
        self,
        node: Node,
        session: Session,
        context: grpc.aio.ServicerContext[ConnectRequest, ConnectResponse],
        limits: Limits,
        joiner: Joiner,
        phase: float,
    ) -> None:
        """`phase`, below 1, is when in each half interval it has its sign of life, if one is due."""
        self._node = node
        self._session = session
        self._context = context
        self._limits = limits
        self._joiner = joiner
        self._chunker = Chunker(limits.chunk_bytes) if session.hello.accepts_chunks else None
        self._interval_s = limits.heartbeat_interval_ms / 1000
        self._silence_s = self._interval_s * limits.missed_heartbeats
        self._phase_s = phase * self._interval_s / 2
        self._returns: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._written_at = self._heard_at = self._loop.time()
        self._is_beat_due = False
        self._completions = Completions(node, session, limits, self._give)

    async def serve(self, frames: AsyncIterator[ConnectRequest]) -> bool:
        """Until the worker has left (True) or ended the stream (False), silence, or a newer stream of the session."""
        parts = [asyncio.create_task(part) for part in (self._read(frames), self._write(), self._watch())]
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            left = next(part for part in parts if part.done()).result()
            # What was given back, or handed over, must be so before what is left counts as lost.
            await asyncio.gather(*self._returns)
            return left
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def _watch(self) -> bool:
        """Have something written when nothing was for nearly an interval. Raises PeerSilent after a long silence.

        In step with some other streams: what is woken together costs a fraction of what is woken one by one.
        """
        step_s, phase_s = self._interval_s / 2, self._phase_s
        while True:
            now = self._loop.time()
            if now >= self._heard_at + self._silence_s:
                raise PeerSilent(self._silence_s)
            next_at = ((now - phase_s) // step_s + 1) * step_s + phase_s
            if next_at > self._written_at + self._interval_s:
                self._is_beat_due = True
                self._session.wake.set()
            await asyncio.sleep(min(next_at, self._heard_at + self._silence_s) - now)

    # Down ---------------------------------------------------------------------------------------------------------

    async def _write(self) -> bool:
        """Until the worker has left (True)."""
        session, clock = self._session, self._loop.time
        while True:
            was_full = session.is_full
            frame = session.take_frame(self._limits.frame_bytes)
            if was_full and not session.is_full:
                self._node.dispatch.freed(session)
            if frame is None:
                if session.closed:
                    raise session.closed_why or Draining()
                if session.has_left:
                    return True
                if not self._is_beat_due:
                    session.wake.clear()
                    await session.wake.wait()
                    # What else this round of the event loop has to say joins the frame: an answer, the task after it.
                    await asyncio.sleep(0)
                    continue
                frame = ConnectResponse()
            await self.write(frame)
            self._written_at = clock()
            self._is_beat_due = False

    async def write(self, frame: ConnectResponse) -> None:
        """Send one frame, in pieces if it is large and the worker joins them."""
        now = timestamp(self._node.clock.now_ms())
        frame.time.CopyFrom(now)
        if self._chunker is not None and frame.ByteSize() > 4 * self._limits.chunk_bytes:
            for piece in self._chunker.split(frame):
                await self._context.write(ConnectResponse(chunk=piece, time=now))
        else:
            await self._context.write(frame)

    # Up -----------------------------------------------------------------------------------------------------------

    async def _read(self, frames: AsyncIterator[ConnectRequest]) -> bool:
        iterator = aiter(frames)
        while True:
            try:
                piece = await anext(iterator)
            except StopAsyncIteration:
                return False
            self._heard_at = self._loop.time()
            frame = self._joiner.join(piece)
            if frame is not None and self._receive(frame):
                return True
            self._session.check_read()

    def _receive(self, frame: ConnectRequest) -> bool:
        """Take in one frame. Returns whether it says goodbye."""
        session = self._session
        if frame.HasField("drain") or frame.HasField("goodbye"):
            session.leave()
        # Before the completions: what an attempt said last is for the one after it.
        for heartbeat in frame.activity_heartbeats:
            held = session.in_hand.get(heartbeat.token)
            if held is None:
                session.disown([heartbeat.token])
            else:
                self._node.heartbeats.beat(session, held, self._details(heartbeat))
        leaving = [each for each in frame.activity_completions if each.HasField("elsewhere")]
        for completion in frame.activity_completions:
            if not completion.HasField("elsewhere"):
                self._completions.activity(completion)
        if leaving:
            self._completions.hand_over(leaving)
        for workflow_completion in frame.workflow_task_completions:
            self._completions.workflow_task(workflow_completion)
        if frame.returned_tasks:
            self._give(self._node.dispatch.return_tasks(session, list(frame.returned_tasks)))
        for run_id in frame.forgotten_runs:
            run = self._node.engine.held(run_id)
            if run is not None and run.sticky_session == session.session_id:
                run.sticky_session = ""  # a hint: should the run be read again, the worker answers `miss`
        for answer in frame.query_answers:
            self._node.queries.answered(session, answer)
        return frame.HasField("goodbye")

    def _give(self, giving: Coroutine[Any, Any, None]) -> None:
        """Have something done that must be before the worker has left."""
        task = asyncio.create_task(giving)
        self._returns.add(task)
        task.add_done_callback(self._returns.discard)

    def _details(self, heartbeat: ActivityHeartbeat) -> bytes | None:
        """What the attempt says of its progress; too much of it is left out, the sign of life counts."""
        if not heartbeat.HasField("details"):
            return None
        try:
            check_payload("details", heartbeat.details, self._limits)
        except InvalidField as error:
            _log.warning("heartbeat without its details", worker_id=self._session.hello.worker_id, error=str(error))
            return None
        return heartbeat.details.SerializeToString()
