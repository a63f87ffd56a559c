"""Work: what becomes of a task that a worker is needed for."""

from __future__ import annotations

from typing import Final

from romancy.v1 import wait_pb2 as kinds
from romancy.v1.failure_pb2 import FAILURE_SOURCE_SERVICE
from romancy.v1.wait_pb2 import Wait

from romancy_service.core.limits import WORKFLOW_TASK_MS
from romancy_service.core.task import ELSEWHERE, NEVER_MS, Task, TaskKind
from romancy_service.core.times import timestamp
from romancy_service.core.why.facts import Facts, Holder, Serving
from romancy_service.core.why.words import clock, cut, failure_text, name, say, span, times

_DIVERGENCE: Final = "Divergence"
_PROGRESS_CHARACTERS: Final = 200
_LOST_OFTEN: Final = 3
"""A workflow task that was lost so often is trouble of its own, not of its workers."""


def of_work(facts: Facts, task: Task) -> Wait | None:
    """What becomes of a task that a worker is needed for."""
    wait = Wait(
        id=name(task),
        type=task.type,
        task_queue=task.queue,
        attempt=task.attempt,
        compensation=task.is_compensation,
        last_failure=task.last_failure,
    )
    if task.owner:
        return _in_hand(facts, task, wait)
    if task.cancel_requested:
        sentence = f"{_subject(task)} is not begun any more: it was asked to stop"
        return say(wait, kinds.WAIT_KIND_ACTIVITY_STOPS, kinds.WAIT_STATE_WORKING, sentence)
    # What was asked for just now is due when the clock has surely reached its time: that is no wait of its own.
    if task.due_ms > max(facts.now_ms, task.scheduled_ms):
        return _due_later(facts, task, wait)
    return _due_now(facts, task, wait)


def _in_hand(facts: Facts, task: Task, wait: Wait) -> Wait:
    wait.since.CopyFrom(timestamp(task.leased_ms))
    if task.owner == ELSEWHERE:
        return _elsewhere(facts, task, wait)
    holder = facts.holders.get(task.owner)
    wait.worker_id = holder.worker_id if holder is not None else ""
    if holder is None or not holder.connected or holder.lease_ms <= facts.now_ms:
        return _lost(facts, task, wait, holder)
    _add_progress(facts, task, wait)
    if task.kind is TaskKind.WORKFLOW:
        return _running_code(facts, task, wait)
    return _stopping(facts, task, wait) if task.cancel_requested else _running(facts, task, wait)


def _elsewhere(facts: Facts, task: Task, wait: Wait) -> Wait:
    _add_progress(facts, task, wait)
    timeout = _by(facts, wait, task.relay_ms, "it times out")
    asked = ", and was asked to stop" if task.cancel_requested else ""
    sentence = (
        f"{_attempt(task)} left its worker {span(facts.now_ms - task.leased_ms)} ago, to be completed from "
        f"elsewhere{asked}{_progress_text(facts, wait)}{timeout}"
    )
    remedy = "" if timeout else "it has no timeout: should its answer have got lost, `romancy activity` gives one"
    return say(wait, kinds.WAIT_KIND_ELSEWHERE, kinds.WAIT_STATE_WAITING, sentence, remedy)


def _lost(facts: Facts, task: Task, wait: Wait, holder: Holder | None) -> Wait:
    until_ms = max(holder.lease_ms if holder is not None else 0, facts.now_ms)
    wait.due.CopyFrom(timestamp(until_ms))
    worker = f"worker {holder.worker_id}" if holder is not None else "a worker that is gone"
    sentence = (
        f"{_attempt(task)} is with {worker}, which is not heard any more; unless it comes back within "
        f"{span(until_ms - facts.now_ms)} that counts as lost, and is given to another worker where it may be"
    )
    return say(wait, kinds.WAIT_KIND_WORKER_LOST, kinds.WAIT_STATE_TROUBLED, sentence)


def _running_code(facts: Facts, task: Task, wait: Wait) -> Wait:
    if task.last_failure is not None or task.losses >= _LOST_OFTEN:
        return _failing_code(facts, task, wait)
    sentence = f"its code runs on worker {wait.worker_id} for {span(facts.now_ms - task.leased_ms)}"
    if task.losses:
        sentence += (
            f"; before, it was lost with its worker, or took more than {span(WORKFLOW_TASK_MS)}, {times(task.losses)}"
        )
    return say(wait, kinds.WAIT_KIND_CODE_RUNS, kinds.WAIT_STATE_WORKING, sentence)


