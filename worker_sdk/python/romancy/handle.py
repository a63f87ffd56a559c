"""Handle: one workflow, as whoever started it or knows its id sees it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, ParamSpec, TypeVar, overload

import grpc.aio

from romancy.v1.history_pb2 import (
    COMPENSATION_RESOLUTION_GIVE_UP,
    COMPENSATION_RESOLUTION_MARK_DONE,
    COMPENSATION_RESOLUTION_RETRY,
    CompensationResolution,
    HistoryEvent,
)
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_CONTINUED, Signal, WorkflowOutcome
from romancy.v1.workflow_service_pb2 import (
    UPDATE_STAGE_ACCEPTED,
    CancelWorkflowRequest,
    DeleteWorkflowRequest,
    GetHistoryRequest,
    GetWorkflowRequest,
    GetWorkflowResponse,
    QueryWorkflowRequest,
    ResolveCompensationRequest,
    SignalWorkflowRequest,
    TerminateWorkflowRequest,
    UpdateWorkflowRequest,
    WatchHistoryRequest,
    WorkflowRef,
)

from romancy._calls import backoff_s, is_asked_to_stop, is_passing
from romancy._calls_by_name import decode_answer, encode_call
from romancy._checks import check_choice, check_type
from romancy._failure import from_failure
from romancy._methods import HandlerMethod, UpdateMethod
from romancy._updates import UpdateHandle
from romancy.errors import QueryError
from romancy.refusals import refusal_of

if TYPE_CHECKING:
    from romancy.client import Client

_P = ParamSpec("_P")
_R = TypeVar("_R")
_R_co = TypeVar("_R_co", covariant=True)

_RESOLUTIONS: Final[Mapping[str, CompensationResolution.ValueType]] = {
    "retry": COMPENSATION_RESOLUTION_RETRY,
    "mark_done": COMPENSATION_RESOLUTION_MARK_DONE,
    "give_up": COMPENSATION_RESOLUTION_GIVE_UP,
}
_PAGE: Final = 256
_WATCH_FAILURES: Final = 30
"""So often in a row is a history watched again after the service was not reached."""


class WorkflowHandle(Generic[_R_co]):
    """One workflow as its client sees it: a given run, or, without a run id, the newest one of the workflow id.

    What changes something takes a `request_id`: the same one acts once, and is answered alike. Without one, each call
    has its own.
    """

    def __init__(
        self, client: Client, workflow_id: str, run_id: str | None, decode: Callable[[WorkflowOutcome], _R_co]
    ) -> None:
        self._client = client
        self.workflow_id = workflow_id
        self.run_id = run_id
        """None: the newest run, whichever that is when something is asked of it."""
        self._decode = decode

    def __repr__(self) -> str:
        return f"<workflow {self.workflow_id!r}, {f'run {self.run_id}' if self.run_id else 'newest run'}>"

    @property
    def _ref(self) -> WorkflowRef:
        return self._client.ref(self.workflow_id, self.run_id)

    async def result(self) -> _R_co:
        """Wait until the workflow has an outcome, through restarts of the service, and return its result.

        Raises WorkflowFailed, WorkflowCancelled, WorkflowTerminated or WorkflowTimedOut when there is none. Use
        `asyncio.timeout` to wait for a limited time; waiting again later is always possible.
        """
        return self._decode(await self.outcome())

    async def outcome(self) -> WorkflowOutcome:
        """Wait like `result`, and return the outcome as the contract has it, whatever it is.

        A workflow that goes on in another run has the outcome of the last one.
        """
        run_id = self.run_id or (await self.describe()).info.run_id
        while (outcome := await self._client.results.wait(run_id)).status == WORKFLOW_STATUS_CONTINUED:
            run_id = outcome.continued_run_id
        return outcome

    async def describe(self) -> GetWorkflowResponse:
        """The workflow as it stands: status, open activities and timers, and what it waits for."""
        request = GetWorkflowRequest(workflow=self._ref)
        return await self._client.calls.call(lambda calls: calls.workflows.GetWorkflow, request)

    async def cancel(self, reason: str = "", *, request_id: str | None = None) -> None:
        """Ask the workflow to stop and to undo what it did. Returns when that is recorded, not when it is done."""
        request = CancelWorkflowRequest(
            workflow=self._ref, reason=reason, request_id=request_id or new_id(), identity=self._client.identity
        )
        await self._client.calls.call(lambda calls: calls.workflows.CancelWorkflow, request)

    async def terminate(self, reason: str = "", *, request_id: str | None = None) -> Sequence[str]:
        """End the workflow at once; nothing is undone. Returns the ids of the activities whose effects are left."""
        request = TerminateWorkflowRequest(
            workflow=self._ref, reason=reason, request_id=request_id or new_id(), identity=self._client.identity
        )
        answer = await self._client.calls.call(lambda calls: calls.workflows.TerminateWorkflow, request)
        return list(answer.not_undone)

    async def delete(self, reason: str = "", *, request_id: str | None = None) -> None:
        """Forget the workflow, which must be closed, with its history. Nobody can find it any more."""
        request = DeleteWorkflowRequest(
            workflow=self._ref, reason=reason, request_id=request_id or new_id(), identity=self._client.identity
        )
        await self._client.calls.call(lambda calls: calls.workflows.DeleteWorkflow, request)

    # Talking to its code ----------------------------------------------------------------------------------------------

    @overload
    async def signal(self, signal: HandlerMethod[_P, Any], *args: _P.args, **kwargs: _P.kwargs) -> None: ...
    @overload
    async def signal(self, signal: HandlerMethod[..., Any], *args: Any, request_id: str, **kwargs: Any) -> None: ...
    @overload
    async def signal(self, signal: str, *args: Any, request_id: str | None = None) -> None: ...
    async def signal(self, signal: Any, *args: Any, **kwargs: Any) -> None:
        """Tell the workflow's code something. Durable when this returns; signals of one sender keep their order.

        The same `request_id` tells it once.
        """
        request_id = _request_id(signal, kwargs)
        name, arguments = encode_call("signal", signal, args, kwargs)
        request = SignalWorkflowRequest(
            workflow=self._ref,
            signal=Signal(name=name, arguments=arguments),
            request_id=request_id,
            identity=self._client.identity,
        )
        await self._client.calls.call(lambda calls: calls.workflows.SignalWorkflow, request)

    @overload
    async def query(self, query: HandlerMethod[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R: ...
    @overload
    async def query(self, query: str, *args: Any) -> Any: ...
    async def query(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Ask the workflow's code something, closed workflows too. Needs a worker that has its type.

        Raises QueryError with what its code raised, and QueryTimeout.
        """
        name, arguments = encode_call("query", query, args, kwargs)
        request = QueryWorkflowRequest(workflow=self._ref, name=name, arguments=arguments)
        answer = await self._client.calls.call(lambda calls: calls.workflows.QueryWorkflow, request)
        if answer.HasField("failure"):
            raise from_failure(QueryError, answer.failure)
        return decode_answer(query, answer.result)

    @overload
    async def update(self, update: UpdateMethod[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R: ...
    @overload
    async def update(self, update: UpdateMethod[..., _R], *args: Any, request_id: str, **kwargs: Any) -> _R: ...
    @overload
    async def update(self, update: str, *args: Any, request_id: str | None = None) -> Any: ...
    async def update(self, update: Any, *args: Any, **kwargs: Any) -> Any:
        """Have the workflow's code change something, and wait for its answer.

        The same `request_id` asks once, and gets the same answer.
        Raises UpdateRejected, UpdateError with what its code raised, UpdateAborted when the workflow ended first.
        """
        asked: UpdateHandle[Any] = await self.start_update(update, *args, **kwargs)
        return await asked.result()

    @overload
    async def start_update(
        self, update: UpdateMethod[_P, _R], *args: _P.args, **kwargs: _P.kwargs
    ) -> UpdateHandle[_R]: ...
    @overload
    async def start_update(
        self, update: UpdateMethod[..., _R], *args: Any, request_id: str, **kwargs: Any
    ) -> UpdateHandle[_R]: ...
    @overload
    async def start_update(self, update: str, *args: Any, request_id: str | None = None) -> UpdateHandle[Any]: ...
    async def start_update(self, update: Any, *args: Any, **kwargs: Any) -> UpdateHandle[Any]:
        """Like `update`, but returns as soon as the workflow's code accepted it. Raises UpdateRejected."""
        request_id = _request_id(update, kwargs)
        name, arguments = encode_call("update", update, args, kwargs)
        request = UpdateWorkflowRequest(
            workflow=self._ref,
            name=name,
            arguments=arguments,
            request_id=request_id,
            wait_for=UPDATE_STAGE_ACCEPTED,
            identity=self._client.identity,
        )
        asked: UpdateHandle[Any] = UpdateHandle(self._client.calls, request, update)
        await asked.reach(UPDATE_STAGE_ACCEPTED)
        return asked

    async def resolve_compensation(
        self,
        compensation_id: str,
        resolution: Literal["retry", "mark_done", "give_up"],
        reason: str = "",
        *,
        request_id: str | None = None,
    ) -> None:
        """Say what becomes of a compensation that failed for good: try again, done otherwise, or never."""
        check_choice("resolution", resolution, _RESOLUTIONS)
        request = ResolveCompensationRequest(
            workflow=self._ref,
            compensation_id=compensation_id,
            resolution=_RESOLUTIONS[resolution],
            reason=reason,
            request_id=request_id or new_id(),
            identity=self._client.identity,
        )
        await self._client.calls.call(lambda calls: calls.workflows.ResolveCompensation, request)

    async def history(self) -> AsyncIterator[HistoryEvent]:
        """The events recorded so far, in order of their numbers."""
        request = GetHistoryRequest(workflow=self._ref, page_size=_PAGE)
        while True:
            page = await self._client.calls.call(lambda calls: calls.workflows.GetHistory, request)
            for event in page.events:
                yield event
            if not page.more:
                return
            request.workflow.run_id = page.run_id  # the newest run may be another one by now
            request.after_event_id = page.events[-1].event_id

    async def watch(self, after_event_id: int = 0) -> AsyncIterator[HistoryEvent]:
        """The events recorded so far, then each one as it is recorded, until the run is closed."""
        request = WatchHistoryRequest(workflow=self._ref, after_event_id=after_event_id)
        failures = 0
        while True:
            stub = self._client.calls.workflows.WatchHistory
            try:
                async for response in stub(request, metadata=self._client.calls.metadata):
                    failures = 0
                    request.workflow.run_id = response.run_id
                    for event in response.events:
                        request.after_event_id = event.event_id
                        yield event
                return
            except grpc.aio.AioRpcError as error:
                if not is_passing(error) or failures > _WATCH_FAILURES:
                    raise refusal_of(error) from error
            except asyncio.CancelledError:
                if is_asked_to_stop():
                    raise
            failures += 1
            await asyncio.sleep(backoff_s(failures))


def _request_id(method: Any, kwargs: dict[str, Any]) -> str:
    """The request id of a call of a handler, taken out of what else it was given by name. Raises TypeError."""
    if "request_id" not in kwargs:
        return new_id()
    if isinstance(method, HandlerMethod) and any(p.name == "request_id" for p in method.handler.signature.parameters):
        raise TypeError(
            f"{method!r} has a parameter request_id of its own: give that by position; to give the call a request id, "
            f"name {method.name!r} instead of the method"
        )
    request_id: str | None = kwargs.pop("request_id")
    check_type("request_id", request_id or "", str, "a text")
    return request_id or new_id()


def new_id() -> str:
    """A request id: the same one never acts twice."""
    return uuid.uuid4().hex
