"""Leases: who gets a task, who keeps it, and when the service looks at it."""

from __future__ import annotations

import asyncio

import pytest

from romancy.v1.command_pb2 import Command
from romancy.v1.payload_pb2 import Payload

from romancy_service.core.limits import CLAIM_BYTES, Limits
from romancy_service.core.task import TaskKind
from romancy_service.core.triggers import RequestCancel
from romancy_service.store.rows import part_hash
from romancy_service.store.store import Beat, Change, LeasedRow, Store, Want
from tests.core.life import schedule, timer
from tests.store.drive import NAMESPACE, T0, begin, code, reloaded, session, store_all, then, waiting_activities


def want(
    task_type: str = "pay",
    slots: int = 10,
    session_id: str = "session-1",
    epoch: int = 1,
    kind: TaskKind = TaskKind.ACTIVITY,
    queue: str = "main",
    namespace: str = NAMESPACE,
) -> Want:
    """Free slots of a session."""
    return Want(namespace, queue, kind, task_type, slots, session_id, epoch)


async def waiting(store: Store, *commands: Command) -> str:
    """The id of a stored run that asked for this."""
    run = begin(f"run of {commands}")
    await store_all(store, Change(run))
    await store_all(store, code(run, *commands))
    return run.run_id


async def test_a_claim_leases_tasks_and_brings_what_is_needed_to_send_them(store: Store) -> None:
    await session(store)
    run = await waiting_activities(store, ["pay:1"])

    (claimed,) = await store.claim([want()], T0 + 5)

    assert (claimed.run_id, claimed.session_id, claimed.namespace) == (run.run_id, "session-1", NAMESPACE)
    assert (claimed.workflow_id, claimed.workflow_type, claimed.version) == (run.workflow_id, "order", run.version)
    assert (claimed.task.owner, claimed.task.owner_epoch, claimed.task.leased_ms) == ("session-1", 1, T0 + 5)
    assert claimed.task.command is not None
    assert claimed.task.command.activity_id == "pay:1"
    assert (await reloaded(store, run)).tasks["a/pay:1"] == claimed.task
    assert await store.claim([want()], T0 + 5) == []


async def test_claims_take_small_priorities_first_and_then_the_oldest(store: Store) -> None:
    await session(store)
    for name, priority, now_ms in (("pay:1", 5, T0), ("pay:2", 1, T0 + 2), ("pay:3", 1, T0 + 1), ("pay:4", -1, T0 + 3)):
        run = begin(name)
        await store_all(store, Change(run))
        command = schedule("pay:1", priority=priority)
        await store_all(store, code(run, command, now_ms=now_ms))

    first = await store.claim([want(slots=3)], T0 + 10)
    then_the_last = await store.claim([want(slots=3)], T0 + 10)

    assert [claimed.workflow_id for claimed in first] == ["pay:4", "pay:3", "pay:2"]
    assert [claimed.workflow_id for claimed in then_the_last] == ["pay:1"]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(want("ship"), id="type"),
        pytest.param(want(queue="other"), id="queue"),
        pytest.param(want(namespace="other"), id="namespace"),
        pytest.param(want(kind=TaskKind.WORKFLOW), id="kind"),
        pytest.param(want(session_id="gone"), id="no such session"),
        pytest.param(want(epoch=2), id="other epoch"),
    ],
)
async def test_a_claim_finds_only_what_the_session_wants_and_only_for_one_that_is_there(
    store: Store, other: Want
) -> None:
    await session(store)
    await waiting_activities(store, ["pay:1"])

    assert await store.claim([other], T0) == []
    assert len(await store.claim([want(), other], T0)) == 1


async def test_a_task_is_not_claimed_before_it_is_due_nor_when_it_was_asked_to_stop(store: Store) -> None:
    await session(store)
    await waiting_activities(store, ["pay:1"])
    stopped = await waiting_activities(store, ["pay:1"])
    await store_all(store, then(stopped, RequestCancel("", "")))

    assert await store.claim([want()], T0 - 1) == []
    assert len(await store.claim([want()], T0)) == 1


