"""Attempts: what the end of one attempt makes of an activity or a compensation."""

from __future__ import annotations

from collections.abc import Sequence

from romancy.v1.command_pb2 import SendEvent
from romancy.v1.failure_pb2 import FAILURE_SOURCE_LOST, FAILURE_SOURCE_TIMEOUT, Failure
from romancy.v1.history_pb2 import (
    RETRY_STATE_CANCEL_REQUESTED,
    RETRY_STATE_LOST,
    RETRY_STATE_TIMEOUT,
    ActivityAttemptFailed,
    ActivityCancelled,
    ActivityCompleted,
    ActivityFailed,
    CompensationAttemptFailed,
    CompensationCompleted,
    CompensationFailed,
    RetryState,
)
from romancy.v1.payload_pb2 import Payload

from romancy_service.core.emit import Emitter
from romancy_service.core.outgoing import as_recorded
from romancy_service.core.retry import LOSSES_IN_A_ROW, Next, next_attempt
from romancy_service.core.task import COMPENSATION_PREFIX, NEVER_MS, Task
from romancy_service.core.times import duration, timestamp


def completed(emit: Emitter, task: Task, result: Payload, events: Sequence[SendEvent] = ()) -> None:
    """The attempt returned a result, and sent events."""
    name = _name(task)
    sent = as_recorded(emit.run, events, emit.now_ms)
    if task.is_compensation:
        emit.note(compensation_completed=CompensationCompleted(compensation_id=name, attempt=task.attempt, events=sent))
    else:
        emit.note(
            activity_completed=ActivityCompleted(activity_id=name, attempt=task.attempt, result=result, events=sent)
        )


def cancelled(emit: Emitter, task: Task, *, sent: bool, details: Sequence[Payload] = (), unknown: bool = False) -> None:
    """The activity stopped because it was asked to, or was never begun. `sent`: the current attempt had a worker."""
    emit.note(
        activity_cancelled=ActivityCancelled(
            activity_id=_name(task),
            attempt=task.attempt if sent else task.attempt - 1,
            details=details,
            outcome_unknown=unknown or task.outcome_unknown,
        )
    )


def failed(emit: Emitter, task: Task, failure: Failure, ran_ms: int) -> bool:
    """The attempt failed in its own words. Returns whether the activity is closed by it."""
    return _failed(emit, task, failure, ran_ms, unknown=False)


def timed_out(emit: Emitter, task: Task, timeout: str, ran_ms: int) -> None:
    """The attempt took, or was silent for, longer than allowed; its outcome is unknown."""
    if task.cancel_requested:
        cancelled(emit, task, sent=True, unknown=True)
        return
    allowed_ms = task.start_to_close_ms if timeout == "StartToCloseTimeout" else task.heartbeat_timeout_ms
    failure = Failure(
        message=f"attempt {task.attempt} of {_name(task)} passed its {_TIMEOUTS[timeout]} of {allowed_ms / 1000:g} s",
        type=timeout,
        source=FAILURE_SOURCE_TIMEOUT,
    )
    _failed(emit, task, failure, ran_ms, unknown=True)


def expired(emit: Emitter, task: Task, timeout: str, *, sent: bool) -> None:
    """The activity as a whole took longer than allowed: no further attempt."""
    failure = Failure(
        message=f"{_name(task)} passed its {_TIMEOUTS[timeout]}",
        type=timeout,
        source=FAILURE_SOURCE_TIMEOUT,
        cause=task.last_failure,
    )
    attempt = task.attempt if sent else task.attempt - 1
    _close(emit, task, failure, RETRY_STATE_TIMEOUT, attempt=attempt, unknown=sent)


