"""Events: what was accepted reaches those who waited for it when it was, once and in order, on whichever replica."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc
import pytest

from romancy.v1.command_pb2 import Command
from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.event_service_pb2 import PublishEventRequest, PublishEventsRequest
from romancy.v1.event_service_pb2_grpc import EventServiceStub
from romancy.v1.history_pb2 import HistoryEvent

from romancy_service import publisher
from romancy_service.event_rules import EventRules
from romancy_service.starter import Starter
from tests.core.life import complete
from tests.core.talk import recur
from tests.core.test_subscription import an_event, subscribe, unsubscribe
from tests.service.cluster import Refusal, Tenant, refused, until
from tests.service.scripted_worker import ScriptedWorker


def stub(tenant: Tenant, replica: int | None = None) -> EventServiceStub:
    """The proxy's next replica, or that one."""
    replicas = tenant.cluster.replicas
    port = None if replica is None else replicas[replica % len(replicas)].port
    return EventServiceStub(tenant.open_channel(port))


async def publish(tenant: Tenant, *events: CloudEvent, replica: int | None = None) -> list[bool]:
    """Which of them were known."""
    request = PublishEventsRequest(namespace=tenant.namespace, events=events)
    return list((await stub(tenant, replica).PublishEvents(request)).duplicates)


async def waiting(tenant: Tenant, *commands: Command, workflow_id: str = "order") -> tuple[ScriptedWorker, str]:
    """A run whose code asked for events, and its worker."""
    worker = await tenant.worker()
    run_id = (await tenant.start(workflow_id)).run_id
    await worker.command(await worker.workflow_task(), *commands)
    return worker, run_id


def ids(events: Sequence[HistoryEvent]) -> list[str]:
    """The events among inputs, by id."""
    return [each.event_received.event.id for each in events if each.HasField("event_received")]


async def received(tenant: Tenant, run_id: str, count: int) -> list[str]:
    """The events that the run got, when there are so many."""

    async def enough() -> bool:
        return len(ids(await tenant.history(run_id))) >= count

    await until(enough, f"{count} events came")
    return ids(await tenant.history(run_id))


async def delivered(tenant: Tenant, event_type: str = "paid") -> None:
    """Everything that was accepted has reached whom it reaches."""

    async def none_open() -> bool:
        return not await tenant.cluster.store.open_events(tenant.namespace, event_type, 1)

    await until(none_open, "all events are delivered")


async def test_an_event_reaches_the_code_that_waits_for_it(tenant: Tenant) -> None:
    worker, run_id = await waiting(tenant, subscribe(1))
    assert await publish(tenant, an_event(data='{"n": 1}')) == [False]
    event = (await worker.workflow_task()).events[-1]
    assert event.event_received.event == an_event(data='{"n": 1}')
    assert list(event.event_received.subscription_ids) == ["1"]
    assert (await tenant.get(run_id)).waits


async def test_whichever_replica_takes_it_every_run_that_waits_gets_it(tenant: Tenant) -> None:
    worker = await tenant.worker(workflow_slots=20)
    run_ids = []
    for number in range(6):
        run_ids.append((await tenant.start(f"order-{number}")).run_id)
        await worker.command(await worker.workflow_task(), subscribe(1, "paid", False))
    for replica in range(4):
        await publish(tenant, an_event(str(replica)), replica=replica)
    for run_id in run_ids:
        assert await received(tenant, run_id, 4) == ["0", "1", "2", "3"]


async def test_an_event_that_is_sent_again_is_known_and_nothing_happens(tenant: Tenant) -> None:
    _, run_id = await waiting(tenant, subscribe(1, "paid", False))
    other_source = an_event("1")
    other_source.source = "/other"
    assert await publish(tenant, an_event("1"), an_event("1"), an_event("2")) == [False, True, False]
    assert await publish(tenant, an_event("2"), other_source, an_event("1", "refunded")) == [True, False, True]
    await delivered(tenant)
    assert await received(tenant, run_id, 3) == ["1", "2", "1"]
    request = PublishEventRequest(namespace=tenant.namespace, event=an_event("2"))
    assert (await stub(tenant).PublishEvent(request)).duplicate


