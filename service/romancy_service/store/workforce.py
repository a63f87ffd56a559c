"""Workforce: who has a run's tasks, and who could take those that wait."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Integer, bindparam, func, select, text

from romancy.v1.worker_service_pb2 import Hello

from romancy_service.core.limits import COUNTED, Limits
from romancy_service.core.task import TaskKind
from romancy_service.core.why.facts import Holder, Serving, TypeKey
from romancy_service.store.offers import Offers, served_types
from romancy_service.store.rows import Row
from romancy_service.store.sql import among
from romancy_service.store.tables import OWNED, TEXT, sessions, tasks

_HOLDERS: Final = select(sessions.c.session_id, sessions.c.worker_id, sessions.c.connected, sessions.c.lease_ms).where(
    among(sessions.c.session_id, "session_ids")
)
_SERVING: Final = (
    select(sessions.c.session_id, sessions.c.draining, sessions.c.hello)
    .where(sessions.c.namespace == bindparam("namespace", type_=TEXT), sessions.c.connected)
    .limit(bindparam("limit", type_=Integer))
)
_SILENT: Final = (
    select(sessions.c.worker_id, sessions.c.lease_ms, sessions.c.hello)
    .where(sessions.c.namespace == bindparam("namespace", type_=TEXT), ~sessions.c.connected)
    .order_by(sessions.c.lease_ms.desc())
    .limit(bindparam("limit", type_=Integer))
)
_SOME_IN_HAND: Final = (
    select(tasks.c.owner, tasks.c.kind)
    .where(text(OWNED), among(tasks.c.owner, "session_ids"))
    .limit(COUNTED)
    .subquery()
)
_IN_HAND: Final = select(_SOME_IN_HAND.c.owner, _SOME_IN_HAND.c.kind, func.count().label("count")).group_by(
    _SOME_IN_HAND.c.owner, _SOME_IN_HAND.c.kind
)
_ABLE: Final = 100
"""So many workers that have a type are asked for how many tasks they have."""


@dataclass(frozen=True, slots=True)
class Workforce:
    """Who could take what waits."""

    serving: Mapping[TypeKey, Serving]
    last_served: Mapping[TypeKey, tuple[str, int]]
    """For what nobody takes: which worker took it last, and when."""
    all_workers: bool
    """Whether all connected workers were looked at."""


class Workers(Offers):
    """Finds workers by what they have and take."""

    async def holders(self, session_ids: Collection[str]) -> dict[str, Holder]:
        """By session id: those of these sessions that there are."""
        if not session_ids:
            return {}
        rows = await self._show(_HOLDERS, session_ids=sorted(session_ids))
        return {row["session_id"]: Holder(row["worker_id"], bool(row["connected"]), row["lease_ms"]) for row in rows}

    async def workforce(self, namespace: str, wanted: set[TypeKey], limits: Limits) -> Workforce:
        """Who takes these types, of as many connected workers as the limits allow to be looked at."""
        if not wanted:
            return Workforce({}, {}, all_workers=True)
        rows = await self._show(_SERVING, namespace=namespace, limit=limits.shown_sessions)
        able: dict[TypeKey, list[Row]] = {}
        for row in rows:
            for key in wanted.intersection(served_types(row["hello"])):
                able.setdefault(key, []).append(row)
        taking = {row["session_id"] for found in able.values() for row in found if not row["draining"]}
        in_hand = await self._in_hand(taking)
        serving = {key: _serving(key, found, in_hand) for key, found in able.items()}
        unserved = {key for key in wanted if key not in serving}
        last = await self._last_served(namespace, unserved, limits) if unserved else {}
        return Workforce(serving, last, all_workers=len(rows) < limits.shown_sessions)

    async def _last_served(
        self, namespace: str, wanted: set[TypeKey], limits: Limits
    ) -> dict[TypeKey, tuple[str, int]]:
        """Who took these types last: also one that was lost just now, and may come back."""
        found: dict[TypeKey, tuple[str, int]] = {}
        for row in await self._show(_SILENT, namespace=namespace, limit=limits.shown_sessions):
            for key in wanted.intersection(served_types(row["hello"])):
                found.setdefault(key, (row["worker_id"], row["lease_ms"]))
        return await self.last_offers(namespace, wanted, limits.shown_offers) | found

    async def _in_hand(self, session_ids: Collection[str]) -> dict[tuple[str, int], int] | None:
        """By session and kind: how many tasks they have; None when that is too much to be counted."""
        if len(session_ids) > _ABLE:
            return None
        rows = await self._show(_IN_HAND, session_ids=sorted(session_ids)) if session_ids else []
        counts = {(row["owner"], row["kind"]): row["count"] for row in rows}
        return counts if sum(counts.values()) < COUNTED else None


def _serving(key: TypeKey, able: list[Row], in_hand: Mapping[tuple[str, int], int] | None) -> Serving:
    kind = key[1]
    taking = [row for row in able if not row["draining"]]
    busy = None if in_hand is None else sum(in_hand.get((row["session_id"], kind), 0) for row in taking)
    return Serving(
        workers=len(taking),
        leaving=len(able) - len(taking),
        slots=sum(_slots(row["hello"], kind) for row in taking),
        busy=busy,
    )


def _slots(hello: Any, kind: TaskKind) -> int:
    said = Hello.FromString(hello)
    return said.workflow_slots if kind is TaskKind.WORKFLOW else said.activity_slots
