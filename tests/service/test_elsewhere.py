"""Attempts that leave their workers: whoever has the token ends them, once, whatever became of worker and service."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import pytest

from romancy.v1.activity_service_pb2 import (
    ActivityRef,
    CompleteActivityRequest,
    CompleteActivityResponse,
    HeartbeatActivityRequest,
)
from romancy.v1.activity_service_pb2_grpc import ActivityServiceStub
from romancy.v1.failure_pb2 import Failure
from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.retry_pb2 import RetryPolicy
from romancy.v1.wait_pb2 import WAIT_KIND_ELSEWHERE
from romancy.v1.worker_service_pb2 import (
    ACKNOWLEDGEMENT_RESULT_ACCEPTED,
    ACKNOWLEDGEMENT_RESULT_DUPLICATE,
    ACKNOWLEDGEMENT_RESULT_STALE,
    ActivityCancelledOutcome,
    ActivityCompletion,
    ActivityElsewhere,
    ActivityHeartbeat,
    ActivityTask,
    ConnectRequest,
)
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_CANCELLED

from tests.core.life import CANCEL, cancel_activity, complete, schedule
from tests.service.cluster import Refusal, Tenant, json, refused, seconds, until
from tests.service.scripted_worker import ScriptedWorker

if TYPE_CHECKING:
    from romancy.v1.activity_service_pb2_grpc import ActivityServiceAsyncStub

QUICK_RETRY = RetryPolicy(initial_interval=seconds(0.05), backoff_coefficient=1, jitter=0)


def stub(tenant: Tenant) -> ActivityServiceAsyncStub:
    """The proxy's next replica."""
    return ActivityServiceStub(tenant.open_channel())


def leaving(task: ActivityTask) -> ActivityCompletion:
    """The worker's last word about an attempt that goes on."""
    return ActivityCompletion(token=task.token, elsewhere=ActivityElsewhere())


async def scheduled(tenant: Tenant, **fields: object) -> tuple[ScriptedWorker, str, ActivityTask]:
    """A run whose code waits for one activity, its worker, and the activity's attempt."""
    worker = await tenant.worker(activity_slots=1, worker_id="worker-7", build_id="build-3")
    run = await tenant.start("order")
    await worker.command(await worker.workflow_task(), schedule("pay:1", "refund", **fields))
    return worker, run.run_id, await worker.activity()


async def left(tenant: Tenant, **fields: object) -> tuple[ScriptedWorker, str, ActivityTask]:
    """The same, after the attempt left its worker."""
    worker, run_id, task = await scheduled(tenant, **fields)
    assert (await worker.report(leaving(task))).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    return worker, run_id, task


async def end(tenant: Tenant, activity: ActivityTask | ActivityRef, **said: object) -> CompleteActivityResponse:
    """Somebody ends an attempt."""
    named = activity if isinstance(activity, ActivityRef) else ActivityRef(token=activity.token)
    named.namespace = tenant.namespace
    if not said.keys() & {"result", "failure", "cancelled"}:
        said["result"] = json('"paid"')
    request = CompleteActivityRequest(activity=named, **said)  # type: ignore[arg-type]
    return await stub(tenant).CompleteActivity(request)


async def beat(tenant: Tenant, task: ActivityTask, details: str = "") -> bool:
    """Somebody says that an attempt goes on. Whether it is to stop."""
    request = HeartbeatActivityRequest(activity=ActivityRef(namespace=tenant.namespace, token=task.token))
    if details:
        request.details.CopyFrom(json(details))
    return (await stub(tenant).HeartbeatActivity(request)).cancel_requested


async def a_minute_passes(tenant: Tenant) -> None:
    """For the service, at once."""
    await tenant.cluster.pass_ms(60_000)


async def last(tenant: Tenant, run_id: str, kind: str) -> HistoryEvent:
    """The newest event of a kind, when there is one."""
    found: list[HistoryEvent] = []

    async def there() -> bool:
        found[:] = [event for event in await tenant.history(run_id) if event.HasField(kind)]  # type: ignore[arg-type]
        return bool(found)

    await until(there, f"{kind} is recorded")
    return found[-1]


