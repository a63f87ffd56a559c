"""Client: starts workflows, waits for them, looks at them and stops them."""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Generic, Literal, ParamSpec, TypedDict, TypeVar, TypeVarTuple, Unpack, overload

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration

from romancy.v1.admin_service_pb2 import (
    DescribeTaskQueueRequest,
    DescribeTaskQueueResponse,
    ListSessionsRequest,
    Session,
)
from romancy.v1.history_pb2 import (
    COMPENSATION_RESOLUTION_GIVE_UP,
    COMPENSATION_RESOLUTION_MARK_DONE,
    COMPENSATION_RESOLUTION_RETRY,
    CompensationResolution,
    HistoryEvent,
)
from romancy.v1.workflow_pb2 import (
    WORKFLOW_STATUS_COMPLETED,
    WORKFLOW_STATUS_CONTINUED,
    AttributeValue,
    Signal,
    WorkflowInfo,
    WorkflowOutcome,
    WorkflowSpec,
)
from romancy.v1.workflow_service_pb2 import (
    ID_CONFLICT_POLICY_FAIL,
    ID_CONFLICT_POLICY_TERMINATE_EXISTING,
    ID_CONFLICT_POLICY_USE_EXISTING,
    ID_REUSE_POLICY_ALLOW,
    ID_REUSE_POLICY_ALLOW_IF_FAILED,
    ID_REUSE_POLICY_REJECT,
    UPDATE_STAGE_ACCEPTED,
    CancelWorkflowRequest,
    CountWorkflowsRequest,
    CountWorkflowsResponse,
    GetHistoryRequest,
    GetWorkflowRequest,
    GetWorkflowResponse,
    IdConflictPolicy,
    IdReusePolicy,
    ListWorkflowsRequest,
    QueryWorkflowRequest,
    ResolveCompensationRequest,
    SignalWithStartRequest,
    SignalWorkflowRequest,
    StartWorkflowRequest,
    TerminateWorkflowRequest,
    UpdateWorkflowRequest,
    WatchHistoryRequest,
    WorkflowFilter,
    WorkflowRef,
)

from romancy._calls import Calls, backoff_s, is_passing
from romancy._calls_by_name import decode_answer, encode_call
from romancy._channel import DEFAULT_TARGET, Endpoint
from romancy._checks import check_choice, check_type, refuse_unknown
from romancy._failure import from_failure, outcome_error
from romancy._methods import HandlerMethod, UpdateMethod
from romancy._results import Results
from romancy._starts import Starts
from romancy._updates import UpdateHandle
from romancy.context import WorkflowContext
from romancy.converter import codec
from romancy.errors import QueryError
from romancy.options import Seconds, check_seconds, in_seconds, to_duration
from romancy.refusals import refusal_of
from romancy.workflow import WorkflowDefinition, definition_of

_P = ParamSpec("_P")
_R = TypeVar("_R")
_R_co = TypeVar("_R_co", covariant=True)
_Args = TypeVarTuple("_Args")

_REUSE: Final[Mapping[str, IdReusePolicy.ValueType]] = {
    "allow": ID_REUSE_POLICY_ALLOW,
    "allow_if_failed": ID_REUSE_POLICY_ALLOW_IF_FAILED,
    "reject": ID_REUSE_POLICY_REJECT,
}
_CONFLICT: Final[Mapping[str, IdConflictPolicy.ValueType]] = {
    "fail": ID_CONFLICT_POLICY_FAIL,
    "use_existing": ID_CONFLICT_POLICY_USE_EXISTING,
    "terminate_existing": ID_CONFLICT_POLICY_TERMINATE_EXISTING,
}
_RESOLUTIONS: Final[Mapping[str, CompensationResolution.ValueType]] = {
    "retry": COMPENSATION_RESOLUTION_RETRY,
    "mark_done": COMPENSATION_RESOLUTION_MARK_DONE,
    "give_up": COMPENSATION_RESOLUTION_GIVE_UP,
}
_PAGE: Final = 256
_WATCH_FAILURES: Final = 30
"""So often in a row is a history watched again after the service was not reached."""


class StartOptions(TypedDict, total=False):
    """How a workflow is started."""

    id: str | None
    """The name of the workflow; without one the service makes it."""
    task_queue: str
    """Where its workers are; without one, "default"."""
    id_reuse: Literal["allow", "allow_if_failed", "reject"]
    """Whether an id may be used again after its last run closed; "allow" unless said."""
    id_conflict: Literal["fail", "use_existing", "terminate_existing"]
    """What happens when a run of the id is open; "fail" unless said."""
    run_timeout: Seconds | None
    """Longest time until it is undone; without one, no limit."""
    execution_timeout: Seconds | None
    """The same through all runs that continue it."""
    start_delay: Seconds | None
    """Its code runs so much later, and timeouts count from then on."""
    priority: int
    """Smaller is sooner; 0 is ordinary."""
    headers: Mapping[str, str]
    """Context that travels with every task of the workflow."""
    memo: Mapping[str, Any]
    """Values for people, shown with the workflow."""
    attributes: Mapping[str, AttributeValue]
    """Typed values, shown with the workflow."""
    build_id: str
    """The build that it is for; any unless said."""
    request_id: str
    """The same one never starts twice; without one, each call has its own."""


