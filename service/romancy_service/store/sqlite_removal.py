"""What deletes runs and forgets requests on SQLite. Each is called within a transaction of its own.

As on Postgres a run's row goes at once, and the rest piece by piece: the writer has other things to do.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from romancy_service.store.removal import BELONGINGS, PIECE_BYTES, PIECE_ROWS, PIECE_RUNS
from romancy_service.store.store import Namespace, Request
from romancy_service.store.tables import CLOSED, ERRAND, UNDELIVERED

_REMEMBER: Final = (
    "insert into requests (namespace, request_id, run_id, method, reply, created_ms) values (?, ?, ?, ?, ?, ?)"
)
_SETTLED: Final = f"{CLOSED} and not exists (select 1 from tasks where run_id = runs.run_id and {ERRAND})"
_SETTLED_RUN: Final = f"select workflow_id from runs where run_id = ? and {_SETTLED}"
_EXPIRED: Final = f"""
select run_id from runs where namespace = ? and {_SETTLED} and close_ms < ? order by close_ms limit ?
"""
_NOTE: Final = "insert into removals (run_id, removed_ms) values (?, ?)"
_GO: Final = "delete from runs where run_id = ?"
_OF_OPEN_MESSAGE: Final = f"""method = 'ReceiveEvent' and instr(request_id, 'message/') and exists (
    select 1 from events where {UNDELIVERED}
    and position = cast(substr(request_id, instr(request_id, 'message/') + 8) as integer))"""
_FORGET_REQUESTS: Final = f"""
delete from requests where rowid in (
    select rowid from requests where namespace = ? and created_ms < ? and not ({_OF_OPEN_MESSAGE})
    order by created_ms limit ?)
"""
_REMOVED: Final = "select run_id from removals where removed_ms <= ?1 order by removed_ms limit ?2"
_CLEAR_HISTORY: Final = f"""
delete from history where rowid in (
    select place from (
        select place, sum(size) over (rows unbounded preceding) - size as before from (
            select rowid as place, length(events) as size from history where run_id in ({_REMOVED}) limit ?3))
    where before < ?4)
"""
_CLEAR: Final = [
    f"delete from {table} where rowid in (select rowid from {table} where run_id in ({_REMOVED}) limit ?3)"
    for table in BELONGINGS
    if table != "history"
]
_NOTHING: Final = " and ".join(
    f"not exists (select 1 from {table} where {table}.run_id = removals.run_id)" for table in BELONGINGS
)
_FORGET: Final = f"delete from removals where run_id in ({_REMOVED}) and {_NOTHING}"
_SET_NAMESPACE: Final = """
insert into namespaces (namespace, retention_ms, created_ms) values (?, ?, ?)
on conflict (namespace) do update set retention_ms = excluded.retention_ms
"""


def remove(connection: sqlite3.Connection, request: Request, now_ms: int) -> str | None:
    """See Store.remove_run."""
    found = connection.execute(_SETTLED_RUN, (request.run_id,)).fetchone()
    if found is None:
        return None
    _remember(connection, request, now_ms)
    _remove(connection, [request.run_id], now_ms)
    return str(found["workflow_id"])


def remove_expired(connection: sqlite3.Connection, namespace: str, before_ms: int, now_ms: int, limit: int) -> int:
    """See Store.remove_expired."""
    expired = connection.execute(_EXPIRED, (namespace, before_ms, limit)).fetchall()
    _remove(connection, [row["run_id"] for row in expired], now_ms)
    return len(expired)


def _remove(connection: sqlite3.Connection, run_ids: list[str], now_ms: int) -> None:
    connection.executemany(_NOTE, [(run_id, now_ms) for run_id in run_ids])
    connection.executemany(_GO, [(run_id,) for run_id in run_ids])


def forget_requests(connection: sqlite3.Connection, namespace: str, before_ms: int, limit: int) -> int:
    """See Store.forget_requests."""
    return connection.execute(_FORGET_REQUESTS, (namespace, before_ms, limit)).rowcount


def clear_removed(connection: sqlite3.Connection, before_ms: int) -> int:
    """See Store.clear_removed."""
    which = (before_ms, PIECE_RUNS)
    cleared = connection.execute(_CLEAR_HISTORY, (*which, PIECE_ROWS, PIECE_BYTES)).rowcount
    for statement in _CLEAR:
        cleared += connection.execute(statement, (*which, PIECE_ROWS)).rowcount
    return cleared + connection.execute(_FORGET, which).rowcount


def set_namespace(connection: sqlite3.Connection, namespace: Namespace, request: Request, now_ms: int) -> None:
    """See Store.set_namespace."""
    _remember(connection, request, now_ms)
    connection.execute(_SET_NAMESPACE, (namespace.name, namespace.retention_ms, now_ms))


def _remember(connection: sqlite3.Connection, request: Request, now_ms: int) -> None:
    row = (request.namespace, request.request_id, request.run_id, request.method, request.reply, now_ms)
    connection.execute(_REMEMBER, row)
