"""Agenda: what is left to be done, as far as one statement tells. Whoever has it to do then asks for itself.

Each line of the statement looks at the head of an index, or at what sessions have, whatever else is stored. What is
passed over on the way are entries of rows that ended and were not yet cleared away: few, unless somebody holds a
snapshot open.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from romancy_service.core.task import NEVER_MS, TypeKey
from romancy_service.store.outbox import FIRST_LINES
from romancy_service.store.rows import Row
from romancy_service.store.tables import CLAIMABLE, LOOKED_AT, OWNED, RELAYED, UNDELIVERED


@dataclass(slots=True)
class Agenda:
    """What may be to do."""

    task_ms: int = NEVER_MS
    """When the service must look at a task next: a timer, a timeout, an errand."""
    schedule_ms: int = NEVER_MS
    """The same for schedules."""
    outgoing_ms: int = NEVER_MS
    """The same for events on their way to sinks."""
    lost: bool = False
    """Tasks of sessions that are gone, or sessions whose lease is over."""
    cancelled: bool = False
    """Tasks that somebody has and that were asked to stop."""
    events: bool = False
    """Events that may not have reached all that wait for them. Messages that nobody receives, too: the look for what
    was left behind passes over these, and costs the same however many they are."""
    questions: bool = False
    """Questions between replicas."""
    waiting: list[TypeKey] = field(default_factory=list)
    """Those of the types that were asked about of which a task is due that nobody has."""


_TASK, _SCHEDULE, _LOST, _CANCELLED, _EVENTS, _QUESTIONS, _WAITING, _OUTGOING = range(8)


OF_KEY: Final = f"""namespace = wanted.namespace and queue = wanted.queue and kind = wanted.kind
    and type = wanted.type and {CLAIMABLE}"""
"""Tasks that wait, of a key."""
LEVELS: Final = f"""
    with recursive level (priority) as (
        select min(priority) from tasks where {OF_KEY}
        union all
        select (select min(priority) from tasks where {OF_KEY} and priority > level.priority)
        from level where level.priority is not null)"""
"""Their priorities, in order, as a table `level`. Who looks for tasks that are due looks at each priority by itself: an
index does not skip over what is due later, and after an outage that may be very much. (Postgres 18 does; 14 not.)"""
_IS_DUE: Final = f"""{LEVELS}
    select 1 from level where exists (
        select 1 from tasks where {OF_KEY} and tasks.priority = level.priority and due_ms <= {{now}}) limit 1"""


def agenda_sql(keys: str, now: str) -> str:
    """The statement. `keys` is a table of namespaces, queues, kinds and types with their positions, `now` the time."""
    return f"""
select {_TASK} as what, (select relay_ms from tasks where {RELAYED} order by relay_ms limit 1) as value
union all select {_SCHEDULE}, (select look_ms from schedules where {LOOKED_AT} order by look_ms limit 1)
union all select {_OUTGOING}, ({FIRST_LINES} select min(due_ms) from line)
union all select {_LOST}, (select 1 from sessions where lease_ms <= {now} limit 1)
union all select {_LOST}, (select 1 from tasks where {OWNED}
    and not exists (select 1 from sessions where session_id = tasks.owner) limit 1)
union all select {_CANCELLED}, (select 1 from tasks where {OWNED} and cancel_requested limit 1)
union all select {_EVENTS}, (select 1 from events where {UNDELIVERED} limit 1)
union all select {_QUESTIONS}, (select 1 from queries limit 1)
union all select {_WAITING}, case when ({_IS_DUE.format(now=now)}) = 1 then wanted.position end from {keys}
"""


def agenda_of(rows: Iterable[Row], keys: Sequence[TypeKey]) -> Agenda:
    """What the statement found, asked about these types."""
    agenda = Agenda()
    for row in rows:
        what, value = row["what"], row["value"]
        if value is None:
            continue
        if what == _TASK:
            agenda.task_ms = value
        elif what == _SCHEDULE:
            agenda.schedule_ms = value
        elif what == _OUTGOING:
            agenda.outgoing_ms = value
        elif what == _WAITING:
            agenda.waiting.append(keys[value])
        else:
            setattr(agenda, _FLAGS[what], True)
    return agenda


_FLAGS: Final = {_LOST: "lost", _CANCELLED: "cancelled", _EVENTS: "events", _QUESTIONS: "questions"}
