"""The outbox: what runs send reaches its sink, in order, whatever the sink does; and what cannot be is kept for people."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import grpc
import pytest
import pytest_asyncio

from romancy.v1.command_pb2 import Command, ContinueWorkflow, SendEvent
from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.outbox_service_pb2 import (
    DeleteSinkRequest,
    DropDeadLettersRequest,
    ListOutboxRequest,
    ListSinksRequest,
    OutboxEvent,
    RetryDeadLettersRequest,
    SetSinkRequest,
    SetSinkResponse,
    Sink,
)
from romancy.v1.payload_pb2 import Payload
from romancy.v1.worker_service_pb2 import (
    ACKNOWLEDGEMENT_RESULT_ACCEPTED,
    ACKNOWLEDGEMENT_RESULT_INVALID,
    ActivityCompletion,
    Then,
)
from romancy.v1.workflow_pb2 import WorkflowSpec
from romancy.v1.workflow_service_pb2 import DeleteWorkflowRequest

from tests.core.life import complete, schedule
from tests.service.cluster import QUICK, Tenant, refused, seconds, until
from tests.service.scripted_worker import ScriptedWorker
from tests.service.sink import RESET, Received, Reply, sink
from tests.service.sink import Sink as Server

DAY_MS = 86_400_000
MOST = 2 * QUICK.sink_requests
"""So many requests of a replica to one sink are seen at most: some may be over that the sink still waits with."""
SECRET = "whsec_" + base64.b64encode(b"a" * 32).decode()
OTHER_SECRET = "whsec_" + base64.b64encode(b"b" * 32).decode()


@pytest_asyncio.fixture(loop_scope="session")
async def server() -> AsyncIterator[Server]:
    """A sink that is up."""
    async with sink() as up:
        yield up


def event(name: str, data: object = None, **fields: str) -> CloudEvent:
    made = CloudEvent(type=name, spec_version="1.0", text_data=json.dumps(data), **fields)
    made.attributes["datacontenttype"].ce_string = "application/json"
    return made


def sends(*names: str, to: str = "") -> list[Command]:
    return [Command(send_event=SendEvent(event=event(name, {"name": name}), sink=to)) for name in names]


async def set_sink(tenant: Tenant, url: str, **fields: object) -> Sink:
    request = SetSinkRequest(namespace=tenant.namespace, url=url, **fields)  # type: ignore[arg-type]
    answer: SetSinkResponse = await tenant.outbox.SetSink(request)
    return answer.sink


async def sent(tenant: Tenant, worker: ScriptedWorker, workflow_id: str, *commands: Command) -> str:
    """A run whose code asked for this. Returns its id."""
    run_id = (await tenant.start(workflow_id)).run_id
    while (task := await worker.workflow_task()).run_id != run_id:
        await worker.command(task)
    assert (await worker.command(task, *commands)).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    return run_id


async def listed(tenant: Tenant, *, dead: bool = False, **fields: object) -> list[OutboxEvent]:
    request = ListOutboxRequest(namespace=tenant.namespace, dead=dead, **fields)  # type: ignore[arg-type]
    return list((await tenant.outbox.ListOutbox(request)).events)


async def dead(tenant: Tenant, count: int) -> list[OutboxEvent]:
    """The dead letters, when there are so many."""

    async def enough() -> bool:
        return len(await listed(tenant, dead=True)) >= count

    await until(enough, f"{count} events are dead")
    return await listed(tenant, dead=True)


async def nothing_waits(tenant: Tenant) -> None:
    async def none() -> bool:
        return not await listed(tenant)

    await until(none, "everything is delivered")


async def tried(tenant: Tenant, times: int = 1) -> OutboxEvent:
    """The first event that was tried so often in vain, when there is one."""
    found: list[OutboxEvent] = []

    async def often() -> bool:
        found[:] = [each for each in await listed(tenant) if each.attempts >= times]
        return bool(found)

    await until(often, f"it was tried {times} times")
    return found[0]


async def move(tenant: Tenant, ms: int) -> None:
    """Let so much time pass."""
    await tenant.cluster.pass_ms(ms)


def types(received: list[Received]) -> list[str]:
    return [each.type for each in received]


# What is sent ----------------------------------------------------------------------------------------------------


async def test_what_the_code_sends_reaches_the_sink_once_and_in_order(tenant: Tenant, server: Server) -> None:
    await set_sink(tenant, server.url)
    worker = await tenant.worker()
    run_id = await sent(tenant, worker, "order/7 ä", *sends("a", "b", "c"), complete())
    assert types(await server.until(3)) == ["a", "b", "c"]
    await nothing_waits(tenant)
    assert len(server.received) == 3
    first = server.taken[0].event
    assert (first.get_id(), first.get_source(), first.get_data()) == (f"{run_id}/1", "/workflows/order", {"name": "a"})
    (recorded,) = [e for e in await tenant.history(run_id) if e.HasField("event_sent")][:1]
    assert first.get_time() == recorded.time.ToDatetime(UTC)
    assert recorded.event_sent.command.event.id == f"{run_id}/1"
    assert server.taken[0].headers["content-type"] == "application/cloudevents+json"
    assert server.taken[0].path == "/events"


async def test_what_an_activity_sends_goes_with_its_result_and_with_what_the_code_makes_of_that(
    tenant: Tenant, server: Server
) -> None:
    await set_sink(tenant, server.url)
    worker = await tenant.worker()
    run_id = (await tenant.start("order")).run_id
    acknowledged = await worker.command(await worker.workflow_task(), schedule("pay:1"))
    task = await worker.activity()
    then = Then(after_event_id=acknowledged.last_event_id, time=acknowledged.last_event_time)
    then.commands.extend([*sends("c"), complete()])
    completion = ActivityCompletion(token=task.token, result=Payload(json="1"), then=then)
    completion.events.extend(SendEvent(event=event(name, id=f"my-{name}", source="/me")) for name in "ab")
    assert (await worker.report(completion)).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    assert types(await server.until(3)) == ["a", "b", "c"]
    assert [each.event.get_id() for each in server.taken] == ["my-a", "my-b", f"{run_id}/3"]
    assert server.taken[0].event.get_source() == "/me"
    assert await tenant.kinds(run_id) == [
        "workflow_started", "activity_scheduled", "activity_completed", "event_sent", "workflow_completed",
    ]  # fmt: skip


async def test_an_attempt_that_fails_sends_nothing(tenant: Tenant, server: Server) -> None:
    await set_sink(tenant, server.url)
    worker = await tenant.worker()
    await sent(tenant, worker, "order", schedule("pay:1"))
    task = await worker.activity()
    completion = ActivityCompletion(token=task.token)
    completion.failure.type = "Declined"
    completion.events.append(SendEvent(event=event("a")))
    refusal = await worker.report(completion)
    assert refusal.result == ACKNOWLEDGEMENT_RESULT_INVALID
    assert refusal.rejection.metadata["field"] == "events"
    assert await listed(tenant) == []
    assert server.received == []


async def test_what_is_no_event_fails_the_task_and_sends_nothing(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run_id = (await tenant.start("order")).run_id
    bad = Command(send_event=SendEvent(event=CloudEvent(type="", spec_version="1.0")))
    refusal = await worker.command(await worker.workflow_task(), *sends("a"), bad)
    assert refusal.result == ACKNOWLEDGEMENT_RESULT_INVALID
    assert refusal.rejection.metadata["field"] == "commands[1].send_event.event.type"
    assert await listed(tenant) == []
    await tenant.terminate(run_id)


async def test_events_outlive_their_run_and_its_deletion(tenant: Tenant, server: Server) -> None:
    worker = await tenant.worker()
    run_id = await sent(tenant, worker, "order", *sends("a", "b"), complete())
    await tenant.workflows.DeleteWorkflow(DeleteWorkflowRequest(workflow=tenant.ref(run_id)))
    assert [each.run_id for each in await listed(tenant)] == [run_id, run_id]
    await set_sink(tenant, server.url)
    assert types(await server.until(2)) == ["a", "b"]


async def test_events_of_the_next_run_come_after_those_of_the_one_before(tenant: Tenant, server: Server) -> None:
    worker = await tenant.worker()
    spec = WorkflowSpec(workflow_type="order", task_queue="queue")
    again = Command(continue_workflow=ContinueWorkflow(spec=spec))
    run_id = await sent(tenant, worker, "order", *sends("a", "b"), again)
    task = await worker.workflow_task()
    assert task.run_id != run_id
    await worker.command(task, *sends("c"), complete())
    await set_sink(tenant, server.url)
    assert types(await server.until(3)) == ["a", "b", "c"]
    ids = [each.event.get_id() for each in server.taken]
    assert ids == [f"{run_id}/1", f"{run_id}/2", f"{task.run_id}/1"]


async def test_each_kind_of_data_arrives_as_it_was_sent(tenant: Tenant, server: Server) -> None:
    await set_sink(tenant, server.url)
    worker = await tenant.worker()
    text = CloudEvent(type="text", spec_version="1.0", text_data="hällo")
    text.attributes["datacontenttype"].ce_string = "text/plain"
    binary = CloudEvent(type="binary", spec_version="1.0", binary_data=b"\x00\xff")
    binary.attributes["datacontenttype"].ce_string = "application/octet-stream"
    binary.attributes["extra"].ce_integer = 7
    binary.attributes["flag"].ce_boolean = True
    binary.attributes["subject"].ce_string = ""
    empty = CloudEvent(type="empty", spec_version="1.0")
    many = CloudEvent(type="json", spec_version="1.0", text_data='["ä", 1.5, null, 12345678901234567890]')
    commands = [Command(send_event=SendEvent(event=each)) for each in (text, binary, empty, many)]
    await sent(tenant, worker, "order", *commands, complete())
    received = await server.until(4)
    assert [each.data for each in received] == [
        "hällo", b"\x00\xff", None, ["ä", 1.5, None, 12345678901234567890],
    ]  # fmt: skip
    attributes = received[1].event.get_attributes()
    assert (attributes["extra"], attributes["flag"], "subject" in attributes) == (7, True, False)


BAD_SINKS = [
    ("name", {"name": "x" * 256}),
    ("name", {"name": "a\x00"}),
    ("url", {"url": ""}),
    ("url", {"url": "ftp://127.0.0.1/"}),
    ("url", {"url": "http://me:secret@127.0.0.1/"}),
    ("url", {"url": "http://hooks.example.com/"}),
    ("url", {"url": "http://169.254.169.254/latest/meta-data/"}),
    ("url", {"url": "http://2130706433/"}),
    ("url", {"url": "http://[::ffff:10.0.0.1]/"}),
    ("secret", {"secret": "hunter2"}),
    ("secret", {"secret": "whsec_c2hvcnQ="}),
    ("unsigned", {"secret": SECRET, "unsigned": True}),
    ("keep_secret", {"keep_secret": seconds(-1)}),
    ("keep_secret", {"keep_secret": seconds(31 * 86_400)}),
    ("identity", {"identity": "x" * 256}),
    ("request_id", {"request_id": "x" * 256}),
    ("namespace", {"namespace": "x" * 256}),
]


@pytest.mark.parametrize(("field", "fields"), BAD_SINKS, ids=range(len(BAD_SINKS)))
async def test_what_cannot_be_a_sink_is_refused(tenant: Tenant, field: str, fields: dict[str, object]) -> None:
    said = {"namespace": tenant.namespace, "url": "http://127.0.0.1:1/", **fields}
    refusal = await refused(tenant.outbox.SetSink(SetSinkRequest(**said)))  # type: ignore[arg-type]
    assert (refusal.code, refusal.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert "hunter2" not in str(refusal)
    assert "me:secret" not in str(refusal)
    assert not (await tenant.outbox.ListSinks(ListSinksRequest(namespace=tenant.namespace))).sinks


async def test_where_the_service_may_not_send_is_a_reason_of_its_own(tenant: Tenant) -> None:
    request = SetSinkRequest(namespace=tenant.namespace, url="https://hooks.example.com/")
    assert (await refused(tenant.outbox.SetSink(request))).reason == "SINK_NOT_ALLOWED"


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("which", RetryDeadLettersRequest()),
        ("position", RetryDeadLettersRequest(position=0)),
        ("position", DropDeadLettersRequest(position=-7)),
        ("after_position", DropDeadLettersRequest(sink="default", after_position=-1)),
        ("sink", DropDeadLettersRequest(sink="")),
        ("sink", RetryDeadLettersRequest(sink="x" * 256)),
        ("identity", RetryDeadLettersRequest(position=1, identity="x" * 256)),
        ("request_id", DropDeadLettersRequest(position=1, request_id="a\x00")),
        ("request_id", DeleteSinkRequest(request_id="x" * 256)),
        ("page_size", ListOutboxRequest(page_size=-1)),
        ("page_token", ListOutboxRequest(page_token="nonsense")),
        ("sink", ListOutboxRequest(sink="x" * 256)),
        ("workflow_id", ListOutboxRequest(workflow_id="a\x00")),
        ("name", DeleteSinkRequest(name="a\x00")),
    ],
    ids=range(14),
)
async def test_what_cannot_be_asked_of_the_outbox_is_refused(tenant: Tenant, field: str, request_: Any) -> None:
    method = type(request_).__name__.removesuffix("Request")
    refusal = await refused(getattr(tenant.outbox, method)(request_))
    assert (refusal.code, refusal.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)


# Signatures ------------------------------------------------------------------------------------------------------


async def test_what_is_sent_is_signed_with_the_secret_and_for_a_time_with_the_one_before(
    tenant: Tenant, server: Server
) -> None:
    worker = await tenant.worker(workflow_slots=9)
    assert not (await set_sink(tenant, server.url)).signed
    await sent(tenant, worker, "order-1", *sends("a"), complete())
    assert "webhook-signature" not in (await server.until(1))[0].headers
    shown = await set_sink(tenant, server.url, secret=SECRET, keep_secret=seconds(60))
    assert shown.signed
    assert not shown.HasField("secret_kept_until")
    assert SECRET not in str(shown)
    await sent(tenant, worker, "order-2", *sends("b"), complete())
    signed = (await server.until(2))[1]
    assert signed.is_signed_with(SECRET)
    assert (
        abs(int(signed.headers["webhook-timestamp"]) * 1000 - tenant.cluster.replicas[0].node.clock.now_ms()) < 60_000
    )
    assert signed.headers["webhook-id"].startswith("msg_")
    for _ in range(2):  # the second time nothing changes
        shown = await set_sink(tenant, server.url, secret=OTHER_SECRET, keep_secret=seconds(60))
        assert shown.HasField("secret_kept_until")
    await sent(tenant, worker, "order-3", *sends("c"), complete())
    both = (await server.until(3))[2]
    assert both.is_signed_with(SECRET)
    assert both.is_signed_with(OTHER_SECRET)
    await move(tenant, 61_000)
    await sent(tenant, worker, "order-4", *sends("d"), complete())
    new = (await server.until(4))[3]
    assert not new.is_signed_with(SECRET)
    assert new.is_signed_with(OTHER_SECRET)
    assert not (await set_sink(tenant, server.url, unsigned=True)).signed


async def test_what_is_sent_again_has_the_id_that_it_had(tenant: Tenant, server: Server) -> None:
    server.script = lambda _: 500 if len(server.received) == 1 else 204
    await set_sink(tenant, server.url, secret=SECRET)
    worker = await tenant.worker()
    await sent(tenant, worker, "order", *sends("a", "b"), complete())
    await server.until(2)
    first, again, second = (each.headers["webhook-id"] for each in server.received)
    assert first == again != second


# What a sink does ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 503, 429, 408, RESET])
async def test_what_may_pass_is_tried_again_and_delays_only_its_own_workflow(
    tenant: Tenant, server: Server, status: int
) -> None:
    bad = True

    def script(received: Received) -> int:
        return status if bad and received.data == {"name": "bad"} else 204

    server.script = script
    await set_sink(tenant, server.url)
    worker = await tenant.worker(workflow_slots=9)
    await sent(tenant, worker, "bad", *sends("bad", "after"), complete())
    waits = await tried(tenant)
    assert (waits.event.type, waits.sink) == ("bad", "default")
    assert ("answered" if status > 0 else "Disconnected") in waits.last_error
    assert waits.HasField("next_attempt_time")
    for number in range(5):
        await sent(tenant, worker, f"good-{number}", *sends("good"), complete())
    assert types(await server.until(5)) == ["good"] * 5

    async def only_its_own_wait() -> bool:
        return [each.event.type for each in await listed(tenant)] == ["bad", "after"]

    await until(only_its_own_wait, "the others are delivered")
    bad = False
    await move(tenant, 300_000)
    assert types(await server.until(7))[5:] == ["bad", "after"]
    await nothing_waits(tenant)


@pytest.mark.parametrize("status", [400, 404, 410, 422, 301, 307])
async def test_what_will_never_be_taken_is_dead_at_once_and_lets_the_next_one_go(
    tenant: Tenant, server: Server, status: int
) -> None:
    elsewhere = {"location": "http://127.0.0.1:1/"} if status < 400 else {}
    server.script = lambda received: Reply(status, elsewhere, "no\x1b such") if received.type == "bad" else 204
    await set_sink(tenant, server.url)
    worker = await tenant.worker()
    await sent(tenant, worker, "order", *sends("a", "bad", "b"), complete())
    assert types(await server.until(2)) == ["a", "b"]
    (letter,) = await dead(tenant, 1)
    assert (letter.event.type, letter.workflow_id, letter.attempts) == ("bad", "order", 1)
    assert letter.last_error.startswith(f"answered {status}")
    assert "\x1b" not in letter.last_error
    assert ("redirects are not followed" in letter.last_error) == (status < 400)
    assert letter.HasField("dead_time")
    assert letter.HasField("forget_time")
    assert types(server.received) == ["a", "bad", "b"]


@pytest.mark.parametrize("as_date", [False, True])
async def test_a_sink_says_when_to_try_again(tenant: Tenant, server: Server, as_date: bool) -> None:
    def script(_: Received) -> Reply | int:
        if len(server.received) > 1:
            return 204
        now_ms = tenant.cluster.replicas[0].node.clock.now_ms()
        moment = datetime.fromtimestamp(now_ms / 1000, UTC) + timedelta(seconds=600)
        return Reply(429, {"retry-after": format_datetime(moment, usegmt=True) if as_date else "600"})

    server.script = script
    await set_sink(tenant, server.url)
    worker = await tenant.worker()
    await sent(tenant, worker, "order", *sends("a"), complete())
    waits = await tried(tenant)
    asked = waits.next_attempt_time.ToMilliseconds() - tenant.cluster.replicas[0].node.clock.now_ms()
    assert 590_000 <= asked <= 601_000
    await move(tenant, 580_000)
    assert len(server.received) == 1
    await move(tenant, 30_000)
    await server.until(1)


async def test_no_sink_puts_an_event_off_for_ever(tenant: Tenant, server: Server) -> None:
    server.script = lambda _: Reply(503, {"retry-after": "99999999"})
    await set_sink(tenant, server.url)
    worker = await tenant.worker()
    await sent(tenant, worker, "order", *sends("a"), complete())
    waits = await tried(tenant)
    # Replicas tell the time by some milliseconds differently.
    assert waits.next_attempt_time.ToMilliseconds() - tenant.cluster.replicas[0].node.clock.now_ms() <= 3_601_000


async def test_a_sink_that_is_away_is_left_alone_and_gets_everything_when_it_is_back(
    tenant: Tenant, server: Server
) -> None:
    await set_sink(tenant, server.url)
    await server.close()
    worker = await tenant.worker(workflow_slots=50)
    for number in range(40):
        await sent(tenant, worker, f"order-{number}", *sends(f"{number}-1", f"{number}-2"), complete())
    first = await tried(tenant)
    assert "Connect" in first.last_error

    async def tries() -> int:
        return sum(each.attempts for each in await listed(tenant))

    before = await tries()
    # The lanes were full when it went, and one event after each pause tries since.
    assert before <= MOST * len(tenant.cluster.replicas)
    await server.open()
    await move(tenant, 30_000)
    received = types(await server.until(80))
    for number in range(40):
        assert [each for each in received if each.startswith(f"{number}-")] == [f"{number}-1", f"{number}-2"]
    await nothing_waits(tenant)


async def test_a_slow_sink_holds_up_nothing_but_its_own_events(tenant: Tenant, server: Server) -> None:
    let_go = asyncio.Event()

    async def slow(_: Received) -> int:
        await let_go.wait()
        return 204

    async with sink(slow) as slowly:
        await set_sink(tenant, server.url)
        await set_sink(tenant, slowly.url, name="slow")
        worker = await tenant.worker(workflow_slots=50)
        for number in range(40):
            await sent(tenant, worker, f"order-{number}", *sends("slow", to="slow"), *sends("quick"), complete())
        assert types(await server.until(40)) == ["quick"] * 40
        assert 0 < len(slowly.received) <= MOST * len(tenant.cluster.replicas)
        let_go.set()
        await slowly.until(40)
        assert slowly.most <= MOST * len(tenant.cluster.replicas)


async def test_one_slow_answer_holds_up_no_other_workflow_of_the_sink(tenant: Tenant, server: Server) -> None:
    let_go = asyncio.Event()

    async def script(received: Received) -> int:
        if received.type == "slow":
            await let_go.wait()
        return 204

    server.script = script
    await set_sink(tenant, server.url)
    worker = await tenant.worker(workflow_slots=50)
    await sent(tenant, worker, "slow", *sends("slow", "behind"), complete())
    for number in range(40):
        await sent(tenant, worker, f"order-{number}", *sends("quick"), complete())
    assert types(await server.until(40)) == ["quick"] * 40
    let_go.set()
    assert types(await server.until(42))[40:] == ["slow", "behind"]


# Sinks and dead letters ------------------------------------------------------------------------------------------


async def test_what_has_no_sink_waits_for_it_visibly_and_is_dead_after_a_day(tenant: Tenant, server: Server) -> None:
    worker = await tenant.worker(workflow_slots=9)
    await sent(tenant, worker, "order-1", *sends("a", "b", to="later"), complete())
    await sent(tenant, worker, "order-2", *sends("c", to="later"), complete())
    waits = await tried(tenant)
    assert waits.last_error == "there is no sink 'later' in the namespace; `romancy outbox set-sink` makes it"
    (shown,) = (await tenant.outbox.ListSinks(ListSinksRequest(namespace=tenant.namespace))).sinks
    assert (shown.name, shown.url, shown.waiting, shown.dead) == ("later", "", 3, 0)
    assert shown.HasField("oldest_time")
    await move(tenant, DAY_MS)
    letters = await dead(tenant, 3)
    assert sorted(each.event.type for each in letters) == ["a", "b", "c"]
    assert {each.last_error.endswith(", and so for too long") for each in letters} == {True}
    await set_sink(tenant, server.url, name="later")
    request = RetryDeadLettersRequest(namespace=tenant.namespace, sink="later")
    assert (await tenant.outbox.RetryDeadLetters(request)).count == 3
    assert sorted(types(await server.until(3))) == ["a", "b", "c"]
    received = types(server.taken)
    assert received.index("a") < received.index("b")
    await nothing_waits(tenant)
    assert await listed(tenant, dead=True) == []


async def test_what_fails_for_a_day_is_dead(tenant: Tenant, server: Server) -> None:
    server.script = lambda received: 500 if received.type == "bad" else 204
    await set_sink(tenant, server.url)
    worker = await tenant.worker()
    await sent(tenant, worker, "order", *sends("bad", "good"), complete())
    await tried(tenant)
    await move(tenant, DAY_MS)
    (letter,) = await dead(tenant, 1)
    assert letter.event.type == "bad"
    assert letter.attempts >= 2
    assert types(await server.until(1)) == ["good"]


async def test_a_dead_letter_is_sent_again_or_dropped_by_its_position(tenant: Tenant, server: Server) -> None:
    server.script = lambda _: 400
    await set_sink(tenant, server.url)
    worker = await tenant.worker(workflow_slots=9)
    await sent(tenant, worker, "order", *sends("a", "b", "c"), complete())
    first, second, third = await dead(tenant, 3)
    server.script = lambda _: 204
    retry = RetryDeadLettersRequest(namespace=tenant.namespace, position=second.position)
    assert (await tenant.outbox.RetryDeadLetters(retry)).count == 1
    assert types(await server.until(1)) == ["b"]
    refusal = await refused(tenant.outbox.RetryDeadLetters(retry))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "DEAD_LETTER_NOT_FOUND")
    drop = DropDeadLettersRequest(namespace=tenant.namespace, position=first.position)
    assert (await tenant.outbox.DropDeadLetters(drop)).count == 1
    refusal = await refused(tenant.outbox.DropDeadLetters(drop))
    assert refusal.reason == "DEAD_LETTER_NOT_FOUND"
    other = DropDeadLettersRequest(namespace="another", position=third.position)
    assert (await refused(tenant.outbox.DropDeadLetters(other))).reason == "DEAD_LETTER_NOT_FOUND"
    assert [each.position for each in await listed(tenant, dead=True)] == [third.position]
    every = DropDeadLettersRequest(namespace=tenant.namespace, sink="default")
    assert (await tenant.outbox.DropDeadLetters(every)).count == 1
    assert (await tenant.outbox.DropDeadLetters(every)).count == 0


async def test_what_is_asked_about_dead_letters_is_done_once_for_each_request_id(
    tenant: Tenant, server: Server
) -> None:
    server.script = lambda _: 400
    await set_sink(tenant, server.url)
    worker = await tenant.worker(workflow_slots=9)
    await sent(tenant, worker, "order", *sends("a", "b", "c", "d"), complete())
    first, second, *_ = await dead(tenant, 4)
    named = {"namespace": tenant.namespace, "request_id": "one"}
    retry = RetryDeadLettersRequest(**named, position=first.position)
    assert [(await tenant.outbox.RetryDeadLetters(retry)).count for _ in range(2)] == [1, 1]
    other = RetryDeadLettersRequest(**named, position=second.position)
    assert (await refused(tenant.outbox.RetryDeadLetters(other))).reason == "REQUEST_ID_REUSED"
    drop = DropDeadLettersRequest(namespace=tenant.namespace, request_id="two", position=second.position)
    assert [(await tenant.outbox.DropDeadLetters(drop)).count for _ in range(2)] == [1, 1]
    await dead(tenant, 3)
    every = RetryDeadLettersRequest(namespace=tenant.namespace, request_id="three", sink="default")
    assert (await tenant.outbox.RetryDeadLetters(every)).count == 3
    await dead(tenant, 3)
    assert (await tenant.outbox.RetryDeadLetters(every)).count == 3, "what it answered"
    assert len(await listed(tenant, dead=True)) == 3, "and did not do again"
    drop_all = DropDeadLettersRequest(namespace=tenant.namespace, request_id="four", sink="default")
    assert [(await tenant.outbox.DropDeadLetters(drop_all)).count for _ in range(2)] == [3, 3]


async def test_many_dead_letters_of_a_sink_are_sent_again_or_dropped_page_by_page(
    tenant: Tenant, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("romancy_service.rpc.outbox_service.AT_A_TIME", 2)
    server.script = lambda _: 400
    await set_sink(tenant, server.url)
    worker = await tenant.worker(workflow_slots=9)
    await sent(tenant, worker, "order", *sends("a", "b", "c", "d", "e"), complete())
    positions = [each.position for each in await dead(tenant, 5)]
    request = RetryDeadLettersRequest(namespace=tenant.namespace, sink="default")
    pages = []
    while True:
        answer = await tenant.outbox.RetryDeadLetters(request)
        pages.append(answer.count)
        if not answer.next_after_position:
            break
        request.after_position = answer.next_after_position
    # Those that die again meanwhile are not sent once more: it comes to an end.
    assert pages == [2, 2, 1]
    await dead(tenant, 5)
    last = DropDeadLettersRequest(namespace=tenant.namespace, sink="default", after_position=positions[2])
    dropped = await tenant.outbox.DropDeadLetters(last)
    assert (dropped.count, dropped.next_after_position) == (2, positions[4])
    assert [each.position for each in await listed(tenant, dead=True)] == positions[:3]


async def test_what_is_asked_about_sinks_is_done_once_for_each_request_id(tenant: Tenant) -> None:
    before = await set_sink(tenant, "http://127.0.0.1:1/", request_id="one")
    assert (await set_sink(tenant, "http://127.0.0.1:2/", request_id="two")).url == "http://127.0.0.1:2/"
    assert await set_sink(tenant, "http://127.0.0.1:1/", request_id="one") == before
    (sink_now,) = (await tenant.outbox.ListSinks(ListSinksRequest(namespace=tenant.namespace))).sinks
    assert sink_now.url == "http://127.0.0.1:2/", "a repeated request undoes nothing"
    refusal = await refused(set_sink(tenant, "http://127.0.0.1:1/", name="other", request_id="one"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REQUEST_ID_REUSED")
    delete = DeleteSinkRequest(namespace=tenant.namespace, request_id="three")
    for _ in range(2):
        await tenant.outbox.DeleteSink(delete)
    await set_sink(tenant, "http://127.0.0.1:3/")
    await tenant.outbox.DeleteSink(delete)
    (sink_now,) = (await tenant.outbox.ListSinks(ListSinksRequest(namespace=tenant.namespace))).sinks
    assert sink_now.url == "http://127.0.0.1:3/"


async def test_a_list_has_pages_and_is_of_a_sink_or_a_workflow(tenant: Tenant) -> None:
    worker = await tenant.worker(workflow_slots=9)
    await sent(tenant, worker, "order-1", *sends("a", "b", to="one"), *sends("c", to="two"), complete())
    await sent(tenant, worker, "order-2", *sends("d", to="two"), complete())
    assert [each.event.type for each in await listed(tenant)] == ["a", "b", "c", "d"]
    assert [each.event.type for each in await listed(tenant, sink="two")] == ["c", "d"]
    assert [each.event.type for each in await listed(tenant, workflow_id="order-1")] == ["a", "b", "c"]
    assert [each.event.type for each in await listed(tenant, sink="two", workflow_id="order-2")] == ["d"]
    request = ListOutboxRequest(namespace=tenant.namespace, page_size=3)
    page = await tenant.outbox.ListOutbox(request)
    assert [each.event.type for each in page.events] == ["a", "b", "c"]
    request.page_token = page.next_page_token
    page = await tenant.outbox.ListOutbox(request)
    assert ([each.event.type for each in page.events], page.next_page_token) == (["d"], "")
    request.dead = True
    assert (await refused(tenant.outbox.ListOutbox(request))).reason == "INVALID_PAGE_TOKEN"


async def test_a_page_fits_into_a_message(tenant: Tenant) -> None:
    worker = await tenant.worker()
    large = [Command(send_event=SendEvent(event=event("large", "x" * 900_000), sink="nowhere")) for _ in range(3)]
    await sent(tenant, worker, "order", *large, complete())
    request = ListOutboxRequest(namespace=tenant.namespace)
    pages = []
    while True:
        page = await tenant.outbox.ListOutbox(request)
        pages.append(len(page.events))
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert pages == [2, 1]


async def test_a_sink_that_was_set_is_listed_without_its_secret_and_can_be_deleted(
    tenant: Tenant, server: Server
) -> None:
    await set_sink(tenant, server.url, name="b", secret=SECRET)
    await set_sink(tenant, server.url, name="a")
    answer = await tenant.outbox.ListSinks(ListSinksRequest(namespace=tenant.namespace))
    assert [(each.name, each.url, each.signed) for each in answer.sinks] == [
        ("a", server.url, False), ("b", server.url, True),
    ]  # fmt: skip
    assert SECRET not in str(answer)
    await tenant.outbox.DeleteSink(DeleteSinkRequest(namespace=tenant.namespace, name="b"))
    refusal = await refused(tenant.outbox.DeleteSink(DeleteSinkRequest(namespace=tenant.namespace, name="b")))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "SINK_NOT_FOUND")


async def test_a_namespace_has_so_many_sinks_and_no_more(tenant: Tenant) -> None:
    for number in range(100):
        await set_sink(tenant, "http://127.0.0.1:1/", name=str(number))
    await set_sink(tenant, "http://127.0.0.1:2/", name="99")
    refusal = await refused(set_sink(tenant, "http://127.0.0.1:1/", name="one more"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_SINKS")


async def test_a_sink_that_moved_gets_what_waits(tenant: Tenant, server: Server) -> None:
    await set_sink(tenant, "http://127.0.0.1:1/")
    worker = await tenant.worker()
    await sent(tenant, worker, "order", *sends("a"), complete())
    await tried(tenant)
    await set_sink(tenant, server.url)
    await server.until(1, patience_s=10)


async def test_dead_letters_go_when_their_retention_is_over(tenant: Tenant, server: Server) -> None:
    server.script = lambda _: 400
    await set_sink(tenant, server.url)
    worker = await tenant.worker()
    await sent(tenant, worker, "order", *sends("a"), complete())
    (letter,) = await dead(tenant, 1)
    kept_ms = letter.forget_time.ToMilliseconds() - letter.dead_time.ToMilliseconds()
    assert kept_ms == tenant.cluster.replicas[0].node.limits.retention_ms
    store, now_ms = tenant.cluster.store, letter.forget_time.ToMilliseconds()
    await store.forget_dead(now_ms, 1_000)
    assert await listed(tenant, dead=True) == [letter]
    assert await store.forget_dead(now_ms + 1, 1_000) >= 1
    assert await listed(tenant, dead=True) == []
