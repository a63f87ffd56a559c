"""The stream that carries a session, against a scripted service: cuts, silence, refusals, the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import pytest

from romancy.v1.payload_pb2 import Payload
from romancy.v1.worker_service_pb2 import ActivityCompletion, ActivityTask, ConnectResponse, Drain, Hello

from romancy._channel import Endpoint
from romancy._session import Received, Session
from romancy._stream import Stream, StreamRefused
from tests.worker_sdk.scripted import PATIENCE_S, ScriptedService, scripted_service


@pytest.fixture
async def service() -> AsyncIterator[ScriptedService]:
    async with scripted_service() as service:
        yield service


class Recorder:
    """Keeps what the stream says, for the test's own loop to wait for."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self.tasks: list[ActivityTask] = []
        self.lease_lost_times = 0
        self.end: list[StreamRefused | None] = []

    def received(self, received: Received) -> None:
        self.tasks.extend(received.activity_tasks)
        self._tell()

    def tick(self) -> None: ...

    def lease_lost(self) -> None:
        self.lease_lost_times += 1
        self._tell()

    def ended(self, error: StreamRefused | None) -> None:
        self.end.append(error)
        self._tell()

    def _tell(self) -> None:
        self._loop.call_soon_threadsafe(self._changed.set)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await self._changed.wait()
                self._changed.clear()


@asynccontextmanager
async def running(target: str) -> AsyncIterator[tuple[Stream, Session, Recorder]]:
    recorder = Recorder()
    session = Session(Hello(worker_id="w", task_queues=["q"]))
    stream = Stream(Endpoint(target), session, recorder)
    stream.start()
    try:
        yield stream, session, recorder
    finally:
        stream.post(stream.finish, None)
        await asyncio.to_thread(stream.join, PATIENCE_S)


def done(token: str) -> ActivityCompletion:
    return ActivityCompletion(token=token, result=Payload(json="1"))


def task(token: str) -> ConnectResponse:
    return ConnectResponse(activity_tasks=[ActivityTask(token=token)])


async def test_a_stream_that_is_cut_is_resumed_with_the_session_and_its_tokens(service: ScriptedService) -> None:
    async with running(service.target) as (stream, session, recorder):
        first = await service.connected(session_id="secret")
        await first.send(ConnectResponse(activity_tasks=[ActivityTask(token="a"), ActivityTask(token="b")]))
        await recorder.until(lambda: len(recorder.tasks) == 2)
        stream.post(session.complete, done("a"))
        assert (await first.frame()).activity_completions[0].token == "a"
        first.fail(grpc.StatusCode.UNAVAILABLE)
        second = await service.accept()
        hello = await second.welcome(session_id="secret")
        assert hello.session_id == "secret"
        assert set(hello.tokens_in_hand) == {"a", "b"}
        assert (await second.frame()).activity_completions[0].token == "a"


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAUTHENTICATED])
async def test_any_end_that_was_not_asked_for_means_connect_again(
    service: ScriptedService, code: grpc.StatusCode
) -> None:
    async with running(service.target):
        first = await service.connected()
        first.fail(code)
        second = await service.connected()
        second.end()
        await service.connected()


