"""Lookups: what is read off the hot path. Nothing here is written, and nothing is decided on what is read.

What clients ask for goes by connections of its own, so that it holds up nothing of the service's own: `_show` what is
found by key, `_search` what may walk over many rows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    bindparam,
    case,
    func,
    literal,
    select,
    text,
    tuple_,
    union_all,
)

from romancy.v1.command_pb2 import StartChild
from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.workflow_pb2 import WorkflowOutcome, WorkflowStatus
from romancy.v1.workflow_service_pb2 import WorkflowFilter

from romancy_service.core.limits import COUNTED, MIB, Limits
from romancy_service.core.run import Run
from romancy_service.core.task import TaskKind
from romancy_service.core.why.facts import Holder
from romancy_service.store.rows import Row, events_of, loaded_run, outcome_of
from romancy_service.store.selection import Place, Scattered, select_runs, select_scattered
from romancy_service.store.sql import among
from romancy_service.store.tables import CLAIMABLE, OPEN, TEXT, history, runs, tasks
from romancy_service.store.workforce import Workers, Workforce

_PAGE_ROWS: Final = 1_000
_PAGE_BYTES: Final = 2 * MIB
"""So much of a history is read at a time by whoever reads all of it."""
_WALKED: Final = 5_000
"""So many runs are looked at in the order of a list, which takes some milliseconds, before all that an index has of
those that are selected are sorted. What has a large share is found among them; of other there are few, or they are old.
"""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What lists show of a run."""

    namespace: str
    workflow_id: str
    run_id: str
    workflow_type: str
    task_queue: str
    priority: int
    build_id: str
    status: WorkflowStatus.ValueType
    start_ms: int
    close_ms: int
    last_event_id: int
    history_bytes: int
    memo: bytes
    attributes: bytes


@dataclass(frozen=True, slots=True)
class RunView:
    """One run with some of its tasks, and who has them or could."""

    run: Run
    """With the shown tasks, those that are due first; commands are left out, and large errands."""
    counts: dict[TaskKind, int]
    """All its open tasks."""
    left_out: dict[str, int]
    """By task id: the bytes of a last failure that is too large to be shown."""
    summary: RunSummary
    heartbeat_details: dict[str, bytes]
    """By task id: what attempts said last of their progress."""
    holders: dict[str, Holder]
    """By session id: who has the shown tasks."""
    workforce: Workforce
    """Who could take those that wait."""
    children: dict[str, WorkflowStatus.ValueType]
    """By workflow id: the status of shown children that are open."""


_SUMMARY: Final = [runs.c[name] for name in RunSummary.__slots__]
_RUN: Final = select(runs).where(runs.c.run_id == bindparam("run_id"))
_COUNTS: Final = (
    select(tasks.c.kind, func.count().label("count"))
    .where(tasks.c.run_id == bindparam("run_id"))
    .group_by(tasks.c.kind)
)


def _shown_tasks() -> Select[tuple[Any, ...]]:
    def if_small(column: ColumnElement[Any]) -> ColumnElement[Any]:
        return case((func.length(column) <= bindparam("bytes", type_=Integer), column)).label(column.key or "")

    is_small = func.length(tasks.c.command) <= bindparam("command_bytes", type_=Integer)
    large = {
        "last_failure": if_small(tasks.c.last_failure),
        "heartbeat_details": if_small(tasks.c.heartbeat_details),
        "command": case(((tasks.c.kind >= int(TaskKind.CHILD)) & is_small, tasks.c.command)).label("command"),
    }
    ranked = (
        select(
            *(large.get(column.name, column) for column in tasks.c),
            func.length(tasks.c.last_failure).label("failure_bytes"),
            func.row_number()
            .over(partition_by=tasks.c.kind, order_by=(tasks.c.due_ms, tasks.c.task_id))
            .label("position"),
        )
        .where(tasks.c.run_id == bindparam("run_id"))
        .subquery()
    )
    return (
        select(ranked)
        .where(ranked.c.position <= bindparam("limit", type_=Integer))
        .order_by(ranked.c.due_ms, ranked.c.task_id)
    )


