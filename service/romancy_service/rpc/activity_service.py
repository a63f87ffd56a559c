"""ActivityService: ends attempts of activities, and hears of their progress, from elsewhere than their workers."""

from __future__ import annotations

from typing import Any

import grpc

from romancy.v1.activity_service_pb2 import (
    ActivityRef,
    CompleteActivityRequest,
    CompleteActivityResponse,
    HeartbeatActivityRequest,
    HeartbeatActivityResponse,
)
from romancy.v1.activity_service_pb2_grpc import ActivityServiceServicer
from romancy.v1.history_pb2 import Author
from romancy.v1.workflow_service_pb2 import WorkflowRef

from romancy_service.core.failures import cut
from romancy_service.core.triggers import CompleteActivity
from romancy_service.elsewhere import NOBODY, AttemptRef, Elsewhere
from romancy_service.errors import RequestIdReused
from romancy_service.node import Node
from romancy_service.rpc.auth import identity_of
from romancy_service.rpc.once import is_of
from romancy_service.rpc.validate import check_completion, check_heartbeat, namespace_of
from romancy_service.starter import new_id
from romancy_service.submission import Recorded, RequestKey

# The generated servicer names its methods as the contract does.


class ActivityService(ActivityServiceServicer):
    """Any replica can end any attempt."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._elsewhere = Elsewhere(node)

    async def CompleteActivity(
        self, request: CompleteActivityRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> CompleteActivityResponse:
        """End an attempt."""
        limits = self._node.limits
        check_completion(request, limits)
        ref = await self._find(request.activity)
        kind = request.WhichOneof("outcome")
        outcome = CompleteActivity(
            NOBODY,
            leased_ms=0,
            result=request.result if kind == "result" else None,
            failure=cut(request.failure, limits) if kind == "failure" else None,
            cancel_details=request.cancelled.details,
            nothing_done=request.cancelled.nothing_done,
            author=Author(name=identity_of(request.identity)),
        )
        response = CompleteActivityResponse(run_id=ref.run_id)
        namespace = namespace_of(request.activity.namespace, limits)
        method = _method(ref)
        key = RequestKey(namespace, request.request_id or new_id(), method, lambda _: response.SerializeToString())
        done = await self._elsewhere.complete(ref, outcome, key)
        if done is None:
            return CompleteActivityResponse(run_id=ref.run_id, duplicate=True)
        if not isinstance(done, Recorded):
            return response
        if done.method != method or not await is_of(self._node.store, _workflow(request.activity, ref), done.run_id):
            raise RequestIdReused(key.request_id, done.method)
        return CompleteActivityResponse.FromString(done.reply)

    async def HeartbeatActivity(
        self, request: HeartbeatActivityRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> HeartbeatActivityResponse:
        """An attempt goes on."""
        check_heartbeat(request, self._node.limits)
        ref = await self._find(request.activity)
        details = request.details.SerializeToString() if request.HasField("details") else None
        return HeartbeatActivityResponse(cancel_requested=await self._elsewhere.beat(ref, details))

    async def _find(self, activity: ActivityRef) -> AttemptRef:
        namespace = namespace_of(activity.namespace, self._node.limits)
        if activity.token:
            return self._elsewhere.by_token(namespace, activity.token)
        return await self._elsewhere.by_id(namespace, activity.workflow_id, activity.run_id, activity.activity_id)


def _method(ref: AttemptRef) -> str:
    """What a request id is used for: the rpc and the attempt, if one is said. The run is known besides."""
    return f"CompleteActivity of {ref.task_id}" + (f", attempt {ref.attempt}" if ref.attempt else "")


def _workflow(activity: ActivityRef, ref: AttemptRef) -> WorkflowRef:
    """What a request names: with a token a run, else maybe whichever is the newest."""
    return WorkflowRef(
        namespace=activity.namespace,
        workflow_id=activity.workflow_id,
        run_id=ref.run_id if activity.token else activity.run_id,
    )
