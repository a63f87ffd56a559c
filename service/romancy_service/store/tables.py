"""Tables: what is stored, with its invariants. The migrations make exactly this.

Times are epoch milliseconds of the database's clock. Text sorts by bytes, so that both databases lock, page and compare
in the same order. Nothing is null but what has no value of its own: bytes of an absent message.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from romancy_service.core.channel import RECEIVER
from romancy_service.core.task import ELSEWHERE, NEVER_MS

metadata = MetaData()

TEXT: Final = Text().with_variant(Text(collation="C"), "postgresql")

_BUSY: Final = {"fillfactor": 70, "autovacuum_vacuum_scale_factor": 0.02, "autovacuum_analyze_scale_factor": 0.05}
"""Rows that are rewritten or deleted soon: room for the next version on their page, and dead ones cleared often."""

# The predicates of partial indexes. A query uses such an index only if it says the same, in the same words.
OPEN: Final = "status in (1, 2)"
"""Runs to which something can still happen."""
CLOSED: Final = "status > 2"
"""Runs that are deleted once they are past their retention."""
CLAIMABLE: Final = "owner = '' and not cancel_requested and kind in (1, 2)"
"""Tasks that a worker may be given once they are due."""
WEIGHT: Final = "coalesce(length(command), 0) + coalesce(length(heartbeat_details), 0)"
"""The bytes of a task that a worker is to have. Neither database reads for it what is stored apart from a row."""
RELAYED: Final = f"relay_ms < {NEVER_MS}"
"""Tasks that the service must look at some day."""
LOOKED_AT: Final = f"look_ms < {NEVER_MS}"
"""Schedules that the service must look at some day."""
OWNED: Final = f"owner not in ('', '{ELSEWHERE}')"
"""Tasks that a session has."""
ERRAND: Final = f"kind >= 5 and relay_ms < {NEVER_MS}"
"""What is to be done in other runs."""
FAILING: Final = "kind = 1 and failures > 0"
"""Workflow tasks that code could not carry out."""
SUBSCRIBED: Final = "kind = 8"
"""Subscriptions: what events are matched with."""
RECEIVES: Final = f"kind = 8 and queue = '{RECEIVER}'"
"""Subscriptions of runs that wait for a message of a competing channel."""
UNDELIVERED: Final = "open"
"""Events that may not have reached all that wait for them."""
WAITING: Final = "waiting"
"""Events that are to be delivered to a sink."""
DEAD: Final = "not waiting"
"""Those that could not be."""


def _where(predicate: str) -> dict[str, Any]:
    return {"postgresql_where": text(predicate), "sqlite_where": text(predicate)}


def _text(name: str) -> Column[str]:
    return Column(name, TEXT, nullable=False)


def _ms(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False)


def _integer(name: str) -> Column[int]:
    return Column(name, Integer, nullable=False)


def _flag(name: str) -> Column[bool]:
    return Column(name, Boolean, nullable=False)


def _bytes(name: str, *, nullable: bool = False) -> Column[bytes]:
    return Column(name, LargeBinary, nullable=nullable)


runs = Table(
    "runs",
    metadata,
    _text("run_id"),
    _text("namespace"),
    _text("workflow_id"),
    _text("workflow_type"),
    _text("task_queue"),
    _integer("priority"),
    _text("build_id"),
    _bytes("memo"),
    _ms("start_ms"),
    _bytes("attributes"),
    _ms("version"),
    _integer("status"),
    _ms("close_ms"),
    _ms("last_event_id"),
    _ms("last_event_ms"),
    _ms("history_bytes"),
    _ms("seen_event_id"),
    _text("counters"),
    _flag("cancel_requested"),
    _integer("closing_status"),
    _bytes("failure", nullable=True),
    _bytes("outcome", nullable=True),
    _text("sticky_session"),
    _ms("sticky_event_id"),
    PrimaryKeyConstraint("run_id", name="runs_pk"),
    CheckConstraint("version >= 1", name="runs_version"),
    CheckConstraint("status between 1 and 8", name="runs_status"),
    CheckConstraint("(status > 2) = (close_ms > 0)", name="runs_close_ms"),
    CheckConstraint("status <= 2 or outcome is not null", name="runs_outcome"),
    CheckConstraint("seen_event_id <= last_event_id", name="runs_event_ids"),
    postgresql_with=_BUSY,
)

FIXED_RUN_COLUMNS: Final = (
    "run_id",
    "namespace",
    "workflow_id",
    "workflow_type",
    "task_queue",
    "priority",
    "build_id",
    "memo",
    "start_ms",
)
"""What never changes of a run."""

Index("runs_open", runs.c.namespace, runs.c.workflow_id, unique=True, **_where(OPEN))
Index("runs_by_id", runs.c.namespace, runs.c.workflow_id, runs.c.start_ms, runs.c.run_id)
Index("runs_by_start", runs.c.namespace, runs.c.start_ms, runs.c.run_id)
Index("runs_by_status", runs.c.namespace, runs.c.status, runs.c.start_ms, runs.c.run_id)
Index("runs_by_close", runs.c.namespace, runs.c.close_ms, **_where(CLOSED))
Index("runs_by_type", runs.c.namespace, runs.c.workflow_type, runs.c.status, runs.c.start_ms, runs.c.run_id)
"""With the status, so that the few of one status are found among very many of a type. Lists of a type merge those of
all statuses; an index without the status would be one more entry for each start, and one more for each end."""

history = Table(
    "history",
    metadata,
    _text("run_id"),
    _ms("last_event_id"),
    _bytes("events"),
    PrimaryKeyConstraint("run_id", "last_event_id", name="history_pk"),
    CheckConstraint("last_event_id >= 1", name="history_event_ids"),
)
"""The events of one commit in a row. Its key is the last of them, so that what comes after an event is one range."""

attributes = Table(
    "attributes",
    metadata,
    _text("run_id"),
    _text("name"),
    _integer("position"),
    _text("namespace"),
    _integer("type"),
    _text("text_value"),
    _ms("integer_value"),
    Column("number_value", Double, nullable=False),
    _ms("start_ms"),
    PrimaryKeyConstraint("run_id", "name", "position", name="attributes_pk"),
    CheckConstraint("type between 1 and 5", name="attributes_type"),
)
"""What lists are filtered on: of each attribute one row, of a list of texts one for each. The run has them whole.

