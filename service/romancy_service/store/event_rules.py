"""Event rules as they are stored: one row each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import BigInteger, Boolean, Integer, Text, and_, bindparam, case, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from romancy.v1.event_rule_pb2 import EventRule

from romancy_service.core.event_rule import EventRuleRecord
from romancy_service.core.subscription import topic_and_key, topics_of
from romancy_service.store.events import CLOSE, OpenEvent, closing
from romancy_service.store.rows import Request, Row
from romancy_service.store.schedules import ANSWER, answer_values
from romancy_service.store.sql import Statements, among
from romancy_service.store.tables import TEXT, event_rules


@dataclass(slots=True)
class Outcome:
    """What rules made of an event, by their uids."""

    started: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


_NAMESPACE: Final = event_rules.c.namespace == bindparam("of_namespace", type_=TEXT)
_THIS: Final = (_NAMESPACE, event_rules.c.rule_id == bindparam("id", type_=TEXT))
_NEW: Final = insert(event_rules).values(
    namespace=bindparam("of_namespace", type_=TEXT),
    rule_id=bindparam("id", type_=TEXT),
    uid=bindparam("new_uid", type_=TEXT),
    topic=bindparam("new_topic", type_=TEXT),
    event_key=bindparam("new_key", type_=TEXT),
    definition=bindparam("new_definition"),
    paused=False,
    note="",
    since_ms=bindparam("now_ms", type_=BigInteger),
    create_ms=bindparam("now_ms", type_=BigInteger),
    update_ms=bindparam("now_ms", type_=BigInteger),
    started_count=0,
    skipped_count=0,
    failed_count=0,
    start_ms=0,
    last_error="",
    last_error_ms=0,
)
_SET: Final = _NEW.on_conflict_do_update(
    index_elements=[event_rules.c.namespace, event_rules.c.rule_id],
    set_={
        "topic": _NEW.excluded.topic,
        "event_key": _NEW.excluded.event_key,
        "definition": _NEW.excluded.definition,
        "update_ms": _NEW.excluded.update_ms,
        # What it asked for before it goes on to ask for: events may be on their way.
        "since_ms": case(
            (
                and_(event_rules.c.topic == _NEW.excluded.topic, event_rules.c.event_key == _NEW.excluded.event_key),
                event_rules.c.since_ms,
            ),
            else_=_NEW.excluded.since_ms,
        ),
    },
).returning(event_rules.c.uid)
_PAUSE: Final = (
    update(event_rules)
    .where(*_THIS)
    .values(
        paused=bindparam("new_paused", type_=Boolean),
        note=bindparam("new_note", type_=Text),
        update_ms=bindparam("now_ms", type_=BigInteger),
        since_ms=case(
            (event_rules.c.paused, bindparam("now_ms", type_=BigInteger)),
            else_=event_rules.c.since_ms,
        ),
    )
    .returning(event_rules.c.uid)
)
_DELETE: Final = delete(event_rules).where(*_THIS).returning(event_rules.c.uid)
_GET: Final = select(event_rules).where(*_THIS)
_LIST: Final = (
    select(event_rules)
    .where(_NAMESPACE, event_rules.c.rule_id > bindparam("after", type_=TEXT))
    .order_by(event_rules.c.rule_id)
    .limit(bindparam("limit", type_=Integer))
)
_OF_TYPE: Final = (
    _NAMESPACE,
    event_rules.c.topic >= bindparam("first", type_=TEXT),
    event_rules.c.topic < bindparam("before", type_=TEXT),
)
ACTIVE: Final = select(event_rules).where(*_OF_TYPE, ~event_rules.c.paused).order_by(event_rules.c.rule_id)
_COUNT_OTHERS: Final = select(func.count().label("count")).where(
    *_OF_TYPE, event_rules.c.rule_id != bindparam("id", type_=TEXT)
)


def _one_of(name: str) -> Any:
    return case((among(event_rules.c.uid, name), 1), else_=0)


NOTE: Final = (
    update(event_rules)
    .where(or_(*(among(event_rules.c.uid, name) for name in ("started", "skipped", "failed"))))
    .values(
        started_count=event_rules.c.started_count + _one_of("started"),
        skipped_count=event_rules.c.skipped_count + _one_of("skipped"),
        failed_count=event_rules.c.failed_count + _one_of("failed"),
        start_ms=case(
            (among(event_rules.c.uid, "started"), bindparam("now_ms", type_=BigInteger)),
            else_=event_rules.c.start_ms,
        ),
    )
)
_FAIL: Final = (
    update(event_rules)
    .where(event_rules.c.uid == bindparam("of_uid", type_=TEXT))
    .values(last_error=bindparam("error", type_=Text), last_error_ms=bindparam("now_ms", type_=BigInteger))
)


class EventRules(Statements):
    """Keeps event rules. A change carries the request that it answers: both are stored, or neither is.

    Raises BatchRejected with `conflict` when the request's id is taken.
    """

    async def set_event_rule(self, record: EventRuleRecord, request: Request) -> None:
        """Store what a rule is to be; its times are all those of now."""
        topic, key = topic_and_key(record.rule.event_type, record.rule.where)
        values = {
            "new_uid": record.uid,
            "new_topic": topic,
            "new_key": key,
            "new_definition": record.rule.SerializeToString(deterministic=True),
        }
        await self._change(_SET, record.namespace, record.rule_id, request, record.update_ms, **values)

    async def pause_event_rule(
        self, namespace: str, rule_id: str, paused: bool, note: str, request: Request, now_ms: int
    ) -> bool:
        """Pause or resume one. False: it is not there."""
        return await self._change(_PAUSE, namespace, rule_id, request, now_ms, new_paused=paused, new_note=note)

    async def delete_event_rule(self, namespace: str, rule_id: str, request: Request, now_ms: int) -> bool:
        """Forget one. False: it is not there."""
        return await self._change(_DELETE, namespace, rule_id, request, now_ms)

    async def _change(
        self, statement: Any, namespace: str, rule_id: str, request: Request, now_ms: int, **values: Any
    ) -> bool:
        answer = answer_values(request, now_ms)
        return bool(
            await self._write_together(statement, ANSWER, of_namespace=namespace, id=rule_id, **values, **answer)
        )

    async def get_event_rule(self, namespace: str, rule_id: str) -> EventRuleRecord | None:
        """One of them."""
        rows = await self._show(_GET, of_namespace=namespace, id=rule_id)
        return _record(rows[0]) if rows else None

    async def list_event_rules(self, namespace: str, after: str, limit: int) -> list[EventRuleRecord]:
        """Those with larger ids, in order."""
        return [_record(row) for row in await self._show(_LIST, of_namespace=namespace, after=after, limit=limit)]

    async def count_other_event_rules(self, namespace: str, event_type: str, rule_id: str) -> int:
        """How many rules but this one are for events of the type."""
        first, before = topics_of(event_type)
        rows = await self._read(_COUNT_OTHERS, of_namespace=namespace, first=first, before=before, id=rule_id)
        return int(rows[0]["count"])

    async def active_event_rules(self, namespace: str, event_type: str) -> list[EventRuleRecord]:
        """All that are for events of the type, but those that are paused."""
        first, before = topics_of(event_type)
        rows = await self._read(ACTIVE, of_namespace=namespace, first=first, before=before)
        return [_record(row) for row in rows]

    async def close_started(self, namespace: str, event: OpenEvent, outcome: Outcome, now_ms: int) -> None:
        """An event was delivered, and this is what rules made of it. Both are noted, once, whoever comes first."""
        of_rules = {"started": outcome.started, "skipped": outcome.skipped, "failed": outcome.failed}
        await self._write_together(
            CLOSE, NOTE, **closing(namespace, event.event.type, [event]), **of_rules, now_ms=now_ms
        )

    async def note_failed_start(self, uid: str, error: str, now_ms: int) -> None:
        """Why an event started nothing."""
        await self._write(_FAIL, of_uid=uid, error=error, now_ms=now_ms)


def _record(row: Row) -> EventRuleRecord:
    return EventRuleRecord(
        rule=EventRule.FromString(row["definition"]),
        paused=bool(row["paused"]),
        **{name: row[name] for name in EventRuleRecord.__slots__ if name not in ("rule", "paused")},
    )
