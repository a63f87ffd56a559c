"""Events that code sends to the world outside: from workflows once, from activities with their result alone."""

from __future__ import annotations

import asyncio
import io
import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from structlog.testing import capture_logs

from romancy.v1.outbox_service_pb2 import RetryDeadLettersRequest, RetryDeadLettersResponse
from romancy.v1.worker_service_pb2 import ActivityCompletion, ActivityHeartbeat, ActivityTask

from romancy import (
    Client,
    ConversionError,
    DeadLetterNotFound,
    Divergence,
    Event,
    OutboxEvent,
    OutsideActivity,
    RequestRefused,
    SinkNotFound,
    Worker,
    WorkflowContext,
    activity,
    send_event,
    testing,
    workflow,
)
from romancy._activities import Activities
from romancy.activity import ActivityContext, current_activity
from romancy.cli import main
from romancy.outbox import new_secret
from romancy.sqlalchemy import create_table, transactional
from tests.service.cluster import until
from tests.service.sink import sink
from tests.worker_sdk.bank import an_info
from tests.worker_sdk.driver import Driver


@activity
async def pay(number: int) -> int:
    send_event(Event("paid", number))
    if number < 0:
        raise ValueError("not so little")
    return number


@activity
def ship(number: int) -> int:
    send_event(Event("shipped", {"number": number}, source="/me", id=f"s-{number}"), sink="port")
    return number


@workflow
async def order(ctx: WorkflowContext, number: int) -> int:
    ctx.send_event(Event("placed", number, subject=f"order/{number}"))
    paid = await pay(number)
    ctx.send_event(Event("done", {"paid": paid}), sink="books")
    return paid


def test_what_the_code_sends_is_a_command_that_replay_does_not_repeat() -> None:
    run = Driver(order, 7)
    assert run.start() == ["send_event", "schedule_activity pay:1"]
    placed = run.commands[0].send_event
    assert (placed.sink, placed.event.type, placed.event.text_data) == ("default", "placed", "7")
    assert (placed.event.id, placed.event.source) == ("", ""), "these the service gives"
    assert placed.event.attributes["subject"].ce_string == "order/7"
    assert run.complete("pay:1", 7) == ["send_event", "complete_workflow"]
    assert run.commands[0].send_event.sink == "books"


def test_code_that_sends_something_else_than_it_did_is_told_so() -> None:
    @workflow(name="order")
    async def changed(ctx: WorkflowContext, number: int) -> int:
        ctx.send_event(Event("placed", number), sink="elsewhere")
        return await pay(number)

    run = Driver(order, 7)
    run.start()
    run.definition = changed
    with pytest.raises(
        Divergence, match="recorded SendEvent placed to default, the code now asks for SendEvent placed "
    ):
        run.new_instance().activate(run.history())


@pytest.mark.parametrize(
    ("event", "sink_name", "error"),
    [
        ("paid", "default", TypeError),
        (Event("paid", None), None, TypeError),
        (Event("paid", object()), "default", ConversionError),
        (Event("paid", None, attributes={"x": 1.5}), "default", TypeError),
        (Event("paid", None, attributes={"x": 2**31}), "default", ValueError),
        (Event("paid", None, attributes={"x": "\ud800"}), "default", ValueError),
        (Event("paid", {"amount": math.nan}), "default", ConversionError),
    ],
)
def test_what_is_no_event_is_refused_where_it_is_sent(event: Any, sink_name: Any, error: type[Exception]) -> None:
    caught: list[Exception] = []

    @workflow
    async def bad(ctx: WorkflowContext) -> None:
        try:
            ctx.send_event(event, sink=sink_name)
        except Exception as raised:
            caught.append(raised)

    assert Driver(bad).start() == ["complete_workflow"]
    assert {type(each) for each in caught} == {error}


