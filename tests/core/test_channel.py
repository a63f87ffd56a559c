"""Channels, as the core sees them: subscribing, messages that only one run gets, and what becomes of untaken ones."""

from __future__ import annotations

import pytest

from romancy.v1.channel_pb2 import (
    CHANNEL_MODE_BROADCAST,
    CHANNEL_MODE_COMPETING,
    CHANNEL_MODE_DIRECT,
    ChannelMode,
    Delivery,
)
from romancy.v1.command_pb2 import Command, Send, SendMessage, Subscribe
from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.failure_pb2 import Failure
from romancy.v1.payload_pb2 import Payload

from romancy_service.core.channel import RECEIVER, address_of, channel_of, line_of, message, topic_of_channel
from romancy_service.core.cloud_event import check_cloud_event
from romancy_service.core.limits import Limits
from romancy_service.core.run import Run
from romancy_service.core.task import NEVER_MS, Fence
from romancy_service.core.triggers import (
    AnswerSubscription,
    CompleteWorkflowTask,
    FinishErrand,
    FinishSend,
    ReceiveEvent,
    RequestCancel,
    Terminate,
)
from romancy_service.errors import InvalidField, StaleTask
from tests.core.life import Life, complete, fail
from tests.core.talk import recur

LIMITS = Limits()


def join(number: int, channel: str = "jobs", mode: ChannelMode.ValueType = CHANNEL_MODE_COMPETING) -> Command:
    return Command(subscribe=Subscribe(subscription_id=str(number), channel=channel, channel_mode=mode))


def receive(number: int, channel: str = "jobs") -> Command:
    return Command(subscribe=Subscribe(subscription_id=str(number), channel=channel, once=True))


def a_message(number: int = 1, channel: str = "jobs") -> CloudEvent:
    return message(channel, Payload(json=str(number)), {}, source="/clients", message_id=str(number))


def given(number: int, count: int = 1) -> Delivery:
    return Delivery(position=number, count=count)


def answered(life: Life, number: int = 1, failure: Failure | None = None) -> None:
    fence = Fence(f"e/{number}", 1, "")
    life.do(AnswerSubscription(fence, str(number), failure))


def competing() -> Life:
    """A run that waits for a message of a channel, as subscription 2."""
    life = Life.begin()
    life.code(join(1))
    answered(life)
    life.code(receive(2))
    return life


def left(life: Life) -> list[Delivery]:
    """What the run gives back, by errands."""
    return [task.errand.returned for task in life.run.tasks.values() if isinstance(task.errand, Send)]


def test_a_subscription_is_an_errand_until_it_is_answered_and_found_from_then_on() -> None:
    life = Life.begin()
    life.code(join(1))
    task = life.run.tasks["e/1"]
    assert (task.type, task.queue, task.due_ms < NEVER_MS) == (topic_of_channel("jobs"), "competing", True)
    answered(life)
    assert life.run.tasks["e/1"].due_ms == NEVER_MS
    assert [event.WhichOneof("attributes") for event in life.run.unseen] == ["subscription_answered"]
    life.check_fold()


def test_a_subscription_that_is_refused_is_over() -> None:
    life = Life.begin()
    life.code(join(1))
    answered(life, failure=Failure(type="CHANNEL_MODE_CONFLICT"))
    assert "e/1" not in life.run.tasks
    with pytest.raises(StaleTask):
        answered(life)
    life.check_fold()


def test_one_message_ends_one_wait() -> None:
    life = competing()
    assert life.run.tasks["e/2"].queue == RECEIVER
    life.do(ReceiveEvent(a_message(), ["2"], given(1)))
    assert "e/2" not in life.run.tasks
    with pytest.raises(StaleTask):
        life.do(ReceiveEvent(a_message(2), ["2"], given(2)))


@pytest.mark.parametrize("ending", [complete(), fail()])
def test_what_the_code_did_not_see_before_it_ended_goes_back(ending: Command) -> None:
    life = competing()
    seen = life.run.last_event_id
    life.do(ReceiveEvent(a_message(7), ["2"], given(7, 3)))
    life.do(CompleteWorkflowTask(life.fence(life.run.tasks["w"]), seen, [ending], holds_run=False))
    assert left(life) == [given(7, 3)]
    life.do(FinishSend(Fence("s/7.3", 1, ""), "7.3"))
    assert not left(life)


def test_what_the_code_saw_is_taken() -> None:
    life = competing()
    life.do(ReceiveEvent(a_message(7), ["2"], given(7)))
    life.code(complete())
    assert not left(life)


@pytest.mark.parametrize("how", ["terminate", "timeout", "cancel"])
def test_it_goes_back_too_when_it_is_not_the_code_that_ends_the_run(how: str) -> None:
    life = Life.begin(run_timeout={"seconds": 60})
    life.code(join(1))
    answered(life)
    life.code(receive(2))
    seen = life.run.last_event_id
    life.do(ReceiveEvent(a_message(7), ["2"], given(7)))
    if how == "terminate":
        life.do(Terminate("enough", "ann"))
    elif how == "timeout":
        life.due("d")
    else:
        life.do(RequestCancel("enough", "ann"))
        cancel = Command()
        cancel.cancel_workflow.SetInParent()
        life.do(CompleteWorkflowTask(life.fence(life.run.tasks["w"]), seen, [cancel], holds_run=False))
    assert left(life) == [given(7)]


