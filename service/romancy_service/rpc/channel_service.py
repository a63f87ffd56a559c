"""ChannelService: sends messages to channels, and shows them."""

from __future__ import annotations

from typing import Any

import grpc

from romancy.v1.channel_service_pb2 import (
    Channel,
    GetChannelRequest,
    GetChannelResponse,
    ListChannelsRequest,
    ListChannelsResponse,
    PublishMessageRequest,
    PublishMessageResponse,
)
from romancy.v1.channel_service_pb2_grpc import ChannelServiceServicer

from romancy_service.core.channel import check_message, id_of, message
from romancy_service.core.check import check_id
from romancy_service.core.own import source_of_client
from romancy_service.errors import ChannelNotFound
from romancy_service.node import Node
from romancy_service.publisher import Publisher
from romancy_service.rpc.auth import identity_of
from romancy_service.rpc.pages import name_token, read_name_token
from romancy_service.rpc.validate import namespace_of, page_size
from romancy_service.starter import new_id
from romancy_service.store.channels import ChannelInfo

# The generated servicer names its methods as the contract does.


class ChannelService(ChannelServiceServicer):
    """Any replica keeps what comes, and all deliver it."""

    def __init__(self, node: Node, publisher: Publisher) -> None:
        self._node = node
        self._publisher = publisher

    async def PublishMessage(
        self, request: PublishMessageRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> PublishMessageResponse:
        """Keep a message."""
        limits = self._node.limits
        namespace = namespace_of(request.namespace, limits)
        check_message("", request.channel, request.data, request.metadata, limits)
        for name in ("request_id", "workflow_id"):
            if getattr(request, name):
                check_id(name, getattr(request, name), limits)
        event = message(
            request.channel,
            request.data,
            request.metadata,
            source=source_of_client(identity_of("")),
            message_id=id_of(request.channel, request.workflow_id, request.request_id or new_id()),
            workflow_id=request.workflow_id,
        )
        (duplicate,) = await self._publisher.keep(namespace, [event], "message")
        return PublishMessageResponse(duplicate=duplicate)

    async def GetChannel(
        self, request: GetChannelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> GetChannelResponse:
        """One channel."""
        limits = self._node.limits
        namespace = namespace_of(request.namespace, limits)
        check_id("channel", request.channel, limits)
        found = await self._node.store.show_channel(namespace, request.channel)
        if found is None:
            raise ChannelNotFound(request.channel)
        return GetChannelResponse(channel=_channel(found))

    async def ListChannels(
        self, request: ListChannelsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ListChannelsResponse:
        """A page of a namespace's channels."""
        limits = self._node.limits
        namespace = namespace_of(request.namespace, limits)
        size = page_size("page_size", request.page_size, limits.page_runs, limits.max_page_runs)
        after = read_name_token(request.page_token, namespace, limits)
        found = await self._node.store.list_channels(namespace, after, size + 1)
        token = name_token(namespace, found[size - 1].name) if len(found) > size else ""
        return ListChannelsResponse(channels=map(_channel, found[:size]), next_page_token=token)


def _channel(found: ChannelInfo) -> Channel:
    return Channel(
        name=found.name,
        mode=found.mode,
        subscribers=found.subscribers,
        receivers=found.receivers,
        unread=found.unread,
    )
