"""ScriptedWorker: a worker on raw stubs that sends exactly what a test says, and keeps what it gets until it is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeVar

import grpc

from romancy.v1.command_pb2 import Command
from romancy.v1.failure_pb2 import Failure
from romancy.v1.payload_pb2 import Payload
from romancy.v1.worker_service_pb2 import (
    CANCELLATION_REASON_STALE,
    Acknowledgement,
    ActivityCompletion,
    ActivityTask,
    Cancellation,
    Chunk,
    ConnectRequest,
    ConnectResponse,
    Drain,
    Goodbye,
    Hello,
    QueryAnswer,
    QueryTask,
    Then,
    Welcome,
    WorkflowTask,
    WorkflowTaskCommands,
    WorkflowTaskCompletion,
    WorkflowTaskMiss,
)
from romancy.v1.worker_service_pb2_grpc import WorkerServiceStub

PATIENCE_S = 60.0
"""So long is anything waited for that must come: only a test that fails takes so long."""
Item = TypeVar("Item")


class Inbox(list[Item]):
    """What came and was not taken yet, and a way to wait for more."""

    def __init__(self) -> None:
        super().__init__()
        self._came = asyncio.Event()

    def put(self, items: Sequence[Item]) -> None:
        """More came."""
        self.extend(items)
        self._came.set()

    async def take(self, what: str, patience_s: float = PATIENCE_S) -> Item:
        """The oldest item."""
        try:
            async with asyncio.timeout(patience_s):
                while not self:
                    self._came.clear()
                    await self._came.wait()
        except TimeoutError:
            raise AssertionError(f"no {what} came within {patience_s:g} s") from None
        return self.pop(0)


class ScriptedWorker:
    """One worker process as the service sees it: a session that lives over its streams."""

    def __init__(self, channel: grpc.aio.Channel, hello: Hello) -> None:
        self.channel = channel
        self.hello = hello
        self.welcome = Welcome()
        self.activities: Inbox[ActivityTask] = Inbox()
        self.workflow_tasks: Inbox[WorkflowTask] = Inbox()
        self.cancellations: Inbox[Cancellation] = Inbox()
        self.queries: Inbox[QueryTask] = Inbox()
        self.acknowledgements: Inbox[Acknowledgement] = Inbox()
        self.frames: Inbox[ConnectResponse] = Inbox()
        """Frames that brought none of these, signs of life among them."""
        self.drained = asyncio.Event()
        self.chunks_joined = 0
        self.ended: asyncio.Future[grpc.aio.AioRpcError | None]
        """How the newest stream ended; None: without an error."""
        self._call: grpc.aio.StreamStreamCall[ConnectRequest, ConnectResponse] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._beats: asyncio.Task[None] | None = None
        self._joined = b""
        self._writing = asyncio.Lock()

    # The stream -----------------------------------------------------------------------------------------------------

    async def connect(self, *, beats: bool = True, tokens: Sequence[str] = ()) -> Welcome:
        """Open a stream and say hello, as the session that it had. Raises AioRpcError when it is refused."""
        hello = Hello()
        hello.CopyFrom(self.hello)
        hello.session_id = self.welcome.session_id
        hello.tokens_in_hand.extend(tokens)
        await self.open(ConnectRequest(hello=hello))
        assert self._call is not None
        async with asyncio.timeout(PATIENCE_S):
            first = await self._call.read()
        if not isinstance(first, ConnectResponse):
            raise await self._error() or AssertionError("the stream ended before its welcome")
        assert first.HasField("welcome")
        self.welcome = first.welcome
        self._sort(first)
        self.listen()
        if beats:
            self._beats = asyncio.create_task(self._beat())
        return self.welcome

    async def open(self, first: ConnectRequest | None = None) -> None:
        """Open a stream with any first frame, or none."""
        self.ended = asyncio.get_running_loop().create_future()
        self._call = WorkerServiceStub(self.channel).Connect(wait_for_ready=True)
        if first is not None:
            await self.send(first)

    def listen(self) -> None:
        """Take in what comes on the open stream."""
        assert self._call is not None
        self._reader = asyncio.create_task(self._read(self._call))

    async def send(self, frame: ConnectRequest) -> None:
        """Write one frame."""
        assert self._call is not None
        async with self._writing:
            await self._call.write(frame)

    async def send_in_chunks(self, frame: ConnectRequest, piece_bytes: int, frame_id: int = 1) -> None:
        """Write one frame in pieces."""
        data = frame.SerializeToString()
        for start in range(0, len(data), piece_bytes):
            end = start + piece_bytes
            chunk = Chunk(frame_id=frame_id, data=data[start:end], last=end >= len(data))
            await self.send(ConnectRequest(chunk=chunk))

    async def goodbye(self) -> None:
        """Leave, and wait until the service closed the stream."""
        await self.send(ConnectRequest(goodbye=Goodbye()))
        await self.end()

    async def drain(self) -> None:
        """Ask for no new tasks."""
        await self.send(ConnectRequest(drain=Drain()))

    async def cut(self) -> None:
        """End the stream without a word."""
        assert self._call is not None
        self._call.cancel()
        await self.end()

    async def half_close(self) -> None:
        """Say that nothing more is sent."""
        assert self._call is not None
        await self._call.done_writing()

    async def end(self) -> grpc.aio.AioRpcError | None:
        """How the stream ended, once it has."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.ended

    async def close(self) -> None:
        """Clean up, whatever state the stream is in."""
        for task in (self._beats, self._reader):
            if task is not None:
                task.cancel()
        if self._call is not None:
            self._call.cancel()
        await asyncio.gather(*(task for task in (self._beats, self._reader) if task), return_exceptions=True)

    async def refusal(self) -> grpc.aio.AioRpcError:
        """Why a stream that was only opened was ended."""
        assert self._call is not None
        try:
            async with asyncio.timeout(PATIENCE_S):
                answer = await self._call.read()
        except grpc.aio.AioRpcError as error:
            return error
        raise AssertionError(f"was not refused, but answered {answer}")

    async def _error(self) -> grpc.aio.AioRpcError | None:
        assert self._call is not None
        code = await self._call.code()
        if code is grpc.StatusCode.OK:
            return None
        return grpc.aio.AioRpcError(
            code, await self._call.initial_metadata(), await self._call.trailing_metadata(), await self._call.details()
        )

    async def _read(self, call: grpc.aio.StreamStreamCall[ConnectRequest, ConnectResponse]) -> None:
        ended, error = self.ended, None
        try:
            while isinstance(frame := await call.read(), ConnectResponse):
                self._sort(frame)
            error = await self._error()
        except asyncio.CancelledError:
            pass  # by `cut`
        except grpc.aio.AioRpcError as broken:
            error = broken
        if self._beats is not None:
            self._beats.cancel()
        if not ended.done():
            ended.set_result(error)

    def _sort(self, frame: ConnectResponse) -> None:
        assert frame.HasField("time"), "every frame says what time it is"
        if frame.HasField("chunk"):
            self._joined += frame.chunk.data
            if not frame.chunk.last:
                return
            frame, self._joined = ConnectResponse.FromString(self._joined), b""
            self.chunks_joined += 1
        if frame.HasField("drain"):
            self.drained.set()
        self.acknowledgements.put(frame.acknowledgements)
        self.cancellations.put(frame.cancellations)
        self.activities.put(frame.activity_tasks)
        self.workflow_tasks.put(frame.workflow_tasks)
        self.queries.put(frame.queries)
        self.frames.put([frame])

    async def _beat(self) -> None:
        interval_s = self.welcome.heartbeat_interval.ToMilliseconds() / 1000
        while True:
            await asyncio.sleep(interval_s / 2)
            await self.send(ConnectRequest())

    # Work -----------------------------------------------------------------------------------------------------------

    async def activity(self) -> ActivityTask:
        """The next activity to run."""
        return await self.activities.take("activity task")

    async def stopped(self) -> str:
        """The token of the next task that the worker is told to stop, since it is not its own any more."""
        cancellation = await self.cancellations.take("cancellation")
        assert cancellation.reason == CANCELLATION_REASON_STALE
        return cancellation.token

    async def workflow_task(self) -> WorkflowTask:
        """The next workflow task, its pages joined."""
        task = await self.workflow_tasks.take("workflow task")
        while task.more:
            page = await self.workflow_tasks.take("page of a workflow task")
            assert page.token == task.token
            task.events.extend(page.events)
            task.more, task.last_event_id = page.more, page.last_event_id
        return task

    async def query(self) -> QueryTask:
        """The next question, its pages joined."""
        query = await self.queries.take("query")
        while query.more:
            page = await self.queries.take("page of a query")
            assert page.query_id == query.query_id
            query.events.extend(page.events)
            query.more = page.more
        return query

    async def answer_query(self, query: QueryTask, json: str = "null") -> None:
        """The code's answer."""
        answer = QueryAnswer(query_id=query.query_id, result=Payload(json=json))
        await self.send(ConnectRequest(query_answers=[answer]))

    async def miss_query(self, query: QueryTask) -> QueryTask:
        """Say that the run is not in memory; the question with everything."""
        answer = QueryAnswer(query_id=query.query_id, miss=WorkflowTaskMiss())
        await self.send(ConnectRequest(query_answers=[answer]))
        whole = await self.query()
        assert whole.query_id == query.query_id
        return whole

    async def acknowledgement(self, token: str) -> Acknowledgement:
        """The answer to the oldest completion that is not answered yet; it must be the one with `token`."""
        answer = await self.acknowledgements.take("acknowledgement")
        assert answer.token == token
        return answer

    async def complete(self, task: ActivityTask, json: str = "null", then: Then | None = None) -> Acknowledgement:
        """The activity returned."""
        return await self.report(ActivityCompletion(token=task.token, result=Payload(json=json), then=then))

    async def fail(self, task: ActivityTask, type: str = "Declined", *, final: bool = False) -> Acknowledgement:  # noqa: A002
        """The activity failed."""
        failure = Failure(message=f"{task.activity_id} failed", type=type, non_retryable=final)
        return await self.report(ActivityCompletion(token=task.token, failure=failure))

    async def report(self, completion: ActivityCompletion) -> Acknowledgement:
        """Send a completion as it is."""
        await self.send(ConnectRequest(activity_completions=[completion]))
        return await self.acknowledgement(completion.token)

    async def command(self, task: WorkflowTask, *commands: Command, holds: bool = True) -> Acknowledgement:
        """The code ran, and asked for `commands`."""
        return await self.answer(
            WorkflowTaskCompletion(
                token=task.token,
                seen_event_id=task.last_event_id,
                commands=WorkflowTaskCommands(commands=commands, holds_run=holds),
            )
        )

    async def answer(self, completion: WorkflowTaskCompletion) -> Acknowledgement:
        """Send a workflow task's completion as it is."""
        await self.send(ConnectRequest(workflow_task_completions=[completion]))
        return await self.acknowledgement(completion.token)

    async def miss(self, task: WorkflowTask) -> WorkflowTask:
        """Say that the run is not in memory; the task with everything."""
        missed = WorkflowTaskCompletion(token=task.token, seen_event_id=task.last_event_id, miss=WorkflowTaskMiss())
        await self.send(ConnectRequest(workflow_task_completions=[missed]))
        whole = await self.workflow_task()
        assert whole.token == task.token
        return whole
