"""The commit on Postgres: one statement, whatever the batch holds.

How it is right. All of a statement sees the database as it was when it began; only rows that it locks by key are seen
as they are. So it locks what a change rests on: the run, then the tasks that it uses, then the sessions that get tasks,
each in order of their keys, so that no two commits wait for each other. Each of these is a *fact* that holds or not,
and a unit (one change, or two that are written together) is good if all its facts hold. Everything else is written only
for good units. What is unique but cannot be locked, because it is not there yet (an open workflow id, a request id), is
inserted in order of its key: the later of two batches waits, fails, and is decided again.

How it is fast. One round trip. The statement has only the parts that its batch needs, one for each `Shape`: to set up a
plan and take it down is most of what a lone commit costs. And no table is read but by key: the connections plan with
bitmap scans only, which need a key. A plan that was made while a table was small would else walk over it, and stays
when the table has grown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from romancy_service.store import tables
from romancy_service.store.arrays import ANY_TEXT, Arrays, Columns, columns_of
from romancy_service.store.batch import DROP, MARK, Batch

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
_ATTRIBUTE: Final = columns_of(tables.attributes)
_LISTS: Final[dict[str, Columns]] = {
    "change": (*_UNIT, *_RUN, ("writes", "bool"), ("peer", "text"), ("events", "bytea")),
    "used": (
        *_UNIT,
        ("run_id", "text"),
        ("task_id", "text"),
        ("attempt", "int"),
        ("owner", "text"),
        ("epoch", "bigint"),
        ("relay_ms", "bigint"),
        ("use", "int"),
    ),
    "put": (*_UNIT, *_TASK, ("unowned_relay_ms", "bigint")),
    "asked": (*_UNIT, *_REQUEST),
    "shown": (*_UNIT, *((name, ANY_TEXT if name == "text_value" else kind) for name, kind in _ATTRIBUTE)),
    "hidden": (*_UNIT, ("run_id", "text"), ("name", "text"), ("kept", "int")),
    "sent": (
        *_UNIT,
        ("number", "int"),
        ("namespace", "text"),
        ("workflow_id", "text"),
        ("sink", "text"),
        ("run_id", "text"),
        ("event", "bytea"),
        ("since_ms", "bigint"),
    ),
    "line": (
        *_UNIT,
        ("namespace", "text"),
        ("sink", "text"),
        ("workflow_id", "text"),
        ("due_ms", "bigint"),
    ),
    "session": (("session_id", "text"),),
}
_VERSION: Final = 1 + [name for name, _ in _RUN].index("version")
_GOOD: Final = "(select units from good)[{}.unit]"
"""SQL: whether a row's unit is written. An array by unit: looked up without a join."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Which parts a batch needs. There are few: under load nearly all batches need nearly all of them."""

    opens: bool = True
    """Has new runs."""
    updates: bool = True
    uses: bool = True
    """Rests on tasks, or removes or marks them."""
    drops: bool = True
    marks: bool = True
    puts: bool = True
    leases: bool = True
    """Some of the tasks it puts go in leased."""
    asks: bool = True
    """Carries out requests of clients."""
    shows: bool = True
    """Gives attributes to runs."""
    hides: bool = True
    """Takes attributes away."""
    single: bool = False
    """Is one change, with no more than one row of each kind: nothing else goes on."""
    sends: bool = True
    """Has events for sinks."""

    @classmethod
    def of(cls, batch: Batch) -> Shape:
        """What this batch needs."""
        opened = sum(row[_VERSION] == 1 for row in batch.run)
        uses = {row[-1] for row in batch.used}
        return cls(
            opens=opened > 0,
            updates=opened < len(batch.run),
            uses=bool(uses),
            drops=DROP in uses,
            marks=MARK in uses,
            puts=bool(batch.put),
            leases=bool(batch.session_ids),
            asks=bool(batch.asked),
            shows=bool(batch.shown),
            hides=bool(batch.hidden),
            single=batch.is_single,
            sends=bool(batch.sent),
        )

    def lists(self) -> Arrays:
        """The parameters of the statement."""
        there = {
            "change": True,
            "used": self.uses,
            "put": self.puts,
            "asked": self.asks,
            "shown": self.shows,
            "hidden": self.hides,
            "sent": self.sends,
            "line": self.sends,
            "session": self.leases,
        }
        return Arrays(single=self.single, **{name: columns for name, columns in _LISTS.items() if there[name]})