async def test_only_those_with_the_values_get_it(tenant: Tenant) -> None:
    worker = await tenant.worker(workflow_slots=20)
    wanted = [
        subscribe(1, "paid", False, data__order="1"),
        subscribe(1, "paid", False, data__order="2"),
        subscribe(1, "paid", False, subject='"vip"'),
        subscribe(1, "paid", False),
        subscribe(1, "refunded", False),
    ]
    runs = []
    for number, command in enumerate(wanted):
        runs.append((await tenant.start(f"order-{number}")).run_id)
        await worker.command(await worker.workflow_task(), command)
    await publish(tenant, an_event("a", data='{"order": 1}'), an_event("b", data='{"order": 2}', subject="vip"))
    await delivered(tenant)
    got = [ids(await tenant.history(run_id)) for run_id in runs]
    assert got == [["a"], ["b"], ["b"], ["a", "b"], []]


async def test_several_subscriptions_of_a_run_get_an_event_as_one_input(tenant: Tenant) -> None:
    _, run_id = await waiting(
        tenant, subscribe(1), subscribe(2, "paid", False, subject='"x"'), subscribe(3, "paid", True, subject='"y"')
    )
    await publish(tenant, an_event("1", subject="x"), an_event("2", subject="x"))
    await received(tenant, run_id, 2)
    inputs = [e.event_received for e in await tenant.history(run_id) if e.HasField("event_received")]
    assert [sorted(each.subscription_ids) for each in inputs] == [["1", "2"], ["2"]]


async def test_what_is_not_waited_for_is_dropped_and_what_was_before_the_wait_is_not_brought(tenant: Tenant) -> None:
    await publish(tenant, an_event("early"))
    await delivered(tenant)
    worker, run_id = await waiting(tenant, subscribe(1, "paid", False))
    await publish(tenant, an_event("between"))
    await received(tenant, run_id, 1)
    await worker.command(await worker.workflow_task(), unsubscribe(1))
    await publish(tenant, an_event("late"))
    await delivered(tenant)
    assert ids(await tenant.history(run_id)) == ["between"]


async def test_an_event_for_a_workflow_is_kept_until_its_code_looks(tenant: Tenant) -> None:
    _, run_id = await waiting(tenant)
    for_it = [an_event(str(number), romancyworkflowid="order") for number in range(3)]
    await publish(tenant, *for_it, an_event("other"))
    assert await received(tenant, run_id, 3) == ["0", "1", "2"]
    by_run = an_event("3", romancyworkflowid="order", romancyrunid=run_id)
    await publish(tenant, by_run)
    assert (await received(tenant, run_id, 4))[-1] == "3"


async def test_an_event_for_a_workflow_that_is_not_there_is_refused(tenant: Tenant) -> None:
    refusal = await refused(publish(tenant, an_event("1", romancyworkflowid="nobody")))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "WORKFLOW_NOT_FOUND")
    _, run_id = await waiting(tenant)
    await tenant.terminate(run_id)
    refusal = await refused(publish(tenant, an_event("1", romancyworkflowid="order")))
    assert refusal.reason == "WORKFLOW_CLOSED"
    refusal = await refused(publish(tenant, an_event("1", romancyworkflowid="order", romancyrunid="unknown")))
    assert refusal.reason == "WORKFLOW_NOT_FOUND"
    assert await publish(tenant, an_event("1")) == [False]


async def test_a_run_that_goes_on_anew_misses_nothing(tenant: Tenant) -> None:
    worker, run_id = await waiting(tenant, subscribe(1, "paid", False))
    await publish(tenant, an_event("1"))
    task = await worker.workflow_task()
    await publish(tenant, an_event("2"))
    await received(tenant, run_id, 2)
    await worker.command(task, recur(task_queue="queue"))
    following = await worker.workflow_task()
    await publish(tenant, an_event("3"))
    got = await received(tenant, following.run_id, 2)
    assert got == ["2", "3"]