A value stands in the column of its type, and the others have nothing: so one index serves all types, and gives the runs
that have a value in the order in which lists show them.
"""
KEPT_ATTRIBUTE_COLUMNS: Final = ("run_id", "name", "position", "namespace", "start_ms")
"""What a new value leaves as it is."""

Index(
    "attributes_by_value",
    attributes.c.namespace,
    attributes.c.name,
    attributes.c.type,
    attributes.c.text_value,
    attributes.c.integer_value,
    attributes.c.number_value,
    attributes.c.start_ms,
    attributes.c.run_id,
)

tasks = Table(
    "tasks",
    metadata,
    _text("run_id"),
    _text("task_id"),
    _text("namespace"),
    _integer("kind"),
    _text("queue"),
    _text("type"),
    _integer("priority"),
    _integer("attempt"),
    _ms("due_ms"),
    _bytes("command", nullable=True),
    _ms("scheduled_ms"),
    _ms("start_by_ms"),
    _ms("close_by_ms"),
    _ms("start_to_close_ms"),
    _ms("heartbeat_timeout_ms"),
    _flag("cancel_requested"),
    _integer("failures"),
    _integer("losses"),
    _ms("worked_ms"),
    _flag("outcome_unknown"),
    _bytes("last_failure", nullable=True),
    _integer("part_hash"),
    _ms("relay_ms"),
    _text("owner"),
    _ms("owner_epoch"),
    _ms("leased_ms"),
    _ms("heartbeat_ms"),
    _bytes("heartbeat_details", nullable=True),
    PrimaryKeyConstraint("run_id", "task_id", name="tasks_pk"),
    CheckConstraint("kind between 1 and 8", name="tasks_kind"),
    CheckConstraint("attempt >= 1", name="tasks_attempt"),
    CheckConstraint("(owner = '') = (owner_epoch = 0)", name="tasks_owner"),
    CheckConstraint("owner = '' or kind <= 2", name="tasks_owned_kind"),
    postgresql_with=_BUSY,
)
KEPT_TASK_COLUMNS: Final = ("run_id", "task_id", "namespace", "part_hash", "heartbeat_details")
"""What a new attempt leaves as it is: it gets the details of the heartbeats of the one before."""

Index(
    "tasks_claim",
    tasks.c.namespace,
    tasks.c.queue,
    tasks.c.kind,
    tasks.c.type,
    tasks.c.priority,
    tasks.c.due_ms,
    **_where(CLAIMABLE),
)
Index("tasks_relay", tasks.c.relay_ms, **_where(RELAYED))
Index("tasks_errands", tasks.c.run_id, tasks.c.scheduled_ms, tasks.c.task_id, **_where(ERRAND))
Index("tasks_failing", tasks.c.namespace, tasks.c.queue, tasks.c.type, tasks.c.due_ms, **_where(FAILING))
Index("tasks_owner", tasks.c.owner, **_where(OWNED))
Index(
    "tasks_subscribed",
    tasks.c.namespace,
    tasks.c.type,
    tasks.c.queue,
    tasks.c.run_id,
    tasks.c.task_id,
    **_where(SUBSCRIBED),
)
"""A subscription's `type` is its topic, its `queue` the key of the values that it asks for."""
Index(
    "tasks_receivers",
    tasks.c.namespace,
    tasks.c.type,
    tasks.c.scheduled_ms,
    tasks.c.run_id,
    tasks.c.task_id,
    **_where(RECEIVES),
)