async def test_an_attempt_that_left_takes_no_slot_and_is_ended_by_its_token(tenant: Tenant) -> None:
    worker, run_id, task = await left(tenant)
    other = await tenant.start("other")
    await worker.command(await worker.workflow_task(), schedule("ship:1"))
    assert (await worker.activity()).run_id == other.run_id, "the only slot is free"
    (shown,) = (await tenant.get(run_id)).activities
    assert (shown.elsewhere, shown.worker_id, shown.attempt) == (True, "", 1)
    (wait,) = (await tenant.get(run_id)).waits
    assert wait.kind == WAIT_KIND_ELSEWHERE
    assert "to be completed from elsewhere" in wait.sentence
    assert await end(tenant, task, identity="ann") == CompleteActivityResponse(run_id=run_id)
    completed = (await worker.workflow_task()).events[-1]
    assert completed.activity_completed.result == json('"paid"')
    assert (completed.author.name, completed.author.build_id) == ("ann", "")


async def test_ending_an_attempt_again_changes_nothing_and_is_answered_alike(tenant: Tenant) -> None:
    _, run_id, task = await left(tenant)
    first = await end(tenant, task, request_id="first")
    assert await end(tenant, task, request_id="first", result=json("2")) == first
    assert (await end(tenant, task, failure=Failure(message="no", type="Declined"))).duplicate
    assert (await end(tenant, ActivityRef(workflow_id="order", activity_id="pay:1"))).duplicate
    assert (await tenant.kinds(run_id)).count("activity_completed") == 1


async def test_a_request_id_that_ended_another_attempt_is_refused_and_ends_nothing(tenant: Tenant) -> None:
    worker, run_id, task = await left(tenant, retry_policy=QUICK_RETRY)
    await end(tenant, task, failure=Failure(message="busy", type="Busy"), request_id="used")
    again = await worker.activity()
    other = await tenant.start("other")
    await worker.report(leaving(again))
    await worker.command(await worker.workflow_task(), schedule("pay:1"), schedule("ship:1"))
    await end(tenant, ActivityRef(run_id=other.run_id, activity_id="ship:1"), request_id="shipped")
    for meant, request_id in (
        (ActivityRef(token=again.token), "used"),  # of the same activity
        (ActivityRef(workflow_id="other", activity_id="pay:1"), "shipped"),  # of another one of its run
        (ActivityRef(workflow_id="order", activity_id="ship:1"), "shipped"),  # of that name, in another workflow
        (ActivityRef(run_id=run_id, activity_id="ship:1"), "shipped"),
    ):
        assert (await refused(end(tenant, meant, request_id=request_id))).reason == "REQUEST_ID_REUSED", meant
    assert not (await end(tenant, again)).duplicate


async def test_a_completion_by_id_is_repeated_safely_when_the_workflow_has_a_newer_run(tenant: Tenant) -> None:
    worker, run_id, _ = await left(tenant)
    named = ActivityRef(workflow_id="order", activity_id="pay:1")
    first = await end(tenant, named, request_id="first")
    await worker.command(await worker.workflow_task(), complete())
    await tenant.result(run_id)
    await tenant.start("order")
    await worker.command(await worker.workflow_task(), schedule("pay:1"))
    await worker.activity()
    assert await end(tenant, named, request_id="first") == first


async def test_an_attempt_is_ended_by_the_ids_of_workflow_and_activity(tenant: Tenant) -> None:
    worker, run_id, _ = await left(tenant)
    assert not (await end(tenant, ActivityRef(run_id=run_id, activity_id="pay:1"))).duplicate
    await worker.command(await worker.workflow_task(), complete())
    outcome = await tenant.result(run_id)
    assert outcome is not None


async def test_the_token_may_be_used_before_the_worker_said_that_it_leaves(tenant: Tenant) -> None:
    worker, run_id, task = await scheduled(tenant)
    assert not await beat(tenant, task)
    assert not (await end(tenant, task)).duplicate
    assert (await worker.report(leaving(task))).result == ACKNOWLEDGEMENT_RESULT_DUPLICATE
    assert (await tenant.kinds(run_id)).count("activity_completed") == 1


async def test_of_the_worker_and_somebody_elsewhere_only_one_ends_an_attempt(tenant: Tenant) -> None:
    worker, run_id, task = await scheduled(tenant)
    ended, acknowledged = await asyncio.gather(end(tenant, task), worker.complete(task))
    won = (not ended.duplicate, acknowledged.result == ACKNOWLEDGEMENT_RESULT_ACCEPTED)
    assert sorted(won) == [False, True]
    assert (await tenant.kinds(run_id)).count("activity_completed") == 1