_SHOWN_TASKS: Final = _shown_tasks()
_OPEN_CHILDREN: Final = select(runs.c.workflow_id, runs.c.status).where(
    text(OPEN), runs.c.namespace == bindparam("namespace", type_=TEXT), among(runs.c.workflow_id, "workflow_ids")
)
_NAMED_RUNS: Final = select(runs.c.namespace, runs.c.workflow_id, runs.c.run_id).where(among(runs.c.run_id, "run_ids"))
_OF_WORKFLOW: Final = (runs.c.namespace == bindparam("namespace"), runs.c.workflow_id == bindparam("workflow_id"))
_OPEN_RUN: Final = select(runs.c.run_id, runs.c.status, literal(0).label("rank")).where(text(OPEN), *_OF_WORKFLOW)
_LAST_RUN: Final = (
    select(runs.c.run_id, runs.c.status, literal(1).label("rank"))
    .where(*_OF_WORKFLOW)
    .order_by(runs.c.start_ms.desc(), runs.c.run_id.desc())
)
LATEST: Final = (
    union_all(select(_OPEN_RUN.limit(1).subquery()), select(_LAST_RUN.limit(1).subquery())).order_by("rank").limit(1)
)
"""The open run, whatever the others' times say. Closed ones follow the database's clock, as all times do: while that is
set back, the run that is found may not be the one that was started last."""
_OUTCOMES: Final = select(runs.c.run_id, runs.c.namespace, runs.c.outcome).where(among(runs.c.run_id, "run_ids"))


def _history_page() -> Select[tuple[bytes]]:
    batches = (
        select(history.c.events, history.c.last_event_id, func.length(history.c.events).label("size"))
        .where(history.c.run_id == bindparam("run_id"), history.c.last_event_id > bindparam("after_event_id"))
        .order_by(history.c.last_event_id)
        .limit(bindparam("rows"))
        .subquery()
    )
    so_far = func.sum(batches.c.size).over(order_by=batches.c.last_event_id) - batches.c.size
    summed = select(batches.c.events, batches.c.last_event_id, so_far.label("so_far")).subquery()
    return (
        select(summed.c.events)
        .where(summed.c.so_far < bindparam("bytes", type_=BigInteger))
        .order_by(summed.c.last_event_id)
    )


_HISTORY_PAGE: Final = _history_page()

_WAITING: Final = (
    select(tasks.c.kind, tasks.c.type)
    .where(
        text(CLAIMABLE),
        tasks.c.namespace == bindparam("namespace"),
        tasks.c.queue == bindparam("queue"),
        tuple_(tasks.c.kind, tasks.c.type)
        > tuple_(bindparam("after_kind", type_=Integer), bindparam("after_type", type_=TEXT)),
    )
    .order_by(tasks.c.kind, tasks.c.type)
    .limit(1)
)
_WAITING_OF_TYPE: Final = (
    select(tasks.c.due_ms)
    .where(
        text(CLAIMABLE),
        tasks.c.namespace == bindparam("namespace"),
        tasks.c.queue == bindparam("queue"),
        tasks.c.kind == bindparam("kind"),
        tasks.c.type == bindparam("type"),
        tasks.c.due_ms <= bindparam("now_ms"),
    )
    .limit(COUNTED)
    .subquery()
)
_BACKLOG: Final = select(
    func.count().label("count"), func.min(_WAITING_OF_TYPE.c.due_ms).label("oldest_ms")
).select_from(_WAITING_OF_TYPE)


