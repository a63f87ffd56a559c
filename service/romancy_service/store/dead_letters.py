"""Dead letters: events in the outbox that could not be delivered, until they are sent again, dropped or forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import BigInteger, Integer, bindparam, case, delete, literal, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.expression import Executable

from romancy_service.store.rows import Request
from romancy_service.store.schedules import ANSWER, answer_values
from romancy_service.store.sql import Statements, among
from romancy_service.store.tables import TEXT, outbox, outbox_lines

_NAMESPACE: Final = bindparam("of_namespace", type_=TEXT)
_NOW: Final = bindparam("now_ms", type_=BigInteger)
_LIMIT: Final = bindparam("limit", type_=Integer)
_IS_DEAD: Final = text("not outbox.waiting")
_OF_SINK: Final = (
    outbox.c.namespace == _NAMESPACE,
    outbox.c.sink == bindparam("of_sink", type_=TEXT),
    outbox.c.position > bindparam("after", type_=BigInteger),
)
_FORGOTTEN: Final = (
    select(outbox.c.position).where(_IS_DEAD, outbox.c.forget_ms < _NOW).order_by(outbox.c.forget_ms).limit(_LIMIT)
)
_FORGET: Final = delete(outbox).where(outbox.c.position.in_(_FORGOTTEN)).returning(outbox.c.position)
_ONE: Final = (outbox.c.namespace == _NAMESPACE, outbox.c.position == bindparam("at", type_=BigInteger))


def _chosen(which: Sequence[Any]) -> Any:
    return outbox.c.position.in_(
        select(outbox.c.position).where(_IS_DEAD, *which).order_by(outbox.c.position).limit(_LIMIT).with_for_update()
    )


_REVIVED: Final = {
    "waiting": True,
    "since_ms": _NOW,
    "attempts": 0,
    "error": "",
    "dead_ms": 0,
    "forget_ms": 0,
}


def _revive(which: Sequence[Any]) -> Executable:
    return update(outbox).where(_chosen(which)).values(**_REVIVED).returning(outbox.c.position)


def _line_up() -> Executable:
    """Those that were revived just now are the first ones of their lines. Who has a line goes on with what he has."""
    revived = (
        select(
            outbox.c.namespace,
            outbox.c.sink,
            outbox.c.workflow_id,
            literal(1, BigInteger),
            _NOW,
            literal("", TEXT),
            literal(0, Integer),
            literal("", TEXT),
        )
        .distinct()
        .where(among(outbox.c.position, "found"))
        .order_by(outbox.c.namespace, outbox.c.sink, outbox.c.workflow_id)
    )
    columns = ["namespace", "sink", "workflow_id", "version", "due_ms", "claim", "attempts", "error"]
    added = insert(outbox_lines).from_select(columns, revived)
    nobodys = outbox_lines.c.claim == ""
    return added.on_conflict_do_update(
        index_elements=[outbox_lines.c.namespace, outbox_lines.c.sink, outbox_lines.c.workflow_id],
        set_={
            "version": outbox_lines.c.version + 1,
            "due_ms": case((nobodys, _NOW), else_=outbox_lines.c.due_ms),
            "attempts": 0,
            "error": "",
        },
    )


_LINE_UP: Final = _line_up()
_REVIVE: Final = {which: _revive(where) for which, where in (("one", _ONE), ("sink", _OF_SINK))}
_DROP: Final = {
    which: delete(outbox).where(_chosen(where)).returning(outbox.c.position)
    for which, where in (("one", _ONE), ("sink", _OF_SINK))
}


class DeadLetters(Statements):
    """Keeps dead letters. What a request asks for is remembered with it: both are stored, or neither is.

    Raises BatchRejected with `conflict` when the request's id is taken.
    """

    async def revive_one(self, position: int, request: Request, now_ms: int) -> bool:
        """Have a dead letter sent again. False: there is none."""
        where = {"of_namespace": request.namespace, "at": position}
        answer = answer_values(request, now_ms)
        return bool(await self._write_together(_REVIVE["one"], _LINE_UP, ANSWER, **where, limit=1, **answer))

    async def revive(self, namespace: str, sink: str, after: int, now_ms: int, limit: int) -> list[int]:
        """Have dead letters of a sink sent again. Returns their positions: the first `limit` after `after`."""
        where = {"of_namespace": namespace, "of_sink": sink, "after": after}
        found = await self._write_together(_REVIVE["sink"], _LINE_UP, **where, now_ms=now_ms, limit=limit)
        return [row["position"] for row in found]

    async def drop_one(self, position: int, request: Request, now_ms: int) -> bool:
        """Delete a dead letter. False: there is none."""
        where = {"of_namespace": request.namespace, "at": position}
        return bool(
            await self._write_together(_DROP["one"], ANSWER, **where, limit=1, **answer_values(request, now_ms))
        )

    async def drop_dead(self, namespace: str, sink: str, after: int, limit: int) -> list[int]:
        """Delete dead letters of a sink. Returns their positions: the first `limit` after `after`."""
        where = {"of_namespace": namespace, "of_sink": sink, "after": after}
        return [row["position"] for row in await self._write(_DROP["sink"], **where, limit=limit)]

    async def remember(self, request: Request, now_ms: int) -> None:
        """A request was carried out, in as many transactions as it took."""
        await self._write_together(ANSWER, of_namespace=request.namespace, **answer_values(request, now_ms))

    async def forget_dead(self, now_ms: int, limit: int) -> int:
        """Delete dead letters that nobody asked for in time. Returns how many."""
        return len(await self._sweep(_FORGET, now_ms=now_ms, limit=limit))
