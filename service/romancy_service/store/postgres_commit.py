"""The commit on Postgres: one statement, whatever the batch holds.

How it is right. All of a statement sees the database as it was when it began; only rows that it locks by key are seen as
they are. So it locks what a change rests on: the run, then the tasks that it consumes or changes, then the sessions that
get tasks, each in order of their keys, which no two commits can do in opposite order. Each of these is a *fact* that holds
or not, and a unit (a run, or two that are written together) is good if all its facts hold. Everything else is written
only for good units. What is unique but cannot be locked because it is not there yet (an open workflow id, a request id)
is inserted in order of its key: the later of two batches waits, fails on the first, and is decided again.

How it is fast. One round trip. And no table is read but by key: the connections plan with bitmap scans only, which need
a key (see `BY_KEY`). A plan made while a table was small would else walk over it, and stays when the table has grown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from romancy_service.store import tables
from romancy_service.store.arrays import Arrays, columns_of
from romancy_service.store.batch import Batch

BY_KEY: Final = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_indexscan": "off",
    "enable_indexonlyscan": "off",
}
"""Settings of connections whose statements find every row by its key."""

_UNIT: Final = (("unit", "int"),)
_RUN: Final = columns_of(tables.runs)
_TASK: Final = columns_of(tables.tasks)
_REQUEST: Final = columns_of(tables.requests)

_ARRAYS: Final = Arrays(
    change=(
        *_UNIT,
        *_RUN,
        ("writes", "bool"),
        ("peer", "text"),
        ("first_event_id", "bigint"),
        ("events", "bytea"),
    ),
    needed=(
        *_UNIT,
        ("run_id", "text"),
        ("task_id", "text"),
        ("attempt", "int"),
        ("owner", "text"),
        ("epoch", "bigint"),
        ("relay_ms", "bigint"),
    ),
    put=(*_UNIT, *_TASK, ("unowned_relay_ms", "bigint")),
    marked=(*_UNIT, ("run_id", "text"), ("task_id", "text")),
    dropped=(*_UNIT, ("run_id", "text"), ("task_id", "text")),
    asked=(*_UNIT, *_REQUEST),
    session=(("session_id", "text"),),
)
_NOW: Final = f"${_ARRAYS.next_parameter}::bigint"


def _names(columns: Iterable[tuple[str, str]], prefix: str = "") -> str:
    return ", ".join(prefix + name for name, _ in columns)


def _assignments(columns: Iterable[tuple[str, str]], source: str, *, but: Sequence[str]) -> str:
    return ", ".join(f"{name} = {source}.{name}" for name, _ in columns if name not in but)


COMMIT: Final = f"""
with change as materialized (
    select * from {_ARRAYS.rows("change")} order by run_id
), needed as materialized (
    select * from {_ARRAYS.rows("needed")} order by run_id, task_id
), asked as materialized (
    select * from {_ARRAYS.rows("asked")}
),

-- What the changes rest on. `version` is the one to be stored, so a run must have the one before, and a new one none.
run_fact as materialized (
    select change.unit, case when change.version > 1 then found.version is not distinct from change.version - 1 else
        found.version is null and not exists (
            select from runs as other where other.namespace = change.namespace
            and other.workflow_id = change.workflow_id and other.{
    tables.OPEN
} and other.run_id <> change.peer) end as holds
    from change left join lateral (
        select version from runs where run_id = change.run_id for update) as found on true
), task_fact as materialized (
    select needed.unit, found.holds is not null as holds
    from (select * from needed where (select count(*) from run_fact) >= 0) as needed left join lateral (
        select true as holds from tasks where run_id = needed.run_id and task_id = needed.task_id
        and (needed.attempt = 0
            or (attempt = needed.attempt and owner = needed.owner and owner_epoch = needed.epoch))
        and (needed.relay_ms < 0 or relay_ms = needed.relay_ms) for update) as found on true
), request_fact as materialized (
    select asked.unit, not exists (select from requests as stored
        where stored.namespace = asked.namespace and stored.request_id = asked.request_id) as holds
    from asked
), fact as materialized (
    select * from run_fact union all select * from task_fact union all select * from request_fact
), good as materialized (
    select unit from fact group by unit having bool_and(holds)
), session as materialized (
    select session_id, epoch from sessions
    where session_id = any({_ARRAYS.column("session", "session_id")}) and (select count(*) from task_fact) >= 0
    order by session_id for share
),

-- What is written. Runs that close go before those that open, since they may have the same workflow id.
closed as (
    update runs set {_assignments(_RUN, "change", but=tables.FIXED_RUN_COLUMNS)}
    from change where runs.run_id = change.run_id and change.version > 1 and change.writes
    and (change.unit in (select unit from good)) is true
    returning runs.run_id
), opened as (
    insert into runs ({_names(_RUN)}) select {_names(_RUN)} from change
    where version = 1 and writes and unit in (select unit from good) and (select count(*) from closed) >= 0
    order by namespace, workflow_id
    returning run_id
), remembered as (
    insert into requests ({_names(_REQUEST)}) select {_names(_REQUEST)} from asked
    where unit in (select unit from good) and (select count(*) from opened) >= 0
    order by namespace, request_id
), recorded as (
    insert into history (run_id, first_event_id, last_event_id, events)
    select run_id, first_event_id, last_event_id, events from change
    where events is not null and unit in (select unit from good)
), put as materialized (
    select put.*, put.owner <> '' and session.epoch is null as refused
    from {_ARRAYS.rows("put")} left join session on session.session_id = put.owner and session.epoch = put.owner_epoch
    where (put.unit in (select unit from good)) is true
), stored as (
    insert into tasks ({_names(_TASK)}) select {
    ", ".join(
        {
            "relay_ms": "case when refused then unowned_relay_ms else relay_ms end",
            "owner": "case when refused then '' else owner end",
            "owner_epoch": "case when refused then 0 else owner_epoch end",
            "leased_ms": "case when refused then 0 else leased_ms end",
        }.get(name, name)
        for name, _ in _TASK
    )
} from put
    on conflict (run_id, task_id) do update set {_assignments(_TASK, "excluded", but=tables.KEPT_TASK_COLUMNS)}
), stopped as (
    update tasks set cancel_requested = true, relay_ms = case when owner = '' then {_NOW} else relay_ms end
    from {_ARRAYS.rows("marked")}
    where tasks.run_id = marked.run_id and tasks.task_id = marked.task_id
    and (marked.unit in (select unit from good)) is true
), gone as (
    delete from tasks using {_ARRAYS.rows("dropped")}
    where tasks.run_id = dropped.run_id and tasks.task_id = dropped.task_id
    and (dropped.unit in (select unit from good)) is true
)
select array(select run_id from change where unit in (select unit from good)) as written,
    array(select run_id from put where refused) as unleased_runs,
    array(select task_id from put where refused) as unleased_tasks
"""


def commit_values(batch: Batch) -> list[Any]:
    """The parameters of `COMMIT`."""
    arrays = _ARRAYS.values(
        change=batch.run,
        needed=batch.needed,
        put=batch.put,
        marked=batch.marked,
        dropped=batch.dropped,
        asked=batch.asked,
        session=[(session_id,) for session_id in batch.session_ids],
    )
    return [*arrays, batch.now_ms]
