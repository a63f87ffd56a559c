"""Rollback, cancellation and termination, driven by the service over real streams; and operators' decisions."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from romancy.v1.command_pb2 import COMPENSATE_WHEN_ALWAYS, Command, Compensation, CompensationArgument, ScheduleActivity
from romancy.v1.history_pb2 import (
    COMPENSATION_RESOLUTION_GIVE_UP,
    COMPENSATION_RESOLUTION_MARK_DONE,
    COMPENSATION_RESOLUTION_RETRY,
    CompensationResolution,
)
from romancy.v1.retry_pb2 import RetryPolicy
from romancy.v1.worker_service_pb2 import (
    CANCELLATION_REASON_REQUESTED,
    ActivityCompletion,
    ActivityTask,
)
from romancy.v1.workflow_pb2 import (
    WORKFLOW_STATUS_CANCELLED,
    WORKFLOW_STATUS_COMPENSATING,
    WORKFLOW_STATUS_FAILED,
    WORKFLOW_STATUS_TERMINATED,
)
from romancy.v1.workflow_service_pb2 import ResolveCompensationRequest

from tests.core.life import CANCEL, compensate, complete, fail, register, schedule
from tests.service.cluster import Tenant, json, refused, seconds
from tests.service.scripted_worker import ScriptedWorker

ONCE = RetryPolicy(max_attempts=1)


def undoable(activity_id: str, undo: str, **fields: object) -> Command:
    """An activity whose compensation gets a value and the activity's result."""
    compensation = Compensation(
        activity_type=undo,
        arguments=[CompensationArgument(payload=json('"order-1"')), CompensationArgument(activity_result={})],
        **fields,  # type: ignore[arg-type]
    )
    activity_type = activity_id.partition(":")[0]
    return Command(
        schedule_activity=ScheduleActivity(
            activity_id=activity_id, activity_type=activity_type, compensation=compensation, retry_policy=ONCE
        )
    )


async def _reserved_and_paid(tenant: Tenant, **undo: object) -> tuple[ScriptedWorker, str]:
    worker = await tenant.worker()
    run = await tenant.start("order")
    await worker.command(await worker.workflow_task(), undoable("reserve:1", "cancel", **undo))
    await worker.complete(await worker.activity(), '"shelf 3"')
    await worker.command(await worker.workflow_task(), undoable("pay:1", "refund", **undo))
    await worker.complete(await worker.activity(), '"receipt 9"')
    return worker, run.run_id


async def _undone(worker: ScriptedWorker, count: int) -> list[ActivityTask]:
    tasks = []
    for _ in range(count):
        task = await worker.activity()
        assert task.compensation
        assert not worker.activities, "one compensation at a time"
        await worker.complete(task)
        tasks.append(task)
    return tasks


async def test_what_was_done_is_undone_newest_first_with_the_results_filled_in(tenant: Tenant) -> None:
    worker, run_id = await _reserved_and_paid(tenant)
    await worker.command(await worker.workflow_task(), fail("no carrier"))
    undone = await _undone(worker, 2)
    assert [task.activity_type for task in undone] == ["refund", "cancel"]
    assert [argument.json for argument in undone[0].arguments] == ['"order-1"', '"receipt 9"']
    assert undone[1].idempotency_key == f"{run_id}/undo/reserve:1"
    outcome = await tenant.result(run_id)
    assert outcome is not None
    assert (outcome.status, outcome.failure.message) == (WORKFLOW_STATUS_FAILED, "no carrier")


async def test_a_run_that_completes_undoes_nothing(tenant: Tenant) -> None:
    worker, run_id = await _reserved_and_paid(tenant)
    await worker.command(await worker.workflow_task(), complete())
    assert "compensation_scheduled" not in await tenant.kinds(run_id)


async def test_the_rollback_goes_on_when_its_workers_are_gone_and_with_whoever_has_the_compensation(
    tenant: Tenant,
) -> None:
    worker, run_id = await _reserved_and_paid(tenant)
    await worker.command(await worker.workflow_task(), fail())
    first = await worker.activity()
    await worker.goodbye()
    other = await tenant.worker(workflows=[], activities=["refund"])
    again = await other.activity()
    assert (again.activity_type, again.attempt, again.idempotency_key) == ("refund", 2, first.idempotency_key)
    await other.complete(again)
    third = await tenant.worker(workflows=[], activities=["cancel"])
    await _undone(third, 1)
    assert (await tenant.result(run_id)) is not None


