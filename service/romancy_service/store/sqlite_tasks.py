"""What leases tasks on SQLite, and what loads runs. Each is called within a transaction of its own."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from romancy_service.core.limits import CLAIM_BYTES
from romancy_service.core.run import Run
from romancy_service.core.task import ELSEWHERE, ELSEWHERE_EPOCH, NEVER_MS, TypeKey
from romancy_service.store.agenda import agenda_of, agenda_sql
from romancy_service.store.presence import REPLICA_KEPT_MS, REPLICA_SEEN_MS
from romancy_service.store.rows import loaded_run
from romancy_service.store.store import Agenda, Beat, Claimed, LeasedRow, Want, claimed_of
from romancy_service.store.tables import CLAIMABLE, OWNED, WEIGHT

_LOAD: Final = "select * from runs where run_id in (select value from json_each(?))"
_TASKS: Final = "select * from tasks where run_id in (select value from json_each(?)) order by run_id, task_id"
_BATCHES: Final = "select events from history where run_id = ? and last_event_id > ? order by last_event_id"

_KEYS: Final = """(
    select value ->> 0 as namespace, value ->> 1 as queue, value ->> 2 as kind, value ->> 3 as type, key as position
    from json_each(?2)) as wanted"""
_AGENDA: Final = agenda_sql(_KEYS, "?1")
_SESSION: Final = "select 1 from sessions where session_id = ? and epoch = ?"
_CLAIM: Final = f"""
update tasks set owner = ?1, owner_epoch = ?2, leased_ms = ?3, heartbeat_ms = 0,
    relay_ms = min(close_by_ms, ?3 + start_to_close_ms, ?3 + heartbeat_timeout_ms)
where rowid in (
    select place from (
        select place, sum(bytes) over (order by due_ms rows unbounded preceding) - bytes as before from (
            select rowid as place, due_ms, {WEIGHT} as bytes from tasks
            where namespace = ?4 and queue = ?5 and kind = ?6 and type = ?7
            and {CLAIMABLE} and priority = ?8 and due_ms <= ?3 order by due_ms limit ?9))
    where before < ?10)
returning run_id, task_id
"""
_NEXT_PRIORITY: Final = f"""
select min(priority) from tasks where namespace = ?1 and queue = ?2 and kind = ?3 and type = ?4
and {CLAIMABLE} and priority > ?5
"""
_LEASED_TASK: Final = """
select tasks.*, workflow_id, workflow_type, version from tasks join runs using (run_id) where run_id = ? and task_id = ?
"""
_BRING: Final = f"update tasks set owner_epoch = ?2 where owner = ?1 and {OWNED} and owner_epoch <= ?2"
_LEASED: Final = f"""
select tasks.*, workflow_id, workflow_type, version from tasks join runs using (run_id)
where owner = ? and {OWNED} and owner_epoch = ? order by run_id, task_id
"""
_IS_HELD: Final = "run_id = ?1 and task_id = ?2 and attempt = ?3 and owner = ?4 and owner_epoch = ?5"
_RELEASE: Final = f"""
update tasks set owner = '', owner_epoch = 0, leased_ms = 0, heartbeat_ms = 0,
    relay_ms = case when cancel_requested then ?6 else min(start_by_ms, close_by_ms) end
where {_IS_HELD}
"""
_HAND_OVER: Final = f"""
update tasks set owner = '{ELSEWHERE}', owner_epoch = {ELSEWHERE_EPOCH}, heartbeat_ms = ?6,
    relay_ms = min(close_by_ms, leased_ms + start_to_close_ms, ?6 + heartbeat_timeout_ms)
where run_id = ?1 and task_id = ?2 and attempt = ?3
    and (owner = '{ELSEWHERE}' or (owner = ?4 and owner_epoch = ?5))
"""
_BEAT: Final = f"""
update tasks set heartbeat_ms = ?6, heartbeat_details = coalesce(?7, heartbeat_details),
    relay_ms = min(close_by_ms, leased_ms + start_to_close_ms, ?6 + heartbeat_timeout_ms)