class Lookups(Workers):
    """Reads runs, histories, requests and backlogs."""

    async def show_history(
        self, run_id: str, after_event_id: int, max_events: int, max_bytes: int
    ) -> list[HistoryEvent]:
        """For a client: events with larger numbers, in order; at most so many, and so many bytes, but one if any."""
        return await _history(self._show, run_id, after_event_id, max_events, max_bytes)

    async def history_pages(self, run_id: str, *, for_client: bool = False) -> AsyncIterator[list[HistoryEvent]]:
        """A run's whole history, in order, in pages of some megabytes."""
        query = self._show if for_client else self._read
        after_event_id = 0
        while page := await _history(query, run_id, after_event_id, _PAGE_ROWS, _PAGE_BYTES):
            yield page
            after_event_id = page[-1].event_id

    async def find_runs(self, refs: Sequence[tuple[str, str, str]]) -> list[str | None]:
        """For each (namespace, workflow id, run id) the run's id; without a run id that of the newest run."""
        run_ids = [run_id for _, _, run_id in refs if run_id]
        named = {}
        if run_ids:
            rows = await self._show(_NAMED_RUNS, run_ids=run_ids)
            named = {(row["namespace"], row["run_id"]): row["workflow_id"] for row in rows}
        found: list[str | None] = []
        for namespace, workflow_id, run_id in refs:
            if not run_id:
                newest = await self._newest(namespace, workflow_id)
                found.append(newest[0] if newest else None)
            else:
                known_as = named.get((namespace, run_id))
                found.append(run_id if known_as is not None and workflow_id in ("", known_as) else None)
        return found

    async def latest(
        self, ids: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str], tuple[str, WorkflowStatus.ValueType]]:
        """By (namespace, workflow id): the newest run and its status, where there is one."""
        found = {key: await self._newest(*key) for key in ids}
        return {key: newest for key, newest in found.items() if newest is not None}

    async def _newest(self, namespace: str, workflow_id: str) -> tuple[str, WorkflowStatus.ValueType] | None:
        rows = await self._show(LATEST, namespace=namespace, workflow_id=workflow_id)
        return (rows[0]["run_id"], rows[0]["status"]) if rows else None

    async def outcomes(self, run_ids: Sequence[str]) -> dict[str, tuple[str, WorkflowOutcome | None]]:
        """By run id: the namespace and, if there is one, the outcome of those runs that are kept."""
        rows = await self._show(_OUTCOMES, run_ids=run_ids)
        return {row["run_id"]: (row["namespace"], outcome_of(row)) for row in rows}

    async def get_summary(self, run_id: str) -> RunSummary | None:
        """A line of a list."""
        found = await self._show(_RUN, run_id=run_id)
        return _summary(found[0]) if found else None

    async def get_run(self, run_id: str, limits: Limits) -> RunView | None:
        """One run for people, with as much of what is open as the limits allow."""
        found = await self._show(_RUN, run_id=run_id)
        if not found:
            return None
        rows = await self._show(
            _SHOWN_TASKS,
            run_id=run_id,
            limit=limits.shown_tasks,
            bytes=limits.shown_value_bytes,
            command_bytes=limits.shown_command_bytes,
        )
        counts = await self._show(_COUNTS, run_id=run_id)
        run = loaded_run(found[0], rows, [])
        held = run.tasks.values()
        wanted = {
            (task.queue, task.kind, task.type) for task in held if task.kind <= TaskKind.ACTIVITY and not task.owner
        }
        return RunView(
            run=run,
            counts={TaskKind(row["kind"]): row["count"] for row in counts},
            left_out={
                row["task_id"]: row["failure_bytes"]
                for row in rows
                if row["failure_bytes"] is not None and row["last_failure"] is None
            },
            summary=_summary(found[0]),
            heartbeat_details={
                row["task_id"]: row["heartbeat_details"] for row in rows if row["heartbeat_details"] is not None
            },
            holders=await self.holders({task.owner for task in held if task.owner}),
            workforce=await self.workforce(run.namespace, wanted, limits),
            children=await self._open_children(run, limits.shown_children),
        )

    async def _open_children(self, run: Run, limit: int) -> dict[str, WorkflowStatus.ValueType]:
        ids = [task.errand.workflow_id for task in run.children() if isinstance(task.errand, StartChild)][:limit]
        rows = await self._show(_OPEN_CHILDREN, namespace=run.namespace, workflow_ids=ids) if ids else []
        return {row["workflow_id"]: row["status"] for row in rows}

    async def list_runs(
        self, namespace: str, selection: WorkflowFilter, after: Place | None, limit: int
    ) -> list[RunSummary]:
        """Runs, newest first; with `after`, those behind the run of that (start_ms, run id)."""
        selected = select_runs(namespace, selection)
        scattered = select_scattered(namespace, selection)
        edge = await self._edge(scattered, after) if scattered is not None else None
        rows = list(await self._search(selected.newest_first(*_SUMMARY, after=after, limit=limit, down_to=edge)))
        if scattered is not None and edge is not None and len(rows) < limit:
            # Few of the newest are selected: either few at all, or old ones.
            rest = scattered.newest_first(*_SUMMARY, after=edge, limit=limit - len(rows))
            rows += await self._search(rest)
        return [_summary(row) for row in rows]

    async def count_runs(self, namespace: str, selection: WorkflowFilter) -> tuple[int, bool]:
        """How many, and whether that is an estimate: it is above 10,000."""
        selected = select_runs(namespace, selection)
        found = matching = selected.of(runs.c.run_id)
        if (scattered := select_scattered(namespace, selection)) is not None:
            found = scattered.of(runs.c.run_id)
            if await self._edge(scattered, None) is None:  # few to look at: in their order, as the list does
                found = select(selected.places(after=None, limit=_WALKED).subquery().c.run_id)
        counted = select(func.count().label("count")).select_from(found.limit(COUNTED + 1).subquery())
        count: int = (await self._search(counted))[0]["count"]
        return (count, False) if count <= COUNTED else (max(await self._estimate(matching), count), True)

    async def _edge(self, scattered: Scattered, after: Place | None) -> Place | None:
        """The run until which one may look at one run after the other for those; None: all are so few."""
        rows = await self._search(scattered.around.places(after=after, limit=1, offset=_WALKED))
        return (rows[0]["start_ms"], rows[0]["run_id"]) if rows else None

    @abstractmethod
    async def _estimate(self, query: Select[tuple[str]]) -> int:
        """About how many rows a query finds."""

    async def backlogs(self, namespace: str, queue: str, now_ms: int) -> list[tuple[TaskKind, str, int, int]]:
        """What is due in a queue and nobody has: kind, type, how many (up to 10,000), since when the oldest is due."""
        found = []
        kind, task_type = 0, ""
        # One probe of the index for each type, so that what waits is counted, and nothing else is walked over.
        while waiting := await self._search(
            _WAITING, namespace=namespace, queue=queue, after_kind=kind, after_type=task_type
        ):
            kind, task_type = waiting[0]["kind"], waiting[0]["type"]
            counted = await self._search(
                _BACKLOG, namespace=namespace, queue=queue, kind=kind, type=task_type, now_ms=now_ms
            )
            if counted[0]["count"]:
                found.append((TaskKind(kind), task_type, counted[0]["count"], counted[0]["oldest_ms"]))
        return found


_Query = Callable[..., Awaitable[Sequence[Row]]]


async def _history(
    query: _Query, run_id: str, after_event_id: int, max_events: int, max_bytes: int
) -> list[HistoryEvent]:
    events: list[HistoryEvent] = []
    size = 0
    while len(events) < max_events and size < max_bytes:
        last_event_id = events[-1].event_id if events else after_event_id
        rows = await query(
            _HISTORY_PAGE,
            run_id=run_id,
            after_event_id=last_event_id,
            rows=min(max_events - len(events), _PAGE_ROWS),
            bytes=max_bytes - size,
        )
        if not rows:
            break
        for event in (event for row in rows for event in events_of(row["events"])):
            if event.event_id <= last_event_id:
                continue
            size += event.ByteSize()
            if len(events) == max_events or (events and size > max_bytes):
                return events
            events.append(event)
    return events


def _summary(row: Row) -> RunSummary:
    return RunSummary(**{name: row[name] for name in RunSummary.__slots__})