async def test_a_failing_compensation_is_tried_again(tenant: Tenant) -> None:
    worker, run_id = await _reserved_and_paid(tenant, retry_policy=RetryPolicy(initial_interval=seconds(0.05)))
    await worker.command(await worker.workflow_task(), fail())
    for attempt in range(1, 4):
        task = await worker.activity()
        assert (task.activity_type, task.attempt) == ("refund", attempt)
        await worker.fail(task)
    assert [task.activity_type for task in await _undone(worker, 2)] == ["refund", "cancel"]
    assert (await tenant.kinds(run_id)).count("compensation_attempt_failed") == 3


@pytest.mark.parametrize(
    "resolution", [COMPENSATION_RESOLUTION_RETRY, COMPENSATION_RESOLUTION_MARK_DONE, COMPENSATION_RESOLUTION_GIVE_UP]
)
async def test_a_compensation_that_failed_for_good_stops_nothing_and_waits_for_an_operator(
    tenant: Tenant, resolution: CompensationResolution.ValueType
) -> None:
    worker, run_id = await _reserved_and_paid(tenant)
    await worker.command(await worker.workflow_task(), fail("no carrier"))
    await worker.fail(await worker.activity(), "CardClosed", final=True)
    assert [task.activity_type for task in await _undone(worker, 1)] == ["cancel"]
    outcome = await tenant.result(run_id)
    assert outcome is not None, "whoever waits gets the failure as soon as nothing more can happen by itself"
    assert (outcome.status, outcome.failure.message) == (WORKFLOW_STATUS_FAILED, "no carrier")
    shown = await tenant.get(run_id)
    assert shown.info.status == WORKFLOW_STATUS_COMPENSATING
    assert any(wait.id == "undo/pay:1" and "CardClosed" in wait.sentence for wait in shown.waits)
    request = ResolveCompensationRequest(
        workflow=tenant.ref(run_id), compensation_id="undo/pay:1", resolution=resolution, reason="called the bank",
        request_id="resolve", identity="bob",
    )  # fmt: skip
    await tenant.workflows.ResolveCompensation(request)
    await tenant.workflows.ResolveCompensation(request)
    if resolution == COMPENSATION_RESOLUTION_RETRY:
        (task,) = await _undone(worker, 1)
        assert (task.activity_type, task.arguments[1].json) == ("refund", '"receipt 9"')
    assert (await tenant.get(run_id)).info.status == WORKFLOW_STATUS_FAILED
    (resolved,) = [e.compensation_resolved for e in await tenant.history(run_id) if e.HasField("compensation_resolved")]
    assert (resolved.identity, resolved.reason) == ("bob", "called the bank")


async def test_a_request_id_that_resolved_one_compensation_resolves_no_other(tenant: Tenant) -> None:
    worker, run_id = await _reserved_and_paid(tenant)
    await worker.command(await worker.workflow_task(), fail())
    for _ in range(2):
        await worker.fail(await worker.activity(), "Closed", final=True)
    about: dict[str, Any] = {
        "workflow": tenant.ref(run_id),
        "resolution": COMPENSATION_RESOLUTION_MARK_DONE,
        "request_id": "resolve",
    }
    await tenant.workflows.ResolveCompensation(ResolveCompensationRequest(**about, compensation_id="undo/pay:1"))
    other = ResolveCompensationRequest(**about, compensation_id="undo/reserve:1")
    refusal = await refused(tenant.workflows.ResolveCompensation(other))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REQUEST_ID_REUSED")
    assert (await tenant.get(run_id)).info.status == WORKFLOW_STATUS_COMPENSATING


