"""Channels: who gets a message, by the channel's mode, on whichever replica; and what becomes of those nobody takes."""

from __future__ import annotations

import asyncio
import math

import grpc
import pytest

from romancy.v1.channel_pb2 import (
    CHANNEL_MODE_BROADCAST,
    CHANNEL_MODE_COMPETING,
    CHANNEL_MODE_DIRECT,
    CHANNEL_MODE_UNSPECIFIED,
)
from romancy.v1.channel_service_pb2 import (
    Channel,
    GetChannelRequest,
    GetChannelResponse,
    ListChannelsRequest,
    PublishMessageRequest,
    PublishMessageResponse,
)
from romancy.v1.channel_service_pb2_grpc import ChannelServiceStub
from romancy.v1.command_pb2 import Command, Send, SendMessage
from romancy.v1.event_service_pb2 import PublishEventRequest
from romancy.v1.history_pb2 import EventReceived, HistoryEvent
from romancy.v1.payload_pb2 import Payload
from romancy.v1.worker_service_pb2 import WorkflowTask

from romancy_service.core.channel import aside_of, topic_of_channel
from romancy_service.courier import Courier
from romancy_service.errors import StoreUnavailable
from tests.core.life import complete
from tests.core.talk import recur
from tests.core.test_channel import join, receive
from tests.core.test_subscription import an_event
from tests.service.cluster import QUICK, Tenant, refused, until
from tests.service.scripted_worker import ScriptedWorker
from tests.service.test_events import fail
from tests.service.test_events import stub as events_stub


def stub(tenant: Tenant) -> ChannelServiceStub:
    return ChannelServiceStub(tenant.open_channel(None))


async def publish(tenant: Tenant, data: int, channel: str = "jobs", **fields: str) -> bool:
    """Whether it was known."""
    request = PublishMessageRequest(
        namespace=tenant.namespace, channel=channel, data=Payload(json=str(data)), metadata={"n": str(data)}, **fields
    )  # type: ignore[arg-type]
    answer: PublishMessageResponse = await stub(tenant).PublishMessage(request)
    return answer.duplicate


async def show(tenant: Tenant, channel: str = "jobs") -> Channel:
    request = GetChannelRequest(namespace=tenant.namespace, channel=channel)
    answer: GetChannelResponse = await stub(tenant).GetChannel(request)
    return answer.channel


async def joined(tenant: Tenant, worker: ScriptedWorker, workflow_id: str, *commands: Command) -> str:
    """A run whose subscriptions are answered. Returns its id."""
    run_id = (await tenant.start(workflow_id)).run_id
    await worker.command(await task_of(worker, run_id), *commands)
    await answered(tenant, run_id, len(commands))
    return run_id


async def task_of(worker: ScriptedWorker, run_id: str) -> WorkflowTask:
    """The run's next task. Those of others have nothing to ask for."""
    while (task := await worker.workflow_task()).run_id != run_id:
        await worker.command(task)
    return task


async def answered(tenant: Tenant, run_id: str, count: int) -> list[HistoryEvent]:
    """The answers to the run's subscriptions, when there are so many."""

    async def enough() -> bool:
        return sum(event.HasField("subscription_answered") for event in await tenant.history(run_id)) >= count

    await until(enough, "the subscriptions are answered")
    return [event for event in await tenant.history(run_id) if event.HasField("subscription_answered")]


async def received(tenant: Tenant, run_id: str, count: int = 1) -> list[EventReceived]:
    """What the run got, when it is so many."""

    async def enough() -> bool:
        return sum(event.HasField("event_received") for event in await tenant.history(run_id)) >= count

    await until(enough, f"{count} messages came")
    return [event.event_received for event in await tenant.history(run_id) if event.HasField("event_received")]


def data(messages: list[EventReceived]) -> list[int]:
    return [int(each.event.text_data) for each in messages]


