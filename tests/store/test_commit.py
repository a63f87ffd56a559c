"""What a commit rests on, and what it writes, the same on both databases."""

from __future__ import annotations

import pytest

from romancy_service.core.limits import Limits
from romancy_service.core.task import WORKFLOW_TASK_ID, Fence, activity_task_id
from romancy_service.core.triggers import RequestCancel, TaskDue
from romancy_service.errors import BatchRejected
from romancy_service.store.store import Beat, Change, Lease, Store
from tests.core.life import complete, schedule, timer
from tests.store.drive import (
    NAMESPACE,
    T0,
    begin,
    code,
    completes,
    reloaded,
    request,
    session,
    store_all,
    terminated,
    then,
    waiting_activities,
)

EVERYTHING = 2**40


async def test_what_is_committed_is_loaded_as_it_was_decided(store: Store) -> None:
    run = begin()
    await store_all(store, Change(run))
    await store_all(store, code(run, schedule("pay:1", "refund"), timer("1", 60)))
    await store_all(store, completes(run, "pay:1", now_ms=T0 + 5))

    stored = await reloaded(store, run)

    run.saga = None
    assert stored == run


async def test_all_events_of_a_run_are_read_in_order_however_many_commits_they_took(store: Store) -> None:
    run = begin()
    await store_all(store, Change(run))
    await store_all(store, code(run, schedule("pay:1"), schedule("ship:1")))
    await store_all(store, completes(run, "ship:1"))

    events = await store.show_history(run.run_id, 0, EVERYTHING, EVERYTHING)

    assert [event.event_id for event in events] == [1, 2, 3, 4]
    assert [event.WhichOneof("attributes") for event in events][-1] == "activity_completed"


async def test_a_change_of_an_outdated_run_is_not_written(store: Store) -> None:
    run = await waiting_activities(store, ["pay:1", "ship:1"])
    late = await reloaded(store, run)
    await store_all(store, completes(run, "ship:1"))

    result = await store.commit([completes(late, "pay:1")], T0)

    assert result.written == set()
    assert (await reloaded(store, run)).last_event_id == run.last_event_id


async def test_one_outdated_run_does_not_hold_up_the_others_of_its_batch(store: Store) -> None:
    run = await waiting_activities(store, ["pay:1", "ship:1"])
    late = await reloaded(store, run)
    await store_all(store, completes(run, "ship:1"))
    other = begin("other")

    result = await store.commit([completes(late, "pay:1"), Change(other)], T0)

    assert result.written == {other.run_id}


@pytest.mark.parametrize(
    "fence",
    [
        pytest.param(Fence("a/pay:1", 2, "session-1", 1), id="attempt"),
        pytest.param(Fence("a/pay:1", 1, "session-2", 1), id="owner"),
        pytest.param(Fence("a/pay:1", 1, "", 0), id="nobody"),
        pytest.param(Fence("a/pay:1", 1, "session-1", 2), id="epoch"),
        pytest.param(Fence("a/pay:1", 1, "session-1", 1, relay_ms=T0), id="relay time"),
        pytest.param(Fence("a/pay:2", 1, "session-1", 1), id="no such task"),
    ],
)
async def test_a_change_whose_fence_is_broken_is_not_written(store: Store, fence: Fence) -> None:
    lease = await session(store)
    run = begin()
    await store_all(store, Change(run))
    change = code(run, schedule("pay:1"))
    change.leases["a/pay:1"] = lease
    await store_all(store, change)

    change = completes(run, "pay:1", owner=lease.session_id, epoch=lease.epoch)
    change.fences = [fence]
    result = await store.commit([change], T0)

    assert result.written == set()
    assert "a/pay:1" in (await reloaded(store, run)).tasks


async def test_the_same_trigger_is_written_once(store: Store) -> None:
    lease = await session(store)
    run = begin()
    await store_all(store, Change(run))
    change = code(run, schedule("pay:1"))
    change.leases["a/pay:1"] = lease
    await store_all(store, change)

    first = completes(await reloaded(store, run), "pay:1", owner="session-1", epoch=1)
    second = completes(await reloaded(store, run), "pay:1", owner="session-1", epoch=1)

    assert (await store.commit([first], T0)).written == {run.run_id}
    assert (await store.commit([second], T0)).written == set()
    assert (await store.commit([first], T0)).written == set()


