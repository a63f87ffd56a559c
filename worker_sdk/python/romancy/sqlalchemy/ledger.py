"""Ledger: the statements on `romancy_effects`. Each function is a part of a transaction that its caller ends.

An attempt first raises the fence of its row, in a transaction of its own (`begin`). Then it works, in a second one
that ends with recording the result (`record`), which holds only if nobody raised the fence in between. On Postgres the
row is locked only from there to the commit: an attempt that is frozen in its work does not hold up its successor.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import event, func, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from romancy.v1.command_pb2 import SendEvent
from romancy.v1.payload_pb2 import Payload
from romancy.v1.worker_service_pb2 import ActivityCompletion

from romancy._attempt import ActivityInfo
from romancy.errors import DefinitionError, RomancyError
from romancy.sqlalchemy.table import effects

IDLE_MS: Final = 60_000
"""So long may an attempt's transaction say nothing to Postgres, and no longer than the attempt may take at all.

Then Postgres ends it: a frozen worker's locks would hold up the next attempt for hours. It can be changed in the
transaction, and does not apply where the database has a limit of its own.
"""

_UNDO: Final = "undo/"
"""What the id of a compensation has before the id of the activity that it undoes."""
_OF_NO_ACTIVITY: Final = re.compile(r"undo/#\d+|undo-child/.*")
_INSERTS: Final = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


class AttemptReplaced(RomancyError):
    """A newer attempt, or the compensation, has taken over: what this attempt did in its transaction is rolled back."""


@dataclass(frozen=True, slots=True)
class Begun:
    """The attempt may work, and record its result under this fence."""

    fence: int
    undone: Payload | None = None
    """What the activity returned that this attempt undoes."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """There is nothing to do: the effect is committed, and this is the result."""

    result: Payload
    events: Sequence[SendEvent] = ()
    """What the attempt sent: its completion may never have arrived."""


@dataclass(frozen=True, slots=True)
class NothingToUndo:
    """There is nothing to do: what should be undone never had its effect, and never will."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt, as its row knows it."""

    run_id: str
    activity_id: str
    scheduled_ms: int
    number: int
    undone_id: str
    """The activity that it undoes; empty if it is no compensation, or one that belongs to no activity."""
    idle_ms: int

    @staticmethod
    def of(info: ActivityInfo) -> Attempt:
        """The attempt that runs. Raises DefinitionError when its id cannot be told from a compensation's."""
        activity_id = info.activity_id
        if not info.is_compensation and activity_id.startswith(_UNDO):
            raise DefinitionError(f"{info.activity_type} is no compensation: its name must not begin with {_UNDO!r}")
        undone = info.is_compensation and not _OF_NO_ACTIVITY.fullmatch(activity_id)
        timeout = info.start_to_close_timeout
        return Attempt(
            info.run_id,
            activity_id,
            round(info.scheduled_time.timestamp() * 1000),
            info.attempt,
            activity_id.removeprefix(_UNDO) if undone else "",
            IDLE_MS if timeout is None else min(IDLE_MS, max(1, round(timeout.total_seconds() * 1000))),
        )

    def __str__(self) -> str:
        return f"attempt {self.number} of {self.run_id}/{self.activity_id}"


def begin(session: Session, attempt: Attempt, *, only_if_done: bool) -> Begun | Recorded | NothingToUndo:
    """Raise the fence, and close that of the activity which the attempt undoes; to be committed before any work.

    `only_if_done`: without an effect to undo there is nothing to do. Raises AttemptReplaced.
    """
    try:
        undone = _close(session, attempt) if attempt.undone_id else None
        if attempt.undone_id and undone is None and only_if_done:
            return NothingToUndo()
        fence = _raise_fence(session, attempt)
        return Begun(fence, undone) if fence is not None else _standing(session, attempt)
    except DBAPIError as error:
        if effects.name in str(error.orig):
            error.add_note(f"if there is no table {effects.name}: romancy.sqlalchemy.create_table makes it")
        raise


def _close(session: Session, attempt: Attempt) -> Payload | None:
    """Let no attempt of the undone activity commit any more. Returns its result; None: it had no effect."""
    key = {"run_id": attempt.run_id, "activity_id": attempt.undone_id}
    closing = {"closed": True, "fence": effects.c.fence + 1}
    statement = _insert(session).values(**key, scheduled_ms=0, attempt=0, fence=0, closed=True)
    closed = session.execute(
        statement.on_conflict_do_update(index_elements=list(key), set_=closing).returning(effects.c.result)
    )
    recorded = _recorded(closed.scalar_one())
    return None if recorded is None else recorded.result