async def no_more(tenant: Tenant, channel: str = "jobs") -> None:
    """Nothing is on its way."""

    async def none_open() -> bool:
        return not await tenant.cluster.store.open_events(tenant.namespace, topic_of_channel(channel), 1)

    await until(none_open, "everything is delivered")


async def test_a_message_for_all_that_a_run_failed_to_take_is_put_aside_and_reaches_it_later(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await tenant.worker()
    run_id = (await tenant.start("order")).run_id
    await worker.command(await task_of(worker, run_id), join(1, mode=CHANNEL_MODE_BROADCAST))
    await task_of(worker, run_id)
    fail(monkeypatch, run_id, math.inf)
    await publish(tenant, 1)
    aside, store = aside_of(topic_of_channel("jobs")), tenant.cluster.store

    async def is_aside() -> bool:
        return bool(await store.open_events(tenant.namespace, aside, 1))

    await until(is_aside, "it is put aside")
    monkeypatch.undo()
    await publish(tenant, 2)
    assert data(await received(tenant, run_id)) == [2]
    await tenant.cluster.pass_ms(QUICK.aside_ms)
    assert data(await received(tenant, run_id, 2)) == [2, 1]


async def test_who_has_asked_and_is_not_in_yet_is_no_subscriber(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await tenant.worker()
    await publish(tenant, 0, "news")
    with monkeypatch.context() as patch:
        patch.setattr(Courier, "visit", lambda *_: None)
        run_id = (await tenant.start("order")).run_id
        await worker.command(await worker.workflow_task(), join(1, "news", CHANNEL_MODE_BROADCAST))
        assert (await show(tenant, "news")).subscribers == 0
    await answered(tenant, run_id, 1)
    assert (await show(tenant, "news")).subscribers == 1


async def test_broadcast_reaches_all_that_are_subscribed_in_order(tenant: Tenant) -> None:
    worker = await tenant.worker(workflow_slots=20)
    wanted = join(1, "news", CHANNEL_MODE_BROADCAST)
    run_ids = [await joined(tenant, worker, f"order-{number}", wanted) for number in range(3)]
    for number in range(5):
        assert not await publish(tenant, number, "news", request_id=str(number))
    assert await publish(tenant, 0, "news", request_id="0"), "it was known"
    assert not await publish(tenant, 0, "sport", request_id="0"), "to another channel it is another message"
    for run_id in run_ids:
        messages = await received(tenant, run_id, 5)
        assert data(messages) == list(range(5))
        assert not any(each.HasField("delivery") for each in messages)
    shown = await show(tenant, "news")
    assert (shown.mode, shown.subscribers, shown.unread) == (CHANNEL_MODE_BROADCAST, 3, 0)


async def test_who_competes_gets_one_message_for_each_that_it_asks_for_and_nobody_else_gets_it(tenant: Tenant) -> None:
    worker = await tenant.worker(workflow_slots=20)
    for number in range(6):
        await publish(tenant, number)
    assert (await show(tenant)).unread == 6
    assert (await show(tenant)).mode == CHANNEL_MODE_UNSPECIFIED
    run_ids = []
    for number in range(3):
        run_id = await joined(tenant, worker, f"order-{number}", join(1))
        await worker.command(await task_of(worker, run_id), receive(2), receive(3))
        run_ids.append(run_id)
    messages = [each for run_id in run_ids for each in await received(tenant, run_id, 2)]
    assert sorted(data(messages)) == list(range(6))
    assert {each.delivery.count for each in messages} == {1}
    assert len({each.delivery.position for each in messages}) == 6
    await publish(tenant, 6)
    shown = await show(tenant)
    assert (shown.mode, shown.subscribers, shown.receivers, shown.unread) == (CHANNEL_MODE_COMPETING, 3, 0, 1)


async def test_a_message_wakes_one_that_waits(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run_id = await joined(tenant, worker, "order", join(1))
    await worker.command(await task_of(worker, run_id), receive(2))
    shown = await tenant.get(run_id)
    assert any("waits for a message of channel jobs" in wait.sentence for wait in shown.waits)
    assert any("channel jobs are kept for its code (competing)" in wait.sentence for wait in shown.waits)
    await publish(tenant, 1)
    assert data(await received(tenant, run_id)) == [1]


async def test_what_a_run_did_not_take_is_given_again_to_another_one(tenant: Tenant) -> None:
    worker = await tenant.worker(workflow_slots=5)
    first = await joined(tenant, worker, "first", join(1))
    await worker.command(await task_of(worker, first), receive(2))
    await publish(tenant, 1)
    await received(tenant, first)
    await tenant.terminate(first)
    second = await joined(tenant, worker, "second", join(1))
    await worker.command(await task_of(worker, second), receive(2))
    (again,) = await received(tenant, second)
    assert (data([again]), again.delivery.count) == ([1], 2)
    await worker.command(await task_of(worker, second), Command(send=Send(send_id="1", returned=again.delivery)))

    async def is_back() -> bool:
        return (await show(tenant)).unread == 1

    await until(is_back, "the code gave it back")


async def test_another_mode_is_refused_while_somebody_is_subscribed(tenant: Tenant) -> None:
    worker = await tenant.worker(workflow_slots=5)
    first = await joined(tenant, worker, "first", join(1))
    run_id = (await tenant.start("second")).run_id
    await worker.command(
        await task_of(worker, run_id), join(1, mode=CHANNEL_MODE_BROADCAST), join(2, mode=CHANNEL_MODE_DIRECT), join(3)
    )
    answers = [each.subscription_answered for each in await answered(tenant, run_id, 3)]
    failures = {each.subscription_id: each.failure for each in answers}
    assert [failures[number].type for number in "123"] == ["CHANNEL_MODE_CONFLICT", "CHANNEL_MODE_CONFLICT", ""]
    assert failures["1"].message.startswith(
        "channel 'jobs' is competing for those that are subscribed to it, not broad"
    )
    for each in (first, run_id):
        await tenant.terminate(each)
    third = await joined(tenant, worker, "third", join(1, mode=CHANNEL_MODE_BROADCAST))
    (answer,) = await answered(tenant, third, 1)
    assert not answer.subscription_answered.HasField("failure"), "nobody is there any more"


async def test_of_many_that_want_different_modes_at_once_all_that_may_want_the_same(tenant: Tenant) -> None:
    worker = await tenant.worker(workflow_slots=50)
    modes = [CHANNEL_MODE_BROADCAST, CHANNEL_MODE_COMPETING, CHANNEL_MODE_DIRECT] * 4
    wanted = {(await tenant.start(f"order-{number}")).run_id: mode for number, mode in enumerate(modes)}
    asked: set[str] = set()
    while len(asked) < len(modes):
        task = await worker.workflow_task()
        # An answer may come before all have asked.
        await worker.command(task, *([] if task.run_id in asked else [join(1, mode=wanted[task.run_id])]))
        asked.add(task.run_id)
    may = set()
    for run_id, mode in wanted.items():
        (answer,) = await answered(tenant, run_id, 1)
        if not answer.subscription_answered.HasField("failure"):
            may.add(mode)
    assert len(may) == 1
    assert (await show(tenant)).mode in may


async def test_what_is_sent_to_one_workflow_reaches_it_alone_also_before_it_subscribes(tenant: Tenant) -> None:
    worker = await tenant.worker(workflow_slots=5)
    run_id = (await tenant.start("order")).run_id
    await publish(tenant, 1, workflow_id="order")
    (message,) = await received(tenant, run_id)
    assert not message.subscription_ids
    other = await tenant.start("other")
    send = Send(send_id="1", workflow_id="order", channel_message=SendMessage(channel="jobs", data=Payload(json="2")))
    nobody = Send(send_id="2", workflow_id="nobody", channel_message=SendMessage(channel="jobs"))
    await worker.command(await task_of(worker, other.run_id), Command(send=send), Command(send=nobody))
    assert data(await received(tenant, run_id, 2)) == [1, 2]
    refusal = await refused(publish(tenant, 1, workflow_id="nobody"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "WORKFLOW_NOT_FOUND")

    async def both() -> bool:
        return sum(event.HasField("send_finished") for event in await tenant.history(other.run_id)) == 2

    await until(both, "both are answered")
    finished = [e.send_finished for e in await tenant.history(other.run_id) if e.HasField("send_finished")]
    assert {each.send_id: each.failure.type for each in finished} == {"1": "", "2": "WORKFLOW_NOT_FOUND"}


async def test_messages_of_one_run_arrive_in_the_order_in_which_it_sent_them(tenant: Tenant) -> None:
    worker = await tenant.worker(workflow_slots=5)
    listening = await joined(tenant, worker, "listening", join(1, "news", CHANNEL_MODE_BROADCAST))
    telling = await tenant.start("telling")
    sends = [SendMessage(channel="news", data=Payload(json=str(number))) for number in range(50)]
    commands = [Command(send=Send(send_id=str(n), channel_message=each)) for n, each in enumerate(sends, 1)]
    await worker.command(await task_of(worker, telling.run_id), *commands, complete())
    assert data(await received(tenant, listening, 50)) == list(range(50))


async def test_a_run_that_goes_on_anew_misses_no_message(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run_id = await joined(tenant, worker, "order", join(1, "news", CHANNEL_MODE_BROADCAST))
    task = await worker.workflow_task()
    await publish(tenant, 1, "news")
    await received(tenant, run_id)
    await worker.command(task, recur(task_queue="queue"))
    following = await worker.workflow_task()
    await publish(tenant, 2, "news")
    assert data(await received(tenant, following.run_id, 2)) == [1, 2]


async def test_channels_are_listed_page_by_page(tenant: Tenant) -> None:
    for name in ("c", "a", "b"):
        await publish(tenant, 1, name)
    names = []
    token = ""
    while True:
        request = ListChannelsRequest(namespace=tenant.namespace, page_size=2, page_token=token)
        page = await stub(tenant).ListChannels(request)
        names += [channel.name for channel in page.channels]
        token = page.next_page_token
        if not token:
            break
    assert names == ["a", "b", "c"]
    bad = ListChannelsRequest(namespace=tenant.namespace, page_token="bad")
    assert (await refused(stub(tenant).ListChannels(bad))).reason == "INVALID_PAGE_TOKEN"
    refusal = await refused(show(tenant, "unknown"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "CHANNEL_NOT_FOUND")


async def test_what_nobody_takes_is_forgotten_some_day_and_channels_that_nobody_uses(tenant: Tenant) -> None:
    await publish(tenant, 1)
    store, now_ms = tenant.cluster.store, tenant.cluster.replicas[0].node.clock.now_ms()
    week_ms = 7 * 86_400_000
    await store.forget_events(now_ms + week_ms - 60_000, 1_000)
    await store.forget_channels(now_ms - 60_000, now_ms, 100)
    assert (await show(tenant)).unread == 1
    await store.forget_channels(now_ms + 60_000, now_ms, 100)
    assert (await show(tenant)).unread == 1, "something waits there"
    await store.forget_events(now_ms + week_ms + 60_000, 1_000)
    assert (await show(tenant)).unread == 0
    await store.forget_channels(now_ms + 60_000, now_ms, 100)
    assert (await refused(show(tenant))).reason == "CHANNEL_NOT_FOUND"


async def test_subscribing_races_forgetting(tenant: Tenant) -> None:
    store, now_ms = tenant.cluster.store, tenant.cluster.replicas[0].node.clock.now_ms()
    for number in range(20):
        name = f"jobs-{number}"
        await store.add_channel(tenant.namespace, name, now_ms - 10_000)
        join_it = store.join_channel(tenant.namespace, name, CHANNEL_MODE_COMPETING, now_ms)
        taken, _ = await asyncio.gather(join_it, store.forget_channels(now_ms - 5_000, now_ms, 100))
        assert taken is None
        assert await store.channel_mode(tenant.namespace, name) == CHANNEL_MODE_COMPETING


BAD = [
    ("channel", {"channel": ""}),
    ("channel", {"channel": "a\x00b"}),
    ("channel", {"channel": "x" * 256}),
    ("request_id", {"channel": "a", "request_id": "\n"}),
    ("workflow_id", {"channel": "a", "workflow_id": "\n"}),
    ("message.data", {"channel": "a", "data": Payload(json="{")}),
    ("message.data", {"channel": "a", "data": Payload(json="NaN")}),
    ("message.data", {"channel": "a", "data": Payload(json="[" * 100_000)}),
    ("message.data", {"channel": "a", "data": Payload(json="[" * 101 + "]" * 101)}),
    ("message", {"channel": "a", "data": Payload(json=f'"{"x" * 1_100_000}"')}),
    ("metadata", {"channel": "a", "metadata": {"x" * 129: ""}}),
]


@pytest.mark.parametrize(("field", "fields"), BAD, ids=range(len(BAD)))
async def test_a_bad_message_is_refused_and_the_field_is_named(
    tenant: Tenant, field: str, fields: dict[str, object]
) -> None:
    request = PublishMessageRequest(namespace=tenant.namespace, **fields)  # type: ignore[arg-type]
    assert (await refused(stub(tenant).PublishMessage(request))).field == field


async def test_unsubscribing_ends_it(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run_id = await joined(tenant, worker, "order", join(1, "news", CHANNEL_MODE_BROADCAST))
    gone = Command()
    gone.unsubscribe.subscription_id = "1"
    await worker.command(await worker.workflow_task(), gone)
    await publish(tenant, 1, "news")
    await no_more(tenant, "news")
    assert not [event for event in await tenant.history(run_id) if event.HasField("event_received")]


async def test_nobody_else_can_send_in_the_name_of_a_run_or_of_a_client(tenant: Tenant) -> None:
    worker = await tenant.worker(workflow_slots=20)
    sender = (await tenant.start("sender")).run_id
    task = await task_of(worker, sender)
    target = (await tenant.start("target")).run_id
    for source in (f"/runs/{sender}", "/runs", "/clients", "/clients/somebody"):
        forged = an_event("1")
        forged.source = source
        refusal = await refused(events_stub(tenant).PublishEvent(PublishEventRequest(event=forged)))
        assert (refusal.code, refusal.field) == (grpc.StatusCode.INVALID_ARGUMENT, "event.source")
    message = SendMessage(channel="jobs", data=Payload(json="7"))
    await worker.command(task, Command(send=Send(send_id="1", workflow_id="target", channel_message=message)))
    assert data(await received(tenant, target)) == [7]


async def test_what_is_stored_is_answered_although_nobody_can_be_told(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unavailable(payload: str) -> None:
        raise StoreUnavailable("the connection is gone")

    for replica in tenant.cluster.replicas:
        monkeypatch.setattr(replica.node.store, "notify", unavailable)
    for number in range(4):
        assert not await publish(tenant, number, f"jobs-{number}")
        assert (await show(tenant, f"jobs-{number}")).unread == 1


async def test_a_message_that_is_sent_again_is_known_also_when_its_workflow_closed(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run_id = (await tenant.start("target")).run_id
    task = await worker.workflow_task()
    assert not await publish(tenant, 1, workflow_id="target", request_id="once")
    await received(tenant, run_id)
    await worker.command(task)
    await worker.command(await worker.workflow_task(), complete())
    assert await publish(tenant, 1, workflow_id="target", request_id="once")
    refusal = await refused(publish(tenant, 2, workflow_id="target", request_id="another"))
    assert refusal.reason == "WORKFLOW_CLOSED"
