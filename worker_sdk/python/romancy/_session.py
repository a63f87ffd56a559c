"""The worker's side of its session: frames in, work out; completions in, frames out.

A pure machine without I/O, clock or threads: `_stream.py` drives it over a socket, tests drive it without one. A
session outlives its streams. What ended is kept until it is acknowledged, and sent again on the next stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from romancy.v1.failure_pb2 import FAILURE_SOURCE_SERVICE, Failure
from romancy.v1.worker_service_pb2 import (
    ACKNOWLEDGEMENT_RESULT_INVALID,
    Acknowledgement,
    ActivityCompletion,
    ActivityHeartbeat,
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
    Welcome,
    WorkflowTask,
    WorkflowTaskCompletion,
)

FRAME_BYTES: Final = 256 * 1024
"""Frames are filled up to this; what is larger travels alone, in pieces of this size, between other frames."""
MAX_FRAME_BYTES: Final = 32 * 1024 * 1024
"""The largest frame if the welcome tells no other limit."""
_FRAME_OVERHEAD: Final = 64
"""Room for the tag and the length of the one item in a large frame."""

Completion = ActivityCompletion | WorkflowTaskCompletion


@dataclass(slots=True)
class Received:
    """What one frame brought for the worker. Tasks that it has already are left out; paged ones are whole."""

    activity_tasks: list[ActivityTask] = field(default_factory=list)
    workflow_tasks: list[WorkflowTask] = field(default_factory=list)
    queries: list[QueryTask] = field(default_factory=list)
    cancellations: list[Cancellation] = field(default_factory=list)
    acknowledgements: list[Acknowledgement] = field(default_factory=list)
    new_session: bool = False
    """The service knows nothing of a session before this welcome: runs held in memory are nobody's."""


@dataclass(slots=True)
class _Ended:
    """A completion that was not acknowledged yet."""

    message: Completion
    size: int
    sent: bool = False
    replaced: bool = False
    """It stands for one that could not be sent: what the service accepts is not what the worker reported."""

    @property
    def is_miss(self) -> bool:
        return isinstance(self.message, WorkflowTaskCompletion) and self.message.HasField("miss")