def test_recurring_gives_it_back_and_takes_the_rest_along() -> None:
    life = Life.begin()
    life.code(join(1), join(2, "news", CHANNEL_MODE_BROADCAST), join(3, "late"))
    answered(life, 1)
    answered(life, 2)
    life.code(receive(4))
    seen = life.run.last_event_id
    life.do(ReceiveEvent(a_message(7), ["4"], given(7)))
    life.do(ReceiveEvent(a_message(8, "news"), ["2"]))
    task = life.run.tasks["w"]
    reply = life.do(CompleteWorkflowTask(life.fence(task), seen, [recur()], False, successor_run_id="run-2"))
    assert left(life) == [given(7)]
    assert reply.successor is not None
    following = Life(Run("default", "order-1", "run-2"))
    following.do(reply.successor[1])
    assert [e.event_received.event.id for e in following.history if e.HasField("event_received")] == ["8"]
    carried = following.history[0].workflow_started.subscriptions
    assert sorted((each.channel, each.channel_mode) for each in carried) == [
        ("jobs", CHANNEL_MODE_COMPETING),
        ("news", CHANNEL_MODE_BROADCAST),
    ], "the unanswered one is asked for again"
    assert all(following.run.tasks[f"e/{each.subscription_id}"].due_ms == NEVER_MS for each in carried)


def test_the_code_gives_back_what_it_does_not_take() -> None:
    life = competing()
    life.do(ReceiveEvent(a_message(7), ["2"], given(7)))
    life.code(Command(send=Send(send_id="1", returned=given(7))))
    assert left(life) == [given(7)]
    with pytest.raises(StaleTask):
        life.do(FinishErrand(Fence("s/1", 1, "")))
    life.do(FinishSend(Fence("s/1", 1, ""), "1"))
    assert not left(life)


def test_an_event_waits_in_the_line_of_its_type_its_channel_or_its_addressee_there() -> None:
    event = CloudEvent(id="1", source="/shop", spec_version="1.0", type="paid")
    assert line_of(event) == "paid"
    assert line_of(a_message()) == topic_of_channel("jobs")
    direct = message("jobs", Payload(json="1"), {}, source="/clients", message_id="1", workflow_id="order")
    assert channel_of(line_of(direct)) is None
    assert len({line_of(event), line_of(a_message()), line_of(direct)}) == 3
    assert (address_of(direct), address_of(a_message())) == (("order", ""), None)
    assert (channel_of(topic_of_channel("jobs")), channel_of("paid")) == ("jobs", None)


def test_messages_are_events_that_can_be_kept() -> None:
    payload = Payload(binary=b"\x00", metadata={"encoding": "protobuf"})
    for data in (Payload(json='{"a": 1}'), payload, Payload()):
        check_cloud_event("event", message("jobs", data, {"a": "b"}, source="/runs/1", message_id="1"), LIMITS)


BAD = [
    ("subscribe.channel", Subscribe(subscription_id="1", channel="a\nb", channel_mode=CHANNEL_MODE_DIRECT)),
    ("subscribe.channel", Subscribe(subscription_id="1", channel="x" * 256, channel_mode=CHANNEL_MODE_DIRECT)),
    ("subscribe.channel", Subscribe(subscription_id="1", channel="a", event_type="b", once=True)),
    ("subscribe.channel", Subscribe(subscription_id="1", channel="a", where={"id": "1"}, once=True)),
    ("subscribe.channel_mode", Subscribe(subscription_id="1", channel="a")),
    ("subscribe.channel_mode", Subscribe(subscription_id="1", channel="a", channel_mode=9)),  # type: ignore[arg-type]
    (
        "subscribe.channel_mode",
        Subscribe(subscription_id="1", channel="a", once=True, channel_mode=CHANNEL_MODE_DIRECT),
    ),
    ("subscribe.channel_mode", Subscribe(subscription_id="1", event_type="a", channel_mode=CHANNEL_MODE_DIRECT)),
]


@pytest.mark.parametrize(("field", "command"), BAD, ids=range(len(BAD)))
def test_a_bad_subscription_fails_the_task_and_says_why(field: str, command: Subscribe) -> None:
    assert rejected(Command(subscribe=command)) == f"commands[0].{field}"


BAD_SENDS = [
    ("send.channel_message.channel", Send(send_id="1", channel_message=SendMessage())),
    ("send.channel_message.data", Send(send_id="1", channel_message=SendMessage(
        channel="a", data=Payload(json=f'"{"x" * LIMITS.payload_bytes}"')))),
    ("send.channel_message.metadata", Send(send_id="1", channel_message=SendMessage(
        channel="a", metadata={str(number): "" for number in range(65)}))),
    ("send.channel_message.metadata", Send(send_id="1", channel_message=SendMessage(
        channel="a", metadata={"x" * 129: ""}))),
    ("send.channel_message.metadata['x']", Send(send_id="1", channel_message=SendMessage(
        channel="a", metadata={"x": "y" * 4_097}))),
    ("send.channel_message.metadata", Send(send_id="1", channel_message=SendMessage(
        channel="a", metadata={str(number): "y" * 1_000 for number in range(5)}))),
    ("send.workflow_id", Send(send_id="1", workflow_id="a\n", channel_message=SendMessage(channel="a"))),
    ("send.returned", Send(send_id="1", returned=Delivery())),
    ("send.message", Send(send_id="1")),
]  # fmt: skip


@pytest.mark.parametrize(("field", "command"), BAD_SENDS, ids=range(len(BAD_SENDS)))
def test_a_bad_message_fails_the_task_and_says_why(field: str, command: Send) -> None:
    assert rejected(Command(send=command)) == f"commands[0].{field}"


def rejected(command: Command) -> str:
    """The field that the command is refused for."""
    life = Life.begin()
    rejection = life.code(command).rejection
    assert isinstance(rejection, InvalidField)
    return rejection.field
