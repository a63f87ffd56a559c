"""Subscriptions: which events find a run, what a run makes of them, and which may be asked for."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from romancy.v1.command_pb2 import Command, ContinueWorkflow, Subscribe, Unsubscribe
from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.workflow_pb2 import WorkflowSpec

from romancy_service.core.cloud_event import check_cloud_event
from romancy_service.core.limits import Limits
from romancy_service.core.run import Run
from romancy_service.core.subscription import Content, event_type_of, topics_of
from romancy_service.core.task import NEVER_MS, Task, TaskKind
from romancy_service.core.triggers import CompleteWorkflowTask, ReceiveEvent
from romancy_service.errors import InvalidField, StaleTask, WorkflowClosed
from tests.core.life import Life, complete

LIMITS = Limits()


def subscribe(number: int | str, event_type: str = "paid", once: bool = True, /, **where: str) -> Command:
    paths = {path.replace("__", "."): value for path, value in where.items()}
    wanted = Subscribe(subscription_id=str(number), event_type=event_type, where=paths, once=once)
    return Command(subscribe=wanted)


def unsubscribe(number: int | str) -> Command:
    return Command(unsubscribe=Unsubscribe(subscription_id=str(number)))


def an_event(event_id: str = "1", event_type: str = "paid", *, data: str = "", **attributes: Any) -> CloudEvent:
    event = CloudEvent(id=event_id, source="/shop", spec_version="1.0", type=event_type)
    if data:
        event.text_data = data
    for name, value in attributes.items():
        kind = "ce_integer" if type(value) is int else "ce_boolean" if type(value) is bool else "ce_string"
        if isinstance(value, Timestamp):
            event.attributes[name].ce_timestamp.CopyFrom(value)
        else:
            setattr(event.attributes[name], kind, value)
    return event


def refusal_of(life: Life, *commands: Command) -> InvalidField:
    task = life.run.tasks["w"]
    reply = life.do(CompleteWorkflowTask(life.fence(task), life.run.last_event_id, commands, holds_run=True))
    assert reply.rejection is not None
    return reply.rejection


def row(life: Life, number: int = 1) -> Task:
    return life.run.tasks[f"e/{number}"]


# What finds what ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "event"),
    [
        ({}, an_event()),
        ({"subject": '"o-1"'}, an_event(subject="o-1")),
        ({"source": '"/shop"', "id": '"1"'}, an_event()),
        ({"priority": "3"}, an_event(priority=3)),
        ({"priority": "3.0"}, an_event(priority=3)),
        ({"urgent": "true"}, an_event(urgent=True)),
        ({"time": '"1970-01-01T00:00:01Z"'}, an_event(time=Timestamp(seconds=1))),
        ({"data__order__id": "7"}, an_event(data='{"order": {"id": 7.0}}')),
        ({"data__gone": "null"}, an_event(data='{"gone": null}')),
        ({"data__name": '"\\u00e9"'}, an_event(data='{"name": "é"}')),
        ({"data__name": '"\\ud83d\\ude00"'}, an_event(data='{"name": "😀"}')),
    ],
)
def test_an_event_with_the_values_has_the_key_of_the_subscription(where: dict[str, str], event: CloudEvent) -> None:
    life = Life.begin()
    life.code(subscribe(1, **where))
    first, before = topics_of("paid")
    assert first <= row(life).type < before
    assert Content(event).key(row(life).type) == row(life).queue


@pytest.mark.parametrize(
    ("where", "event"),
    [
        ({"subject": '"o-1"'}, an_event(subject="o-2")),
        ({"subject": '"o-1"'}, an_event()),
        ({"priority": '"3"'}, an_event(priority=3)),
        ({"urgent": "1"}, an_event(urgent=True)),
        ({"data__order__id": "7"}, an_event(data='{"order": 7}')),
        ({"data__order": "7"}, an_event(data='{"order": {"id": 7}}')),
        ({"data__order": "7"}, an_event(data="no JSON", datacontenttype="text/plain")),
        ({"data__order": "7"}, an_event(data="[" * 100_000)),
        ({"data__order": "7"}, an_event()),
        ({"data__order": "null"}, an_event(data="{}")),
    ],
)
def test_an_event_without_the_values_has_another_key(where: dict[str, str], event: CloudEvent) -> None:
    life = Life.begin()
    life.code(subscribe(1, **where))
    assert Content(event).key(row(life).type) != row(life).queue


def test_a_text_that_is_none_still_has_a_key() -> None:
    life = Life.begin()
    life.code(subscribe(1, data__order='"7"'))
    key = Content(an_event(data='{"order": "\\ud800"}')).key(row(life).type)
    assert key not in (None, row(life).queue)


def test_a_type_does_not_find_what_another_type_that_begins_like_it_is_waited_for() -> None:
    life = Life.begin()
    life.code(subscribe(1, "paid.twice", subject='"x"'))
    first, before = topics_of("paid")
    assert not first <= row(life).type < before
    assert event_type_of(row(life).type) == ("paid.twice", ["subject"])


# What a run makes of it -----------------------------------------------------------------------------------------------


def test_a_subscription_is_a_row_that_nobody_looks_at() -> None:
    life = Life.begin()
    life.code(subscribe(1), subscribe(2, "paid", False))
    assert [(row(life, n).kind, row(life, n).due_ms) for n in (1, 2)] == [(TaskKind.SUBSCRIPTION, NEVER_MS)] * 2
    assert row(life).unowned_relay_ms == NEVER_MS


def test_an_event_ends_the_subscription_to_one_and_not_that_to_all() -> None:
    life = Life.begin()
    life.code(subscribe(1), subscribe(2, "paid", False))
    life.do(ReceiveEvent(an_event(), ["1", "2"]))
    assert life.history[-1].event_received.subscription_ids == ["1", "2"]
    assert [task_id for task_id in life.run.tasks if task_id.startswith("e/")] == ["e/2"]
    life.do(ReceiveEvent(an_event("2"), ["1", "2"]))
    assert life.history[-1].event_received.subscription_ids == ["2"]
    assert life.run.workflow_task is not None


def test_an_event_that_nobody_waits_for_any_more_is_stale() -> None:
    life = Life.begin()
    life.code(subscribe(1))
    life.do(ReceiveEvent(an_event(), ["1"]))
    with pytest.raises(StaleTask):
        life.do(ReceiveEvent(an_event("2"), ["1"]))


def test_an_event_for_the_run_itself_is_kept_although_nothing_waits() -> None:
    life = Life.begin()
    life.code()
    life.do(ReceiveEvent(an_event()))
    assert [event.event_received.event.id for event in life.run.unseen] == ["1"]


def test_a_closed_run_takes_no_events() -> None:
    life = Life.begin()
    life.code(complete())
    with pytest.raises(WorkflowClosed):
        life.do(ReceiveEvent(an_event()))


def test_a_subscription_is_given_up_also_after_its_event_came_unseen() -> None:
    life = Life.begin()
    life.code(subscribe(1), subscribe(2))
    seen = life.run.last_event_id
    life.do(ReceiveEvent(an_event(), ["1"]))
    task = life.run.tasks["w"]
    life.do(CompleteWorkflowTask(life.fence(task), seen + 1, [unsubscribe(1), unsubscribe(2)], holds_run=True))
    assert not [task_id for task_id in life.run.tasks if task_id.startswith("e/")]


def test_subscriptions_to_all_and_what_was_not_read_go_to_the_next_run() -> None:
    life = Life.begin()
    life.code(subscribe(1, "bid", False, subject='"lot-1"'), subscribe(2, "end"))
    seen = life.run.last_event_id
    life.do(ReceiveEvent(an_event("1", "bid"), ["1"]))
    spec = WorkflowSpec(workflow_type="order", task_queue="default")
    command = Command(continue_workflow=ContinueWorkflow(spec=spec, unread_events=[an_event("0")]))
    task = life.run.tasks["w"]
    reply = life.do(CompleteWorkflowTask(life.fence(task), seen, [command], True, successor_run_id="run-2"))
    assert reply.successor is not None
    following = Life(Run("default", "order-1", "run-2"))
    following.do(reply.successor[1])
    assert [e.event_received.event.id for e in following.history if e.HasField("event_received")] == ["0", "1"]
    (carried,) = following.history[0].workflow_started.subscriptions
    assert (carried.subscription_id, carried.event_type, dict(carried.where)) == (
        "run-1/1",
        "bid",
        {"subject": '"lot-1"'},
    )
    following.do(ReceiveEvent(an_event("2", "bid", subject="lot-1"), ["run-1/1"]))
    following.code(unsubscribe("run-1/1"))
    assert "e/run-1/1" not in following.run.tasks


# What may be asked for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (subscribe(2), "subscription_id"),
        (subscribe(1, ""), "event_type"),
        (subscribe(1, "a\nb"), "event_type"),
        (subscribe(1, "x" * 256), "event_type"),
        (subscribe(1, **{f"a{n}": "1" for n in range(9)}), "where"),
        (subscribe(1, Subject='"x"'), "where"),
        (subscribe(1, **{"data..x": "1"}), "where"),
        (subscribe(1, **{"data.": "1"}), "where"),
        (subscribe(1, **{"": "1"}), "where"),
        (subscribe(1, subject="x"), "where['subject']"),
        (subscribe(1, subject="NaN"), "where['subject']"),
        (subscribe(1, subject='"\\ud800"'), "where['subject']"),
        (subscribe(1, subject="[1]"), "where['subject']"),
        (subscribe(1, subject="[" * 5_000), "where['subject']"),
        (subscribe(1, subject='"' + "x" * 4_096 + '"'), "where['subject']"),
        (unsubscribe(1), "subscription_id"),
        (unsubscribe("c1"), "subscription_id"),
    ],
)
def test_what_no_event_could_be_compared_with_is_refused(command: Command, field: str) -> None:
    refusal = refusal_of(Life.begin(), command)
    assert refusal.metadata["field"].endswith(field)


@pytest.mark.parametrize(
    ("event", "field"),
    [
        (an_event(""), "event.id"),
        (an_event("x" * 256), "event.id"),
        (an_event(event_type=""), "event.type"),
        (an_event(event_type="a\x1fb"), "event.type"),
        (CloudEvent(id="1", source="/", type="t", spec_version="0.3"), "event.spec_version"),
        (CloudEvent(id="1", type="t", spec_version="1.0"), "event.source"),
        (an_event(Upper="x"), "event.attributes"),
        (an_event(**{"with-dash": "x"}), "event.attributes"),
        (an_event(**{"a" * 21: "x"}), "event.attributes"),
        (an_event(id="x"), "event.attributes['id']"),
        (an_event(data="x", type="y"), "event.attributes['type']"),
        (an_event(time="2026-01-01T00:00:00Z"), "event.attributes['time']"),
        (an_event(time=Timestamp(seconds=10**12)), "event.attributes['time']"),
        (an_event(subject=7), "event.attributes['subject']"),
        (an_event(romancyworkflowid=""), "event.attributes['romancyworkflowid']"),
        (an_event(note="x" * 5_000), "event.attributes['note']"),
        (an_event(**{f"a{n}": "x" for n in range(65)}), "event.attributes"),
        (an_event(data="{"), "event.data"),
        (an_event(data="NaN"), "event.data"),
        (an_event(data='{"a": Infinity}'), "event.data"),
        (an_event(data='{"order": "\\ud800"}'), "event.data"),
        (an_event(data='{"\\uDfff": 1}'), "event.data"),
        (an_event(data='{"order": "\\ude00\\ud83d"}'), "event.data"),
        (an_event(data="[" * 100_000), "event.data"),
        (an_event(data="x", datacontenttype="application/vnd.shop+json; charset=utf-8"), "event.data"),
        (an_event(data='"' + "x" * (1 << 20) + '"'), "event"),
    ],
)
def test_an_event_that_is_none_is_refused(event: CloudEvent, field: str) -> None:
    with pytest.raises(InvalidField) as refusal:
        check_cloud_event("event", event, LIMITS)
    assert refusal.value.metadata["field"] == field


def test_an_attribute_without_a_value_is_refused() -> None:
    event = an_event()
    event.attributes["empty"].SetInParent()
    with pytest.raises(InvalidField, match="has no value"):
        check_cloud_event("event", event, LIMITS)


@pytest.mark.parametrize(
    "event",
    [
        an_event(data="no JSON", datacontenttype="text/plain"),
        an_event(data='{"a": 1}'),
        an_event(data='{"a": "\\ud83d\\ude00"}'),
        an_event(data='{"a": "\\ud800"}', datacontenttype="text/plain"),
        an_event(time=Timestamp(seconds=1), subject="x", dataschema="urn:x", extension=7, flag=False),
        CloudEvent(id="1", source="/", type="t", spec_version="1.0", binary_data=b"\xff"),
    ],
)
def test_an_event_may_carry_anything_that_it_says_it_does(event: CloudEvent) -> None:
    check_cloud_event("event", event, LIMITS)
