"""Updates: what a client has asked a workflow's code to change, and its answer."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from romancy.v1.workflow_service_pb2 import (
    UPDATE_STAGE_COMPLETED,
    UpdateStage,
    UpdateWorkflowRequest,
    UpdateWorkflowResponse,
)

from romancy._calls import Calls
from romancy._calls_by_name import decode_answer
from romancy._failure import from_failure
from romancy.errors import UpdateError, UpdateRejected

R = TypeVar("R", covariant=True)


class UpdateHandle(Generic[R]):
    """An update that a workflow's code accepted."""

    def __init__(self, calls: Calls, request: UpdateWorkflowRequest, update: Any) -> None:
        self._calls = calls
        self._request = request
        self._update = update

    @property
    def update_id(self) -> str:
        """Its name in the workflow's history."""
        return self._request.request_id

    async def result(self) -> R:
        """Wait for the answer. Raises UpdateError with what the workflow's code raised, and UpdateAborted."""
        answer = await self.reach(UPDATE_STAGE_COMPLETED)
        if answer.HasField("failure"):
            raise from_failure(UpdateError, answer.failure)
        result: R = decode_answer(self._update, answer.result)
        return result

    async def reach(self, stage: UpdateStage.ValueType) -> UpdateWorkflowResponse:
        """Wait until it got so far. Raises UpdateRejected. The same request asks nothing again."""
        self._request.wait_for = stage
        while True:
            answer = await self._calls.call(lambda calls: calls.workflows.UpdateWorkflow, self._request)
            if answer.rejected:
                raise from_failure(UpdateRejected, answer.failure)
            if answer.stage >= stage:
                return answer
