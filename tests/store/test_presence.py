"""Who is alive: workers' sessions and replicas."""

from __future__ import annotations

import asyncio

from romancy.v1.worker_service_pb2 import Hello

from romancy_service.core.task import TaskKind
from romancy_service.store.store import SessionRow, Store, Want
from tests.store.drive import NAMESPACE, T0, session, waiting_activities


async def sessions(store: Store) -> dict[str, SessionRow]:
    return {info.session.session_id: info.session for info in await store.list_sessions(NAMESPACE)}


async def test_a_session_is_stored_as_it_was_opened(store: Store) -> None:
    row = SessionRow("s", NAMESPACE, "worker", "replica", 1, T0 + 20_000, True, False, T0, b"\x00hello")
    await store.open_session(row)
    assert await sessions(store) == {"s": row}
    assert await store.list_sessions("other") == []


async def test_a_session_that_takes_no_new_tasks_is_shown_so_from_its_next_renewal_on(store: Store) -> None:
    for name in ("session-1", "session-2"):
        await session(store, name)
    held = [("session-1", 1), ("session-2", 1)]
    assert await store.renew_sessions(held, T0 + 30_000, ["session-2"]) == []
    assert {name: row.draining for name, row in (await sessions(store)).items()} == {
        "session-1": False,
        "session-2": True,
    }
    await store.resume_session("session-2", NAMESPACE, "replica-1", b"", T0 + 30_000)
    assert not (await sessions(store))["session-2"].draining


async def test_every_hello_raises_the_epoch(store: Store) -> None:
    await session(store)
    await store.disconnect_session("session-1", 1, T0 + 3_000)
    assert not (await sessions(store))["session-1"].connected

    assert await store.resume_session("session-1", NAMESPACE, "replica-2", b"new", T0 + 30_000) == 2
    assert await store.resume_session("session-1", NAMESPACE, "replica-3", b"newer", T0 + 40_000) == 3

    row = (await sessions(store))["session-1"]
    assert (row.epoch, row.replica_id, row.hello, row.lease_ms) == (3, "replica-3", b"newer", T0 + 40_000)
    assert row.connected


async def test_a_session_of_another_namespace_or_that_is_gone_is_not_resumed(store: Store) -> None:
    await session(store)
    assert await store.resume_session("session-1", "other", "replica-2", b"", T0) is None
    assert await store.resume_session("none", NAMESPACE, "replica-2", b"", T0) is None


async def test_an_older_stream_cannot_end_a_session_that_came_back(store: Store) -> None:
    await session(store)
    await store.resume_session("session-1", NAMESPACE, "replica-2", b"", T0 + 30_000)

    await store.disconnect_session("session-1", 1, T0)
    await store.close_session("session-1", 1, T0)

    row = (await sessions(store))["session-1"]
    assert row.connected
    assert row.lease_ms == T0 + 30_000


async def test_renewing_tells_which_sessions_are_somebody_elses_or_gone(store: Store) -> None:
    for name in ("a", "b", "c"):
        await session(store, name)
    await store.resume_session("b", NAMESPACE, "replica-2", b"", T0 + 20_000)
    await store.close_session("c", 1, T0)

    gone = await store.renew_sessions([("a", 1), ("b", 1), ("c", 1)], T0 + 60_000)

    assert sorted(gone) == ["b", "c"]
    leases = {name: row.lease_ms for name, row in (await sessions(store)).items()}
    assert leases == {"a": T0 + 60_000, "b": T0 + 20_000}
    assert await store.renew_sessions([], T0) == []


async def test_a_session_whose_lease_is_over_is_forgotten_once_its_tasks_are_taken_away(store: Store) -> None:
    for name in ("idle", "busy"):
        await session(store, name)
    await waiting_activities(store, ["pay:1"])
    await store.claim([Want(NAMESPACE, "main", TaskKind.ACTIVITY, "pay", 1, "busy", 1)], T0)

    assert await store.expire_sessions(T0 + 19_999) == 0
    assert await store.expire_sessions(T0 + 20_000) == 1
    assert set(await sessions(store)) == {"busy"}