events = Table(
    "events",
    metadata,
    Column("position", BigInteger().with_variant(Integer, "sqlite"), Identity(), nullable=False, autoincrement=True),
    _text("namespace"),
    _text("source"),
    _text("event_id"),
    _text("type"),
    _bytes("event"),
    _ms("accepted_ms"),
    _ms("forget_ms"),
    _flag("open"),
    _integer("deliveries"),
    PrimaryKeyConstraint("position", name="events_pk"),
    UniqueConstraint("namespace", "source", "event_id", name="events_once"),
    postgresql_with=_BUSY,
    sqlite_autoincrement=True,
)
"""Events that came, in their order. Those that are not open are kept so that they are known when they come again.

Messages of channels are events whose `type` is the channel's topic. `deliveries` counts how often a message that only
one run gets was given to a run, the next time included.
"""

Index("events_open", events.c.namespace, events.c.type, events.c.position, **_where(UNDELIVERED))
Index("events_by_age", events.c.forget_ms)

channels = Table(
    "channels",
    metadata,
    _text("namespace"),
    _text("channel"),
    _integer("mode"),
    _ms("version"),
    _ms("changed_ms"),
    PrimaryKeyConstraint("namespace", "channel", name="channels_pk"),
    CheckConstraint("mode between 0 and 3", name="channels_mode"),
)
"""What a channel is taken for. Who decides whether somebody may subscribe raises the version."""

Index("channels_by_age", channels.c.changed_ms)

outbox = Table(
    "outbox",
    metadata,
    Column("position", BigInteger().with_variant(Integer, "sqlite"), Identity(), nullable=False, autoincrement=True),
    _text("namespace"),
    _text("workflow_id"),
    _text("sink"),
    _text("run_id"),
    _bytes("event"),
    _ms("since_ms"),
    _flag("waiting"),
    _integer("attempts"),
    _text("error"),
    _ms("dead_ms"),
    _ms("forget_ms"),
    PrimaryKeyConstraint("position", name="outbox_pk"),
    postgresql_with=_BUSY,
    sqlite_autoincrement=True,
)
"""Events that runs sent and that are not delivered, in their order; and dead letters. They outlive their runs.

What comes after `waiting` is of dead letters: how often each was tried, why in vain, since when it is dead, and until
when it is kept. Of what waits, only the first one of a line is tried: the line has the same of that one.
"""

Index("outbox_waiting", outbox.c.namespace, outbox.c.sink, outbox.c.workflow_id, outbox.c.position, **_where(WAITING))
Index("outbox_by_age", outbox.c.namespace, outbox.c.sink, outbox.c.since_ms, **_where(WAITING))
Index("outbox_dead", outbox.c.namespace, outbox.c.sink, outbox.c.position, **_where(DEAD))
Index("outbox_by_run", outbox.c.run_id, outbox.c.position)
Index("outbox_forget", outbox.c.forget_ms, **_where(DEAD))

NOT_TRIED: Final = {"waiting": "true", "attempts": "0", "error": "''", "dead_ms": "0", "forget_ms": "0"}
"""The columns of one that was not tried yet, in SQL."""

outbox_lines = Table(
    "outbox_lines",
    metadata,
    Column("line_id", BigInteger().with_variant(Integer, "sqlite"), Identity(), nullable=False, autoincrement=True),
    _text("namespace"),
    _text("sink"),
    _text("workflow_id"),
    _ms("version"),
    _ms("due_ms"),
    _text("claim"),
    _integer("attempts"),
    _text("error"),
    PrimaryKeyConstraint("line_id", name="outbox_lines_pk"),
    UniqueConstraint("namespace", "sink", "workflow_id", name="outbox_lines_once"),
    CheckConstraint("version >= 1 and attempts >= 0", name="outbox_lines_version"),
    postgresql_with=_BUSY,
    sqlite_autoincrement=True,
)
"""The events of one workflow for one sink, which are delivered in their order: when the first one is to be tried.

Who tries it claims the line: puts it off for as long as that may take. Each commit that adds an event raises the
version: a line goes with its last event, at the version at which that was read.
"""

Index("outbox_lines_due", outbox_lines.c.namespace, outbox_lines.c.sink, outbox_lines.c.due_ms)