where {_IS_HELD}
"""


def load(connection: sqlite3.Connection, run_ids: Sequence[str]) -> dict[str, Run]:
    """See Store.load."""
    wanted = json.dumps(list(run_ids))
    tasks = defaultdict(list)
    for task in connection.execute(_TASKS, (wanted,)):
        tasks[task["run_id"]].append(task)
    runs = {}
    for row in connection.execute(_LOAD, (wanted,)).fetchall():
        batches = connection.execute(_BATCHES, (row["run_id"], row["seen_event_id"]))
        runs[row["run_id"]] = loaded_run(row, tasks[row["run_id"]], [batch["events"] for batch in batches])
    return runs


def agenda(connection: sqlite3.Connection, now_ms: int, keys: Sequence[TypeKey]) -> Agenda:
    """See Store.agenda."""
    return agenda_of(connection.execute(_AGENDA, (now_ms, json.dumps(keys))), keys)


def see_replica(connection: sqlite3.Connection, replica_id: str, now_ms: int) -> list[str]:
    """See Store.beat."""
    connection.execute("delete from replicas where seen_ms < ?", (now_ms - REPLICA_KEPT_MS,))
    connection.execute("insert or replace into replicas (replica_id, seen_ms) values (?, ?)", (replica_id, now_ms))
    alive = connection.execute(
        "select replica_id from replicas where seen_ms > ? or replica_id = ?", (now_ms - REPLICA_SEEN_MS, replica_id)
    )
    return sorted(row["replica_id"] for row in alive)


def claim(connection: sqlite3.Connection, wants: Sequence[Want], now_ms: int) -> list[Claimed]:
    """See Store.claim."""
    claimed = []
    room = CLAIM_BYTES
    for want in wants:
        if not connection.execute(_SESSION, (want.session_id, want.epoch)).fetchone():
            continue
        what = (want.namespace, want.queue, want.kind, want.type)
        slots, priority = want.slots, -NEVER_MS
        while slots and room > 0:
            priority = connection.execute(_NEXT_PRIORITY, (*what, priority)).fetchone()[0]
            if priority is None:
                break
            lease = (want.session_id, want.epoch, now_ms)
            keys = connection.execute(_CLAIM, (*lease, *what, priority, slots, room)).fetchall()
            found = [claimed_of(connection.execute(_LEASED_TASK, tuple(key)).fetchone()) for key in keys]
            claimed += found
            slots -= len(found)
            room -= sum(task.bytes for task in found)
    return sorted(claimed, key=lambda task: (task.task.priority, task.task.due_ms))


def leased(connection: sqlite3.Connection, session_id: str, epoch: int) -> list[Claimed]:
    """See Store.leased_tasks."""
    connection.execute(_BRING, (session_id, epoch))
    return [claimed_of(row) for row in connection.execute(_LEASED, (session_id, epoch)).fetchall()]


def release(connection: sqlite3.Connection, leases: Sequence[LeasedRow], now_ms: int) -> None:
    """See Store.release."""
    connection.executemany(_RELEASE, [(e.run_id, e.task_id, e.attempt, e.owner, e.epoch, now_ms) for e in leases])


def hand_over(connection: sqlite3.Connection, leases: Sequence[LeasedRow], now_ms: int) -> list[bool]:
    """See Store.hand_over."""
    return [
        connection.execute(_HAND_OVER, (e.run_id, e.task_id, e.attempt, e.owner, e.epoch, now_ms)).rowcount == 1
        for e in leases
    ]


def beat(connection: sqlite3.Connection, beats: Sequence[Beat], now_ms: int) -> list[bool]:
    """See Store.heartbeat."""
    return [
        connection.execute(_BEAT, (b.run_id, b.task_id, b.attempt, b.owner, b.epoch, now_ms, b.details)).rowcount == 1
        for b in beats
    ]
