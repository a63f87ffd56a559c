"""What only SQLite has: one file, one process, a clock of its own."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from romancy_service.core.task import TaskKind
from romancy_service.errors import StoreUnavailable
from romancy_service.store import sqlite_tasks
from romancy_service.store.sqlite import SqliteStore
from romancy_service.store.store import Change, StoreRefused, Want, open_store
from tests.store.drive import T0, begin, store_all

_OPEN_AND_WAIT = """
import asyncio, sys
from romancy_service import logs
from romancy_service.store.store import open_store
async def main():
    logs.configure()  # on standard error
    store = open_store(sys.argv[1])
    await store.open()
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "romancy.db")


async def test_a_second_process_is_refused_and_told_who_has_the_file(path: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(  # noqa: ASYNC220 - nothing else runs meanwhile
        [sys.executable, "-c", _OPEN_AND_WAIT, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"

        with pytest.raises(StoreRefused, match=f"romancy.db is in use by process {holder.pid}"):
            await open_store(path).open()

        holder.kill()
        holder.wait()
    store = open_store(path)
    await store.open()
    await store.close()


async def test_a_second_store_in_the_same_process_is_refused_too(path: str) -> None:
    first = open_store(path)
    await first.open()
    with pytest.raises(StoreRefused, match="in use"):
        await open_store(path).open()
    await first.close()
    second = open_store(path)
    await second.open()
    await second.close()


async def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match="nowhere"):
        await open_store(str(tmp_path / "nowhere" / "romancy.db")).open()


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database, but a text that is long enough to look at\n" * 100)
    store = open_store(str(tmp_path / "notes.txt"))
    with pytest.raises(StoreRefused, match="cannot use the database file"):
        await store.open()
    await store.close()


async def test_time_goes_on_from_where_it_was_when_the_machines_clock_is_set_back(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(path)
    await store.open()
    before_ms = await store.now_ms()
    await store_all(store, Change(begin(now_ms=before_ms + 5_000)), now_ms=before_ms + 5_000)
    await store.close()

    monkeypatch.setattr(time, "time_ns", lambda: 0)
    store = open_store(path)
    await store.open()
    after_ms = await store.now_ms()
    assert after_ms >= before_ms + 5_000
    moment = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: moment + 60)
    assert await store.now_ms() >= after_ms + 60_000 - 1_000
    await store.close()


async def test_a_commit_that_does_not_fit_on_the_disk_is_unavailable_and_the_next_one_that_fits_is_written(
    path: str,
) -> None:
    store = open_store(path)
    await store.open()
    small, large = begin("small"), begin("large")
    large.memo = b"x" * 4_000_000

    await store._writing.run(_limit(pages=200))  # type: ignore[attr-defined]
    with pytest.raises(StoreUnavailable, match="full"):
        await store.commit([Change(large)], T0)
    await store_all(store, Change(small))

    await store._writing.run(_limit(pages=100_000))  # type: ignore[attr-defined]
    await store_all(store, Change(large))
    await store.close()


def _limit(pages: int) -> object:
    return lambda connection: connection.execute(f"pragma max_page_count = {pages}").fetchall()


async def test_what_was_committed_is_in_the_file_when_the_process_dies(path: str) -> None:
    store = open_store(path)
    await store.open()
    run = begin()
    await store_all(store, Change(run))
    # Another connection stands for the process that comes after: nothing of the first was closed.
    with sqlite3.connect(path) as other:
        assert other.execute("select run_id from runs").fetchall() == [(run.run_id,)]
    other.close()
    await store.close()


async def test_a_store_that_was_closed_is_unavailable(path: str) -> None:
    store = open_store(path)
    await store.open()
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.load(["any"])


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        *(((3, 40, 1), False), ((3, 44, 5), False), ((3, 44, 6), True), ((3, 45, 0), False), ((3, 50, 6), False)),
        *(((3, 50, 7), True), ((3, 51, 2), False), ((3, 51, 3), True), ((3, 53, 0), True)),
    ],
)
async def test_a_library_that_can_damage_files_which_others_open_too_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...], safe: bool
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    store = open_store(str(tmp_path / "romancy.db"))
    with structlog.testing.capture_logs() as lines:
        await store.open()
    await store.close()
    assert any("can damage a file" in line["event"] for line in lines) is not safe


_LATER = """
insert into tasks
with recursive number (n) as (select 1 union all select n + 1 from number where n < :count)
select 'run-' || n, 'w', 'default', 1, 'main', 'order', n % 3, 1, 1000 + n, null, n, 1e18, 1e18, 1e18, 1e18,
    0, 1, 0, 0, 0, null, 0, 1e18, '', 0, 0, 0, null from number
"""


def _steps(connection: sqlite3.Connection, work: Callable[[], object]) -> int:
    """How many instructions of SQLite's own it takes."""
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    connection.set_progress_handler(count, 1)
    work()
    connection.set_progress_handler(None, 0)
    return steps


async def test_what_is_due_later_is_not_walked_through_however_much_it_is(path: str) -> None:
    store = open_store(path)
    await store.open()
    assert isinstance(store, SqliteStore)
    want = Want("default", "main", TaskKind.WORKFLOW, "order", 10, "s", 1)
    keys = [("default", "main", TaskKind.WORKFLOW, "order")]

    def looked(connection: sqlite3.Connection) -> tuple[int, int]:
        connection.execute("insert into sessions values ('s', 'default', 'w', 'r', 1, 1, 1, 0, 1, '')")
        steps = []
        for count in (30, 3_000):
            connection.execute("delete from tasks")
            connection.execute(_LATER, {"count": count})
            assert sqlite_tasks.claim(connection, [want], 999) == []
            assert sqlite_tasks.agenda(connection, 999, keys).waiting == []
            assert sqlite_tasks.agenda(connection, 1_001, keys).waiting == keys
            steps.append(
                _steps(connection, lambda: sqlite_tasks.claim(connection, [want], 999))
                + _steps(connection, lambda: sqlite_tasks.agenda(connection, 999, keys))
            )
        connection.execute("delete from tasks")
        return steps[0], steps[1]

    try:
        few, many = await store._writing.run(looked)
    finally:
        await store.close()
    assert many < 2 * few
