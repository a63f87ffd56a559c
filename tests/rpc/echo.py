"""A server with the real edge, whose services do nothing but say that they were reached."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from romancy.v1 import (
    activity_service_pb2,
    admin_service_pb2,
    channel_service_pb2,
    event_service_pb2,
    outbox_service_pb2,
    schedule_service_pb2,
    worker_service_pb2,
    workflow_service_pb2,
)
from romancy.v1.activity_service_pb2_grpc import ActivityServiceServicer, add_ActivityServiceServicer_to_server
from romancy.v1.admin_service_pb2_grpc import AdminServiceServicer, add_AdminServiceServicer_to_server
from romancy.v1.channel_service_pb2_grpc import ChannelServiceServicer, add_ChannelServiceServicer_to_server
from romancy.v1.event_service_pb2_grpc import EventServiceServicer, add_EventServiceServicer_to_server
from romancy.v1.outbox_service_pb2_grpc import OutboxServiceServicer, add_OutboxServiceServicer_to_server
from romancy.v1.schedule_service_pb2_grpc import ScheduleServiceServicer, add_ScheduleServiceServicer_to_server
from romancy.v1.worker_service_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server
from romancy.v1.workflow_service_pb2_grpc import WorkflowServiceServicer, add_WorkflowServiceServicer_to_server

from romancy_service.config import Config
from romancy_service.rpc.auth import identity_of
from romancy_service.rpc.edge import Edge


class WorkflowEcho(WorkflowServiceServicer):
    """Answers with who asked, fails as its `failure` says."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None

    async def StartWorkflow(self, request: Any, context: Any) -> Any:
        if self.failure is not None:
            raise self.failure
        identity = identity_of(request.identity)
        return workflow_service_pb2.StartWorkflowResponse(workflow_id=identity, run_id="reached")

    async def StartWorkflows(self, request: Any, context: Any) -> Any:
        return workflow_service_pb2.StartWorkflowsResponse()

    async def ListWorkflows(self, request: Any, context: Any) -> Any:
        return workflow_service_pb2.ListWorkflowsResponse()

    async def WaitResults(self, request_iterator: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in request_iterator:
            if self.failure is not None:
                raise self.failure
            results = [workflow_service_pb2.RunResult(run_id=run_id) for run_id in request.run_ids]
            yield workflow_service_pb2.WaitResultsResponse(results=results)

    async def WatchHistory(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield workflow_service_pb2.WatchHistoryResponse(run_id="reached")


class WorkerEcho(WorkerServiceServicer):
    """Welcomes whoever says hello."""

    async def Connect(  # type: ignore[override]  # writes by its context, as the real one does
        self, request_iterator: AsyncIterator[Any], context: Any
    ) -> None:
        async for frame in request_iterator:
            welcome = worker_service_pb2.Welcome(session_id=frame.hello.worker_id)
            await context.write(worker_service_pb2.ConnectResponse(welcome=welcome))


class AdminEcho(AdminServiceServicer):
    """Has nothing to show."""

    async def ListSessions(self, request: Any, context: Any) -> Any:
        return admin_service_pb2.ListSessionsResponse()


class ScheduleEcho(ScheduleServiceServicer):
    """Has nothing to show either."""

    async def ListSchedules(self, request: Any, context: Any) -> Any:
        return schedule_service_pb2.ListSchedulesResponse()


class EventEcho(EventServiceServicer):
    """Keeps nothing."""

    async def PublishEvent(self, request: Any, context: Any) -> Any:
        return event_service_pb2.PublishEventResponse()


class ChannelEcho(ChannelServiceServicer):
    """Has no channels."""

    async def PublishMessage(self, request: Any, context: Any) -> Any:
        return channel_service_pb2.PublishMessageResponse()

    async def GetChannel(self, request: Any, context: Any) -> Any:
        return channel_service_pb2.GetChannelResponse()

    async def ListChannels(self, request: Any, context: Any) -> Any:
        return channel_service_pb2.ListChannelsResponse()


class ActivityEcho(ActivityServiceServicer):
    """Has no activities."""

    async def CompleteActivity(self, request: Any, context: Any) -> Any:
        return activity_service_pb2.CompleteActivityResponse()

    async def HeartbeatActivity(self, request: Any, context: Any) -> Any:
        return activity_service_pb2.HeartbeatActivityResponse()


class OutboxEcho(OutboxServiceServicer):
    """Has no sinks."""

    async def ListSinks(self, request: Any, context: Any) -> Any:
        return outbox_service_pb2.ListSinksResponse()


class Echo:
    """The server while it is up."""

    def __init__(self, port: int, workflows: WorkflowEcho) -> None:
        self.address = f"127.0.0.1:{port}"
        self.workflows = workflows

    def channel(self, credentials: grpc.ChannelCredentials | None = None) -> grpc.aio.Channel:
        """A connection to it, with TLS if there are credentials for that."""
        if credentials is None:
            return grpc.aio.insecure_channel(self.address)
        return grpc.aio.secure_channel(self.address, credentials)


@asynccontextmanager
async def echoing(config: Config) -> AsyncIterator[Echo]:
    """The server is up inside the block."""
    # What is not written out above answers UNIMPLEMENTED; only the stubs take that for abstract.
    make_workflows: Any = WorkflowEcho
    make_schedules: Any = ScheduleEcho
    make_events: Any = EventEcho
    make_admin: Any = AdminEcho
    make_outbox: Any = OutboxEcho
    edge, workflows = Edge(config), make_workflows()
    add_WorkflowServiceServicer_to_server(workflows, edge.server)
    add_WorkerServiceServicer_to_server(WorkerEcho(), edge.server)
    add_ScheduleServiceServicer_to_server(make_schedules(), edge.server)
    add_EventServiceServicer_to_server(make_events(), edge.server)
    add_ChannelServiceServicer_to_server(ChannelEcho(), edge.server)
    add_ActivityServiceServicer_to_server(ActivityEcho(), edge.server)
    add_OutboxServiceServicer_to_server(make_outbox(), edge.server)
    add_AdminServiceServicer_to_server(make_admin(), edge.server)
    await edge.bind()
    await edge.start()
    try:
        yield Echo(edge.port, workflows)
    finally:
        await edge.stop(0)
