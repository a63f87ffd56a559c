"""Sinks: where events are delivered to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import BigInteger, bindparam, delete, select
from sqlalchemy.dialects.postgresql import insert

from romancy_service.store.rows import Request, Row
from romancy_service.store.schedules import ANSWER, answer_values
from romancy_service.store.sql import Statements
from romancy_service.store.tables import TEXT, sinks


@dataclass(frozen=True, slots=True)
class SinkRow:
    """A sink."""

    name: str
    url: str
    secret: str
    old_secret: str
    old_until_ms: int
    update_ms: int


_NAMESPACE: Final = bindparam("of_namespace", type_=TEXT)
_SINK: Final = bindparam("of_sink", type_=TEXT)
_SINKS: Final = select(sinks).where(sinks.c.namespace == _NAMESPACE).order_by(sinks.c.sink)
_GET_SINK: Final = select(sinks).where(sinks.c.namespace == _NAMESPACE, sinks.c.sink == _SINK)
_DELETE_SINK: Final = (
    delete(sinks).where(sinks.c.namespace == _NAMESPACE, sinks.c.sink == _SINK).returning(sinks.c.sink)
)
_NEW_SINK: Final = {
    "url": bindparam("new_url", type_=TEXT),
    "secret": bindparam("new_secret", type_=TEXT),
    "old_secret": bindparam("new_old_secret", type_=TEXT),
    "old_until_ms": bindparam("new_old_until_ms", type_=BigInteger),
    "update_ms": bindparam("new_update_ms", type_=BigInteger),
}
_SET_SINK: Final = (
    insert(sinks)
    .values(namespace=_NAMESPACE, sink=_SINK, **_NEW_SINK)
    .on_conflict_do_update(index_elements=[sinks.c.namespace, sinks.c.sink], set_=_NEW_SINK)
    .returning(sinks.c.sink)
)


class Sinks(Statements):
    """Keeps how sinks are set. A change carries the request that it answers: both are stored, or neither is.

    Raises BatchRejected with `conflict` when the request's id is taken.
    """

    async def set_sink(self, sink: SinkRow, request: Request) -> None:
        """Keep it so."""
        await self._write_together(
            _SET_SINK,
            ANSWER,
            of_namespace=request.namespace,
            of_sink=sink.name,
            new_url=sink.url,
            new_secret=sink.secret,
            new_old_secret=sink.old_secret,
            new_old_until_ms=sink.old_until_ms,
            new_update_ms=sink.update_ms,
            **answer_values(request, sink.update_ms),
        )

    async def get_sink(self, namespace: str, name: str) -> SinkRow | None:
        """As it is stored."""
        rows = await self._read(_GET_SINK, of_namespace=namespace, of_sink=name)
        return _sink(rows[0]) if rows else None

    async def list_sinks(self, namespace: str) -> list[SinkRow]:
        """All that were set, by name."""
        return [_sink(row) for row in await self._read(_SINKS, of_namespace=namespace)]

    async def delete_sink(self, name: str, request: Request, now_ms: int) -> bool:
        """Forget it. False: there is none."""
        where = {"of_namespace": request.namespace, "of_sink": name}
        return bool(await self._write_together(_DELETE_SINK, ANSWER, **where, **answer_values(request, now_ms)))


def _sink(row: Row) -> SinkRow:
    return SinkRow(row["sink"], row["url"], row["secret"], row["old_secret"], row["old_until_ms"], row["update_ms"])
