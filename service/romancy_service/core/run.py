"""Run: what a history folds to, in memory. Only `apply` changes it, and the bookkeeping for the next commit here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from romancy.v1.command_pb2 import SendEvent
from romancy.v1.failure_pb2 import Failure
from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.workflow_pb2 import (
    WORKFLOW_STATUS_COMPENSATING,
    WORKFLOW_STATUS_RUNNING,
    WORKFLOW_STATUS_UNSPECIFIED,
    AttributeValue,
    WorkflowOutcome,
    WorkflowStatus,
)

from romancy_service.core.attributes import comparables
from romancy_service.core.limits import KIB
from romancy_service.core.saga import Saga
from romancy_service.core.task import WORKFLOW_TASK_ID, Task, TaskKind

OPEN_STATUSES = (WORKFLOW_STATUS_RUNNING, WORKFLOW_STATUS_COMPENSATING)
_RUN_BYTES = 3 * KIB
"""What a run takes in memory besides what users put into it, as measured."""
_ATTRIBUTE_BYTES = KIB // 4
"""What an attribute takes besides its value; a run has few."""
_EVENT_BYTES = KIB // 2
"""The same for an event that is kept."""


@dataclass(slots=True)
class Counters:
    """What the next commands are checked against: how often the code asked for each kind of thing, what is open."""

    activities: dict[str, int] = field(default_factory=dict)
    """By activity type."""
    timers: int = 0
    compensates: int = 0
    open_compensates: dict[str, int] = field(default_factory=dict)
    """`Compensate` commands that are not answered -> their event id: they undo what was closed before."""
    undoable: int = 0
    """Compensations that were ever put on the saga's list; 0 means that a rollback has nothing to read."""
    steps: dict[str, int] = field(default_factory=dict)
    """By name."""
    patches: list[str] = field(default_factory=list)
    """Those that are marked."""
    open_updates: dict[str, bool] = field(default_factory=dict)
    """Updates that are not answered -> whether the code accepted them."""
    children: dict[str, int] = field(default_factory=dict)
    """By workflow type."""
    sends: int = 0
    subscriptions: int = 0
    events: int = 0
    """Those that were sent to sinks."""
    parent: tuple[str, str, str] | None = None
    """Run id of the parent, which of its children this run is, and the parent's workflow id."""
    first_run_id: str = ""
    """The first run of the chain; empty: this one."""
    told_to_recur: bool = False
    """An input told the code that the history is long."""
    cancellation: tuple[str, str] | None = None
    """Why somebody asked the run to stop, and who."""
    execution_deadline_ms: int = 0
    """When the whole chain must be over; 0: no limit."""


