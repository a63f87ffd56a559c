"""Migrations: they make what tables.py says, once, whoever starts first."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateIndex, CreateTable

from romancy_service.config import InvalidConfig
from romancy_service.store.store import StoreRefused, open_store
from romancy_service.store.tables import metadata
from tests.store.drive import session


def _differences(connection: Connection) -> list[object]:
    return list(compare_metadata(MigrationContext.configure(connection), metadata))


async def test_the_migrated_tables_are_those_of_the_code(database_url: str) -> None:
    store = open_store(database_url)
    await store.open()
    await store.close()

    if database_url.startswith("postgresql"):
        engine = create_async_engine(
            "postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(database_url), poolclass=NullPool
        )
        async with engine.connect() as connection:
            assert await connection.run_sync(_differences) == []
        await engine.dispose()
    else:
        with create_engine(f"sqlite:///{database_url}", poolclass=NullPool).connect() as connection:
            assert _differences(connection) == []


async def test_checks_and_partial_indexes_are_those_of_the_code_too(tmp_path: Path) -> None:
    """What a comparison of tables does not look at, read from what SQLite keeps of each statement."""
    store = open_store(str(tmp_path / "romancy.db"))
    await store.open()
    await store.close()
    connection = sqlite3.connect(tmp_path / "romancy.db")
    migrated = connection.execute(
        "select sql from sqlite_master where sql is not null and name not like 'alembic%' and name not like 'sqlite%'"
    )
    dialect = SQLiteDialect_pysqlite()
    wanted = [
        *(str(CreateTable(table).compile(dialect=dialect)) for table in metadata.sorted_tables),
        *(str(CreateIndex(i).compile(dialect=dialect)) for table in metadata.sorted_tables for i in table.indexes),
    ]
    assert {_words(sql) for (sql,) in migrated} == {_words(sql) for sql in wanted}
    connection.close()


def _words(sql: str) -> tuple[str, ...]:
    """The parts of a statement whatever the order of its constraints."""
    return tuple(sorted(re.sub(r"\s+", " ", part).strip(" ()") for part in sql.split(",")))


async def test_opening_a_database_again_keeps_what_is_in_it(database_url: str) -> None:
    for _ in range(2):
        store = open_store(database_url)
        await store.open()
        keys = await store.signing_keys()
        if not await store.list_sessions("default"):
            await session(store)
        assert len(await store.list_sessions("default")) == 1
        assert await store.signing_keys() == keys
        await store.close()


async def test_replicas_that_start_together_migrate_once(empty_postgres: Callable[[], str]) -> None:
    url = empty_postgres()
    stores = [open_store(url) for _ in range(3)]

    await asyncio.gather(*(store.open() for store in stores))

    keys = [await store.signing_keys() for store in stores]
    assert keys == [keys[0]] * 3
    for store in stores:
        await store.close()


async def test_tables_of_a_newer_version_are_left_alone(database_url: str) -> None:
    store = open_store(database_url)
    await store.open()
    await store.close()
    newer = "update alembic_version set version_num = '9999'"
    if database_url.startswith("postgresql"):
        connection = await asyncpg.connect(database_url)
        await connection.execute(newer)
        await connection.close()
    else:
        with sqlite3.connect(database_url) as file:
            file.execute(newer)
        file.close()

    store = open_store(database_url)
    await store.open()
    await session(store)
    await store.close()


async def test_a_database_that_is_not_there_is_refused_with_its_name(postgres_url: str) -> None:
    store = open_store(postgres_url.replace("/postgres?", "/nowhere?"))
    with pytest.raises(StoreRefused, match="nowhere"):
        await store.open()


@pytest.mark.parametrize("database", ["", ":memory:", "mysql://host/romancy"])
def test_other_databases_are_refused(database: str) -> None:
    with pytest.raises(InvalidConfig, match="SQLite file"):
        open_store(database)
