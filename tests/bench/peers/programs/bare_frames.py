"""The floor of gRPC: as many frames, items and calls as our order saga takes, and nothing done about them.

`python -m tests.bench.peers.programs.bare_frames serve ADDRESS PLAN` answers;
`python -m tests.bench.peers.programs.bare_frames load ADDRESS PLAN IN_FLIGHT WARM_UP_S SECONDS` asks, and tells as
closed_loop.py does. The plan is JSON. A worker's stream and a client's calls come from one process here.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import uvloop

from romancy.v1.payload_pb2 import Payload
from romancy.v1.worker_service_pb2 import ActivityCompletion, ActivityTask, ConnectRequest, ConnectResponse

from tests.bench.closed_loop import tell
from tests.bench.peers.programs.share import Share

LANES: Final = 2
CALLS_AT_A_TIME: Final = 8
_TOKEN: Final = "t" * 32
_ENVELOPE_BYTES: Final = 42
"""Of an item beside its payload: token, tags and lengths."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Messages of one kind: how many for one workflow, and what is in each."""

    count: float
    items: float
    item_bytes: float


class Maker:
    """Makes messages of a kind, each anew."""

    def __init__(self, kind: Kind) -> None:
        self._items = Share(kind.items)
        self._payload = b"x" * max(0, round(kind.item_bytes) - _ENVELOPE_BYTES)

    def request(self) -> ConnectRequest:
        """What goes to the server."""
        result = Payload(binary=self._payload)
        items = [ActivityCompletion(token=_TOKEN, result=result) for _ in range(self._items.next())]
        return ConnectRequest(activity_completions=items)

    def response(self) -> ConnectResponse:
        """What comes back."""
        arguments = [Payload(binary=self._payload)]
        items = [ActivityTask(token=_TOKEN, arguments=arguments) for _ in range(self._items.next())]
        return ConnectResponse(activity_tasks=items)


class Answers:
    """A call is answered by a reply, and a frame by as many as come down for each that goes up."""

    def __init__(self, plan: dict[str, Kind]) -> None:
        self._plan = plan
        self._replies = Maker(plan["reply"])

    def handler(self) -> Any:
        """For a server."""
        codec: dict[str, Any] = {
            "request_deserializer": ConnectRequest.FromString,
            "response_serializer": ConnectResponse.SerializeToString,
        }
        call = grpc.unary_unary_rpc_method_handler(self._reply, **codec)
        stream = grpc.stream_stream_rpc_method_handler(self._frames, **codec)
        return grpc.method_handlers_generic_handler("bare", {"Call": call, "Stream": stream})

    async def _reply(self, request: ConnectRequest, context: Any) -> ConnectResponse:
        return self._replies.response()

    async def _frames(self, requests: AsyncIterator[ConnectRequest], context: Any) -> AsyncIterator[ConnectResponse]:
        made, due = Maker(self._plan["down"]), Share(self._plan["down"].count / self._plan["up"].count)
        async for _ in requests:
            for _ in range(due.next()):
                yield made.response()


@dataclass(slots=True)
class Lane:
    """A stream, and calls beside it; so many workflows' worth at a time."""

    channel: grpc.aio.Channel
    plan: dict[str, Kind]
    workflows: int
    completed: int = 0
    stopping: bool = False
    latencies_s: list[float] = field(default_factory=list)

    async def run(self) -> None:
        """Go on until told to stop."""
        codec: dict[str, Any] = {
            "request_serializer": ConnectRequest.SerializeToString,
            "response_deserializer": ConnectResponse.FromString,
        }
        call = self.channel.unary_unary("/bare/Call", **codec)
        stream: Any = self.channel.stream_stream("/bare/Stream", **codec)
        stream = stream()
        up, calls = Share(self.plan["up"].count), Share(self.plan["call"].count)
        due = Share(self.plan["down"].count / self.plan["up"].count)
        frames, requests = Maker(self.plan["up"]), Maker(self.plan["call"])

        async def write(number: int) -> None:
            for _ in range(number):
                await stream.write(frames.request())

        async def read(number: int) -> None:
            for _ in range(number):
                await stream.read()

        async def ask(number: int) -> None:
            for _ in range(number):
                await call(requests.request())

        while not self.stopping:
            begin = time.perf_counter()
            asked, written = calls.next(self.workflows), up.next(self.workflows)
            if self.workflows == 1:
                await ask(asked)
                for _ in range(written):
                    await write(1)
                    await read(due.next())
            else:
                parts = [asked // CALLS_AT_A_TIME + (n < asked % CALLS_AT_A_TIME) for n in range(CALLS_AT_A_TIME)]
                await asyncio.gather(write(written), read(due.next(written)), *map(ask, parts))
            self.completed += self.workflows
            self.latencies_s.append(time.perf_counter() - begin)
        stream.cancel()


async def serve(address: str, plan: dict[str, Kind]) -> None:
    """Answer until SIGTERM."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Answers(plan).handler(),))
    server.add_insecure_port(address)
    await server.start()
    tell(at="ready")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(0)


async def load(address: str, plan: dict[str, Kind], in_flight: int, warm_up_s: float, seconds: float) -> None:
    """Warm up, measure, and end."""
    async with grpc.aio.insecure_channel(address) as channel:
        lanes = [Lane(channel, plan, 1)] if in_flight == 1 else [Lane(channel, plan, in_flight) for _ in range(LANES)]
        async with asyncio.TaskGroup() as group:
            for lane in lanes:
                group.create_task(lane.run())
            await asyncio.sleep(warm_up_s)
            before = sum(lane.completed for lane in lanes)
            for lane in lanes:
                lane.latencies_s.clear()
            begin = time.perf_counter()
            tell(at="begin")
            await asyncio.sleep(seconds)
            elapsed_s = time.perf_counter() - begin
            completed = sum(lane.completed for lane in lanes) - before
            latencies_s = sorted(latency for lane in lanes for latency in lane.latencies_s)
            tell(at="end", elapsed_s=elapsed_s, completed=completed, latencies_s=latencies_s)
            for lane in lanes:
                lane.stopping = True
    tell(at="done", started=completed)


async def main() -> None:
    """Do what the arguments say."""
    what, address, words, *numbers = sys.argv[1:]
    plan = {name: Kind(**kind) for name, kind in json.loads(words).items()}
    if what == "serve":
        await serve(address, plan)
    else:
        in_flight, warm_up_s, seconds = numbers
        await load(address, plan, int(in_flight), float(warm_up_s), float(seconds))


if __name__ == "__main__":
    uvloop.run(main())