def _raise_fence(session: Session, attempt: Attempt) -> int | None:
    """The fence of this attempt; None if it may not work."""
    key = {"run_id": attempt.run_id, "activity_id": attempt.activity_id}
    place = {"scheduled_ms": attempt.scheduled_ms, "attempt": attempt.number}
    statement = _insert(session).values(**key, **place, fence=0, closed=False)
    raised = statement.on_conflict_do_update(
        index_elements=list(key),
        set_={**place, "fence": effects.c.fence + 1},
        where=(
            effects.c.result.is_(None)
            & ~effects.c.closed
            & (
                tuple_(effects.c.scheduled_ms, effects.c.attempt)
                <= tuple_(statement.excluded.scheduled_ms, statement.excluded.attempt)
            )
        ),
    )
    fence: int | None = session.execute(raised.returning(effects.c.fence)).scalar_one_or_none()
    return fence


def _standing(session: Session, attempt: Attempt) -> Recorded:
    """Why the attempt may not work: there is a result, or it was replaced."""
    row = session.execute(
        select(effects.c.result, effects.c.closed, effects.c.attempt).where(
            effects.c.run_id == attempt.run_id, effects.c.activity_id == attempt.activity_id
        )
    ).one()
    if row.closed:
        raise AttemptReplaced(f"{attempt} cannot act any more: its compensation has begun")
    recorded = _recorded(row.result)
    if recorded is None:
        raise AttemptReplaced(f"{attempt} cannot act any more: attempt {row.attempt} has begun")
    return recorded


def open_work(session: Session, attempt: Attempt, fence: int) -> None:
    """Begin the transaction of the work. Raises AttemptReplaced, and DefinitionError when there is no transaction."""
    session.begin()
    connection = session.connection()
    if connection.dialect.name == "sqlite":
        # Writing comes first: whoever reads first and then finds that another has written is refused by SQLite.
        _check_held(session, attempt, fence, {"fence": fence})
        driver: Any = connection.connection.driver_connection
        autocommit = not driver.in_transaction
    else:
        autocommit = getattr(connection.connection.dbapi_connection, "autocommit", False)
    if autocommit:
        raise DefinitionError(
            "the sessionmaker's engine commits each statement by itself (AUTOCOMMIT): an effect and its record must be "
            "committed together, so give @transactional and @undoing one that has transactions"
        )
    if connection.dialect.name == "postgresql":
        setting = "idle_in_transaction_session_timeout"
        limited = func.set_config(setting, str(attempt.idle_ms), True)
        session.execute(select(limited).where(func.current_setting(setting) == "0"))
    event.listen(session, "before_commit", _refuse_commit)


def record(session: Session, attempt: Attempt, fence: int, recorded: Recorded) -> None:
    """Record the result and what was sent; to be committed next.

    Raises AttemptReplaced when the fence was raised meanwhile.
    """
    session.flush()
    completion = ActivityCompletion(result=recorded.result, events=recorded.events)
    _check_held(session, attempt, fence, {"result": completion.SerializeToString()})
    event.remove(session, "before_commit", _refuse_commit)


def _check_held(session: Session, attempt: Attempt, fence: int, values: dict[str, Any]) -> None:
    """Write `values` into the attempt's row, whose lock this takes. Raises AttemptReplaced when it is not its own."""
    written = session.connection().execute(
        update(effects)
        .where(
            effects.c.run_id == attempt.run_id,
            effects.c.activity_id == attempt.activity_id,
            effects.c.fence == fence,
        )
        .values(values)
    )
    if written.rowcount != 1:
        raise AttemptReplaced(f"{attempt} was replaced while it worked: what it did is rolled back")


def _refuse_commit(session: Session) -> None:
    if not session.in_nested_transaction():  # a savepoint is no commit
        raise DefinitionError(
            "the function of @transactional or @undoing must not commit: its transaction is committed, together with "
            "the result, when it returns"
        )


def _insert(session: Session) -> Any:
    """An INSERT that can do something else on conflict."""
    dialect = session.connection().dialect.name
    if dialect not in _INSERTS:
        raise DefinitionError(f"effects are recorded on {' and '.join(_INSERTS)}, but the engine is for {dialect}")
    return _INSERTS[dialect](effects)


def _recorded(stored: bytes | None) -> Recorded | None:
    if stored is None:
        return None
    completion = ActivityCompletion.FromString(stored)
    return Recorded(completion.result, completion.events)
