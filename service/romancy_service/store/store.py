"""Store: what the service keeps, and the promises that come with keeping it. One subclass for each database.

All times are passed in, in epoch milliseconds; only `now_ms` reads a clock. Every method raises StoreUnavailable when
the database does not answer: what it was to write may then be written or not.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import BigInteger, Integer, Text, bindparam, exists, null, or_, select, text, tuple_

from romancy_service.config import InvalidConfig
from romancy_service.core.channel import topic_of_channel
from romancy_service.core.run import Run
from romancy_service.core.task import Fence, Task, TaskKind, TypeKey
from romancy_service.store.agenda import Agenda
from romancy_service.store.channels import Channels
from romancy_service.store.dead_letters import DeadLetters
from romancy_service.store.event_rules import EventRules
from romancy_service.store.events import Events
from romancy_service.store.lookups import Lookups, RunSummary, RunView
from romancy_service.store.namespaces import Namespace, Namespaces
from romancy_service.store.outbox import Outbox
from romancy_service.store.presence import Presence, SessionInfo, SessionRow
from romancy_service.store.questions import Questions
from romancy_service.store.rows import Request, Row, run_of, task_of
from romancy_service.store.schedules import Schedules
from romancy_service.store.sinks import Sinks
from romancy_service.store.sql import among
from romancy_service.store.tables import (
    ERRAND,
    LOOKED_AT,
    OWNED,
    RELAYED,
    TEXT,
    UNDELIVERED,
    keys,
    requests,
    runs,
    sessions,
    tasks,
)

__all__ = [
    "Agenda",
    "Beat",
    "Change",
    "Claimed",
    "CommitResult",
    "DueTask",
    "Lease",
    "LeasedRow",
    "Namespace",
    "Request",
    "RunSummary",
    "RunView",
    "SessionInfo",
    "SessionRow",
    "Store",
    "StoreRefused",
    "Want",
    "claimed_of",
    "open_store",
]


@dataclass(frozen=True, slots=True)
class Lease:
    """Which session has a task, under which of its epochs."""

    session_id: str
    epoch: int


@dataclass(slots=True)
class Change:
    """One run's net change, and what it rests on."""

    run: Run
    """Already decided; its `version` is that of the stored row it builds on, 0 for a new run."""
    fences: list[Fence] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    leases: dict[str, Lease] = field(default_factory=dict)
    """By task id: those of its rewritten tasks that go in already leased."""
    after: str = ""
    """The run that must close before this one opens; the two are written together, or not at all."""


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What became of a batch."""

    written: set[str]
    """Ids of the runs whose changes are stored, or were found to rest on what is true."""
    unleased: set[tuple[str, str]]
    """(run id, task id) of tasks that went in without their lease: the session is gone, or has another epoch."""


@dataclass(frozen=True, slots=True)
class Want:
    """So many free slots of a session for tasks of one kind and type in one queue."""

    namespace: str
    queue: str
    kind: TaskKind
    type: str
    slots: int
    session_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Claimed:
    """A task that a session has now, with what is needed to send it."""

    run_id: str
    session_id: str
    task: Task
    namespace: str
    workflow_id: str
    workflow_type: str
    version: int
    """Of the run's row, so that a cached run knows its age."""
    heartbeat_details: bytes | None
    bytes: int
    """Of its command and these details: its WEIGHT."""


@dataclass(frozen=True, slots=True)
class LeasedRow:
    """A task as a session has it."""

    run_id: str
    task_id: str
    attempt: int
    owner: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life of an attempt; `details` None: as before."""

    run_id: str
    task_id: str
    attempt: int
    owner: str
    epoch: int
    details: bytes | None


@dataclass(frozen=True, slots=True)
class DueTask:
    """A task that the service must look at, without its values."""

    run_id: str
    task: Task
    relay_ms: int


class StoreRefused(Exception):
    """The database cannot be used by this process, whatever it tries again: its operator must act."""


_REQUESTS: Final = select(requests).where(
    requests.c.namespace == bindparam("namespace"), among(requests.c.request_id, "request_ids")
)
_OURS: Final = tasks.c.part_hash % bindparam("parts", type_=Integer) == bindparam("part", type_=Integer)
# What the core decides from comes with the run; here values may be megabytes, and are not needed.
_LARGE: Final = ("command", "last_failure", "heartbeat_details")
_WITHOUT_VALUES: Final = [null().label(column.name) if column.name in _LARGE else column for column in tasks.c]
_IS_DUE: Final = (
    text(RELAYED),
    tasks.c.relay_ms <= bindparam("now_ms"),
    or_(_OURS, tasks.c.relay_ms <= bindparam("overdue_ms")),
)
DUE: Final = (
    select(*_WITHOUT_VALUES)
    .where(*_IS_DUE, tasks.c.kind < int(TaskKind.CHILD))
    .order_by(tasks.c.relay_ms)
    .limit(bindparam("limit", type_=Integer))
)
ERRANDS: Final = text(f"""
with recursive owing(step, run_id) as (
    select 1, (select run_id from tasks where {ERRAND} and run_id > :after order by run_id limit 1)
    union all
    select step + 1, (select run_id from tasks where {ERRAND} and run_id > owing.run_id order by run_id limit 1)
    from owing where step < :limit and owing.run_id is not null
)
select run_id, step = :limit as is_last, (
    select task_id from tasks where {ERRAND} and run_id = owing.run_id and relay_ms <= :now_ms
    and (part_hash % :parts = :part or relay_ms <= :overdue_ms) limit 1) is not null as is_due
