"""Attributes through the API: set at the start, changed by the code, found by lists and counts of every replica."""

from __future__ import annotations

import grpc
import pytest

from romancy.v1.command_pb2 import SetAttributes
from romancy.v1.worker_service_pb2 import ACKNOWLEDGEMENT_RESULT_INVALID
from romancy.v1.workflow_pb2 import AttributeValue, TextList
from romancy.v1.workflow_service_pb2 import (
    AttributeFilter,
    AttributeValues,
    CountWorkflowsRequest,
    ListWorkflowsRequest,
    WorkflowFilter,
)

from romancy import Attribute
from tests.core.life import complete, schedule
from tests.core.test_attributes import change, text, texts
from tests.service.cluster import Tenant, refused

STAGE = Attribute("stage", str)
TOTAL = Attribute("total", int)


async def found(tenant: Tenant, *wanted: AttributeFilter) -> list[str]:
    """The workflow ids that are listed, in pages of two; as many are counted."""
    selection = WorkflowFilter(attributes=wanted)
    listed: list[str] = []
    token = ""
    while True:
        request = ListWorkflowsRequest(namespace=tenant.namespace, filter=selection, page_size=2, page_token=token)
        page = await tenant.workflows.ListWorkflows(request)
        listed += [info.workflow_id for info in page.workflows]
        token = page.next_page_token
        if not token:
            break
    counted = await tenant.workflows.CountWorkflows(CountWorkflowsRequest(namespace=tenant.namespace, filter=selection))
    assert counted.count == len(listed)
    return listed


async def test_attributes_are_shown_as_they_are_now_and_the_spec_as_it_was(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run = await tenant.start("order", attributes={"stage": text("new"), "total": AttributeValue(integer=7)})
    await worker.command(await worker.workflow_task(), change("total", stage=text("paid"), tags=texts("a", "b")))
    shown = await tenant.get(run.run_id)
    assert dict(shown.info.attributes) == {"stage": text("paid"), "tags": texts("a", "b")}
    assert shown.spec.attributes["stage"] == text("new")
    listed = await tenant.workflows.ListWorkflows(ListWorkflowsRequest(namespace=tenant.namespace))
    assert listed.workflows[0].attributes == shown.info.attributes
    assert await tenant.kinds(run.run_id) == ["workflow_started", "attributes_set"]


async def test_lists_follow_what_the_code_sets_also_after_the_end(tenant: Tenant) -> None:
    worker = await tenant.worker()
    for n in range(5):
        await tenant.start(f"order-{n}", attributes={"stage": text("new"), "total": AttributeValue(integer=n)})
        await worker.command(
            await worker.workflow_task(), change(stage=text("paid" if n % 2 else "open")), schedule("pay:1")
        )
    assert sorted(await found(tenant, STAGE.equals("new"))) == []
    assert sorted(await found(tenant, STAGE.equals("open"))) == ["order-0", "order-2", "order-4"]
    assert sorted(await found(tenant, STAGE.equals("open"), TOTAL.above(0))) == ["order-2", "order-4"]
    for _ in range(5):
        await worker.complete(await worker.activity())
        await worker.command(await worker.workflow_task(), change("stage"), complete())
    assert sorted(await found(tenant, STAGE.exists())) == []
    assert len(await found(tenant, TOTAL.at_least(0), STAGE.is_missing())) == 5


async def test_a_bad_change_fails_the_task_and_the_run_goes_on_with_a_good_one(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run = await tenant.start("order")
    answer = await worker.command(await worker.workflow_task(), change(stage=text("x" * 256)))
    assert answer.result == ACKNOWLEDGEMENT_RESULT_INVALID
    assert answer.rejection.metadata["field"] == "commands[0].set_attributes.set['stage']"
    shown = await tenant.get(run.run_id)
    assert shown.workflow_task.attempt == 2
    assert not shown.info.attributes


_TEXT, _FLAG = AttributeValue(text="x"), AttributeValue(flag=True)


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        (AttributeFilter(equal=_TEXT), "name"),
        (AttributeFilter(name="a\x00", equal=_TEXT), "name"),
        (AttributeFilter(name="a" * 256, equal=_TEXT), "name"),
        (AttributeFilter(name="a"), "condition"),
        (AttributeFilter(name="a", equal=AttributeValue()), "equal"),
        (AttributeFilter(name="a", equal=AttributeValue(text="\x00")), "equal"),
        (AttributeFilter(name="a", less=AttributeValue(text="x" * 256)), "less"),
        (AttributeFilter(name="a", less=AttributeValue(number=float("nan"))), "less"),
        (AttributeFilter(name="a", greater=_FLAG), "greater"),
        (AttributeFilter(name="a", not_equal=AttributeValue(texts=TextList(values=["x"]))), "not_equal"),
        (AttributeFilter(name="a", one_of=AttributeValues()), "one_of"),
        (AttributeFilter(name="a", one_of=AttributeValues(values=[_TEXT] * 101)), "one_of"),
        (AttributeFilter(name="a", one_of=AttributeValues(values=[_TEXT, _FLAG])), "one_of"),
    ],
)
async def test_a_bad_filter_is_refused_and_names_the_field(tenant: Tenant, wanted: AttributeFilter, field: str) -> None:
    selection = WorkflowFilter(attributes=[AttributeFilter(name="ok", exists=True), wanted])
    for call in (
        tenant.workflows.ListWorkflows(ListWorkflowsRequest(namespace=tenant.namespace, filter=selection)),
        tenant.workflows.CountWorkflows(CountWorkflowsRequest(namespace=tenant.namespace, filter=selection)),
    ):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert refusal.field == f"filter.attributes[1].{field}"


async def test_too_many_conditions_are_refused(tenant: Tenant) -> None:
    selection = WorkflowFilter(attributes=[STAGE.exists()] * 11)
    refusal = await refused(
        tenant.workflows.ListWorkflows(ListWorkflowsRequest(namespace=tenant.namespace, filter=selection))
    )
    assert (refusal.field, refusal.metadata["limit"]) == ("filter.attributes", "10")
    assert await found(tenant, *[STAGE.exists()] * 10) == []


async def test_the_largest_attributes_that_are_allowed_are_taken_and_found(tenant: Tenant) -> None:
    worker = await tenant.worker()
    long = "ä" * 127 + "x"
    name = "n" * 255
    values = {f"{n:02}{name[2:]}": text(long) for n in range(31)} | {"tags": texts(*(f"{n}" for n in range(32)))}
    assert SetAttributes(set=values).ByteSize() < 20_000
    run = await tenant.start("order", attributes={name: text(long)})
    await worker.command(await worker.workflow_task(), change(name, **values))
    assert len((await tenant.get(run.run_id)).info.attributes) == 32
    assert await found(
        tenant, Attribute(f"30{name[2:]}", str).equals(long), Attribute("tags", list[str]).equals("31")
    ) == ["order"]
