"""The session as a pure machine: what a worker says and hears, without a socket."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.timestamp_pb2 import Timestamp

from romancy.v1.command_pb2 import Command, CompleteWorkflow
from romancy.v1.failure_pb2 import Failure
from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.payload_pb2 import Payload
from romancy.v1.worker_service_pb2 import (
    ACKNOWLEDGEMENT_RESULT_ACCEPTED,
    ACKNOWLEDGEMENT_RESULT_INVALID,
    ACKNOWLEDGEMENT_RESULT_STALE,
    CANCELLATION_REASON_STALE,
    Acknowledgement,
    ActivityCompletion,
    ActivityHeartbeat,
    ActivityTask,
    Cancellation,
    Chunk,
    ConnectRequest,
    ConnectResponse,
    Hello,
    Welcome,
    WorkflowTask,
    WorkflowTaskCommands,
    WorkflowTaskCompletion,
    WorkflowTaskMiss,
)

from romancy._session import FRAME_BYTES, Session

BIG = "x" * (3 * FRAME_BYTES)


def connected(session_id: str = "s1", max_frame_bytes: int = 0) -> Session:
    session = Session(Hello(worker_id="w"))
    session.hello()
    receive(session, welcome=Welcome(session_id=session_id, max_frame_bytes=max_frame_bytes))
    return session


def receive(session: Session, **frame: object) -> object:
    return session.receive(ConnectResponse(**frame), now=0.0)  # type: ignore[arg-type]


def frames(session: Session) -> Iterator[ConnectRequest]:
    while (frame := session.next_frame()) is not None:
        yield frame


def joined(pieces: list[ConnectRequest]) -> list[ConnectRequest]:
    whole, data = [], b""
    for piece in pieces:
        if not piece.HasField("chunk"):
            whole.append(piece)
            continue
        data += piece.chunk.data
        if piece.chunk.last:
            whole.append(ConnectRequest.FromString(data))
            data = b""
    return whole


def activity(token: str) -> ActivityTask:
    return ActivityTask(token=token, activity_type="pay")


def done(token: str, result: str = "1") -> ActivityCompletion:
    return ActivityCompletion(token=token, result=Payload(json=result))


def accepted(token: str) -> Acknowledgement:
    return Acknowledgement(token=token, result=ACKNOWLEDGEMENT_RESULT_ACCEPTED)


def test_a_task_that_comes_twice_is_handed_out_once() -> None:
    session = connected()
    first = session.receive(ConnectResponse(activity_tasks=[activity("a")]), now=0.0)
    again = session.receive(ConnectResponse(activity_tasks=[activity("a"), activity("b")]), now=0.0)
    assert [task.token for task in first.activity_tasks] == ["a"]
    assert [task.token for task in again.activity_tasks] == ["b"]


def test_a_completion_is_sent_again_on_each_stream_until_it_is_acknowledged() -> None:
    session = connected()
    receive(session, activity_tasks=[activity("a")])
    session.complete(done("a"))
    assert [frame.activity_completions[0].token for frame in frames(session)] == ["a"]
    for _ in range(2):
        assert list(session.hello().hello.tokens_in_hand) == ["a"]
        receive(session, welcome=Welcome(session_id="s1"))
        assert [frame.activity_completions[0].token for frame in frames(session)] == ["a"]
    receive(session, acknowledgements=[accepted("a")])
    assert session.idle
    assert list(session.hello().hello.tokens_in_hand) == []
    assert session.next_frame() is None


def test_the_hello_of_a_reconnect_names_the_session_and_all_tasks_in_hand() -> None:
    session = connected("secret")
    receive(session, activity_tasks=[activity("runs"), activity("ended"), activity("settled")])
    session.complete(done("ended"))
    session.complete(done("settled"))
    receive(session, acknowledgements=[accepted("settled")])
    hello = session.hello().hello
    assert hello.session_id == "secret"
    assert set(hello.tokens_in_hand) == {"runs", "ended"}


def test_what_is_not_the_workers_any_more_is_stopped_and_in_hand_until_that_is_acknowledged() -> None:
    session = connected()
    receive(session, activity_tasks=[activity("runs"), activity("ended")])
    session.complete(done("ended"))
    session.hello()
    stale = [Cancellation(token=token, reason=CANCELLATION_REASON_STALE) for token in ("runs", "ended", "unknown")]
    received = session.receive(ConnectResponse(welcome=Welcome(session_id="s2"), cancellations=stale), now=0.0)
    assert [cancellation.token for cancellation in received.cancellations] == ["runs", "ended"]
    assert received.new_session
    session.complete(done("runs"))
    (frame,) = frames(session)
    assert [completion.token for completion in frame.activity_completions] == ["ended", "runs"]
    receive(
        session,
        acknowledgements=[
            Acknowledgement(token=token, result=ACKNOWLEDGEMENT_RESULT_STALE) for token in ("ended", "runs")
        ],
    )
    assert session.idle


def test_a_welcome_to_the_same_session_is_not_a_new_one() -> None:
    session = connected("s1")
    session.hello()
    assert not session.receive(ConnectResponse(welcome=Welcome(session_id="s1")), now=0.0).new_session


def test_pages_of_a_history_are_joined_to_one_task() -> None:
    session = connected()
    pages = [
        WorkflowTask(token="w", events=[HistoryEvent(event_id=number)], more=number < 3, last_event_id=3)
        for number in (1, 2, 3)
    ]
    received = [session.receive(ConnectResponse(workflow_tasks=[page]), now=0.0).workflow_tasks for page in pages]
    assert received[:2] == [[], []]
    (task,) = received[2]
    assert [event.event_id for event in task.events] == [1, 2, 3]
    assert not task.more


def test_a_history_of_which_pages_are_missing_is_not_in_hand_so_that_it_is_sent_again() -> None:
    session = connected()
    receive(session, workflow_tasks=[WorkflowTask(token="w", events=[HistoryEvent(event_id=1)], more=True)])
    assert list(session.hello().hello.tokens_in_hand) == []
    whole = WorkflowTask(token="w", events=[HistoryEvent(event_id=1), HistoryEvent(event_id=2)])
    (task,) = session.receive(ConnectResponse(workflow_tasks=[whole]), now=0.0).workflow_tasks
    assert [event.event_id for event in task.events] == [1, 2]


def test_a_missed_task_is_handed_out_again_when_it_comes_whole_under_the_same_token() -> None:
    session = connected()
    receive(session, workflow_tasks=[WorkflowTask(token="w", after_event_id=7)])
    session.complete(WorkflowTaskCompletion(token="w", miss=WorkflowTaskMiss()))
    assert len(list(frames(session))) == 1
    session.hello()
    receive(session, welcome=Welcome(session_id="s1"))
    assert [frame.workflow_task_completions[0].WhichOneof("outcome") for frame in frames(session)] == ["miss"]
    whole = ConnectResponse(workflow_tasks=[WorkflowTask(token="w")])
    assert len(session.receive(whole, now=0.0).workflow_tasks) == 1
    assert session.receive(whole, now=0.0).workflow_tasks == []
    session.hello()
    assert session.next_frame() is None


def test_what_waits_goes_out_in_one_frame() -> None:
    session = connected()
    receive(session, activity_tasks=[activity("a"), activity("b"), activity("c"), activity("d")])
    session.complete(done("a"))
    session.complete(done("b"))
    session.heartbeat(ActivityHeartbeat(token="c"))
    session.give_back("d")
    session.forget_run("r")
    (frame,) = frames(session)
    assert [completion.token for completion in frame.activity_completions] == ["a", "b"]
    assert [heartbeat.token for heartbeat in frame.activity_heartbeats] == ["c"]
    assert list(frame.returned_tasks) == ["d"]
    assert list(frame.forgotten_runs) == ["r"]


def test_frames_are_split_when_much_waits() -> None:
    session = connected()
    tokens = [chr(65 + number) for number in range(20)]
    receive(session, activity_tasks=[activity(token) for token in tokens])
    for token in tokens:
        session.complete(done(token, "x" * (FRAME_BYTES // 4)))
    sent = list(frames(session))
    assert all(frame.ByteSize() <= FRAME_BYTES for frame in sent)
    assert [completion.token for frame in sent for completion in frame.activity_completions] == tokens


def test_a_large_completion_travels_in_pieces_with_heartbeats_between_them() -> None:
    session = connected()
    receive(session, activity_tasks=[activity("big"), activity("small")])
    session.complete(done("big", BIG))
    sent = []
    while (frame := session.next_frame()) is not None:
        sent.append(frame)
        if len(sent) == 1:
            session.heartbeat(ActivityHeartbeat(token="small"))
    assert [frame.HasField("chunk") for frame in sent[:3]] == [True, False, True]
    assert all(frame.ByteSize() < FRAME_BYTES + 100 for frame in sent)
    assert [frame.chunk.last for frame in sent if frame.HasField("chunk")][-1]
    (big,) = [frame for frame in joined(sent) if frame.activity_completions]
    assert big.activity_completions[0].result.json == BIG


def test_pieces_of_two_large_completions_are_not_mixed() -> None:
    session = connected()
    receive(session, activity_tasks=[activity("one"), activity("two")])
    session.complete(done("one", BIG))
    session.complete(done("two", BIG))
    ids = [frame.chunk.frame_id for frame in frames(session)]
    assert ids == sorted(ids)
    assert set(ids) == {1, 2}


def test_a_large_frame_of_the_service_is_joined_from_its_pieces() -> None:
    session = connected()
    data = ConnectResponse(activity_tasks=[activity("a")]).SerializeToString()
    first = ConnectResponse(chunk=Chunk(frame_id=1, data=data[:3]))
    between = ConnectResponse(activity_tasks=[activity("b")])
    last = ConnectResponse(chunk=Chunk(frame_id=1, data=data[3:], last=True))
    got = [[task.token for task in session.receive(f, now=0.0).activity_tasks] for f in (first, between, last)]
    assert got == [[], ["b"], ["a"]]


def test_a_completion_above_the_frame_limit_is_failed_instead_of_sent() -> None:
    session = connected(max_frame_bytes=1000)
    receive(session, activity_tasks=[activity("a")])
    session.complete(done("a", "x" * 2000))
    (frame,) = frames(session)
    failure = frame.activity_completions[0].failure
    assert failure.type == "PayloadTooLarge"
    assert failure.non_retryable
    assert "2009 bytes" in failure.message


def test_the_acknowledgement_of_a_stand_in_is_not_taken_for_that_of_the_commands() -> None:
    session = connected(max_frame_bytes=1000)
    receive(session, workflow_tasks=[WorkflowTask(token="w")])
    commands = [Command(complete_workflow=CompleteWorkflow(result=Payload(json="x" * 2000)))]
    session.complete(WorkflowTaskCompletion(token="w", commands=WorkflowTaskCommands(commands=commands)))
    (frame,) = frames(session)
    assert frame.workflow_task_completions[0].failure.type == "PayloadTooLarge"
    received = session.receive(ConnectResponse(acknowledgements=[accepted("w")]), now=0.0)
    assert received.acknowledgements[0].result == ACKNOWLEDGEMENT_RESULT_INVALID


def test_what_ended_a_stream_by_its_size_is_failed_not_sent_again() -> None:
    session = connected()
    receive(session, activity_tasks=[activity("big"), activity("small"), activity("unsent")])
    session.complete(done("small"))
    session.complete(done("big", BIG))
    list(frames(session))
    session.complete(done("unsent", BIG + BIG))
    assert session.ended_by_size("RESOURCE_EXHAUSTED: too large")
    session.hello()
    receive(session, welcome=Welcome(session_id="s1"))
    outcomes = {
        completion.token: completion.WhichOneof("outcome")
        for frame in joined(list(frames(session)))
        for completion in frame.activity_completions
    }
    assert outcomes == {"small": "result", "big": "failure", "unsent": "result"}
    assert not connected().ended_by_size("RESOURCE_EXHAUSTED: too many sessions")


def test_only_the_newest_heartbeat_of_a_task_is_sent_and_none_after_its_end() -> None:
    session = connected()
    receive(session, activity_tasks=[activity("a"), activity("b")])
    session.heartbeat(ActivityHeartbeat(token="a", details=Payload(json="1")))
    session.heartbeat(ActivityHeartbeat(token="a", details=Payload(json="2")))
    session.heartbeat(ActivityHeartbeat(token="a"))
    session.heartbeat(ActivityHeartbeat(token="b"))
    session.complete(done("b"))
    session.heartbeat(ActivityHeartbeat(token="b"))
    (frame,) = frames(session)
    assert [(beat.token, beat.details.json) for beat in frame.activity_heartbeats] == [("a", "2")]


def test_the_last_progress_before_a_failure_is_sent_with_it() -> None:
    session = connected()
    receive(session, activity_tasks=[activity("a")])
    session.heartbeat(ActivityHeartbeat(token="a", details=Payload(json="7")))
    session.complete(ActivityCompletion(token="a", failure=Failure(message="no")))
    (frame,) = frames(session)
    assert [beat.details.json for beat in frame.activity_heartbeats] == ["7"]
    assert len(frame.activity_completions) == 1


def test_a_beat_without_anything_to_say_is_an_empty_frame() -> None:
    session = connected()
    session.beat()
    assert [frame.ByteSize() for frame in frames(session)] == [0]


def test_goodbye_comes_after_all_that_waits() -> None:
    session = connected()
    receive(session, activity_tasks=[activity("a"), activity("b")])
    session.say_goodbye()
    session.complete(done("a", BIG))
    session.complete(done("b"))
    sent = list(frames(session))
    assert [frame.HasField("goodbye") for frame in sent] == [False] * (len(sent) - 1) + [True]


def test_a_drain_is_said_again_on_each_new_stream() -> None:
    session = connected()
    session.drain()
    assert [frame.HasField("drain") for frame in frames(session)] == [True]
    session.hello()
    receive(session, welcome=Welcome(session_id="s1"))
    assert [frame.HasField("drain") for frame in frames(session)] == [True]


def test_cancellations_of_tasks_that_are_not_in_hand_are_dropped() -> None:
    session = connected()
    receive(session, activity_tasks=[activity("a")])
    received = session.receive(
        ConnectResponse(cancellations=[Cancellation(token="a"), Cancellation(token="gone")]), now=0.0
    )
    assert [cancellation.token for cancellation in received.cancellations] == ["a"]


def test_the_services_clock_is_read_from_its_frames() -> None:
    session = connected()
    session.receive(ConnectResponse(time=Timestamp(seconds=1_000)), now=10.0)
    assert session.service_ms(10.5) == 1_000_500