class Outlet:
    """Keeps how attempts ended."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.completion = ActivityCompletion()

    def completed(self, task: ActivityTask, completion: ActivityCompletion) -> None:
        self.completion = completion
        self.ended.set()

    def heartbeat(self, heartbeat: ActivityHeartbeat) -> None:
        pass

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        pass


def completion_of(definition: Any, number: int) -> ActivityCompletion:
    outlet = Outlet()
    activities = Activities({definition.name: definition}, 1, outlet)
    task = ActivityTask(token="t", activity_type=definition.name, activity_id=f"{definition.name}:1", attempt=1)
    task.arguments.add(json=str(number))
    activities.start([task])
    assert outlet.ended.wait(10)
    activities.stop()
    return outlet.completion


def test_what_an_activity_sends_goes_with_its_result() -> None:
    (sent,) = completion_of(pay, 1).events
    assert (sent.event.type, sent.sink) == ("paid", "default")
    (sent,) = completion_of(ship, 1).events
    assert (sent.event.id, sent.event.source, sent.sink) == ("s-1", "/me", "port")


def test_an_attempt_that_fails_sends_nothing() -> None:
    failed = completion_of(pay, -1)
    assert failed.HasField("failure")
    assert not failed.events


def test_outside_of_an_activity_nothing_can_be_sent() -> None:
    with pytest.raises(OutsideActivity):
        send_event(Event("paid", 1))


# With effects ----------------------------------------------------------------------------------------------------


def attempt(number: int) -> ActivityContext:
    context = ActivityContext(an_info(number), lambda _: None)
    current_activity.set(context)
    return context


def test_an_attempt_that_finds_its_effect_done_sends_what_the_one_before_had_sent(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    with engine.begin() as connection:
        create_table(connection)
    calls = []

    @transactional(sessionmaker(engine))
    def book(session: Session, number: int) -> int:
        calls.append(number)
        send_event(Event("booked", number))
        return number

    first = attempt(1)
    assert book(7) == 7
    second = attempt(2)
    assert book(7) == 7
    engine.dispose()
    assert calls == [7]
    assert [each.event.text_data for each in second.sent] == ["7"]
    assert first.sent == second.sent


async def test_the_same_holds_for_an_async_one(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}")
    async with engine.begin() as connection:
        await connection.run_sync(create_table)

    @transactional(async_sessionmaker(engine))
    async def book(session: AsyncSession, number: int) -> int:
        send_event(Event("booked", number))
        return number

    first = attempt(1)
    await book(7)
    second = attempt(2)
    await book(7)
    await engine.dispose()
    assert first.sent == second.sent
    assert len(second.sent) == 1


# Through the service ---------------------------------------------------------------------------------------------


async def test_events_reach_their_sinks_and_operators_see_to_the_rest() -> None:
    async with sink() as server, testing.service() as service:
        outbox = service.client.outbox
        secret = new_secret()
        server.script = lambda received: 400 if received.type == "paid" else 204
        shown = await outbox.set_sink(server.url, secret=secret, request_id="set")
        assert await outbox.set_sink("http://127.0.0.1:1/", request_id="set") == shown
        assert (shown.name, shown.url, shown.signed, shown.waiting, shown.dead) == ("default", server.url, True, 0, 0)
        async with Worker(service.address, workflows=[order], activities=[pay]):
            handle = await service.client.start_workflow(order, 7, id="order-7")
            assert await handle.result() == 7
        (placed,) = await server.until(1)
        assert placed.is_signed_with(secret)
        (waiting,) = [each async for each in outbox.list_events(sink="books")]
        assert (waiting.workflow_id, waiting.event.type, waiting.event.data) == ("order-7", "done", {"paid": 7})
        assert waiting.event.id == f"{waiting.run_id}/3"

        async def is_dead() -> list[OutboxEvent]:
            return [each async for each in outbox.list_events(dead=True)]

        await until(is_dead, "the refused event is dead")
        letters = await is_dead()
        assert letters[0].last_error == "answered 400"
        assert {each.name: each.dead for each in await outbox.list_sinks()} == {"books": 0, "default": 1}
        server.script = lambda _: 204
        assert [await outbox.retry(letters[0].position, request_id="retry") for _ in range(2)] == [1, 1]
        await server.until(2)
        with pytest.raises(DeadLetterNotFound):
            await outbox.drop(letters[0].position)
        with pytest.raises(SinkNotFound):
            await outbox.delete_sink("books")
        with pytest.raises(RequestRefused) as refused:
            await outbox.set_sink("https://hooks.example.com/")
        assert refused.value.reason == "SINK_NOT_ALLOWED"
        with pytest.raises(ValueError, match="position"):
            await outbox.retry()
        for _ in range(2):
            await outbox.delete_sink(request_id="delete")


@pytest.fixture
def quiet() -> Iterator[None]:
    """What a service logs in this process is not taken for what a command prints."""
    with capture_logs():
        yield


@pytest.mark.usefixtures("quiet")
async def test_however_many_dead_letters_a_sink_has_they_are_sent_again_by_calls_that_each_end_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Client("127.0.0.1:1")
    pages = [(1_000, 1_500), (1_000, 2_700), (40, 0)] * 2
    asked = []

    async def call(_: object, request: RetryDeadLettersRequest) -> RetryDeadLettersResponse:
        asked.append((request.request_id, request.sink, request.after_position))
        count, after = pages.pop(0)
        return RetryDeadLettersResponse(count=count, next_after_position=after)

    monkeypatch.setattr(client.calls, "call", call)
    assert [await client.outbox.retry(sink="books", request_id="again") for _ in range(2)] == [2_040, 2_040]
    # The same command asks the same again, each page by an id of its own.
    assert asked[:3] == asked[3:]
    assert asked[:3] == [("again", "books", 0), ("again/1500", "books", 1_500), ("again/2700", "books", 2_700)]


async def test_the_command_looks_after_the_outbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        out = io.StringIO()
        # What the service logs is none of what the command prints: it runs in the same process here.
        with capture_logs(), redirect_stdout(out), pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert isinstance(ended.value.code, int)
        return ended.value.code, out.getvalue()

    async def romancy(*arguments: str) -> str:
        code, out = await asyncio.to_thread(run, *arguments)
        assert code == 0, arguments
        return out

    async with sink(lambda _: 400) as server, testing.service() as service:
        monkeypatch.setenv("ROMANCY_ADDRESS", service.address)
        async with Worker(service.address, workflows=[order], activities=[pay]):
            await service.client.execute_workflow(order, 7, id="order-7")
        assert "order-7" in await romancy("outbox", "list", "--sink", "books")
        told = await romancy("outbox", "set-sink", server.url, "--new-secret")
        assert told.startswith(
            f"Events for default go to {server.url}, signed.\nThe secret, which is not shown again: whsec_"
        )
        shown = json.loads(await romancy("outbox", "set-sink", server.url, "--new-secret", "--json"))
        assert shown["secret"].startswith("whsec_")
        assert shown["secret_kept_until"] != "-"
        (tmp_path / "secret").write_text(new_secret() + "\n")
        await romancy("outbox", "set-sink", server.url, "--secret-file", str(tmp_path / "secret"), "--keep-days", "0")

        async def both_are_dead() -> bool:
            return len((await romancy("outbox", "dead", "--json")).splitlines()) == 2

        await until(both_are_dead, "both events are dead")
        letters = (await romancy("outbox", "dead", "--json")).splitlines()
        first = json.loads(letters[0])
        assert (first["event"]["type"], first["event"]["data"], first["last_error"]) == ("placed", 7, "answered 400")
        assert "answered 400" in await romancy("outbox", "dead", "--workflow-id", "order-7")
        sinks = [json.loads(line) for line in (await romancy("outbox", "sinks", "--json")).splitlines()]
        assert [(each["name"], each["waiting"], each["dead"]) for each in sinks] == [("books", 1, 0), ("default", 0, 2)]
        assert "whsec_" not in await romancy("outbox", "sinks")
        for _ in range(2):
            dropped = await romancy("outbox", "drop", str(first["position"]), "--request-id", "drop")
            assert dropped == "1 dead letter dropped.\n"
        both = await asyncio.to_thread(run, "outbox", "set-sink", server.url, "--new-secret", "--request-id", "set")
        assert both[0] == 2
        assert (await asyncio.to_thread(run, "outbox", "drop", str(first["position"])))[0] == 3
        assert await romancy("outbox", "retry", "--sink", "default") == "1 dead letter sent again.\n"
        assert (await asyncio.to_thread(run, "outbox", "retry"))[0] == 2
        assert (await asyncio.to_thread(run, "outbox", "set-sink", server.url, "--new-secret", "--unsigned"))[0] == 2
        assert (await asyncio.to_thread(run, "outbox", "set-sink", "ftp://x/"))[0] == 5
        assert await romancy("outbox", "delete-sink", "default") == "The sink default is deleted.\n"


def test_an_event_that_was_sent_is_a_command_of_the_history() -> None:
    run = Driver(order, 7)
    run.start()
    kinds = [event.WhichOneof("attributes") for event in run.history()]
    assert kinds == ["workflow_started", "event_sent", "activity_scheduled"]