def lost(emit: Emitter, task: Task) -> None:
    """The session that ran the attempt is gone; nobody knows how far it came."""
    if task.cancel_requested:
        cancelled(emit, task, sent=True, unknown=True)
        return
    failure = Failure(
        message=f"the worker that ran attempt {task.attempt} of {_name(task)} was lost",
        type="ActivityLost",
        source=FAILURE_SOURCE_LOST,
    )
    at_most_once = task.command is not None and task.command.at_most_once
    if at_most_once or (task.losses + 1 >= LOSSES_IN_A_ROW and not task.is_compensation):
        _close(emit, task, failure, RETRY_STATE_LOST, attempt=task.attempt, unknown=True)
    else:
        _again(emit, task, failure, wait_ms=0, ran_ms=0, unknown=True)


def _failed(emit: Emitter, task: Task, failure: Failure, ran_ms: int, *, unknown: bool) -> bool:
    assert task.command is not None
    if task.cancel_requested and not task.is_compensation:
        _close(emit, task, failure, RETRY_STATE_CANCEL_REQUESTED, attempt=task.attempt, unknown=unknown)
        return True
    verdict = next_attempt(
        task.command.retry_policy,
        failure,
        failures=task.failures + 1,
        worked_ms=task.worked_ms + ran_ms,
        seed=f"{emit.run.run_id}/{task.task_id}/{task.attempt}",
        compensation=task.is_compensation,
    )
    if isinstance(verdict, Next):
        _again(emit, task, failure, wait_ms=verdict.wait_ms, ran_ms=ran_ms, unknown=unknown)
        return False
    _close(emit, task, failure, verdict.state, attempt=task.attempt, unknown=unknown)
    return True


def _again(emit: Emitter, task: Task, failure: Failure, *, wait_ms: int, ran_ms: int, unknown: bool) -> None:
    next_time = timestamp(emit.now_ms + wait_ms)
    if task.is_compensation:
        emit.note(
            compensation_attempt_failed=CompensationAttemptFailed(
                compensation_id=_name(task),
                attempt=task.attempt,
                failure=failure,
                next_attempt_time=next_time,
                ran_for=duration(ran_ms),
            )
        )
    else:
        emit.note(
            activity_attempt_failed=ActivityAttemptFailed(
                activity_id=_name(task),
                attempt=task.attempt,
                failure=failure,
                next_attempt_time=next_time,
                outcome_unknown=unknown,
                ran_for=duration(ran_ms),
            )
        )


def _close(
    emit: Emitter, task: Task, failure: Failure, state: RetryState.ValueType, *, attempt: int, unknown: bool
) -> None:
    if task.is_compensation:
        emit.note(compensation_failed=CompensationFailed(compensation_id=_name(task), attempt=attempt, failure=failure))
        return
    emit.note(
        activity_failed=ActivityFailed(
            activity_id=_name(task),
            attempt=attempt,
            failure=failure,
            retry_state=state,
            outcome_unknown=unknown or task.outcome_unknown,
        )
    )


def due_timeout(task: Task, leased_ms: int, heartbeat_ms: int, now_ms: int, *, owned: bool) -> str:
    """The timeout of an activity that has passed at `now_ms`; empty if none has."""
    if task.close_by_ms <= now_ms:
        return "ScheduleToCloseTimeout"
    if not owned:
        return "ScheduleToStartTimeout" if task.start_by_ms <= now_ms else ""
    if task.start_to_close_ms < NEVER_MS and leased_ms + task.start_to_close_ms <= now_ms:
        return "StartToCloseTimeout"
    last_sign_ms = max(leased_ms, heartbeat_ms)
    if task.heartbeat_timeout_ms < NEVER_MS and last_sign_ms + task.heartbeat_timeout_ms <= now_ms:
        return "HeartbeatTimeout"
    return ""


def _name(task: Task) -> str:
    return task.task_id.removeprefix(COMPENSATION_PREFIX if task.is_compensation else "a/")


_TIMEOUTS = {
    "StartToCloseTimeout": "start-to-close timeout",
    "HeartbeatTimeout": "heartbeat timeout",
    "ScheduleToStartTimeout": "schedule-to-start timeout",
    "ScheduleToCloseTimeout": "schedule-to-close timeout",
}
