"""Effects in a database of yours that happen exactly once: a transaction that also records the activity's result.

    sessions = async_sessionmaker(create_async_engine("postgresql+asyncpg://..."))

    @compensation
    @undoing(sessions)
    async def refund(session: AsyncSession, account: str, amount: int) -> None: ...

    @activity(compensation=refund)
    @transactional(sessions)
    async def charge(session: AsyncSession, account: str, amount: int) -> Receipt: ...

A repeated attempt returns the recorded result and repeats nothing; an attempt that a newer one, or its compensation,
has replaced cannot commit any more. Needs the extra `romancy[sqlalchemy]`; docs/effects.md tells the rest.
"""

from __future__ import annotations

try:
    import sqlalchemy.ext.asyncio  # noqa: F401 - only to see that it is there
except ModuleNotFoundError as missing:
    raise ImportError("romancy.sqlalchemy needs SQLAlchemy: pip install 'romancy[sqlalchemy]'") from missing

from romancy.sqlalchemy.decorators import transactional, undoing
from romancy.sqlalchemy.ledger import AttemptReplaced
from romancy.sqlalchemy.table import create_table, effects, metadata

__all__ = ["AttemptReplaced", "create_table", "effects", "metadata", "transactional", "undoing"]
