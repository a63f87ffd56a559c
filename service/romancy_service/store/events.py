"""Events: those that came, in their order, until all that wait for them have them; and who waits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import BigInteger, Integer, Text, bindparam, cast, delete, func, select, text, tuple_, update

from romancy.v1.event_pb2 import CloudEvent

from romancy_service.core.subscription import topics_of
from romancy_service.store.sql import Statements, among
from romancy_service.store.tables import SUBSCRIBED, TEXT, UNDELIVERED, events, tasks


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event that came just now."""

    source: str
    event_id: str
    type: str
    event: bytes


@dataclass(frozen=True, slots=True)
class OpenEvent:
    """An event that may not have reached all that wait for it."""

    position: int
    event: CloudEvent
    accepted_ms: int


@dataclass(frozen=True, slots=True)
class Subscriber:
    """A subscription of a run."""

    run_id: str
    task_id: str
    since_ms: int
    """0: since a run before."""


_IS_OPEN: Final = text(UNDELIVERED)
_OPEN: Final = (
    select(events.c.position, events.c.event, events.c.accepted_ms)
    .where(
        _IS_OPEN,
        events.c.namespace == bindparam("of_namespace", type_=TEXT),
        events.c.type == bindparam("of_type", type_=TEXT),
    )
    .order_by(events.c.position)
    .limit(bindparam("limit", type_=Integer))
)
_LEFT: Final = (
    select(events.c.namespace, events.c.type, func.min(events.c.accepted_ms).label("oldest_ms"))
    .where(_IS_OPEN)
    .group_by(events.c.namespace, events.c.type)
    .order_by(func.min(events.c.accepted_ms))
    .limit(bindparam("limit", type_=Integer))
)
_CLOSE: Final = (
    update(events)
    .where(
        _IS_OPEN,
        events.c.namespace == bindparam("of_namespace", type_=TEXT),
        events.c.type == bindparam("of_type", type_=TEXT),
        events.c.position <= bindparam("up_to", type_=BigInteger),
        events.c.position >= bindparam("since", type_=BigInteger),
        # One between them may have been stored only now.
        among(cast(events.c.position, Text), "positions"),
    )
    .values(open=False, event=b"")
)
_OLD: Final = (
    select(events.c.position)
    .where(events.c.accepted_ms < bindparam("before_ms", type_=BigInteger), ~events.c.open)
    .order_by(events.c.accepted_ms)
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
SUBSCRIBERS: Final = (
    select(tasks.c.run_id, tasks.c.task_id, tasks.c.scheduled_ms)
    .where(
        text(SUBSCRIBED),
        tasks.c.namespace == bindparam("of_namespace", type_=TEXT),
        tasks.c.type == bindparam("topic", type_=TEXT),
        tasks.c.queue == bindparam("key", type_=TEXT),
        tuple_(tasks.c.run_id, tasks.c.task_id)
        > tuple_(bindparam("after_run", type_=TEXT), bindparam("after_task", type_=TEXT)),
    )
    .order_by(tasks.c.run_id, tasks.c.task_id)
    .limit(bindparam("limit", type_=Integer))
)


class Events(Statements):
    """Keeps events, and finds those that wait for them."""

    @abstractmethod
    async def add_events(self, namespace: str, new: Sequence[NewEvent], now_ms: int) -> set[tuple[str, str]]:
        """Keep events in this order, all or none. Returns those, by source and id, that were not known before."""

    async def open_events(self, namespace: str, event_type: str, limit: int) -> list[OpenEvent]:
        """The first ones that may not have been delivered."""
        rows = await self._read(_OPEN, of_namespace=namespace, of_type=event_type, limit=limit)
        return [OpenEvent(row["position"], CloudEvent.FromString(row["event"]), row["accepted_ms"]) for row in rows]

    async def left_events(self, limit: int) -> list[tuple[tuple[str, str], int]]:
        """Namespaces and types that have open events, with the time of the oldest one; in that order."""
        rows = await self._read(_LEFT, limit=limit)
        return [((row["namespace"], row["type"]), row["oldest_ms"]) for row in rows]

    async def close_events(self, namespace: str, event_type: str, positions: Sequence[int]) -> None:
        """These were delivered. What remains of them is their id."""
        await self._write(
            _CLOSE,
            of_namespace=namespace,
            of_type=event_type,
            since=min(positions),
            up_to=max(positions),
            positions=[str(position) for position in positions],
        )

    async def forget_events(self, before_ms: int, limit: int) -> int:
        """Delete delivered ones that are so old. Returns how many."""
        return len(await self._write_apart(_FORGET, before_ms=before_ms, limit=limit))

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
        return [Subscriber(row["run_id"], row["task_id"], row["scheduled_ms"]) for row in rows]
