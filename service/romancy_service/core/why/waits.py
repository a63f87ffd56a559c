"""Waits: all of them, the most important first."""

from __future__ import annotations

from typing import Final

from romancy.v1 import wait_pb2 as kinds
from romancy.v1.wait_pb2 import Wait
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_RUNNING

from romancy_service.core.task import Task, TaskKind
from romancy_service.core.why.delivery import of_undelivered
from romancy_service.core.why.elsewhere import of_child, of_report, of_send, of_subscription, of_timeout, of_timer
from romancy_service.core.why.facts import Facts
from romancy_service.core.why.whole import condition, failed_for_good, of_run
from romancy_service.core.why.work import of_work

_NOT_AWAITED: Final = frozenset(
    (
        kinds.WAIT_KIND_TIMEOUT,
        kinds.WAIT_KIND_SUBSCRIPTION,
        kinds.WAIT_KIND_UPDATE,
        kinds.WAIT_KIND_CANCELLATION,
        kinds.WAIT_KIND_HISTORY,
        kinds.WAIT_KIND_DELIVERY,
        kinds.WAIT_KIND_DEAD_LETTERS,
    )
)
"""What is there without the code's waiting for it."""
_LAST: Final = frozenset((kinds.WAIT_KIND_TIMEOUT, kinds.WAIT_KIND_SUBSCRIPTION, kinds.WAIT_KIND_MORE))
"""What tells least, within its state."""


def waits(facts: Facts) -> list[Wait]:
    """What the run waits for, the most important first. An open run always has something."""
    run = facts.run
    found = [wait for task in run.tasks.values() if (wait := _of_task(facts, task)) is not None]
    found += [failed_for_good(run, failed) for failed in facts.failed]
    found += [of_undelivered(facts, events) for events in facts.undelivered]
    found += of_run(facts)
    if run.status == WORKFLOW_STATUS_RUNNING and not any(_is_awaited(wait) for wait in found):
        found.append(condition(facts))
    if (unseen := sum(facts.counts.values()) - len(run.tasks)) > 0:
        sentence = f"and {unseen} more activities, timers, children, messages and subscriptions are open"
        found.append(Wait(kind=kinds.WAIT_KIND_MORE, state=kinds.WAIT_STATE_WAITING, sentence=sentence, count=unseen))
    return sorted(found, key=lambda wait: (wait.state, wait.kind in _LAST, _is_limit(wait)))


def _is_awaited(wait: Wait) -> bool:
    return wait.kind not in _NOT_AWAITED and not _is_limit(wait)


def _is_limit(wait: Wait) -> bool:
    """Whether it is a timer that is there for the sake of another wait, which says more."""
    return wait.kind == kinds.WAIT_KIND_TIMER and bool(wait.type)


def _of_task(facts: Facts, task: Task) -> Wait | None:
    match task.kind:
        case TaskKind.WORKFLOW | TaskKind.ACTIVITY:
            return of_work(facts, task)
        case TaskKind.TIMER:
            return of_timer(facts, task)
        case TaskKind.DEADLINE:
            return of_timeout(facts, task)
        case TaskKind.CHILD:
            return of_child(facts, task)
        case TaskKind.SEND:
            return of_send(facts, task)
        case TaskKind.REPORT:
            return of_report(facts, task)
        case TaskKind.SUBSCRIPTION:
            return of_subscription(facts, task)
