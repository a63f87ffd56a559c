"""Elsewhere: times, events, children, parents and messages that a run waits for."""

from __future__ import annotations

from romancy.v1 import wait_pb2 as kinds
from romancy.v1.command_pb2 import Send, StartChild, Subscribe
from romancy.v1.wait_pb2 import Wait
from romancy.v1.workflow_pb2 import WorkflowStatus

from romancy_service.core import children
from romancy_service.core.channel import channel_of
from romancy_service.core.subscription import event_type_of, is_answered
from romancy_service.core.task import Task
from romancy_service.core.times import timestamp
from romancy_service.core.why.facts import Facts
from romancy_service.core.why.words import clock, cut, name, one_line, say, span


def of_timer(facts: Facts, task: Task) -> Wait:
    """A wait of its time, or the timeout of another wait."""
    sentence = f"timer {name(task)} fires in {span(task.due_ms - facts.now_ms)}, at {clock(task.due_ms)}"
    if task.type:
        sentence += f": the timeout of {one_line(task.type)}"
    return Wait(
        kind=kinds.WAIT_KIND_TIMER,
        state=kinds.WAIT_STATE_WAITING,
        sentence=sentence,
        id=name(task),
        type=task.type,
        due=timestamp(task.due_ms),
    )


def of_timeout(facts: Facts, task: Task) -> Wait:
    """When the run is undone for taking too long."""
    whole = task.due_ms == facts.run.counters.execution_deadline_ms
    sentence = (
        f"it is undone in {span(task.due_ms - facts.now_ms)}, at {clock(task.due_ms)}, if it is not over by then: "
        f"its {'execution' if whole else 'run'} timeout"
    )
    return Wait(
        kind=kinds.WAIT_KIND_TIMEOUT, state=kinds.WAIT_STATE_WAITING, sentence=sentence, due=timestamp(task.due_ms)
    )


def of_subscription(facts: Facts, task: Task) -> Wait:
    """Events, or messages of a channel, that are awaited or kept."""
    wanted = task.errand if isinstance(task.errand, Subscribe) else None
    wait = Wait(id=name(task), where=wanted.where if wanted is not None else {})
    since = "a run before this one"
    if task.scheduled_ms:
        wait.since.CopyFrom(timestamp(task.scheduled_ms))
        since = f"{clock(task.scheduled_ms)} ({span(facts.now_ms - task.scheduled_ms)})"
    channel = channel_of(task.type)
    if channel is not None:
        return _in_channel(task, wait, channel, since)
    wait.type, paths = event_type_of(task.type)
    if wanted is not None:
        values = " and ".join(f"{path}={cut(value, 60)}" for path, value in sorted(wanted.where.items()))
    else:
        values = " and ".join(f"a certain {path}" for path in paths)
    which = f" with {values}" if values else ""
    if wanted is not None and not wanted.once:
        sentence = f"events {wait.type}{which} are kept for its code since {since}"
        return say(wait, kinds.WAIT_KIND_SUBSCRIPTION, kinds.WAIT_STATE_WAITING, sentence)
    sentence = f"waits for event {wait.type}{which} since {since}"
    remedy = "what came before that does not count: if the event was sent by then, or with other values, send it again"
    return say(wait, kinds.WAIT_KIND_EVENT, kinds.WAIT_STATE_WAITING, sentence, remedy)


def _in_channel(task: Task, wait: Wait, channel: str, since: str) -> Wait:
    wait.type = channel
    if isinstance(task.errand, Subscribe) and task.errand.once:
        sentence = f"waits for a message of channel {channel} since {since}"
        return say(wait, kinds.WAIT_KIND_MESSAGE, kinds.WAIT_STATE_WAITING, sentence)
    if not is_answered(task):
        sentence = f"channel {channel} is being subscribed to ({task.queue}) since {since}"
        return say(wait, kinds.WAIT_KIND_SUBSCRIBING, kinds.WAIT_STATE_WORKING, sentence)
    sentence = f"messages of channel {channel} are kept for its code ({task.queue}) since {since}"
    return say(wait, kinds.WAIT_KIND_SUBSCRIPTION, kinds.WAIT_STATE_WAITING, sentence)


def of_child(facts: Facts, task: Task) -> Wait:
    """A child, from when it is asked for until its end is known."""
    command = task.errand if isinstance(task.errand, StartChild) else StartChild()
    child_id = name(task)
    wait = Wait(id=child_id, type=child_id.rpartition(":")[0])
    wait.workflow_id = command.workflow_id
    known = f"child {child_id} (workflow {command.workflow_id})" if command.workflow_id else f"child {child_id}"
    if task.attempt == children.START:
        wait.since.CopyFrom(timestamp(task.due_ms))
        stops = ", and then stopped again" if task.cancel_requested else ""
        sentence = f"{known} is to be started{stops} since {span(facts.now_ms - task.due_ms)}"
        return say(wait, kinds.WAIT_KIND_CHILD_STARTS, kinds.WAIT_STATE_WORKING, sentence)
    if task.attempt in (children.CLOSE, children.PREVENT):
        sentence = f"{known} is to be closed, since this run is"
        return say(wait, kinds.WAIT_KIND_CHILD_CLOSES, kinds.WAIT_STATE_WORKING, sentence)
    status = facts.children.get(wait.workflow_id)
    state = f"is {WorkflowStatus.Name(status).removeprefix('WORKFLOW_STATUS_')}" if status else "is open"
    remedy = f"see what it waits for: romancy workflow why {wait.workflow_id}" if wait.workflow_id else ""
    if task.cancel_requested:
        sentence = f"{known} was asked to stop and {state}"
        return say(wait, kinds.WAIT_KIND_CHILD_STOPS, kinds.WAIT_STATE_WAITING, sentence, remedy)
    return say(wait, kinds.WAIT_KIND_CHILD, kinds.WAIT_STATE_WAITING, f"{known} {state}", remedy)


def of_send(facts: Facts, task: Task) -> Wait:
    """A message that is on its way."""
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
            what = f"message {name(task)}"
    target = f" for workflow {send.workflow_id}" if send.workflow_id else ""
    wait = Wait(id=name(task), workflow_id=send.workflow_id, since=timestamp(task.due_ms))
    sentence = f"{what}{target} is on its way since {span(facts.now_ms - task.due_ms)}"
    return say(wait, kinds.WAIT_KIND_SEND, kinds.WAIT_STATE_WORKING, sentence)


def of_report(facts: Facts, task: Task) -> Wait:
    """The end of the run, on its way to its parent."""
    parent = facts.run.counters.parent
    workflow_id = parent[2] if parent is not None else ""
    wait = Wait(workflow_id=workflow_id, since=timestamp(task.due_ms))
    sentence = f"its parent, workflow {workflow_id}, is to be told of its end since {span(facts.now_ms - task.due_ms)}"
    return say(wait, kinds.WAIT_KIND_REPORT, kinds.WAIT_STATE_WORKING, sentence)