@dataclass(slots=True)
class Run:
    """One execution of a workflow: the fold of its history, its open tasks, and what the next commit must write."""

    namespace: str
    workflow_id: str
    run_id: str
    version: int = 0
    """Of the stored row; 0: not stored yet."""
    workflow_type: str = ""
    task_queue: str = ""
    priority: int = 0
    build_id: str = ""
    status: WorkflowStatus.ValueType = WORKFLOW_STATUS_UNSPECIFIED
    start_ms: int = 0
    close_ms: int = 0
    last_event_id: int = 0
    last_event_ms: int = 0
    history_bytes: int = 0
    """All its events together."""
    seen_event_id: int = 0
    """The last event that the code had seen when it issued the last commands that were accepted."""
    unseen: list[HistoryEvent] = field(default_factory=list)
    """The inputs after `seen_event_id`: what a workflow task brings to a worker that holds the run."""
    counters: Counters = field(default_factory=Counters)
    tasks: dict[str, Task] = field(default_factory=dict)
    held_bytes: int = 0
    """About how much memory its tasks and unseen inputs take."""
    cancel_requested: bool = False
    closing_status: WorkflowStatus.ValueType = WORKFLOW_STATUS_UNSPECIFIED
    """While COMPENSATING: how the run will end."""
    failure: Failure | None = None
    """Why it does not complete: set by a request to cancel it, and by whatever starts its rollback."""
    outcome: WorkflowOutcome | None = None
    """How it ended, or will: set as soon as nothing more can happen by itself."""
    sticky_session: str = ""
    """The session whose worker holds the run in memory; empty: none."""
    sticky_event_id: int = 0
    """The last event that this worker was told of in an acknowledgement: what it holds the run up to."""
    saga: Saga | None = None
    """What a rollback undoes; None when it was not folded (the run was read without its history)."""
    memo: bytes = b""
    """Serialised `WorkflowInfo` with only what lists show of the start: the memo, and the chain that it goes on.
    Written once."""
    attributes: dict[str, AttributeValue] = field(default_factory=dict)
    """What lists are filtered on."""

    # What the next commit writes, as net changes.
    new_events: list[HistoryEvent] = field(default_factory=list)
    touched: dict[str, bool] = field(default_factory=dict)
    """Tasks changed since the last commit -> whether their row was there before."""
    rewritten: set[str] = field(default_factory=set)
    """Those of them whose lease is dropped with the change."""
    set_attributes: dict[str, int] = field(default_factory=dict)
    """Attributes changed since the last commit -> by how many values they were stored before."""

    outgoing: list[SendEvent] = field(default_factory=list)
    """Events that go into the outbox."""

    def begin(self) -> Run:
        """A new run with the ids of this one, of which nothing was decided yet."""
        return Run(self.namespace, self.workflow_id, self.run_id, memo=self.memo)

    @property
    def is_open(self) -> bool:
        """Whether anything can still happen to the run."""
        return self.status in OPEN_STATUSES

    @property
    def bytes_in_memory(self) -> int:
        """About how much memory it takes. Adds up what is counted already, so it costs little to ask."""
        kept = self.held_bytes + (self.saga.held_bytes if self.saga is not None else 0)
        if self.attributes:
            kept += sum(_ATTRIBUTE_BYTES + value.ByteSize() for value in self.attributes.values())
        return _RUN_BYTES + len(self.memo) + kept + (self.failure.ByteSize() if self.failure is not None else 0)

    @property
    def workflow_task(self) -> Task | None:
        """The task that brings events to the code, if there are unseen ones."""
        return self.tasks.get(WORKFLOW_TASK_ID)

    def activities(self) -> Iterator[Task]:
        """The open activities, without compensations."""
        return (t for t in self.tasks.values() if t.kind is TaskKind.ACTIVITY and not t.is_compensation)

    def children(self) -> Iterator[Task]:
        """The open children, started or not."""
        return (task for task in self.tasks.values() if task.kind is TaskKind.CHILD)

    def compensation(self) -> Task | None:
        """The compensation that is under way."""
        return next((task for task in self.tasks.values() if task.is_compensation), None)

    def put_task(self, task: Task) -> None:
        """Add a task, or give it a new attempt: whoever has the row leased loses it."""
        self.touched.setdefault(task.task_id, task.task_id in self.tasks)
        self.rewritten.add(task.task_id)
        self.hold_task(task)

    def hold_task(self, task: Task) -> None:
        """Keep a task as it is stored, or will be."""
        if (previous := self.tasks.get(task.task_id)) is not None:
            self.held_bytes -= previous.held_bytes
        task.held_bytes = task.bytes_in_memory
        self.held_bytes += task.held_bytes
        self.tasks[task.task_id] = task

    def mark_task(self, task: Task) -> None:
        """Note that a task changed in a way that leaves its lease alone."""
        self.touched.setdefault(task.task_id, True)

    def drop_task(self, task_id: str) -> Task:
        """Remove a task: it is done, or not wanted any more."""
        task = self.tasks.pop(task_id)
        self.held_bytes -= task.held_bytes
        self.touched.setdefault(task_id, True)
        self.rewritten.discard(task_id)
        return task

    def hold_input(self, event: HistoryEvent) -> None:
        """Keep an input until the code has seen it."""
        self.unseen.append(event)
        self.held_bytes += _EVENT_BYTES + event.ByteSize()

    def drop_inputs(self, seen_event_id: int) -> None:
        """The code has seen every input up to that number, or nobody will show them to it."""
        self.held_bytes -= sum(_EVENT_BYTES + e.ByteSize() for e in self.unseen if e.event_id <= seen_event_id)
        self.unseen = [event for event in self.unseen if event.event_id > seen_event_id]

    def set_attribute(self, name: str, value: AttributeValue | None) -> None:
        """Give an attribute a value, or take it away."""
        before = self.attributes.get(name)
        if value is None and before is None:
            return
        self.set_attributes.setdefault(name, len(comparables(before)) if before is not None else 0)
        if value is None:
            del self.attributes[name]
        else:
            self.attributes[name] = value

    def committed(self) -> None:
        """The changes since the last commit are stored: forget them."""
        self.version += 1
        self.new_events = []
        self.touched = {}
        self.rewritten = set()
        self.set_attributes = {}
        self.outgoing = []
