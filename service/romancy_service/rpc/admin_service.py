"""AdminService: what operators call."""

from __future__ import annotations

from typing import Any

import grpc

from romancy.v1.admin_service_pb2 import (
    TASK_KIND_ACTIVITY,
    TASK_KIND_WORKFLOW,
    Backlog,
    DescribeTaskQueueRequest,
    DescribeTaskQueueResponse,
    ListSessionsRequest,
    ListSessionsResponse,
    Session,
)
from romancy.v1.admin_service_pb2_grpc import AdminServiceServicer
from romancy.v1.worker_service_pb2 import Hello

from romancy_service.core.task import TaskKind
from romancy_service.core.times import timestamp
from romancy_service.node import Node
from romancy_service.rpc.validate import namespace_of, task_queue_of
from romancy_service.store.presence import SessionInfo

# The generated servicer names its methods as the contract does.


class AdminService(AdminServiceServicer):
    """Reads what is in the database, so every replica shows the same."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def ListSessions(
        self, request: ListSessionsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ListSessionsResponse:
        """The workers of a namespace."""
        return ListSessionsResponse(sessions=await self._sessions(request.namespace, request.task_queue))

    async def DescribeTaskQueue(
        self, request: DescribeTaskQueueRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> DescribeTaskQueueResponse:
        """What waits in a queue and who serves it."""
        task_queue = task_queue_of("task_queue", request.task_queue, self._node.limits)
        namespace = namespace_of(request.namespace, self._node.limits)
        sessions = await self._sessions(request.namespace, task_queue)
        served = {(TaskKind.WORKFLOW, name) for s in sessions if s.connected for name in s.workflow_types} | {
            (TaskKind.ACTIVITY, name) for s in sessions if s.connected for name in s.activity_types
        }
        rows = await self._node.store.backlogs(namespace, task_queue, self._node.clock.now_ms())
        backlogs = [
            Backlog(
                kind=TASK_KIND_WORKFLOW if kind == TaskKind.WORKFLOW else TASK_KIND_ACTIVITY,
                type=task_type,
                tasks=count,
                oldest_time=timestamp(oldest_ms),
                served=(TaskKind(kind), task_type) in served,
            )
            for kind, task_type, count, oldest_ms in rows
        ]
        return DescribeTaskQueueResponse(backlogs=backlogs, sessions=sessions)

    async def _sessions(self, namespace: str, task_queue: str) -> list[Session]:
        rows = await self._node.store.list_sessions(namespace_of(namespace, self._node.limits))
        sessions = (_session(row) for row in rows)
        return [session for session in sessions if not task_queue or task_queue in session.task_queues]


def _session(row: SessionInfo) -> Session:
    hello = Hello.FromString(row.session.hello)
    return Session(
        worker_id=row.session.worker_id,
        replica_id=row.session.replica_id,
        connected=row.session.connected,
        draining=row.session.draining,
        start_time=timestamp(row.session.start_ms),
        lease_time=timestamp(row.session.lease_ms),
        task_queues=hello.task_queues,
        workflow_types=hello.workflow_types,
        activity_types=hello.activity_types,
        workflow_slots=hello.workflow_slots,
        activity_slots=hello.activity_slots,
        tasks_in_hand=row.tasks_in_hand,
        build_id=hello.build_id,
        sdk=hello.sdk,
    )
