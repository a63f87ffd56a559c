"""Table: `romancy_effects`, one row for each activity whose effect is in this database, and for each that undid one."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    DateTime,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    func,
    select,
)
from sqlalchemy.schema import CreateTable

metadata: Final = MetaData()
"""Holds the table alone: one more target for those who let Alembic write their migrations."""

effects: Final = Table(
    "romancy_effects",
    metadata,
    # Together the activity's idempotency key. Run ids are unique over all namespaces.
    Column("run_id", Text, primary_key=True),
    Column("activity_id", Text, primary_key=True),
    # Which attempt came last. A compensation that an operator has tried again counts from 1 again, but later.
    Column("scheduled_ms", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    # Raised by each attempt before it works: only the one that raised it last can record a result.
    Column("fence", BigInteger, nullable=False),
    # Its compensation has begun: no attempt can record a result any more.
    Column("closed", Boolean, nullable=False),
    # The result as it goes to the service, with what was sent: a serialised
    # romancy.v1.ActivityCompletion; null until the effect is committed.
    Column("result", LargeBinary),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.current_timestamp()),
)

_LOCK: Final = 0x526F6D616E6379
"""Of those who create the table on Postgres, where "if not exists" alone lets two of them fail."""


def create_table(connection: Connection) -> None:
    """Create `romancy_effects` unless it is there; any number of processes may do so at once.

    From async code: `await connection.run_sync(create_table)`.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    connection.execute(CreateTable(effects, if_not_exists=True))
