"""Races on Postgres, step by step: another transaction is held open, so that a statement stops where it could go wrong.

What runs at random finds such windows rarely. Here each statement has begun, and seen the database as it was, before
the other transaction changes what it rests on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import asyncpg
import pytest

from romancy_service.core.task import WORKFLOW_TASK_ID, TaskKind
from romancy_service.errors import BatchRejected
from romancy_service.store.store import Change, Store, Want, open_store
from tests.store.drive import NAMESPACE, T0, begin, completes, reloaded, request, session, waiting_activities

Other = asyncpg.Connection


@pytest.fixture
def url(fresh_postgres: Callable[[], str]) -> str:
    return fresh_postgres()


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    store = open_store(url)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def other(url: str) -> AsyncIterator[Other]:
    """Somebody else, within a transaction."""
    connection = await asyncpg.connect(url)
    await connection.execute("begin")
    yield connection
    await connection.close()


@pytest.fixture
async def watch(url: str) -> AsyncIterator[Other]:
    """Looks at who waits for whom."""
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


async def until_waiting(watch: Other, statements: int = 1) -> None:
    """Until so many statements wait for a lock that somebody else has."""
    async with asyncio.timeout(10):
        while await watch.fetchval("select count(distinct pid) from pg_locks where not granted") < statements:
            pass


async def deadlocks(watch: Other) -> int:
    """How many there were. The statement that lost one repeats itself, so that nothing else tells."""
    await watch.execute("select pg_stat_force_next_flush()")
    count: int = await watch.fetchval("select deadlocks from pg_stat_database where datname = current_database()")
    return count


async def test_a_run_that_is_changed_while_a_commit_waits_for_it_is_not_overwritten(
    store: Store, other: Other, watch: Other
) -> None:
    run = await waiting_activities(store, ["pay:1"])
    await other.execute("update runs set version = version + 1 where run_id = $1", run.run_id)

    commit = asyncio.create_task(store.commit([completes(run, "pay:1")], T0))
    await until_waiting(watch)
    await other.execute("commit")

    assert (await commit).written == set()
    assert "a/pay:1" in (await reloaded(store, run)).tasks


async def test_a_task_that_changes_hands_while_a_commit_waits_for_it_is_not_consumed(
    store: Store, other: Other, watch: Other
) -> None:
    await session(store)
    run = await waiting_activities(store, ["pay:1"])
    await store.claim([want(1)], T0)
    await other.execute("update tasks set owner_epoch = 2 where task_id = 'a/pay:1'")

    commit = asyncio.create_task(store.commit([completes(run, "pay:1", owner="session-1", epoch=1)], T0))
    await until_waiting(watch)
    await other.execute("commit")

    assert (await commit).written == set()
    assert (await reloaded(store, run)).tasks["a/pay:1"].owner_epoch == 2


async def test_a_task_for_a_session_whose_epoch_is_being_raised_goes_in_without_owner(
    store: Store, other: Other, watch: Other
) -> None:
    lease = await session(store)
    run = begin()
    await other.execute("update sessions set epoch = 2")

    commit = asyncio.create_task(store.commit([Change(run, leases={WORKFLOW_TASK_ID: lease})], T0))
    await until_waiting(watch)
    await other.execute("commit")

    assert (await commit).unleased == {(run.run_id, WORKFLOW_TASK_ID)}
    assert (await reloaded(store, run)).tasks[WORKFLOW_TASK_ID].owner == ""


async def test_a_claim_for_a_session_whose_epoch_is_being_raised_finds_nothing(
    store: Store, other: Other, watch: Other
) -> None:
    await session(store)
    await waiting_activities(store, ["pay:1"])
    await other.execute("update sessions set epoch = 2")

    claim = asyncio.create_task(store.claim([want(1)], T0))
    await until_waiting(watch)
    await other.execute("commit")

    assert await claim == []


async def test_a_claim_leaves_out_what_others_have_locked_and_does_not_wait(store: Store, other: Other) -> None:
    await session(store)
    await waiting_activities(store, ["pay:1", "pay:2"])
    await other.execute("select 1 from tasks where task_id = 'a/pay:1' for update")

    async with asyncio.timeout(3):
        claimed = await store.claim([want(2)], T0)

    assert [task.task.task_id for task in claimed] == ["a/pay:2"]


async def test_a_task_that_is_taken_between_a_claims_look_and_its_lock_is_not_claimed_twice(
    store: Store, other: Other, watch: Other
) -> None:
    await session(store)
    run = await waiting_activities(store, ["pay:1"])
    # The claim stops at the session, after it has seen the database with the task still free.
    await other.execute("select 1 from sessions for update")
    claim = asyncio.create_task(store.claim([want(1)], T0))
    await until_waiting(watch)
    await watch.execute("update tasks set owner = 'thief', owner_epoch = 1 where task_id = 'a/pay:1'")
    await other.execute("commit")

    assert await claim == []
    assert (await reloaded(store, run)).tasks["a/pay:1"].owner == "thief"


@pytest.mark.parametrize("key", ["workflow id", "request id"])
async def test_batches_that_want_the_same_new_keys_in_opposite_order_do_not_deadlock(
    store: Store, other: Other, watch: Other, key: str
) -> None:
    names = ["a", "m", "z"]

    def batch(prefix: str, order: list[str]) -> list[Change]:
        if key == "workflow id":
            return [Change(begin(name, run_id=f"{prefix}-{n}")) for n, name in enumerate(order)]
        runs = [begin(f"{prefix}-{name}", run_id=f"{prefix}-{n}") for n, name in enumerate(order)]
        return [Change(run, requests=[request(run, name)]) for run, name in zip(runs, order, strict=True)]

    # Somebody has the key in the middle, so that each batch stops with its first ones inserted.
    if key == "workflow id":
        await other.execute(
            "insert into runs select 'other', 'default', 'm', 'order', 'main', 0, '', '', 1, '', 1, 1, 0, 1, 1, 1, 0,"
            " '{}', false, 0, null, null, '', 0"
        )
    else:
        await other.execute("insert into requests values ('default', 'm', 'other', 'StartWorkflow', '', 1)")
    first_batch, second_batch = batch("first", names), batch("second", names[::-1])
    first = asyncio.create_task(store.commit(first_batch, T0))
    await until_waiting(watch, 1)
    second = asyncio.create_task(store.commit(second_batch, T0))
    await until_waiting(watch, 2)
    await other.execute("rollback")

    outcomes = await asyncio.gather(first, second, return_exceptions=True)

    assert await deadlocks(watch) == 0
    assert not isinstance(outcomes[0], BaseException)
    assert outcomes[0].written == {change.run.run_id for change in first_batch}
    assert isinstance(outcomes[1], BatchRejected)
    assert outcomes[1].conflict


def want(slots: int) -> Want:
    return Want(NAMESPACE, "main", TaskKind.ACTIVITY, "pay", slots, "session-1", 1)