async def test_a_failure_is_tried_again_with_a_token_of_its_own_and_the_old_one_is_stale(tenant: Tenant) -> None:
    worker, run_id, task = await left(tenant, retry_policy=QUICK_RETRY)
    await beat(tenant, task, '"half"')
    busy = Failure(message="busy", type="Busy")
    failed = await end(tenant, task, failure=busy, request_id="busy")
    again = await worker.activity()
    assert (again.attempt, again.heartbeat_details) == (2, json('"half"'))
    assert again.token != task.token
    assert await end(tenant, task, failure=busy, request_id="busy") == failed, "the same request, the same answer"
    refusal = await refused(end(tenant, task))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STALE_TASK")
    assert (await refused(beat(tenant, task))).reason == "STALE_TASK"
    await worker.report(leaving(again))
    await end(tenant, again)
    assert (await last(tenant, run_id, "activity_completed")).activity_completed.attempt == 2


async def test_a_failure_after_longer_than_max_elapsed_is_tried_again_since_waiting_is_no_trying(
    tenant: Tenant,
) -> None:
    worker, run_id, task = await left(tenant, retry_policy=RetryPolicy(initial_interval=seconds(0.05)))
    await tenant.cluster.pass_ms(360_000)
    await end(tenant, task, failure=Failure(message="busy", type="Busy"))
    assert (await worker.activity()).attempt == 2
    failed = (await last(tenant, run_id, "activity_attempt_failed")).activity_attempt_failed
    assert failed.ran_for.ToMilliseconds() == 0


async def test_an_attempt_that_left_outlives_its_worker_however_that_goes(tenant: Tenant) -> None:
    for number, go in enumerate((ScriptedWorker.goodbye, ScriptedWorker.cut, ScriptedWorker.drain)):
        worker, run_id, task = await left(tenant)
        await go(worker)
        if number == 2:
            assert await worker.end() is None, "nothing keeps it any more"
        # Its session is forgotten, and what was its is looked for.
        for replica in tenant.cluster.replicas:
            await replica.time_moved()
        assert not (await end(tenant, task)).duplicate
        kinds = await tenant.kinds(run_id)
        assert "activity_attempt_failed" not in kinds
        await worker.close()
        await tenant.terminate(run_id)


async def test_a_goodbye_in_the_same_breath_loses_nothing(tenant: Tenant) -> None:
    worker, run_id, task = await scheduled(tenant)
    await worker.send(ConnectRequest(activity_completions=[leaving(task)]))
    await worker.goodbye()
    assert not (await end(tenant, task)).duplicate
    assert "activity_attempt_failed" not in await tenant.kinds(run_id)


async def test_what_was_said_last_before_it_left_is_kept(tenant: Tenant) -> None:
    worker, run_id, task = await scheduled(tenant)
    half = ActivityHeartbeat(token=task.token, details=json('"half"'))
    await worker.send(ConnectRequest(activity_heartbeats=[half], activity_completions=[leaving(task)]))
    await worker.acknowledgement(task.token)
    assert (await tenant.get(run_id)).activities[0].heartbeat_details == json('"half"')


async def test_a_worker_that_hears_no_answer_says_it_again(tenant: Tenant) -> None:
    worker, _, task = await left(tenant)
    await worker.cut()
    await worker.connect(tokens=[task.token])
    assert (await worker.report(leaving(task))).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    assert not (await end(tenant, task)).duplicate
    assert (await worker.report(leaving(task))).result == ACKNOWLEDGEMENT_RESULT_DUPLICATE


async def test_a_worker_cannot_hand_over_what_is_not_its_own(tenant: Tenant) -> None:
    worker, run_id, task = await scheduled(tenant)
    thief = await tenant.worker(workflows=[], activities=["ship"])
    assert (await thief.report(leaving(task))).result == ACKNOWLEDGEMENT_RESULT_STALE
    assert not (await tenant.get(run_id)).activities[0].elsewhere
    assert (await worker.complete(task)).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED


@pytest.mark.parametrize("timeout", ["start_to_close_timeout", "heartbeat_timeout"])
async def test_its_timeouts_go_on_and_leave_its_outcome_unknown(tenant: Tenant, timeout: str) -> None:
    worker, run_id, task = await left(tenant, **{timeout: seconds(60)}, retry_policy=QUICK_RETRY)
    await a_minute_passes(tenant)
    again = await worker.activity()
    assert again.attempt == 2
    failed = (await last(tenant, run_id, "activity_attempt_failed")).activity_attempt_failed
    assert failed.outcome_unknown
    assert (await refused(end(tenant, task))).reason == "STALE_TASK"


