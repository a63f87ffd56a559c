"""Outbox: events that are to be delivered to sinks, who delivers them at the moment, and dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Text,
    TextClause,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.sql.expression import Executable

from romancy.v1.event_pb2 import CloudEvent

from romancy_service.core.limits import COUNTED
from romancy_service.core.task import NEVER_MS
from romancy_service.core.why.facts import Undelivered as UndeliveredOfRun
from romancy_service.store.rows import Row
from romancy_service.store.sql import Statements, among
from romancy_service.store.tables import TEXT, WAITING, outbox, outbox_lines


@dataclass(frozen=True, slots=True)
class Outgoing:
    """The first event of a line, which whoever claimed the line is to deliver; without one the line is empty."""

    line_id: int
    version: int
    """Of the line, as it was read with the event."""
    attempts: int
    """How often this event was tried in vain."""
    position: int = 0
    event: CloudEvent | None = None
    since_ms: int = 0


@dataclass(frozen=True, slots=True)
class Undelivered:
    """An event in the outbox as people see it."""

    position: int
    event: CloudEvent
    sink: str
    workflow_id: str
    run_id: str
    since_ms: int
    attempts: int
    error: str
    next_ms: int
    """NEVER_MS: it is not the first one of its line, or dead."""
    dead_ms: int
    """0: it is not dead."""
    forget_ms: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """How much there is for a sink; of each at most `COUNTED` are counted."""

    waiting: int
    dead: int
    oldest_ms: int
    """0: nothing waits."""


_NAMESPACE: Final = bindparam("of_namespace", type_=TEXT)
_SINK: Final = bindparam("of_sink", type_=TEXT)
_NOW: Final = bindparam("now_ms", type_=BigInteger)
_LIMIT: Final = bindparam("limit", type_=Integer)
_CLAIM: Final = bindparam("of_claim", type_=TEXT)
_OF_SINK: Final = (outbox.c.namespace == _NAMESPACE, outbox.c.sink == _SINK)
_IS_WAITING: Final = text(f"outbox.{WAITING}")
_IS_DEAD: Final = text("not outbox.waiting")
_HELD: Final = (among(outbox_lines.c.line_id, "line_ids"), outbox_lines.c.claim == _CLAIM)

FIRST_LINES: Final = """
with recursive line(line_id, namespace, sink, due_ms) as (
    select line_id, namespace, sink, due_ms from outbox_lines where line_id = (
        select line_id from outbox_lines order by namespace, sink, due_ms limit 1)
    union all
    select next.line_id, next.namespace, next.sink, next.due_ms
    from line join outbox_lines as next on next.line_id = (
        select line_id from outbox_lines where (namespace, sink) > (line.namespace, line.sink)
        order by namespace, sink, due_ms limit 1)
)
"""
"""`line`: of each sink the one that is due first, by one look into an index."""
WITH_WORK: Final = text(f"""{FIRST_LINES}
select namespace, sink from line where due_ms <= :now_ms order by due_ms limit :limit
""").bindparams(bindparam("now_ms", type_=BigInteger), bindparam("limit", type_=Integer))
"""Sinks for which something is due: one look into an index for each sink, however much waits for it."""
CLAIM: Final = (
    update(outbox_lines)
    .where(
        outbox_lines.c.line_id.in_(
            select(outbox_lines.c.line_id)
            .where(outbox_lines.c.namespace == _NAMESPACE, outbox_lines.c.sink == _SINK, outbox_lines.c.due_ms <= _NOW)
            .order_by(outbox_lines.c.due_ms)
            .limit(_LIMIT)
            .with_for_update(skip_locked=True)
        )
    )
    .values(due_ms=bindparam("until_ms", type_=BigInteger), claim=bindparam("new_claim", type_=TEXT))
    .returning(outbox_lines.c.line_id)
)
FIRST: Final = (
    select(
        outbox_lines.c.line_id,
        outbox_lines.c.version,
        outbox_lines.c.attempts,
        outbox.c.position,
        outbox.c.event,
        outbox.c.since_ms,
    )
    .select_from(
        outbox_lines.outerjoin(
            outbox,
            outbox.c.position
            == (
                select(func.min(text("mine.position")))
                .select_from(text("outbox as mine"))
                .where(
                    text(
                        "mine.namespace = outbox_lines.namespace and mine.sink = outbox_lines.sink"
                        f" and mine.workflow_id = outbox_lines.workflow_id and mine.{WAITING}"
                    )
                )
                .scalar_subquery()
            ),
        )
    )
    .where(*_HELD)
)
# Rows are locked in the same order by all who lock some, or two could wait for each other: events by their positions,
# then lines by namespace, sink and workflow, as commits do.
_MINE: Final = outbox_lines.c.line_id.in_(
    select(outbox_lines.c.line_id)
    .where(*_HELD)
    .order_by(outbox_lines.c.namespace, outbox_lines.c.sink, outbox_lines.c.workflow_id)
    .with_for_update()
)


def _in_order(*which: ColumnElement[bool] | TextClause) -> ColumnElement[bool]:
    """These events, locked in the order of their positions."""
    return outbox.c.position.in_(select(outbox.c.position).where(*which).order_by(outbox.c.position).with_for_update())


_TAKE_DELIVERED: Final = (
    delete(outbox).where(_in_order(among(outbox.c.position, "positions"))).returning(outbox.c.position)
)
_AS_READ: Final = cast(outbox_lines.c.line_id, Text) + "/" + cast(outbox_lines.c.version, Text)
_IS_EMPTY: Final = text(
    "not exists (select 1 from outbox as mine where mine.namespace = outbox_lines.namespace"
    " and mine.sink = outbox_lines.sink and mine.workflow_id = outbox_lines.workflow_id"
    f" and mine.{WAITING})"
)
_FORGET_EMPTY: Final = (
    delete(outbox_lines).where(_MINE, among(_AS_READ, "as_read"), _IS_EMPTY).returning(outbox_lines.c.line_id)
)
"""A version that is still the same says that nothing came which this statement does not see yet."""
_FREE: Final = update(outbox_lines).where(_MINE).values(due_ms=_NOW, claim="", attempts=0, error="")
_RELEASE: Final = update(outbox_lines).where(_MINE).values(due_ms=_NOW, claim="")
_IS_FIRST: Final = text(
    "not exists (select 1 from outbox as mine where mine.namespace = outbox_lines.namespace"
    " and mine.sink = outbox_lines.sink and mine.workflow_id = outbox_lines.workflow_id"
    f" and mine.{WAITING} and mine.position < :tried_position)"
).bindparams(bindparam("tried_position", type_=BigInteger))
_PUT_OFF: Final = (
    update(outbox_lines)
    .where(_MINE)
    .values(
        due_ms=case((_IS_FIRST, bindparam("until_ms", type_=BigInteger)), else_=_NOW),
        claim="",
        attempts=case((_IS_FIRST, bindparam("tried", type_=Integer)), else_=0),
        error=case((_IS_FIRST, bindparam("why", type_=TEXT)), else_=""),
    )
)
"""If a dead letter was sent again meanwhile, it is the first one, and does not wait for what another one met."""
_DIES: Final = {
    "waiting": False,
    "error": bindparam("why", type_=TEXT),
    "dead_ms": _NOW,
    "forget_ms": bindparam("until_ms", type_=BigInteger),
}
_BURY: Final = (
    update(outbox)
    .where(_in_order(among(outbox.c.position, "positions"), _IS_WAITING))
    .values(**_DIES, attempts=bindparam("tried", type_=Integer))
    .returning(outbox.c.position)
)
_OLD: Final = (
    select(outbox.c.position)
    .where(_IS_WAITING, *_OF_SINK, outbox.c.since_ms <= bindparam("before_ms", type_=BigInteger))
    .order_by(outbox.c.since_ms)
    .limit(_LIMIT)
)
_BURY_OLD: Final = (
    update(outbox)
    .where(_in_order(outbox.c.position.in_(_OLD), _IS_WAITING))
    .values(**_DIES)
    .returning(outbox.c.position)
)
_OF_BURIED: Final = tuple_(outbox_lines.c.namespace, outbox_lines.c.sink, outbox_lines.c.workflow_id).in_(
    select(outbox.c.namespace, outbox.c.sink, outbox.c.workflow_id).where(among(outbox.c.position, "found"))
)
_LOCK_BURIED: Final = (
    select(outbox_lines.c.line_id)
    .where(_OF_BURIED)
    .order_by(outbox_lines.c.namespace, outbox_lines.c.sink, outbox_lines.c.workflow_id)
    .with_for_update()
)
_FORGET_BURIED: Final = delete(outbox_lines).where(_OF_BURIED, outbox_lines.c.claim == "", _IS_EMPTY)
"""What is locked already gets nothing that this statement does not see."""
LIST: Final = (
    select(
        outbox,
        outbox_lines.c.attempts.label("line_attempts"),
        outbox_lines.c.error.label("line_error"),
        outbox_lines.c.due_ms.label("line_due_ms"),
        select(func.min(text("before.position")))
        .select_from(text("outbox as before"))
        .where(
            text(
                "before.namespace = outbox.namespace and before.sink = outbox.sink"
                f" and before.workflow_id = outbox.workflow_id and before.{WAITING}"
            )
        )
        .scalar_subquery()
        .label("first_position"),
    )
    .select_from(
        outbox.outerjoin(
            outbox_lines,
            and_(
                outbox_lines.c.namespace == outbox.c.namespace,
                outbox_lines.c.sink == outbox.c.sink,
                outbox_lines.c.workflow_id == outbox.c.workflow_id,
            ),
        )
    )
    .where(
        outbox.c.namespace == _NAMESPACE,
        outbox.c.position > bindparam("after", type_=BigInteger),
        or_(_SINK == "", outbox.c.sink == _SINK),
        or_(bindparam("of_workflow", type_=TEXT) == "", outbox.c.workflow_id == bindparam("of_workflow", type_=TEXT)),
    )
    .order_by(outbox.c.position)
    .limit(_LIMIT)
)
_LIST_WAITING: Final = LIST.where(_IS_WAITING)
_LIST_DEAD: Final = LIST.where(_IS_DEAD)


def _count(predicate: Any) -> Executable:
    found = select(outbox.c.position).where(predicate, *_OF_SINK).limit(COUNTED)
    return select(func.count().label("count")).select_from(found.subquery())


_COUNT_WAITING, _COUNT_DEAD = _count(_IS_WAITING), _count(_IS_DEAD)
_OLDEST: Final = select(func.min(outbox.c.since_ms).label("since_ms")).where(_IS_WAITING, *_OF_SINK)


def _used(predicate: str) -> Executable:
    """The sinks that events of a namespace are for: one look into an index for each."""
    return text(f"""
