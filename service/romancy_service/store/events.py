"""Events: those that came, in their order, until all that wait for them have them; and who waits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Integer,
    Text,
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
from sqlalchemy.sql.expression import TextClause

from romancy.v1.event_pb2 import CloudEvent

from romancy_service.core.channel import CHANNELS_END, aside_of, topic_of_channel
from romancy_service.core.subscription import topics_of
from romancy_service.core.task import NEVER_MS
from romancy_service.store.left import LEFT_EVENTS, LEFT_MESSAGES
from romancy_service.store.rows import Row, chain_of
from romancy_service.store.sql import Statements, among
from romancy_service.store.tables import RECEIVES, SUBSCRIBED, TEXT, UNDELIVERED, events, runs, tasks

Line = tuple[str, str]
"""Namespace and line: a type of events, or a channel."""
FIRST_LINE: Final[Line] = ("", "")
"""Before all others."""


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event that came just now."""

    source: str
    event_id: str
    line: str
    """With which others it is in order."""
    event: bytes
    forget_ms: int
    """When nobody needs it any more."""


@dataclass(frozen=True, slots=True)
class OpenEvent:
    """An event that may not have reached all that wait for it."""

    position: int
    event: CloudEvent
    accepted_ms: int
    deliveries: int
    """Of a message that only one run gets: how often one was given it, the next time included."""


@dataclass(frozen=True, slots=True)
class Subscriber:
    """A subscription of a run."""

    run_id: str
    task_id: str
    since_ms: int
    """0: since a run before."""
    chain: str
    """The first of the runs that go on one after the other, of which the run is one."""


_IS_OPEN: Final = text(UNDELIVERED)
_OPEN: Final = (
    select(events.c.position, events.c.event, events.c.accepted_ms, events.c.deliveries)
    .where(
        _IS_OPEN,
        events.c.namespace == bindparam("of_namespace", type_=TEXT),
        events.c.type == bindparam("of_type", type_=TEXT),
        events.c.position > bindparam("after", type_=BigInteger),
    )
    .order_by(events.c.position)
    .limit(bindparam("limit", type_=Integer))
)
KNOWN: Final = select(events.c.event_id).where(
    events.c.namespace == bindparam("of_namespace", type_=TEXT),
    events.c.source == bindparam("of_source", type_=TEXT),
    among(events.c.event_id, "event_ids"),
)
CLOSE: Final = (
    update(events)
    .where(
        _IS_OPEN,
        events.c.namespace == bindparam("of_namespace", type_=TEXT),
        events.c.type == bindparam("of_type", type_=TEXT),
        events.c.position <= bindparam("up_to", type_=BigInteger),
        events.c.position >= bindparam("since", type_=BigInteger),
        # One between them may have been stored only now, and one of them be given back.
        among(cast(events.c.position, Text) + "/" + cast(events.c.deliveries, Text), "deliveries"),
    )
    .values(open=False, event=case((bindparam("kept", type_=Boolean), events.c.event), else_=b""))
    .returning(events.c.position)
)
_REOPEN: Final = (
    update(events)
    .where(
        events.c.position == bindparam("at", type_=BigInteger), events.c.deliveries == bindparam("count", type_=Integer)
    )
    .values(open=True, deliveries=events.c.deliveries + 1)
    .returning(events.c.type)
)
_PUT_ASIDE: Final = (
    update(events)
    .where(_IS_OPEN, among(events.c.position, "positions"))
    .values(type=bindparam("aside", type_=TEXT))
    .returning(events.c.position)
)
_OLD: Final = (
    select(events.c.position)
    .where(
        events.c.forget_ms < bindparam("now_ms", type_=BigInteger),
        or_(
            ~events.c.open,
            *(func.substr(events.c.type, 1, 1) == first for first in (topic_of_channel(""), aside_of(""))),
        ),
    )
    .order_by(events.c.forget_ms)
    .limit(bindparam("limit", type_=Integer))
)
_FORGET: Final = delete(events).where(events.c.position.in_(_OLD)).returning(events.c.position)

TOPICS: Final = text(f"""
with recursive topic(name) as (
    select (select type from tasks where {SUBSCRIBED} and namespace = :of_namespace
        and type >= :first and type < :before order by type limit 1)
    union all
    select (select type from tasks where {SUBSCRIBED} and namespace = :of_namespace
        and type > topic.name and type < :before order by type limit 1)
    from topic where topic.name is not null
)
select name from topic where name is not null
""").bindparams(bindparam("of_namespace", type_=Text), bindparam("first", type_=Text), bindparam("before", type_=Text))
_SUBSCRIBERS: Final = (
    select(tasks.c.run_id, tasks.c.task_id, tasks.c.scheduled_ms, runs.c.counters)
    .join(runs, runs.c.run_id == tasks.c.run_id)
    .where(
        tasks.c.namespace == bindparam("of_namespace", type_=TEXT),
        tasks.c.type == bindparam("topic", type_=TEXT),
        tasks.c.due_ms == NEVER_MS,
    )
    .limit(bindparam("limit", type_=Integer))
)
SUBSCRIBERS: Final = _SUBSCRIBERS.where(
    text(SUBSCRIBED),
    tasks.c.queue == bindparam("key", type_=TEXT),
    tuple_(tasks.c.run_id, tasks.c.task_id)
    > tuple_(bindparam("after_run", type_=TEXT), bindparam("after_task", type_=TEXT)),
).order_by(tasks.c.run_id, tasks.c.task_id)
RECEIVERS: Final = _SUBSCRIBERS.where(text(RECEIVES)).order_by(tasks.c.scheduled_ms, tasks.c.run_id, tasks.c.task_id)