class WorkflowHandle(Generic[_R_co]):
    """One workflow as its client sees it: a given run, or, without a run id, the newest one of the workflow id."""

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

    async def cancel(self, reason: str = "") -> None:
        """Ask the workflow to stop and to undo what it did. Returns when that is recorded, not when it is done."""
        request = CancelWorkflowRequest(
            workflow=self._ref, reason=reason, request_id=_new_id(), identity=self._client.identity
        )
        await self._client.calls.call(lambda calls: calls.workflows.CancelWorkflow, request)

    async def terminate(self, reason: str = "") -> Sequence[str]:
        """End the workflow at once; nothing is undone. Returns the ids of the activities whose effects are left."""
        request = TerminateWorkflowRequest(
            workflow=self._ref, reason=reason, request_id=_new_id(), identity=self._client.identity
        )
        answer = await self._client.calls.call(lambda calls: calls.workflows.TerminateWorkflow, request)
        return list(answer.not_undone)

    # Talking to its code ----------------------------------------------------------------------------------------------

    @overload
    async def signal(self, signal: HandlerMethod[_P, Any], *args: _P.args, **kwargs: _P.kwargs) -> None: ...
    @overload
    async def signal(self, signal: str, *args: Any) -> None: ...
    async def signal(self, signal: Any, *args: Any, **kwargs: Any) -> None:
        """Tell the workflow's code something. Durable when this returns; signals of one sender keep their order."""
        name, arguments = encode_call("signal", signal, args, kwargs)
        request = SignalWorkflowRequest(
            workflow=self._ref,
            signal=Signal(name=name, arguments=arguments),
            request_id=_new_id(),
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
    async def update(self, update: str, *args: Any) -> Any: ...
    async def update(self, update: Any, *args: Any, **kwargs: Any) -> Any:
        """Have the workflow's code change something, and wait for its answer.

        Raises UpdateRejected, UpdateError with what its code raised, UpdateAborted when the workflow ended first.
        """
        asked: UpdateHandle[Any] = await self.start_update(update, *args, **kwargs)
        return await asked.result()

    @overload
    async def start_update(
        self, update: UpdateMethod[_P, _R], *args: _P.args, **kwargs: _P.kwargs
    ) -> UpdateHandle[_R]: ...
    @overload
    async def start_update(self, update: str, *args: Any) -> UpdateHandle[Any]: ...
    async def start_update(self, update: Any, *args: Any, **kwargs: Any) -> UpdateHandle[Any]:
        """Like `update`, but returns as soon as the workflow's code accepted it. Raises UpdateRejected."""
        name, arguments = encode_call("update", update, args, kwargs)
        request = UpdateWorkflowRequest(
            workflow=self._ref,
            name=name,
            arguments=arguments,
            request_id=_new_id(),
            wait_for=UPDATE_STAGE_ACCEPTED,
            identity=self._client.identity,
        )
        asked: UpdateHandle[Any] = UpdateHandle(self._client.calls, request, update)
        await asked.reach(UPDATE_STAGE_ACCEPTED)
        return asked

    async def resolve_compensation(
        self, compensation_id: str, resolution: Literal["retry", "mark_done", "give_up"], reason: str = ""
    ) -> None:
        """Say what becomes of a compensation that failed for good: try again, done otherwise, or never."""
        check_choice("resolution", resolution, _RESOLUTIONS)
        request = ResolveCompensationRequest(
            workflow=self._ref,
            compensation_id=compensation_id,
            resolution=_RESOLUTIONS[resolution],
            reason=reason,
            request_id=_new_id(),
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
            failures += 1
            await asyncio.sleep(backoff_s(failures))


class Client:
    """A connection to the service, for one event loop. Calls outlive restarts of the service.

    async with Client("localhost:7233") as client:
        handle = await client.start_workflow(order_processing, order, id=f"order-{order.order_id}")
        result = await handle.result()
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        namespace: str = "default",
        token: str | None = None,
        tls: bool = False,
        tls_ca: str | Path | None = None,
        tls_cert: str | Path | None = None,
        tls_key: str | Path | None = None,
        identity: str | None = None,
        patience: Seconds = 60.0,
    ) -> None:
        """`token` and the `tls` files prove who we are; `identity` says it for people, where neither is given.

        `patience` is how long a call is tried again while the service cannot be reached; then it raises
        ServiceUnavailable.
        """
        check_seconds("patience", patience)
        endpoint = Endpoint(target, token, tls, tls_ca, tls_cert, tls_key)
        patience_s = in_seconds(patience)
        self.namespace = namespace
        self.identity = identity or f"{socket.gethostname()}-{os.getpid()}"
        self.calls: Final = Calls(endpoint, patience_s)
        self.results: Final = Results(self.calls, namespace, patience_s)
        self._starts = Starts(self.calls, patience_s)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Whoever still waits for something is cancelled."""
        await self.results.close()
        await self._starts.close()
        await self.calls.close()

    def ref(self, workflow_id: str, run_id: str | None = None) -> WorkflowRef:
        """The name of a run in this client's namespace."""
        return WorkflowRef(namespace=self.namespace, workflow_id=workflow_id, run_id=run_id or "")

    # Starting -------------------------------------------------------------------------------------------------------

    @overload
    async def start_workflow(
        self,
        workflow: Callable[[WorkflowContext, *_Args], Coroutine[Any, Any, _R]],
        *args: *_Args,
        **options: Unpack[StartOptions],
    ) -> WorkflowHandle[_R]: ...
    @overload
    async def start_workflow(
        self, workflow: str, *args: Any, **options: Unpack[StartOptions]
    ) -> WorkflowHandle[Any]: ...
    async def start_workflow(  # type: ignore[misc]  # mypy takes `*args: Any` for less than `*args: *_Args`
        self, workflow: Any, *args: Any, **options: Unpack[StartOptions]
    ) -> WorkflowHandle[Any]:
        """Start a workflow, by its definition or its name; durable when this returns. Arguments go by position.

        Raises WorkflowAlreadyOpen, WorkflowIdUsed, ConversionError, and RequestRefused for what else is wrong.
        """
        started = await self._starts.start(self._start_request(workflow, args, options))
        return WorkflowHandle(self, started.workflow_id, started.run_id, _decoder(definition_of(workflow)))

    def _start_request(self, workflow: Any, args: tuple[Any, ...], options: StartOptions) -> StartWorkflowRequest:
        _check(options)
        name, arguments = _encode(definition_of(workflow), args)
        spec = WorkflowSpec(
            workflow_type=name,
            task_queue=options.get("task_queue", ""),
            arguments=arguments,
            run_timeout=_optional(options.get("run_timeout")),
            execution_timeout=_optional(options.get("execution_timeout")),
            start_delay=_optional(options.get("start_delay")),
            priority=options.get("priority", 0),
            headers=options.get("headers"),
            memo={key: codec(Any).encode(value, f"memo {key!r}") for key, value in options.get("memo", {}).items()},
            attributes=options.get("attributes"),
            build_id=options.get("build_id", ""),
        )
        return StartWorkflowRequest(
            namespace=self.namespace,
            workflow_id=options.get("id") or "",
            spec=spec,
            request_id=options.get("request_id") or _new_id(),
            id_reuse_policy=_REUSE[options.get("id_reuse", "allow")],
            id_conflict_policy=_CONFLICT[options.get("id_conflict", "fail")],
            identity=self.identity,
        )

    async def signal_with_start(
        self,
        workflow: Callable[[WorkflowContext, *_Args], Coroutine[Any, Any, _R]] | str,
        *args: *_Args,
        signal: str | HandlerMethod[..., Any],
        signal_args: Sequence[Any] = (),
        **options: Unpack[StartOptions],
    ) -> WorkflowHandle[_R]:
        """Send a signal to the open run of a workflow id, or start one that gets it first.

        Raises as `start_workflow` does, and TypeError without an id.
        """
        if not options.get("id"):
            raise TypeError("signal_with_start needs the id of the workflow that is to get the signal: give id=...")
        name, arguments = encode_call("signal", signal, tuple(signal_args), {})
        start = self._start_request(workflow, args, options)
        request = SignalWithStartRequest(start=start, signal=Signal(name=name, arguments=arguments))
        told = await self.calls.call(lambda calls: calls.workflows.SignalWithStart, request)
        return WorkflowHandle(self, told.workflow_id, told.run_id, _decoder(definition_of(workflow)))

    @overload
    async def execute_workflow(
        self,
        workflow: Callable[[WorkflowContext, *_Args], Coroutine[Any, Any, _R]],
        *args: *_Args,
        **options: Unpack[StartOptions],
    ) -> _R: ...
    @overload
    async def execute_workflow(self, workflow: str, *args: Any, **options: Unpack[StartOptions]) -> Any: ...
    async def execute_workflow(  # type: ignore[misc]  # as start_workflow
        self, workflow: Any, *args: Any, **options: Unpack[StartOptions]
    ) -> Any:
        """Start a workflow and wait for its result; see `start_workflow` and `WorkflowHandle.result`."""
        handle: WorkflowHandle[Any] = await self.start_workflow(workflow, *args, **options)
        return await handle.result()

    @overload
    def get_handle(
        self,
        workflow_id: str,
        run_id: str | None = None,
        *,
        workflow: Callable[[WorkflowContext, *tuple[Any, ...]], Coroutine[Any, Any, _R]],
    ) -> WorkflowHandle[_R]: ...
    @overload
    def get_handle(self, workflow_id: str, run_id: str | None = None) -> WorkflowHandle[Any]: ...
    def get_handle(self, workflow_id: str, run_id: str | None = None, *, workflow: Any = "") -> WorkflowHandle[Any]:
        """A workflow that was started before, here or elsewhere; nothing is asked of the service yet.

        With its definition, results come as its annotation says.
        """
        return WorkflowHandle(self, workflow_id, run_id, _decoder(definition_of(workflow)))

    # Looking --------------------------------------------------------------------------------------------------------

    async def list_workflows(
        self, where: WorkflowFilter | None = None, *, limit: int | None = None
    ) -> AsyncIterator[WorkflowInfo]:
        """Workflows, newest first; all of them, or `limit`."""
        request = ListWorkflowsRequest(namespace=self.namespace, filter=where, page_size=min(limit or _PAGE, _PAGE))
        left = limit
        while True:
            page = await self.calls.call(lambda calls: calls.workflows.ListWorkflows, request)
            for info in page.workflows[:left]:
                yield info
            left = None if left is None else left - len(page.workflows)
            if not page.next_page_token or (left is not None and left <= 0):
                return
            request.page_token = page.next_page_token

    async def count_workflows(self, where: WorkflowFilter | None = None) -> CountWorkflowsResponse:
        """How many there are: exactly up to 10,000, above that an estimate."""
        request = CountWorkflowsRequest(namespace=self.namespace, filter=where)
        return await self.calls.call(lambda calls: calls.workflows.CountWorkflows, request)

    async def list_workers(self, task_queue: str = "") -> Sequence[Session]:
        """The workers' sessions, of all queues or of one."""
        request = ListSessionsRequest(namespace=self.namespace, task_queue=task_queue)
        return (await self.calls.call(lambda calls: calls.admin.ListSessions, request)).sessions

    async def describe_task_queue(self, task_queue: str = "") -> DescribeTaskQueueResponse:
        """What waits in a queue ("default" unless said), and who serves it."""
        request = DescribeTaskQueueRequest(namespace=self.namespace, task_queue=task_queue)
        return await self.calls.call(lambda calls: calls.admin.DescribeTaskQueue, request)


def _check(options: StartOptions) -> None:
    """Raise TypeError or ValueError for what is no option, or not of its type, before anything is sent."""
    refuse_unknown("start_workflow", options, StartOptions.__annotations__)
    check_choice("id_reuse", options.get("id_reuse", "allow"), _REUSE)
    check_choice("id_conflict", options.get("id_conflict", "fail"), _CONFLICT)
    for name in ("run_timeout", "execution_timeout", "start_delay"):
        check_seconds(name, options.get(name))
    check_type("priority", options.get("priority", 0), int, "a whole number")
    check_type("id", options.get("id") or "", str, "a text")
    check_type("task_queue", options.get("task_queue", ""), str, "the name of a queue")
    for name in ("headers", "memo", "attributes"):
        check_type(name, options.get(name, {}), Mapping, "a mapping of names to values")
    for name, value in options.get("headers", {}).items():
        check_type(f"header {name!r}", value, str, "a text")
    for name, attribute in options.get("attributes", {}).items():
        check_type(f"attribute {name!r}", attribute, AttributeValue, "an AttributeValue, as AttributeValue(text=...)")


def _encode(workflow: Any, args: tuple[Any, ...]) -> tuple[str, list[Any]]:
    if isinstance(workflow, WorkflowDefinition):
        return workflow.name, workflow.encode_arguments(args, {})
    if isinstance(workflow, str):
        return workflow, [codec(Any).encode(value, f"argument {n} of {workflow}") for n, value in enumerate(args, 1)]
    raise TypeError(f"{workflow!r} is no workflow: give a function decorated with @workflow, or the name of one")


def _decoder(workflow: Any) -> Callable[[WorkflowOutcome], Any]:
    def decode(outcome: WorkflowOutcome) -> Any:
        if outcome.status != WORKFLOW_STATUS_COMPLETED:
            raise outcome_error(outcome)
        if isinstance(workflow, WorkflowDefinition):
            return workflow.decode_result(outcome.result)
        return codec(Any).decode(outcome.result, f"the result of {workflow or 'the workflow'}")

    return decode


def _optional(span: Seconds | None) -> Duration | None:
    return None if span is None else to_duration(span)


def _new_id() -> str:
    return uuid.uuid4().hex