with recursive used(sink) as (
    select min(outbox.sink) from outbox where outbox.namespace = :of_namespace and {predicate}
    union all
    select (select min(outbox.sink) from outbox
        where outbox.namespace = :of_namespace and outbox.sink > used.sink and {predicate})
    from used where used.sink is not null
)
select sink from used where sink is not null limit :limit
""").bindparams(bindparam("of_namespace", type_=Text), bindparam("limit", type_=Integer))


_USED: Final = (_used(f"outbox.{WAITING}"), _used("not outbox.waiting"))


_FIRST_OF_LINE: Final = f"""(select min(position) from outbox as mine where mine.namespace = line.namespace
        and mine.sink = line.sink and mine.workflow_id = line.workflow_id and mine.{WAITING})"""
OF_RUN: Final = text(f"""
with mine as (
    select namespace, sink, workflow_id, waiting, position from outbox where run_id = :of_run
    order by position limit :most
), counted as (
    select namespace, sink, workflow_id, waiting, count(*) as count, min(position) as position
    from mine group by namespace, sink, workflow_id, waiting order by min(position) limit :limit
)
select counted.sink, counted.waiting, counted.count, counted.position, first.since_ms, first.dead_ms, first.error,
    line.attempts as line_attempts, line.error as line_error, line.due_ms as line_due_ms, line.claim,
    {_FIRST_OF_LINE} as first_position
