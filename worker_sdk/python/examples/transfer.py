"""Money between accounts in a database of yours: each posting happens exactly once, whatever crashes.

    python transfer.py work sqlite+aiosqlite:///bank.db    # a worker; or postgresql+asyncpg://HOST/DATABASE
    python transfer.py alice bob 30                        # a transfer: prints what alice has then

The service is that of ROMANCY_ADDRESS, or on this machine.
"""

from __future__ import annotations

import asyncio
import os
import sys

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

from romancy import Client, TerminalError, Worker, WorkflowContext, activity, compensation, workflow
from romancy.sqlalchemy import create_table, transactional, undoing

ADDRESS = os.environ.get("ROMANCY_ADDRESS", "127.0.0.1:7233")
sessions = async_sessionmaker[AsyncSession]()  # gets its engine once it is known, in work()


class Base(MappedAsDataclass, DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "accounts"
    name: Mapped[str] = mapped_column(primary_key=True)
    balance: Mapped[int]


@compensation
@undoing(sessions)
async def give_back(session: AsyncSession, name: str, amount: int) -> None:
    """Called only if the money was taken."""
    account = await session.get_one(Account, name, with_for_update=True)
    account.balance += amount


@activity(compensation=give_back)
@transactional(sessions)
async def take(session: AsyncSession, name: str, amount: int) -> int:
    """Returns what is left."""
    account = await session.get(Account, name, with_for_update=True)
    if account is None or account.balance < amount:
        raise TerminalError(f"{name} does not have {amount}")
    account.balance -= amount
    return account.balance


@activity
@transactional(sessions)
async def give(session: AsyncSession, name: str, amount: int) -> int:
    account = await session.get(Account, name, with_for_update=True)
    if account is None:
        raise TerminalError(f"{name} has no account")
    account.balance += amount
    return account.balance


@workflow
async def transfer(ctx: WorkflowContext, source: str, target: str, amount: int) -> int:
    left = await take(source, amount)
    await give(target, amount)  # if this fails for good, the money goes back
    return left


async def set_up(bank: str) -> None:
    """Tables, and two accounts."""
    engine = create_async_engine(bank)
    async with engine.begin() as connection:
        await connection.run_sync(create_table)
        await connection.run_sync(Base.metadata.create_all)
    async with async_sessionmaker(engine).begin() as session:
        for name in ("alice", "bob"):
            if await session.get(Account, name) is None:
                session.add(Account(name, 100))
    await engine.dispose()


def work(bank: str) -> None:
    # Async activities run on an event loop of their own, so this engine is for them alone.
    sessions.configure(bind=create_async_engine(bank))
    Worker(ADDRESS, workflows=[transfer], activities=[take, give]).run()


async def ask(source: str, target: str, amount: int) -> int:
    async with Client(ADDRESS) as client:
        return await client.execute_workflow(transfer, source, target, amount)


if __name__ == "__main__":
    if sys.argv[1] == "work":
        asyncio.run(set_up(sys.argv[2]))
        work(sys.argv[2])
    else:
        source, target, amount = sys.argv[1:]
        print(asyncio.run(ask(source, target, int(amount))))