def closing(namespace: str, event_type: str, delivered: Sequence[OpenEvent], *, kept: bool = False) -> dict[str, Any]:
    """The values of `CLOSE`."""
    return {
        "of_namespace": namespace,
        "of_type": event_type,
        "since": min(event.position for event in delivered),
        "up_to": max(event.position for event in delivered),
        "deliveries": [f"{event.position}/{event.deliveries}" for event in delivered],
        "kept": kept,
    }


class Events(Statements):
    """Keeps events, and finds those that wait for them."""

    @abstractmethod
    async def add_events(self, namespace: str, new: Sequence[NewEvent], now_ms: int) -> set[tuple[str, str]]:
        """Keep events in this order, all or none. Returns those, by source and id, that were not known before."""

    async def known_events(self, namespace: str, ids: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
        """Those of these events, by source and id, that are kept, or were and are not forgotten yet."""
        by_source: dict[str, list[str]] = {}
        for source, event_id in ids:
            by_source.setdefault(source, []).append(event_id)
        known = set()
        for source, event_ids in by_source.items():
            rows = await self._read(KNOWN, of_namespace=namespace, of_source=source, event_ids=event_ids)
            known |= {(source, row["event_id"]) for row in rows}
        return known

    async def open_events(self, namespace: str, event_type: str, limit: int, after: int = 0) -> list[OpenEvent]:
        """The first ones, after a position, that may not have been delivered."""
        rows = await self._read(_OPEN, of_namespace=namespace, of_type=event_type, limit=limit, after=after)
        return [
            OpenEvent(row["position"], CloudEvent.FromString(row["event"]), row["accepted_ms"], row["deliveries"])
            for row in rows
        ]

    async def left_events(self, after: Line, limit: int) -> tuple[list[tuple[Line, int]], Line]:
        """Lines of events, but messages, that have open ones, with the time of the first: those after a line, in
        `limit` steps. And the line after which to look next.
        """
        return await self._left(LEFT_EVENTS, after, limit)

    async def left_messages(self, after: Line, limit: int) -> tuple[list[tuple[Line, int]], Line]:
        """The same for channels in which somebody waits for what is there."""
        return await self._left(LEFT_MESSAGES, after, limit)

    async def _left(self, page: TextClause, after: Line, limit: int) -> tuple[list[tuple[Line, int]], Line]:
        namespace, line = after
        rows = await self._read(
            page,
            after_namespace=namespace,
            after_line=line,
            channels=topic_of_channel(""),
            channels_end=CHANNELS_END,
            limit=limit,
        )
        found = [((row["namespace"], row["type"]), row["oldest_ms"]) for row in rows if row["is_work"]]
        return found, next(((row["namespace"], row["type"]) for row in rows if row["is_last"]), FIRST_LINE)

    async def close_events(
        self, namespace: str, event_type: str, delivered: Sequence[OpenEvent], *, kept: bool = False
    ) -> None:
        """These were delivered. What remains of them is their id, unless they may be given back: these are `kept`."""
        await self._write(CLOSE, **closing(namespace, event_type, delivered, kept=kept))

    async def put_aside(self, line: str, positions: Sequence[int]) -> None:
        """A run failed to take these: they wait aside of their line, so that those behind them do not wait."""
        await self._write(_PUT_ASIDE, positions=list(positions), aside=aside_of(line))

    async def reopen_event(self, position: int, count: int) -> str | None:
        """The run that got it the `count`th time gives it back. Returns its line, if it was not given back before."""
        rows = await self._write(_REOPEN, at=position, count=count)
        return rows[0]["type"] if rows else None

    async def forget_events(self, now_ms: int, limit: int) -> int:
        """Delete those that were delivered long ago, and those that nobody took in their time. Returns how many."""
        return len(await self._sweep(_FORGET, now_ms=now_ms, limit=limit))

    async def topics(self, namespace: str, event_type: str) -> list[str]:
        """The topics of events of the type that somebody subscribed to. One look into an index for each."""
        first, before = topics_of(event_type)
        rows = await self._read(TOPICS, of_namespace=namespace, first=first, before=before)
        return [row["name"] for row in rows]

    async def subscribers(
        self, namespace: str, topic: str, key: str, after: tuple[str, str], limit: int
    ) -> list[Subscriber]:
        """Subscriptions that want what has this key, after one by its run id and task id, in that order."""
        rows = await self._read(
            SUBSCRIBERS,
            of_namespace=namespace,
            topic=topic,
            key=key,
            after_run=after[0],
            after_task=after[1],
            limit=limit,
        )
        return [_subscriber(row) for row in rows]

    async def receivers(self, namespace: str, topic: str, limit: int) -> list[Subscriber]:
        """Who waits for a message of a competing channel, those first that wait longest."""
        rows = await self._read(RECEIVERS, of_namespace=namespace, topic=topic, limit=limit)
        return [_subscriber(row) for row in rows]


def _subscriber(row: Row) -> Subscriber:
    return Subscriber(row["run_id"], row["task_id"], row["scheduled_ms"], chain_of(row))