sinks = Table(
    "sinks",
    metadata,
    _text("namespace"),
    _text("sink"),
    _text("url"),
    _text("secret"),
    _text("old_secret"),
    _ms("old_until_ms"),
    _ms("update_ms"),
    PrimaryKeyConstraint("namespace", "sink", name="sinks_pk"),
)
"""Where events are delivered to. What is sent is signed with the secret, and with the old one until that is over."""

requests = Table(
    "requests",
    metadata,
    _text("namespace"),
    _text("request_id"),
    _text("run_id"),
    _text("method"),
    _bytes("reply"),
    _ms("created_ms"),
    PrimaryKeyConstraint("namespace", "request_id", name="requests_pk"),
)

Index("requests_by_age", requests.c.namespace, requests.c.created_ms)

queries = Table(
    "queries",
    metadata,
    _text("query_id"),
    _ms("until_ms"),
    _bytes("task"),
    _bytes("answer", nullable=True),
    PrimaryKeyConstraint("query_id", name="queries_pk"),
)
"""Questions between replicas; each is here for as long as somebody waits for its answer."""

namespaces = Table(
    "namespaces",
    metadata,
    _text("namespace"),
    _ms("retention_ms"),
    _ms("created_ms"),
    PrimaryKeyConstraint("namespace", name="namespaces_pk"),
    CheckConstraint("retention_ms > 0", name="namespaces_retention"),
)
"""Those of which something was said; the others have defaults."""

removals = Table(
    "removals",
    metadata,
    _text("run_id"),
    _ms("removed_ms"),
    PrimaryKeyConstraint("run_id", name="removals_pk"),
)
"""Runs that are deleted, whose history and all that belongs to them is still to be cleared away."""

Index("removals_by_age", removals.c.removed_ms)

schedules = Table(
    "schedules",
    metadata,
    _text("namespace"),
    _text("schedule_id"),
    _text("uid"),
    _text("workflow_type"),
    _bytes("definition"),
    _bytes("state"),
    _ms("revision"),
    _ms("version"),
    _ms("create_ms"),
    _ms("update_ms"),
    _integer("part_hash"),
    _ms("due_ms"),
    _ms("look_ms"),
    PrimaryKeyConstraint("namespace", "schedule_id", name="schedules_pk"),
    CheckConstraint("revision >= 1 and version >= 1", name="schedules_version"),
    postgresql_with=_BUSY,
)
Index("schedules_look", schedules.c.look_ms, **_where(LOOKED_AT))

event_rules = Table(
    "event_rules",
    metadata,
    _text("namespace"),
    _text("rule_id"),
    _text("uid"),
    _text("topic"),
    _text("event_key"),
    _bytes("definition"),
    _flag("paused"),
    _text("note"),
    _ms("since_ms"),
    _ms("create_ms"),
    _ms("update_ms"),
    _ms("started_count"),
    _ms("skipped_count"),
    _ms("failed_count"),
    _ms("start_ms"),
    _text("last_error"),
    _ms("last_error_ms"),
    PrimaryKeyConstraint("namespace", "rule_id", name="event_rules_pk"),
    UniqueConstraint("uid", name="event_rules_uid"),
    postgresql_with=_BUSY,
)
"""Which events start workflows. `topic` and `event_key` are those of a subscription."""

Index("event_rules_by_topic", event_rules.c.namespace, event_rules.c.topic)

sessions = Table(
    "sessions",
    metadata,
    _text("session_id"),
    _text("namespace"),
    _text("worker_id"),
    _text("replica_id"),
    _ms("epoch"),
    _ms("lease_ms"),
    _flag("connected"),
    _flag("draining"),
    _ms("start_ms"),
    _bytes("hello"),
    PrimaryKeyConstraint("session_id", name="sessions_pk"),
    CheckConstraint("session_id <> '' and epoch >= 1", name="sessions_epoch"),
    postgresql_with=_BUSY,
)

offers = Table(
    "offers",
    metadata,
    _text("namespace"),
    _text("digest"),
    _bytes("hello"),
    _text("worker_id"),
    _ms("seen_ms"),
    PrimaryKeyConstraint("namespace", "digest", name="offers_pk"),
)
"""What workers took that are gone: one row for all that took the same, with the last of them."""

Index("offers_by_age", offers.c.namespace, offers.c.seen_ms)

replicas = Table(
    "replicas",
    metadata,
    _text("replica_id"),
    _ms("seen_ms"),
    PrimaryKeyConstraint("replica_id", name="replicas_pk"),
)

keys = Table(
    "keys",
    metadata,
    _text("key_id"),
    _bytes("secret"),
    _ms("created_ms"),
    PrimaryKeyConstraint("key_id", name="keys_pk"),
)

clock = Table(
    "clock",
    metadata,
    _integer("id"),
    _ms("mark_ms"),
    PrimaryKeyConstraint("id", name="clock_pk"),
    CheckConstraint("id = 1", name="clock_one_row"),
)