class Session:
    """What the worker knows of its session, and what waits to be sent."""

    def __init__(self, identity: Hello) -> None:
        """`identity` is the hello without what changes: session id and tokens in hand."""
        self._identity = identity
        self.session_id = ""
        self.welcome = Welcome()
        self.draining = False
        self.service_draining = False
        self._service_ahead_ms = 0.0
        self._in_hand: set[str] = set()
        self._ended: dict[str, _Ended] = {}
        self._pages: dict[str, WorkflowTask] = {}
        # What waits to be written.
        self._small: dict[str, _Ended] = {}
        self._large: dict[str, _Ended] = {}
        self._heartbeats: dict[str, ActivityHeartbeat] = {}
        self._returned: list[str] = []
        self._forgotten: list[str] = []
        self._answers: deque[QueryAnswer] = deque()
        self._query_pages: dict[str, QueryTask] = {}
        self._drain = False
        self._goodbye = False
        self._beat = False
        self.is_welcomed = False
        """On the newest stream."""
        # Chunks, counted per stream.
        self._pieces: deque[Chunk] = deque()
        self._piece_is_next = False
        self._sent_frame_id = 0
        self._joined = bytearray()

    @property
    def idle(self) -> bool:
        """No task is in hand: none runs, and every completion is acknowledged."""
        return not self._in_hand

    @property
    def tokens_in_hand(self) -> frozenset[str]:
        """The tokens of all tasks that run or whose completion is not acknowledged."""
        return frozenset(self._in_hand)

    def service_ms(self, now: float) -> int:
        """The service's clock when ours shows `now` (seconds): the estimate errs to the past only."""
        return int(now * 1000 + self._service_ahead_ms)

    # What the worker has to say ---------------------------------------------------------------------------------------

    def complete(self, completion: Completion) -> None:
        """A task in hand ended. It stays in hand until the service says what became of this."""
        token = completion.token
        if token not in self._in_hand:
            return  # given up meanwhile
        if not completion.HasField("failure"):
            self._heartbeats.pop(token, None)  # else the next attempt wants to know how far this one got
        size = completion.ByteSize()
        limit = (self.welcome.max_frame_bytes or MAX_FRAME_BYTES) - _FRAME_OVERHEAD
        ended = _Ended(completion, size)
        if size > limit:
            ended = _too_large(ended, f"at most {limit} are allowed")
        self._wait(token, ended)

    def heartbeat(self, heartbeat: ActivityHeartbeat) -> None:
        """An activity in hand goes on. Of several that wait only the newest details are sent."""
        token = heartbeat.token
        if token not in self._in_hand or token in self._ended:
            return
        waiting = self._heartbeats.get(token)
        if waiting is None or heartbeat.HasField("details"):
            self._heartbeats[token] = heartbeat

    def give_back(self, token: str) -> None:
        """A task in hand was not begun, and will not be."""
        if token in self._in_hand:
            self._in_hand.discard(token)
            self._returned.append(token)

    def give_up(self, token: str) -> None:
        """Say nothing more about a task: the end of the session frees it."""
        self._in_hand.discard(token)
        self._ended.pop(token, None)
        self._small.pop(token, None)
        self._large.pop(token, None)
        self._heartbeats.pop(token, None)

    def forget_run(self, run_id: str) -> None:
        """The worker does not hold a run in memory any more."""
        self._forgotten.append(run_id)

    def answer(self, answer: QueryAnswer) -> None:
        """A query was answered. It is asked again should the stream end first."""
        self._answers.append(answer)

    def drain(self) -> None:
        """Take no new tasks; those in hand go on."""
        self.draining = self._drain = True

    def beat(self) -> None:
        """Send a frame soon, an empty one if nothing else waits."""
        self._beat = True

    def say_goodbye(self) -> None:
        """End the session after what waits is sent."""
        self._goodbye = True

    # Up -------------------------------------------------------------------------------------------------------------

    def hello(self) -> ConnectRequest:
        """The first frame of a new stream. What was not acknowledged waits to be sent again."""
        self.is_welcomed = False
        self._pages.clear()
        self._query_pages.clear()
        self._answers.clear()
        self._pieces.clear()
        self._joined.clear()
        self._sent_frame_id = 0
        self._small.clear()
        self._large.clear()
        for token, ended in self._ended.items():
            self._wait(token, ended)
        self._drain = self.draining
        self.service_draining = False
        frame = ConnectRequest(hello=self._identity)
        frame.hello.session_id = self.session_id
        frame.hello.tokens_in_hand.extend(self._in_hand)
        return frame

    def next_frame(self) -> ConnectRequest | None:
        """What is to be written next; None when nothing waits. Pieces alternate with small frames."""
        if not self._pieces and self._large:
            self._cut()
        beat, self._beat = self._beat, False
        if self._pieces and (self._piece_is_next or not self._has_small()):
            self._piece_is_next = False
            return ConnectRequest(chunk=self._pieces.popleft())
        if beat or self._has_small():
            self._piece_is_next = True
            return self._gather()
        if self._goodbye:
            self._goodbye = False
            return ConnectRequest(goodbye=Goodbye())
        return None

    def _wait(self, token: str, ended: _Ended) -> None:
        self._ended[token] = ended
        ended.sent = False
        (self._small if ended.size <= FRAME_BYTES else self._large)[token] = ended

    def _has_small(self) -> bool:
        return bool(
            self._small or self._heartbeats or self._returned or self._forgotten or self._drain or self._answers
        )

    def _gather(self) -> ConnectRequest:
        frame = ConnectRequest()
        if self._drain:
            frame.drain.CopyFrom(Drain())
            self._drain = False
        if self._returned:
            frame.returned_tasks.extend(self._returned)
            self._returned.clear()
        if self._forgotten:
            frame.forgotten_runs.extend(self._forgotten)
            self._forgotten.clear()
        room = FRAME_BYTES
        if self._answers:
            answer = self._answers.popleft()
            frame.query_answers.append(answer)
            room -= answer.ByteSize()
        for token in list(self._heartbeats):
            heartbeat = self._heartbeats.pop(token)
            frame.activity_heartbeats.append(heartbeat)
            room -= heartbeat.ByteSize()
            if room <= 0:
                return frame
        activities: list[ActivityCompletion] = []
        workflows: list[WorkflowTaskCompletion] = []
        taken = 0
        for ended in self._small.values():
            room -= ended.size
            if room < 0 and taken:
                break
            taken += 1
            ended.sent = True
            message = ended.message
            if isinstance(message, ActivityCompletion):
                activities.append(message)
            else:
                workflows.append(message)
        if taken == len(self._small):
            self._small.clear()
        else:
            for ended in list(self._small.values())[:taken]:
                del self._small[ended.message.token]
        frame.activity_completions.extend(activities)
        frame.workflow_task_completions.extend(workflows)
        return frame

    def _cut(self) -> None:
        token = next(iter(self._large))
        ended = self._large.pop(token)
        ended.sent = True
        if isinstance(ended.message, ActivityCompletion):
            frame = ConnectRequest(activity_completions=[ended.message])
        else:
            frame = ConnectRequest(workflow_task_completions=[ended.message])
        self._sent_frame_id += 1
        self._pieces.extend(_chunks(self._sent_frame_id, frame.SerializeToString()))

    # Down -----------------------------------------------------------------------------------------------------------

    def receive(self, frame: ConnectResponse, now: float) -> Received:
        """Take in one frame at our time `now` (seconds). A piece of a frame brings nothing before the last one."""
        if frame.HasField("time"):
            self._service_ahead_ms = frame.time.ToMilliseconds() - now * 1000
        if frame.HasField("chunk"):
            self._joined += frame.chunk.data
            if not frame.chunk.last:
                return Received()
            frame = ConnectResponse.FromString(bytes(self._joined))
            self._joined.clear()
        received = Received()
        if frame.HasField("welcome"):
            self._be_welcomed(frame.welcome, received)
        for acknowledgement in frame.acknowledgements:
            ended = self._ended.get(acknowledgement.token)
            if ended is not None:
                if ended.replaced:
                    acknowledgement.result = ACKNOWLEDGEMENT_RESULT_INVALID
                self.give_up(acknowledgement.token)
                received.acknowledgements.append(acknowledgement)
        received.cancellations.extend(c for c in frame.cancellations if c.token in self._in_hand)
        for activity_task in frame.activity_tasks:
            if activity_task.token not in self._in_hand:
                self._in_hand.add(activity_task.token)
                received.activity_tasks.append(activity_task)
        for page in frame.workflow_tasks:
            task = self._join_pages(page)
            if task is not None and self._take_workflow_task(task.token):
                received.workflow_tasks.append(task)
        for query in frame.queries:
            whole = self._join_query(query)
            if whole is not None:
                received.queries.append(whole)
        if frame.HasField("drain"):
            self.service_draining = True
        return received

    def _join_query(self, page: QueryTask) -> QueryTask | None:
        begun = self._query_pages.setdefault(page.query_id, page)
        if begun is not page:
            begun.events.extend(page.events)
        return None if page.more else self._query_pages.pop(page.query_id)

    def _be_welcomed(self, welcome: Welcome, received: Received) -> None:
        self.welcome = welcome
        self.is_welcomed = True
        received.new_session = welcome.session_id != self.session_id
        self.session_id = welcome.session_id

    def _join_pages(self, page: WorkflowTask) -> WorkflowTask | None:
        begun = self._pages.get(page.token)
        if begun is None:
            if not page.more:
                return page
            self._pages[page.token] = page
            return None
        begun.events.extend(page.events)
        begun.last_event_id = page.last_event_id
        if page.more:
            return None
        begun.more = False
        return self._pages.pop(page.token)

    def _take_workflow_task(self, token: str) -> bool:
        if token not in self._in_hand:
            self._in_hand.add(token)
            return True
        # A task that the worker missed comes again, whole, under the same token.
        missed = self._ended.get(token)
        if missed is None or not missed.is_miss:
            return False
        del self._ended[token]
        self._small.pop(token, None)
        return True

    def ended_by_size(self, why: str) -> bool:
        """The stream broke because of a frame's size: fail the largest item that it carried, or it would break the next
        one too. Returns False if the stream carried nothing large.
        """
        sent = [ended for ended in self._ended.values() if ended.sent and ended.size > FRAME_BYTES]
        if not sent:
            return False
        largest = max(sent, key=lambda ended: ended.size)
        self._ended[largest.message.token] = _too_large(largest, f"and the stream ended with: {why}")
        return True


def _chunks(frame_id: int, data: bytes) -> Iterator[Chunk]:
    for start in range(0, len(data), FRAME_BYTES):
        end = start + FRAME_BYTES
        yield Chunk(frame_id=frame_id, data=data[start:end], last=end >= len(data))


def _too_large(ended: _Ended, why: str) -> _Ended:
    """The completion that stands for one that cannot be sent."""
    failure = Failure(type="PayloadTooLarge", non_retryable=True, source=FAILURE_SOURCE_SERVICE)
    completion = ended.message
    stand_in: Completion
    if isinstance(completion, ActivityCompletion):
        what, remedy = "the activity's outcome", "keep large data elsewhere and return where it is"
        stand_in = ActivityCompletion(token=completion.token, failure=failure)
    else:
        what, remedy = "the commands of one workflow task", "pass smaller arguments, or start fewer things at once"
        stand_in = WorkflowTaskCompletion(
            token=completion.token, seen_event_id=completion.seen_event_id, failure=failure
        )
    stand_in.failure.message = f"{what}: {ended.size} bytes, {why}: {remedy}"
    return _Ended(stand_in, stand_in.ByteSize(), replaced=True)
