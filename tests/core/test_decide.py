"""Decisions other than the saga's: tasks, attempts, timeouts, carried commands, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from romancy.v1.command_pb2 import Command
from romancy.v1.failure_pb2 import FAILURE_SOURCE_LOST, FAILURE_SOURCE_TIMEOUT, Failure
from romancy.v1.history_pb2 import (
    RETRY_STATE_LOST,
    RETRY_STATE_MAX_ATTEMPTS,
    RETRY_STATE_MAX_ELAPSED,
    RETRY_STATE_NON_RETRYABLE,
)
from romancy.v1.payload_pb2 import Payload
from romancy.v1.retry_pb2 import RetryPolicy
from romancy.v1.worker_service_pb2 import Then
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_COMPLETED, WORKFLOW_STATUS_FAILED, WORKFLOW_STATUS_RUNNING

from romancy_service.core.limits import Limits
from romancy_service.core.task import ELSEWHERE, NEVER_MS, WORKFLOW_TASK_ID, Fence
from romancy_service.core.times import timestamp
from romancy_service.core.triggers import CompleteActivity, CompleteWorkflowTask, FailWorkflowTask, LoseTask, TaskDue
from romancy_service.errors import StaleTask
from tests.core.life import CANCEL, Life, cancel_activity, complete, fail, schedule, timer


def test_a_start_makes_a_workflow_task() -> None:
    life = Life.begin()
    task = life.run.workflow_task
    assert task is not None
    assert (task.type, task.queue, task.attempt) == ("order", "default", 1)


def test_inputs_that_arrive_while_a_task_is_out_bring_another_task() -> None:
    life = Life.begin()
    life.code(schedule("a:1"), schedule("b:1"))
    life.completes("a:1")
    seen = life.run.last_event_id
    life.completes("b:1")
    life.code(seen=seen)
    assert life.run.workflow_task is not None
    assert [event.event_id for event in life.run.unseen] == [seen + 1]
    life.code()
    assert life.run.workflow_task is None


def test_completing_an_activity_twice_is_refused_as_stale() -> None:
    life = Life.begin()
    life.code(schedule("pay:1"))
    fence = life.fence(life.task("pay:1"))
    life.completes("pay:1")
    with pytest.raises(StaleTask, match="pay:1"):
        life.do(CompleteActivity(fence, life.now_ms, result=Payload(json="1")))


def test_an_attempt_that_was_replaced_is_refused_as_stale() -> None:
    life = Life.begin()
    life.code(schedule("pay:1"))
    fence = life.fence(life.task("pay:1"))
    life.loses("pay:1")
    with pytest.raises(StaleTask, match="attempt 1 was replaced by attempt 2"):
        life.do(CompleteActivity(fence, life.now_ms, result=Payload(json="1")))


def test_attempts_follow_each_other_after_growing_waits() -> None:
    life = Life.begin()
    life.code(schedule("pay:1", retry_policy=RetryPolicy(jitter=0)))
    waits = []
    for _ in range(4):
        life.fails("pay:1")
        task = life.task("pay:1")
        waits.append(task.due_ms - life.now_ms)
        life.now_ms = task.due_ms
    assert waits == [1_000, 2_000, 4_000, 8_000]
    life.fails("pay:1")
    closed = life.history[-1].activity_failed
    assert (closed.attempt, closed.retry_state) == (5, RETRY_STATE_MAX_ATTEMPTS)


def test_a_failure_that_is_not_retryable_ends_the_activity() -> None:
    life = Life.begin()
    life.code(schedule("pay:1"))
    life.fails("pay:1", non_retryable=True)
    assert life.history[-1].activity_failed.retry_state == RETRY_STATE_NON_RETRYABLE


def test_a_type_that_the_policy_lists_ends_the_activity() -> None:
    life = Life.begin()
    life.code(schedule("pay:1", retry_policy=RetryPolicy(non_retryable_types=["Declined"])))
    life.fails("pay:1")
    assert life.history[-1].activity_failed.retry_state == RETRY_STATE_NON_RETRYABLE


def test_no_attempt_starts_after_max_elapsed() -> None:
    life = Life.begin()
    policy = RetryPolicy(max_attempts=0, max_elapsed=Duration(seconds=3), jitter=0)
    life.code(schedule("pay:1", retry_policy=policy))
    life.fails("pay:1")
    life.now_ms = life.task("pay:1").due_ms
    life.fails("pay:1")
    assert life.task("pay:1").attempt == 3
    life.now_ms = life.task("pay:1").due_ms
    life.fails("pay:1")
    assert life.history[-1].activity_failed.retry_state == RETRY_STATE_MAX_ELAPSED


@pytest.mark.parametrize("ended", ["failed", "timed out"])
@pytest.mark.parametrize(("owner", "counts"), [("a session", True), (ELSEWHERE, False)])
def test_an_attempt_that_waits_elsewhere_uses_up_no_max_elapsed(owner: str, counts: bool, ended: str) -> None:
    life = Life.begin()
    life.code(schedule("pay:1", start_to_close_timeout=Duration(seconds=301)))
    leased_ms, fence = life.now_ms, Fence("a/pay:1", 1, owner, 1)
    life.now_ms += 301_000
    if ended == "failed":
        life.do(CompleteActivity(fence, leased_ms, failure=Failure(message="busy", type="Busy")))
    else:
        life.do(TaskDue(fence, leased_ms, 0))
    if counts:
        assert life.history[-1].activity_failed.retry_state == RETRY_STATE_MAX_ELAPSED
    else:
        assert (life.task("pay:1").attempt, life.task("pay:1").worked_ms) == (
            2,
            life.task("pay:1").due_ms - life.now_ms,
        )


def test_a_lost_attempt_is_sent_again_at_once_and_does_not_count() -> None:
    life = Life.begin()
    life.code(schedule("pay:1", retry_policy=RetryPolicy(max_attempts=1)))
    life.loses("pay:1")
    task = life.task("pay:1")
    assert (task.attempt, task.failures, task.due_ms) == (2, 0, life.now_ms)


def test_five_losses_in_a_row_fail_the_activity_as_lost() -> None:
    life = Life.begin()
    life.code(schedule("pay:1"))
    for _ in range(5):
        life.loses("pay:1")
    closed = life.history[-1].activity_failed
    assert (closed.retry_state, closed.failure.source) == (RETRY_STATE_LOST, FAILURE_SOURCE_LOST)
    assert closed.outcome_unknown


def test_at_most_once_is_not_sent_again_after_a_loss() -> None:
    life = Life.begin()
    life.code(schedule("pay:1", at_most_once=True))
    life.loses("pay:1")
    assert life.history[-1].activity_failed.retry_state == RETRY_STATE_LOST


@pytest.mark.parametrize(
    ("field", "timeout", "owner"),
    [
        ("start_to_close_timeout", "StartToCloseTimeout", "session"),
        ("heartbeat_timeout", "HeartbeatTimeout", "session"),
    ],
)
def test_an_attempt_that_times_out_is_retried_with_an_unknown_outcome(field: str, timeout: str, owner: str) -> None:
    life = Life.begin()
    timeouts: dict[str, Any] = {field: Duration(seconds=5)}
    life.code(schedule("pay:1", **timeouts))
    leased_ms = life.now_ms
    task = life.task("pay:1")
    assert task.owned_relay_ms(leased_ms) == leased_ms + 5_000
    life.now_ms += 5_000
    from romancy_service.core.triggers import TaskDue

    life.do(TaskDue(Fence("a/pay:1", 1, owner, 1), leased_ms, 0))
    failed = life.history[-1].activity_attempt_failed
    assert failed.failure.type == timeout
    assert failed.outcome_unknown
    assert life.task("pay:1").outcome_unknown


@pytest.mark.parametrize(
    ("field", "timeout"),
    [
        ("schedule_to_start_timeout", "ScheduleToStartTimeout"),
        ("schedule_to_close_timeout", "ScheduleToCloseTimeout"),
    ],
)
def test_an_activity_that_waits_too_long_fails_for_good(field: str, timeout: str) -> None:
    life = Life.begin()
    timeouts: dict[str, Any] = {field: Duration(seconds=5)}
    life.code(schedule("pay:1", **timeouts))
    assert life.task("pay:1").unowned_relay_ms == life.now_ms + 5_000
    life.now_ms += 5_000
    life.due("a/pay:1")
    closed = life.history[-1].activity_failed
    assert (closed.failure.type, closed.failure.source) == (timeout, FAILURE_SOURCE_TIMEOUT)
    assert not closed.outcome_unknown
    assert closed.attempt == 0


def test_what_is_not_due_is_left_alone() -> None:
    life = Life.begin()
    life.code(schedule("pay:1", schedule_to_close_timeout=Duration(seconds=5)))
    with pytest.raises(StaleTask, match="nothing is due"):
        life.due("a/pay:1")


def test_a_timer_is_due_after_its_whole_duration() -> None:
    life = Life.begin()
    life.code(timer("1", 60))
    assert life.run.tasks["t/1"].due_ms == life.now_ms + 60_000
    life.now_ms += 60_000
    life.due("t/1")
    assert life.kinds()[-1] == "timer_fired"
    assert life.run.workflow_task is not None


def test_event_times_never_go_back() -> None:
    life = Life.begin()
    life.code(schedule("a:1"))
    life.now_ms -= 10_000
    life.completes("a:1")
    times = [event.time.ToMilliseconds() for event in life.history]
    assert times == sorted(times)


def test_a_workflow_task_that_fails_is_tried_later_and_later_and_the_run_stays_open() -> None:
    life = Life.begin()
    waits = []
    for _ in range(12):
        task = life.run.tasks[WORKFLOW_TASK_ID]
        from romancy.v1.failure_pb2 import Failure

        life.do(FailWorkflowTask(life.fence(task), Failure(type="Divergence")))
        waits.append(life.run.tasks[WORKFLOW_TASK_ID].due_ms - life.now_ms)
    assert waits[:4] == [1_000, 2_000, 4_000, 8_000]
    assert waits[-1] == 600_000
    assert life.run.status == WORKFLOW_STATUS_RUNNING
    assert len(life.history) == 1


def test_a_workflow_task_whose_worker_is_lost_goes_elsewhere_at_once() -> None:
    life = Life.begin()
    life.do(LoseTask(life.fence(life.run.tasks[WORKFLOW_TASK_ID])))
    assert life.run.tasks[WORKFLOW_TASK_ID].due_ms == life.now_ms


# Carried commands ---------------------------------------------------------------------------------------------------


def carried(life: Life, *commands: Command, after: int | None = None, ahead_ms: int = 0) -> CompleteActivity:
    after_event_id = life.run.last_event_id if after is None else after
    then = Then(after_event_id=after_event_id, time=timestamp(life.now_ms + ahead_ms), commands=commands)
    fence = life.fence(life.task("a:1"))
    return CompleteActivity(fence, life.now_ms, result=Payload(json="1"), then=then)


def test_commands_that_are_carried_with_a_completion_need_no_workflow_task() -> None:
    life = Life.begin()
    life.code(schedule("a:1"))
    reply = life.do(carried(life, schedule("b:1")))
    assert not reply.alone
    assert life.run.workflow_task is None
    assert life.kinds()[-2:] == ["activity_completed", "activity_scheduled"]
    assert reply.last_event_id == len(life.history)


def test_the_event_has_the_time_that_the_code_saw() -> None:
    life = Life.begin()
    life.code(schedule("a:1"))
    life.do(carried(life, complete(), ahead_ms=700))
    completed = next(event for event in life.history if event.HasField("activity_completed"))
    assert completed.time.ToMilliseconds() == life.now_ms + 700
    assert life.run.status == WORKFLOW_STATUS_COMPLETED


@pytest.mark.parametrize(("after", "ahead_ms"), [(1, 0), (None, 5_000), (None, -5_000)])
def test_a_then_that_built_on_something_else_is_left_out(after: int | None, ahead_ms: int) -> None:
    life = Life.begin()
    life.code(schedule("a:1"))
    reply = life.do(carried(life, complete(), after=after, ahead_ms=ahead_ms))
    assert reply.alone
    assert life.run.status == WORKFLOW_STATUS_RUNNING
    assert life.run.workflow_task is not None


def test_a_then_is_left_out_when_another_input_came_first() -> None:
    life = Life.begin()
    life.code(schedule("a:1"), schedule("b:1"))
    trigger = carried(life, complete())
    life.completes("b:1")
    assert life.do(trigger).alone


def test_a_then_with_a_wrong_command_is_left_out_and_named() -> None:
    life = Life.begin()
    life.code(schedule("a:1"))
    reply = life.do(carried(life, schedule("b:7")))
    assert reply.alone
    assert reply.rejection is not None
    assert life.run.workflow_task is not None


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("commands", "problem"),
    [
        ([Command()], "no attributes"),
        ([schedule("a:2")], "'a:1'"),
        ([schedule("a:1"), schedule("a:1")], "'a:2'"),
        ([timer("7", 1)], "'1'"),
        ([cancel_activity("a:1")], "no activity"),
        ([complete(), schedule("a:1")], "last command"),
        ([CANCEL], "nobody asked"),
        ([schedule("a:1", start_to_close_timeout=Duration(seconds=-1))], "negative"),
        ([schedule("a:1", start_to_close_timeout=Duration(seconds=10**11))], "ten years"),
        ([schedule("a:1", arguments=[Payload(json="x" * (2 << 20))])], "bytes"),
        ([schedule("a\x00:1")], "control character"),
    ],
)
def test_a_task_with_a_wrong_command_is_refused_whole(commands: list[Command], problem: str) -> None:
    life = Life.begin()
    reply = life.code(schedule("ok:1"), *commands) if "a:" in problem else life.code(*commands)
    assert reply.rejection is not None
    assert problem in str(reply.rejection)
    assert len(life.history) == 1
    assert life.run.tasks[WORKFLOW_TASK_ID].last_failure is not None


def test_too_many_commands_in_a_task_are_refused() -> None:
    life = Life.begin()
    life.limits = Limits(commands_per_task=3)
    reply = life.code(*(timer(str(number), 1) for number in range(1, 5)))
    assert reply.rejection is not None
    assert reply.rejection.limit == 3


def test_too_many_open_activities_are_refused() -> None:
    life = Life.begin()
    life.limits = Limits(open_activities=3)
    life.code(*(schedule(f"a:{number}") for number in range(1, 3)))
    life.completes("a:1")
    reply = life.code(*(schedule(f"a:{number}") for number in range(3, 6)))
    assert reply.rejection is not None


def test_a_seen_event_that_does_not_exist_is_refused() -> None:
    life = Life.begin()
    reply = life.code(complete(), seen=99)
    assert reply.rejection is not None
    assert reply.rejection.field == "seen_event_id"


def test_a_history_that_is_too_long_ends_the_run_with_the_reason() -> None:
    life = Life.begin()
    life.limits = Limits(history_recur_events=5, history_warn_events=5, history_events=5)
    life.code(*(schedule(f"a:{number}") for number in range(1, 6)))
    for number in range(1, 6):
        life.due(f"a/a:{number}")
    assert life.run.status == WORKFLOW_STATUS_FAILED
    assert life.run.outcome is not None
    assert life.run.outcome.failure.type == "HistoryTooLong"


def test_a_history_of_too_many_bytes_ends_the_run_with_the_reason() -> None:
    life = Life.begin()
    life.limits = Limits(history_recur_bytes=10_000, history_warn_bytes=10_000, history_bytes=10_000)
    life.code(*(schedule(f"a:{number}") for number in range(1, 3)))
    life.completes("a:1", "x" * 9_000)
    assert life.run.status == WORKFLOW_STATUS_RUNNING
    life.completes("a:2", "x" * 1_000)
    assert life.run.outcome is not None
    assert life.run.outcome.failure.type == "HistoryTooLong"
    assert "at most 10000 are allowed; let the workflow recur" in life.run.outcome.failure.message


def test_a_closed_run_refuses_its_old_tasks() -> None:
    life = Life.begin()
    fence = life.fence(life.run.tasks[WORKFLOW_TASK_ID])
    life.code(fail())
    with pytest.raises(StaleTask):
        life.do(CompleteWorkflowTask(fence, 1, [], holds_run=False))


def test_times_that_never_come_are_stored_as_never() -> None:
    life = Life.begin()
    life.code(schedule("a:1"))
    task = life.task("a:1")
    assert task.unowned_relay_ms >= NEVER_MS
    assert task.owned_relay_ms(life.now_ms) >= NEVER_MS


@pytest.mark.parametrize("coefficient", [1e300, 1.7e308])
def test_a_huge_coefficient_waits_as_long_as_allowed(coefficient: float) -> None:
    life = Life.begin()
    policy = RetryPolicy(jitter=0, backoff_coefficient=coefficient, max_attempts=100)
    policy.max_interval.FromSeconds(7)
    policy.max_elapsed.FromSeconds(0)
    life.code(schedule("pay:1", retry_policy=policy))
    for wait_ms in (1_000, 7_000, 7_000):
        life.fails("pay:1")
        assert life.task("pay:1").due_ms - life.now_ms == wait_ms
        life.now_ms = life.task("pay:1").due_ms
