"""Offers: what workers took that are gone, so that whoever waits for one can be told when there was one last."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Final

from sqlalchemy import BigInteger, Integer, LargeBinary, bindparam, delete, select
from sqlalchemy.dialects.postgresql import insert

from romancy.v1.worker_service_pb2 import Hello

from romancy_service.core.task import TaskKind
from romancy_service.store.sql import Statements
from romancy_service.store.tables import TEXT, offers

_INSERT: Final = insert(offers).values(
    namespace=bindparam("of_namespace", type_=TEXT),
    digest=bindparam("of_digest", type_=TEXT),
    hello=bindparam("offered", type_=LargeBinary),
    worker_id=bindparam("worker", type_=TEXT),
    seen_ms=bindparam("at_ms", type_=BigInteger),
)
_NOTE: Final = _INSERT.on_conflict_do_update(
    index_elements=[offers.c.namespace, offers.c.digest],
    set_={"worker_id": _INSERT.excluded.worker_id, "seen_ms": _INSERT.excluded.seen_ms},
    where=_INSERT.excluded.seen_ms > offers.c.seen_ms,
)
_FORGET: Final = delete(offers).where(offers.c.seen_ms < bindparam("before_ms", type_=BigInteger))
_NEWEST: Final = (
    select(offers.c.hello, offers.c.worker_id, offers.c.seen_ms)
    .where(offers.c.namespace == bindparam("of_namespace", type_=TEXT))
    .order_by(offers.c.seen_ms.desc())
    .limit(bindparam("limit", type_=Integer))
)


class Offers(Statements):
    """Keeps one row for all workers that took the same queues and types."""

    async def note_offer(self, namespace: str, worker_id: str, hello: bytes, seen_ms: int) -> None:
        """A worker that said this was there until then."""
        said = Hello.FromString(hello)
        offered = Hello(
            task_queues=sorted(said.task_queues),
            workflow_types=sorted(said.workflow_types),
            activity_types=sorted(said.activity_types),
        ).SerializeToString()
        if offered:
            digest = sha256(offered).hexdigest()
            await self._write(
                _NOTE, of_namespace=namespace, of_digest=digest, offered=offered, worker=worker_id, at_ms=seen_ms
            )

    async def forget_offers(self, before_ms: int) -> None:
        """What was seen last before then is not known any more."""
        await self._write(_FORGET, before_ms=before_ms)

    async def last_offers(
        self, namespace: str, wanted: set[tuple[str, TaskKind, str]], limit: int
    ) -> dict[tuple[str, TaskKind, str], tuple[str, int]]:
        """By (queue, kind, type): the worker that took it last, and when; of the `limit` newest offers."""
        found: dict[tuple[str, TaskKind, str], tuple[str, int]] = {}
        for row in await self._show(_NEWEST, of_namespace=namespace, limit=limit):
            for key in wanted.intersection(served_types(row["hello"])):
                found.setdefault(key, (row["worker_id"], row["seen_ms"]))
        return found


def served_types(hello: bytes) -> Iterator[tuple[str, TaskKind, str]]:
    """(queue, kind, type) of all that a worker said it takes."""
    said = Hello.FromString(hello)
    for queue in said.task_queues:
        for workflow_type in said.workflow_types:
            yield queue, TaskKind.WORKFLOW, workflow_type
        for activity_type in said.activity_types:
            yield queue, TaskKind.ACTIVITY, activity_type