async def test_many_waiting_runs_are_told_page_by_page(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "SUBSCRIBERS", 3)
    worker = await tenant.worker(workflow_slots=50)
    runs = []
    for number in range(10):
        runs.append((await tenant.start(f"order-{number}")).run_id)
        await worker.command(await worker.workflow_task(), subscribe(1), subscribe(2, "paid", False))
    await publish(tenant, an_event("1"))
    for run_id in runs:
        assert await received(tenant, run_id, 1) == ["1"]
    inputs = [e.event_received for run in runs for e in await tenant.history(run) if e.HasField("event_received")]
    assert [sorted(each.subscription_ids) for each in inputs] == [["1", "2"]] * 10


async def test_subscribing_races_publishing_and_what_came_after_is_never_missed(tenant: Tenant) -> None:
    worker = await tenant.worker(workflow_slots=50)
    published = 0
    stop = asyncio.Event()

    async def keep_publishing() -> None:
        nonlocal published
        while not stop.is_set():
            await publish(tenant, an_event(str(published)))
            published += 1

    publishing = asyncio.create_task(keep_publishing())
    runs = []
    for number in range(10):
        run_id = (await tenant.start(f"order-{number}")).run_id
        while (task := await worker.workflow_task()).run_id != run_id:
            await worker.command(task)
        await worker.command(task, subscribe(1, "paid", False))
        runs.append((run_id, published + 1))  # the one that is under way may count as before
    stop.set()
    await publishing
    await delivered(tenant)
    for run_id, since in runs:
        got = [int(each) for each in ids(await tenant.history(run_id))]
        assert got == list(range(min([since, published, *got]), published))


async def test_closed_runs_and_runs_that_end_their_wait_at_that_moment_do_no_harm(tenant: Tenant) -> None:
    worker, run_id = await waiting(tenant, subscribe(1))
    await publish(tenant, an_event("1"))
    await worker.command(await worker.workflow_task(), complete())
    await publish(tenant, an_event("2"))
    await delivered(tenant)
    assert ids(await tenant.history(run_id)) == ["1"]


async def test_what_was_left_open_by_a_replica_that_is_gone_is_delivered(tenant: Tenant) -> None:
    _, run_id = await waiting(tenant, subscribe(1, "paid", False))
    new = publisher.NewEvent("/shop", "left", "paid", an_event("left").SerializeToString(), 2**62)
    now_ms = tenant.cluster.replicas[0].node.clock.now_ms()
    await tenant.cluster.store.add_events(tenant.namespace, [new], now_ms)
    assert await received(tenant, run_id, 1) == ["left"]


async def test_delivering_again_brings_nothing_twice(tenant: Tenant) -> None:
    _, run_id = await waiting(tenant, subscribe(1, "paid", False))
    node = tenant.cluster.replicas[-1].node
    now_ms = node.clock.now_ms()
    event = an_event("1")
    new = publisher.NewEvent(event.source, event.id, event.type, event.SerializeToString(), 2**62)
    await node.store.add_events(tenant.namespace, [new], now_ms)
    opened = await node.store.open_events(tenant.namespace, "paid", 10)
    rules = EventRules(node.store, node.clock, Starter(node.engine, node.store), node.limits)
    again = publisher.Publisher(node.store, node.clock, node.engine, rules, node.limits)
    for _ in range(3):
        await again._deliver(tenant.namespace, "paid", opened)
    assert ids(await tenant.history(run_id)) == ["1"]


async def test_batches_have_limits(tenant: Tenant) -> None:
    assert (await refused(publish(tenant))).field == "events"
    many = [an_event(str(number)) for number in range(1_001)]
    assert (await refused(publish(tenant, *many))).field == "events"
    refusal = await refused(publish(tenant, an_event("good"), an_event("")))
    assert refusal.field == "events[1].id"
    assert await publish(tenant, an_event("good")) == [False], "nothing of a refused batch is kept"
    request = PublishEventRequest(namespace=tenant.namespace)
    answer: Refusal = await refused(stub(tenant).PublishEvent(request))
    assert (answer.code, answer.field) == (grpc.StatusCode.INVALID_ARGUMENT, "event.id")