async def test_cancelling_tells_code_and_activities_and_then_undoes(tenant: Tenant) -> None:
    worker, run_id = await _reserved_and_paid(tenant)
    await worker.command(await worker.workflow_task(), undoable("ship:1", "unship"))
    shipping = await worker.activity()
    await tenant.cancel(run_id, reason="changed my mind", identity="alice", request_id="c")
    await tenant.cancel(run_id, reason="changed my mind", identity="alice", request_id="c")
    told = await worker.cancellations.take("cancellation")
    assert (told.token, told.reason) == (shipping.token, CANCELLATION_REASON_REQUESTED)
    task = await worker.workflow_task()
    assert task.events[-1].workflow_cancel_requested.identity == "alice"
    await worker.command(task, CANCEL)
    assert not worker.activities, "nothing is undone while an activity runs"
    stopped = ActivityCompletion(token=shipping.token)
    stopped.cancelled.nothing_done = True
    await worker.report(stopped)
    assert [task.activity_type for task in await _undone(worker, 2)] == ["refund", "cancel"]
    outcome = await tenant.result(run_id)
    assert outcome is not None
    assert outcome.status == WORKFLOW_STATUS_CANCELLED
    assert "changed my mind" in outcome.failure.message
    assert (await tenant.kinds(run_id)).count("workflow_cancel_requested") == 1


