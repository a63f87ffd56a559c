"""The statements on Postgres that lease tasks, and the one that loads runs. Each is a transaction of its own."""

from __future__ import annotations

from typing import Final

from romancy_service.core.limits import CLAIM_BYTES
from romancy_service.core.task import ELSEWHERE, ELSEWHERE_EPOCH
from romancy_service.store.agenda import LEVELS, OF_KEY, agenda_sql
from romancy_service.store.arrays import Arrays
from romancy_service.store.tables import OWNED, WEIGHT

_OWNED_RELAY: Final = "least(close_by_ms, {since} + start_to_close_ms, {now} + heartbeat_timeout_ms)"
"""When the service must look at a task that somebody has since `since` and was heard of at `now`."""
_RUN_OF: Final = """lateral (
        select workflow_id, workflow_type, version from runs where run_id = leased.run_id offset 0) as run"""
"""`offset 0`: looked up for each task, rather than joined by walking over all runs."""

LOAD: Final = """
select runs.*,
    array(select tasks from tasks where tasks.run_id = runs.run_id order by task_id) as tasks,
    array(select events from history where history.run_id = runs.run_id and last_event_id > runs.seen_event_id
        order by last_event_id) as batches
from runs where run_id = any($1::text[])
"""

WANTS: Final = Arrays(
    want=(
        ("namespace", "text"),
        ("queue", "text"),
        ("kind", "int"),
        ("type", "text"),
        ("slots", "int"),
        ("session_id", "text"),
        ("epoch", "bigint"),
    )
)
_NOW: Final = f"${WANTS.next_parameter}::bigint"

# What several sessions want of the same kind is found together, since a statement does not skip what it has locked
# itself, and then dealt out. The update finds the rows by their place: one that was rewritten since the statement began
# has another place by then, and stays for the next claim. So does what comes after CLAIM_BYTES: it is locked until the
# claim ends, and free then.
CLAIM: Final = f"""
with live as materialized (
    select session_id, epoch from sessions where session_id = any({WANTS.column("want", "session_id")})
    order by session_id for share
), want as materialized (
    select want.*, sum(slots) over (partition by namespace, queue, kind, type order by session_id) as upto
    from {WANTS.rows("want")} join live using (session_id, epoch)
), wanted as materialized (
    select namespace, queue, kind, type, sum(slots) as slots from want group by namespace, queue, kind, type
), found as materialized (
    select wanted.*, task.place, row_number() over (
        partition by wanted.namespace, wanted.queue, wanted.kind, wanted.type
        order by task.priority, task.due_ms) as position,
        sum(task.bytes) over (order by task.priority, task.due_ms rows unbounded preceding) - task.bytes as before
    from wanted cross join lateral ({LEVELS}
        select task.* from level cross join lateral (
            select ctid as place, priority, due_ms, {WEIGHT} as bytes from tasks
            where {OF_KEY} and priority = level.priority and due_ms <= {_NOW}
            order by due_ms limit wanted.slots for update skip locked) as task
        limit wanted.slots) as task
), dealt as materialized (
    select found.place, want.session_id, want.epoch
    from found join want using (namespace, queue, kind, type)
    where before < {CLAIM_BYTES} and position > upto - want.slots and position <= upto
), leased as (
    update tasks set owner = dealt.session_id, owner_epoch = dealt.epoch, leased_ms = {_NOW}, heartbeat_ms = 0,
        relay_ms = {_OWNED_RELAY.format(since=_NOW, now=_NOW)}
    from dealt where tasks.ctid = dealt.place returning tasks.*
)
select leased.*, run.* from leased cross join {_RUN_OF} order by leased.priority, leased.due_ms
"""

KEYS: Final = Arrays(
    wanted=(("namespace", "text"), ("queue", "text"), ("kind", "int"), ("type", "text"), ("position", "bigint"))
)
AGENDA: Final = agenda_sql(KEYS.rows("wanted"), f"${KEYS.next_parameter}::bigint")

BEAT: Final = """
with forgotten as (
    delete from replicas where seen_ms < $4::bigint and replica_id <> $1::text
), seen as (
    insert into replicas (replica_id, seen_ms) values ($1::text, $2::bigint)
    on conflict (replica_id) do update set seen_ms = excluded.seen_ms returning replica_id
)
select replica_id from seen union select replica_id from replicas where seen_ms > $3::bigint
"""
"""A replica says that it is alive, and learns which are."""

LEASES: Final = Arrays(
    lease=(
        ("run_id", "text"),
        ("task_id", "text"),
        ("attempt", "int"),
        ("owner", "text"),
        ("epoch", "bigint"),
        ("details", "bytea"),
        ("position", "int"),
    )
)
_AT: Final = f"${LEASES.next_parameter}::bigint"

_HELD: Final = f"""
with lease as materialized (
    select * from {LEASES.rows("lease")} order by run_id, task_id
), held as materialized (
    select lease.* from lease cross join lateral (
        select from tasks where run_id = lease.run_id and task_id = lease.task_id
        and attempt = lease.attempt and owner = lease.owner and owner_epoch = lease.epoch for update) as task
)"""
"""The leases that hold, locked in order of their keys, as commits do."""

RELEASE: Final = f"""{_HELD}
update tasks set owner = '', owner_epoch = 0, leased_ms = 0, heartbeat_ms = 0,
    relay_ms = case when cancel_requested then {_AT} else least(start_by_ms, close_by_ms) end
from held where tasks.run_id = held.run_id and tasks.task_id = held.task_id
"""

HEARTBEAT: Final = f"""{_HELD}, beaten as (
    update tasks set heartbeat_ms = {_AT}, heartbeat_details = coalesce(held.details, heartbeat_details),
        relay_ms = {_OWNED_RELAY.format(since="leased_ms", now=_AT)}
    from held where tasks.run_id = held.run_id and tasks.task_id = held.task_id
)
select position from held
"""

HAND_OVER: Final = f"""
with lease as materialized (
    select * from {LEASES.rows("lease")} order by run_id, task_id
), held as materialized (
    select lease.* from lease cross join lateral (
        select from tasks where run_id = lease.run_id and task_id = lease.task_id and attempt = lease.attempt
        and (owner = '{ELSEWHERE}' or (owner = lease.owner and owner_epoch = lease.epoch)) for update) as task
), handed_over as (
    update tasks set owner = '{ELSEWHERE}', owner_epoch = {ELSEWHERE_EPOCH}, heartbeat_ms = {_AT},
        relay_ms = {_OWNED_RELAY.format(since="leased_ms", now=_AT)}
    from held where tasks.run_id = held.run_id and tasks.task_id = held.task_id
)
select position from held
"""

LEASED: Final = f"""
with held as materialized (
    select run_id, task_id from tasks where owner = $1::text and {OWNED} and owner_epoch <= $2::bigint
    order by run_id, task_id for update
), leased as (
    update tasks set owner_epoch = $2::bigint from held
    where tasks.run_id = held.run_id and tasks.task_id = held.task_id returning tasks.*
)
select leased.*, run.* from leased cross join {_RUN_OF} order by leased.run_id, leased.task_id
"""