async def test_what_several_sessions_want_is_dealt_out_without_giving_a_task_twice(store: Store) -> None:
    for name in ("a", "b", "c"):
        await session(store, name)
    run = await waiting_activities(store, [f"pay:{n}" for n in range(1, 8)])

    claimed = await store.claim([want(slots=2, session_id=name) for name in ("a", "b", "c")], T0)

    assert sorted(task.session_id for task in claimed) == ["a", "a", "b", "b", "c", "c"]
    assert len({task.task.task_id for task in claimed}) == 6
    stored = (await reloaded(store, run)).tasks
    assert all(stored[task.task.task_id].owner == task.session_id for task in claimed)


async def _large(store: Store, workflow_id: str, kib: int, *, priority: int = 0, now_ms: int = T0) -> None:
    """A run with an activity that has so many KiB of arguments, and is due from then on."""
    run = begin(workflow_id)
    await store_all(store, Change(run))
    arguments = [Payload(binary=b"x" * (kib * 1024))]
    await store_all(store, code(run, schedule("pay:1", priority=priority, arguments=arguments), now_ms=now_ms))


async def test_a_claim_ends_at_its_bytes_and_what_it_left_is_for_the_next_one(store: Store) -> None:
    await session(store)
    for number in range(6):
        await _large(store, f"order-{number}", 1_800, priority=number // 2, now_ms=T0 + 10 - number)

    claims = [await store.claim([want(slots=5)], T0 + 10) for _ in range(3)]

    # Within a priority the one that is due longest comes first.
    assert [[claimed.workflow_id for claimed in claim] for claim in claims] == [
        ["order-1", "order-0", "order-3"],
        ["order-2", "order-5", "order-4"],
        [],
    ]
    assert all(sum(claimed.bytes for claimed in claim) >= CLAIM_BYTES for claim in claims[:2])


async def test_a_claim_brings_one_task_however_large_and_many_small_ones(store: Store) -> None:
    await session(store)
    await _large(store, "large", 1)
    (large,) = await store.claim([want()], T0)
    details = b"x" * (2 * CLAIM_BYTES)
    await store.heartbeat([Beat(large.run_id, "a/pay:1", 1, "session-1", 1, details)], T0)
    await store.release([LeasedRow(large.run_id, "a/pay:1", 1, "session-1", 1)], T0)
    for number in range(20):
        await _large(store, f"small-{number}", 1, now_ms=T0 + 1)

    assert [claimed.workflow_id for claimed in await store.claim([want(slots=50)], T0 + 1)] == ["large"]
    assert len(await store.claim([want(slots=50)], T0 + 1)) == 20


async def test_the_bytes_of_a_claim_are_those_of_all_its_sessions_and_types(store: Store) -> None:
    for name in ("a", "b"):
        await session(store, name)
    for number in range(4):
        await _large(store, f"order-{number}", 1_800, now_ms=T0 + number)
    other = begin("other")
    await store_all(store, Change(other))
    arguments = [Payload(binary=b"x" * (1_800 * 1024))]
    await store_all(store, code(other, schedule("ship:1", arguments=arguments), now_ms=T0 + 4))
    wants = [want(session_id="a", slots=2), want(session_id="b", slots=2), want("ship", session_id="b", slots=2)]

    claims = [await store.claim(wants, T0 + 5) for _ in range(3)]

    assert [len(claim) for claim in claims] == [3, 2, 0]
    assert len({claimed.run_id for claim in claims for claimed in claim}) == 5


async def test_what_an_earlier_attempt_said_of_its_progress_counts_in_a_claim(store: Store) -> None:
    await session(store)
    run = await waiting_activities(store, ["pay:1", "pay:2", "pay:3"])
    claimed = await store.claim([want()], T0)
    leases = [LeasedRow(run.run_id, each.task.task_id, each.task.attempt, "session-1", 1) for each in claimed]
    details = b"x" * (CLAIM_BYTES // 2)
    beats = [Beat(lease.run_id, lease.task_id, lease.attempt, lease.owner, lease.epoch, details) for lease in leases]
    assert await store.heartbeat(beats, T0 + 1) == [True] * 3
    await store.release(leases, T0 + 2)

    assert [len(await store.claim([want()], T0 + 3)) for _ in range(3)] == [2, 1, 0]


async def test_claims_at_the_same_time_share_what_there_is(store: Store) -> None:
    await session(store)
    await waiting_activities(store, [f"pay:{n}" for n in range(1, 31)])

    rounds = await asyncio.gather(*(store.claim([want(slots=10)], T0) for _ in range(3)))

    task_ids = [task.task.task_id for claimed in rounds for task in claimed]
    assert len(task_ids) == len(set(task_ids))
    left = await store.claim([want(slots=30)], T0)
    assert len(task_ids) + len(left) == 30


async def test_a_released_task_is_anybodys_in_the_same_attempt(store: Store) -> None:
    await session(store)
    run = await waiting_activities(store, ["pay:1"])
    await store.claim([want()], T0)

    await store.release([LeasedRow(run.run_id, "a/pay:1", 1, "session-1", 1)], T0 + 1)

    task = (await reloaded(store, run)).tasks["a/pay:1"]
    assert (task.owner, task.owner_epoch, task.leased_ms, task.attempt) == ("", 0, 0, 1)
    assert len(await store.claim([want()], T0 + 1)) == 1


@pytest.mark.parametrize("lease", [("session-1", 2, 1), ("session-2", 1, 1), ("session-1", 1, 2)])
async def test_only_who_has_a_task_can_release_it_or_beat_for_it(store: Store, lease: tuple[str, int, int]) -> None:
    await session(store)
    run = await waiting_activities(store, ["pay:1"])
    await store.claim([want()], T0)
    owner, epoch, attempt = lease

    await store.release([LeasedRow(run.run_id, "a/pay:1", attempt, owner, epoch)], T0)

    assert (await reloaded(store, run)).tasks["a/pay:1"].owner == "session-1"
    assert await store.heartbeat([Beat(run.run_id, "a/pay:1", attempt, owner, epoch, b"x")], T0) == [False]


async def test_heartbeats_answer_each_in_its_place_and_keep_the_last_details(store: Store) -> None:
    await session(store)
    run = await waiting_activities(store, ["pay:1", "pay:2"])
    await store.claim([want()], T0)

    def beat(task_id: str, details: bytes | None) -> Beat:
        return Beat(run.run_id, task_id, 1, "session-1", 1, details)

    beats = [beat("a/pay:2", b"two"), beat("a/none:1", b"none"), beat("a/pay:1", b"one")]
    assert await store.heartbeat(beats, T0 + 1) == [True, False, True]
    assert await store.heartbeat([beat("a/pay:1", None)], T0 + 2) == [True]

    view = await store.get_run(run.run_id, Limits())
    assert view is not None
    assert view.heartbeat_details == {"a/pay:1": b"one", "a/pay:2": b"two"}
    assert view.run.tasks["a/pay:1"].heartbeat_ms == T0 + 2


async def test_the_service_looks_at_an_attempt_when_its_first_timeout_passes(store: Store) -> None:
    await session(store)
    command = schedule(
        "pay:1",
        heartbeat_timeout={"seconds": 3},
        start_to_close_timeout={"seconds": 5},
        schedule_to_start_timeout={"seconds": 1},
        schedule_to_close_timeout={"seconds": 60},
    )
    run_id = await waiting(store, command)

    async def looked_at_ms() -> int:
        ((found, task_id, relay_ms),) = [
            (row.run_id, row.task.task_id, row.relay_ms) for row in await store.due(T0 + 99_000, 9, 0, 1)
        ]
        assert (found, task_id) == (run_id, "a/pay:1")
        return relay_ms - T0

    assert await looked_at_ms() == 1_000
    await store.claim([want()], T0 + 500)
    assert await looked_at_ms() == 3_500
    await store.heartbeat([Beat(run_id, "a/pay:1", 1, "session-1", 1, None)], T0 + 2_000)
    assert await looked_at_ms() == 5_000
    await store.heartbeat([Beat(run_id, "a/pay:1", 1, "session-1", 1, None)], T0 + 4_000)
    assert await looked_at_ms() == 5_500
    await store.release([LeasedRow(run_id, "a/pay:1", 1, "session-1", 1)], T0 + 4_000)
    assert await looked_at_ms() == 1_000


async def test_what_is_due_is_the_replicas_own_part_and_anybodys_once_it_is_overdue(store: Store) -> None:
    runs = [await waiting(store, timer("1", n)) for n in range(1, 9)]
    parts = {part: [run_id for run_id in runs if part_hash(run_id) % 2 == part] for part in (0, 1)}

    async def due(part: int, now_ms: int) -> list[str]:
        return [row.run_id for row in await store.due(now_ms, 100, part, 2)]

    for part in (0, 1):
        last = [run_id for run_id in runs if run_id in parts[part] or run_id in runs[:7]]
        assert await due(part, T0 + 8_000) == last
        assert await due(part, T0 + 9_000) == runs
    assert [row.run_id for row in await store.due(T0 + 9_000, 3, 0, 1)] == runs[:3]
    assert await due(0, T0 + 999) == []


async def test_timers_that_will_soon_be_due_are_told_before(store: Store) -> None:
    run_ids = [await waiting(store, timer("1", n), schedule("pay:1")) for n in (1, 2, 3)]

    soon = await store.due_within(T0 + 1_000, 1_500, 10, 0, 1)

    assert soon == [(run_ids[1], "t/1", T0 + 2_000)]


async def test_tasks_of_sessions_that_are_gone_or_silent_are_lost(store: Store) -> None:
    await session(store, "goes")
    await session(store, "falls silent", lease_ms=T0 + 5_000)
    await session(store, "stays")
    for name in ("goes", "falls silent", "stays"):
        await waiting_activities(store, ["pay:1"], workflow_id=name)
        await store.claim([want(session_id=name)], T0)

    await store.close_session("goes", 1, T0)

    async def lost(now_ms: int) -> set[str]:
        return {row.task.owner for row in await store.lost(now_ms, 10)}

    assert await lost(T0 + 4_999) == {"goes"}
    assert await lost(T0 + 5_000) == {"goes", "falls silent"}
    assert len(await store.lost(T0 + 5_000, 1)) == 1


async def test_a_session_that_comes_back_keeps_its_tasks_under_its_new_epoch(store: Store) -> None:
    await session(store)
    run = await waiting_activities(store, ["pay:1", "ship:1"])
    await store.claim([want("pay")], T0)

    epoch = await store.resume_session("session-1", NAMESPACE, "replica-2", b"hello", T0 + 50_000)
    assert epoch == 2
    # Between the two halves of a hello nothing is lost, and nothing new comes in under the old epoch.
    assert await store.lost(T0 + 1, 10) == []
    assert await store.claim([want("ship")], T0) == []
    held = await store.leased_tasks("session-1", 2)

    assert [(task.task.task_id, task.task.owner_epoch, task.version) for task in held] == [("a/pay:1", 2, run.version)]
    assert await store.leased_tasks("session-1", 1) == []
    assert [task.task.task_id for task in await store.claim([want("ship", epoch=2)], T0)] == ["a/ship:1"]


async def test_backlogs_count_what_is_due_by_type(store: Store) -> None:
    await session(store)
    await waiting_activities(store, ["pay:1", "pay:2", "ship:1", "gone:1"])
    await store_all(store, Change(begin("waits", now_ms=T0 + 3)), now_ms=T0 + 3)
    await store.claim([want("gone")], T0)

    assert await store.backlogs(NAMESPACE, "main", T0 + 3) == [
        (TaskKind.WORKFLOW, "order", 1, T0 + 3),
        (TaskKind.ACTIVITY, "pay", 2, T0),
        (TaskKind.ACTIVITY, "ship", 1, T0),
    ]
    assert await store.backlogs(NAMESPACE, "other", T0) == []
