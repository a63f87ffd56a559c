"""EventService: takes events in."""

from __future__ import annotations

from typing import Any

import grpc

from romancy.v1.event_service_pb2 import (
    PublishEventRequest,
    PublishEventResponse,
    PublishEventsRequest,
    PublishEventsResponse,
)
from romancy.v1.event_service_pb2_grpc import EventServiceServicer

from romancy_service.node import Node
from romancy_service.publisher import Publisher
from romancy_service.rpc.validate import check_events, namespace_of

# The generated servicer names its methods as the contract does.


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
