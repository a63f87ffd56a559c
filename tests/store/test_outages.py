"""What the store says when the database goes away, and that it goes on when the database is back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import asyncpg
import pytest

from romancy_service import faults
from romancy_service.errors import StoreUnavailable
from romancy_service.store import postgres
from romancy_service.store.postgres import PostgresStore
from romancy_service.store.store import Change, Store, open_store
from tests.store.drive import NAMESPACE, T0, begin, reloaded, request, store_all


async def test_a_commit_of_unknown_outcome_is_unavailable_and_was_carried_out(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin()
    with monkeypatch.context() as patch:
        patch.setattr(faults, "ambiguous", lambda name: name == "commit")
        with pytest.raises(StoreUnavailable):
            await store.commit([Change(run, requests=[request(run)])], T0)

    assert (await store.commit([Change(run, requests=[request(run)])], T0)).written == set()
    assert (NAMESPACE, "request-1") in await store.find_requests([(NAMESPACE, "request-1")])
    assert (await reloaded(store, run)).version == 1


async def test_every_commit_passes_the_crash_points(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[str] = []
    monkeypatch.setattr(faults, "point", reached.append)
    await store_all(store, Change(begin()))
    await store.claim([], T0)
    assert reached == ["commit.before", "commit.after", "claim.after"]


async def test_connections_that_were_cut_are_replaced(fresh_postgres: Callable[[], str]) -> None:
    url = fresh_postgres()
    store = open_store(url)
    await store.open()
    assert isinstance(store, PostgresStore)
    run = begin()
    await store_all(store, Change(run))
    await asyncio.gather(*(store.commit([Change(begin(f"idle-{number}"))], T0) for number in range(store.lanes)))
    assert len(store._idle_lanes) == store.lanes

    connection = await asyncpg.connect(url)
    await connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )
    await connection.close()

    async with asyncio.timeout(10):
        while any(map(postgres._is_open, store._idle_lanes)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    other = begin("other")
    assert (await store.commit([Change(other)], T0)).written == {other.run_id}
    assert set(await store.load([run.run_id, other.run_id])) == {run.run_id, other.run_id}
    await store.close()


async def test_a_server_that_is_not_there_is_unavailable(postgres_url: str) -> None:
    store = open_store(postgres_url.replace("romancy-pg-", "nowhere-"))
    with pytest.raises(StoreUnavailable, match="does not answer"):
        await store.open()
    await store.close()


async def test_locks_that_others_hold_for_long_are_waited_for_and_then_given_up(
    fresh_postgres: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "CLASHES", 2)
    monkeypatch.setitem(postgres._SETTINGS, "lock_timeout", "100ms")
    url = fresh_postgres()
    store = open_store(url)
    await store.open()
    run = begin()
    await store_all(store, Change(run))
    blocker = await asyncpg.connect(url)
    async with blocker.transaction():
        await blocker.execute("select 1 from runs for update")
        with pytest.raises(StoreUnavailable, match="clashed with others 2 times"):
            await store.commit([Change(run)], T0)
    assert (await store.commit([Change(run)], T0)).written == {run.run_id}
    await blocker.close()
    await store.close()