from owing where run_id is not null
""").bindparams(
    bindparam("after", type_=Text),
    *(bindparam(name, type_=BigInteger) for name in ("now_ms", "overdue_ms")),
    *(bindparam(name, type_=Integer) for name in ("limit", "part", "parts")),
)
"""A page of the runs that have errands, one look for each: so none with many of them hides the others."""
OVERDUE: Final = text(f"""
select (select relay_ms from tasks where {RELAYED} and relay_ms < :before_ms and kind >= {int(TaskKind.CHILD)}
    order by relay_ms limit 1) as since_ms
union all select (select look_ms from schedules where {LOOKED_AT} and look_ms < :before_ms order by look_ms limit 1)
union all select (select accepted_ms from events where forget_ms < :now_ms and {UNDELIVERED}
    and substr(type, 1, 1) <> :channels order by forget_ms limit 1)
""").bindparams(
    *(bindparam(name, type_=BigInteger) for name in ("now_ms", "before_ms")), bindparam("channels", type_=Text)
)
"""Each is the first of an index; when nothing is overdue there is none to be passed over."""
ERRANDS_OF: Final = (
    select(tasks)
    .where(
        text(ERRAND),
        tasks.c.run_id == bindparam("run_id", type_=TEXT),
        tuple_(tasks.c.scheduled_ms, tasks.c.task_id)
        > tuple_(bindparam("after_number", type_=BigInteger), bindparam("after_task", type_=TEXT)),
    )
    .order_by(tasks.c.scheduled_ms, tasks.c.task_id)
    .limit(bindparam("limit", type_=Integer))
)
_HEAD: Final = select(runs).where(runs.c.run_id == bindparam("run_id", type_=TEXT))
_DUE_WITHIN: Final = (
    select(tasks.c.run_id, tasks.c.task_id, tasks.c.relay_ms)
    .where(
        text(RELAYED),
        tasks.c.relay_ms > bindparam("now_ms"),
        tasks.c.relay_ms <= bindparam("until_ms"),
        tasks.c.kind >= int(TaskKind.TIMER),
        tasks.c.kind < int(TaskKind.CHILD),
        _OURS,
    )
    .order_by(tasks.c.relay_ms)
    .limit(bindparam("limit", type_=Integer))
)
_TASK: Final = select(*_WITHOUT_VALUES).where(
    tasks.c.run_id == bindparam("run_id"), tasks.c.task_id == bindparam("task_id")
)
_LOST: Final = (
    select(*_WITHOUT_VALUES)
    .where(
        text(OWNED),
        ~exists().where(sessions.c.session_id == tasks.c.owner, sessions.c.lease_ms > bindparam("now_ms")),
    )
    .limit(bindparam("limit", type_=Integer))
)
_TO_CANCEL: Final = select(*_WITHOUT_VALUES).where(
    text(OWNED), tasks.c.cancel_requested, among(tasks.c.owner, "session_ids")
)
_KEYS: Final = select(keys).order_by(keys.c.created_ms.desc(), keys.c.key_id.desc()).limit(2)


class Store(
    EventRules,
    Events,
    Channels,
    Outbox,
    DeadLetters,
    Sinks,
    Lookups,
    Presence,
    Schedules,
    Namespaces,
    Questions,
):
    """All that is stored."""

    lanes: int
    """So many commits may be under way at once."""

    @abstractmethod
    async def open(self) -> None:
        """Connect, and bring the tables up to date. Raises StoreRefused when the database cannot be used."""

    @abstractmethod
    async def migrate(self) -> None:
        """Bring the tables up to date, and nothing else. `open` does it too."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect."""

    @abstractmethod
    async def now_ms(self) -> int:
        """The database's clock. It never goes back."""

    @abstractmethod
    async def commit(self, changes: Sequence[Change], now_ms: int) -> CommitResult:
        """Store those of the changes that rest on what is true, all at once.

        A change rests on: its run has its version (a new one: no other run of its workflow id is open); each fence
        finds its row so; none of its request ids is stored; the same holds for the change that it comes after. A change
        without events and touched tasks is only checked, and its requests stored. Raises BatchRejected, and stores
        nothing, when the database refuses what is in the batch.
        """

    @abstractmethod
    async def load(self, run_ids: Sequence[str]) -> dict[str, Run]:
        """Runs with their tasks and unseen inputs as they are at one moment, those that are there. Without saga."""

    async def find_requests(self, ids: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Request]:
        """By (namespace, request id): those that were carried out."""
        found = {}
        for namespace in {namespace for namespace, _ in ids}:
            request_ids = [request_id for owner, request_id in ids if owner == namespace]
            for row in await self._read(_REQUESTS, namespace=namespace, request_ids=request_ids):
                request = Request(namespace, row["request_id"], row["run_id"], row["method"], row["reply"])
                found[namespace, request.request_id] = request
        return found

    @abstractmethod
    async def remove_run(self, request: Request, now_ms: int) -> str | None:
        """Delete the request's run if it is closed and has no errands left, and remember the request. Returns its
        workflow id; None: it is not so, or not there, and nothing is remembered. Raises BatchRejected when the request
        id is taken.

        The run is gone at once; `clear_removed` clears away what belongs to it.
        """

    @abstractmethod
    async def remove_expired(self, namespace: str, before_ms: int, now_ms: int, limit: int) -> int:
        """Delete runs that closed before `before_ms` and have no errands left, the oldest first. Returns how many: at
        most `limit`.
        """

    @abstractmethod
    async def forget_requests(self, namespace: str, before_ms: int, limit: int) -> int:
        """Forget requests that are older, but those by which a run took a message that still counts as open. Returns
        how many: at most `limit`.
        """

    async def overdue_since(self, now_ms: int, before_ms: int) -> int:
        """Since when something is to be done again that may have been done: an errand, a start of a schedule, an event
        that should be forgotten by now. `before_ms`: nothing is older than that. The service was away for so long.
        """
        rows = await self._sweep(OVERDUE, now_ms=now_ms, before_ms=before_ms, channels=topic_of_channel(""))
        return min([before_ms, *(int(row["since_ms"]) for row in rows if row["since_ms"] is not None)])

    @abstractmethod
    async def clear_removed(self, before_ms: int) -> int:
        """Clear away a piece of what belonged to runs that were deleted by then. Returns how many rows; 0: all is."""

    @abstractmethod
    async def set_namespace(self, namespace: Namespace, request: Request, now_ms: int) -> None:
        """Keep the namespace so, and remember the request. Raises BatchRejected when the request id is taken."""

    @abstractmethod
    async def claim(self, wants: Sequence[Want], now_ms: int) -> list[Claimed]:
        """Lease due tasks that nobody has to the sessions that want them, small priorities and old ones first.

        At least one, then as long as those before weigh less than CLAIM_BYTES: when all weigh so much, more may wait.
        """

    @abstractmethod
    async def release(self, leases: Sequence[LeasedRow], now_ms: int) -> None:
        """Take tasks away from their sessions: the same attempt is anybody's."""

    @abstractmethod
    async def heartbeat(self, beats: Sequence[Beat], now_ms: int) -> list[bool]:
        """Note signs of life. For each whether the attempt is still that session's."""

    @abstractmethod
    async def hand_over(self, leases: Sequence[LeasedRow], now_ms: int) -> list[bool]:
        """Have attempts completed from elsewhere: their sessions lose them, and their timeouts go on. For each whether
        it was the session's, or was handed over before.
        """

    @abstractmethod
    async def leased_tasks(self, session_id: str, epoch: int) -> list[Claimed]:
        """All tasks of a session, brought to its new epoch. The second half of a hello: what it holds is current."""

    async def due(self, now_ms: int, limit: int, part: int, parts: int) -> list[DueTask]:
        """Tasks that the service must look at by now, the longest due first.

        Those of this replica's part of the runs, and what is overdue by a second: the replica whose it is may be gone.
        """
        rows = await self._read(DUE, now_ms=now_ms, overdue_ms=now_ms - 1_000, limit=limit, part=part, parts=parts)
        return [_due_task(row) for row in rows]

    @abstractmethod
    async def agenda(self, now_ms: int, keys: Sequence[TypeKey]) -> Agenda:
        """What is to be done here, in one look; `keys`: the types of which waiting tasks could be taken here."""

    async def with_errands(self, after: str, now_ms: int, limit: int, part: int, parts: int) -> tuple[list[str], str]:
        """Of the next runs that have something to be done in other runs, at most `limit`, those for which it is due by
        the same rules as `due`. And the run after which to look next.
        """
        overdue_ms = now_ms - 1_000
        rows = await self._read(
            ERRANDS, after=after, now_ms=now_ms, overdue_ms=overdue_ms, limit=limit, part=part, parts=parts
        )
        after = next((row["run_id"] for row in rows if row["is_last"]), "")
        return [row["run_id"] for row in rows if row["is_due"]], after

    async def errands(self, run_id: str, after: tuple[int, str], limit: int) -> list[Task]:
        """What one run has to be done in other runs, in the order in which it asked: what comes after the one of that
        number and task id, at most so many. Its other tasks are not read, however many they are.
        """
        number, task_id = after
        rows = await self._read(ERRANDS_OF, run_id=run_id, after_number=number, after_task=task_id, limit=limit)
        return [task_of(row) for row in rows]

    async def head(self, run_id: str) -> Run | None:
        """The run without its tasks and unseen inputs, if it is there."""
        rows = await self._read(_HEAD, run_id=run_id)
        return run_of(rows[0]) if rows else None

    async def due_within(
        self, now_ms: int, horizon_ms: int, limit: int, part: int, parts: int
    ) -> list[tuple[str, str, int]]:
        """Timers and deadlines of this replica's part that will soon be due: run id, task id, when."""
        until_ms = now_ms + horizon_ms
        rows = await self._read(_DUE_WITHIN, now_ms=now_ms, until_ms=until_ms, limit=limit, part=part, parts=parts)
        return [(row["run_id"], row["task_id"], row["relay_ms"]) for row in rows]

    async def find_task(self, run_id: str, task_id: str) -> Task | None:
        """An open task without its values; None: it is closed, or was never there."""
        rows = await self._read(_TASK, run_id=run_id, task_id=task_id)
        return task_of(rows[0]) if rows else None

    async def lost(self, now_ms: int, limit: int) -> list[DueTask]:
        """Tasks of sessions that are gone, or whose lease is over.

        An older epoch alone is no loss: a hello raises the session's epoch first and brings its tasks to it then.
        """
        return [_due_task(row) for row in await self._read(_LOST, now_ms=now_ms, limit=limit)]

    async def to_cancel(self, session_ids: Sequence[str]) -> list[LeasedRow]:
        """Tasks of these sessions that were asked to stop."""
        rows = await self._read(_TO_CANCEL, session_ids=session_ids)
        return [
            LeasedRow(row["run_id"], row["task_id"], row["attempt"], row["owner"], row["owner_epoch"]) for row in rows
        ]

    async def signing_keys(self) -> list[tuple[str, bytes]]:
        """The keys whose tokens are valid, by id, the newest first: new tokens are signed with that one."""
        return [(row["key_id"], row["secret"]) for row in await self._read(_KEYS)]

    @abstractmethod
    async def notify(self, payload: str) -> None:
        """Tell the other replicas something, at most 7,999 bytes. It may be lost, and is if it is longer."""

    @abstractmethod
    async def listen(self, callback: Callable[[str], None]) -> None:
        """Have `callback` called with what other replicas tell, from now on until closed."""