async def test_a_heartbeat_between_a_timeout_and_its_commit_saves_the_attempt(store: Store) -> None:
    lease = await session(store)
    run = begin()
    await store_all(store, Change(run))
    change = code(run, schedule("pay:1", heartbeat_timeout={"seconds": 5}))
    change.leases["a/pay:1"] = lease
    await store_all(store, change)
    (due,) = await store.due(T0 + 5_000, 10, 0, 1)
    fence = Fence("a/pay:1", 1, "session-1", 1, due.relay_ms)

    await store.heartbeat([Beat(run.run_id, "a/pay:1", 1, "session-1", 1, None)], T0 + 5_000)
    change = then(run, TaskDue(fence, due.task.leased_ms, due.task.heartbeat_ms), now_ms=T0 + 5_000)

    assert (await store.commit([change], T0 + 5_000)).written == set()


async def test_a_check_without_changes_says_whether_the_run_is_current_and_writes_nothing(store: Store) -> None:
    run = await waiting_activities(store, ["pay:1"])
    late = await reloaded(store, run)
    assert (await store.commit([Change(run)], T0)).written == {run.run_id}
    assert (await reloaded(store, run)).version == run.version

    await store_all(store, completes(run, "pay:1"))

    assert (await store.commit([Change(late)], T0)).written == set()
    assert (await store.commit([Change(late, fences=[Fence("a/pay:1", 1, "", 0)])], T0)).written == set()


async def test_a_run_is_opened_once_for_a_workflow_id(store: Store) -> None:
    first, second = begin(), begin()
    await store_all(store, Change(first))

    assert (await store.commit([Change(second)], T0)).written == set()

    await store_all(store, code(first, complete()))
    assert (await store.commit([Change(second)], T0)).written == {second.run_id}


async def test_the_same_new_run_sent_again_is_not_written_again_even_when_it_closed(store: Store) -> None:
    run = begin(run_id="same")
    await store_all(store, Change(run))
    assert (await store.commit([Change(begin(run_id="same"))], T0)).written == set()

    await store_all(store, code(run, complete()))
    assert (await store.commit([Change(begin(run_id="same"))], T0)).written == set()


async def test_two_new_runs_of_one_workflow_id_in_one_batch_are_refused_as_a_conflict(store: Store) -> None:
    with pytest.raises(BatchRejected) as refusal:
        await store.commit([Change(begin()), Change(begin())], T0)

    assert refusal.value.conflict
    assert await store.latest([(NAMESPACE, "order-1")]) == {}


async def test_a_request_is_stored_with_what_it_caused_and_not_carried_out_twice(store: Store) -> None:
    run = begin()
    await store_all(store, Change(run, requests=[request(run)]))
    again = begin("another")

    assert (await store.commit([Change(again, requests=[request(again)])], T0)).written == set()

    found = await store.find_requests([(NAMESPACE, "request-1"), (NAMESPACE, "request-2"), ("else", "request-1")])
    assert found == {(NAMESPACE, "request-1"): request(run)}


async def test_a_request_that_changes_nothing_is_remembered_too(store: Store) -> None:
    run = begin()
    await store_all(store, Change(run))

    assert (await store.commit([Change(run, requests=[request(run)])], T0)).written == {run.run_id}

    assert (NAMESPACE, "request-1") in await store.find_requests([(NAMESPACE, "request-1")])
    assert (await reloaded(store, run)).version == run.version


async def test_a_run_takes_the_place_of_the_one_that_is_terminated_for_it(store: Store) -> None:
    old, new = begin(), begin()
    await store_all(store, Change(old))

    # Whatever their order in the batch.
    await store_all(store, Change(new, after=old.run_id), terminated(old))

    assert not (await reloaded(store, old)).is_open
    assert (await reloaded(store, new)).is_open


async def test_a_run_does_not_take_the_place_of_one_that_changed_meanwhile(store: Store) -> None:
    old, new = await waiting_activities(store, ["pay:1"]), begin()
    late = await reloaded(store, old)
    new.workflow_id = old.workflow_id
    await store_all(store, completes(old, "pay:1"))

    assert (await store.commit([terminated(late), Change(new, after=old.run_id)], T0)).written == set()


async def test_a_run_is_not_terminated_for_a_start_that_was_carried_out_before(store: Store) -> None:
    old, new = begin(), begin()
    await store_all(store, Change(old, requests=[request(old)]))
    start = Change(new, requests=[request(old)], after=old.run_id)

    assert (await store.commit([terminated(old), start], T0)).written == set()

    assert (await reloaded(store, old)).is_open


async def test_a_new_task_goes_in_leased(store: Store) -> None:
    lease = await session(store)
    run = begin()

    result = await store_all(store, Change(run, leases={WORKFLOW_TASK_ID: lease}), now_ms=T0 + 7)

    assert result.unleased == set()
    task = (await reloaded(store, run)).tasks[WORKFLOW_TASK_ID]
    assert (task.owner, task.owner_epoch, task.leased_ms) == ("session-1", 1, T0 + 7)