def _stopping(facts: Facts, task: Task, wait: Wait) -> Wait:
    timeout = _by(facts, wait, task.relay_ms, "it times out")
    sentence = (
        f"{_attempt(task)} was asked to stop and has not answered; worker {wait.worker_id} has it for "
        f"{span(facts.now_ms - task.leased_ms)}{_progress_text(facts, wait)}{timeout}"
    )
    remedy = "" if timeout else "an activity that hangs has no timeout: stop its worker, and it counts as cancelled"
    return say(wait, kinds.WAIT_KIND_ACTIVITY_STOPS, kinds.WAIT_STATE_WORKING, sentence, remedy)


def _running(facts: Facts, task: Task, wait: Wait) -> Wait:
    ago = span(facts.now_ms - task.leased_ms)
    sentence = f"{_attempt(task)} runs on worker {wait.worker_id} for {ago}{_progress_text(facts, wait)}"
    sentence += _by(facts, wait, task.relay_ms, "unless it is heard it times out")
    if task.last_failure is not None:
        sentence += f"; the attempt before failed: {failure_text(task.last_failure)}"
    return say(wait, kinds.WAIT_KIND_ACTIVITY_RUNS, kinds.WAIT_STATE_WORKING, sentence)


def _by(facts: Facts, wait: Wait, time_ms: int, what: str) -> str:
    """What the service does about it at that time, if there is one."""
    if time_ms >= NEVER_MS:
        return ""
    wait.due.CopyFrom(timestamp(time_ms))
    return f"; {what} in {span(time_ms - facts.now_ms)}"


def _add_progress(facts: Facts, task: Task, wait: Wait) -> None:
    if task.heartbeat_ms:
        wait.heartbeat_time.CopyFrom(timestamp(task.heartbeat_ms))
    details = facts.progress.get(task.task_id)
    if details is not None:
        text = details.json if details.WhichOneof("data") == "json" else f"{len(details.binary)} bytes"
        wait.progress = cut(text, _PROGRESS_CHARACTERS)


def _progress_text(facts: Facts, wait: Wait) -> str:
    if not wait.HasField("heartbeat_time"):
        return ""
    beat_ms = wait.heartbeat_time.ToMilliseconds()
    told = f", progress {wait.progress}" if wait.progress else ""
    return f", last heard of {span(facts.now_ms - beat_ms)} ago{told}"


def _due_later(facts: Facts, task: Task, wait: Wait) -> Wait:
    wait.due.CopyFrom(timestamp(task.due_ms))
    left = span(task.due_ms - facts.now_ms)
    if task.kind is TaskKind.WORKFLOW:
        if task.last_failure is None and not task.losses:
            wait.since.CopyFrom(timestamp(facts.run.start_ms))
            sentence = f"its code begins in {left}: its start asked for a delay"
            return say(wait, kinds.WAIT_KIND_START_DELAY, kinds.WAIT_STATE_WAITING, sentence)
        return _failing_code(facts, task, wait)
    wait.since.CopyFrom(timestamp(task.scheduled_ms))
    failure = f" after {failure_text(task.last_failure)}" if task.last_failure is not None else ""
    sentence = f"{_subject(task)} is tried again in {left} (attempt {task.attempt}){failure}"
    return say(wait, kinds.WAIT_KIND_ACTIVITY_RETRIES, kinds.WAIT_STATE_TROUBLED, sentence)


def _failing_code(facts: Facts, task: Task, wait: Wait) -> Wait:
    """The run's code was tried before and did not get through."""
    failure, tries = task.last_failure, task.attempt - 1
    wait.since.CopyFrom(timestamp(task.scheduled_ms))
    if task.owner:
        again = f"worker {wait.worker_id} tries it again since {span(facts.now_ms - task.leased_ms)}"
    else:
        again = f"it is tried again in {span(task.due_ms - facts.now_ms)}"
    if failure is None:
        too_long = f"took more than {span(WORKFLOW_TASK_MS)} for it"
        lost = f"{times(task.losses)} its worker was lost, or {too_long}"
        sentence = f"its code does not get through: {lost}; {again}"
        remedy = "look into the workers' logs: code that computes for long or blocks belongs into an activity"
        return say(wait, kinds.WAIT_KIND_CODE_FAILS, kinds.WAIT_STATE_TROUBLED, sentence, remedy)
    told = failure_text(failure)
    if failure.type == _DIVERGENCE:
        kind, what = kinds.WAIT_KIND_CODE_DIVERGES, "its code does not fit its history"
        remedy = (
            "deploy code that does again what is recorded: undo the change, or guard it with patched(); the run then "
            "goes on by itself"
        )
    elif failure.source == FAILURE_SOURCE_SERVICE and failure.type.isupper():
        kind, what = kinds.WAIT_KIND_COMMANDS_REFUSED, "what its code asked for was refused"
        remedy = "deploy code that asks for what is allowed; the run then goes on by itself"
    else:
        kind, what = kinds.WAIT_KIND_CODE_FAILS, "its code fails"
        remedy = "deploy code that is put right; the run then goes on by itself, and nothing of it is lost"
    ago = span(facts.now_ms - task.scheduled_ms)
    sentence = f"{what} since {times(tries, 'attempt')} ({ago}): {told}; {again}"
    return say(wait, kind, kinds.WAIT_STATE_BLOCKED, sentence, remedy)


