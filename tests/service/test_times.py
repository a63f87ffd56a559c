"""Timers, retries and all timeouts, by the service's clock."""

from __future__ import annotations

import asyncio

from google.protobuf.duration_pb2 import Duration

from romancy.v1.command_pb2 import Command, StartTimer
from romancy.v1.failure_pb2 import FAILURE_SOURCE_TIMEOUT, Failure
from romancy.v1.history_pb2 import (
    RETRY_STATE_MAX_ATTEMPTS,
    RETRY_STATE_MAX_ELAPSED,
    RETRY_STATE_NON_RETRYABLE,
    RETRY_STATE_TIMEOUT,
)
from romancy.v1.retry_pb2 import RetryPolicy
from romancy.v1.worker_service_pb2 import (
    ACKNOWLEDGEMENT_RESULT_STALE,
    CANCELLATION_REASON_STALE,
    ActivityCompletion,
    ActivityHeartbeat,
    ConnectRequest,
)
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_TIMED_OUT

from tests.core.life import NO_RETRY, cancel_timer, complete, schedule
from tests.service.cluster import Tenant, seconds
from tests.service.scripted_worker import ScriptedWorker

QUICK_RETRY = RetryPolicy(initial_interval=seconds(0.05), backoff_coefficient=1, jitter=0)


def _timer(number: int, length: Duration) -> Command:
    return Command(start_timer=StartTimer(timer_id=str(number), duration=length))


async def _scheduled(tenant: Tenant, **fields: object) -> tuple[ScriptedWorker, str]:
    worker = await tenant.worker()
    run = await tenant.start("order")
    await worker.command(await worker.workflow_task(), schedule("pay:1", **fields))
    return worker, run.run_id