def claimed_of(row: Row) -> Claimed:
    """The leased task of a row of `tasks` that is joined to its run."""
    return Claimed(
        run_id=row["run_id"],
        session_id=row["owner"],
        task=task_of(row),
        namespace=row["namespace"],
        workflow_id=row["workflow_id"],
        workflow_type=row["workflow_type"],
        version=row["version"],
        heartbeat_details=row["heartbeat_details"],
        bytes=len(row["command"] or b"") + len(row["heartbeat_details"] or b""),
    )


def _due_task(row: Row) -> DueTask:
    return DueTask(row["run_id"], task_of(row), row["relay_ms"])


def open_store(database: str, *, lanes: int = 3) -> Store:
    """The store at a `postgresql://` URL, or in the SQLite file of that name. `open` it before use.

    Raises InvalidConfig when it is neither.
    """
    # Each driver is imported only by who uses it.
    if database.startswith(("postgresql://", "postgres://")):
        from romancy_service.store.postgres import PostgresStore

        return PostgresStore(database, lanes=lanes)
    if "://" in database or database in ("", ":memory:"):
        raise InvalidConfig(
            f"--database {database!r} names no database: give the name of a SQLite file, or a postgresql:// URL"
        )
    from romancy_service.store.sqlite import SqliteStore

    return SqliteStore(database)
