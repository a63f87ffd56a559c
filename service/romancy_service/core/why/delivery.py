"""Delivery: events that a run sent, and that their sinks have not taken."""

from __future__ import annotations

from romancy.v1 import wait_pb2 as kinds
from romancy.v1.failure_pb2 import Failure
from romancy.v1.wait_pb2 import Wait

from romancy_service.core.limits import COUNTED
from romancy_service.core.times import timestamp
from romancy_service.core.why.facts import Facts, Undelivered
from romancy_service.core.why.words import clock, one_line, say, span

_SLOW_MS = 5_000
"""What is due for so long and was not tried waits for a sink that takes no more, or is left alone."""


def of_undelivered(facts: Facts, events: Undelivered) -> Wait:
    """The events of the run for one sink, those that wait or those that are dead."""
    wait = Wait(type=events.sink, count=events.count, since=timestamp(events.since_ms))
    if events.error:
        wait.last_failure.CopyFrom(Failure(message=events.error))
    return _dead(facts, events, wait) if events.is_dead else _waiting(facts, events, wait)


def _dead(facts: Facts, events: Undelivered, wait: Wait) -> Wait:
    wait.id = str(events.position)
    are, ago = ("are dead letters" if events.count > 1 else "is a dead letter"), span(facts.now_ms - events.since_ms)
    sentence = f"{_number(events)} for sink {events.sink} {are} since {ago}: {one_line(events.error)}"
    remedy = f"mend the cause, then: romancy outbox retry {wait.id} (or drop)"
    if events.count > 1:
        remedy += f"; of the others: romancy outbox dead --workflow-id {facts.run.workflow_id}"
    return say(wait, kinds.WAIT_KIND_DEAD_LETTERS, kinds.WAIT_STATE_BLOCKED, sentence, remedy)


def _waiting(facts: Facts, events: Undelivered, wait: Wait) -> Wait:
    are = "are" if events.count > 1 else "is"
    since = f"{clock(events.since_ms)} ({span(facts.now_ms - events.since_ms)})"
    sentence = f"{_number(events)} for sink {events.sink} {are} not delivered since {since}"
    sentence += ", behind those of a run before" if events.is_behind else ""
    wait.attempt = events.attempts + 1
    after = f" after {one_line(events.error)}" if events.error else ""
    left_ms = events.due_ms - facts.now_ms
    if events.is_tried and left_ms > 0:
        sentence += f"; the first one is being sent (attempt {wait.attempt}){after}"
    elif after:
        wait.due.CopyFrom(timestamp(events.due_ms))
        sentence += f"; the first one is tried again in {span(left_ms)} (attempt {wait.attempt}){after}"
    remedy = ""
    if not events.attempts and left_ms < -_SLOW_MS:
        sentence += "; none was tried yet: the sink takes no more at a time, or cannot be reached"
    if events.attempts or left_ms < -_SLOW_MS:
        remedy = f"look after the sink; what waits for it: romancy outbox list --sink {events.sink}"
    state = kinds.WAIT_STATE_TROUBLED if remedy else kinds.WAIT_STATE_WORKING
    return say(wait, kinds.WAIT_KIND_DELIVERY, state, sentence, remedy)


def _number(events: Undelivered) -> str:
    if events.count == 1:
        return "1 event"
    return f"{events.count}{' or more' * (events.count >= COUNTED)} events"
