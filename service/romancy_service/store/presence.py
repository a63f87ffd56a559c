"""Presence: who is alive. Workers' sessions with their leases, and the replicas of the service."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import BigInteger, Text, bindparam, cast, delete, exists, func, insert, select, text, tuple_, update

from romancy_service.store.offers import Offers
from romancy_service.store.rows import Row
from romancy_service.store.sql import among
from romancy_service.store.tables import FAILING, OWNED, TEXT, replicas, sessions, tasks

REPLICA_SEEN_MS: Final = 5_000
"""A replica that was not seen for so long does not count: others look at its part of the runs."""
REPLICA_KEPT_MS: Final = 3_600_000
EXPIRED_AT_A_TIME: Final = 500
"""Sessions: what each of them took is looked at, which is some kilobytes."""
RETRIED_AT_ONCE: Final = 1_000
"""Enough to see what new code makes of them; the others follow at their times."""


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A worker's session as it is stored."""

    session_id: str
    namespace: str
    worker_id: str
    replica_id: str
    epoch: int
    lease_ms: int
    """Until then its tasks are kept for it."""
    connected: bool
    draining: bool
    start_ms: int
    hello: bytes


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session, and how many tasks it has."""

    session: SessionRow
    tasks_in_hand: int


_OPEN: Final = insert(sessions).values({name: bindparam(name) for name in SessionRow.__slots__})
_RESUME: Final = (
    update(sessions)
    .where(sessions.c.session_id == bindparam("id"), sessions.c.namespace == bindparam("of_namespace"))
    .values(
        epoch=sessions.c.epoch + 1,
        replica_id=bindparam("replica"),
        hello=bindparam("new_hello"),
        lease_ms=bindparam("until_ms"),
        connected=True,
        draining=False,
    )
    .returning(sessions.c.epoch)
)
# The rows are locked in the order in which commits lock them; an update alone takes them as it finds them.
_HELD: Final = (
    select(sessions.c.session_id)
    .where(
        among(sessions.c.session_id, "session_ids"),
        among(sessions.c.session_id + " " + cast(sessions.c.epoch, Text), "held"),
    )
    .order_by(sessions.c.session_id)
    .with_for_update()
)
_RENEW: Final = (
    update(sessions)
    .where(sessions.c.session_id.in_(_HELD))
    .values(lease_ms=bindparam("until_ms"), connected=True, draining=among(sessions.c.session_id, "draining"))
    .returning(sessions.c.session_id)
)
_DISCONNECT: Final = (
    update(sessions)
    .where(sessions.c.session_id == bindparam("id"), sessions.c.epoch == bindparam("of_epoch"))
    .values(lease_ms=bindparam("until_ms"), connected=False)
)
_TO_CLOSE: Final = select(sessions.c.namespace, sessions.c.worker_id, sessions.c.hello).where(
    sessions.c.session_id == bindparam("id"), sessions.c.epoch == bindparam("of_epoch")
)
_CLOSE: Final = delete(sessions).where(
    sessions.c.session_id == bindparam("id"), sessions.c.epoch == bindparam("of_epoch")
)
_OVER: Final = (
    sessions.c.lease_ms <= bindparam("now_ms", type_=BigInteger),
    ~exists().where(tasks.c.owner == sessions.c.session_id, text(OWNED)),
)
_EXPIRED: Final = (
    select(sessions.c.session_id, sessions.c.namespace, sessions.c.worker_id, sessions.c.hello, sessions.c.lease_ms)
    .where(*_OVER)
    .order_by(sessions.c.lease_ms.desc())
    .limit(EXPIRED_AT_A_TIME)
)
_EXPIRE: Final = (
    delete(sessions).where(among(sessions.c.session_id, "session_ids"), *_OVER).returning(sessions.c.session_id)
)
_LIST: Final = (
    select(
        sessions,
        select(func.count())
        .select_from(tasks)
        .where(tasks.c.owner == sessions.c.session_id, text(OWNED))
        .scalar_subquery()
        .label("tasks_in_hand"),
    )
    .where(sessions.c.namespace == bindparam("namespace"))
    .order_by(sessions.c.worker_id, sessions.c.session_id)
)
_FAILING: Final = (
    select(tasks.c.run_id, tasks.c.task_id)
    .where(
        text(FAILING),
        tasks.c.namespace == bindparam("of_namespace", type_=TEXT),
        among(tasks.c.queue, "queues"),
        among(tasks.c.type, "types"),
        tasks.c.owner == "",
        tasks.c.due_ms > bindparam("now_ms", type_=BigInteger),
    )
    .order_by(tasks.c.due_ms)
    .limit(RETRIED_AT_ONCE)
    .with_for_update(skip_locked=True)
)
_RETRY: Final = (
    update(tasks)
    .where(tuple_(tasks.c.run_id, tasks.c.task_id).in_(_FAILING))
    .values(due_ms=bindparam("now_ms", type_=BigInteger))
)
_LEAVE: Final = delete(replicas).where(replicas.c.replica_id == bindparam("id"))


class Presence(Offers):
    """Keeps sessions and replicas."""

    async def open_session(self, session: SessionRow) -> None:
        """A worker said hello for the first time."""
        await self._write(_OPEN, **{name: getattr(session, name) for name in SessionRow.__slots__})

    async def retry_failing(self, namespace: str, queues: Sequence[str], types: Sequence[str], now_ms: int) -> None:
        """Workflow tasks of these types that code could not carry out are due at once, `RETRIED_AT_ONCE` at most."""
        await self._write(_RETRY, of_namespace=namespace, queues=list(queues), types=list(types), now_ms=now_ms)

    async def resume_session(
        self, session_id: str, namespace: str, replica_id: str, hello: bytes, lease_ms: int
    ) -> int | None:
        """A worker came back: the session's new epoch, which ends whatever is done in the old one; None if it is gone.

        The first half of a hello; `leased_tasks` is the other, so that it finds all that was done in the old epoch.
        """
        rows = await self._write(
            _RESUME, id=session_id, of_namespace=namespace, replica=replica_id, new_hello=hello, until_ms=lease_ms
        )
        return rows[0]["epoch"] if rows else None

    async def renew_sessions(
        self, held: Sequence[tuple[str, int]], lease_ms: int, draining: Sequence[str] = ()
    ) -> list[str]:
        """Prolong the leases of these (session id, epoch), and note which of them take no new tasks.

        Returns those that are gone or of another epoch.
        """
        session_ids = [session_id for session_id, _ in held]
        rows = await self._write_apart(
            _RENEW,
            session_ids=session_ids,
            held=[f"{name} {epoch}" for name, epoch in held],
            until_ms=lease_ms,
            draining=list(draining),
        )
        renewed = {row["session_id"] for row in rows}
        return [session_id for session_id in session_ids if session_id not in renewed]

    async def disconnect_session(self, session_id: str, epoch: int, lease_ms: int) -> None:
        """A stream ended without goodbye: the worker may come back until then."""
        await self._write(_DISCONNECT, id=session_id, of_epoch=epoch, until_ms=lease_ms)

    async def close_session(self, session_id: str, epoch: int, now_ms: int) -> None:
        """A worker said goodbye: whatever it still has is lost. What it took is remembered."""
        for row in await self._read(_TO_CLOSE, id=session_id, of_epoch=epoch):
            await self.note_offer(row["namespace"], row["worker_id"], row["hello"], now_ms)
        await self._write(_CLOSE, id=session_id, of_epoch=epoch)

    async def expire_sessions(self, now_ms: int) -> int:
        """Forget sessions whose lease is over and that have no tasks any more, but not what they took.

        Returns how many, `EXPIRED_AT_A_TIME` at most. What they took is written first: after a crash between the two
        they are found again.
        """
        expired = await self._read(_EXPIRED, now_ms=now_ms)
        newest = {(row["namespace"], row["hello"]): row for row in reversed(expired)}
        for row in newest.values():
            await self.note_offer(row["namespace"], row["worker_id"], row["hello"], row["lease_ms"])
        session_ids = [row["session_id"] for row in expired]
        return len(await self._write(_EXPIRE, session_ids=session_ids, now_ms=now_ms)) if session_ids else 0

    async def list_sessions(self, namespace: str) -> list[SessionInfo]:
        """The namespace's sessions, by worker id."""
        rows = await self._search(_LIST, namespace=namespace)
        return [SessionInfo(_session(row), row["tasks_in_hand"]) for row in rows]

    @abstractmethod
    async def beat(self, replica_id: str, now_ms: int) -> list[str]:
        """A replica is alive. Returns the ids of all that are, sorted."""

    async def leave(self, replica_id: str) -> None:
        """A replica stops."""
        await self._write(_LEAVE, id=replica_id)


def _session(row: Row) -> SessionRow:
    return SessionRow(
        session_id=row["session_id"],
        namespace=row["namespace"],
        worker_id=row["worker_id"],
        replica_id=row["replica_id"],
        epoch=row["epoch"],
        lease_ms=row["lease_ms"],
        connected=bool(row["connected"]),
        draining=bool(row["draining"]),
        start_ms=row["start_ms"],
        hello=row["hello"],
    )