async def test_its_time_in_all_goes_on_and_nothing_follows(tenant: Tenant) -> None:
    worker, _, task = await left(tenant, schedule_to_close_timeout=seconds(60))
    await a_minute_passes(tenant)
    failed = (await worker.workflow_task()).events[-1].activity_failed
    assert (failed.failure.type, failed.outcome_unknown) == ("ScheduleToCloseTimeout", True)
    for named in (ActivityRef(token=task.token), ActivityRef(workflow_id="order", activity_id="pay:1")):
        assert (await refused(end(tenant, named))).reason == "STALE_TASK"


@pytest.mark.parametrize("asked_to_stop", [False, True])
async def test_the_only_attempt_that_timed_out_is_ended_by_nobody_else(tenant: Tenant, asked_to_stop: bool) -> None:
    once = RetryPolicy(max_attempts=1)
    worker, run_id, task = await left(tenant, start_to_close_timeout=seconds(60), retry_policy=once)
    if asked_to_stop:
        await tenant.signal(run_id)
        await worker.command(await worker.workflow_task(), cancel_activity("pay:1"))
    await a_minute_passes(tenant)
    await last(tenant, run_id, "activity_cancelled" if asked_to_stop else "activity_failed")
    for named in (ActivityRef(token=task.token), ActivityRef(workflow_id="order", activity_id="pay:1")):
        assert (await refused(end(tenant, named))).reason == "STALE_TASK"


async def test_the_last_attempt_that_failed_by_itself_has_ended(tenant: Tenant) -> None:
    _, _, task = await left(tenant, retry_policy=RetryPolicy(max_attempts=1))
    assert not (await end(tenant, task, failure=Failure(message="no", type="Declined"))).duplicate
    assert (await end(tenant, task)).duplicate


async def test_heartbeats_from_elsewhere_keep_it_alive_and_tell_of_a_cancellation(tenant: Tenant) -> None:
    worker, run_id, task = await left(tenant, heartbeat_timeout=seconds(1.5))
    for _ in range(10):
        assert not await beat(tenant, task)
        await asyncio.sleep(0.2)  # the heartbeats' own pace: longer together than the timeout
    await tenant.cancel(run_id, reason="too late", identity="ann")
    assert await beat(tenant, task)
    stopped = ActivityCancelledOutcome(details=[json("1")], nothing_done=True)
    await end(tenant, task, cancelled=stopped)
    closed = await last(tenant, run_id, "activity_cancelled")
    assert (closed.activity_cancelled.outcome_unknown, list(closed.activity_cancelled.details)) == (False, [json("1")])
    await worker.command(await worker.workflow_task(), CANCEL)
    outcome = await tenant.result(run_id)
    assert outcome is not None
    assert outcome.status == WORKFLOW_STATUS_CANCELLED


async def test_what_was_done_elsewhere_is_undone(tenant: Tenant) -> None:
    worker, run_id, task = await left(tenant)
    await end(tenant, task)
    await worker.workflow_task()
    await tenant.cancel(run_id)
    await worker.command(await worker.workflow_task(), CANCEL)
    undo = await worker.activity()
    assert undo.activity_type == "refund"
    # A compensation may be completed from elsewhere, too.
    await worker.report(leaving(undo))
    await end(tenant, ActivityRef(run_id=run_id, activity_id="undo/pay:1"))
    outcome = await tenant.result(run_id)
    assert outcome is not None
    assert outcome.status == WORKFLOW_STATUS_CANCELLED


async def test_the_code_may_ask_one_that_left_to_stop(tenant: Tenant) -> None:
    worker, run_id, task = await left(tenant)
    await tenant.signal(run_id)
    await worker.command(await worker.workflow_task(), cancel_activity("pay:1"))
    assert await beat(tenant, task)
    assert "activity_cancelled" not in await tenant.kinds(run_id), "somebody has it"


async def test_of_a_closed_run_nothing_can_be_ended(tenant: Tenant) -> None:
    _, run_id, task = await left(tenant)
    await tenant.terminate(run_id)
    assert (await refused(end(tenant, task))).reason == "STALE_TASK"
    assert (await refused(beat(tenant, task))).reason == "STALE_TASK"


async def test_who_names_an_activity_that_never_was_is_told_so_and_not_that_it_is_closed(tenant: Tenant) -> None:
    _, run_id, task = await left(tenant)
    never = await refused(end(tenant, ActivityRef(run_id=run_id, activity_id="pay:9")))
    assert never.message == "task 'a/pay:9' is stale: its run never had it; GetWorkflow lists what is open"
    await tenant.terminate(run_id)
    assert (await refused(end(tenant, task))).message == "task 'a/pay:1' is stale: it is closed"


