"""Why: what a run waits for or is blocked by, made of facts. Read by somebody at three in the morning, and by programs.

Each wait says what, since when, why, and what can be done. A kind of wait is made in one place here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from romancy.v1 import wait_pb2 as why
from romancy.v1.command_pb2 import Send, StartChild, Subscribe
from romancy.v1.failure_pb2 import FAILURE_SOURCE_SERVICE, Failure
from romancy.v1.payload_pb2 import Payload
from romancy.v1.wait_pb2 import Wait
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_COMPENSATING, WORKFLOW_STATUS_RUNNING, WorkflowStatus

from romancy_service.core import children
from romancy_service.core.channel import channel_of
from romancy_service.core.limits import Limits
from romancy_service.core.place import raised_at
from romancy_service.core.run import Run
from romancy_service.core.subscription import event_type_of, is_answered
from romancy_service.core.task import COMPENSATION_PREFIX, NEVER_MS, WORKFLOW_TASK_ID, Task, TaskKind
from romancy_service.core.times import rfc3339, timestamp

TypeKey = tuple[str, TaskKind, str]
"""Queue, kind, type: what a worker is needed for."""

_DIVERGENCES: Final = ("Divergence", "NonDeterminism")
_MESSAGE_CHARACTERS: Final = 300
"""So much of a failure's message stands in a sentence; the whole is beside it."""
_PROGRESS_CHARACTERS: Final = 200
_LOST_OFTEN: Final = 3
"""A workflow task that was lost so often is trouble of its own, not of its workers."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A session that has a task of the run."""

    worker_id: str
    connected: bool
    lease_ms: int
    """Until then its tasks are kept for it."""


@dataclass(frozen=True, slots=True)
class Serving:
    """The connected workers that have a type."""

    workers: int = 0
    leaving: int = 0
    """So many besides take nothing more."""
    slots: int = 0
    busy: int | None = None
    """How many tasks of the kind they have; None: not counted, it is many."""


@dataclass(frozen=True, slots=True)
class FailedCompensation:
    """One that failed for good."""

    compensation_id: str
    type: str
    failure: Failure


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known of a run that is looked at. `run` has the tasks that are shown."""

    run: Run
    now_ms: int
    limits: Limits
    counts: Mapping[TaskKind, int] = field(default_factory=dict)
    """All its open tasks."""
    progress: Mapping[str, Payload] = field(default_factory=dict)
    """By task id."""
    holders: Mapping[str, Holder] = field(default_factory=dict)
    """By session id. One that is not there is gone."""
    serving: Mapping[TypeKey, Serving] = field(default_factory=dict)
    last_served: Mapping[TypeKey, tuple[str, int]] = field(default_factory=dict)
    """Which worker had a type last, and when."""
    all_workers: bool = True
    """Whether all sessions were looked at."""
    children: Mapping[str, WorkflowStatus.ValueType] = field(default_factory=dict)
    """By workflow id: the status of those children that are open."""
    failed: Sequence[FailedCompensation] = ()
    to_undo: int = 0
    """What is to be undone after what is being undone now."""


def waits(facts: Facts) -> list[Wait]:
    """What the run waits for, the most important first. An open run always has something."""
    run = facts.run
    found = [wait for task in run.tasks.values() if (wait := _of_task(facts, task)) is not None]
    found += [_failed_for_good(run, failed) for failed in facts.failed]
    found += _of_run(facts)
    if run.status == WORKFLOW_STATUS_RUNNING and not any(wait.kind not in _NOT_AWAITED for wait in found):
        found.append(_condition(facts))
    if (unseen := sum(facts.counts.values()) - len(run.tasks)) > 0:
        sentence = f"and {unseen} more activities, timers, children, messages and subscriptions are open"
        found.append(Wait(kind=why.WAIT_KIND_MORE, state=why.WAIT_STATE_WAITING, sentence=sentence, count=unseen))
    return sorted(found, key=lambda wait: (wait.state, wait.kind in _LAST))


_NOT_AWAITED: Final = frozenset(
    (
        why.WAIT_KIND_TIMEOUT,
        why.WAIT_KIND_SUBSCRIPTION,
        why.WAIT_KIND_UPDATE,
        why.WAIT_KIND_CANCELLATION,
        why.WAIT_KIND_HISTORY,
    )
)
"""What is there without the code's waiting for it."""
_LAST: Final = frozenset((why.WAIT_KIND_TIMEOUT, why.WAIT_KIND_SUBSCRIPTION, why.WAIT_KIND_MORE))
"""What tells least, within its state."""


