"""Whole: what holds up a run as a whole, besides its tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from romancy.v1 import wait_pb2 as kinds
from romancy.v1.channel_pb2 import CHANNEL_MODE_COMPETING
from romancy.v1.wait_pb2 import Wait
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_COMPENSATING, WORKFLOW_STATUS_RUNNING

from romancy_service.core import children
from romancy_service.core.channel import MODE_KEYS, channel_of
from romancy_service.core.limits import Limits
from romancy_service.core.run import Run
from romancy_service.core.subscription import event_type_of
from romancy_service.core.task import WORKFLOW_TASK_ID, Task, TaskKind
from romancy_service.core.times import timestamp
from romancy_service.core.why.facts import Facts, FailedCompensation
from romancy_service.core.why.words import clock, failure_text, name, one_line, say, span

_SHOWN_NAMES: Final = 5
"""So many of a kind does a sentence name."""


def of_run(facts: Facts) -> Iterator[Wait]:
    """What is neither a task nor seen in one."""
    run = facts.run
    if run.status == WORKFLOW_STATUS_RUNNING:
        yield from _updates(facts)
        if run.cancel_requested:
            yield _going_on(run)
        if run.counters.open_compensates:
            sentence = "its code asked to undo what it did so far, and waits until that is done"
            yield Wait(kind=kinds.WAIT_KIND_UNDOING, state=kinds.WAIT_STATE_WORKING, sentence=sentence)
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
        elif WORKFLOW_TASK_ID in facts.run.tasks:
            sentence = f"update {update_id} waits until its code has seen it"
        else:
            sentence = f"update {update_id} came, and its code has neither accepted nor refused it"
        yield Wait(kind=kinds.WAIT_KIND_UPDATE, state=kinds.WAIT_STATE_WAITING, sentence=sentence, id=update_id)
    if (more := len(updates) - facts.limits.shown_tasks) > 0:
        sentence = f"and {more} more updates are not answered"
        yield Wait(kind=kinds.WAIT_KIND_MORE, state=kinds.WAIT_STATE_WAITING, sentence=sentence, count=more)


def _going_on(run: Run) -> Wait:
    told = f" ({one_line(run.failure.message)})" if run.failure is not None else ""
    remedy = "if it never ends: romancy workflow terminate, which undoes nothing"
    task = run.tasks.get(WORKFLOW_TASK_ID)
    if task is None:
        goes_on = "has seen that and goes on, to clean up or in spite of it"
    elif task.last_failure is None:
        goes_on = "has something to see yet"
    else:  # only code can stop in good order, and this one does not get that far
        goes_on = "fails, and sees that only when it is put right"
        remedy = "deploy code that is put right, and it stops; or romancy workflow terminate, which undoes nothing"
    sentence = f"it was asked to stop{told}; its code {goes_on}"
    state = kinds.WAIT_STATE_WAITING
    return Wait(kind=kinds.WAIT_KIND_CANCELLATION, state=state, sentence=sentence, remedy=remedy)


def condition(facts: Facts) -> Wait:
    """The code waits, and nothing that it asked for is open but subscriptions: it may await those, or none of them."""
    run = facts.run
    since = f"since {clock(run.last_event_ms)} ({span(facts.now_ms - run.last_event_ms)})"
    kept = _kept(facts)
    of_code, wakes = "something that only the code knows, such as wait_condition", "a signal or an update wakes it"
    if kept:
        sentence = f"its code waits for {kept}, or for {of_code}, {since}: no activity or child is awaited"
        remedy = f"what it subscribed to wakes it, and {wakes}; a query tells what state it is in"
    else:
        sentence = f"its code waits for {of_code}, {since}: no activity, event or child is awaited"
        remedy = f"{wakes}; a query tells what state it is in"
    wait = Wait(since=timestamp(run.last_event_ms))
    return say(wait, kinds.WAIT_KIND_CONDITION, kinds.WAIT_STATE_WAITING, sentence, remedy)


def _kept(facts: Facts) -> str:
    """The subscriptions that code may await; empty: none. Messages for which runs compete come to who asks for one."""
    tasks = [task for task in facts.run.tasks.values() if task.kind is TaskKind.SUBSCRIPTION]
    kept = [(channel_of(task.type), task) for task in tasks if task.queue != MODE_KEYS[CHANNEL_MODE_COMPETING]]
    names = [
        f"messages of channel {channel}" if channel is not None else f"events {event_type_of(task.type)[0]}"
        for channel, task in kept[:_SHOWN_NAMES]
    ]
    more = facts.counts.get(TaskKind.SUBSCRIPTION, 0) - (len(tasks) - len(kept)) - len(names)
    return " or ".join(names) + (f" or those of {more} more subscriptions" if names and more > 0 else "")


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
    return say(wait, kinds.WAIT_KIND_HISTORY, kinds.WAIT_STATE_TROUBLED, sentence, remedy)


def _rollback(facts: Facts) -> Iterator[Wait]:
    """Compensations are tasks of their own; this says what holds them up."""
    run = facts.run
    reason = f" (it is undone because of {failure_text(run.failure)})" if run.failure is not None else ""
    after = f"; {facts.to_undo} more to undo after that" if facts.to_undo else ""
    names = [name(task) for task in run.tasks.values() if task.kind is TaskKind.ACTIVITY and not task.is_compensation]
    names += [name(task) for task in run.tasks.values() if task.kind is TaskKind.CHILD and not _goes_on(task)]
    if names:
        open_count = facts.counts.get(TaskKind.ACTIVITY, 0) + facts.counts.get(TaskKind.CHILD, 0)
        more = f" and {open_count - _SHOWN_NAMES} more" if open_count > _SHOWN_NAMES else ""
        shown = ", ".join(names[:_SHOWN_NAMES]) + more
        sentence = f"rollback waits until what is open has ended, {shown}{after}{reason}"
        wait = Wait(count=max(open_count, len(names)))
        yield say(wait, kinds.WAIT_KIND_ROLLBACK, kinds.WAIT_STATE_WORKING, sentence)
    elif run.compensation() is not None:
        sentence = f"rollback undoes one thing after the other{after}{reason}"
        yield say(Wait(count=1), kinds.WAIT_KIND_ROLLBACK, kinds.WAIT_STATE_WORKING, sentence)
    elif not facts.failed:
        sentence = f"rollback is held up by compensations that failed for good{reason}"
        remedy = "its history says which; romancy workflow resolve says what becomes of each"
        yield say(Wait(), kinds.WAIT_KIND_COMPENSATION_FAILED, kinds.WAIT_STATE_BLOCKED, sentence, remedy)


def _goes_on(task: Task) -> bool:
    return task.errand is not None and children.is_abandoned(task)


def failed_for_good(run: Run, failed: FailedCompensation) -> Wait:
    """A compensation that an operator must see to."""
    sentence = (
        f"compensation {failed.compensation_id} failed for good: {failure_text(failed.failure)}; what it undoes may "
        "still have its effect"
    )
    remedy = (
        f"undo it by hand or mend the cause, then: romancy workflow resolve {run.workflow_id} {failed.compensation_id} "
        "retry (or mark-done, or give-up)"
    )
    wait = Wait(id=failed.compensation_id, type=failed.type, compensation=True, last_failure=failed.failure)
    return say(wait, kinds.WAIT_KIND_COMPENSATION_FAILED, kinds.WAIT_STATE_BLOCKED, sentence, remedy)