from counted join outbox as first on first.position = counted.position
left join outbox_lines as line on counted.waiting and line.namespace = counted.namespace and line.sink = counted.sink
    and line.workflow_id = counted.workflow_id
order by counted.position
""").bindparams(
    bindparam("of_run", type_=Text), bindparam("most", COUNTED, type_=Integer), bindparam("limit", type_=Integer)
)
"""What waits and what is dead of a run, by sink: one look into an index, and a bounded walk."""


class Outbox(Statements):
    """Keeps what commits put into it until it is delivered."""

    # Delivering ---------------------------------------------------------------------------------------------------

    async def sinks_with_work(self, now_ms: int, limit: int) -> list[tuple[str, str]]:
        """Namespaces and sinks for which something is due, the longest due first."""
        rows = await self._read(WITH_WORK, now_ms=now_ms, limit=limit)
        return [(row["namespace"], row["sink"]) for row in rows]

    async def claim_lines(
        self, namespace: str, sink: str, claim: str, now_ms: int, until_ms: int, limit: int
    ) -> list[Outgoing]:
        """Claim due lines, the longest due first, under a name that nobody used before; their first events."""
        where = {"of_namespace": namespace, "of_sink": sink}
        rows = await self._write(CLAIM, **where, new_claim=claim, now_ms=now_ms, until_ms=until_ms, limit=limit)
        if not rows:
            return []
        line_ids = [row["line_id"] for row in rows]
        return [_outgoing(row) for row in await self._read(FIRST, line_ids=line_ids, of_claim=claim)]

    async def take_delivered(self, claim: str, delivered: Sequence[Outgoing], now_ms: int) -> None:
        """These were delivered; their lines are free again, or gone where nothing else is in them."""
        await self._take_first(_TAKE_DELIVERED, claim, delivered, now_ms=now_ms)

    async def _take_first(
        self, statement: Executable, claim: str, lines: Sequence[Outgoing], *, now_ms: int, **values: Any
    ) -> None:
        """Take the first events of lines out of them, and let the lines go."""
        held = {**_held(claim, lines), "now_ms": now_ms}
        positions = [each.position for each in lines]
        taken = await self._write_together(statement, _FORGET_EMPTY, _FREE, positions=positions, **held, **values)
        if not taken:  # somebody else did
            await self._write(_FORGET_EMPTY, **held)
            await self._write(_FREE, **held)

    async def put_off(self, claim: str, line: Outgoing, until_ms: int, why: str, now_ms: int) -> None:
        """The first event of the line could not be delivered, and is tried again."""
        tried = {"tried_position": line.position, "tried": line.attempts + 1, "why": why}
        await self._write(_PUT_OFF, line_ids=[line.line_id], of_claim=claim, until_ms=until_ms, now_ms=now_ms, **tried)

    async def release_lines(self, claim: str, lines: Sequence[Outgoing], due_ms: int) -> None:
        """Nothing was tried: these are anybody's from then on."""
        await self._write(_RELEASE, line_ids=[each.line_id for each in lines], of_claim=claim, now_ms=due_ms)

    async def bury(self, claim: str, line: Outgoing, why: str, now_ms: int, forget_ms: int) -> None:
        """The first event of the line is dead; the next one is tried."""
        values = {"why": why, "tried": line.attempts + 1, "until_ms": forget_ms}
        await self._take_first(_BURY, claim, [line], now_ms=now_ms, **values)

    async def bury_old(
        self, namespace: str, sink: str, before_ms: int, why: str, now_ms: int, forget_ms: int, limit: int
    ) -> int:
        """What has waited since before then is dead, and lines are gone that were of nothing else.

        Returns how many: at most `limit`.
        """
        rows = await self._write_together(
            _BURY_OLD,
            _LOCK_BURIED,
            _FORGET_BURIED,
            of_namespace=namespace,
            of_sink=sink,
            before_ms=before_ms,
            why=why,
            now_ms=now_ms,
            until_ms=forget_ms,
            limit=limit,
        )
        return len(rows)

    async def forget_empty(self, claim: str, lines: Sequence[Outgoing], now_ms: int) -> None:
        """Nothing is in these lines any more. One that got an event meanwhile stays, and is free again."""
        if len(await self._write(_FORGET_EMPTY, **_held(claim, lines))) < len(lines):
            await self.release_lines(claim, lines, now_ms)

    # Looking ------------------------------------------------------------------------------------------------------

    async def list_outbox(
        self, namespace: str, *, dead: bool, sink: str, workflow_id: str, after: int, limit: int
    ) -> list[Undelivered]:
        """For a client: what waits, or is dead, after a position; of a sink or a workflow, or of all where empty."""
        rows = await self._search(
            _LIST_DEAD if dead else _LIST_WAITING,
            of_namespace=namespace,
            of_sink=sink,
            of_workflow=workflow_id,
            after=after,
            limit=limit,
        )
        return [_undelivered(row) for row in rows]

    async def undelivered(self, run_id: str, limit: int) -> list[UndeliveredOfRun]:
        """For a client: what a run sent and no sink has taken, by sink, the oldest first."""
        return [_of_run(row) for row in await self._search(OF_RUN, of_run=run_id, limit=limit)]

    async def count_outbox(self, namespace: str, sink: str) -> Waiting:
        """For a client: how much there is for a sink."""
        where = {"of_namespace": namespace, "of_sink": sink}
        waiting, dead = [
            (await self._search(statement, **where))[0]["count"] for statement in (_COUNT_WAITING, _COUNT_DEAD)
        ]
        oldest_ms = (await self._search(_OLDEST, **where))[0]["since_ms"]
        return Waiting(waiting, dead, oldest_ms or 0)

    async def used_sinks(self, namespace: str, limit: int) -> set[str]:
        """For a client: the sinks that events of the namespace are for."""
        return {
            row["sink"]
            for statement in _USED
            for row in await self._search(statement, of_namespace=namespace, limit=limit)
        }