def _due_now(facts: Facts, task: Task, wait: Wait) -> Wait:
    """A worker is needed, and has not taken it yet."""
    wait.since.CopyFrom(timestamp(task.due_ms))
    serving = facts.serving.get((task.queue, task.kind, task.type), Serving())
    need = f"{_attempt(task)} waits for {span(facts.now_ms - task.due_ms)}"
    failure = f"; before, {failure_text(task.last_failure)}" if task.last_failure is not None else ""
    failure += _by(facts, wait, min(task.start_by_ms, task.close_by_ms), "it fails if no worker takes it")
    if not serving.workers:
        return _unserved(facts, task, wait, f"{need}: ", failure)
    workers = f"{serving.workers} worker{'s' * (serving.workers > 1)}"
    if serving.busy is not None and serving.busy < serving.slots:
        if task.kind is TaskKind.WORKFLOW and task.last_failure is not None:
            return _failing_code(facts, task, wait)
        taken = f"{serving.busy} of {serving.slots} slots are taken"
        sentence = f"{_attempt(task)} is about to be given to one of {workers} of queue {task.queue} ({taken}){failure}"
        return say(wait, kinds.WAIT_KIND_HANDED_OUT, kinds.WAIT_STATE_WORKING, sentence)
    wait.slots = serving.slots
    busy = serving.slots if serving.busy is None else serving.busy
    all_are = "the only worker" if serving.workers == 1 else f"each of the {workers}"
    sentence = (
        f"{need}: {all_are} of queue {task.queue} with type {task.type} is busy "
        f"({busy} of {serving.slots} slots){failure}"
    )
    remedy = "it gets its turn; if that takes too long start more workers, or give them more slots"
    return say(wait, kinds.WAIT_KIND_WORKERS_BUSY, kinds.WAIT_STATE_WAITING, sentence, remedy)


def _unserved(facts: Facts, task: Task, wait: Wait, need: str, failure: str) -> Wait:
    key = (task.queue, task.kind, task.type)
    leaving = facts.serving.get(key, Serving()).leaving
    if leaving:
        workers = "the only worker" if leaving == 1 else f"each of the {leaving} workers"
        sentence = f"{need}{workers} of queue {task.queue} with type {task.type} is leaving, and takes nothing more"
        remedy = f"start a worker of queue {task.queue} that has {task.type}, unless one is about to come"
        return say(wait, kinds.WAIT_KIND_WORKERS_LEAVING, kinds.WAIT_STATE_BLOCKED, sentence + failure, remedy)
    if not facts.all_workers:
        sentence = f"{need}none of the workers that were looked at is of queue {task.queue} with type {task.type}"
        return say(wait, kinds.WAIT_KIND_NO_WORKER, kinds.WAIT_STATE_WAITING, sentence + failure)
    last = facts.last_served.get(key)
    if last is not None:
        wait.worker_id = last[0]
        seen_ms = min(last[1], facts.now_ms)
        wait.last_served.CopyFrom(timestamp(seen_ms))
        seen = f"last seen at {clock(seen_ms)} on worker {last[0]}"
    else:
        seen = f"none was seen in the last {span(facts.limits.offer_kept_ms)}"
    sentence = f"{need}no worker of queue {task.queue} has type {task.type}, {seen}{failure}"
    remedy = (
        f"start a worker of queue {task.queue} that has {task.type}, or mend the name or the queue that the code gives"
    )
    return say(wait, kinds.WAIT_KIND_NO_WORKER, kinds.WAIT_STATE_BLOCKED, sentence, remedy)


def _attempt(task: Task) -> str:
    if task.kind is TaskKind.WORKFLOW:
        return "its code" if task.attempt == 1 else f"its code (attempt {task.attempt})"
    return f"{_subject(task)} (attempt {task.attempt})"


def _subject(task: Task) -> str:
    return f"{'compensation' if task.is_compensation else 'activity'} {name(task)}"
