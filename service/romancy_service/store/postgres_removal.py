"""The statements on Postgres that delete runs and forget requests. Each is a transaction of its own.

A run goes in two steps: its row goes at once, and `removals` remembers that the rest is to be cleared away, piece by
piece. So it is there or not, never in part, whatever dies in between; and no statement has much to do.
"""

from __future__ import annotations

from typing import Final

from romancy_service.store.tables import CLOSED, ERRAND, UNDELIVERED

_REMEMBER: Final = """
    insert into requests (namespace, request_id, run_id, method, reply, created_ms)
    select $1::text, $2::text, $3::text, $4::text, $5::bytea, $6::bigint"""

_SETTLED: Final = f"{CLOSED} and (select task_id from tasks where run_id = runs.run_id and {ERRAND} limit 1) is null"
"""Closed, and owing other runs nothing any more. What a closed run owes only becomes less. It is asked run by run: as
`not exists` it became a join, for which all errands that there are were read."""

_GO: Final = """gone as (
    delete from runs where run_id in (select run_id from doomed)
), noted as (
    insert into removals (run_id, removed_ms) select run_id, {now} from doomed
)"""

REMOVE: Final = f"""
with doomed as materialized (
    select run_id, workflow_id from runs where run_id = $3::text and {_SETTLED} for update
), remembered as ({_REMEMBER} from doomed
), {_GO.format(now="$6::bigint")}
select workflow_id from doomed
"""
REMOVE_EXPIRED: Final = f"""
with doomed as materialized (
    select run_id from runs where namespace = $1::text and {_SETTLED} and close_ms < $2::bigint
    order by close_ms limit $4::bigint for update skip locked
), {_GO.format(now="$3::bigint")}
select count(*) as count from doomed
"""
_OF_OPEN_MESSAGE: Final = f"""method = 'ReceiveEvent' and (
    select position from events where {UNDELIVERED}
    and position = substring(request_id from 'message/([0-9]{{1,18}})/[0-9]+$')::bigint) is not null"""
"""A run has the message, and that is not noted yet: perhaps when the next run waits, which may be in a week."""
FORGET_REQUESTS: Final = f"""
with forgotten as (
    delete from requests where ctid = any(array(
        select ctid from requests where namespace = $1::text and created_ms < $2::bigint and not ({_OF_OPEN_MESSAGE})
        order by created_ms limit $3::bigint))
    returning 1
)
select count(*) as count from forgotten
"""

_REMOVED: Final = "select run_id from removals where removed_ms <= $1::bigint order by removed_ms limit $2::bigint"

REMOVALS: Final = f"select count(*) as count from ({_REMOVED}) as removal"
CLEAR_HISTORY: Final = f"""
with found as materialized (
    select part.place, part.size from ({_REMOVED}) as removal cross join lateral (
        select ctid as place, length(events) as size from history where run_id = removal.run_id) as part
    limit $3::bigint
), counted as (
    select place, sum(size) over (rows unbounded preceding) - size as before from found
), cleared as (
    delete from history where ctid = any(array(select place from counted where before < $4::bigint)) returning 1
)
select count(*) as count from cleared
"""


def clear(table: str) -> str:
    """The statement that clears another table, whose rows are small."""
    return f"""
with cleared as (
    delete from {table} where ctid = any(array(
        select part.place from ({_REMOVED}) as removal cross join lateral (
            select ctid as place from {table} where run_id = removal.run_id) as part
        limit $3::bigint))
    returning 1
)
select count(*) as count from cleared
"""


def forget(tables: tuple[str, ...]) -> str:
    """The statement that forgets the removals of which nothing is left in these tables."""
    nothing = " and ".join(
        f"not exists (select from {table} where run_id = removal.run_id limit 1)" for table in tables
    )
    return f"""
with forgotten as (
    delete from removals where run_id in (select run_id from ({_REMOVED}) as removal where {nothing}) returning 1
)
select count(*) as count from forgotten
"""


SET_NAMESPACE: Final = f"""
with remembered as ({_REMEMBER})
insert into namespaces (namespace, retention_ms, created_ms) values ($1::text, $7::bigint, $6::bigint)
on conflict (namespace) do update set retention_ms = excluded.retention_ms
"""