def _held(claim: str, lines: Sequence[Outgoing]) -> dict[str, Any]:
    """Lines that were claimed, as they were read."""
    return {
        "of_claim": claim,
        "line_ids": [each.line_id for each in lines],
        "as_read": [f"{each.line_id}/{each.version}" for each in lines],
    }


def _outgoing(row: Row) -> Outgoing:
    if row["position"] is None:
        return Outgoing(row["line_id"], row["version"], row["attempts"])
    event = CloudEvent.FromString(row["event"])
    return Outgoing(row["line_id"], row["version"], row["attempts"], row["position"], event, row["since_ms"])


def _undelivered(row: Row) -> Undelivered:
    first = bool(row["waiting"]) and row["first_position"] == row["position"] and row["line_due_ms"] is not None
    return Undelivered(
        position=row["position"],
        event=CloudEvent.FromString(row["event"]),
        sink=row["sink"],
        workflow_id=row["workflow_id"],
        run_id=row["run_id"],
        since_ms=row["since_ms"],
        attempts=row["line_attempts"] if first else row["attempts"],
        error=row["line_error"] if first else row["error"],
        next_ms=row["line_due_ms"] if first else NEVER_MS,
        dead_ms=row["dead_ms"],
        forget_ms=row["forget_ms"],
    )


def _of_run(row: Row) -> UndeliveredOfRun:
    if not row["waiting"]:
        return UndeliveredOfRun(row["sink"], True, row["count"], row["dead_ms"], row["position"], row["error"])
    return UndeliveredOfRun(
        sink=row["sink"],
        is_dead=False,
        count=row["count"],
        since_ms=row["since_ms"],
        position=row["position"],
        error=row["line_error"] or "",
        attempts=row["line_attempts"] or 0,
        due_ms=row["line_due_ms"] or row["since_ms"],
        is_tried=bool(row["claim"]),
        is_behind=row["first_position"] not in (None, row["position"]),
    )
