"""EventService: takes events in, and keeps the rules by which they start workflows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import accumulate, islice
from typing import Any, TypeVar

import grpc

from romancy.v1.event_rule_pb2 import EventRuleInfo
from romancy.v1.event_service_pb2 import (
    DeleteEventRuleRequest,
    DeleteEventRuleResponse,
    GetEventRuleRequest,
    GetEventRuleResponse,
    ListEventRulesRequest,
    ListEventRulesResponse,
    PauseEventRuleRequest,
    PauseEventRuleResponse,
    PublishEventRequest,
    PublishEventResponse,
    PublishEventsRequest,
    PublishEventsResponse,
    ResumeEventRuleRequest,
    ResumeEventRuleResponse,
    SetEventRuleRequest,
    SetEventRuleResponse,
)
from romancy.v1.event_service_pb2_grpc import EventServiceServicer

from romancy_service.core.check import check_id, check_text
from romancy_service.core.event_rule import EventRuleRecord, check_event_rule, check_rule_id
from romancy_service.core.times import timestamp
from romancy_service.errors import EventRuleNotFound, TooManyEventRules
from romancy_service.node import Node
from romancy_service.publisher import Publisher
from romancy_service.rpc.once import once
from romancy_service.rpc.pages import name_token, read_name_token
from romancy_service.rpc.validate import check_events, namespace_of, page_size, task_queue_of
from romancy_service.starter import new_id
from romancy_service.store.store import Request

# The generated servicer names its methods as the contract does.

Paused = TypeVar("Paused", PauseEventRuleResponse, ResumeEventRuleResponse)
Changed = TypeVar("Changed", PauseEventRuleResponse, ResumeEventRuleResponse, DeleteEventRuleResponse)
_Change = PauseEventRuleRequest | ResumeEventRuleRequest | DeleteEventRuleRequest
_Write = Callable[[str, str, Request, int], Awaitable[bool]]
"""Carries a change out and remembers its request; False: there is no such rule."""


class EventService(EventServiceServicer):
    """Any replica keeps what comes, and all deliver it."""

    def __init__(self, node: Node, publisher: Publisher) -> None:
        self._node = node
        self._publisher = publisher

    async def PublishEvent(
        self, request: PublishEventRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> PublishEventResponse:
        """Keep one event."""
        namespace = namespace_of(request.namespace, self._node.limits)
        (duplicate,) = await self._publisher.publish(namespace, [request.event], "event")
        return PublishEventResponse(duplicate=duplicate)

    async def PublishEvents(
        self, request: PublishEventsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> PublishEventsResponse:
        """Keep several events."""
        limits = self._node.limits
        namespace = namespace_of(request.namespace, limits)
        check_events(request.events, limits)
        return PublishEventsResponse(duplicates=await self._publisher.publish(namespace, request.events))

    # Rules ----------------------------------------------------------------------------------------------------------

    async def SetEventRule(
        self, request: SetEventRuleRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> SetEventRuleResponse:
        """Make a rule, or replace what it says."""
        limits, store = self._node.limits, self._node.store
        namespace, rule_id = self._named(request)
        rule = request.rule
        check_event_rule("rule", rule, limits)
        rule.workflow.task_queue = task_queue_of("rule.workflow.task_queue", rule.workflow.task_queue, limits)
        request_id, method = request.request_id or new_id(), f"SetEventRule {rule_id}"

        async def carry_out() -> SetEventRuleResponse:
            if await store.count_other_event_rules(namespace, rule.event_type, rule_id) >= limits.event_rules_per_type:
                raise TooManyEventRules(rule.event_type, limits.event_rules_per_type)
            now_ms = self._node.clock.now_ms()
            created = await store.get_event_rule(namespace, rule_id) is None
            record = EventRuleRecord(namespace, rule_id, new_id(), rule, now_ms, now_ms, now_ms)
            response = SetEventRuleResponse(created=created)
            reply = response.SerializeToString()
            await store.set_event_rule(record, Request(namespace, request_id, "", method, reply))
            return response

        return await once(store, namespace, request_id, method, SetEventRuleResponse, carry_out)

    async def GetEventRule(
        self, request: GetEventRuleRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> GetEventRuleResponse:
        """One rule."""
        namespace, rule_id = self._named(request)
        found = await self._node.store.get_event_rule(namespace, rule_id)
        if found is None:
            raise EventRuleNotFound(rule_id)
        return GetEventRuleResponse(rule=_info(found))

    async def ListEventRules(
        self, request: ListEventRulesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ListEventRulesResponse:
        """A page of a namespace's rules."""
        limits = self._node.limits
        namespace = namespace_of(request.namespace, limits)
        size = page_size("page_size", request.page_size, limits.page_runs, limits.max_page_runs)
        after = read_name_token(request.page_token, namespace, limits)
        found = await self._node.store.list_event_rules(namespace, after, size + 1)
        rules = [_info(each) for each in found[:size]]
        sizes = accumulate(each.ByteSize() for each in rules)
        fitting = 1 + sum(so_far <= limits.page_bytes for so_far in islice(sizes, 1, None))
        token = name_token(namespace, rules[fitting - 1].rule_id) if len(found) > len(rules[:fitting]) else ""
        return ListEventRulesResponse(rules=rules[:fitting], next_page_token=token)

    async def PauseEventRule(
        self, request: PauseEventRuleRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> PauseEventRuleResponse:
        """Have a rule start nothing."""
        return await self._pause(request, "PauseEventRule", PauseEventRuleResponse())

    async def ResumeEventRule(
        self, request: ResumeEventRuleRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ResumeEventRuleResponse:
        """End a pause."""
        return await self._pause(request, "ResumeEventRule", ResumeEventRuleResponse())

    async def _pause(
        self, request: PauseEventRuleRequest | ResumeEventRuleRequest, method: str, response: Paused
    ) -> Paused:
        check_text("note", request.note, self._node.limits.reason_bytes)
        paused = isinstance(request, PauseEventRuleRequest)

        def pause(namespace: str, rule_id: str, asked: Request, now_ms: int) -> Awaitable[bool]:
            return self._node.store.pause_event_rule(namespace, rule_id, paused, request.note, asked, now_ms)

        return await self._change(request, method, response, pause)

    async def DeleteEventRule(
        self, request: DeleteEventRuleRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> DeleteEventRuleResponse:
        """Forget a rule."""
        delete = self._node.store.delete_event_rule
        return await self._change(request, "DeleteEventRule", DeleteEventRuleResponse(), delete)

    async def _change(self, request: _Change, method: str, response: Changed, change: _Write) -> Changed:
        namespace, rule_id = self._named(request)
        request_id, exactly = request.request_id or new_id(), f"{method} {rule_id}"

        async def carry_out() -> Changed:
            asked = Request(namespace, request_id, "", exactly, response.SerializeToString())
            if not await change(namespace, rule_id, asked, self._node.clock.now_ms()):
                raise EventRuleNotFound(rule_id)
            return response

        return await once(self._node.store, namespace, request_id, exactly, type(response), carry_out)

    def _named(self, request: _Change | SetEventRuleRequest | GetEventRuleRequest) -> tuple[str, str]:
        limits = self._node.limits
        namespace = namespace_of(request.namespace, limits)
        check_rule_id(request.rule_id, limits)
        if not isinstance(request, GetEventRuleRequest) and request.request_id:
            check_id("request_id", request.request_id, limits)
        return namespace, request.rule_id


def _info(found: EventRuleRecord) -> EventRuleInfo:
    return EventRuleInfo(
        rule_id=found.rule_id,
        rule=found.rule,
        paused=found.paused,
        note=found.note,
        create_time=timestamp(found.create_ms),
        update_time=timestamp(found.update_ms),
        started_count=found.started_count,
        skipped_count=found.skipped_count,
        failed_count=found.failed_count,
        start_time=timestamp(found.start_ms) if found.start_ms else None,
        last_error=found.last_error,
        last_error_time=timestamp(found.last_error_ms) if found.last_error_ms else None,
    )
