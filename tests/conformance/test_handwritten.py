"""What every activity worker does, whatever it is written in, against a scripted service.

No workflow and no database is involved here. docs/protocol.md tells the same situations from the worker's side.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import grpc
import pytest

from romancy.v1.worker_service_pb2 import (
    ACKNOWLEDGEMENT_RESULT_ACCEPTED,
    ACKNOWLEDGEMENT_RESULT_DUPLICATE,
    ACKNOWLEDGEMENT_RESULT_INVALID,
    ACKNOWLEDGEMENT_RESULT_STALE,
    CANCELLATION_REASON_REQUESTED,
    CANCELLATION_REASON_STALE,
    AcknowledgementResult,
    Cancellation,
    ConnectRequest,
    ConnectResponse,
    Drain,
    Rejection,
)

from tests.conformance.peer import MAX_FRAME_BYTES, Peer, PeerStream
from tests.conformance.workers import (
    BUILD_S,
    GO,
    TYPESCRIPT,
    RunningWorker,
    WorkerProgram,
    activity_task,
    payloads,
    started,
)

FINAL = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.ABORTED,
)
"""Ends of a stream after which no other one can be better. docs/protocol.md has the same table."""
FOREVER_S = 600.0
"""Longer than any test: work that only ends because somebody stops it."""
pytestmark = pytest.mark.timeout(BUILD_S)  # the first test may have to build the programs
Start = Callable[..., AbstractAsyncContextManager[RunningWorker]]


@pytest.fixture(params=[GO, TYPESCRIPT], ids=lambda program: program.name)
def program(request: pytest.FixtureRequest) -> WorkerProgram:
    built: WorkerProgram = request.param
    built.build()
    return built


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    async with Peer() as peer:
        yield peer


@pytest.fixture
def start(program: WorkerProgram, peer: Peer, tmp_path: Path) -> Start:
    """Starts the worker under test; `work_s` says how long its activity takes."""
    return lambda **options: started(program, peer.address, tmp_path / "printed", **options)


def is_empty(frame: ConnectRequest) -> bool:
    return not frame.ListFields()


# Introducing itself ---------------------------------------------------------------------------------------------------


async def test_the_first_hello_says_what_the_worker_serves_and_names_no_session(
    peer: Peer, program: WorkerProgram, start: Start
) -> None:
    async with start(queue="parcels"):
        hello = (await peer.accept()).hello
    assert hello.worker_id
    assert list(hello.task_queues) == ["parcels"]
    assert program.activity_type in hello.activity_types
    assert hello.activity_slots > 0
    assert not hello.workflow_types
    assert not hello.session_id
    assert not hello.tokens_in_hand


@pytest.mark.parametrize("program", [GO, TYPESCRIPT], ids=lambda program: program.name)
def test_a_worker_by_hand_has_at_most_120_lines(program: WorkerProgram) -> None:
    lines = [line for source in program.sources for line in source.read_text().splitlines()]
    assert 0 < len(lines) <= 120
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("code", FINAL, ids=lambda code: code.name)
async def test_a_worker_that_is_refused_for_good_ends_with_an_error(
    peer: Peer, start: Start, code: grpc.StatusCode
) -> None:
    async with start() as worker:
        await (await peer.accept()).end(code, "no, and never")
        assert await worker.exit_code() != 0
        assert "no, and never" in worker.printed()


async def test_a_worker_waits_for_a_service_that_is_not_there_yet(
    peer: Peer, program: WorkerProgram, start: Start
) -> None:
    await peer.stop()
    async with start():
        await peer.start()
        stream = await peer.accept()
        await stream.welcome()
        await stream.give(program.task("a"))
        assert (await stream.completion("a")).HasField("result")


# Working --------------------------------------------------------------------------------------------------------------


async def test_an_activity_returns_the_tutorials_result_and_prints_its_line(
    peer: Peer, program: WorkerProgram, start: Start
) -> None:
    async with start() as worker:
        stream = await peer.accept()
        await stream.welcome()
        await stream.give(program.task("a", "ORD-12345"))
        completion = await stream.completion("a")
        assert json.loads(completion.result.json) == program.result("ORD-12345")
        assert worker.printed().splitlines().count(program.line("ORD-12345")) == 1


async def test_the_tasks_of_one_frame_are_all_done(peer: Peer, program: WorkerProgram, start: Start) -> None:
    async with start():
        stream = await peer.accept()
        await stream.welcome()
        tokens = [f"token-{number}" for number in range(50)]
        await stream.give(*(program.task(token) for token in tokens))
        missing = set(tokens)
        while missing:
            frame = await stream.receive(lambda frame: frame.activity_completions)
            missing.difference_update(completion.token for completion in frame.activity_completions)


async def test_a_failure_has_type_and_message_and_says_that_trying_again_is_no_use(
    peer: Peer, program: WorkerProgram, start: Start
) -> None:
    async with start():
        stream = await peer.accept()
        await stream.welcome()
        await stream.give(activity_task("a", program.activity_type, program.bad_arguments()))
        failure = (await stream.completion("a")).failure
        assert failure.type
        assert failure.message
        assert failure.non_retryable


async def test_an_error_nobody_thought_of_fails_the_attempt_and_not_the_worker(
    peer: Peer, program: WorkerProgram, start: Start
) -> None:
    async with start():
        stream = await peer.accept()
        await stream.welcome()
        broken = program.arguments("ORD-1")
        broken[0].json = "{ this is not JSON"
        await stream.give(activity_task("a", program.activity_type, broken))
        assert (await stream.completion("a")).HasField("failure")
        await stream.give(program.task("b"))
        assert (await stream.completion("b")).HasField("result")


@pytest.mark.parametrize("program", [TYPESCRIPT], ids=["typescript"], indirect=True)
async def test_a_compensation_is_a_task_like_any_other(peer: Peer, program: WorkerProgram, start: Start) -> None:
    async with start() as worker:
        stream = await peer.accept()
        assert program.compensation_type in stream.hello.activity_types
        await stream.welcome()
        task = activity_task("a", program.compensation_type, payloads("ORD-12345", 109.97))
        task.compensation = True
        await stream.give(task)
        assert (await stream.completion("a")).HasField("result")
        assert "❌ Refunding payment for ORD-12345: $109.97" in worker.printed().splitlines()


async def test_a_task_that_comes_twice_is_done_once(peer: Peer, program: WorkerProgram, start: Start) -> None:
    async with start(work_s=0.3) as worker:
        stream = await peer.accept()
        await stream.welcome()
        await stream.give(program.task("a"), program.task("a"))
        await stream.give(program.task("a"))
        await stream.completion("a")
        await stream.give(program.task("a"))
        await stream.acknowledge("a")
        await stream.give(program.task("b", "ORD-2"))
        await stream.completion("b")
        assert worker.printed().splitlines().count(program.line("ORD-12345")) == 1


# Signs of life --------------------------------------------------------------------------------------------------------


async def test_an_idle_worker_sends_a_frame_at_least_every_interval(peer: Peer, start: Start) -> None:
    async with start():
        stream = await peer.accept()
        await stream.welcome(interval_s=0.2)
        for _ in range(5):
            await stream.send(ConnectResponse())
            await stream.receive(is_empty)


async def test_an_activity_that_works_says_how_far_it_is(peer: Peer, program: WorkerProgram, start: Start) -> None:
    async with start(work_s=FOREVER_S):
        stream = await peer.accept()
        await stream.welcome()
        await stream.give(program.task("a"))
        first, second = await stream.heartbeat("a"), await stream.heartbeat("a")
        assert json.loads(first.json) != json.loads(second.json)


async def test_a_service_that_falls_silent_is_left_and_connected_to_anew(
    peer: Peer, program: WorkerProgram, start: Start
) -> None:
    async with start():
        silent = await peer.accept()
        session_id = await silent.welcome(interval_s=0.2)
        stream = await peer.accept()
        assert stream.hello.session_id == session_id
        assert silent.ended.is_set()


# Cancelling -----------------------------------------------------------------------------------------------------------


async def test_an_activity_that_is_asked_to_stop_does_and_says_so(
    peer: Peer, program: WorkerProgram, start: Start
) -> None:
    async with start(work_s=FOREVER_S):
        stream = await peer.accept()
        await stream.welcome()
        await stream.give(program.task("a"))
        await stream.heartbeat("a")
        cancellation = Cancellation(token="a", reason=CANCELLATION_REASON_REQUESTED)
        unknown = Cancellation(token="nobody's", reason=CANCELLATION_REASON_REQUESTED)
        await stream.send(ConnectResponse(cancellations=[unknown, cancellation]))
        assert (await stream.completion("a")).HasField("cancelled")


# Coming back ----------------------------------------------------------------------------------------------------------


async def test_a_cut_stream_costs_nothing_the_activity_goes_on_and_is_reported_on_the_next(
    peer: Peer, program: WorkerProgram, start: Start
) -> None:
    async with start(work_s=2) as worker:
        stream = await peer.accept()
        session_id = await stream.welcome()
        await stream.give(program.task("a"))
        await stream.heartbeat("a")
        await stream.end()
        stream = await peer.accept()
        assert stream.hello.session_id == session_id
        assert list(stream.hello.tokens_in_hand) == ["a"]
        await stream.welcome()
        assert (await stream.completion("a")).HasField("result")
        assert worker.printed().splitlines().count(program.line("ORD-12345")) == 1


async def test_what_was_not_acknowledged_is_sent_again_until_it_is(
    peer: Peer, program: WorkerProgram, start: Start
) -> None:
    async with start() as worker:
        stream = await peer.accept()
        await stream.welcome()
        await stream.give(program.task("a"))
        first = await stream.completion("a")
        for _ in range(2):
            await stream.end()
            stream = await peer.accept()
            assert list(stream.hello.tokens_in_hand) == ["a"]
            await stream.welcome()
            assert await stream.completion("a") == first
        await stream.acknowledge("a")
        await stream.end()
        assert not (await peer.accept()).hello.tokens_in_hand
        assert worker.printed().splitlines().count(program.line("ORD-12345")) == 1


async def test_any_other_end_of_a_stream_brings_the_worker_back(peer: Peer, start: Start) -> None:
    async with start():
        stream = await peer.accept()
        session_id = await stream.welcome()
        for code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED):
            await stream.end(code)
            stream = await peer.accept()
            assert stream.hello.session_id == session_id


async def test_an_outage_of_the_service_costs_nothing_either(peer: Peer, program: WorkerProgram, start: Start) -> None:
    async with start(work_s=1) as worker:
        stream = await peer.accept()
        await stream.welcome()
        await stream.give(program.task("a"))
        await stream.heartbeat("a")
        await peer.stop()
        await peer.start()
        stream = await peer.accept()
        assert list(stream.hello.tokens_in_hand) == ["a"]
        await stream.welcome()
        assert (await stream.completion("a")).HasField("result")
        assert worker.printed().splitlines().count(program.line("ORD-12345")) == 1


async def test_work_that_is_not_the_workers_any_more_is_stopped_and_settled_by_the_answer(
    peer: Peer, program: WorkerProgram, start: Start
) -> None:
    async with start(work_s=FOREVER_S):
        stream = await peer.accept()
        await stream.welcome()
        await stream.give(program.task("a"))
        await stream.heartbeat("a")
        await stream.end()
        stream = await peer.accept()
        session_id = await stream.welcome("another")
        await stream.send(ConnectResponse(cancellations=[Cancellation(token="a", reason=CANCELLATION_REASON_STALE)]))
        await stream.completion("a")
        await stream.acknowledge("a", ACKNOWLEDGEMENT_RESULT_STALE)
        await stream.end()
        stream = await peer.accept()
        assert stream.hello.session_id == session_id
        assert not stream.hello.tokens_in_hand


async def test_work_goes_on_however_long_the_service_is_not_heard(
    peer: Peer, program: WorkerProgram, start: Start
) -> None:
    async with start(work_s=3) as worker:
        stream = await peer.accept()
        await stream.welcome(interval_s=0.2, lease_s=0.4)
        await stream.give(program.task("a"))
        stream = (
            await peer.accept()
        )  # the first one was left after three silent intervals, which is more than the lease
        await stream.welcome()
        assert (await stream.completion("a")).HasField("result")
        assert worker.printed().splitlines().count(program.line("ORD-12345")) == 1


async def test_a_service_that_drains_gets_the_work_done_first_and_the_worker_comes_back(
    peer: Peer, program: WorkerProgram, start: Start
) -> None:
    async with start(work_s=0.5):
        stream = await peer.accept()
        session_id = await stream.welcome()
        await stream.give(program.task("a"))
        await stream.send(ConnectResponse(drain=Drain()))
        assert (await stream.completion("a")).HasField("result")
        await stream.acknowledge("a")
        await stream.end(why="draining")
        assert (await peer.accept()).hello.session_id == session_id


# Answers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        ACKNOWLEDGEMENT_RESULT_ACCEPTED,
        ACKNOWLEDGEMENT_RESULT_DUPLICATE,
        ACKNOWLEDGEMENT_RESULT_STALE,
        ACKNOWLEDGEMENT_RESULT_INVALID,
    ],
)
async def test_any_answer_to_a_completion_settles_it(
    peer: Peer, program: WorkerProgram, start: Start, answer: AcknowledgementResult.ValueType
) -> None:
    async with start():
        stream = await peer.accept()
        await stream.welcome()
        await stream.give(program.task("a"))
        await stream.completion("a")
        await stream.acknowledge("a", answer)
        await stream.end()
        assert not (await peer.accept()).hello.tokens_in_hand


async def test_large_values_pass_both_ways_and_a_refused_result_disturbs_nothing(
    peer: Peer, program: WorkerProgram, start: Start
) -> None:
    async with start():
        stream = await peer.accept()
        await stream.welcome()
        order_id = "x" * (5 << 20)
        await stream.give(program.task("a", order_id))
        completion = await stream.completion("a")
        assert json.loads(completion.result.json) == program.result(order_id)
        rejection = Rejection(reason="PAYLOAD_TOO_LARGE", message="5 MiB are too much")
        await stream.acknowledge("a", ACKNOWLEDGEMENT_RESULT_INVALID, rejection)
        await stream.give(program.task("b"))
        assert (await stream.completion("b")).HasField("result")


async def test_a_result_that_no_frame_can_carry_fails_for_good(
    peer: Peer, program: WorkerProgram, start: Start
) -> None:
    async with start():
        stream = await peer.accept()
        await stream.welcome()
        # The task just fits into a frame. Its result repeats the order id, and has no room beside it.
        await stream.give(program.task("a", "x" * (MAX_FRAME_BYTES - 600)))
        failure = (await stream.completion("a")).failure
        assert failure.non_retryable
        await stream.give(program.task("b"))
        assert (await stream.completion("b")).HasField("result")


# Leaving --------------------------------------------------------------------------------------------------------------


async def test_an_idle_worker_that_is_terminated_says_so_and_ends_with_the_stream(peer: Peer, start: Start) -> None:
    async with start() as worker:
        stream = await peer.accept()
        await stream.welcome()
        await stream.send(ConnectResponse())
        await stream.receive(is_empty)
        worker.terminate()
        await _farewell(stream, worker)


async def test_a_worker_that_is_terminated_takes_nothing_new_and_finishes_what_it_has(
    peer: Peer, program: WorkerProgram, start: Start
) -> None:
    async with start(work_s=1) as worker:
        stream = await peer.accept()
        await stream.welcome()
        await stream.give(program.task("a"))
        await stream.heartbeat("a")
        worker.terminate()
        await stream.receive(lambda frame: frame.HasField("drain"))
        assert (await stream.completion("a")).HasField("result")
        await stream.acknowledge("a")
        await _farewell(stream, worker)


async def test_a_worker_that_is_terminated_says_so_again_on_its_next_stream(
    peer: Peer, program: WorkerProgram, start: Start
) -> None:
    async with start(work_s=1.5) as worker:
        stream = await peer.accept()
        await stream.welcome()
        await stream.give(program.task("a"))
        await stream.heartbeat("a")
        worker.terminate()
        await stream.receive(lambda frame: frame.HasField("drain"))
        await stream.end()
        stream = await peer.accept()
        await stream.welcome()
        await stream.receive(lambda frame: frame.HasField("drain"))
        await stream.acknowledge((await stream.completion("a")).token)
        await _farewell(stream, worker)


async def test_a_worker_that_is_terminated_while_there_is_no_service_ends(peer: Peer, start: Start) -> None:
    async with start() as worker:
        stream = await peer.accept()
        await stream.welcome()
        await stream.send(ConnectResponse())
        await stream.receive(is_empty)
        await peer.stop()
        worker.terminate()
        assert await worker.exit_code() == 0


async def _farewell(stream: PeerStream, worker: RunningWorker) -> None:
    """The worker has said that it drains; the service finds that nothing is in hand, and lets it go."""
    if not any(frame.HasField("drain") for frame in stream.frames):
        await stream.receive(lambda frame: frame.HasField("drain"))
    await stream.close()
    assert await worker.exit_code() == 0
