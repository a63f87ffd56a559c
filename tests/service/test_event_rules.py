"""Event rules: each event that is stored after a rule starts one workflow, once, on whichever replica."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.event_rule_pb2 import EventRule, EventRuleInfo
from romancy.v1.event_service_pb2 import (
    DeleteEventRuleRequest,
    GetEventRuleRequest,
    ListEventRulesRequest,
    PauseEventRuleRequest,
    ResumeEventRuleRequest,
    SetEventRuleRequest,
)
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import WorkflowInfo, WorkflowSpec
from romancy.v1.workflow_service_pb2 import AttributeFilter, ListWorkflowsRequest, WorkflowFilter

from romancy_service.errors import BatchRejected, InternalError, StoreUnavailable
from romancy_service.event_rules import EventRules
from romancy_service.postman import Postman
from romancy_service.publisher import NewEvent, Publisher
from romancy_service.starter import Starter
from tests.core.test_subscription import an_event, subscribe
from tests.service.cluster import Tenant, json, refused, until
from tests.service.test_events import delivered, publish, received, stub, waiting


def a_rule(event_type: str = "paid", *, workflow_type: str = "order", **where: str) -> EventRule:
    spec = WorkflowSpec(workflow_type=workflow_type, task_queue="queue")
    wanted = {path.replace("__", "."): value for path, value in where.items()}
    return EventRule(event_type=event_type, where=wanted, workflow=spec)


async def set_rule(tenant: Tenant, rule_id: str = "ship", rule: EventRule | None = None, request_id: str = "") -> bool:
    request = SetEventRuleRequest(
        namespace=tenant.namespace, rule_id=rule_id, rule=rule or a_rule(), request_id=request_id
    )
    created: bool = (await stub(tenant).SetEventRule(request)).created
    return created


async def rule_of(tenant: Tenant, rule_id: str = "ship") -> EventRuleInfo:
    request = GetEventRuleRequest(namespace=tenant.namespace, rule_id=rule_id)
    shown: EventRuleInfo = (await stub(tenant).GetEventRule(request)).rule
    return shown


async def pause(tenant: Tenant, note: str = "", request_id: str = "") -> None:
    request = PauseEventRuleRequest(namespace=tenant.namespace, rule_id="ship", note=note, request_id=request_id)
    await stub(tenant).PauseEventRule(request)


async def resume(tenant: Tenant, note: str = "") -> None:
    await stub(tenant).ResumeEventRule(ResumeEventRuleRequest(namespace=tenant.namespace, rule_id="ship", note=note))


async def delete(tenant: Tenant, rule_id: str = "ship", request_id: str = "") -> None:
    request = DeleteEventRuleRequest(namespace=tenant.namespace, rule_id=rule_id, request_id=request_id)
    await stub(tenant).DeleteEventRule(request)


async def runs(tenant: Tenant, rule_id: str = "ship") -> list[WorkflowInfo]:
    """Those that the rule started, the first ones first."""
    of_rule = AttributeFilter(name="romancy.event_rule", equal={"text": rule_id})
    request = ListWorkflowsRequest(
        namespace=tenant.namespace, filter=WorkflowFilter(attributes=[of_rule]), page_size=1_000
    )
    return list(reversed((await tenant.workflows.ListWorkflows(request)).workflows))


async def started(tenant: Tenant, *event_ids: str, rule_id: str = "ship") -> None:
    """These events, and no others, have started a workflow each."""
    await delivered(tenant)
    found = [info.workflow_id for info in await runs(tenant, rule_id)]
    assert sorted(found) == sorted(f"{rule_id}#/shop#{event_id}" for event_id in event_ids)


async def test_an_event_starts_a_workflow_that_gets_it(tenant: Tenant) -> None:
    rule = a_rule()
    rule.workflow.arguments.append(json("2"))
    assert await set_rule(tenant, rule=rule)
    event = an_event("1", data='{"order": 7}')
    assert await publish(tenant, event) == [False]
    task = await (await tenant.worker()).workflow_task()
    first, second = task.events[0].workflow_started.spec.arguments
    assert CloudEvent.FromString(first.binary) == event
    assert second == json("2")
    assert task.events[0].workflow_started.identity == "event rule ship"
    await started(tenant, "1")
    info = await rule_of(tenant)
    assert (info.started_count, info.skipped_count, info.failed_count) == (1, 0, 0)
    assert info.rule.workflow.task_queue == "queue"
    assert info.HasField("start_time")


async def test_a_repeated_event_starts_nothing_twice(tenant: Tenant) -> None:
    await set_rule(tenant)
    assert await publish(tenant, an_event("1"), an_event("1"), an_event("2")) == [False, True, False]
    assert await publish(tenant, an_event("1")) == [True]
    await started(tenant, "1", "2")
    assert (await rule_of(tenant)).started_count == 2


async def test_also_when_the_event_is_forgotten_and_its_workflow_closed(tenant: Tenant) -> None:
    await set_rule(tenant)
    await publish(tenant, an_event("1"))
    await started(tenant, "1")
    await tenant.terminate((await runs(tenant))[0].run_id)
    await tenant.cluster.store.forget_events(2**61, 1_000)
    assert await publish(tenant, an_event("1")) == [False], "nobody knows it any more"
    await started(tenant, "1")
    info = await rule_of(tenant)
    assert (info.started_count, info.skipped_count) == (1, 1)


async def test_an_id_that_somebody_else_uses_is_left_alone(tenant: Tenant) -> None:
    await set_rule(tenant)
    other = await tenant.start("ship#/shop#1")
    await publish(tenant, an_event("1"), an_event("2"))
    await started(tenant, "2")
    assert (await tenant.newest("ship#/shop#1")).info.run_id == other.run_id
    info = await rule_of(tenant)
    assert (info.started_count, info.skipped_count, info.last_error) == (1, 1, "")


async def test_only_events_with_the_values_start_something_and_each_rule_has_its_own(tenant: Tenant) -> None:
    await set_rule(tenant, "seven", a_rule(data__order="7"))
    await set_rule(tenant, "vip", a_rule(subject='"vip"'))
    await set_rule(tenant, "refund", a_rule("refunded"))
    await publish(
        tenant,
        an_event("a", data='{"order": 7}', subject="vip"),
        an_event("b", data='{"order": 8}', subject="vip"),
        an_event("c", data='{"order": 7.0}'),
    )
    await started(tenant, "a", "c", rule_id="seven")
    await started(tenant, "a", "b", rule_id="vip")
    await started(tenant, rule_id="refund")


async def test_events_for_one_workflow_and_messages_of_channels_start_nothing(tenant: Tenant) -> None:
    _, run_id = await waiting(tenant)
    await set_rule(tenant)
    await publish(tenant, an_event("1", romancyworkflowid="order"), an_event("2", romancychannel="paid"), an_event("3"))
    await received(tenant, run_id, 1)
    await started(tenant, "3")


async def test_whoever_waits_gets_the_event_too(tenant: Tenant) -> None:
    _, run_id = await waiting(tenant, subscribe(1, "paid", False))
    await set_rule(tenant, rule=a_rule(workflow_type="other"))
    await publish(tenant, an_event("1"))
    assert await received(tenant, run_id, 1) == ["1"]
    await started(tenant, "1")


async def test_what_came_before_the_rule_starts_nothing(tenant: Tenant) -> None:
    await publish(tenant, an_event("early"))
    await delivered(tenant)
    node = tenant.cluster.replicas[0].node
    await set_rule(tenant)
    # One that could not be delivered since long before.
    left = NewEvent("/shop", "left", "paid", an_event("left").SerializeToString(), 2**62)
    await node.store.add_events(tenant.namespace, [left], node.clock.now_ms() - 10_000)
    await publish(tenant, an_event("late"))
    await started(tenant, "late")


async def test_a_paused_rule_starts_nothing_and_makes_up_for_nothing(tenant: Tenant) -> None:
    await set_rule(tenant)
    await pause(tenant, "the warehouse is closed")
    assert (await rule_of(tenant)).paused
    await publish(tenant, an_event("1"))
    await delivered(tenant)
    assert not await set_rule(tenant), "it is there already, and stays paused"
    assert (await rule_of(tenant)).note == "the warehouse is closed"
    await resume(tenant)
    await publish(tenant, an_event("2"))
    await started(tenant, "2")
    info = await rule_of(tenant)
    assert (info.paused, info.note, info.started_count) == (False, "", 1)


async def test_a_deleted_rule_starts_nothing_and_a_new_one_of_its_id_begins_anew(tenant: Tenant) -> None:
    await set_rule(tenant)
    await publish(tenant, an_event("1"))
    await started(tenant, "1")
    await delete(tenant)
    await publish(tenant, an_event("2"))
    await started(tenant, "1")
    assert await set_rule(tenant)
    assert (await rule_of(tenant)).started_count == 0
    await publish(tenant, an_event("3"))
    await started(tenant, "1", "3")


async def test_a_rule_is_replaced_without_a_gap(tenant: Tenant) -> None:
    await set_rule(tenant)
    await tenant.cluster.pass_ms(60_000)
    node = tenant.cluster.replicas[0].node
    on_its_way = NewEvent("/shop", "1", "paid", an_event("1").SerializeToString(), 2**62)
    await set_rule(tenant, rule=a_rule(workflow_type="other"))
    await node.store.add_events(tenant.namespace, [on_its_way], node.clock.now_ms() - 30_000)
    await publish(tenant, an_event("2"))
    await started(tenant, "1", "2")
    assert {info.workflow_type for info in await runs(tenant)} == {"other"}
    await set_rule(tenant, rule=a_rule("refunded"))
    await publish(tenant, an_event("3"))
    await started(tenant, "1", "2")


async def test_a_start_that_is_refused_for_good_is_shown_and_holds_nothing_up(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    await set_rule(tenant)
    await set_rule(tenant, "other")
    start = Starter.start

    async def refusing(self: Starter, namespace: str, request: Any, *more: Any, **named: Any) -> Any:
        if request.workflow_id == "ship#/shop#1":
            raise BatchRejected("the database does not like it")
        return await start(self, namespace, request, *more, **named)

    monkeypatch.setattr(Starter, "start", refusing)
    await publish(tenant, an_event("1"), an_event("2"))
    await started(tenant, "2")
    await started(tenant, "1", "2", rule_id="other")
    info = await rule_of(tenant)
    assert (info.started_count, info.failed_count) == (1, 1)
    assert info.last_error == "/shop 1: the database does not like it"
    assert info.HasField("last_error_time")
    assert (await rule_of(tenant, "other")).failed_count == 0


async def test_a_start_that_cannot_be_made_now_is_made_later(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    await set_rule(tenant)
    start, failed = Starter.start, 0

    async def failing(self: Starter, namespace: str, request: Any, *more: Any, **named: Any) -> Any:
        nonlocal failed
        done = await start(self, namespace, request, *more, **named)
        if request.workflow_id.startswith("ship") and failed < 2:
            failed += 1
            raise StoreUnavailable("what became of it is not known")
        return done

    monkeypatch.setattr(Starter, "start", failing)
    await publish(tenant, *(an_event(str(number)) for number in range(5)))
    await started(tenant, *map(str, range(5)))
    info = await rule_of(tenant)
    assert (info.started_count, info.skipped_count, info.failed_count) == (5, 0, 0)


async def test_a_start_that_failed_without_a_reason_is_tried_again(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    await set_rule(tenant)
    start, failed = Starter.start, 0

    async def failing(self: Starter, *given: Any, **named: Any) -> Any:
        nonlocal failed
        if failed < 2:
            failed += 1
            raise InternalError("it failed")
        return await start(self, *given, **named)

    monkeypatch.setattr(Starter, "start", failing)
    await publish(tenant, an_event("1"))
    await started(tenant, "1")
    info = await rule_of(tenant)
    assert (info.started_count, info.failed_count, info.last_error) == (1, 0, "")


async def test_delivering_again_starts_and_counts_nothing_twice(tenant: Tenant) -> None:
    await set_rule(tenant)
    node = tenant.cluster.replicas[-1].node
    rules = EventRules(node.store, node.clock, Starter(node.engine, node.store), node.limits)
    again = Publisher(node.store, node.clock, Postman(node.store, node.engine, node.limits), rules, node.limits)
    new = [NewEvent("/shop", str(n), "paid", an_event(str(n)).SerializeToString(), 2**62) for n in range(3)]
    await node.store.add_events(tenant.namespace, new, node.clock.now_ms())
    opened = await node.store.open_events(tenant.namespace, "paid", 10)

    async def deliver(events: Sequence[Any]) -> None:
        _, outcomes = await again._deliver(tenant.namespace, "paid", events)
        await again._close(tenant.namespace, "paid", events, outcomes, kept=False)

    await asyncio.gather(deliver(opened), deliver(opened[1:]), deliver(opened[:2]))
    await started(tenant, "0", "1", "2")
    assert (await rule_of(tenant)).started_count == 3


async def test_many_events_of_both_replicas_start_one_workflow_each(tenant: Tenant) -> None:
    await set_rule(tenant)

    async def send(replica: int) -> None:
        for number in range(50):
            await publish(tenant, an_event(f"{replica}-{number}"), an_event(f"both-{number}"), replica=replica)

    await asyncio.gather(send(0), send(1))
    numbers = range(50)
    await started(tenant, *(f"{who}-{number}" for who in ("0", "1", "both") for number in numbers))
    assert (await rule_of(tenant)).started_count == 150


async def test_rules_are_listed_page_by_page_in_their_own_namespace(tenant: Tenant) -> None:
    for number in range(5):
        await set_rule(tenant, f"rule-{number}")
    found, token = [], ""
    while True:
        request = ListEventRulesRequest(namespace=tenant.namespace, page_size=2, page_token=token)
        page = await stub(tenant).ListEventRules(request)
        found += [each.rule_id for each in page.rules]
        token = page.next_page_token
        if not token:
            break
    assert found == [f"rule-{number}" for number in range(5)]
    elsewhere = ListEventRulesRequest(namespace=f"{tenant.namespace}-other")
    assert not (await stub(tenant).ListEventRules(elsewhere)).rules
    bad = ListEventRulesRequest(namespace=tenant.namespace, page_token="x")
    assert (await refused(stub(tenant).ListEventRules(bad))).reason == "INVALID_PAGE_TOKEN"


async def test_a_repeated_request_is_answered_alike_and_undoes_nothing(tenant: Tenant) -> None:
    assert await set_rule(tenant, request_id="set-1")
    await set_rule(tenant, rule=a_rule("refunded"))
    assert await set_rule(tenant, request_id="set-1"), "as it was answered then"
    assert (await rule_of(tenant)).rule.event_type == "refunded"
    await pause(tenant, request_id="pause-1")
    await resume(tenant)
    await pause(tenant, request_id="pause-1")
    assert not (await rule_of(tenant)).paused
    await delete(tenant, request_id="delete-1")
    await set_rule(tenant)
    await delete(tenant, request_id="delete-1")
    assert (await rule_of(tenant)).rule_id == "ship"
    for other in (
        pause(tenant, request_id="delete-1"),
        delete(tenant, "another", request_id="delete-1"),
        set_rule(tenant, "another", request_id="set-1"),
    ):
        assert (await refused(other)).reason == "REQUEST_ID_REUSED"
    assert (await refused(rule_of(tenant, "another"))).reason == "EVENT_RULE_NOT_FOUND"


async def test_what_is_no_rule_is_refused(tenant: Tenant) -> None:
    for call in (rule_of(tenant), pause(tenant), resume(tenant), delete(tenant)):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "EVENT_RULE_NOT_FOUND")
    assert (await refused(set_rule(tenant, ""))).field == "rule_id"
    assert (await refused(set_rule(tenant, "a#b"))).field == "rule_id"
    assert (await refused(set_rule(tenant, rule=EventRule(event_type="paid")))).field == "rule.workflow.workflow_type"
    assert (await refused(set_rule(tenant, rule=a_rule(Bad='"x"')))).field == "rule.where"
    assert (await refused(set_rule(tenant, rule=a_rule(data__x="NaN")))).field == "rule.where['data.x']"
    large = a_rule()
    large.workflow.arguments.extend([Payload(binary=b"x" * (1 << 20))] * 2)
    assert (await refused(set_rule(tenant, rule=large))).reason == "PAYLOAD_TOO_LARGE"
    assert (await refused(pause(tenant, "x" * 5_000))).field == "note"
    assert (await refused(set_rule(tenant, request_id="x" * 256))).field == "request_id"


async def test_there_are_only_so_many_rules_for_a_type(tenant: Tenant) -> None:
    node = tenant.cluster.replicas[0].node
    for number in range(node.limits.event_rules_per_type):
        await set_rule(tenant, f"rule-{number}")
    refusal = await refused(set_rule(tenant, "one more"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_EVENT_RULES")
    assert not await set_rule(tenant, "rule-0"), "those that are there can be changed"
    assert await set_rule(tenant, "one more", a_rule("refunded"))


async def test_the_largest_event_with_the_largest_arguments_starts(tenant: Tenant) -> None:
    limits = tenant.cluster.replicas[0].node.limits
    rule = a_rule()
    left = limits.payloads_bytes - limits.event_bytes
    rule.workflow.arguments.append(Payload(binary=b"x" * (left - 100)))
    await set_rule(tenant, rule=rule)
    event = an_event("1")
    event.binary_data = b"x" * (limits.event_bytes - event.ByteSize() - 10)
    await publish(tenant, event)
    await started(tenant, "1")
    run_id = (await runs(tenant))[0].run_id
    assert (await tenant.history(run_id))[0].workflow_started.spec.arguments[0].binary == event.SerializeToString(
        deterministic=True
    )


async def test_rules_show_when_they_were_set_last(tenant: Tenant) -> None:
    await set_rule(tenant)
    made = await rule_of(tenant)
    await tenant.cluster.pass_ms(5_000)
    await pause(tenant)

    async def is_later() -> bool:
        shown = await rule_of(tenant)
        assert shown.create_time == made.create_time
        return shown.update_time.ToMilliseconds() >= made.update_time.ToMilliseconds() + 4_000

    await until(is_later, "it was paused later")
