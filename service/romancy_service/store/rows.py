"""Rows: runs, tasks and events as the tables keep them, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Final, Protocol
from zlib import crc32

from romancy.v1.command_pb2 import ScheduleActivity, Send, StartChild, Subscribe
from romancy.v1.failure_pb2 import Failure
from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_RUNNING, AttributeValue, WorkflowInfo, WorkflowOutcome
from romancy.v1.workflow_service_pb2 import GetHistoryResponse

from romancy_service.core.attributes import comparables
from romancy_service.core.replay import is_input
from romancy_service.core.run import Counters, Run
from romancy_service.core.task import Task, TaskKind

_JSON: Final = json.JSONEncoder(separators=(",", ":"))
PARTS: Final = 1 << 15
"""Runs are spread over so many parts, and these over the replicas."""


class Row(Protocol):
    """What a driver returns for a row."""

    def __getitem__(self, column: str, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Request:
    """A client's request that was carried out, and what it was answered."""

    namespace: str
    request_id: str
    run_id: str
    method: str
    reply: bytes


class _Message(Protocol):
    def SerializeToString(self) -> bytes: ...  # noqa: N802 - the generated name


def part_hash(run_id: str) -> int:
    """The part that a run belongs to, the same in every process."""
    return crc32(run_id.encode()) % PARTS


def run_row(run: Run) -> tuple[Any, ...]:
    """The run as it is stored by the next commit: the columns of `runs` in their order."""
    return (
        run.run_id,
        run.namespace,
        run.workflow_id,
        run.workflow_type,
        run.task_queue,
        run.priority,
        run.build_id,
        run.memo,
        run.start_ms,
        attributes_bytes(run.attributes),
        run.version + 1,
        run.status,
        run.close_ms,
        run.last_event_id,
        run.last_event_ms,
        run.history_bytes,
        run.seen_event_id,
        _counters_text(run.counters),
        run.cancel_requested,
        run.closing_status,
        _bytes(run.failure),
        _bytes(run.outcome),
        run.sticky_session,
        run.sticky_event_id,
    )


def run_of(row: Row) -> Run:
    """The run of a row of `runs`, without its tasks and unseen inputs."""
    return Run(
        namespace=row["namespace"],
        workflow_id=row["workflow_id"],
        run_id=row["run_id"],
        version=row["version"],
        workflow_type=row["workflow_type"],
        task_queue=row["task_queue"],
        priority=row["priority"],
        build_id=row["build_id"],
        status=row["status"],
        start_ms=row["start_ms"],
        close_ms=row["close_ms"],
        last_event_id=row["last_event_id"],
        last_event_ms=row["last_event_ms"],
        history_bytes=row["history_bytes"],
        seen_event_id=row["seen_event_id"],
        counters=_counters(row["counters"]),
        cancel_requested=bool(row["cancel_requested"]),
        closing_status=row["closing_status"],
        failure=None if row["failure"] is None else Failure.FromString(row["failure"]),
        outcome=outcome_of(row),
        sticky_session=row["sticky_session"],
        sticky_event_id=row["sticky_event_id"],
        memo=row["memo"],
        attributes=dict(WorkflowInfo.FromString(row["attributes"]).attributes) if row["attributes"] else {},
    )


def attributes_bytes(attributes: Mapping[str, AttributeValue]) -> bytes:
    """The attributes of a run as its row keeps them: a `WorkflowInfo` with nothing else."""
    return WorkflowInfo(attributes=attributes).SerializeToString() if attributes else b""


def attribute_rows(run: Run, name: str) -> list[tuple[Any, ...]]:
    """An attribute of a run as it is found: the columns of `attributes` in their order."""
    return [
        (run.run_id, name, position, run.namespace, *comparable, run.start_ms)
        for position, comparable in enumerate(comparables(run.attributes[name]))
    ]


def outcome_of(row: Row) -> WorkflowOutcome | None:
    """How the run of a row ended, or will."""
    return None if row["outcome"] is None else WorkflowOutcome.FromString(row["outcome"])


def loaded_run(row: Row, task_rows: Iterable[Row], batches: Iterable[bytes]) -> Run:
    """A run with its tasks, and with its unseen inputs out of what was recorded since it last saw any."""
    run = run_of(row)
    for task in map(task_of, task_rows):
        run.hold_task(task)
    if run.status == WORKFLOW_STATUS_RUNNING:  # else nobody will see them
        events = (event for batch in batches for event in events_of(batch))
        for event in events:
            if event.event_id > run.seen_event_id and is_input(event):
                run.hold_input(event)
    return run


