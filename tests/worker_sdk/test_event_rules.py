"""Event rules by the SDK, against the real service in this process."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.payload_pb2 import Payload

from romancy import (
    Client,
    ConversionError,
    Event,
    EventRuleNotFound,
    RequestRefused,
    Worker,
    WorkflowContext,
    testing,
    workflow,
)
from romancy.converter import codec


@dataclass
class Payment:
    order: int


@workflow
async def on_payment(ctx: WorkflowContext, paid: Event[Payment], factor: int = 1) -> int:
    assert isinstance(paid.data, Payment)
    await ctx.sleep(0.01)
    return paid.data.order * factor


@workflow
async def on_anything(ctx: WorkflowContext, event: Event[Any]) -> list[Any]:
    return [
        event.type,
        event.data,
        event.subject,
        event.attributes["flag"],
        event.time == datetime(2026, 1, 31, tzinfo=UTC),
    ]


@workflow
async def patient(ctx: WorkflowContext, paid: Event[Payment]) -> list[Any]:
    released = await ctx.wait_event("released")
    return [paid.data.order, paid.subject, released.data]


@workflow
class Case:
    @workflow.run
    async def run(self, ctx: WorkflowContext, event: Event[Payment]) -> int:
        return event.data.order


@workflow
async def on_data(ctx: WorkflowContext, payment: Payment) -> None: ...


@workflow
async def on_nothing(ctx: WorkflowContext) -> None: ...


async def result(client: Client, workflow_id: str) -> Any:
    async with asyncio.timeout(30):
        while True:
            if workflow_id in [info.workflow_id async for info in client.list_workflows()]:
                return await client.get_handle(workflow_id).result()
            await asyncio.sleep(0.02)


async def test_workflows_get_the_event_with_its_data_as_they_annotate_it() -> None:
    workflows: list[Any] = [on_payment, on_anything, Case]
    async with testing.service() as service, Worker(service.address, workflows=workflows):
        client = service.client
        assert await client.set_event_rule("typed", "paid", on_payment, 2, where={"data.order": 7})
        assert await client.set_event_rule("any", "paid", on_anything, priority=1)
        assert await client.set_event_rule("class", "paid", Case.run)
        assert await client.set_event_rule("named", "paid", "on_payment")
        paid = Event(
            "paid", Payment(7), source="/bank", id="1", subject="Ann", attributes={"flag": True},
            time=datetime(2026, 1, 31, tzinfo=UTC),
        )  # fmt: skip
        assert await client.publish_event(paid)
        assert await result(client, "typed#/bank#1") == 14
        assert await result(client, "any#/bank#1") == ["paid", {"order": 7}, "Ann", True, True]
        assert await result(client, "class#/bank#1") == 7
        assert await result(client, "named#/bank#1") == 7


async def test_a_worker_that_takes_over_gets_the_same_event() -> None:
    async with testing.service() as service:
        client = service.client
        await client.set_event_rule("patient", "paid", patient)
        async with Worker(service.address, workflows=[patient]):
            await client.publish_event(Event("paid", Payment(7), source="/bank", id="1", subject="Ann"))
            async with asyncio.timeout(30):
                while True:
                    shown = [info.workflow_id async for info in client.list_workflows()]
                    waits = (await client.get_handle(shown[0]).describe()).waits if shown else []
                    if any("released" in wait.sentence for wait in waits):
                        break
                    await asyncio.sleep(0.02)
        async with Worker(service.address, workflows=[patient]):
            await client.publish_event(Event("released", "now"))
            assert await client.get_handle("patient#/bank#1").result() == [7, "Ann", "now"]


async def test_a_rule_is_shown_paused_and_deleted() -> None:
    async with testing.service() as service:
        client = service.client
        await client.set_event_rule("a", "paid", on_payment)
        await client.pause_event_rule("a", "closed")
        shown = await client.describe_event_rule("a")
        assert (shown.paused, shown.note, shown.rule.workflow.workflow_type) == (True, "closed", "on_payment")
        await client.resume_event_rule("a")
        assert [each.rule_id async for each in client.list_event_rules()] == ["a"]
        await client.delete_event_rule("a")
        with pytest.raises(EventRuleNotFound):
            await client.describe_event_rule("a")
        with pytest.raises(RequestRefused, match="rule_id"):
            await client.set_event_rule("a#b", "paid", on_payment)


async def test_what_could_not_be_started_is_refused_before_it_is_asked_for() -> None:
    set_rule: Any = Client("127.0.0.1:1").set_event_rule  # the types forbid all of this
    for wrong in (on_data, on_nothing):
        with pytest.raises(TypeError, match=r"annotate that as Event\[...\]"):
            await set_rule("a", "paid", wrong)
    with pytest.raises(TypeError, match="too many positional arguments"):
        await set_rule("a", "paid", on_payment, 1, 2)
    with pytest.raises(ConversionError, match="'factor'"):
        await set_rule("a", "paid", on_payment, "x")
    with pytest.raises(TypeError, match="patience"):
        await set_rule("a", "paid", on_payment, patience=1)
    with pytest.raises(TypeError, match="where"):
        await set_rule("a", "paid", on_payment, where={"x": []})


async def test_an_event_can_be_given_to_a_start_as_well() -> None:
    async with testing.service() as service, Worker(service.address, workflows=[on_payment]):
        assert await service.client.execute_workflow(on_payment, Event("paid", Payment(3)), 5) == 15


def test_an_event_is_a_cloud_event_on_the_way_and_comes_back_as_it_was() -> None:
    given = Event("paid", Payment(7), source="/bank", id="1", subject="Ann", content_type="application/json")
    payload = codec(Event[Payment]).encode(given, "it")
    assert CloudEvent.FromString(payload.binary).text_data == '{"order":7}'
    assert codec(Event[Payment]).decode(payload, "it") == given
    with pytest.raises(ConversionError, match="no Event"):
        codec(Event[Payment]).encode(Payment(7), "it")
    with pytest.raises(ConversionError, match="the data of event paid 1"):
        codec(Event[list[int]]).decode(payload, "it")
    with pytest.raises(ConversionError, match=r"romancy\.v1\.CloudEvent is expected"):
        codec(Event[Payment]).decode(Payload(json="{}"), "it")