async def test_one_that_waits_for_its_worker_can_be_ended_by_id_and_has_no_heartbeats(tenant: Tenant) -> None:
    worker = await tenant.worker(activities=[])
    run = await tenant.start("order")
    await worker.command(await worker.workflow_task(), schedule("pay:1"))
    named = ActivityRef(namespace=tenant.namespace, workflow_id="order", activity_id="pay:1")
    assert (await refused(stub(tenant).HeartbeatActivity(HeartbeatActivityRequest(activity=named)))).reason == (
        "STALE_TASK"
    )
    assert not (await end(tenant, named)).duplicate
    assert (await worker.workflow_task()).events[-1].HasField("activity_completed")
    assert run.run_id


async def test_histories_say_who_answered(tenant: Tenant) -> None:
    worker, run_id, task = await scheduled(tenant, retry_policy=QUICK_RETRY)
    await worker.fail(task)
    await worker.complete(await worker.activity())
    await worker.command(await worker.workflow_task(), schedule("ship:1"), complete())
    said = {
        str(event.WhichOneof("attributes")): (event.author.name, event.author.build_id)
        for event in await tenant.history(run_id)
        if event.HasField("author")
    }
    us = ("worker-7", "build-3")
    assert said == {
        "activity_scheduled": us,  # the first command of each of its two tasks, and nothing of the second's last
        "activity_attempt_failed": us,
        "activity_completed": us,
    }


@pytest.mark.parametrize(
    ("named", "said", "field"),
    [
        ({}, {}, "activity.token"),
        ({"token": "x", "activity_id": "pay:1"}, {}, "activity.token"),
        ({"token": "x" * 3_000}, {}, "activity.token"),
        ({"token": "nonsense"}, {}, "activity.token"),
        ({"token": "é"}, {}, "activity.token"),
        ({"workflow_id": "order"}, {}, "activity.activity_id"),
        ({"activity_id": "pay:1"}, {}, "activity.workflow_id"),
        ({"workflow_id": "a\nb", "activity_id": "pay:1"}, {}, "activity.workflow_id"),
        ({"workflow_id": "order", "activity_id": "a\x00b"}, {}, "activity.activity_id"),
        ({"workflow_id": "order", "activity_id": "x" * 300}, {}, "activity.activity_id"),
        ({"workflow_id": "order", "activity_id": "pay:1"}, {"identity": "x" * 300}, "identity"),
        ({"workflow_id": "order", "activity_id": "pay:1"}, {"request_id": "a\nb"}, "request_id"),
        ({"workflow_id": "order", "activity_id": "pay:1"}, {"result": json("x" * (2 << 20))}, "result"),
    ],
)
async def test_what_names_no_attempt_or_is_too_much_is_refused_by_field(
    tenant: Tenant, named: dict[str, str], said: dict[str, object], field: str
) -> None:
    assert (await refused(end(tenant, ActivityRef(**named), **said))).field == field  # type: ignore[arg-type]


async def test_a_completion_says_how_the_attempt_ended(tenant: Tenant) -> None:
    _, _, task = await left(tenant)
    request = CompleteActivityRequest(activity=ActivityRef(namespace=tenant.namespace, token=task.token))
    assert (await refused(stub(tenant).CompleteActivity(request))).field == "outcome"


async def test_tokens_of_others_are_refused(tenant: Tenant) -> None:
    worker, run_id, task = await left(tenant)
    elsewhere = ActivityRef(namespace="another", token=task.token)
    refusal: Refusal = await refused(
        stub(tenant).CompleteActivity(CompleteActivityRequest(activity=elsewhere, result=json("1")))
    )
    assert refusal.reason == "INVALID_TOKEN"
    changed = task.token[:-2] + ("AA" if task.token[-2:] != "AA" else "BB")
    assert (await refused(end(tenant, ActivityRef(token=changed)))).reason == "INVALID_TOKEN"
    await tenant.signal(run_id)
    code = await worker.workflow_task()
    assert (await refused(end(tenant, ActivityRef(token=code.token)))).reason == "INVALID_TOKEN"
    unknown = ActivityRef(workflow_id="nobody", activity_id="pay:1")
    assert (await refused(end(tenant, unknown))).reason == "WORKFLOW_NOT_FOUND"
    assert (await refused(end(tenant, ActivityRef(run_id=run_id, activity_id="pay:9")))).reason == "STALE_TASK"
    assert not (await end(tenant, task)).duplicate