def _names(columns: Iterable[tuple[str, str]]) -> str:
    return ", ".join(name for name, _ in columns)


def _assignments(columns: Iterable[tuple[str, str]], source: str, *, but: Sequence[str]) -> str:
    return ", ".join(f"{name} = {source}.{name}" for name, _ in columns if name not in but)


_PUT: Final = {
    "relay_ms": "case when refused then unowned_relay_ms else relay_ms end",
    "owner": "case when refused then '' else owner end",
    "owner_epoch": "case when refused then 0 else owner_epoch end",
    "leased_ms": "case when refused then 0 else leased_ms end",
}
"""What differs in a task whose session is not there to have it."""


@lru_cache
def statement(shape: Shape) -> tuple[str, Arrays]:
    """The statement that commits batches of this shape, and its parameters."""
    lists = shape.lists()
    parts = [*_facts(shape, lists), *_writes(shape, lists)]
    unleased = "array(select {} from put where refused)" if shape.leases else "array[]::text[]"
    sql = f"""
with {", ".join(parts)}
select array(select run_id from change where {_GOOD.format("change")}) as written,
    {unleased.format("run_id")} as unleased_runs,
    {unleased.format("task_id")} as unleased_tasks
"""
    return sql, lists


def _facts(shape: Shape, lists: Arrays) -> Iterator[str]:
    """What the changes rest on. `version` is the one to be stored, a run must have the one before, a new one none."""
    facts = ["run_fact"]
    yield _listed(shape, lists, "change", "run_id")
    yield f"""run_fact as materialized (
        select change.unit, case when change.version > 1 then found.version is not distinct from change.version - 1
            else found.version is null and not exists (
                select from runs as other where other.namespace = change.namespace
                and other.workflow_id = change.workflow_id and other.{tables.OPEN} and other.run_id <> change.peer)
            end as holds
        from change left join lateral (
            select version from runs where run_id = change.run_id for update) as found on true)"""
    if shape.uses:
        facts.append("task_fact")
        yield _listed(shape, lists, "used", "run_id, task_id")
        yield """task_fact as materialized (
            select used.unit, found.holds is not null as holds
            from (select * from used where (select count(*) from run_fact) >= 0) as used left join lateral (
                select true as holds from tasks where run_id = used.run_id and task_id = used.task_id
                and (used.attempt = 0
                    or (attempt = used.attempt and owner = used.owner and owner_epoch = used.epoch))
                and (used.relay_ms < 0 or relay_ms = used.relay_ms) for update) as found on true)"""
    if shape.leases:
        yield f"""session as materialized (
            select session_id, epoch from sessions where session_id = any({lists.column("session", "session_id")})
            and (select count(*) from {facts[-1]}) >= 0 order by session_id for share)"""
    if shape.asks:
        facts.append("request_fact")
        yield _listed(shape, lists, "asked", "namespace, request_id")
        # The limit keeps this a lookup: `not exists` would hash the whole table.
        yield """request_fact as materialized (
            select asked.unit, found.run_id is null as holds from asked left join lateral (
                select run_id from requests where namespace = asked.namespace and request_id = asked.request_id
                limit 1) as found on true)"""
    every = " union all ".join(f"select unit, holds from {fact}" for fact in facts)
    yield f"""good as materialized (
        select array_agg(holds order by unit) as units
        from (select unit, bool_and(holds) as holds from ({every}) as fact group by unit) as judged)"""


def _listed(shape: Shape, lists: Arrays, name: str, key: str) -> str:
    """A list as a table in order of its key; a single row is no table at all, but values where they are used."""
    if shape.single:
        return f"{name} as not materialized (select * from {lists.rows(name)})"
    return f"{name} as materialized (select * from {lists.rows(name)} order by {key})"


