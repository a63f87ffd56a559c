"""Facts: all that is known of a run that is looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from romancy.v1.failure_pb2 import Failure
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import WorkflowStatus

from romancy_service.core.limits import Limits
from romancy_service.core.run import Run
from romancy_service.core.task import TaskKind

TypeKey = tuple[str, TaskKind, str]
"""Queue, kind, type: what a worker is needed for."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A session that has a task of the run."""

    worker_id: str
    connected: bool
    lease_ms: int
    """Until then its tasks are kept for it."""


@dataclass(frozen=True, slots=True)
class Serving:
    """The connected workers that have a type."""

    workers: int = 0
    leaving: int = 0
    """So many besides take nothing more."""
    slots: int = 0
    busy: int | None = None
    """How many tasks of the kind they have; None: not counted, it is many."""


@dataclass(frozen=True, slots=True)
class FailedCompensation:
    """One that failed for good."""

    compensation_id: str
    type: str
    failure: Failure


@dataclass(frozen=True, slots=True)
class Undelivered:
    """Events of the run for one sink: those that wait, or those that are dead letters."""

    sink: str
    is_dead: bool
    count: int
    """At most `COUNTED`."""
    since_ms: int
    """Since when the first of them waits, or is dead."""
    position: int
    """Of the first of them."""
    error: str
    """Why the last try was in vain; empty: there was none."""
    attempts: int = 0
    """How often the first one of the line was tried in vain."""
    due_ms: int = 0
    """When it is tried."""
    is_tried: bool = False
    """Whether somebody is at it."""
    is_behind: bool = False
    """Whether the first one of the line is of another run."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known of a run that is looked at. `run` has the tasks that are shown."""

    run: Run
    now_ms: int
    limits: Limits
    counts: Mapping[TaskKind, int] = field(default_factory=dict)
    """All its open tasks."""
    progress: Mapping[str, Payload] = field(default_factory=dict)
    """By task id."""
    holders: Mapping[str, Holder] = field(default_factory=dict)
    """By session id. One that is not there is gone."""
    serving: Mapping[TypeKey, Serving] = field(default_factory=dict)
    last_served: Mapping[TypeKey, tuple[str, int]] = field(default_factory=dict)
    """Which worker had a type last, and when."""
    all_workers: bool = True
    """Whether all sessions were looked at."""
    children: Mapping[str, WorkflowStatus.ValueType] = field(default_factory=dict)
    """By workflow id: the status of those children that are open."""
    undelivered: Sequence[Undelivered] = ()
    failed: Sequence[FailedCompensation] = ()
    to_undo: int = 0
    """What is to be undone after what is being undone now."""
