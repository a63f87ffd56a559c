"""The store on Postgres: any number of replicas share one database.

Connections by what their statements need, and by whom nobody may be held up: the lanes and whatever else finds rows by
key; claims, which walk along an index; the service's own lookups, whose plans depend on what is looked for; one that
only renews leases, so that no load can make sessions look lost; one that deletes; one that listens; and, cut off after
a while, those of clients: what they find by key, and what they search for.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, TypeAlias, TypeVar

import asyncpg
import structlog
from asyncpg.pool import PoolConnectionProxy
from sqlalchemy import Connection, Select, text
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.sql.expression import Executable

from romancy_service import faults
from romancy_service.core.run import Run
from romancy_service.core.task import TypeKey
from romancy_service.errors import BatchRejected, QueryTooSlow, StoreUnavailable
from romancy_service.store.agenda import agenda_of
from romancy_service.store.batch import batch_of
from romancy_service.store.events import NewEvent
from romancy_service.store.migrate import upgrade
from romancy_service.store.postgres_commit import BY_KEY, commit_statement
from romancy_service.store.postgres_events import ADD_EVENTS, NEW_EVENTS
from romancy_service.store.postgres_removal import (
    CLEAR_HISTORY,
    FORGET_REQUESTS,
    REMOVALS,
    REMOVE,
    REMOVE_EXPIRED,
    SET_NAMESPACE,
    clear,
    forget,
)
from romancy_service.store.postgres_tasks import (
    AGENDA,
    BEAT,
    CLAIM,
    HAND_OVER,
    HEARTBEAT,
    KEYS,
    LEASED,
    LEASES,
    LOAD,
    RELEASE,
    WANTS,
)
from romancy_service.store.presence import REPLICA_KEPT_MS, REPLICA_SEEN_MS
from romancy_service.store.removal import BELONGINGS, PIECE_BYTES, PIECE_ROWS, PIECE_RUNS
from romancy_service.store.rows import Row, loaded_run
from romancy_service.store.sql import CLIENT_READ_S, compiled
from romancy_service.store.store import (
    Agenda,
    Beat,
    Change,
    Claimed,
    CommitResult,
    LeasedRow,
    Namespace,
    Request,
    Store,
    StoreRefused,
    Want,
    claimed_of,
)

_log = structlog.get_logger("romancy.store")

T = TypeVar("T")
_Borrowed: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"

OLDEST_VERSION: Final = 14
ANSWER_S: Final = 30.0
"""A statement that takes longer counts as lost with its connection."""
CONNECT_S: Final = 5.0
CLASHES: Final = 5
"""So often is a statement repeated that lost a deadlock or ran into a lock."""
BY_KEY_BESIDES_LANES: Final = 3
"""Connections for loads, heartbeats and releases."""
CLAIMS: Final = 2
LOOKUPS: Final = 3
SHOWS: Final = 3
SEARCHES: Final = 2
NOTIFY_BYTES: Final = 7_999
"""Postgres takes no more."""
PING_S: Final = 30.0
MIGRATION_LOCK: Final = 0x726F6D616E6379
_CHANNEL: Final = "romancy"

_SETTINGS: Final = {
    "application_name": "romancy",
    "default_transaction_isolation": "read committed",
    "jit": "off",
    "timezone": "UTC",
    # A replica that is frozen must not hold the others: neither in a transaction nor in a statement.
    "idle_in_transaction_session_timeout": "2s",
    "lock_timeout": "5s",
    "statement_timeout": "25s",
}
INDEXED: Final = {"enable_seqscan": "off"}
"""Settings of connections whose statements all have an index: also when a plan was made for a table that was empty."""
WALKING: Final = {"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off"}
DIALECT: Final = PGDialect_asyncpg()  # type: ignore[no-untyped-call]
_NOW: Final = "select (extract(epoch from clock_timestamp()) * 1000)::bigint as now_ms"
_NOTIFY: Final = f"select pg_notify('{_CHANNEL}', $1::text)"

_CLASHES: Final = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError, asyncpg.LockNotAvailableError)
_BAD_DATA: Final = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.ProgramLimitExceededError)
_REFUSES: Final = (
    asyncpg.ClientConfigurationError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.InvalidSchemaNameError,
    asyncpg.UndefinedTableError,
)
"""The database is there, but will not have us. At the start somebody chose wrongly; later somebody changes passwords,
rights or the database itself, and is likely to finish, so it counts as away until then."""
_BROKEN: Final = (asyncpg.SyntaxOrAccessError,)
"""Statements that the database does not understand: other tables than these, or a mistake of ours. Trying again is no
use; the process ends, and the next one begins by bringing the tables up to date."""
_UNREACHABLE: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


class _Connection(asyncpg.Connection):
    """A connection of a pool. Its state is never changed, so nothing has to be reset between two uses."""

    def get_reset_query(self) -> str:
        return ""


class PostgresStore(Store):
    """See Store."""

    def __init__(self, url: str, *, lanes: int) -> None:
        self._url = url
        self.lanes = lanes
        self._listener: asyncio.Task[None] | None = None
        self._pools: list[asyncpg.Pool[asyncpg.Record]] = []
        self._idle_lanes: list[_Borrowed] = []
        """Connections that commits keep: to borrow one and give it back is a tenth of what a lone commit costs."""

    # Connections --------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        await self.migrate()
        with _unavailable():
            self._by_key = await self._pool(self.lanes, self.lanes + BY_KEY_BESIDES_LANES, BY_KEY)
            self._claims = await self._pool(1, CLAIMS, WALKING)
            self._lookups = await self._pool(1, LOOKUPS, INDEXED)
            for_clients = {"statement_timeout": f"{CLIENT_READ_S:g}s"}
            self._shows = await self._pool(1, SHOWS, for_clients)
            self._searches = await self._pool(1, SEARCHES, for_clients)
            self._apart = await self._pool(1, 1, BY_KEY)
            self._removing = await self._pool(1, 1, WALKING)

    async def migrate(self) -> None:
        try:
            with _unavailable():
                connection = await self._connect()
        except StoreUnavailable as error:
            if isinstance(error.__cause__, _REFUSES):
                raise StoreRefused(f"the database cannot be used: {error.__cause__}") from error
            raise

        async def connected() -> asyncpg.Connection[asyncpg.Record]:
            return connection

        engine = create_async_engine("postgresql+asyncpg://", async_creator=connected, poolclass=NullPool)
        try:
            _check_version(connection)
            async with engine.begin() as transaction:
                await transaction.run_sync(_upgrade)
        except DBAPIError as error:
            raise StoreUnavailable(f"the tables could not be brought up to date: {error.orig}") from error
        finally:
            await engine.dispose()
            connection.terminate()

    async def close(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
        await self._leave_lanes()
        for pool in self._pools:
            try:
                async with asyncio.timeout(CONNECT_S):
                    await pool.close()
            except (TimeoutError, *_UNREACHABLE):
                pool.terminate()

    async def _connect(self) -> asyncpg.Connection[asyncpg.Record]:
        # Between the statements of a migration Alembic works, which takes seconds where many start on one machine.
        settings = {
            **_SETTINGS,
            "statement_timeout": "0",
            "lock_timeout": "60s",
            "idle_in_transaction_session_timeout": "20s",
        }
        return await asyncpg.connect(self._url, timeout=CONNECT_S, server_settings=settings)

    async def _pool(self, fewest: int, most: int, settings: dict[str, str]) -> asyncpg.Pool[asyncpg.Record]:
        pool: asyncpg.Pool[asyncpg.Record] = await asyncpg.create_pool(
            self._url,
            min_size=fewest,
            max_size=most,
            max_inactive_connection_lifetime=0,
            # Statements stay prepared: there are few, and the long ones cost more to set up than to run.
            max_cached_statement_lifetime=0,
            connection_class=_Connection,
            init=_make_durable,
            timeout=CONNECT_S,
            command_timeout=ANSWER_S,
            server_settings={**_SETTINGS, **settings},
        )
        self._pools.append(pool)
        return pool

    async def _fetch(self, pool: asyncpg.Pool[asyncpg.Record], sql: str, *values: Any) -> list[asyncpg.Record]:
        """Run a statement that is a transaction of its own, again if it lost against another one."""
        return await self._transact(pool, lambda connection: connection.fetch(sql, *values))

    async def _fetch_on_lane(self, sql: str, *values: Any) -> list[asyncpg.Record]:
        """As `_fetch`, on a connection that is kept for the next commit."""
        for _ in range(CLASHES):
            with _unavailable():
                lane = await self._lane()
                try:
                    rows = await lane.fetch(sql, *values)
                except _CLASHES as error:
                    await self._by_key.release(lane)
                    await _after_clash(error)
                    continue
                except BaseException as error:
                    await _give_back(self._by_key, lane, error)
                    raise
                if len(self._idle_lanes) < self.lanes:
                    self._idle_lanes.append(lane)
                else:
                    await self._by_key.release(lane)
                return rows
        raise _overloaded()

    async def _lane(self) -> _Borrowed:
        while self._idle_lanes:
            lane = self._idle_lanes.pop()
            if _is_open(lane):
                return lane
            await self._by_key.release(lane)
        return await _borrow(self._by_key)

    async def _leave_lanes(self) -> None:
        while self._idle_lanes:
            await self._by_key.release(self._idle_lanes.pop())

    async def _transact(self, pool: asyncpg.Pool[asyncpg.Record], work: Callable[[_Borrowed], Awaitable[T]]) -> T:
        """Do `work`, which is one transaction, on a connection of the pool; again if it lost against another one."""
        for _ in range(CLASHES):
            try:
                with _unavailable():
                    async with _connection(pool) as connection:
                        return await work(connection)
            except _CLASHES as error:
                await _after_clash(error)
        raise _overloaded()

    async def _fetch_for_client(
        self, pool: asyncpg.Pool[asyncpg.Record], sql: str, *values: Any
    ) -> list[asyncpg.Record]:
        try:
            return await self._fetch(pool, sql, *values)
        except StoreUnavailable as error:
            if isinstance(error.__cause__, asyncpg.QueryCanceledError):
                raise QueryTooSlow(CLIENT_READ_S) from error
            raise

    async def _read(self, statement: Executable, **values: Any) -> Sequence[Row]:
        sql, arguments = compiled(statement, DIALECT, values)
        return await self._fetch(self._lookups, sql, *arguments)

    async def _show(self, statement: Executable, **values: Any) -> Sequence[Row]:
        sql, arguments = compiled(statement, DIALECT, values)
        return await self._fetch_for_client(self._shows, sql, *arguments)

    async def _search(self, statement: Executable, **values: Any) -> Sequence[Row]:
        sql, arguments = compiled(statement, DIALECT, values)
        return await self._fetch_for_client(self._searches, sql, *arguments)

    async def _write(self, statement: Executable, **values: Any) -> Sequence[Row]:
        return await self._read(statement, **values)

    async def _write_apart(self, statement: Executable, **values: Any) -> Sequence[Row]:
        sql, arguments = compiled(statement, DIALECT, values)
        return await self._fetch(self._apart, sql, *arguments)

    async def _sweep(self, statement: Executable, **values: Any) -> Sequence[Row]:
        sql, arguments = compiled(statement, DIALECT, values)
        return await self._fetch(self._removing, sql, *arguments)

    async def _write_together(self, first: Executable, *others: Executable, **values: Any) -> Sequence[Row]:
        async def write(connection: _Borrowed) -> Sequence[Row]:
            async with connection.transaction():
                sql, arguments = compiled(first, DIALECT, values)
                rows = await connection.fetch(sql, *arguments)
                found = [row[0] for row in rows]
                for other in others if rows else ():
                    sql, arguments = compiled(other, DIALECT, {**values, "found": found})
                    await connection.fetch(sql, *arguments)
                return rows

        try:
            return await self._transact(self._lookups, write)
        except _BAD_DATA as error:
            raise _rejected(error) from error

    # Runs ---------------------------------------------------------------------------------------------------------

    async def commit(self, changes: Sequence[Change], now_ms: int) -> CommitResult:
        faults.point("commit.before")
        try:
            statement, values = commit_statement(batch_of(changes, now_ms))
            row = (await self._fetch_on_lane(statement, *values))[0]
        except (*_BAD_DATA, ValueError, TypeError) as error:
            raise _rejected(error) from error
        faults.point("commit.after")
        if faults.ambiguous("commit"):
            await self._leave_lanes()
            await self._by_key.expire_connections()
            raise StoreUnavailable("the connection was lost after a commit was sent, because a test asked for it")
        return CommitResult(set(row["written"]), set(zip(row["unleased_runs"], row["unleased_tasks"], strict=True)))

    async def load(self, run_ids: Sequence[str]) -> dict[str, Run]:
        rows = await self._fetch(self._by_key, LOAD, run_ids)
        return {row["run_id"]: loaded_run(row, row["tasks"], row["batches"]) for row in rows}

    # Removal ------------------------------------------------------------------------------------------------------

    async def remove_run(self, request: Request, now_ms: int) -> str | None:
        rows = await self._remember(REMOVE, request, now_ms)
        return str(rows[0]["workflow_id"]) if rows else None

    async def remove_expired(self, namespace: str, before_ms: int, now_ms: int, limit: int) -> int:
        return await self._count(REMOVE_EXPIRED, namespace, before_ms, now_ms, limit)

    async def forget_requests(self, namespace: str, before_ms: int, limit: int) -> int:
        return await self._count(FORGET_REQUESTS, namespace, before_ms, limit)

    async def clear_removed(self, before_ms: int) -> int:
        which = (before_ms, PIECE_RUNS)
        if not await self._count(REMOVALS, *which):
            return 0  # nearly always: so it takes one statement to know
        cleared = await self._count(CLEAR_HISTORY, *which, PIECE_ROWS, PIECE_BYTES)
        for table in BELONGINGS:
            if table != "history":
                cleared += await self._count(clear(table), *which, PIECE_ROWS)
        return cleared + await self._count(forget(BELONGINGS), *which)

    async def set_namespace(self, namespace: Namespace, request: Request, now_ms: int) -> None:
        await self._remember(SET_NAMESPACE, request, now_ms, namespace.retention_ms)

    async def _remember(self, sql: str, request: Request, now_ms: int, *values: Any) -> list[asyncpg.Record]:
        remembered = (request.namespace, request.request_id, request.run_id, request.method, request.reply, now_ms)
        try:
            return await self._fetch(self._removing, sql, *remembered, *values)
        except asyncpg.UniqueViolationError as error:
            raise BatchRejected(str(error), conflict=True) from error

    async def _count(self, sql: str, *values: Any) -> int:
        return int((await self._fetch(self._removing, sql, *values))[0]["count"])

    # Events -------------------------------------------------------------------------------------------------------

    async def add_events(self, namespace: str, new: Sequence[NewEvent], now_ms: int) -> set[tuple[str, str]]:
        rows = [(each.source, each.event_id, each.line, each.event, each.forget_ms) for each in new]
        try:
            added = await self._fetch(self._lookups, ADD_EVENTS, *NEW_EVENTS.values(new=rows), namespace, now_ms)
        except (*_BAD_DATA, ValueError) as error:
            raise _rejected(error) from error
        return {(row["source"], row["event_id"]) for row in added}

    # Tasks --------------------------------------------------------------------------------------------------------

    async def claim(self, wants: Sequence[Want], now_ms: int) -> list[Claimed]:
        rows = [(w.namespace, w.queue, w.kind, w.type, w.slots, w.session_id, w.epoch) for w in wants]
        claimed = await self._fetch(self._claims, CLAIM, *WANTS.values(want=rows), now_ms)
        faults.point("claim.after")
        if faults.ambiguous("claim"):
            raise StoreUnavailable("the connection was lost after a claim was sent, because a test asked for it")
        return [claimed_of(row) for row in claimed]

    async def agenda(self, now_ms: int, keys: Sequence[TypeKey]) -> Agenda:
        wanted = [(*key, position) for position, key in enumerate(keys)]
        return agenda_of(await self._fetch(self._claims, AGENDA, *KEYS.values(wanted=wanted), now_ms), keys)

    async def beat(self, replica_id: str, now_ms: int) -> list[str]:
        rows = await self._fetch(
            self._lookups, BEAT, replica_id, now_ms, now_ms - REPLICA_SEEN_MS, now_ms - REPLICA_KEPT_MS
        )
        return sorted(row["replica_id"] for row in rows)

    async def leased_tasks(self, session_id: str, epoch: int) -> list[Claimed]:
        return [claimed_of(row) for row in await self._fetch(self._by_key, LEASED, session_id, epoch)]

    async def release(self, leases: Sequence[LeasedRow], now_ms: int) -> None:
        rows = [(e.run_id, e.task_id, e.attempt, e.owner, e.epoch, None, 0) for e in leases]
        await self._fetch(self._by_key, RELEASE, *LEASES.values(lease=rows), now_ms)

    async def heartbeat(self, beats: Sequence[Beat], now_ms: int) -> list[bool]:
        rows = [(b.run_id, b.task_id, b.attempt, b.owner, b.epoch, b.details, n) for n, b in enumerate(beats)]
        held = await self._fetch(self._by_key, HEARTBEAT, *LEASES.values(lease=rows), now_ms)
        alive = {row["position"] for row in held}
        return [position in alive for position in range(len(beats))]

    async def hand_over(self, leases: Sequence[LeasedRow], now_ms: int) -> list[bool]:
        rows = [(e.run_id, e.task_id, e.attempt, e.owner, e.epoch, None, n) for n, e in enumerate(leases)]
        held = await self._fetch(self._by_key, HAND_OVER, *LEASES.values(lease=rows), now_ms)
        handed_over = {row["position"] for row in held}
        return [position in handed_over for position in range(len(leases))]

    # The rest -----------------------------------------------------------------------------------------------------

    async def now_ms(self) -> int:
        rows = await self._fetch(self._apart, _NOW)
        return int(rows[0]["now_ms"])

    async def _estimate(self, query: Select[tuple[str]]) -> int:
        sql, arguments = compiled(query, DIALECT, {})
        plan = await self._fetch_for_client(self._searches, f"explain (format json) {sql}", *arguments)
        return int(json.loads(plan[0]["QUERY PLAN"])[0]["Plan"]["Plan Rows"])

    async def notify(self, payload: str) -> None:
        if len(payload.encode()) > NOTIFY_BYTES:
            _log.warning("news too long to tell; other replicas find out when they look", bytes=len(payload.encode()))
            return
        await self._fetch(self._lookups, _NOTIFY, payload)

    async def listen(self, callback: Callable[[str], None]) -> None:
        self._listener = asyncio.create_task(self._keep_listening(callback), name="listener")

    async def _keep_listening(self, callback: Callable[[str], None]) -> None:
        while True:
            try:
                await self._listen_once(callback)
            except _UNREACHABLE as error:
                _log.warning("not listening to other replicas for a moment", error=str(error))
            await asyncio.sleep(random.uniform(0.5, 1.5))

    async def _listen_once(self, callback: Callable[[str], None]) -> None:
        """Until the connection is lost."""
        ended = asyncio.Event()
        connection = await self._connect()
        try:
            connection.add_termination_listener(lambda _: ended.set())
            await connection.add_listener(_CHANNEL, lambda *told: callback(str(told[3])))
            while not ended.is_set():
                try:
                    async with asyncio.timeout(PING_S):
                        await ended.wait()
                except TimeoutError:
                    await connection.execute("select 1", timeout=CONNECT_S)
        finally:
            connection.terminate()


def _rejected(error: Exception) -> BatchRejected:
    return BatchRejected(str(error), conflict=isinstance(error, asyncpg.UniqueViolationError))


@asynccontextmanager
async def _connection(pool: asyncpg.Pool[asyncpg.Record]) -> AsyncIterator[_Borrowed]:
    """A connection of the pool."""
    connection = await _borrow(pool)
    try:
        yield connection
    except BaseException as error:
        await _give_back(pool, connection, error)
        raise
    await pool.release(connection)


async def _borrow(pool: asyncpg.Pool[asyncpg.Record]) -> _Borrowed:
    try:
        return await pool.acquire(timeout=CONNECT_S)
    except TimeoutError as error:
        raise StoreUnavailable(
            f"no connection to the database was free, or to be had, within {CONNECT_S:g} s"
        ) from error


def _is_open(connection: _Borrowed) -> bool:
    try:
        return not connection.is_closed()
    except asyncpg.InterfaceError:  # it was cut while nobody used it, and the pool has taken it back
        return False


async def _give_back(pool: asyncpg.Pool[asyncpg.Record], connection: _Borrowed, error: BaseException) -> None:
    """When it does not answer it is cut: nobody waits for what became of its statement."""
    # The last: its server is a standby by now, and the address may lead to another one.
    if isinstance(error, TimeoutError | OSError | asyncpg.InterfaceError | asyncpg.ReadOnlySQLTransactionError):
        connection.terminate()
    await pool.release(connection)


async def _after_clash(error: Exception) -> None:
    _log.info("statement clashed with another one, trying again", error=str(error))
    await asyncio.sleep(random.uniform(0, 0.05))


def _overloaded() -> StoreUnavailable:
    return StoreUnavailable(f"a statement clashed with others {CLASHES} times in a row; the database is overloaded")


@contextmanager
def _unavailable() -> Iterator[None]:
    """Turn what says nothing about the statement itself into StoreUnavailable."""
    try:
        yield
    except (*_CLASHES, *_BAD_DATA):
        raise
    except _REFUSES as error:
        raise StoreUnavailable(f"the database will not have us: {type(error).__name__}: {error}") from error
    except _BROKEN:
        raise
    except _UNREACHABLE as error:
        raise StoreUnavailable(f"the database does not answer: {type(error).__name__}: {error}") from error


async def _make_durable(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """What is acknowledged is on disk, whatever the server's default; a stricter one stays."""
    await connection.execute(
        "select set_config('synchronous_commit', 'on', false)"
        " where current_setting('synchronous_commit') in ('off', 'local')"
    )


def _check_version(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    version = connection.get_server_version()
    if version.major < OLDEST_VERSION:
        raise StoreRefused(f"the database is Postgres {version.major}, too old: use {OLDEST_VERSION} or newer")


def _upgrade(connection: Connection) -> None:
    """Migrate, one replica at a time: the lock goes with the transaction."""
    connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
    upgrade(connection)