def _writes(shape: Shape, lists: Arrays) -> Iterator[str]:
    """What is written. Runs that close go before those that open, since they may have the same workflow id."""
    if shape.updates:
        yield f"""updated as (
            update runs set {_assignments(_RUN, "change", but=tables.FIXED_RUN_COLUMNS)} from change
            where runs.run_id = change.run_id and change.version > 1 and change.writes and {_GOOD.format("change")}
            returning runs.run_id)"""
    if shape.opens:
        after = " and (select count(*) from updated) >= 0" if shape.updates else ""
        yield f"""opened as (
            insert into runs ({_names(_RUN)}) select {_names(_RUN)} from change
            where version = 1 and writes and {_GOOD.format("change")}{after}
            order by namespace, workflow_id returning run_id)"""
    if shape.asks:
        after = " and (select count(*) from opened) >= 0" if shape.opens else ""
        yield f"""remembered as (
            insert into requests ({_names(_REQUEST)}) select {_names(_REQUEST)} from asked
            where {_GOOD.format("asked")}{after} order by namespace, request_id)"""
    yield f"""recorded as (
        insert into history (run_id, last_event_id, events)
        select run_id, last_event_id, events from change
        where events is not null and {_GOOD.format("change")})"""
    if shape.puts:
        yield from _put(shape, lists)
    if shape.shows:
        yield f"""shown_now as (
            insert into attributes ({_names(_ATTRIBUTE)}) select {_names(_ATTRIBUTE)} from {lists.rows("shown")}
            where {_GOOD.format("shown")} on conflict (run_id, name, position)
            do update set {_assignments(_ATTRIBUTE, "excluded", but=tables.KEPT_ATTRIBUTE_COLUMNS)})"""
    if shape.hides:
        # Other rows than those that are shown now: a statement may touch each only once.
        yield f"""hidden_now as (
            delete from attributes using {lists.rows("hidden")}
            where attributes.run_id = hidden.run_id and attributes.name = hidden.name
            and attributes.position >= hidden.kept and {_GOOD.format("hidden")})"""
    if shape.sends:
        yield from _send(lists)
    if shape.marks:
        now = f"${lists.next_parameter}::bigint"
        yield f"""marked as (
            update tasks set cancel_requested = true,
                relay_ms = case when tasks.owner = '' then {now} else tasks.relay_ms end
            from used where tasks.run_id = used.run_id and tasks.task_id = used.task_id
            and used.use = {MARK:d} and {_GOOD.format("used")})"""
    if shape.drops:
        yield f"""dropped as (
            delete from tasks using used where tasks.run_id = used.run_id and tasks.task_id = used.task_id
            and used.use = {DROP:d} and {_GOOD.format("used")})"""


def _put(shape: Shape, lists: Arrays) -> Iterator[str]:
    values = ", ".join(_PUT.get(name, name) if shape.leases else name for name, _ in _TASK)
    if shape.leases:
        yield f"""put as materialized (
            select put.*, put.owner <> '' and session.epoch is null as refused from {lists.rows("put")}
            left join session on session.session_id = put.owner and session.epoch = put.owner_epoch
            where {_GOOD.format("put")})"""
    source = "put" if shape.leases else f"{lists.rows('put')} where {_GOOD.format('put')}"
    yield f"""stored as (
        insert into tasks ({_names(_TASK)}) select {values} from {source}
        on conflict (run_id, task_id) do update set {_assignments(_TASK, "excluded", but=tables.KEPT_TASK_COLUMNS)})"""


def _send(lists: Arrays) -> Iterator[str]:
    """Events of a workflow get their positions in the order in which it sent them. Lines are locked in the order of
    their columns, as whoever delivers does."""
    yield f"""sent_now as (
        insert into outbox (namespace, workflow_id, sink, run_id, event, since_ms, {", ".join(tables.NOT_TRIED)})
        select namespace, workflow_id, sink, run_id, event, since_ms, {", ".join(tables.NOT_TRIED.values())}
        from {lists.rows("sent")} where {_GOOD.format("sent")} order by number)"""
    yield f"""lined_up as (
        insert into outbox_lines (namespace, sink, workflow_id, version, due_ms, claim, attempts, error)
        select namespace, sink, workflow_id, 1, due_ms, '', 0, '' from {lists.rows("line")}
        where {_GOOD.format("line")} order by namespace collate "C", sink collate "C", workflow_id collate "C"
        on conflict (namespace, sink, workflow_id) do update set version = outbox_lines.version + 1)"""


def commit_statement(batch: Batch) -> tuple[str, list[Any]]:
    """The statement for a batch, and the values of its parameters."""
    shape = Shape.of(batch)
    sql, lists = statement(shape)
    arrays = lists.values(
        change=batch.run,
        used=batch.used,
        put=batch.put,
        asked=batch.asked,
        shown=batch.shown,
        hidden=batch.hidden,
        sent=batch.sent,
        line=batch.lines,
        session=[(session_id,) for session_id in batch.session_ids],
    )
    return sql, [*arrays, *([batch.now_ms] if shape.marks else [])]
