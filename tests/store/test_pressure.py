"""What clients read holds up nothing of the service's own, and is stopped when it takes too long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from sqlalchemy import text

from romancy.v1.workflow_service_pb2 import WorkflowFilter

from romancy_service.core.task import TaskKind
from romancy_service.errors import QueryTooSlow, StoreUnavailable
from romancy_service.store import postgres, sqlite
from romancy_service.store.rows import Row
from romancy_service.store.store import Change, Store, Want, open_store
from tests.store.drive import NAMESPACE, T0, begin, session, store_all, waiting_activities

ENDLESS = text("with recursive n (x) as (select 1 union all select (x + 1) % 1000 from n) select count(*) from n")
MANY = 12
"""More than there are connections for clients."""


@pytest.fixture
async def impatient(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    """A store that stops what clients read after a tenth of a second."""
    for module in (postgres, sqlite):
        monkeypatch.setattr(module, "CLIENT_READ_S", 0.1)
    store = open_store(database_url)
    await store.open()
    yield store
    await store.close()


async def _stop(tasks: list[asyncio.Task[Sequence[Row]]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_slow_searches_and_lookups_of_clients_hold_up_nothing_that_the_service_needs(store: Store) -> None:
    await session(store)
    run = await waiting_activities(store, ["reserve:1"])
    slow = [asyncio.create_task(read(ENDLESS)) for read in (store._search, store._show) for _ in range(MANY)]
    await asyncio.sleep(0)

    want = Want(NAMESPACE, "main", TaskKind.ACTIVITY, "reserve", 1, "session-1", 1)
    assert [task.run_id for task in await store.claim([want], T0)] == [run.run_id]
    assert await store.renew_sessions([("session-1", 1)], T0 + 60_000) == []
    assert await store.due(T0, 10, 0, 1) == []
    assert await store.lost(T0, 10) == []
    assert set(await store.load([run.run_id])) == {run.run_id}
    await store.beat("replica", T0)
    await store.notify("{}")
    await store_all(store, Change(begin("another")))
    assert not any(task.done() for task in slow)

    await _stop(slow)


async def test_slow_searches_of_clients_do_not_hold_up_what_clients_find_by_key(store: Store) -> None:
    run = begin()
    await store_all(store, Change(run))
    slow = [asyncio.create_task(store._search(ENDLESS)) for _ in range(MANY)]
    await asyncio.sleep(0)

    assert await store.find_runs([(NAMESPACE, "order-1", "")]) == [run.run_id]
    assert len(await store.show_history(run.run_id, 0, 10, 1_000)) == 1
    assert await store.outcomes([run.run_id]) == {run.run_id: (NAMESPACE, None)}
    assert not any(task.done() for task in slow)

    await _stop(slow)


async def test_what_takes_the_database_too_long_is_stopped_and_says_what_to_do(impatient: Store) -> None:
    for read in (impatient._search, impatient._show):
        with pytest.raises(QueryTooSlow, match=r"took longer than 0\.1 s and was stopped; narrow the filter"):
            await read(ENDLESS)
    assert await impatient.list_runs(NAMESPACE, WorkflowFilter(), None, 10) == []


async def test_the_service_s_own_reads_are_not_cut_off(impatient: Store) -> None:
    a_while = text(
        "with recursive n (x) as (select 1 union all select x + 1 from n where x < 3000000) select max(x) as top from n"
    )
    with pytest.raises(QueryTooSlow):
        await impatient._show(a_while)
    assert (await impatient._read(a_while))[0]["top"] == 3_000_000


async def test_a_client_that_gets_no_connection_in_time_is_told_so(
    fresh_postgres: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = postgres.PostgresStore(fresh_postgres(), lanes=1)
    await store.open()
    monkeypatch.setattr(postgres, "CONNECT_S", 0.05)
    taken = [await store._searches.acquire() for _ in range(postgres.SEARCHES)]
    with pytest.raises(StoreUnavailable, match="no connection to the database was free"):
        await store.count_runs(NAMESPACE, WorkflowFilter())
    for connection in taken:
        await store._searches.release(connection)
    assert await store.count_runs(NAMESPACE, WorkflowFilter()) == (0, False)
    await store.close()