async def test_timers_fire_in_their_order_never_early_and_soon(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run = await tenant.start("order")
    lengths = [seconds(0.3), seconds(0), Duration(seconds=-5), seconds(0.1)]
    await worker.command(await worker.workflow_task(), *(_timer(n, length) for n, length in enumerate(lengths, 1)))
    fired = 0
    while fired < len(lengths):
        task = await worker.workflow_task()
        fired += sum(event.HasField("timer_fired") for event in task.events)
        await worker.command(task)
    history = await tenant.history(run.run_id)
    due = {e.timer_started.timer_id: e.timer_started.fire_time for e in history if e.HasField("timer_started")}
    fires = [(e.timer_fired.timer_id, e.time) for e in history if e.HasField("timer_fired")]
    assert [timer_id for timer_id, _ in fires][2:] == ["4", "1"]
    for timer_id, time in fires:
        late_ms = time.ToMilliseconds() - due[timer_id].ToMilliseconds()
        assert 0 <= late_ms < 1_000, f"timer {timer_id} fired {late_ms} ms after its time"


async def test_a_timer_of_a_year_fires_when_the_year_is_over_and_not_before(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run = await tenant.start("order")
    year_ms = 365 * 86_400_000
    await worker.command(await worker.workflow_task(), _timer(1, seconds(year_ms / 1000)), _timer(2, seconds(0.05)))
    task = await worker.workflow_task()
    assert task.events[-1].timer_fired.timer_id == "2"
    await worker.command(task)
    assert (await tenant.get(run.run_id)).timers[0].timer_id == "1"
    await tenant.cluster.pass_ms(year_ms)
    task = await worker.workflow_task()
    assert task.events[-1].timer_fired.timer_id == "1"


async def test_a_forgotten_timer_does_not_fire(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run = await tenant.start("order")
    await worker.command(
        await worker.workflow_task(), _timer(1, seconds(0.2)), cancel_timer("1"), _timer(2, seconds(0.4))
    )
    task = await worker.workflow_task()
    assert task.events[-1].timer_fired.timer_id == "2"
    assert not (await tenant.get(run.run_id)).timers


async def test_five_thousand_timers_of_one_instant_all_fire_once_and_hold_up_nobody(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run = await tenant.start("order")
    await worker.command(await worker.workflow_task(), *(_timer(n, seconds(0.5)) for n in range(1, 5_001)))
    fired: list[str] = []
    while len(fired) < 5_000:
        task = await worker.workflow_task()
        fired += [event.timer_fired.timer_id for event in task.events if event.HasField("timer_fired")]
        await worker.command(task)
    assert len(set(fired)) == 5_000
    assert (await tenant.kinds(run.run_id)).count("timer_fired") == 5_000


async def test_a_failed_attempt_is_tried_again_after_its_interval_and_then_fails_for_good(tenant: Tenant) -> None:
    policy = RetryPolicy(max_attempts=3, initial_interval=seconds(0.1), backoff_coefficient=2, jitter=0)
    worker, run_id = await _scheduled(tenant, retry_policy=policy)
    for attempt in range(1, 4):
        task = await worker.activity()
        assert task.attempt == attempt
        await worker.fail(task)
    await worker.workflow_task()
    history = await tenant.history(run_id)
    waits = [
        e.activity_attempt_failed.next_attempt_time.ToMilliseconds() - e.time.ToMilliseconds()
        for e in history
        if e.HasField("activity_attempt_failed")
    ]
    assert waits == [100, 200]
    failed = history[-1].activity_failed
    assert (failed.attempt, failed.retry_state, failed.failure.type) == (3, RETRY_STATE_MAX_ATTEMPTS, "Declined")
    assert not failed.outcome_unknown


async def test_a_failure_that_cannot_be_helped_is_not_tried_again(tenant: Tenant) -> None:
    worker, _ = await _scheduled(tenant, retry_policy=RetryPolicy(non_retryable_types=["CardStolen"]))
    await worker.fail(await worker.activity(), "CardStolen")
    failed = (await worker.workflow_task()).events[-1].activity_failed
    assert failed.retry_state == RETRY_STATE_NON_RETRYABLE


async def test_the_worker_may_say_when_to_try_again(tenant: Tenant) -> None:
    worker, run_id = await _scheduled(tenant, retry_policy=RetryPolicy(initial_interval=seconds(3_600)))
    failure = Failure(message="busy", type="Busy", retry_after=seconds(0.05))
    await worker.report(ActivityCompletion(token=(await worker.activity()).token, failure=failure))
    assert (await worker.activity()).attempt == 2
    assert run_id


async def test_no_attempt_follows_beyond_the_time_that_attempts_may_take_together(tenant: Tenant) -> None:
    worker, _ = await _scheduled(
        tenant, retry_policy=RetryPolicy(max_elapsed=seconds(0.01), initial_interval=seconds(1))
    )
    await worker.fail(await worker.activity())
    failed = (await worker.workflow_task()).events[-1].activity_failed
    assert failed.retry_state == RETRY_STATE_MAX_ELAPSED


async def test_an_attempt_that_takes_too_long_is_stopped_and_tried_again(tenant: Tenant) -> None:
    worker, run_id = await _scheduled(tenant, start_to_close_timeout=seconds(0.2), retry_policy=QUICK_RETRY)
    first = await worker.activity()
    second = await worker.activity()
    assert (second.attempt, second.idempotency_key) == (2, first.idempotency_key)
    told = await worker.cancellations.take("cancellation")
    assert (told.token, told.reason) == (first.token, CANCELLATION_REASON_STALE)
    assert (await worker.complete(first)).result == ACKNOWLEDGEMENT_RESULT_STALE
    failed = (await tenant.history(run_id))[-1].activity_attempt_failed
    assert (failed.failure.type, failed.failure.source, failed.outcome_unknown) == (
        "StartToCloseTimeout",
        FAILURE_SOURCE_TIMEOUT,
        True,
    )


async def test_an_attempt_that_falls_silent_is_tried_again_and_one_that_beats_is_not(tenant: Tenant) -> None:
    worker = await tenant.worker()
    await tenant.start("order")
    await worker.command(
        await worker.workflow_task(),
        schedule("pay:1", heartbeat_timeout=seconds(1), retry_policy=QUICK_RETRY),
        schedule("ship:1", heartbeat_timeout=seconds(1), retry_policy=NO_RETRY),
    )
    _, ship = await worker.activity(), await worker.activity()

    async def beat() -> None:
        while True:
            await worker.send(ConnectRequest(activity_heartbeats=[ActivityHeartbeat(token=ship.token)]))
            await asyncio.sleep(0.2)

    beating = asyncio.create_task(beat())
    again = await worker.activity()
    assert (again.activity_id, again.attempt) == ("pay:1", 2)
    await worker.complete(again)
    task = await worker.workflow_task()
    assert [e.activity_completed.activity_id for e in task.events if e.HasField("activity_completed")] == ["pay:1"]
    beating.cancel()
    await worker.complete(ship)


async def test_an_activity_that_finds_no_worker_in_time_fails_and_was_never_begun(tenant: Tenant) -> None:
    worker = await tenant.worker(activities=["ship"])
    await tenant.start("order")
    await worker.command(await worker.workflow_task(), schedule("pay:1", schedule_to_start_timeout=seconds(0.2)))
    failed = (await worker.workflow_task()).events[-1].activity_failed
    assert (failed.failure.type, failed.attempt, failed.retry_state) == (
        "ScheduleToStartTimeout",
        0,
        RETRY_STATE_TIMEOUT,
    )
    assert not failed.outcome_unknown


async def test_an_activity_that_takes_too_long_in_all_fails_with_what_went_wrong_last(tenant: Tenant) -> None:
    policy = RetryPolicy(initial_interval=seconds(60), jitter=0, max_attempts=0)
    worker, _ = await _scheduled(tenant, schedule_to_close_timeout=seconds(0.5), retry_policy=policy)
    await worker.fail(await worker.activity())
    failed = (await worker.workflow_task()).events[-1].activity_failed
    assert (failed.failure.type, failed.failure.cause.type) == ("ScheduleToCloseTimeout", "Declined")


async def test_a_run_that_takes_too_long_is_undone_and_timed_out(tenant: Tenant) -> None:
    worker = await tenant.worker(workflow_slots=2)
    run = await tenant.start("order", run_timeout=seconds(0.3))
    task = await worker.workflow_task()
    outcome = await tenant.result(run.run_id)
    assert outcome is not None
    assert (outcome.status, outcome.failure.type) == (WORKFLOW_STATUS_TIMED_OUT, "RunTimeout")
    assert (await worker.command(task, complete())).result == ACKNOWLEDGEMENT_RESULT_STALE
