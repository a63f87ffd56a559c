"""The commit on SQLite: facts are looked at first, then only what is good is written, all in one transaction.

Nobody else writes meanwhile (see sqlite.py), so what is looked at stays true.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import Table

from romancy_service.store import tables
from romancy_service.store.batch import DROP, MARK, Batch
from romancy_service.store.store import CommitResult

_RUN: Final = [column.name for column in tables.runs.columns]
_TASK: Final = [column.name for column in tables.tasks.columns]
_ATTRIBUTE: Final = [column.name for column in tables.attributes.columns]
_VERSION: Final = 1 + _RUN.index("version")
_NAMESPACE: Final = 1 + _RUN.index("namespace")
_WORKFLOW_ID: Final = 1 + _RUN.index("workflow_id")
_LAST_EVENT_ID: Final = 1 + _RUN.index("last_event_id")
_OWNER: Final = 1 + _TASK.index("owner")
_OWNER_EPOCH: Final = 1 + _TASK.index("owner_epoch")
_RUN_END: Final = 1 + len(_RUN)
_TASK_END: Final = 1 + len(_TASK)


def _insert(table: Table) -> str:
    columns = [column.name for column in table.columns]
    return f"insert into {table.name} ({', '.join(columns)}) values ({', '.join('?' * len(columns))})"


_VERSIONS: Final = "select run_id, version from runs where run_id in (select value from json_each(?))"
_OTHER_OPEN: Final = f"select 1 from runs where namespace = ? and workflow_id = ? and {tables.OPEN} and run_id <> ?"
_TASK_IS_SO: Final = """
select 1 from tasks where run_id = ?1 and task_id = ?2
and (?3 = 0 or (attempt = ?3 and owner = ?4 and owner_epoch = ?5)) and (?6 < 0 or relay_ms = ?6)
"""
_REQUEST: Final = "select 1 from requests where namespace = ? and request_id = ?"
_SESSIONS: Final = "select session_id, epoch from sessions where session_id in (select value from json_each(?))"

_OPEN_RUN: Final = _insert(tables.runs)
_UPDATE_RUN: Final = (
    "update runs set "
    + ", ".join(f"{name} = ?{n}" for n, name in enumerate(_RUN, 1) if name not in tables.FIXED_RUN_COLUMNS)
    + " where run_id = ?1"
)
_RECORD: Final = _insert(tables.history)
_REMEMBER: Final = _insert(tables.requests)
_PUT: Final = (
    _insert(tables.tasks)
    + " on conflict (run_id, task_id) do update set "
    + ", ".join(f"{name} = excluded.{name}" for name in _TASK if name not in tables.KEPT_TASK_COLUMNS)
)
_SHOW: Final = (
    _insert(tables.attributes)
    + " on conflict (run_id, name, position) do update set "
    + ", ".join(f"{name} = excluded.{name}" for name in _ATTRIBUTE if name not in tables.KEPT_ATTRIBUTE_COLUMNS)
)
_HIDE: Final = "delete from attributes where run_id = ? and name = ? and position >= ?"
_MARK_TASK: Final = """
update tasks set cancel_requested = 1, relay_ms = case when owner = '' then ?1 else relay_ms end
where run_id = ?2 and task_id = ?3
"""
_DROP_TASK: Final = "delete from tasks where run_id = ? and task_id = ?"
_SEND: Final = (
    f"insert into outbox (namespace, workflow_id, sink, run_id, event, since_ms, {', '.join(tables.NOT_TRIED)})"
    f" values (?, ?, ?, ?, ?, ?, {', '.join(tables.NOT_TRIED.values())})"
)
_LINE_UP: Final = """
insert into outbox_lines (namespace, sink, workflow_id, version, due_ms, claim, attempts, error)
values (?, ?, ?, 1, ?, '', 0, '')
on conflict (namespace, sink, workflow_id) do update set version = version + 1
"""
_TIME: Final = "update clock set mark_ms = max(mark_ms, ?)"


def commit(connection: sqlite3.Connection, batch: Batch) -> CommitResult:
    """Write what is good of a batch. The caller has begun the transaction, and ends it."""
    bad = set(_bad_units(connection, batch))
    good_runs = [row for row in batch.run if row[0] not in bad]
    written = [row for row in good_runs if row[_RUN_END]]
    if written:
        connection.execute(_TIME, (batch.now_ms,))
    # Runs that close go before those that open, since they may have the same workflow id.
    for statement, is_new in ((_UPDATE_RUN, False), (_OPEN_RUN, True)):
        rows = [row[1:_RUN_END] for row in written if (row[_VERSION] == 1) == is_new]
        connection.executemany(statement, rows)
    recorded = [(row[1], row[_LAST_EVENT_ID], row[-1]) for row in written if row[-1] is not None]
    connection.executemany(_RECORD, recorded)
    connection.executemany(_REMEMBER, [row[1:] for row in batch.asked if row[0] not in bad])
    used = [row for row in batch.used if row[0] not in bad]
    connection.executemany(_DROP_TASK, [row[1:3] for row in used if row[-1] == DROP])
    connection.executemany(_MARK_TASK, [(batch.now_ms, *row[1:3]) for row in used if row[-1] == MARK])
    connection.executemany(_HIDE, [row[1:] for row in batch.hidden if row[0] not in bad])
    connection.executemany(_SHOW, [row[1:] for row in batch.shown if row[0] not in bad])
    connection.executemany(_SEND, [row[2:] for row in batch.sent if row[0] not in bad])
    connection.executemany(_LINE_UP, [row[1:] for row in batch.lines if row[0] not in bad])
    unleased = _put(connection, batch, bad)
    return CommitResult({row[1] for row in good_runs}, unleased)


def _bad_units(connection: sqlite3.Connection, batch: Batch) -> Iterable[int]:
    """Units of which one thing that they rest on is not so."""
    versions = dict(_look(connection, _VERSIONS, json.dumps([row[1] for row in batch.run])))
    for row in batch.run:
        is_new = row[_VERSION] == 1
        if versions.get(row[1], 0) != row[_VERSION] - 1 or (is_new and _look(connection, _OTHER_OPEN, *_place(row))):
            yield row[0]
    for row in batch.used:
        if not _look(connection, _TASK_IS_SO, *row[1:-1]):
            yield row[0]
    for row in batch.asked:
        if _look(connection, _REQUEST, row[1], row[2]):
            yield row[0]


def _place(run_row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Namespace, workflow id, and the run that may have them."""
    return run_row[_NAMESPACE], run_row[_WORKFLOW_ID], run_row[-2]


def _put(connection: sqlite3.Connection, batch: Batch, bad: set[int]) -> set[tuple[str, str]]:
    """Insert or rewrite tasks. Returns the (run id, task id) of those whose session is not there to have them."""
    epochs = dict(_look(connection, _SESSIONS, json.dumps(list(batch.session_ids)))) if batch.session_ids else {}
    unleased, rows = set(), []
    for row in batch.put:
        if row[0] in bad:
            continue
        task = row[1:_TASK_END]
        if row[_OWNER] and epochs.get(row[_OWNER]) != row[_OWNER_EPOCH]:
            unleased.add(task[:2])
            nobodys = {"owner": "", "owner_epoch": 0, "leased_ms": 0, "relay_ms": row[-1]}
            task = tuple(nobodys.get(name, value) for name, value in zip(_TASK, task, strict=True))
        rows.append(task)
    connection.executemany(_PUT, rows)
    return unleased


def _look(connection: sqlite3.Connection, query: str, *values: Any) -> Sequence[Any]:
    return connection.execute(query, values).fetchall()