def _of_task(facts: Facts, task: Task) -> Wait | None:
    match task.kind:
        case TaskKind.WORKFLOW | TaskKind.ACTIVITY:
            return _of_work(facts, task)
        case TaskKind.TIMER:
            return _timer(facts, task)
        case TaskKind.DEADLINE:
            return _timeout(facts, task)
        case TaskKind.CHILD:
            return _child(facts, task)
        case TaskKind.SEND:
            return _send(facts, task)
        case TaskKind.REPORT:
            return _report(facts, task)
        case TaskKind.SUBSCRIPTION:
            return _subscription(facts, task)


# Work ------------------------------------------------------------------------------------------------------------


def _of_work(facts: Facts, task: Task) -> Wait | None:
    """What becomes of a task that a worker is needed for."""
    wait = Wait(
        id=_name(task),
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
        return _say(wait, why.WAIT_KIND_ACTIVITY_STOPS, why.WAIT_STATE_WORKING, sentence)
    if task.due_ms > facts.now_ms:
        return _due_later(facts, task, wait)
    return _due_now(facts, task, wait)


def _in_hand(facts: Facts, task: Task, wait: Wait) -> Wait:
    holder = facts.holders.get(task.owner)
    wait.since.CopyFrom(timestamp(task.leased_ms))
    wait.worker_id = holder.worker_id if holder is not None else ""
    if holder is None or not holder.connected or holder.lease_ms <= facts.now_ms:
        until_ms = max(holder.lease_ms if holder is not None else 0, facts.now_ms)
        wait.due.CopyFrom(timestamp(until_ms))
        worker = f"worker {holder.worker_id}" if holder is not None else "a worker that is gone"
        sentence = (
            f"{_attempt(task)} is with {worker}, which is not heard any more; unless it comes back within "
            f"{span(until_ms - facts.now_ms)} that counts as lost, and is given to another worker where it may be"
        )
        return _say(wait, why.WAIT_KIND_WORKER_LOST, why.WAIT_STATE_TROUBLED, sentence)
    _add_progress(facts, task, wait)
    ago = span(facts.now_ms - task.leased_ms)
    if task.kind is TaskKind.WORKFLOW:
        if task.last_failure is not None or task.losses >= _LOST_OFTEN:
            return _failing_code(facts, task, wait)
        return _say(
            wait,
            why.WAIT_KIND_CODE_RUNS,
            why.WAIT_STATE_WORKING,
            f"its code runs on worker {wait.worker_id} for {ago}{_after_losses(task)}",
        )
    if task.cancel_requested:
        timeout = _by(facts, task, wait) if task.relay_ms < NEVER_MS else ""
        sentence = (
            f"{_attempt(task)} was asked to stop and has not answered; worker {wait.worker_id} has it for {ago}"
            f"{_progress_text(facts, wait)}{timeout}"
        )
        remedy = "" if timeout else "an activity that hangs has no timeout: stop its worker, and it counts as cancelled"
        return _say(wait, why.WAIT_KIND_ACTIVITY_STOPS, why.WAIT_STATE_WORKING, sentence, remedy)
    sentence = f"{_attempt(task)} runs on worker {wait.worker_id} for {ago}{_progress_text(facts, wait)}"
    if task.last_failure is not None:
        sentence += f"; the attempt before failed: {failure_text(task.last_failure)}"
    return _say(wait, why.WAIT_KIND_ACTIVITY_RUNS, why.WAIT_STATE_WORKING, sentence)


def _by(facts: Facts, task: Task, wait: Wait) -> str:
    """The time at which the service gives up on an attempt that is out."""
    wait.due.CopyFrom(timestamp(task.relay_ms))
    return f"; it times out in {span(task.relay_ms - facts.now_ms)}"


def _add_progress(facts: Facts, task: Task, wait: Wait) -> None:
    if task.heartbeat_ms:
        wait.heartbeat_time.CopyFrom(timestamp(task.heartbeat_ms))
    details = facts.progress.get(task.task_id)
    if details is not None:
        text = details.json if details.WhichOneof("data") == "json" else f"{len(details.binary)} bytes"
        wait.progress = _cut(text, _PROGRESS_CHARACTERS)


def _progress_text(facts: Facts, wait: Wait) -> str:
    if not wait.HasField("heartbeat_time"):
        return ""
    beat_ms = wait.heartbeat_time.ToMilliseconds()
    told = f", progress {wait.progress}" if wait.progress else ""
    return f", last heartbeat {span(facts.now_ms - beat_ms)} ago{told}"


def _due_later(facts: Facts, task: Task, wait: Wait) -> Wait:
    wait.due.CopyFrom(timestamp(task.due_ms))
    left = span(task.due_ms - facts.now_ms)
    if task.kind is TaskKind.WORKFLOW:
        if task.last_failure is None and not task.losses:
            wait.since.CopyFrom(timestamp(facts.run.start_ms))
            sentence = f"its code begins in {left}: its start asked for a delay"
            return _say(wait, why.WAIT_KIND_START_DELAY, why.WAIT_STATE_WAITING, sentence)
        return _failing_code(facts, task, wait)
    wait.since.CopyFrom(timestamp(task.scheduled_ms))
    failure = f" after {failure_text(task.last_failure)}" if task.last_failure is not None else ""
    sentence = f"{_subject(task)} is tried again in {left} (attempt {task.attempt}){failure}"
    return _say(wait, why.WAIT_KIND_ACTIVITY_RETRIES, why.WAIT_STATE_TROUBLED, sentence)


def _failing_code(facts: Facts, task: Task, wait: Wait) -> Wait:
    """The run's code was tried before and did not get through."""
    failure, tries = task.last_failure, task.attempt - 1
    if task.owner:
        again = f"worker {wait.worker_id} tries it again since {span(facts.now_ms - task.leased_ms)}"
    else:
        again = f"it is tried again in {span(task.due_ms - facts.now_ms)}"
    if failure is None:
        sentence = (
            f"its code does not get through: {_times(task.losses)} its worker was lost, or took more than 10 s for it; "
            f"{again}"
        )
        remedy = "look into the workers' logs: code that computes for long or blocks belongs into an activity"
        return _say(wait, why.WAIT_KIND_CODE_FAILS, why.WAIT_STATE_TROUBLED, sentence, remedy)
    told = failure_text(failure)
    if failure.type in _DIVERGENCES:
        kind, what = why.WAIT_KIND_CODE_DIVERGES, "its code does not fit its history"
        remedy = (
            "deploy code that does again what is recorded: undo the change, or guard it with patched(); the run then "
            "goes on by itself"
        )
    elif failure.source == FAILURE_SOURCE_SERVICE and failure.type.isupper():
        kind, what = why.WAIT_KIND_COMMANDS_REFUSED, "what its code asked for was refused"
        remedy = "deploy code that asks for what is allowed; the run then goes on by itself"
    else:
        kind, what = why.WAIT_KIND_CODE_FAILS, "its code fails"
        remedy = "deploy code that is put right; the run then goes on by itself, and nothing of it is lost"
    sentence = f"{what} since {_times(tries, 'attempt')}: {told}; {again}"
    return _say(wait, kind, why.WAIT_STATE_BLOCKED, sentence, remedy)


def _due_now(facts: Facts, task: Task, wait: Wait) -> Wait:
    """A worker is needed, and has not taken it yet."""
    wait.since.CopyFrom(timestamp(task.due_ms))
    serving = facts.serving.get((task.queue, task.kind, task.type), Serving())
    need = f"{_attempt(task)} waits for {span(facts.now_ms - task.due_ms)}"
    failure = f"; before, {failure_text(task.last_failure)}" if task.last_failure is not None else ""
    if not serving.workers:
        return _unserved(facts, task, wait, f"{need}: ", failure)
    workers = f"{serving.workers} worker{'s' * (serving.workers > 1)}"
    if serving.busy is not None and serving.busy < serving.slots:
        if task.kind is TaskKind.WORKFLOW and task.last_failure is not None:
            return _failing_code(facts, task, wait)
        taken = f"{serving.busy} of {serving.slots} slots are taken"
        sentence = f"{_attempt(task)} is about to be given to one of {workers} of queue {task.queue} ({taken}){failure}"
        return _say(wait, why.WAIT_KIND_HANDED_OUT, why.WAIT_STATE_WORKING, sentence)
    wait.slots = serving.slots
    busy = serving.slots if serving.busy is None else serving.busy
    all_are = "the only worker" if serving.workers == 1 else f"each of the {workers}"
    sentence = (
        f"{need}: {all_are} of queue {task.queue} with type {task.type} is busy "
        f"({busy} of {serving.slots} slots){failure}"
    )
    remedy = "it gets its turn; if that takes too long start more workers, or give them more slots"
    return _say(wait, why.WAIT_KIND_WORKERS_BUSY, why.WAIT_STATE_WAITING, sentence, remedy)


def _unserved(facts: Facts, task: Task, wait: Wait, need: str, failure: str) -> Wait:
    key = (task.queue, task.kind, task.type)
    leaving = facts.serving.get(key, Serving()).leaving
    if leaving:
        workers = "the only worker" if leaving == 1 else f"each of the {leaving} workers"
        sentence = f"{need}{workers} of queue {task.queue} with type {task.type} is leaving, and takes nothing more"
        remedy = f"start a worker of queue {task.queue} that has {task.type}, unless one is about to come"
        return _say(wait, why.WAIT_KIND_WORKERS_LEAVING, why.WAIT_STATE_BLOCKED, sentence + failure, remedy)
    if not facts.all_workers:
        sentence = f"{need}none of the workers that were looked at is of queue {task.queue} with type {task.type}"
        return _say(wait, why.WAIT_KIND_NO_WORKER, why.WAIT_STATE_WAITING, sentence + failure)
    last = facts.last_served.get(key)
    if last is not None:
        wait.worker_id = last[0]
        wait.last_served.CopyFrom(timestamp(last[1]))
        seen = f"last seen at {_clock(last[1])} on worker {last[0]}"
    else:
        seen = "none was seen in the last 30 days"
    sentence = f"{need}no worker of queue {task.queue} has type {task.type}, {seen}{failure}"
    remedy = (
        f"start a worker of queue {task.queue} that has {task.type}, or mend the name or the queue that the code gives"
    )
    return _say(wait, why.WAIT_KIND_NO_WORKER, why.WAIT_STATE_BLOCKED, sentence, remedy)


def _attempt(task: Task) -> str:
    if task.kind is TaskKind.WORKFLOW:
        return "its code" if task.attempt == 1 else f"its code (attempt {task.attempt})"
    return f"{_subject(task)} (attempt {task.attempt})"


def _subject(task: Task) -> str:
    return f"{'compensation' if task.is_compensation else 'activity'} {_name(task)}"


def _after_losses(task: Task) -> str:
    return (
        f"; before, it was lost with its worker, or took more than 10 s, {_times(task.losses)}" if task.losses else ""
    )


# Times, events, others ---------------------------------------------------------------------------------------------


def _timer(facts: Facts, task: Task) -> Wait:
    sentence = f"timer {_name(task)} fires in {span(task.due_ms - facts.now_ms)}, at {_clock(task.due_ms)}"
    return Wait(
        kind=why.WAIT_KIND_TIMER,
        state=why.WAIT_STATE_WAITING,
        sentence=sentence,
        id=_name(task),
        due=timestamp(task.due_ms),
    )


def _timeout(facts: Facts, task: Task) -> Wait:
    whole = task.due_ms == facts.run.counters.execution_deadline_ms
    sentence = (
        f"it is undone in {span(task.due_ms - facts.now_ms)}, at {_clock(task.due_ms)}, if it is not over by then: "
        f"its {'execution' if whole else 'run'} timeout"
    )
    return Wait(kind=why.WAIT_KIND_TIMEOUT, state=why.WAIT_STATE_WAITING, sentence=sentence, due=timestamp(task.due_ms))


def _subscription(facts: Facts, task: Task) -> Wait:
    wanted = task.errand if isinstance(task.errand, Subscribe) else None
    wait = Wait(id=_name(task), where=wanted.where if wanted is not None else {})
    since = "a run before this one"
    if task.scheduled_ms:
        wait.since.CopyFrom(timestamp(task.scheduled_ms))
        since = f"{_clock(task.scheduled_ms)} ({span(facts.now_ms - task.scheduled_ms)})"
    channel = channel_of(task.type)
    if channel is not None:
        return _in_channel(task, wait, channel, since)
    wait.type, paths = event_type_of(task.type)
    if wanted is not None:
        values = " and ".join(f"{path}={_cut(value, 60)}" for path, value in sorted(wanted.where.items()))
    else:
        values = " and ".join(f"a certain {path}" for path in paths)
    which = f" with {values}" if values else ""
    if wanted is not None and not wanted.once:
        sentence = f"events {wait.type}{which} are kept for its code since {since}"
        return _say(wait, why.WAIT_KIND_SUBSCRIPTION, why.WAIT_STATE_WAITING, sentence)
    sentence = f"waits for event {wait.type}{which} since {since}"
    remedy = "what came before that does not count: if the event was sent by then, or with other values, send it again"
    return _say(wait, why.WAIT_KIND_EVENT, why.WAIT_STATE_WAITING, sentence, remedy)


def _in_channel(task: Task, wait: Wait, channel: str, since: str) -> Wait:
    wait.type = channel
    if isinstance(task.errand, Subscribe) and task.errand.once:
        sentence = f"waits for a message of channel {channel} since {since}"
        return _say(wait, why.WAIT_KIND_MESSAGE, why.WAIT_STATE_WAITING, sentence)
    if not is_answered(task):
        sentence = f"channel {channel} is being subscribed to ({task.queue}) since {since}"
        return _say(wait, why.WAIT_KIND_SUBSCRIBING, why.WAIT_STATE_WORKING, sentence)
    sentence = f"messages of channel {channel} are kept for its code ({task.queue}) since {since}"
    return _say(wait, why.WAIT_KIND_SUBSCRIPTION, why.WAIT_STATE_WAITING, sentence)


def _child(facts: Facts, task: Task) -> Wait:
    command = task.errand if isinstance(task.errand, StartChild) else StartChild()
    name = _name(task)
    wait = Wait(id=name, type=name.rpartition(":")[0])
    wait.workflow_id = command.workflow_id
    known = f"child {name} (workflow {command.workflow_id})" if command.workflow_id else f"child {name}"
    if task.attempt == children.START:
        wait.since.CopyFrom(timestamp(task.due_ms))
        stops = ", and then stopped again" if task.cancel_requested else ""
        sentence = f"{known} is to be started{stops} since {span(facts.now_ms - task.due_ms)}"
        return _say(wait, why.WAIT_KIND_CHILD_STARTS, why.WAIT_STATE_WORKING, sentence)
    if task.attempt == children.CLOSE:
        sentence = f"{known} is to be closed, since this run is"
        return _say(wait, why.WAIT_KIND_CHILD_CLOSES, why.WAIT_STATE_WORKING, sentence)
    status = facts.children.get(wait.workflow_id)
    state = f"is {WorkflowStatus.Name(status).removeprefix('WORKFLOW_STATUS_')}" if status else "is open"
    remedy = f"see what it waits for: romancy workflow why {wait.workflow_id}" if wait.workflow_id else ""
    if task.cancel_requested:
        sentence = f"{known} was asked to stop and {state}"
        return _say(wait, why.WAIT_KIND_CHILD_STOPS, why.WAIT_STATE_WAITING, sentence, remedy)
    return _say(wait, why.WAIT_KIND_CHILD, why.WAIT_STATE_WAITING, f"{known} {state}", remedy)


def _send(facts: Facts, task: Task) -> Wait:
    send = task.errand if isinstance(task.errand, Send) else Send()
    match send.WhichOneof("message"):
        case "signal":
            what = f"signal {send.signal.name}"
        case "cancel":
            what = "a request to stop"
        case "channel_message":
            what = f"a message of channel {send.channel_message.channel}"
        case "returned":
            what = "a message that it did not take, for others to have it,"
        case _:
            what = f"message {_name(task)}"
    target = f" for workflow {send.workflow_id}" if send.workflow_id else ""
    wait = Wait(id=_name(task), workflow_id=send.workflow_id, since=timestamp(task.due_ms))
    sentence = f"{what}{target} is on its way since {span(facts.now_ms - task.due_ms)}"
    return _say(wait, why.WAIT_KIND_SEND, why.WAIT_STATE_WORKING, sentence)


def _report(facts: Facts, task: Task) -> Wait:
    parent = facts.run.counters.parent
    workflow_id = parent[2] if parent is not None else ""
    wait = Wait(workflow_id=workflow_id, since=timestamp(task.due_ms))
    sentence = f"its parent, workflow {workflow_id}, is to be told of its end since {span(facts.now_ms - task.due_ms)}"
    return _say(wait, why.WAIT_KIND_REPORT, why.WAIT_STATE_WORKING, sentence)


# The run as a whole ------------------------------------------------------------------------------------------------


def _of_run(facts: Facts) -> Iterator[Wait]:
    run = facts.run
    if run.status == WORKFLOW_STATUS_RUNNING:
        yield from _updates(facts)
        if run.cancel_requested and WORKFLOW_TASK_ID not in run.tasks:
            yield _going_on(run)
        if run.counters.open_compensates:
            sentence = "its code asked to undo what it did so far, and waits until that is done"
            yield Wait(kind=why.WAIT_KIND_UNDOING, state=why.WAIT_STATE_WORKING, sentence=sentence)
        if is_long(run, facts.limits):
            yield _long_history(facts)
    elif run.status == WORKFLOW_STATUS_COMPENSATING:
        yield from _rollback(facts)


def _updates(facts: Facts) -> Iterator[Wait]:
    updates = facts.run.counters.open_updates
    for update_id in list(updates)[: facts.limits.shown_tasks]:
        accepted = updates[update_id]
        if accepted:
            sentence = f"update {update_id} was accepted by its code, which has not answered it yet"
        else:
            sentence = f"update {update_id} came, and its code has neither accepted nor refused it"
        yield Wait(kind=why.WAIT_KIND_UPDATE, state=why.WAIT_STATE_WAITING, sentence=sentence, id=update_id)
    if (more := len(updates) - facts.limits.shown_tasks) > 0:
        sentence = f"and {more} more updates are not answered"
        yield Wait(kind=why.WAIT_KIND_MORE, state=why.WAIT_STATE_WAITING, sentence=sentence, count=more)


def _going_on(run: Run) -> Wait:
    told = f" ({_one_line(run.failure.message)})" if run.failure is not None else ""
    sentence = f"it was asked to stop{told}; its code has seen that and goes on, to clean up or in spite of it"
    remedy = "if it never ends: romancy workflow terminate, which undoes nothing"
    state = why.WAIT_STATE_WAITING
    return Wait(kind=why.WAIT_KIND_CANCELLATION, state=state, sentence=sentence, remedy=remedy)


def _condition(facts: Facts) -> Wait:
    run = facts.run
    sentence = (
        "its code waits for something that only the code knows, such as wait_condition, since "
        f"{_clock(run.last_event_ms)} ({span(facts.now_ms - run.last_event_ms)}): no activity, timer or child is open"
    )
    wait = Wait(since=timestamp(run.last_event_ms))
    remedy = "a signal or an update wakes it; a query tells what state it is in"
    return _say(wait, why.WAIT_KIND_CONDITION, why.WAIT_STATE_WAITING, sentence, remedy)


class _Measured(Protocol):
    @property
    def last_event_id(self) -> int: ...
    @property
    def history_bytes(self) -> int: ...


def is_long(run: _Measured, limits: Limits) -> bool:
    """Whether somebody should know of the length of its history."""
    return run.last_event_id >= limits.history_warn_events or run.history_bytes >= limits.history_warn_bytes


def _long_history(facts: Facts) -> Wait:
    run, limits = facts.run, facts.limits
    sentence = (
        f"its history has {run.last_event_id} events and {run.history_bytes} bytes; at {limits.history_events} events, "
        f"or {limits.history_bytes} bytes, the run fails and what it did is undone"
    )
    remedy = "its code should recur when should_recur says so, or give parts of the work to children"
    wait = Wait(count=run.last_event_id)
    return _say(wait, why.WAIT_KIND_HISTORY, why.WAIT_STATE_TROUBLED, sentence, remedy)


def _rollback(facts: Facts) -> Iterator[Wait]:
    """Compensations are tasks of their own; this says what holds them up."""
    run = facts.run
    reason = f" (it is undone because of {failure_text(run.failure)})" if run.failure is not None else ""
    after = f"; {facts.to_undo} more to undo after that" if facts.to_undo else ""
    names = [_name(task) for task in run.tasks.values() if task.kind is TaskKind.ACTIVITY and not task.is_compensation]
    names += [_name(task) for task in run.tasks.values() if task.kind is TaskKind.CHILD and not _goes_on(task)]
    if names:
        open_count = facts.counts.get(TaskKind.ACTIVITY, 0) + facts.counts.get(TaskKind.CHILD, 0)
        shown = ", ".join(names[:5]) + (f" and {open_count - 5} more" if open_count > 5 else "")
        sentence = f"rollback waits until what is open has ended, {shown}{after}{reason}"
        wait = Wait(count=max(open_count, len(names)))
        yield _say(wait, why.WAIT_KIND_ROLLBACK, why.WAIT_STATE_WORKING, sentence)
    elif run.compensation() is not None:
        sentence = f"rollback undoes one thing after the other{after}{reason}"
        yield _say(Wait(count=1), why.WAIT_KIND_ROLLBACK, why.WAIT_STATE_WORKING, sentence)
    elif not facts.failed:
        sentence = f"rollback is held up by compensations that failed for good{reason}"
        remedy = "its history says which; romancy workflow resolve says what becomes of each"
        yield _say(Wait(), why.WAIT_KIND_COMPENSATION_FAILED, why.WAIT_STATE_BLOCKED, sentence, remedy)


def _goes_on(task: Task) -> bool:
    return task.errand is not None and children.is_abandoned(task)


def _failed_for_good(run: Run, failed: FailedCompensation) -> Wait:
    sentence = (
        f"compensation {failed.compensation_id} failed for good: {failure_text(failed.failure)}; what it undoes may "
        "still have its effect"
    )
    remedy = (
        f"undo it by hand or mend the cause, then: romancy workflow resolve {run.workflow_id} {failed.compensation_id} "
        "retry (or mark-done, or give-up)"
    )
    wait = Wait(id=failed.compensation_id, type=failed.type, compensation=True, last_failure=failed.failure)
    return _say(wait, why.WAIT_KIND_COMPENSATION_FAILED, why.WAIT_STATE_BLOCKED, sentence, remedy)


# Words -------------------------------------------------------------------------------------------------------------


def failure_text(failure: Failure) -> str:
    """A failure in a line: type, message, and where it was raised if its stack says so."""
    text = ": ".join(filter(None, (failure.type, _one_line(failure.message))))
    place = raised_at(failure.stack_trace)
    return f"{text or 'a failure without a word'}{f' at {place}' if place else ''}"


def span(ms: int) -> str:
    """A length of time, in the two largest units that it has."""
    tenths = max(ms, 0) // 100
    if tenths < 100:
        return f"{tenths / 10:g} s"
    seconds = tenths // 10
    for unit, size, lower, lower_size in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            rest = seconds % size // lower_size
            return f"{seconds // size} {unit}" + (f" {rest} {lower}" if rest else "")
    return f"{seconds} s"


def _times(number: int, unit: str = "time") -> str:
    return f"{number} {unit}{'s' * (number != 1)}"


def _clock(ms: int) -> str:
    """A moment, to the second."""
    return rfc3339(ms // 1000 * 1000)


def _one_line(text: str) -> str:
    return _cut(" ".join(text.split()), _MESSAGE_CHARACTERS)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _name(task: Task) -> str:
    return task.task_id.removeprefix(COMPENSATION_PREFIX) if task.is_compensation else task.task_id.partition("/")[2]


def _say(wait: Wait, kind: Any, state: Any, sentence: str, remedy: str = "") -> Wait:
    wait.kind, wait.state, wait.sentence, wait.remedy = kind, state, sentence, remedy
    return wait