async def test_code_that_swallows_its_cancellation_goes_on(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run = await tenant.start("order")
    task = await worker.workflow_task()
    await tenant.cancel(run.run_id)
    await worker.command(task)
    await worker.command(await worker.workflow_task(), complete('"anyway"'))
    outcome = await tenant.result(run.run_id)
    assert outcome is not None
    assert outcome.result.json == '"anyway"'


async def test_cancelling_a_run_that_is_undone_already_changes_nothing(tenant: Tenant) -> None:
    worker, run_id = await _reserved_and_paid(tenant)
    await worker.command(await worker.workflow_task(), fail())
    await tenant.cancel(run_id)
    await _undone(worker, 2)
    assert "workflow_cancel_requested" not in await tenant.kinds(run_id)


async def test_an_activity_that_nobody_began_is_cancelled_without_a_worker_and_not_undone(tenant: Tenant) -> None:
    worker = await tenant.worker(activities=["refund"])
    run = await tenant.start("order")
    await worker.command(await worker.workflow_task(), undoable("pay:1", "refund"), fail())
    outcome = await tenant.result(run.run_id)
    assert outcome is not None
    kinds = await tenant.kinds(run.run_id)
    assert "activity_cancelled" in kinds
    assert "compensation_scheduled" not in kinds


async def test_an_activity_lost_during_the_rollback_counts_as_perhaps_done_and_is_undone(tenant: Tenant) -> None:
    worker = await tenant.worker(activities=[])
    payer = await tenant.worker(workflows=[], activities=["pay"])
    refunder = await tenant.worker(workflows=[], activities=["refund"])
    run = await tenant.start("order")
    await worker.command(await worker.workflow_task(), undoable("pay:1", "refund"))
    await payer.activity()
    await tenant.cancel(run.run_id)
    await worker.command(await worker.workflow_task(), CANCEL)
    await payer.goodbye()
    (task,) = await _undone(refunder, 1)
    assert task.arguments[1].json == "null", "its result is not known"
    assert (await tenant.result(run.run_id)) is not None


async def test_an_activity_that_failed_in_its_own_words_is_undone_only_if_asked_for(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run = await tenant.start("order")
    await worker.command(
        await worker.workflow_task(),
        undoable("pay:1", "refund"),
        undoable("ship:1", "unship", when=COMPENSATE_WHEN_ALWAYS),
    )
    pay, ship = await worker.activity(), await worker.activity()
    await worker.fail(pay, final=True)
    await worker.command(await worker.workflow_task())
    await worker.fail(ship, final=True)
    await worker.command(await worker.workflow_task(), fail())
    assert [task.activity_type for task in await _undone(worker, 1)] == ["unship"]
    assert await tenant.result(run.run_id) is not None


async def test_terminating_ends_at_once_and_lists_what_is_left_undone(tenant: Tenant) -> None:
    worker, run_id = await _reserved_and_paid(tenant)
    answer = await tenant.terminate(run_id, reason="stuck", identity="bob", request_id="t")
    assert list(answer.not_undone) == ["pay:1", "reserve:1"]
    assert await tenant.terminate(run_id, request_id="t") == answer
    shown = await tenant.get(run_id)
    assert shown.info.status == WORKFLOW_STATUS_TERMINATED
    assert shown.outcome.failure.message == "stuck"
    assert not shown.activities
    assert not worker.activities


async def test_code_may_undo_what_is_registered_and_go_on(tenant: Tenant) -> None:
    worker = await tenant.worker(activities=["reserve", "cancel", "refund"])
    run = await tenant.start("order")
    await worker.command(await worker.workflow_task(), undoable("reserve:1", "cancel"), register("refund"))
    await worker.complete(await worker.activity())
    await worker.command(await worker.workflow_task(), compensate("1"))
    assert [task.activity_type for task in await _undone(worker, 2)] == ["cancel", "refund"]
    task = await worker.workflow_task()
    assert task.events[-1].compensate_finished.compensate_id == "1"
    await worker.command(task, schedule("reserve:2"), fail())
    outcome = await tenant.result(run.run_id)
    assert outcome is not None
    assert (await tenant.kinds(run.run_id)).count("compensation_scheduled") == 2


async def test_a_compensation_whose_type_nobody_has_waits_and_says_so(tenant: Tenant) -> None:
    worker, run_id = await _reserved_and_paid(tenant)
    await worker.command(await worker.workflow_task(), fail())
    await _undone(worker, 2)
    lonely = await tenant.worker(activities=["pay"], queue="lonely")
    run = await tenant.start("other", task_queue="lonely")
    await lonely.command(await lonely.workflow_task(), undoable("pay:1", "refund"))
    await lonely.complete(await lonely.activity())
    await lonely.command(await lonely.workflow_task(), fail())
    waits = [wait.sentence for wait in (await tenant.get(run.run_id)).waits]
    assert any("undo/pay:1" in wait and "no worker of queue lonely has type refund" in wait for wait in waits)
    assert run_id


async def test_twenty_at_once_with_failures_losses_and_some_still_running_are_undone_in_reverse_of_their_ends(
    tenant: Tenant,
) -> None:
    """Done: undone. Failed in its own words: not. Lost and then done: undone once. Running at the failure: told to stop,
    and undone if it completes nevertheless, or nobody knows; not if it stopped when asked."""
    names = [f"pay:{n}" for n in range(1, 21)]
    worker = await tenant.worker(activities=["refund"])
    one = await tenant.worker(workflows=[], activities=["pay"], activity_slots=10, worker_id="one")
    two = await tenant.worker(workflows=[], activities=["pay"], activity_slots=10, worker_id="two")
    run = await tenant.start("order")
    await worker.command(await worker.workflow_task(), *(undoable(name, "refund") for name in names), holds=False)
    mine = [await one.activity() for _ in range(10)]
    theirs = [await two.activity() for _ in range(10)]
    done = mine[::2] + theirs[:2]
    for task in done:
        await one.complete(task) if task in mine else await two.complete(task)
    failed = mine[1:7:2]
    for task in failed:
        await one.fail(task, final=True)
    await one.goodbye()  # two of its tasks are lost with it
    lost = mine[7::2]
    again = [await two.activity() for _ in lost]
    assert {task.attempt for task in again} == {2}
    await two.complete(again[0])
    while True:
        task = await worker.workflow_task()
        if sum(event.HasField("activity_completed") for event in task.events) == len(done) + 1:
            break
        await worker.command(task, holds=False)
    await worker.command(task, fail("the sixth one"))
    running = [again[1], *theirs[2:]]
    told = [await two.cancellations.take("cancellation") for _ in running]
    assert {cancellation.token for cancellation in told} == {task.token for task in running}
    stopped, finished = running[1:4], running[4:6]
    for task in stopped:
        completion = ActivityCompletion(token=task.token)
        completion.cancelled.nothing_done = True
        await two.report(completion)
    for task in finished:
        await two.complete(task)
    await two.goodbye()  # the rest gives no answer: nobody knows
    undone = await asyncio.gather(_undone(worker, len(done) + 1 + len(finished) + 1 + len(running[6:])))
    outcome = await tenant.result(run.run_id)
    assert outcome is not None
    assert outcome.failure.message == "the sixth one"
    history = await tenant.history(run.run_id)
    closed = {}
    for event in history:
        for kind in ("activity_completed", "activity_cancelled", "activity_failed"):
            if event.HasField(kind):  # type: ignore[arg-type]
                closed[getattr(event, kind).activity_id] = event.event_id
    want_not = {task.activity_id for task in (*failed, *stopped)}
    expected = sorted((name for name in names if name not in want_not), key=lambda name: -closed[name])
    assert [task.activity_id for task in undone[0]] == [f"undo/{name}" for name in expected]
