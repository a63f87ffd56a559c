"""The first tables: runs and what is theirs, requests, schedules, namespaces, sessions, offers, replicas, keys,
the clock."""

from __future__ import annotations

import secrets
import time
from typing import Any, Final

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_TEXT: Final = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_BUSY: Final = {"fillfactor": 70, "autovacuum_vacuum_scale_factor": 0.02, "autovacuum_analyze_scale_factor": 0.05}


def _where(predicate: str) -> dict[str, Any]:
    return {"postgresql_where": sa.text(predicate), "sqlite_where": sa.text(predicate)}


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "attributes",
        sa.Column("run_id", _TEXT, nullable=False),
        sa.Column("name", _TEXT, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("namespace", _TEXT, nullable=False),
        sa.Column("type", sa.Integer(), nullable=False),
        sa.Column("text_value", _TEXT, nullable=False),
        sa.Column("integer_value", sa.BigInteger(), nullable=False),
        sa.Column("number_value", sa.Double(), nullable=False),
        sa.Column("start_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("type between 1 and 5", name="attributes_type"),
        sa.PrimaryKeyConstraint("run_id", "name", "position", name="attributes_pk"),
    )
    op.create_index(
        "attributes_by_value",
        "attributes",
        ["namespace", "name", "type", "text_value", "integer_value", "number_value", "start_ms", "run_id"],
    )
    clock = op.create_table(
        "clock",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("mark_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("id = 1", name="clock_one_row"),
        sa.PrimaryKeyConstraint("id", name="clock_pk"),
    )
    op.create_table(
        "history",
        sa.Column("run_id", _TEXT, nullable=False),
        sa.Column("last_event_id", sa.BigInteger(), nullable=False),
        sa.Column("events", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("last_event_id >= 1", name="history_event_ids"),
        sa.PrimaryKeyConstraint("run_id", "last_event_id", name="history_pk"),
    )
    keys = op.create_table(
        "keys",
        sa.Column("key_id", _TEXT, nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", name="keys_pk"),
    )
    op.create_table(
        "namespaces",
        sa.Column("namespace", _TEXT, nullable=False),
        sa.Column("retention_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("retention_ms > 0", name="namespaces_retention"),
        sa.PrimaryKeyConstraint("namespace", name="namespaces_pk"),
    )
    op.create_table(
        "removals",
        sa.Column("run_id", _TEXT, nullable=False),
        sa.Column("removed_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", name="removals_pk"),
    )
    op.create_index("removals_by_age", "removals", ["removed_ms"])
    op.create_table(
        "offers",
        sa.Column("namespace", _TEXT, nullable=False),
        sa.Column("digest", _TEXT, nullable=False),
        sa.Column("hello", sa.LargeBinary(), nullable=False),
        sa.Column("worker_id", _TEXT, nullable=False),
        sa.Column("seen_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "digest", name="offers_pk"),
    )
    op.create_index("offers_by_age", "offers", ["namespace", "seen_ms"])
    op.create_table(
        "replicas",
        sa.Column("replica_id", _TEXT, nullable=False),
        sa.Column("seen_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("replica_id", name="replicas_pk"),
    )
    op.create_table(
        "requests",
        sa.Column("namespace", _TEXT, nullable=False),
        sa.Column("request_id", _TEXT, nullable=False),
        sa.Column("run_id", _TEXT, nullable=False),
        sa.Column("method", _TEXT, nullable=False),
        sa.Column("reply", sa.LargeBinary(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "request_id", name="requests_pk"),
    )
    op.create_index("requests_by_age", "requests", ["namespace", "created_ms"])
    op.create_table(
        "runs",
        sa.Column("run_id", _TEXT, nullable=False),
        sa.Column("namespace", _TEXT, nullable=False),
        sa.Column("workflow_id", _TEXT, nullable=False),
        sa.Column("workflow_type", _TEXT, nullable=False),
        sa.Column("task_queue", _TEXT, nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("build_id", _TEXT, nullable=False),
        sa.Column("memo", sa.LargeBinary(), nullable=False),
        sa.Column("start_ms", sa.BigInteger(), nullable=False),
        sa.Column("attributes", sa.LargeBinary(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("close_ms", sa.BigInteger(), nullable=False),
        sa.Column("last_event_id", sa.BigInteger(), nullable=False),
        sa.Column("last_event_ms", sa.BigInteger(), nullable=False),
        sa.Column("history_bytes", sa.BigInteger(), nullable=False),
        sa.Column("seen_event_id", sa.BigInteger(), nullable=False),
        sa.Column("counters", _TEXT, nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("closing_status", sa.Integer(), nullable=False),
        sa.Column("failure", sa.LargeBinary(), nullable=True),
        sa.Column("outcome", sa.LargeBinary(), nullable=True),
        sa.Column("sticky_session", _TEXT, nullable=False),
        sa.Column("sticky_event_id", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("(status > 2) = (close_ms > 0)", name="runs_close_ms"),
        sa.CheckConstraint("seen_event_id <= last_event_id", name="runs_event_ids"),
        sa.CheckConstraint("status <= 2 or outcome is not null", name="runs_outcome"),
        sa.CheckConstraint("status between 1 and 8", name="runs_status"),
        sa.CheckConstraint("version >= 1", name="runs_version"),
        sa.PrimaryKeyConstraint("run_id", name="runs_pk"),
        postgresql_with=_BUSY,
    )
    op.create_index("runs_by_close", "runs", ["namespace", "close_ms"], **_where("status > 2"))
    op.create_index("runs_by_id", "runs", ["namespace", "workflow_id", "start_ms", "run_id"])
    op.create_index("runs_by_start", "runs", ["namespace", "start_ms", "run_id"])
    op.create_index("runs_by_status", "runs", ["namespace", "status", "start_ms", "run_id"])
    op.create_index("runs_by_type", "runs", ["namespace", "workflow_type", "status", "start_ms", "run_id"])
    op.create_index("runs_open", "runs", ["namespace", "workflow_id"], unique=True, **_where("status in (1, 2)"))
    op.create_table(
        "schedules",
        sa.Column("namespace", _TEXT, nullable=False),
        sa.Column("schedule_id", _TEXT, nullable=False),
        sa.Column("uid", _TEXT, nullable=False),
        sa.Column("workflow_type", _TEXT, nullable=False),
        sa.Column("definition", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("create_ms", sa.BigInteger(), nullable=False),
        sa.Column("update_ms", sa.BigInteger(), nullable=False),
        sa.Column("part_hash", sa.Integer(), nullable=False),
        sa.Column("due_ms", sa.BigInteger(), nullable=False),
        sa.Column("look_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("revision >= 1 and version >= 1", name="schedules_version"),
        sa.PrimaryKeyConstraint("namespace", "schedule_id", name="schedules_pk"),
        postgresql_with=_BUSY,
    )
    op.create_index("schedules_look", "schedules", ["look_ms"], **_where("look_ms < 4611686018427387904"))
    op.create_table(
        "sessions",
        sa.Column("session_id", _TEXT, nullable=False),
        sa.Column("namespace", _TEXT, nullable=False),
        sa.Column("worker_id", _TEXT, nullable=False),
        sa.Column("replica_id", _TEXT, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("lease_ms", sa.BigInteger(), nullable=False),
        sa.Column("connected", sa.Boolean(), nullable=False),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.Column("start_ms", sa.BigInteger(), nullable=False),
        sa.Column("hello", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("session_id <> '' and epoch >= 1", name="sessions_epoch"),
        sa.PrimaryKeyConstraint("session_id", name="sessions_pk"),
        postgresql_with=_BUSY,
    )
    op.create_table(
        "queries",
        sa.Column("query_id", _TEXT, nullable=False),
        sa.Column("until_ms", sa.BigInteger(), nullable=False),
        sa.Column("task", sa.LargeBinary(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("query_id", name="queries_pk"),
    )
    op.create_table(
        "channels",
        sa.Column("namespace", _TEXT, nullable=False),
        sa.Column("channel", _TEXT, nullable=False),
        sa.Column("mode", sa.Integer(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("changed_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("mode between 0 and 3", name="channels_mode"),
        sa.PrimaryKeyConstraint("namespace", "channel", name="channels_pk"),
    )
    op.create_index("channels_by_age", "channels", ["changed_ms"])
    op.create_table(
        "outbox",
        sa.Column(
            "position",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            sa.Identity(),
            nullable=False,
            autoincrement=True,
        ),
        sa.Column("namespace", _TEXT, nullable=False),
        sa.Column("workflow_id", _TEXT, nullable=False),
        sa.Column("sink", _TEXT, nullable=False),
        sa.Column("run_id", _TEXT, nullable=False),
        sa.Column("event", sa.LargeBinary(), nullable=False),
        sa.Column("since_ms", sa.BigInteger(), nullable=False),
        sa.Column("waiting", sa.Boolean(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("error", _TEXT, nullable=False),
        sa.Column("dead_ms", sa.BigInteger(), nullable=False),
        sa.Column("forget_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("position", name="outbox_pk"),
        postgresql_with=_BUSY,
        sqlite_autoincrement=True,
    )
    op.create_index("outbox_waiting", "outbox", ["namespace", "sink", "workflow_id", "position"], **_where("waiting"))
    op.create_index("outbox_by_age", "outbox", ["namespace", "sink", "since_ms"], **_where("waiting"))
    op.create_index("outbox_dead", "outbox", ["namespace", "sink", "position"], **_where("not waiting"))
    op.create_index("outbox_by_run", "outbox", ["run_id", "position"])
    op.create_index("outbox_forget", "outbox", ["forget_ms"], **_where("not waiting"))
    op.create_table(
        "outbox_lines",
        sa.Column(
            "line_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            sa.Identity(),
            nullable=False,
            autoincrement=True,
        ),
        sa.Column("namespace", _TEXT, nullable=False),
        sa.Column("sink", _TEXT, nullable=False),
        sa.Column("workflow_id", _TEXT, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("due_ms", sa.BigInteger(), nullable=False),
        sa.Column("claim", _TEXT, nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("error", _TEXT, nullable=False),
        sa.PrimaryKeyConstraint("line_id", name="outbox_lines_pk"),
        sa.UniqueConstraint("namespace", "sink", "workflow_id", name="outbox_lines_once"),
        sa.CheckConstraint("version >= 1 and attempts >= 0", name="outbox_lines_version"),
        postgresql_with=_BUSY,
        sqlite_autoincrement=True,
    )
    op.create_index("outbox_lines_due", "outbox_lines", ["namespace", "sink", "due_ms"])
    op.create_table(
        "sinks",
        sa.Column("namespace", _TEXT, nullable=False),
        sa.Column("sink", _TEXT, nullable=False),
        sa.Column("url", _TEXT, nullable=False),
        sa.Column("secret", _TEXT, nullable=False),
        sa.Column("old_secret", _TEXT, nullable=False),
        sa.Column("old_until_ms", sa.BigInteger(), nullable=False),
        sa.Column("update_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "sink", name="sinks_pk"),
    )
    op.create_table(
        "events",
        sa.Column(
            "position",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            sa.Identity(),
            nullable=False,
            autoincrement=True,
        ),
        sa.Column("namespace", _TEXT, nullable=False),
        sa.Column("source", _TEXT, nullable=False),
        sa.Column("event_id", _TEXT, nullable=False),
        sa.Column("type", _TEXT, nullable=False),
        sa.Column("event", sa.LargeBinary(), nullable=False),
        sa.Column("accepted_ms", sa.BigInteger(), nullable=False),
        sa.Column("forget_ms", sa.BigInteger(), nullable=False),
        sa.Column("open", sa.Boolean(), nullable=False),
        sa.Column("deliveries", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("position", name="events_pk"),
        sa.UniqueConstraint("namespace", "source", "event_id", name="events_once"),
        postgresql_with=_BUSY,
        sqlite_autoincrement=True,
    )
    op.create_index("events_open", "events", ["namespace", "type", "position"], **_where("open"))
    op.create_index("events_by_age", "events", ["forget_ms"])
    op.create_table(
        "event_rules",
        sa.Column("namespace", _TEXT, nullable=False),
        sa.Column("rule_id", _TEXT, nullable=False),
        sa.Column("uid", _TEXT, nullable=False),
        sa.Column("topic", _TEXT, nullable=False),
        sa.Column("event_key", _TEXT, nullable=False),
        sa.Column("definition", sa.LargeBinary(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("note", _TEXT, nullable=False),
        sa.Column("since_ms", sa.BigInteger(), nullable=False),
        sa.Column("create_ms", sa.BigInteger(), nullable=False),
        sa.Column("update_ms", sa.BigInteger(), nullable=False),
        sa.Column("started_count", sa.BigInteger(), nullable=False),
        sa.Column("skipped_count", sa.BigInteger(), nullable=False),
        sa.Column("failed_count", sa.BigInteger(), nullable=False),
        sa.Column("start_ms", sa.BigInteger(), nullable=False),
        sa.Column("last_error", _TEXT, nullable=False),
        sa.Column("last_error_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "rule_id", name="event_rules_pk"),
        sa.UniqueConstraint("uid", name="event_rules_uid"),
        postgresql_with=_BUSY,
    )
    op.create_index("event_rules_by_topic", "event_rules", ["namespace", "topic"])
    op.create_table(
        "tasks",
        sa.Column("run_id", _TEXT, nullable=False),
        sa.Column("task_id", _TEXT, nullable=False),
        sa.Column("namespace", _TEXT, nullable=False),
        sa.Column("kind", sa.Integer(), nullable=False),
        sa.Column("queue", _TEXT, nullable=False),
        sa.Column("type", _TEXT, nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("due_ms", sa.BigInteger(), nullable=False),
        sa.Column("command", sa.LargeBinary(), nullable=True),
        sa.Column("scheduled_ms", sa.BigInteger(), nullable=False),
        sa.Column("start_by_ms", sa.BigInteger(), nullable=False),
        sa.Column("close_by_ms", sa.BigInteger(), nullable=False),
        sa.Column("start_to_close_ms", sa.BigInteger(), nullable=False),
        sa.Column("heartbeat_timeout_ms", sa.BigInteger(), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("losses", sa.Integer(), nullable=False),
        sa.Column("worked_ms", sa.BigInteger(), nullable=False),
        sa.Column("outcome_unknown", sa.Boolean(), nullable=False),
        sa.Column("last_failure", sa.LargeBinary(), nullable=True),
        sa.Column("part_hash", sa.Integer(), nullable=False),
        sa.Column("relay_ms", sa.BigInteger(), nullable=False),
        sa.Column("owner", _TEXT, nullable=False),
        sa.Column("owner_epoch", sa.BigInteger(), nullable=False),
        sa.Column("leased_ms", sa.BigInteger(), nullable=False),
        sa.Column("heartbeat_ms", sa.BigInteger(), nullable=False),
        sa.Column("heartbeat_details", sa.LargeBinary(), nullable=True),
        sa.CheckConstraint("(owner = '') = (owner_epoch = 0)", name="tasks_owner"),
        sa.CheckConstraint("owner = '' or kind <= 2", name="tasks_owned_kind"),
        sa.CheckConstraint("attempt >= 1", name="tasks_attempt"),
        sa.CheckConstraint("kind between 1 and 8", name="tasks_kind"),
        sa.PrimaryKeyConstraint("run_id", "task_id", name="tasks_pk"),
        postgresql_with=_BUSY,
    )
    op.create_index(
        "tasks_claim",
        "tasks",
        ["namespace", "queue", "kind", "type", "priority", "due_ms"],
        **_where("owner = '' and not cancel_requested and kind in (1, 2)"),
    )
    op.create_index(
        "tasks_subscribed", "tasks", ["namespace", "type", "queue", "run_id", "task_id"], **_where("kind = 8")
    )
    op.create_index(
        "tasks_receivers",
        "tasks",
        ["namespace", "type", "scheduled_ms", "run_id", "task_id"],
        **_where("kind = 8 and queue = 'receiver'"),
    )
    op.create_index(
        "tasks_errands",
        "tasks",
        ["run_id", "scheduled_ms", "task_id"],
        **_where("kind >= 5 and relay_ms < 4611686018427387904"),
    )
    op.create_index(
        "tasks_failing", "tasks", ["namespace", "queue", "type", "due_ms"], **_where("kind = 1 and failures > 0")
    )
    op.create_index("tasks_owner", "tasks", ["owner"], **_where("owner not in ('', 'elsewhere')"))
    op.create_index("tasks_relay", "tasks", ["relay_ms"], **_where("relay_ms < 4611686018427387904"))
    op.bulk_insert(clock, [{"id": 1, "mark_ms": 0}])
    op.bulk_insert(
        keys, [{"key_id": "1", "secret": secrets.token_bytes(32), "created_ms": time.time_ns() // 1_000_000}]
    )
