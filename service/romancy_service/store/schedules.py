"""Schedules as they are stored: one row each, written whole, if it is still what was read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import BigInteger, Integer, bindparam, delete, func, insert, or_, select, text, update

from romancy.v1.schedule_pb2 import Schedule, ScheduleState
from romancy.v1.workflow_pb2 import WorkflowStatus

from romancy_service.core.schedule import ScheduleRecord
from romancy_service.core.task import NEVER_MS
from romancy_service.store.rows import Request, Row, part_hash
from romancy_service.store.sql import Statements, among
from romancy_service.store.tables import LOOKED_AT, TEXT, requests, runs, schedules


@dataclass(frozen=True, slots=True)
class ScheduleSummary:
    """What lists show of a schedule."""

    schedule_id: str
    workflow_type: str
    revision: int
    create_ms: int
    update_ms: int
    due_ms: int
    """When it starts something next; NEVER_MS when it will not."""
    state: ScheduleState


_WRITTEN: Final = ("workflow_type", "definition", "state", "revision", "update_ms", "due_ms", "look_ms")
_FIXED: Final = ("namespace", "schedule_id", "uid", "create_ms", "part_hash")
_THIS: Final = (schedules.c.namespace == bindparam("of_namespace"), schedules.c.schedule_id == bindparam("id"))
_AS_READ: Final = (
    *_THIS,
    schedules.c.uid == bindparam("of_uid"),
    schedules.c.version == bindparam("of_version", type_=BigInteger),
)
_INSERT: Final = (
    insert(schedules)
    .values({name: bindparam(f"new_{name}") for name in (*_FIXED, *_WRITTEN)} | {"version": 1})
    .returning(schedules.c.version)
)
_UPDATE: Final = (
    update(schedules)
    .where(*_AS_READ)
    .values({name: bindparam(f"new_{name}") for name in _WRITTEN} | {"version": schedules.c.version + 1})
    .returning(schedules.c.version)
)
_DELETE: Final = delete(schedules).where(*_AS_READ).returning(schedules.c.version)
ANSWER: Final = insert(requests).values(
    namespace=bindparam("of_namespace"),
    request_id=bindparam("new_request_id"),
    run_id="",
    method=bindparam("new_method"),
    reply=bindparam("new_reply"),
    created_ms=bindparam("now_ms"),
)
"""Remembers the request that a change answers."""
_GET: Final = select(schedules).where(*_THIS)
_LIST: Final = (
    select(*(schedules.c[name] for name in ScheduleSummary.__slots__))
    .where(
        schedules.c.namespace == bindparam("of_namespace"),
        schedules.c.schedule_id > bindparam("after", type_=TEXT),
    )
    .order_by(schedules.c.schedule_id)
    .limit(bindparam("limit", type_=Integer))
)
LOOK: Final = (
    select(schedules.c.namespace, schedules.c.schedule_id, schedules.c.look_ms)
    .where(
        text(LOOKED_AT),
        schedules.c.look_ms <= bindparam("until_ms", type_=BigInteger),
        or_(
            schedules.c.part_hash % bindparam("parts", type_=Integer) == bindparam("part", type_=Integer),
            schedules.c.look_ms <= bindparam("overdue_ms", type_=BigInteger),
        ),
    )
    .order_by(schedules.c.look_ms)
    .limit(bindparam("limit", type_=Integer))
)
_NEXT: Final = select(func.min(schedules.c.due_ms).label("due_ms")).where(
    schedules.c.due_ms > bindparam("now_ms", type_=BigInteger)
)
_STATUSES: Final = select(runs.c.run_id, runs.c.status).where(
    runs.c.namespace == bindparam("of_namespace"), among(runs.c.run_id, "run_ids")
)


class Schedules(Statements):
    """Keeps schedules. A write carries the request that it answers, if there is one: both are stored, or neither is.

    Raises BatchRejected with `conflict` when the schedule's id, or the request's, is taken.
    """

    async def create_schedule(self, record: ScheduleRecord, request: Request, now_ms: int) -> None:
        """Store a new one."""
        await self._write_together(_INSERT, ANSWER, **_values(record), **answer_values(request, now_ms))
        record.version = 1

    async def save_schedule(self, record: ScheduleRecord, request: Request | None, now_ms: int) -> bool:
        """Store what became of one. False, and nothing is stored, when it changed since it was read, or is gone."""
        if request is None:
            rows = await self._write(_UPDATE, **_values(record))
        else:
            rows = await self._write_together(_UPDATE, ANSWER, **_values(record), **answer_values(request, now_ms))
        if rows:
            record.version = rows[0]["version"]
        return bool(rows)

    async def delete_schedule(self, record: ScheduleRecord, request: Request, now_ms: int) -> bool:
        """Forget one. False when it changed since it was read, or is gone."""
        return bool(await self._write_together(_DELETE, ANSWER, **_as_read(record), **answer_values(request, now_ms)))

    async def get_schedule(self, namespace: str, schedule_id: str) -> ScheduleRecord | None:
        """One of them as it is stored."""
        rows = await self._read(_GET, of_namespace=namespace, id=schedule_id)
        return _record(rows[0]) if rows else None

    async def list_schedules(self, namespace: str, after: str, limit: int) -> list[ScheduleSummary]:
        """Those with larger ids, in order."""
        rows = await self._show(_LIST, of_namespace=namespace, after=after, limit=limit)
        return [
            ScheduleSummary(
                schedule_id=row["schedule_id"],
                workflow_type=row["workflow_type"],
                revision=row["revision"],
                create_ms=row["create_ms"],
                update_ms=row["update_ms"],
                due_ms=row["due_ms"],
                state=ScheduleState.FromString(row["state"]),
            )
            for row in rows
        ]

    async def schedules_to_look_at(
        self, now_ms: int, horizon_ms: int, limit: int, part: int, parts: int
    ) -> list[tuple[str, str, int]]:
        """Namespace, id and when, of those to look at soon, and of those of any part overdue by a second."""
        values = {"until_ms": now_ms + horizon_ms, "overdue_ms": now_ms - 1_000, "part": part, "parts": parts}
        rows = await self._read(LOOK, **values, limit=limit)
        return [(row["namespace"], row["schedule_id"], row["look_ms"]) for row in rows]

    async def next_schedule_ms(self, now_ms: int) -> int:
        """When any schedule starts something next."""
        rows = await self._read(_NEXT, now_ms=now_ms)
        return NEVER_MS if rows[0]["due_ms"] is None else int(rows[0]["due_ms"])

    async def run_statuses(self, namespace: str, run_ids: Sequence[str]) -> dict[str, WorkflowStatus.ValueType]:
        """By run id: where those that are kept are in their lives."""
        rows = await self._read(_STATUSES, of_namespace=namespace, run_ids=run_ids)
        return {row["run_id"]: row["status"] for row in rows}


def _as_read(record: ScheduleRecord) -> dict[str, Any]:
    return {
        "of_namespace": record.namespace,
        "id": record.schedule_id,
        "of_uid": record.uid,
        "of_version": record.version,
    }


def _values(record: ScheduleRecord) -> dict[str, Any]:
    return _as_read(record) | {
        "new_namespace": record.namespace,
        "new_schedule_id": record.schedule_id,
        "new_uid": record.uid,
        "new_create_ms": record.create_ms,
        "new_part_hash": part_hash(f"{record.namespace}/{record.schedule_id}"),
        "new_workflow_type": record.workflow_type,
        "new_definition": record.schedule.SerializeToString(),
        "new_state": record.state.SerializeToString(),
        "new_revision": record.revision,
        "new_update_ms": record.update_ms,
        "new_due_ms": record.due_ms,
        "new_look_ms": record.look_ms,
    }


def answer_values(request: Request, now_ms: int) -> dict[str, Any]:
    """The request of `ANSWER`, which also has the namespace, `of_namespace`."""
    return {
        "new_request_id": request.request_id,
        "new_method": request.method,
        "new_reply": request.reply,
        "now_ms": now_ms,
    }


def _record(row: Row) -> ScheduleRecord:
    return ScheduleRecord(
        namespace=row["namespace"],
        schedule_id=row["schedule_id"],
        uid=row["uid"],
        schedule=Schedule.FromString(row["definition"]),
        state=ScheduleState.FromString(row["state"]),
        revision=row["revision"],
        create_ms=row["create_ms"],
        update_ms=row["update_ms"],
        version=row["version"],
        due_ms=row["due_ms"],
        look_ms=row["look_ms"],
    )
