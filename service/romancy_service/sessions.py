"""Sessions: what this replica knows of the workers that are connected to it. A session outlives its streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, MutableSequence
from dataclasses import dataclass, field
from typing import TypeVar

from romancy.v1.worker_service_pb2 import (
    CANCELLATION_REASON_STALE,
    Acknowledgement,
    ActivityTask,
    Cancellation,
    CancellationReason,
    ConnectResponse,
    Drain,
    Hello,
    QueryTask,
    WorkflowTask,
)

from romancy_service.core.limits import ANSWERS_AHEAD, CLAIM_BYTES, PAGES_AHEAD
from romancy_service.core.task import TaskKind, TypeKey
from romancy_service.errors import AnswersUnread, RomancyError


@dataclass(frozen=True, slots=True)
class InHand:
    """A task that a session has, whether sent already or about to be."""

    token: str
    run_id: str
    task_id: str
    attempt: int
    kind: TaskKind
    leased_ms: int


@dataclass(slots=True, eq=False)
class Session:
    """One worker process's life on its stream. `epoch` is its newest hello's; an older stream's words count no more."""

    session_id: str
    epoch: int
    hello: Hello
    free: dict[TaskKind, int]
    """Slots that no task has."""
    in_hand: dict[str, InHand] = field(default_factory=dict)
    """By token."""
    by_task: dict[tuple[str, str], InHand] = field(default_factory=dict)
    """The same, by run id and task id."""
    reported: set[str] = field(default_factory=set)
    """Tokens of tasks whose end the worker reported, but which is not answered yet: nothing to send again."""
    known: set[str] | None = None
    """While the database is asked what the session has: tokens of all that it had meanwhile."""
    connected_at: float = field(default_factory=time.monotonic)
    """When it said hello."""
    brought: dict[str, int] = field(default_factory=dict)
    """Workflow tasks that were written to this stream -> the last event that they brought."""
    told_to_stop: set[str] = field(default_factory=set)
    draining: bool = False
    leaving: bool = False
    """The worker drains: its stream ends when it has nothing in hand."""
    closed: bool = False
    closed_why: RomancyError | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    written: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever something of what waits was taken."""

    # What the writer sends next.
    activity_tasks: list[ActivityTask] = field(default_factory=list)
    claimed_bytes: int = 0
    """Of the activities that were claimed since the last time that none waited."""
    workflow_tasks: list[WorkflowTask] = field(default_factory=list)
    histories: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PAGES_AHEAD))
    """Held by those whose histories are being read."""
    unread: set[str] = field(default_factory=set)
    """Tokens of workflow tasks of whose histories nothing was read yet."""
    queries: list[QueryTask] = field(default_factory=list)
    cancellations: list[Cancellation] = field(default_factory=list)
    acknowledgements: list[Acknowledgement] = field(default_factory=list)
    drain: bool = False

    @property
    def namespace(self) -> str:
        return self.hello.namespace

    def type_keys(self) -> Iterator[TypeKey]:
        """All that the worker can take."""
        for queue in self.hello.task_queues:
            for workflow_type in self.hello.workflow_types:
                yield self.namespace, queue, TaskKind.WORKFLOW, workflow_type
            for activity_type in self.hello.activity_types:
                yield self.namespace, queue, TaskKind.ACTIVITY, activity_type

    def takes(self, kind: TaskKind) -> bool:
        """Whether a task of this kind can be given now."""
        full = self.is_full and kind is TaskKind.ACTIVITY
        return self.free[kind] > 0 and not full and not self.draining and not self.closed

    @property
    def is_full(self) -> bool:
        """Whether so much of activities waits to be sent that it gets no more of them until none does."""
        return self.claimed_bytes >= CLAIM_BYTES

    def find(self, run_id: str, task_id: str) -> InHand | None:
        """The attempt of a task that the session has."""
        return self.by_task.get((run_id, task_id))

    def take(self, held: InHand) -> None:
        """Add a task whose slot is reserved already."""
        self.in_hand[held.token] = held
        self.by_task[held.run_id, held.task_id] = held
        if self.known is not None:
            self.known.add(held.token)

    def put_down(self, token: str) -> InHand | None:
        """A task ended, or is not the session's any more: its slot is free. None if it was not in hand."""
        held = self.in_hand.pop(token, None)
        if held is not None:
            self.free[held.kind] += 1
            self.told_to_stop.discard(token)
            self.brought.pop(token, None)
            self.unread.discard(token)
            if self.by_task.get((held.run_id, held.task_id)) is held:
                del self.by_task[held.run_id, held.task_id]
        return held

    def cancel(self, held: InHand, reason: CancellationReason.ValueType) -> None:
        """Tell the worker, once, to stop an activity."""
        if held.token in self.told_to_stop:
            return
        self.told_to_stop.add(held.token)
        self.stop(held.token, reason)

    def stop(self, token: str, reason: CancellationReason.ValueType) -> None:
        """Tell the worker to stop an activity, whether it is known to have it or not."""
        self.cancellations.append(Cancellation(token=token, reason=reason))
        self.wake.set()

    def disown(self, tokens: Iterable[str]) -> None:
        """Tell the worker to stop what it takes for its own."""
        for token in tokens:
            self.stop(token, CANCELLATION_REASON_STALE)

    def leave(self) -> None:
        """The worker asks for no new tasks, and for the end of its stream once nothing is in hand."""
        self.draining = self.leaving = True
        self.wake.set()

    @property
    def has_left(self) -> bool:
        """The worker asked to leave, and neither has a task, nor is one on its way to it or being recorded."""
        slots = self.hello.workflow_slots + self.hello.activity_slots
        return self.leaving and not self.reported and sum(self.free.values()) == slots

    def check_left(self) -> None:
        """Something of it ended: if the worker leaves, that may have been the last."""
        if self.leaving:
            self.wake.set()

    def acknowledge(self, acknowledgement: Acknowledgement) -> None:
        """Answer a completion."""
        self.reported.discard(acknowledgement.token)
        self.acknowledgements.append(acknowledgement)
        self.wake.set()

    def check_read(self) -> None:
        """Raise AnswersUnread if the worker talks and does not listen: it must not fill the memory."""
        if len(self.acknowledgements) + len(self.cancellations) > ANSWERS_AHEAD:
            raise AnswersUnread(ANSWERS_AHEAD)

    def start_drain(self) -> None:
        """No new tasks from now on; tell the worker."""
        self.draining = True
        self.drain = True
        self.wake.set()

    def close(self, why: RomancyError | None) -> None:
        """Nothing is given to it any more; its stream, if there is one, ends because of `why`."""
        self.closed = True
        self.closed_why = why
        self.wake.set()
        self.written.set()

    def take_frame(self, most_bytes: int) -> ConnectResponse | None:
        """What waits to be sent, as one frame of about `most_bytes` or with one item; None when nothing waits."""
        self.written.set()
        frame = ConnectResponse()
        room = most_bytes
        # Acknowledgements first: a worker must know a run's last event before it gets what follows from it.
        room = _move(self.acknowledgements, frame.acknowledgements, room, most_bytes)
        room = _move(self.cancellations, frame.cancellations, room, most_bytes)
        room = _move(self.activity_tasks, frame.activity_tasks, room, most_bytes)
        if not self.activity_tasks:
            self.claimed_bytes = 0
        room = _move(self.workflow_tasks, frame.workflow_tasks, room, most_bytes)
        room = _move(self.queries, frame.queries, room, most_bytes)
        if self.drain:
            frame.drain.CopyFrom(Drain())
            self.drain = False
        return frame if room < most_bytes or frame.HasField("drain") else None

    async def room(self) -> None:
        """Wait until the worker has taken so much that more of histories may be read for it."""
        while len(self.workflow_tasks) > PAGES_AHEAD and not self.closed:
            self.written.clear()
            await self.written.wait()

    async def asked(self, query_id: str) -> None:
        """Wait until a question was written. If nobody waits any more, it is not asked, or no less than whole."""
        pieces = self._pieces(query_id)
        try:
            while self._pieces(query_id) and not self.closed:
                self.written.clear()
                await self.written.wait()
        finally:
            if self._pieces(query_id) == pieces:
                self.queries[:] = [query for query in self.queries if query.query_id != query_id]

    def _pieces(self, query_id: str) -> int:
        return sum(query.query_id == query_id for query in self.queries)

    def unsent(self) -> list[str]:
        """Tokens of the tasks that were leased and never written to a stream."""
        activities = (task.token for task in self.activity_tasks)
        return [*activities, *(task.token for task in self.workflow_tasks), *self.unread]


def open_session(session_id: str, epoch: int, hello: Hello) -> Session:
    """A session with all its slots free."""
    free = {TaskKind.WORKFLOW: hello.workflow_slots, TaskKind.ACTIVITY: hello.activity_slots}
    return Session(session_id, epoch, hello, free)


Item = TypeVar("Item", Acknowledgement, ActivityTask, Cancellation, QueryTask, WorkflowTask)


def _move(waiting: list[Item], field_items: MutableSequence[Item], room: int, most_bytes: int) -> int:
    """Move items into a frame as long as there is room, or one if the frame is empty. Returns the room that is left."""
    taken = 0
    for item in waiting:
        size = item.ByteSize()
        if size > room and room < most_bytes:
            room = 0  # what comes after it in order must not overtake it
            break
        room -= size
        taken += 1
    field_items.extend(waiting[:taken])
    del waiting[:taken]
    return room
