"""AdminService: what operators call."""

from __future__ import annotations

from typing import Any, Final

import grpc
import structlog

from romancy.v1.admin_service_pb2 import (
    TASK_KIND_ACTIVITY,
    TASK_KIND_WORKFLOW,
    Backlog,
    DescribeTaskQueueRequest,
    DescribeTaskQueueResponse,
    ListNamespacesRequest,
    ListNamespacesResponse,
    ListSessionsRequest,
    ListSessionsResponse,
    Namespace,
    Session,
    SetNamespaceRequest,
    SetNamespaceResponse,
)
from romancy.v1.admin_service_pb2_grpc import AdminServiceServicer
from romancy.v1.worker_service_pb2 import Hello

from romancy_service.core.task import TaskKind
from romancy_service.core.times import duration, duration_ms, timestamp
from romancy_service.node import Node
from romancy_service.rpc.auth import CALLER, identity_of
from romancy_service.rpc.once import once
from romancy_service.rpc.pages import name_token, read_name_token
from romancy_service.rpc.validate import check_namespace, namespace_of, page_size, task_queue_of
from romancy_service.starter import new_id
from romancy_service.store.namespaces import Namespace as NamespaceRow
from romancy_service.store.presence import SessionInfo
from romancy_service.store.store import Request

_audit = structlog.get_logger("romancy.audit")

_SET: Final = "SetNamespace"
_ALL: Final = ""
"""What the list of namespaces is of."""

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

    async def ListNamespaces(
        self, request: ListNamespacesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ListNamespacesResponse:
        """One page of the namespaces that the caller may act in."""
        limits = self._node.limits
        size = page_size("page_size", request.page_size, limits.page_runs, limits.max_page_runs)
        after = read_name_token(request.page_token, _ALL, limits)
        grant, page = CALLER.get(), list[Namespace]()
        while rows := await self._node.store.list_namespaces(after, size + 1):
            page += [self._namespace(row) for row in rows if grant is None or grant.has(row.name)]
            after = rows[-1].name
            if len(page) > size:
                return ListNamespacesResponse(
                    namespaces=page[:size], next_page_token=name_token(_ALL, page[size - 1].name)
                )
        return ListNamespacesResponse(namespaces=page)

    async def SetNamespace(
        self, request: SetNamespaceRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> SetNamespaceResponse:
        """Say how long a namespace keeps its runs."""
        check_namespace(request, self._node.limits)
        name = namespace_of(request.namespace, self._node.limits)
        request_id = request.request_id or new_id()

        async def carry_out() -> SetNamespaceResponse:
            return await self._set_namespace(request, name, request_id)

        return await once(self._node.store, name, request_id, _SET, SetNamespaceResponse, carry_out)

    async def _set_namespace(self, request: SetNamespaceRequest, name: str, request_id: str) -> SetNamespaceResponse:
        store, now_ms = self._node.store, self._node.clock.now_ms()
        created_ms = (await store.get_namespace(name)).created_ms or now_ms
        namespace = NamespaceRow(name, duration_ms(request.retention), created_ms)
        response = SetNamespaceResponse(namespace=self._namespace(namespace))
        asked = Request(name, request_id, "", _SET, response.SerializeToString())
        await store.set_namespace(namespace, asked, now_ms)
        facts = {"namespace": name, "retention_ms": namespace.retention_ms, "request_id": request_id}
        _audit.info("namespace set", identity=identity_of(request.identity), **facts)
        return response

    def _namespace(self, row: NamespaceRow) -> Namespace:
        return Namespace(
            name=row.name,
            retention=duration(row.retention_ms or self._node.limits.retention_ms),
            create_time=timestamp(row.created_ms) if row.created_ms else None,
        )

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