def chain_of(row: Row) -> str:
    """The first of the runs that go on one after the other, of which the run of the row is one."""
    return str(json.loads(row["counters"]).get("first_run_id") or row["run_id"])


def _counters(text: str) -> Counters:
    values = json.loads(text)
    for name in ("parent", "cancellation"):
        if name in values:
            values[name] = tuple(values[name])
    return Counters(**values)


_COUNTERS: Final = tuple(each.name for each in fields(Counters))
_COUNTER_VALUES: Final = attrgetter(*_COUNTERS)


def _counters_text(counters: Counters) -> str:
    values = zip(_COUNTERS, _COUNTER_VALUES(counters), strict=True)
    return _JSON.encode({name: value for name, value in values if value})


# Tasks ------------------------------------------------------------------------------------------------------------


def task_row(run: Run, task: Task, owner: str, epoch: int, now_ms: int) -> tuple[Any, ...]:
    """A task as the next commit stores it, leased to `owner` at `now_ms`: the columns of `tasks` in their order."""
    return (
        run.run_id,
        task.task_id,
        run.namespace,
        task.kind,
        task.queue,
        task.type,
        task.priority,
        task.attempt,
        task.due_ms,
        _bytes(task.command or task.errand),
        task.scheduled_ms,
        task.start_by_ms,
        task.close_by_ms,
        task.start_to_close_ms,
        task.heartbeat_timeout_ms,
        task.cancel_requested,
        task.failures,
        task.losses,
        task.worked_ms,
        task.outcome_unknown,
        _bytes(task.last_failure),
        part_hash(run.run_id),
        task.owned_relay_ms(now_ms) if owner else unowned_relay_ms(task, now_ms),
        owner,
        epoch,
        now_ms if owner else 0,
        0,
        None,
    )


def unowned_relay_ms(task: Task, now_ms: int) -> int:
    """When the service must look at a task that nobody has; at once is `now_ms`: what is overdue is any replica's."""
    return task.unowned_relay_ms or now_ms


_ERRANDS: Final[dict[TaskKind, type[StartChild] | type[Send] | type[Subscribe]]] = {
    TaskKind.CHILD: StartChild,
    TaskKind.SEND: Send,
    TaskKind.SUBSCRIPTION: Subscribe,
}


def task_of(row: Row) -> Task:
    """The task of a row of `tasks`, with its lease; without its command where that was not read."""
    kind, command = TaskKind(row["kind"]), row["command"]
    errand = _ERRANDS[kind].FromString(command) if command is not None and kind in _ERRANDS else None
    return Task(
        task_id=row["task_id"],
        kind=kind,
        queue=row["queue"],
        type=row["type"],
        priority=row["priority"],
        attempt=row["attempt"],
        due_ms=row["due_ms"],
        command=ScheduleActivity.FromString(command) if command is not None and kind is TaskKind.ACTIVITY else None,
        errand=errand,
        scheduled_ms=row["scheduled_ms"],
        start_by_ms=row["start_by_ms"],
        close_by_ms=row["close_by_ms"],
        start_to_close_ms=row["start_to_close_ms"],
        heartbeat_timeout_ms=row["heartbeat_timeout_ms"],
        cancel_requested=bool(row["cancel_requested"]),
        failures=row["failures"],
        losses=row["losses"],
        worked_ms=row["worked_ms"],
        outcome_unknown=bool(row["outcome_unknown"]),
        last_failure=None if row["last_failure"] is None else Failure.FromString(row["last_failure"]),
        owner=row["owner"],
        owner_epoch=row["owner_epoch"],
        leased_ms=row["leased_ms"],
        heartbeat_ms=row["heartbeat_ms"],
        relay_ms=row["relay_ms"],
    )


_EVENTS_TAG: Final = bytes((GetHistoryResponse.EVENTS_FIELD_NUMBER << 3 | 2,))


# Events -----------------------------------------------------------------------------------------------------------


def events_bytes(events: Sequence[HistoryEvent]) -> bytes:
    """The events of one commit as one row of `history` keeps them: a GetHistoryResponse with nothing else.

    Joined by hand: protobuf would copy each event into the response first, which takes twice as long.
    """
    parts: list[bytes] = []
    for event in events:
        encoded = event.SerializeToString()
        parts += (_EVENTS_TAG, _varint(len(encoded)), encoded)
    return b"".join(parts)


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    low = []
    while number >= 0x80:
        low.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*low, number))


def events_of(batch: bytes) -> Sequence[HistoryEvent]:
    """The events of one row of `history`."""
    return GetHistoryResponse.FromString(batch).events


def _bytes(message: _Message | None) -> bytes | None:
    return None if message is None else message.SerializeToString()
