"""Several replicas on one Postgres: whatever they do at the same time, each thing happens once and nobody stalls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

import asyncpg
import pytest

from romancy_service.core.task import TaskKind
from romancy_service.core.triggers import LoseTask
from romancy_service.errors import BatchRejected
from romancy_service.store.store import Beat, Change, CommitResult, LeasedRow, Store, Want, open_store
from tests.store.drive import (
    NAMESPACE,
    T0,
    begin,
    completes,
    reloaded,
    request,
    session,
    then,
    waiting_activities,
)

EVERYTHING = 2**40


@pytest.fixture
def url(fresh_postgres: Callable[[], str]) -> str:
    return fresh_postgres()


@pytest.fixture
async def replicas(url: str) -> AsyncIterator[tuple[Store, Store]]:
    """Two stores on one database."""
    stores = open_store(url), open_store(url)
    for store in stores:
        await store.open()
    yield stores
    for store in stores:
        await store.close()


async def in_halves(store: Store, changes: Sequence[Change]) -> set[str]:
    """Commit as the engine does: what a batch cannot, its halves may."""
    try:
        result: CommitResult = await store.commit(changes, T0)
    except BatchRejected as error:
        if len(changes) == 1 or not error.conflict:
            return set()
        middle = len(changes) // 2
        return await in_halves(store, changes[:middle]) | await in_halves(store, changes[middle:])
    return result.written


async def test_two_replicas_that_start_the_same_ids_in_opposite_order_start_each_once(
    replicas: tuple[Store, Store],
) -> None:
    ids = [f"order-{n}" for n in range(64)]
    for attempt in range(5):
        batches = [
            [Change(begin(f"{attempt}-{name}"), requests=[]) for name in names] for names in (ids, list(reversed(ids)))
        ]
        written = await asyncio.gather(*(in_halves(s, batch) for s, batch in zip(replicas, batches, strict=True)))
        started = {c.run.run_id: c.run.workflow_id for batch in batches for c in batch}
        assert sorted(started[run_id] for ids_ in written for run_id in ids_) == sorted(f"{attempt}-{i}" for i in ids)


async def test_the_same_requests_sent_to_two_replicas_are_carried_out_once(replicas: tuple[Store, Store]) -> None:
    names = [f"request-{n}" for n in range(64)]
    batches = []
    for order in (names, list(reversed(names))):
        runs = [(begin(f"run of {name} {order[0]}"), name) for name in order]
        batches.append([Change(run, requests=[request(run, name)]) for run, name in runs])

    written = await asyncio.gather(*(in_halves(s, batch) for s, batch in zip(replicas, batches, strict=True)))

    run_ids = written[0] | written[1]
    carried_out = [c.requests[0].request_id for batch in batches for c in batch if c.run.run_id in run_ids]
    assert sorted(carried_out) == sorted(names)
    found = await replicas[0].find_requests([(NAMESPACE, name) for name in names])
    assert {request.run_id for request in found.values()} == run_ids


async def test_of_two_changes_of_the_same_runs_one_is_written_and_neither_waits_for_ever(
    replicas: tuple[Store, Store],
) -> None:
    runs = [await waiting_activities(replicas[0], ["pay:1", "ship:1"]) for _ in range(32)]
    for _ in range(2):
        ours, theirs = [[await reloaded(store, run) for run in runs] for store in replicas]
        name = "pay:1" if "a/pay:1" in ours[0].tasks else "ship:1"
        mine = [completes(run, name) for run in ours]
        other = [completes(run, name) for run in reversed(theirs)]

        first, second = await asyncio.gather(replicas[0].commit(mine, T0), replicas[1].commit(other, T0))

        assert first.written.isdisjoint(second.written)
        assert first.written | second.written == {run.run_id for run in runs}
    for run in runs:
        events = await replicas[0].show_history(run.run_id, 0, EVERYTHING, EVERYTHING)
        assert [event.event_id for event in events] == list(range(1, 6))


async def test_an_attempt_that_is_completed_here_and_lost_there_ends_once(replicas: tuple[Store, Store]) -> None:
    await session(replicas[0])
    for _ in range(10):
        run = await waiting_activities(replicas[0], ["pay:1"])
        await replicas[0].claim([want(64)], T0)
        ours, theirs = await reloaded(replicas[0], run), await reloaded(replicas[1], run)
        done = completes(ours, "pay:1", owner="session-1", epoch=1)
        lost = then(theirs, LoseTask(replace(done.fences[0])))

        first, second = await asyncio.gather(replicas[0].commit([done], T0), replicas[1].commit([lost], T0))

        assert len(first.written) + len(second.written) == 1


async def test_a_replica_that_slept_between_claim_and_commit_writes_nothing(replicas: tuple[Store, Store]) -> None:
    frozen, awake = replicas
    await session(frozen)
    run = await waiting_activities(frozen, ["pay:1"])
    await frozen.claim([want(1)], T0)
    done = completes(await reloaded(frozen, run), "pay:1", owner="session-1", epoch=1)

    await awake.resume_session("session-1", NAMESPACE, "replica-2", b"", T0 + 60_000)
    await awake.leased_tasks("session-1", 2)

    assert (await frozen.commit([done], T0)).written == set()
    assert (await frozen.heartbeat([Beat(run.run_id, "a/pay:1", 1, "session-1", 1, None)], T0)) == [False]
    done.fences = [replace(done.fences[0], epoch=2)]
    assert (await awake.commit([done], T0)).written == {run.run_id}


async def test_a_hello_finds_every_task_that_was_leased_under_the_old_epoch(replicas: tuple[Store, Store]) -> None:
    lease = await session(replicas[0])
    changes = [Change(begin(f"order-{n}"), leases={"w": lease}) for n in range(64)]

    async def hello() -> tuple[int, set[str]]:
        epoch = await replicas[1].resume_session("session-1", NAMESPACE, "replica-2", b"", T0 + 60_000)
        assert epoch is not None
        return epoch, {task.run_id for task in await replicas[1].leased_tasks("session-1", epoch)}

    batches = [changes[n : n + 8] for n in range(0, 64, 8)]
    results, (_, held) = await asyncio.gather(
        asyncio.gather(*(replicas[0].commit(batch, T0) for batch in batches)), hello()
    )

    leased = {c.run.run_id for c in changes} - {run_id for result in results for run_id, _ in result.unleased}
    assert leased == held


async def test_claims_heartbeats_releases_and_commits_on_the_same_tasks_do_not_deadlock(
    replicas: tuple[Store, Store], url: str
) -> None:
    await session(replicas[0])
    runs = [await waiting_activities(replicas[0], [f"pay:{n}" for n in range(1, 9)]) for _ in range(8)]
    rows = [(run.run_id, f"a/pay:{n}") for run in runs for n in range(1, 9)]
    await replicas[0].claim([want(64)], T0)

    async def beats(store: Store, *, backwards: bool) -> None:
        for _ in range(20):
            ordered = list(reversed(rows)) if backwards else rows
            await store.heartbeat([Beat(run_id, task_id, 1, "session-1", 1, None) for run_id, task_id in ordered], T0)

    async def releases(store: Store) -> None:
        for _ in range(10):
            await store.release([LeasedRow(run_id, task_id, 1, "session-1", 1) for run_id, task_id in rows[::-3]], T0)
            await store.claim([want(64)], T0)

    async def commits(store: Store) -> None:
        for n in range(1, 9):
            loaded = await store.load([run.run_id for run in runs])
            changes = [completes(run, f"pay:{n}", owner="session-1", epoch=1) for run in loaded.values()]
            while changes:
                written = (await store.commit(changes, T0)).written
                changes = [change for change in changes if change.run.run_id not in written]
                if changes:  # a claim leaves out what others have locked: what was released may still be nobody's
                    await store.claim([want(64)], T0)

    async with asyncio.timeout(60):
        await asyncio.gather(
            beats(replicas[0], backwards=False),
            beats(replicas[1], backwards=True),
            releases(replicas[1]),
            commits(replicas[0]),
        )

    assert await _deadlocks(url) == 0
    assert all(not run.tasks.keys() - {"w"} for run in (await replicas[0].load([run.run_id for run in runs])).values())


async def test_what_one_replica_tells_the_others_hear(replicas: tuple[Store, Store]) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    await replicas[1].listen(heard.put_nowait)
    await tell_until_heard(replicas[0], "news é", heard)


async def test_a_listener_whose_connection_is_cut_listens_again(replicas: tuple[Store, Store], url: str) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    await replicas[1].listen(heard.put_nowait)
    await tell_until_heard(replicas[0], "before", heard)
    connection = await asyncpg.connect(url)
    await connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where query ilike 'listen%'")
    await connection.close()
    await tell_until_heard(replicas[0], "after", heard)


async def test_news_that_are_too_long_are_lost_and_nothing_else(replicas: tuple[Store, Store]) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    await replicas[1].listen(heard.put_nowait)
    await replicas[0].notify("é" * 4_000)
    await tell_until_heard(replicas[0], "é" * 3_999, heard)


async def tell_until_heard(store: Store, news: str, heard: asyncio.Queue[str]) -> None:
    """A notification may be lost, for example because listening begins a moment after it was asked for."""
    async with asyncio.timeout(30):
        while True:
            await store.notify(news)
            try:
                async with asyncio.timeout(0.2):
                    while await heard.get() != news:
                        pass
                return
            except TimeoutError:
                pass


def want(slots: int) -> Want:
    return Want(NAMESPACE, "main", TaskKind.ACTIVITY, "pay", slots, "session-1", 1)


async def _deadlocks(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("select pg_stat_force_next_flush()")
        return int(
            await connection.fetchval("select deadlocks from pg_stat_database where datname = current_database()")
        )
    finally:
        await connection.close()
