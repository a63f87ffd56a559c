"""Task: one row of work that is open in a run. All that is due later, for a worker or for the service, is one."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from romancy.v1.command_pb2 import ScheduleActivity, Send, StartChild, Subscribe
from romancy.v1.failure_pb2 import Failure

from romancy_service.core.limits import KIB

NEVER_MS: Final = 2**62
"""A time that does not come. Stored instead of null, so that `least()` works alike on both databases."""

WORKFLOW_TASK_ID: Final = "w"
DEADLINE_TASK_ID: Final = "d"
REPORT_TASK_ID: Final = "r"
COMPENSATION_PREFIX: Final = "c/"
ELSEWHERE: Final = "elsewhere"
"""Who has an activity that is completed from elsewhere, in place of a session: no session's id is so short."""
ELSEWHERE_EPOCH: Final = 1
"""It has no streams that could be told apart."""
SUBSCRIPTION_PREFIX: Final = "e/"
COMPENSATION_ID_PREFIX: Final = "undo/"
"""The ids of compensations begin so, and no activity type may."""

_TASK_BYTES: Final = 3 * KIB // 2
"""What a task takes in memory besides its command and failure, as measured."""


class TaskKind(IntEnum):
    """What a task is. Workers take the first two; timers are the relay's, what follows the courier's."""

    WORKFLOW = 1
    ACTIVITY = 2
    TIMER = 3
    DEADLINE = 4
    CHILD = 5
    """A child: to be started, open, or to be closed, by its attempt."""
    SEND = 6
    """A message for another workflow."""
    REPORT = 7
    """The end of this run, for its parent. The only task that a closed run brings about."""
    SUBSCRIPTION = 8
    """Events that the run waits for. Nobody does anything with it: events find it."""


TypeKey = tuple[str, str, TaskKind, str]
"""Namespace, task queue, kind, type: what a task asks of a worker."""


def activity_task_id(activity_id: str) -> str:
    """The key of an open activity among its run's tasks."""
    return f"a/{activity_id}"


def compensation_task_id(compensation_id: str) -> str:
    """The key of an open compensation among its run's tasks."""
    return f"{COMPENSATION_PREFIX}{compensation_id}"


def child_task_id(child_id: str) -> str:
    """The key of an open child among its run's tasks."""
    return f"h/{child_id}"


def send_task_id(send_id: str) -> str:
    """The key of a message that is on its way."""
    return f"s/{send_id}"


def subscription_task_id(subscription_id: str) -> str:
    """The key of a subscription among its run's tasks."""
    return f"{SUBSCRIPTION_PREFIX}{subscription_id}"


def timer_task_id(timer_id: str) -> str:
    """The key of an open timer among its run's tasks."""
    return f"t/{timer_id}"


@dataclass(slots=True)
class Task:
    """An open task as the core decides it. Its row also has a lease (owner, epoch, since when), which dispatch writes.

    Whenever the core rewrites a task (a new attempt) the lease is dropped with it; `cancel_requested` alone is set
    without touching the lease. Times are epoch milliseconds of the service's clock; NEVER_MS where there is none.
    """

    task_id: str
    kind: TaskKind
    queue: str = ""
    type: str = ""
    """Of a timer: what it is the timeout of."""
    priority: int = 0
    attempt: int = 1
    due_ms: int = 0
    """A worker may have it from then on; a timer fires then."""
    command: ScheduleActivity | None = None
    """Activities and compensations: what to run."""
    errand: StartChild | Send | Subscribe | None = None
    """Children and messages: what is to be brought about elsewhere. Subscriptions: what is wanted."""
    scheduled_ms: int = 0
    start_by_ms: int = NEVER_MS
    close_by_ms: int = NEVER_MS
    start_to_close_ms: int = NEVER_MS
    heartbeat_timeout_ms: int = NEVER_MS
    cancel_requested: bool = False
    failures: int = 0
    """Attempts that failed in their own words or timed out: what the retry policy counts."""
    losses: int = 0
    """Attempts lost with their worker, in a row."""
    worked_ms: int = 0
    """How long attempts and the waits between them took: what `max_elapsed` limits."""
    outcome_unknown: bool = False
    """An attempt was lost or timed out, so the effect may be there."""
    last_failure: Failure | None = None
    held_bytes: int = field(default=0, compare=False)
    """How much memory it took when it was last put into its run."""

    # The lease as it was when the row was read. Claims change it behind the core's back, so it is true only directly
    # after a load; decisions take the lease from their trigger instead.
    owner: str = ""
    owner_epoch: int = 0
    leased_ms: int = 0
    heartbeat_ms: int = 0
    relay_ms: int = field(default=0, compare=False)

    @property
    def is_compensation(self) -> bool:
        """Whether it undoes something."""
        return self.task_id.startswith(COMPENSATION_PREFIX)

    @property
    def bytes_in_memory(self) -> int:
        """About how much memory it takes."""
        messages = (self.command, self.last_failure)
        return _TASK_BYTES + sum(message.ByteSize() for message in messages if message is not None)

    @property
    def unowned_relay_ms(self) -> int:
        """When the service must look at the task while no worker has it."""
        if self.kind > TaskKind.ACTIVITY:
            return self.due_ms
        if self.cancel_requested:
            return 0
        return min(self.start_by_ms, self.close_by_ms)

    def owned_relay_ms(self, leased_ms: int) -> int:
        """When the service must look at the task if a worker has it since `leased_ms` and says nothing."""
        return min(self.close_by_ms, leased_ms + self.start_to_close_ms, leased_ms + self.heartbeat_timeout_ms)


@dataclass(frozen=True, slots=True)
class Fence:
    """The row that a trigger consumes, as the trigger knows it. A run whose fence is broken is not written."""

    task_id: str
    attempt: int
    owner: str
    """The session that has the lease, or ELSEWHERE; empty: nobody."""
    epoch: int = 0
    relay_ms: int = -1
    """When not negative: the row must still be due then (no heartbeat moved it)."""
