"""Peer: a WorkerService that does what a test tells it, to see how a worker behaves. It decides nothing by itself."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Final, Self

import grpc
from google.protobuf.duration_pb2 import Duration

from romancy.v1.payload_pb2 import Payload
from romancy.v1.worker_service_pb2 import (
    ACKNOWLEDGEMENT_RESULT_ACCEPTED,
    Acknowledgement,
    AcknowledgementResult,
    ActivityCompletion,
    ActivityTask,
    ConnectRequest,
    ConnectResponse,
    Hello,
    Rejection,
    Welcome,
)
from romancy.v1.worker_service_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server

PATIENCE_S: Final = 20.0
"""How long a worker may take for what it must do: far above what it needs, so only one that never does it fails."""
MAX_FRAME_BYTES: Final = 32 << 20
_Context = grpc.aio.ServicerContext[ConnectRequest, ConnectResponse]
_EndReason = tuple[grpc.StatusCode, str]


class PeerStream:
    """One stream of a worker, from its hello on."""

    def __init__(self, hello: Hello) -> None:
        self.hello = hello
        self.frames: list[ConnectRequest] = []
        """All that came after the hello."""
        self.finished = False
        """The worker closed its side."""
        self.ended = asyncio.Event()
        """The worker ended the stream, or lost it."""
        self._read = 0
        self._arrived = asyncio.Condition()
        self._outgoing: asyncio.Queue[ConnectResponse | _EndReason | None] = asyncio.Queue()

    # What the test makes the service say ----------------------------------------------------------------------------

    async def send(self, frame: ConnectResponse) -> None:
        """Send one frame."""
        await self._outgoing.put(frame)

    async def welcome(
        self,
        session_id: str = "",
        *,
        interval_s: float = 2.0,
        lease_s: float = 60.0,
    ) -> str:
        """Welcome the worker, as the session that it named unless another is given. Returns the session."""
        session_id = session_id or self.hello.session_id or secrets.token_urlsafe(8)
        welcome = Welcome(
            session_id=session_id,
            heartbeat_interval=_duration(interval_s),
            lease=_duration(lease_s),
            max_payload_bytes=2 << 20,
            max_frame_bytes=MAX_FRAME_BYTES,
        )
        await self.send(ConnectResponse(welcome=welcome))
        return session_id

    async def give(self, *tasks: ActivityTask) -> None:
        """Send tasks, in one frame."""
        await self.send(ConnectResponse(activity_tasks=tasks))

    async def acknowledge(
        self,
        token: str,
        result: AcknowledgementResult.ValueType = ACKNOWLEDGEMENT_RESULT_ACCEPTED,
        rejection: Rejection | None = None,
    ) -> None:
        """Answer a completion."""
        answer = Acknowledgement(token=token, result=result, rejection=rejection)
        await self.send(ConnectResponse(acknowledgements=[answer]))

    async def end(self, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE, why: str = "cut by the test") -> None:
        """End the stream with a status."""
        await self._outgoing.put((code, why))

    async def close(self) -> None:
        """End the stream without an error, as when the worker has left."""
        await self._outgoing.put(None)

    # What the worker says -------------------------------------------------------------------------------------------

    async def receive(self, wanted: Callable[[ConnectRequest], object]) -> ConnectRequest:
        """The next frame for which `wanted` is true; frames before it are passed over."""
        async with asyncio.timeout(PATIENCE_S), self._arrived:
            while True:
                while self._read < len(self.frames):
                    frame = self.frames[self._read]
                    self._read += 1
                    if wanted(frame):
                        return frame
                if self.finished or self.ended.is_set():
                    raise AssertionError(
                        f"the stream ended, after {len(self.frames)} frames, before what was waited for"
                    )
                await self._arrived.wait()

    async def completion(self, token: str) -> ActivityCompletion:
        """The next completion of a task."""
        frame = await self.receive(lambda frame: any(c.token == token for c in frame.activity_completions))
        return next(c for c in frame.activity_completions if c.token == token)

    async def heartbeat(self, token: str) -> Payload:
        """The details of the next heartbeat of a task."""
        frame = await self.receive(lambda frame: any(h.token == token for h in frame.activity_heartbeats))
        return next(h.details for h in frame.activity_heartbeats if h.token == token)

    # The stream itself ----------------------------------------------------------------------------------------------

    async def serve(self, frames: AsyncIterator[ConnectRequest], context: _Context) -> None:
        """Until the test or the worker ends it."""
        reader = asyncio.create_task(self._take_in(frames))
        try:
            while (outgoing := await self._outgoing.get()) is not None:
                if isinstance(outgoing, tuple):
                    await context.abort(*outgoing)
                else:
                    await context.write(outgoing)
        finally:
            reader.cancel()
            self.ended.set()
            async with self._arrived:
                self._arrived.notify_all()

    async def _take_in(self, frames: AsyncIterator[ConnectRequest]) -> None:
        async for frame in frames:
            async with self._arrived:
                self.frames.append(frame)
                self._arrived.notify_all()
        async with self._arrived:
            self.finished = True
            self._arrived.notify_all()


class Peer(WorkerServiceServicer):
    """The service of a test. Enter it to listen; `stop` and `start` again on the same address as often as needed."""

    def __init__(self) -> None:
        self._streams: asyncio.Queue[PeerStream] = asyncio.Queue()
        self._server: grpc.aio.Server | None = None
        self._port = 0

    @property
    def address(self) -> str:
        """Where workers connect."""
        return f"127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Listen."""
        options = [
            ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
            ("grpc.max_send_message_length", MAX_FRAME_BYTES),
        ]
        self._server = grpc.aio.server(options=options)
        add_WorkerServiceServicer_to_server(self, self._server)
        self._port = self._server.add_insecure_port(self.address)
        await self._server.start()

    async def stop(self) -> None:
        """Break all streams and listen no more."""
        if self._server is not None:
            await self._server.stop(grace=None)
            self._server = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.stop()

    async def accept(self) -> PeerStream:
        """The next stream, whose hello has come. Nothing is answered yet."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._streams.get()

    async def Connect(  # type: ignore[override]  # it writes to the context; the stub knows only generators
        self, request_iterator: AsyncIterator[ConnectRequest], context: _Context
    ) -> None:
        """Hand the stream to the test."""
        frames = aiter(request_iterator)
        first = await anext(frames)
        assert first.HasField("hello"), f"the first frame has no hello: {first}"
        stream = PeerStream(first.hello)
        await self._streams.put(stream)
        await stream.serve(frames, context)


def _duration(seconds: float) -> Duration:
    whole = int(seconds)
    return Duration(seconds=whole, nanos=round((seconds - whole) * 1e9))
