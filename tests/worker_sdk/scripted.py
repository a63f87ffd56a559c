"""A scripted WorkerService: the test says, frame by frame, what the service does. Good for faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from romancy.v1.worker_service_pb2 import (
    ACKNOWLEDGEMENT_RESULT_ACCEPTED,
    Acknowledgement,
    ConnectRequest,
    ConnectResponse,
    Hello,
    Welcome,
)
from romancy.v1.worker_service_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server

PATIENCE_S = 20.0
"""How long a test waits for what must come."""


def duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


def status_details(code: grpc.StatusCode, message: str, reason: str) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata of an error of the service."""
    status = Status(code=code.value[0], message=message)
    detail = AnyMessage()
    detail.Pack(ErrorInfo(reason=reason, domain="romancy"))
    status.details.append(detail)
    return (("grpc-status-details-bin", status.SerializeToString()),)


@dataclass(eq=False)
class ScriptedStream:
    """One stream, as the service sees it."""

    context: grpc.aio.ServicerContext[ConnectRequest, ConnectResponse]
    received: asyncio.Queue[ConnectRequest] = field(default_factory=asyncio.Queue)
    empty_frames: int = 0
    ended_by_worker: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    _end: asyncio.Event = field(default_factory=asyncio.Event)
    _error: tuple[grpc.StatusCode, str, str] | None = None
    _chunks: bytes = b""

    async def read(self, frames: AsyncIterator[ConnectRequest]) -> None:
        async for piece in frames:
            frame = piece
            if piece.HasField("chunk"):
                self._chunks += piece.chunk.data
                if not piece.chunk.last:
                    continue
                frame = ConnectRequest.FromString(self._chunks)
                self._chunks = b""
            if frame.ByteSize():
                self.received.put_nowait(frame)
            else:
                self.empty_frames += 1
            if frame.HasField("goodbye"):
                self._end.set()
        self.ended_by_worker.set()

    async def serve(self, frames: AsyncIterator[ConnectRequest]) -> None:
        reader = asyncio.create_task(self.read(frames))
        try:
            await self._end.wait()
        finally:
            self.over.set()
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        if self._error is not None:
            code, message, reason = self._error
            await self.context.abort(code, message, status_details(code, message, reason))

    async def frame(self) -> ConnectRequest:
        """The next frame that is not empty."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.received.get()

    async def hello(self) -> Hello:
        return (await self.frame()).hello

    async def send(self, frame: ConnectResponse) -> None:
        frame.time.GetCurrentTime()
        await self.context.write(frame)

    async def welcome(
        self, session_id: str = "session", *, interval_s: float = 5.0, lease_s: float = 20.0, **more: object
    ) -> Hello:
        """Read the hello and answer it."""
        hello = await self.hello()
        welcome = Welcome(
            session_id=session_id,
            heartbeat_interval=duration(interval_s),
            lease=duration(lease_s),
            **more,  # type: ignore[arg-type]
        )
        await self.send(ConnectResponse(welcome=welcome))
        return hello

    async def accept(self, token: str, last_event_id: int = 0, *, time: Timestamp | None = None) -> None:
        """Acknowledge a completion."""
        acknowledgement = Acknowledgement(
            token=token, result=ACKNOWLEDGEMENT_RESULT_ACCEPTED, last_event_id=last_event_id, last_event_time=time
        )
        await self.send(ConnectResponse(acknowledgements=[acknowledgement]))

    def end(self) -> None:
        """Close the stream with status OK."""
        self._end.set()

    def fail(self, code: grpc.StatusCode, reason: str = "", message: str = "scripted") -> None:
        """End the stream with a status."""
        self._error = (code, message, reason)
        self._end.set()


class ScriptedService(WorkerServiceServicer):
    """Hands each stream to the test."""

    def __init__(self) -> None:
        self.streams: asyncio.Queue[ScriptedStream] = asyncio.Queue()
        self.target = ""

    async def Connect(  # type: ignore[override]  # it writes by the context
        self,
        request_iterator: AsyncIterator[ConnectRequest],
        context: grpc.aio.ServicerContext[ConnectRequest, ConnectResponse],
    ) -> None:
        stream = ScriptedStream(context)
        self.streams.put_nowait(stream)
        await stream.serve(request_iterator)

    async def accept(self) -> ScriptedStream:
        """The next stream that a worker opens."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.streams.get()

    async def connected(self, **welcome: object) -> ScriptedStream:
        """The next stream, after hello and welcome."""
        stream = await self.accept()
        await stream.welcome(**welcome)  # type: ignore[arg-type]
        return stream


@asynccontextmanager
async def scripted_service(port: int = 0) -> AsyncIterator[ScriptedService]:
    """The scripted service on a port of this machine."""
    service = ScriptedService()
    server = grpc.aio.server(options=(("grpc.max_receive_message_length", 33 << 20),))
    add_WorkerServiceServicer_to_server(service, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    service.target = f"127.0.0.1:{bound}"
    await server.start()
    try:
        yield service
    finally:
        await server.stop(None)
