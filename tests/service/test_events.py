"""Events: what was accepted reaches those who waited for it when it was, once and in order, on whichever replica."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import grpc
import pytest

from romancy.v1.command_pb2 import Command
from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.event_service_pb2 import PublishEventRequest, PublishEventsRequest
from romancy.v1.event_service_pb2_grpc import EventServiceStub
from romancy.v1.history_pb2 import HistoryEvent

from romancy_service import publisher
from romancy_service.core.channel import aside_of
from romancy_service.core.own import own_request_id
from romancy_service.core.subscription import Content
from romancy_service.core.triggers import ReceiveEvent, Trigger
from romancy_service.engine import Engine
from romancy_service.errors import InternalError
from romancy_service.event_rules import EventRules
from romancy_service.postman import Postman
from romancy_service.starter import Starter
from romancy_service.store.events import OpenEvent, Subscriber
from romancy_service.submission import RequestKey
from tests.core.life import complete
from tests.core.talk import recur
from tests.core.test_subscription import an_event, subscribe, unsubscribe
from tests.service.cluster import QUICK, Refusal, Tenant, refused, until
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
    """However many there are, no more than some pages of them are held: those behind are read when these were told."""
    again = another(tenant, page_subscriptions=3)
    find, submit = again._postman._store.subscribers, again._postman._engine.submit
    held, most = 0, 0

    async def reading(namespace: str, topic: str, key: str, after: tuple[str, str], limit: int) -> list[Subscriber]:
        nonlocal held, most
        page = await find(namespace, topic, key, after, limit)
        held += len(page)
        most = max(most, held)
        return page

    def telling(run_id: str, trigger: ReceiveEvent, request: RequestKey) -> Any:
        nonlocal held
        held -= len(trigger.subscription_ids)
        return submit(run_id, trigger, request)

    worker = await tenant.worker(workflow_slots=50)
    runs = []
    for number in range(10):
        runs.append((await tenant.start(f"order-{number}")).run_id)
        await worker.command(await worker.workflow_task(), subscribe(1), subscribe(2, "paid", False, data__n="1"))
    monkeypatch.setattr(publisher.Publisher, "look_now", lambda self: None)
    (opened,) = await left(tenant, an_event("1", data='{"n": 1}'))
    monkeypatch.setattr(again._postman, "_store", Overlay(again._postman._store, subscribers=reading))
    monkeypatch.setattr(again._postman, "_engine", Overlay(again._postman._engine, submit=telling))
    await again._deliver(tenant.namespace, "paid", [opened])
    seen_first, pages, about_to_be_told = 3 + 1, 2 * 3, 2
    assert most <= seen_first + pages + about_to_be_told
    inputs = [e.event_received for run in runs for e in await tenant.history(run) if e.HasField("event_received")]
    assert [sorted(each.subscription_ids) for each in inputs] == [["1", "2"]] * 10


async def test_of_many_waiting_runs_one_that_goes_on_anew_gets_the_events_in_their_order(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await tenant.worker()
    run_ids = []
    for name in ("order-1", "order-2"):
        run_ids.append((await tenant.start(name)).run_id)
        await worker.command(await worker.workflow_task(), subscribe(1, "paid", False))
    await tenant.signal(max(run_ids))
    task = await worker.workflow_task()
    monkeypatch.setattr(publisher.Publisher, "look_now", lambda self: None)
    opened = await left(tenant, an_event("1"), an_event("2"))
    again = another(tenant, page_subscriptions=1)
    find = again._postman._store.subscribers
    following: list[str] = []

    async def going_on(namespace: str, topic: str, key: str, after: tuple[str, str], limit: int) -> list[Subscriber]:
        """What is stored; the last run goes on anew when all were read, before it is told."""
        page = await find(namespace, topic, key, after, limit)
        if not page and not following:
            await worker.command(task, recur(task_queue="queue"))
            while (run_id := (await worker.workflow_task()).run_id) in run_ids:
                pass  # the other one, which was told
            following.append(run_id)
        return page

    monkeypatch.setattr(again._postman, "_store", Overlay(again._postman._store, subscribers=going_on))
    await again._deliver(tenant.namespace, "paid", opened)
    assert ids(await tenant.history(following[0])) == ["1", "2"]


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
    again = another(tenant)
    for _ in range(3):
        await again._deliver(tenant.namespace, "paid", opened)
    assert ids(await tenant.history(run_id)) == ["1"]


class Overlay:
    """Something of which a part is another one."""

    def __init__(self, below: object, **parts: object) -> None:
        self._below = below
        self._parts = parts

    def __getattr__(self, name: str) -> Any:
        return self._parts.get(name) or getattr(self._below, name)


def another(tenant: Tenant, **limits: int) -> publisher.Publisher:
    """One that nobody tells of anything, for what is delivered late or again."""
    node = tenant.cluster.replicas[-1].node
    rules = EventRules(node.store, node.clock, Starter(node.engine, node.store), node.limits)
    return publisher.Publisher(
        node.store, node.clock, Postman(node.store, node.engine, replace(node.limits, **limits)), rules, node.limits
    )


async def left(tenant: Tenant, *events: CloudEvent) -> list[OpenEvent]:
    """Events as they are stored, of which nobody is told."""
    node = tenant.cluster.replicas[-1].node
    new = [publisher.NewEvent(e.source, e.id, e.type, e.SerializeToString(), 2**62) for e in events]
    await node.store.add_events(tenant.namespace, new, node.clock.now_ms())
    return await node.store.open_events(tenant.namespace, "paid", len(events))


async def test_an_event_that_is_delivered_again_does_not_reach_the_next_run_too(tenant: Tenant) -> None:
    worker, run_id = await waiting(tenant, subscribe(1))
    opened = await left(tenant, an_event("1"))
    assert await received(tenant, run_id, 1) == ["1"]
    for _ in range(2):
        await worker.command(await worker.workflow_task(), recur(task_queue="queue"))
        following = await worker.workflow_task()
        await worker.command(following, subscribe(1))
        await another(tenant)._deliver(tenant.namespace, "paid", opened)
        assert ids(await tenant.history(following.run_id)) == []
        await publish(tenant, an_event(following.run_id))
        assert await received(tenant, following.run_id, 1) == [following.run_id]


async def test_an_actor_gets_each_event_once_while_starts_of_rules_hold_it_open(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, late = EventRules.start, asyncio.Event()

    async def slow(self: EventRules, *given: Any) -> Any:
        outcomes = await start(self, *given)
        await late.wait()
        return outcomes

    monkeypatch.setattr(EventRules, "start", slow)
    worker, run_id = await waiting(tenant, subscribe(1))
    await publish(tenant, an_event("1"))
    await received(tenant, run_id, 1)
    await worker.command(await worker.workflow_task(), recur(task_queue="queue"))
    following = await worker.workflow_task()
    await worker.command(following, subscribe(1))
    (opened,) = await tenant.cluster.store.open_events(tenant.namespace, "paid", 2)
    late.set()
    await another(tenant)._deliver(tenant.namespace, "paid", [opened])
    await delivered(tenant)
    assert ids(await tenant.history(following.run_id)) == []


async def test_an_event_that_cannot_be_read_holds_nothing_up(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    key = Content.key

    def failing(self: Content, topic: str) -> str | None:
        if self._event.id == "bad" and "data.order" in topic:
            raise ValueError("this value cannot be read")
        return key(self, topic)

    monkeypatch.setattr(Content, "key", failing)
    worker, picky = await waiting(tenant, subscribe(1, "paid", False, data__order="7"))
    other = (await tenant.start("other")).run_id
    await worker.command(await worker.workflow_task(), subscribe(1, "paid", False))
    await publish(tenant, an_event("bad", data='{"order": 7}'), an_event("good", data='{"order": 7}'))
    await delivered(tenant)
    assert ids(await tenant.history(picky)) == ["good"]
    assert ids(await tenant.history(other)) == ["bad", "good"]


def fail(monkeypatch: pytest.MonkeyPatch, run_id: str, times: float) -> list[str]:
    """Have a run fail to take events, so often. Returns those that it failed to take, as it goes on."""
    submit, failed = Engine.submit, list[str]()

    def failing(self: Engine, to: str, trigger: Trigger, request: RequestKey | None = None) -> asyncio.Future[Any]:
        if to != run_id or not isinstance(trigger, ReceiveEvent) or len(failed) >= times:
            return submit(self, to, trigger, request)
        failed.append(trigger.event.id)
        future = asyncio.get_running_loop().create_future()
        future.set_exception(InternalError("it failed"))
        return future

    monkeypatch.setattr(Engine, "submit", failing)
    return failed


@pytest.mark.parametrize("address", [{}, {"romancyworkflowid": "order"}], ids=["for all", "for one"])
async def test_what_a_run_failed_to_take_is_brought_again(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch, address: dict[str, str]
) -> None:
    _, run_id = await waiting(tenant, subscribe(1, "paid", False))
    fail(monkeypatch, run_id, 2)
    await publish(tenant, an_event("1", **address))
    assert await received(tenant, run_id, 1) == ["1"]
    await publish(tenant, an_event("2", **address))
    assert await received(tenant, run_id, 2) == ["1", "2"]


@pytest.mark.parametrize("address", [{}, {"romancyworkflowid": "order"}], ids=["for all", "for one"])
async def test_a_run_that_takes_nothing_any_more_holds_up_nobody(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch, address: dict[str, str]
) -> None:
    worker, broken = await waiting(tenant, subscribe(1, "paid", False))
    other = (await tenant.start("other")).run_id
    await worker.command(await worker.workflow_task(), subscribe(1, "paid", False))
    failed = fail(monkeypatch, broken, math.inf)
    await publish(tenant, an_event("1", **address), an_event("2"), an_event("3"))
    assert (await received(tenant, other, 2))[-2:] == ["2", "3"]
    await delivered(tenant)
    assert len(failed) >= 3, "it was tried again"


@pytest.mark.parametrize("address", [{}, {"romancyworkflowid": "order"}], ids=["for all", "for one"])
async def test_what_a_run_failed_to_take_often_is_put_aside_and_reaches_it_when_it_can_take_it_again(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch, address: dict[str, str]
) -> None:
    worker, broken = await waiting(tenant, subscribe(1, "paid", False))
    other = (await tenant.start("other")).run_id
    await worker.command(await worker.workflow_task(), subscribe(1, "paid", False))
    fail(monkeypatch, broken, math.inf)
    await publish(tenant, an_event("1", **address))
    await delivered(tenant)
    assert await tenant.cluster.store.open_events(tenant.namespace, aside_of("paid"), 1)
    monkeypatch.undo()
    await publish(tenant, an_event("2"))
    assert await received(tenant, broken, 1) == ["2"], "what comes after does not wait for it"
    await tenant.cluster.pass_ms(QUICK.aside_ms)
    assert await received(tenant, broken, 2) == ["2", "1"]
    await delivered(tenant, aside_of("paid"))
    assert sorted(ids(await tenant.history(other))) == (["2"] if address else ["1", "2"]), "it has each once"


async def test_nobody_else_can_take_an_event_from_a_run(tenant: Tenant) -> None:
    _, run_id = await waiting(tenant, subscribe(1, "paid", False))
    (before,) = await left(tenant, an_event("1"))
    await received(tenant, run_id, 1)
    for ahead in range(1, 4):
        for request_id in (f"event/{before.position + ahead}/{run_id}", f"event/{before.position + ahead}"):
            await tenant.signal(run_id, "x", request_id=request_id)
        own = own_request_id("event", before.position + ahead, run_id)
        assert (await refused(tenant.signal(run_id, "x", request_id=own))).field == "request_id"
    await publish(tenant, an_event("2"), an_event("3", romancyworkflowid="order"))
    assert await received(tenant, run_id, 3) == ["1", "2", "3"]


async def test_a_repeated_event_for_a_workflow_is_known_also_when_that_closed(tenant: Tenant) -> None:
    worker, run_id = await waiting(tenant)
    event = an_event("1", romancyworkflowid="order")
    assert await publish(tenant, event) == [False]
    await received(tenant, run_id, 1)
    await worker.command(await worker.workflow_task(), complete())
    assert await publish(tenant, an_event("fine"), event) == [False, True]
    refusal = await refused(publish(tenant, event, an_event("2", romancyworkflowid="order")))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "WORKFLOW_CLOSED")


async def test_a_batch_asks_once_for_all_workflows_that_it_names(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        await tenant.start(f"order-{number}")
    asked: list[int] = []
    for store in {id(replica.node.store): replica.node.store for replica in tenant.cluster.replicas}.values():
        latest = store.latest

        async def counting(keys: Any, latest: Any = latest) -> Any:
            asked.append(len(keys))
            return await latest(keys)

        monkeypatch.setattr(store, "latest", counting)
        monkeypatch.setattr(publisher.Publisher, "tell", lambda self, lines: asyncio.sleep(0))
    await publish(tenant, *(an_event(str(n), romancyworkflowid=f"order-{n % 5}") for n in range(20)))
    assert asked[0] == 5


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


async def test_events_of_a_batch_that_nobody_wants_are_looked_up_once(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    await waiting(tenant, subscribe(1, "paid", False, data__order="7"))
    opened = await left(tenant, *(an_event(str(number), data='{"order": 8}') for number in range(20)))
    asked: list[str] = []
    again = another(tenant)
    store, bringing = again._store, again._postman

    class Counting:
        def __getattr__(self, name: str) -> Any:
            if name == "subscribers":
                asked.append(name)
            return getattr(store, name)

    monkeypatch.setattr(bringing, "_store", Counting())
    await again._deliver(tenant.namespace, "paid", opened)
    assert len(asked) == min(len(opened), 1) == 1