@pytest.mark.parametrize("lease", [Lease("session-1", 2), Lease("gone", 1)], ids=["other epoch", "no such session"])
async def test_a_task_for_a_session_that_is_gone_goes_in_without_owner(store: Store, lease: Lease) -> None:
    await session(store)
    run = begin()

    result = await store_all(store, Change(run, leases={WORKFLOW_TASK_ID: lease}))

    assert result.unleased == {(run.run_id, WORKFLOW_TASK_ID)}
    task = (await reloaded(store, run)).tasks[WORKFLOW_TASK_ID]
    assert (task.owner, task.owner_epoch, task.leased_ms) == ("", 0, 0)
    assert await store.due(T0 + 60_000, 10, 0, 1) == []


async def test_a_new_attempt_takes_the_lease_away_and_keeps_what_heartbeats_said(store: Store) -> None:
    lease = await session(store)
    run = begin()
    await store_all(store, Change(run))
    change = code(run, schedule("pay:1", start_to_close_timeout={"seconds": 5}))
    change.leases["a/pay:1"] = lease
    await store_all(store, change)
    await store.heartbeat([Beat(run.run_id, "a/pay:1", 1, "session-1", 1, b"half")], T0)

    fence = Fence("a/pay:1", 1, "session-1", 1)
    await store_all(store, then(run, TaskDue(fence, T0, 0), now_ms=T0 + 5_000))

    task = (await reloaded(store, run)).tasks["a/pay:1"]
    assert (task.attempt, task.owner, task.heartbeat_ms) == (2, "", 0)
    view = await store.get_run(run.run_id, Limits())
    assert view is not None
    assert view.heartbeat_details == {"a/pay:1": b"half"}


async def test_asking_activities_to_stop_leaves_their_leases_and_makes_waiting_ones_due(store: Store) -> None:
    lease = await session(store)
    run = begin()
    await store_all(store, Change(run))
    change = code(run, schedule("pay:1"), schedule("ship:1"))
    change.leases["a/pay:1"] = lease
    await store_all(store, change)

    await store_all(store, then(run, RequestCancel("enough", "test")), now_ms=T0 + 9)

    tasks = (await reloaded(store, run)).tasks
    assert tasks["a/pay:1"].cancel_requested
    assert tasks["a/pay:1"].owner == "session-1"
    assert [due.task.task_id for due in await store.due(T0 + 9, 10, 0, 1)] == ["a/ship:1"]
    assert [row.task_id for row in await store.to_cancel(["session-1", "session-2"])] == ["a/pay:1"]


async def test_a_task_that_came_and_went_within_one_commit_leaves_no_row(store: Store) -> None:
    run = begin()
    code(run, schedule("pay:1"))
    completes(run, "pay:1")

    await store_all(store, Change(run))

    assert set((await reloaded(store, run)).tasks) == {WORKFLOW_TASK_ID}


async def test_a_closed_run_has_no_tasks_and_an_outcome(store: Store) -> None:
    run = await waiting_activities(store, ["pay:1"])

    await store_all(store, terminated(run))

    stored = await reloaded(store, run)
    assert stored.tasks == {}
    assert stored.outcome == run.outcome
    assert {run_id: found for run_id, (_, found) in (await store.outcomes([run.run_id, "x"])).items()} == {
        run.run_id: run.outcome
    }


async def test_a_batch_with_bad_data_is_refused_and_nothing_of_it_is_written(store: Store) -> None:
    good, bad = begin("good"), begin("bad")
    bad.task_queue = "lone surrogate \ud800"

    with pytest.raises(BatchRejected) as refusal:
        await store.commit([Change(good), Change(bad)], T0)

    assert not refusal.value.conflict
    assert await store.load([good.run_id, bad.run_id]) == {}
    assert (await store.commit([Change(good)], T0)).written == {good.run_id}


async def test_a_batch_that_breaks_an_invariant_is_refused_by_the_database(store: Store) -> None:
    run = begin()
    run.close_ms = T0

    with pytest.raises(BatchRejected):
        await store.commit([Change(run)], T0)


async def test_an_empty_batch_writes_nothing(store: Store) -> None:
    assert (await store.commit([], T0)).written == set()


async def test_a_run_that_comes_after_one_of_another_batch_is_refused(store: Store) -> None:
    with pytest.raises(BatchRejected, match="not in its batch"):
        await store.commit([Change(begin(), after="elsewhere")], T0)


async def test_activities_are_known_by_their_ids_whatever_these_contain(store: Store) -> None:
    run = await waiting_activities(store, ['it\'s; "drop" $1 ? %s é 🙂:1'])
    assert activity_task_id('it\'s; "drop" $1 ? %s é 🙂:1') in (await reloaded(store, run)).tasks
