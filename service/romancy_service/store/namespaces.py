"""Namespaces: which there are, and how long each keeps its runs. They need not be made before they are used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import BigInteger, Text, bindparam, select, text

from romancy_service.store.sql import Statements
from romancy_service.store.tables import namespaces


@dataclass(frozen=True, slots=True)
class Namespace:
    """One that something was said of, or that is used."""

    name: str
    retention_ms: int
    """0: the service's own."""
    created_ms: int
    """0: nothing was said of it."""


_SAID: Final = (
    select(namespaces)
    .where(namespaces.c.namespace > bindparam("after"))
    .order_by(namespaces.c.namespace)
    .limit(bindparam("limit"))
)
_ONE: Final = select(namespaces).where(namespaces.c.namespace == bindparam("name"))


def _used(table: str) -> str:
    """SQL: the namespaces in a table, by one look into an index for each."""
    return f"""
with recursive used(namespace) as (
    select min(namespace) from {table} where namespace > :after
    union all
    select (select min({table}.namespace) from {table} where {table}.namespace > used.namespace)
    from used where used.namespace is not null
)
select namespace from used where namespace is not null limit :limit
"""


_USED: Final = [
    text(_used(table)).bindparams(bindparam("after", type_=Text), bindparam("limit", type_=BigInteger))
    for table in ("runs", "requests")
]


class Namespaces(Statements):
    """Reads namespaces."""

    async def list_namespaces(self, after: str, limit: int) -> list[Namespace]:
        """Those after a name: those that were set, and those that have runs or remembered requests, by name."""
        said = {row["namespace"]: row for row in await self._read(_SAID, after=after, limit=limit)}
        names = set(said)
        for used in _USED:
            names |= {row["namespace"] for row in await self._read(used, after=after, limit=limit)}
        return [
            Namespace(name, said[name]["retention_ms"], said[name]["created_ms"])
            if name in said
            else Namespace(name, 0, 0)
            for name in sorted(names, key=str.encode)[:limit]
        ]

    async def get_namespace(self, name: str) -> Namespace:
        """One namespace, used or not."""
        for row in await self._read(_ONE, name=name):
            return Namespace(name, row["retention_ms"], row["created_ms"])
        return Namespace(name, 0, 0)