def takes(*types: str) -> bytes:
    return Hello(task_queues=["main"], activity_types=types, activity_slots=3, worker_id="w").SerializeToString()


def pay(queue: str = "main") -> tuple[str, TaskKind, str]:
    return queue, TaskKind.ACTIVITY, "pay"


async def test_what_workers_took_is_known_after_they_left_or_were_lost(store: Store) -> None:
    await session(store, "left", hello=takes("pay", "ship"))
    await session(store, "lost", hello=takes("ship", "pay"))
    assert await store.last_offers(NAMESPACE, {pay()}, 10) == {}, "they are there"
    await store.close_session("left", 1, T0 + 1_000)
    assert await store.last_offers(NAMESPACE, {pay()}, 10) == {pay(): ("worker-of-left", T0 + 1_000)}
    assert await store.expire_sessions(T0 + 30_000) == 1
    both = {pay(), pay("other")}
    assert await store.last_offers(NAMESPACE, both, 10) == {pay(): ("worker-of-lost", T0 + 20_000)}
    assert await store.last_offers("elsewhere", both, 10) == {}
    await store.note_offer(NAMESPACE, "late news", takes("pay", "ship"), T0)
    assert (await store.last_offers(NAMESPACE, both, 10))[pay()] == ("worker-of-lost", T0 + 20_000)


async def test_the_newest_offers_are_looked_at_and_old_ones_forgotten(store: Store) -> None:
    for n in range(5):
        await store.note_offer(NAMESPACE, f"worker-{n}", takes("pay", f"other-{n}"), T0 + n)
    assert await store.last_offers(NAMESPACE, {pay()}, 10) == {pay(): ("worker-4", T0 + 4)}
    first = ("main", TaskKind.ACTIVITY, "other-0")
    assert await store.last_offers(NAMESPACE, {first}, 4) == {}
    assert await store.last_offers(NAMESPACE, {first}, 5) == {first: ("worker-0", T0)}
    await store.forget_offers(T0 + 4)
    assert await store.last_offers(NAMESPACE, {pay(), first}, 10) == {pay(): ("worker-4", T0 + 4)}


async def test_of_a_session_of_another_epoch_nothing_is_taken_for_gone(store: Store) -> None:
    await session(store, "back", hello=takes("pay"))
    await store.resume_session("back", NAMESPACE, "replica-2", takes("pay"), T0 + 60_000)
    await store.close_session("back", 1, T0)
    assert await store.last_offers(NAMESPACE, {pay()}, 10) == {}


async def test_sessions_are_listed_with_the_number_of_their_tasks(store: Store) -> None:
    await session(store, "one")
    await session(store, "two")
    await waiting_activities(store, ["pay:1", "pay:2", "pay:3"])
    await store.claim([Want(NAMESPACE, "main", TaskKind.ACTIVITY, "pay", 2, "two", 1)], T0)
    in_hand = {info.session.session_id: info.tasks_in_hand for info in await store.list_sessions(NAMESPACE)}
    assert in_hand == {"one": 0, "two": 2}


async def test_replicas_see_each_other_until_they_leave_or_fall_silent(store: Store) -> None:
    assert await store.beat("b", T0) == ["b"]
    assert await store.beat("a", T0 + 1_000) == ["a", "b"]
    assert await store.beat("a", T0 + 5_500) == ["a"]
    assert await store.beat("b", T0 + 6_000) == ["a", "b"]
    await store.leave("a")
    assert await store.beat("b", T0 + 6_000) == ["b"]


async def test_all_who_open_the_store_sign_with_the_same_key(store: Store) -> None:
    keys = await asyncio.gather(*(store.signing_keys() for _ in range(3)))
    ((key_id, secret),) = keys[0]
    assert key_id
    assert len(secret) == 32
    assert keys == [keys[0]] * 3


async def test_the_clock_does_not_go_back(store: Store) -> None:
    times = [await store.now_ms() for _ in range(20)]
    assert times == sorted(times)