async def test_a_stream_that_ends_while_its_hello_is_written_is_tried_again(
    service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("romancy._stream._FIRST_BACKOFF_S", 0.001)
    monkeypatch.setattr("romancy._stream.MAX_BACKOFF_S", 0.001)
    async with running(service.target) as (_, _, recorder):
        for _ in range(50):
            (await service.accept()).fail(grpc.StatusCode.UNAVAILABLE)
        await service.connected()
        assert recorder.end == []


async def test_a_handler_that_breaks_does_not_end_the_worker(service: ScriptedService) -> None:
    async with running(service.target) as (_, _, recorder):
        whole, broken = recorder.received, [True]

        def received(received: Received) -> None:
            if received.activity_tasks and broken.pop():
                raise ZeroDivisionError
            whole(received)

        recorder.received = received  # type: ignore[method-assign]
        await (await service.connected()).send(task("a"))
        await service.connected()
        assert recorder.end == []


async def test_a_silent_service_is_left_after_three_missed_heartbeats(service: ScriptedService) -> None:
    async with running(service.target):
        silent = await service.connected(interval_s=0.1)
        began = time.monotonic()
        await service.connected(interval_s=5)
        assert time.monotonic() - began > 0.25
        await asyncio.wait_for(silent.over.wait(), PATIENCE_S)


async def test_a_worker_that_has_said_nothing_for_half_an_interval_answers_whatever_it_hears(
    service: ScriptedService,
) -> None:
    async with running(service.target) as (stream, session, recorder):
        connected = await service.connected(interval_s=60, lease_s=180)
        await connected.send(task("a"))
        await recorder.until(lambda: recorder.tasks)
        stream.post(lambda passed_s: setattr(stream, "_written_at", stream._written_at - passed_s), 31)
        for token in ("b", "c"):
            await connected.send(task(token))
            await recorder.until(lambda: recorder.tasks[-1].token == token)  # noqa: B023
        stream.post(session.complete, done("a"))
        assert (await connected.frame()).activity_completions
        assert connected.empty_frames == 1


async def test_a_service_that_never_welcomes_is_left(service: ScriptedService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("romancy._stream._FIRST_INTERVAL_S", 0.1)
    async with running(service.target):
        await (await service.accept()).hello()
        await service.connected()


async def test_an_idle_worker_sends_empty_frames(service: ScriptedService) -> None:
    async with running(service.target):
        stream = await service.connected(interval_s=0.2)
        async with asyncio.timeout(PATIENCE_S):
            while stream.empty_frames < 4:
                await stream.send(ConnectResponse())
                await asyncio.sleep(0.05)
        assert service.streams.empty()


async def test_a_superseded_session_does_not_connect_again(service: ScriptedService) -> None:
    async with running(service.target) as (_, _, recorder):
        first = await service.connected()
        first.fail(grpc.StatusCode.ABORTED, "SESSION_SUPERSEDED")
        await recorder.until(lambda: recorder.end)
        assert "SESSION_SUPERSEDED" in str(recorder.end[0])
        assert service.streams.empty()


@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAUTHENTICATED])
async def test_a_first_hello_that_is_refused_for_good_ends_the_worker(
    service: ScriptedService, code: grpc.StatusCode
) -> None:
    async with running(service.target) as (_, _, recorder):
        first = await service.accept()
        await first.hello()
        first.fail(code, message="unknown token")
        await recorder.until(lambda: recorder.end)
        assert "unknown token" in str(recorder.end[0])


async def test_after_a_drain_the_worker_keeps_its_stream_and_connects_again_at_once(
    service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("romancy._stream._FIRST_BACKOFF_S", 60.0)
    monkeypatch.setattr("romancy._stream.MAX_BACKOFF_S", 60.0)
    monkeypatch.setattr("random.uniform", lambda least, most: most)
    async with running(service.target) as (stream, session, recorder):
        first = await service.connected()
        await first.send(task("a"))
        await first.send(ConnectResponse(drain=Drain()))
        await recorder.until(lambda: session.service_draining)
        stream.post(session.complete, done("a"))
        assert (await first.frame()).activity_completions[0].token == "a"
        first.fail(grpc.StatusCode.UNAVAILABLE, "DRAINING")
        await service.connected()


async def test_silence_for_a_lease_is_reported_once_also_without_a_stream(service: ScriptedService) -> None:
    async with running(service.target) as (_, _, recorder):
        first = await service.connected(interval_s=0.1, lease_s=0.5)
        first.fail(grpc.StatusCode.UNAVAILABLE)
        hung = await service.accept()
        await hung.hello()
        await recorder.until(lambda: recorder.lease_lost_times)
        back = await service.accept()
        await back.welcome(interval_s=5)
        await recorder.until(lambda: recorder.lease_lost_times == 1)


async def test_a_goodbye_ends_the_stream_for_good(service: ScriptedService) -> None:
    async with running(service.target) as (stream, session, recorder):
        first = await service.connected()
        await recorder.until(lambda: session.is_welcomed)
        stream.post(stream.finish, None)
        assert (await first.frame()).HasField("goodbye")
        await asyncio.wait_for(first.over.wait(), PATIENCE_S)
        await recorder.until(lambda: recorder.end)
        assert recorder.end == [None]
        assert service.streams.empty()


async def test_a_stream_that_the_service_ends_after_the_drain_was_the_last(service: ScriptedService) -> None:
    async with running(service.target) as (stream, session, recorder):
        first = await service.connected()
        stream.post(lambda _: session.drain(), None)
        assert (await first.frame()).HasField("drain")
        first.end()
        await recorder.until(lambda: recorder.end)
        assert recorder.end == [None]
        assert service.streams.empty()


async def test_a_worker_without_a_service_ends_at_once_when_asked() -> None:
    async with running("127.0.0.1:1") as (stream, _, recorder):
        stream.post(stream.finish, None)
        await recorder.until(lambda: recorder.end)


async def test_completions_posted_together_travel_together(service: ScriptedService) -> None:
    async with running(service.target) as (stream, session, recorder):
        first = await service.connected()
        tokens = [f"{number}" for number in range(50)]
        await first.send(ConnectResponse(activity_tasks=[ActivityTask(token=token) for token in tokens]))
        await recorder.until(lambda: len(recorder.tasks) == 50)

        def complete_all(_: object) -> None:
            for token in tokens:
                session.complete(done(token))

        stream.post(complete_all, None)
        frame = await first.frame()
        assert [completion.token for completion in frame.activity_completions] == tokens
