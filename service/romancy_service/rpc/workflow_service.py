"""WorkflowService: what clients call. One short method for each rpc."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, TypeVar

import grpc
import structlog

from romancy.v1.history_pb2 import HistoryEvent, UpdateReceived
from romancy.v1.workflow_pb2 import Signal
from romancy.v1.workflow_service_pb2 import (
    UPDATE_STAGE_COMPLETED,
    CancelWorkflowRequest,
    CancelWorkflowResponse,
    CountWorkflowsRequest,
    CountWorkflowsResponse,
    DeleteWorkflowRequest,
    DeleteWorkflowResponse,
    GetHistoryRequest,
    GetHistoryResponse,
    GetWorkflowRequest,
    GetWorkflowResponse,
    GetWorkflowResultRequest,
    GetWorkflowResultResponse,
    ListWorkflowsRequest,
    ListWorkflowsResponse,
    QueryWorkflowRequest,
    QueryWorkflowResponse,
    ResolveCompensationRequest,
    ResolveCompensationResponse,
    SignalWithStartRequest,
    SignalWithStartResponse,
    SignalWorkflowRequest,
    SignalWorkflowResponse,
    StartWorkflowRequest,
    StartWorkflowResponse,
    StartWorkflowResult,
    StartWorkflowsRequest,
    StartWorkflowsResponse,
    TerminateWorkflowRequest,
    TerminateWorkflowResponse,
    UpdateWorkflowRequest,
    UpdateWorkflowResponse,
    WaitResultsRequest,
    WaitResultsResponse,
    WatchHistoryRequest,
    WatchHistoryResponse,
    WorkflowRef,
)
from romancy.v1.workflow_service_pb2_grpc import WorkflowServiceServicer

from romancy_service import faults
from romancy_service.core.decide import Reply
from romancy_service.core.run import OPEN_STATUSES
from romancy_service.core.triggers import (
    RequestCancel,
    RequestUpdate,
    ResolveCompensation,
    SendSignal,
    Terminate,
    Trigger,
)
from romancy_service.describe import describe, describe_summary
from romancy_service.errors import (
    InvalidField,
    RequestIdReused,
    RomancyError,
    WorkflowClosed,
    WorkflowNotFound,
    WorkflowOpen,
    WorkflowUnsettled,
)
from romancy_service.node import Node
from romancy_service.rpc.auth import identity_of
from romancy_service.rpc.errors import error_of
from romancy_service.rpc.once import is_of, once
from romancy_service.rpc.pages import fit, read_runs_token, runs_token
from romancy_service.rpc.validate import (
    check_change,
    check_filter,
    check_query,
    check_ref,
    check_signal_request,
    check_signal_with_start,
    check_start,
    check_update,
    namespace_of,
    page_size,
    task_queue_of,
    wait_ms,
)
from romancy_service.rpc.waiting import Waiting
from romancy_service.starter import Starter, new_id
from romancy_service.store.store import Request
from romancy_service.submission import Recorded, RequestKey

# The generated servicer names its methods as the contract does.

_audit = structlog.get_logger("romancy.audit")

_DELETE: Final = "DeleteWorkflow"
Context = grpc.aio.ServicerContext[Any, Any]
Change = CancelWorkflowRequest | TerminateWorkflowRequest | ResolveCompensationRequest
Changed = TypeVar(
    "Changed",
    CancelWorkflowResponse,
    TerminateWorkflowResponse,
    ResolveCompensationResponse,
    SignalWorkflowResponse,
    UpdateWorkflowResponse,
)


class WorkflowService(WorkflowServiceServicer):
    """Checks, translates, calls the engine or the store."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._starter = Starter(node.engine, node.store)

    # Starting -----------------------------------------------------------------------------------------------------

    async def StartWorkflow(self, request: StartWorkflowRequest, context: Context) -> StartWorkflowResponse:
        """Start a run; with `wait`, wait for its outcome too."""
        response = await self._start(request, identity_of(request.identity))
        patience_ms = wait_ms("wait", request.wait, self._node.limits)
        if patience_ms:
            outcome = await self._node.results.outcome(response.run_id, patience_ms / 1000)
            if outcome is not None:
                response.outcome.CopyFrom(outcome)
        return response

    async def StartWorkflows(self, request: StartWorkflowsRequest, context: Context) -> StartWorkflowsResponse:
        """Start many runs, each for itself."""
        most = self._node.limits.starts_per_request
        if len(request.requests) > most:
            raise InvalidField(
                "requests", f"has {len(request.requests)} entries, at most {most} are allowed", limit=most
            )
        started = await asyncio.gather(
            *(self._start(start, identity_of(start.identity)) for start in request.requests),
            return_exceptions=True,
        )
        return StartWorkflowsResponse(results=[_start_result(outcome) for outcome in started])

    async def _start(self, request: StartWorkflowRequest, identity: str) -> StartWorkflowResponse:
        check_start(request, self._node.limits)
        request.spec.task_queue = task_queue_of("spec.task_queue", request.spec.task_queue, self._node.limits)
        namespace = namespace_of(request.namespace, self._node.limits)
        return await self._starter.start(namespace, request, identity, exact=bool(request.request_id))

    # Reading ------------------------------------------------------------------------------------------------------

    async def GetWorkflow(self, request: GetWorkflowRequest, context: Context) -> GetWorkflowResponse:
        """One run with what it waits for."""
        run_id = await self._find(request.workflow)
        view = await self._node.store.get_run(run_id, self._node.limits)
        if view is None:
            raise WorkflowNotFound(run_id)
        return await describe(self._node, view)

    async def GetWorkflowResult(self, request: GetWorkflowResultRequest, context: Context) -> GetWorkflowResultResponse:
        """Wait until the run has an outcome."""
        patience_ms = wait_ms("wait", request.wait, self._node.limits)
        if not request.HasField("wait"):
            patience_ms = self._node.limits.result_wait_ms
        run_id = await self._find(request.workflow)
        outcome = await self._node.results.outcome(run_id, patience_ms / 1000)
        return GetWorkflowResultResponse(run_id=run_id, outcome=outcome)

    async def WaitResults(
        self, request_iterator: AsyncIterator[WaitResultsRequest], context: Context
    ) -> AsyncIterator[WaitResultsResponse]:
        """Answer each run once, when it has an outcome; many in one message when they come together."""
        wait = Waiting(self._node)
        reader = asyncio.create_task(wait.read(request_iterator))
        try:
            with self._node.results.leaving(wait.leave):
                async for results in wait.answers():
                    yield WaitResultsResponse(results=results)
            await reader
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            wait.stop()

    async def ListWorkflows(self, request: ListWorkflowsRequest, context: Context) -> ListWorkflowsResponse:
        """One page of runs, newest first."""
        limits = self._node.limits
        namespace = namespace_of(request.namespace, limits)
        check_filter("filter", request.filter, limits)
        size = page_size("page_size", request.page_size, limits.page_runs, limits.max_page_runs)
        after = read_runs_token(request.page_token, namespace, request.filter, limits) if request.page_token else None
        runs = await self._node.store.list_runs(namespace, request.filter, after, size + 1)
        token = ""
        page = fit([describe_summary(run, limits) for run in runs[:size]], limits.page_bytes)
        if len(runs) > len(page):
            last = runs[len(page) - 1]
            token = runs_token(namespace, request.filter, last.start_ms, last.run_id)
        return ListWorkflowsResponse(workflows=page, next_page_token=token)

    async def CountWorkflows(self, request: CountWorkflowsRequest, context: Context) -> CountWorkflowsResponse:
        """How many runs."""
        namespace = namespace_of(request.namespace, self._node.limits)
        check_filter("filter", request.filter, self._node.limits)
        count, estimated = await self._node.store.count_runs(namespace, request.filter)
        return CountWorkflowsResponse(count=count, estimated=estimated)

    async def GetHistory(self, request: GetHistoryRequest, context: Context) -> GetHistoryResponse:
        """One page of a run's history."""
        limits = self._node.limits
        size = page_size("page_size", request.page_size, limits.page_events, limits.max_page_events)
        run_id = await self._find(request.workflow)
        events = await self._node.store.show_history(
            run_id, request.after_event_id, size + 1, max_bytes=limits.page_bytes
        )
        page = fit(events[:size], limits.page_bytes)
        more = len(events) > len(page)
        if not more and page:
            more = bool(await self._node.store.show_history(run_id, page[-1].event_id, 1, max_bytes=1))
        return GetHistoryResponse(run_id=run_id, events=page, more=more)

    async def WatchHistory(self, request: WatchHistoryRequest, context: Context) -> AsyncIterator[WatchHistoryResponse]:
        """A run's history, first what is there, then what comes."""
        limits, store, results = self._node.limits, self._node.store, self._node.results
        run_id = await self._find(request.workflow)
        after = request.after_event_id
        grown = asyncio.Event()
        results.watch(run_id, grown)
        try:
            while True:
                grown.clear()
                events = await store.show_history(run_id, after, limits.page_events, max_bytes=limits.page_bytes)
                if events:
                    page = fit(events, limits.page_bytes)
                    after = page[-1].event_id
                    yield WatchHistoryResponse(run_id=run_id, events=page)
                    if _ends(page[-1]):
                        return
                    continue
                summary = await store.get_summary(run_id)
                if summary is None:
                    raise WorkflowNotFound(run_id)
                if summary.status not in OPEN_STATUSES and summary.last_event_id <= after:
                    return
                with results.leaving(grown.set):
                    await grown.wait()
        finally:
            results.unwatch(run_id, grown)

    # Changing -----------------------------------------------------------------------------------------------------

    async def CancelWorkflow(self, request: CancelWorkflowRequest, context: Context) -> CancelWorkflowResponse:
        """Ask a run to stop and undo what it did."""
        trigger = RequestCancel(request.reason, identity_of(request.identity))
        return await self._change("CancelWorkflow", request, trigger, CancelWorkflowResponse, lambda _: {})

    async def TerminateWorkflow(self, request: TerminateWorkflowRequest, context: Context) -> TerminateWorkflowResponse:
        """End a run at once."""
        trigger = Terminate(request.reason, identity_of(request.identity))
        return await self._change(
            "TerminateWorkflow",
            request,
            trigger,
            TerminateWorkflowResponse,
            lambda reply: {"not_undone": reply.not_undone},
        )

    async def ResolveCompensation(
        self, request: ResolveCompensationRequest, context: Context
    ) -> ResolveCompensationResponse:
        """Say what becomes of a compensation that failed for good."""
        identity = identity_of(request.identity)
        trigger = ResolveCompensation(request.compensation_id, request.resolution, request.reason, identity)
        method = f"ResolveCompensation {request.compensation_id}"
        return await self._change(method, request, trigger, ResolveCompensationResponse, lambda _: {})

    async def DeleteWorkflow(self, request: DeleteWorkflowRequest, context: Context) -> DeleteWorkflowResponse:
        """Forget a closed run."""
        check_change(request, self._node.limits)
        namespace = namespace_of(request.workflow.namespace, self._node.limits)
        request_id = request.request_id or new_id()

        method = " ".join((_DELETE, "of", *filter(None, (request.workflow.workflow_id, request.workflow.run_id))))

        async def carry_out() -> DeleteWorkflowResponse:
            return await self._delete(request, namespace, request_id, method)

        return await once(self._node.store, namespace, request_id, method, DeleteWorkflowResponse, carry_out)

    async def _delete(
        self, request: DeleteWorkflowRequest, namespace: str, request_id: str, method: str
    ) -> DeleteWorkflowResponse:
        store = self._node.store
        run_id = await self._find(request.workflow)
        response = DeleteWorkflowResponse(run_id=run_id)
        asked = Request(namespace, request_id, run_id, method, response.SerializeToString())
        faults.point("removal.before")
        workflow_id = await store.remove_run(asked, self._node.clock.latest_ms())
        faults.point("removal.after")
        if workflow_id is None:
            raise await self._undeletable(run_id)
        identity = identity_of(request.identity)
        facts = {"namespace": namespace, "workflow_id": workflow_id, "run_id": run_id, "request_id": request_id}
        _audit.info("workflow deleted", identity=identity, reason=request.reason, **facts)
        self._node.results.removed(run_id)
        return response

    async def _undeletable(self, run_id: str) -> RomancyError:
        """Why a run was not deleted."""
        found = (await self._node.store.outcomes([run_id])).get(run_id)
        if found is None:
            return WorkflowNotFound(run_id)
        return WorkflowOpen(run_id) if found[1] is None else WorkflowUnsettled(run_id)

    # Telling ------------------------------------------------------------------------------------------------------

    async def SignalWorkflow(self, request: SignalWorkflowRequest, context: Context) -> SignalWorkflowResponse:
        """Tell a run's code something."""
        check_signal_request(request, self._node.limits)
        trigger = SendSignal(_signal(request.signal, request.identity))
        method = f"SignalWorkflow {request.signal.name}"
        return await self._submit(method, request, trigger, SignalWorkflowResponse, lambda _: {})

    async def SignalWithStart(self, request: SignalWithStartRequest, context: Context) -> SignalWithStartResponse:
        """Tell a run's code something, and start it if it is not there."""
        check_signal_with_start(request, self._node.limits)
        start = request.start
        namespace = namespace_of(start.namespace, self._node.limits)
        start.spec.task_queue = task_queue_of("start.spec.task_queue", start.spec.task_queue, self._node.limits)
        signal = _signal(request.signal, start.identity)
        identity, exact = identity_of(start.identity), bool(start.request_id)
        told = await self._starter.start(namespace, start, identity, signal, exact=exact)
        return SignalWithStartResponse(workflow_id=told.workflow_id, run_id=told.run_id, started=told.started)

    async def UpdateWorkflow(self, request: UpdateWorkflowRequest, context: Context) -> UpdateWorkflowResponse:
        """Ask a run's code to change something, and wait for its answer."""
        limits = self._node.limits
        check_update(request, limits)
        patience_ms = wait_ms("wait", request.wait, limits) if request.HasField("wait") else limits.result_wait_ms
        request.request_id = request.request_id or new_id()
        received = UpdateReceived(
            update_id=request.request_id,
            name=request.name,
            arguments=request.arguments,
            identity=identity_of(request.identity),
        )
        recorded = await self._submit(
            f"UpdateWorkflow {request.name}",
            request,
            RequestUpdate(received),
            UpdateWorkflowResponse,
            lambda reply: {"event_id": reply.received_event_id, "update_id": received.update_id},
        )
        stage = request.wait_for or UPDATE_STAGE_COMPLETED
        return await self._node.updates.wait(recorded, stage, patience_ms / 1000)

    async def QueryWorkflow(self, request: QueryWorkflowRequest, context: Context) -> QueryWorkflowResponse:
        """Ask a run's code something."""
        limits = self._node.limits
        check_query(request, limits)
        patience_ms = wait_ms("wait", request.wait, limits) if request.HasField("wait") else limits.query_wait_ms
        run_id = await self._find(request.workflow)
        answer = await self._node.queries.ask(run_id, request.name, request.arguments, patience_ms / 1000)
        if answer.HasField("failure"):
            return QueryWorkflowResponse(run_id=run_id, failure=answer.failure)
        return QueryWorkflowResponse(run_id=run_id, result=answer.result)

    # Carrying out -------------------------------------------------------------------------------------------------

    async def _change(
        self,
        method: str,
        request: Change,
        trigger: Trigger,
        response: type[Changed],
        fields: Callable[[Reply], dict[str, Any]],
    ) -> Changed:
        check_change(request, self._node.limits)
        return await self._submit(method, request, trigger, response, fields)

    async def _submit(
        self,
        method: str,
        request: Change | SignalWorkflowRequest | UpdateWorkflowRequest,
        trigger: Trigger,
        response: type[Changed],
        fields: Callable[[Reply], dict[str, Any]],
    ) -> Changed:
        """Have a checked request carried out, once for each request id, by the run that is the newest by then."""
        run_id = await self._find(request.workflow)
        namespace = namespace_of(request.workflow.namespace, self._node.limits)

        def answer(reply: Reply) -> Changed:
            return response(run_id=run_id, **fields(reply))

        key = RequestKey(
            namespace, request.request_id or new_id(), method, lambda reply: answer(reply).SerializeToString()
        )
        done: Reply | Recorded | None = None
        while done is None:
            try:
                done = await self._node.engine.submit(run_id, trigger, key)
            except WorkflowClosed:
                closed, run_id = run_id, await self._find(request.workflow)
                if run_id == closed:
                    raise
        if not isinstance(done, Recorded):
            return answer(done)
        if done.method != method or not await is_of(self._node.store, request.workflow, done.run_id):
            raise RequestIdReused(key.request_id, done.method)
        return response.FromString(done.reply)

    async def _find(self, ref: WorkflowRef) -> str:
        check_ref("workflow", ref, self._node.limits)
        namespace = namespace_of(ref.namespace, self._node.limits)
        run_id = (await self._node.store.find_runs([(namespace, ref.workflow_id, ref.run_id)]))[0]
        if run_id is None:
            raise WorkflowNotFound(ref.run_id or ref.workflow_id)
        return run_id


def _signal(signal: Signal, identity: str) -> Signal:
    """The signal as it is recorded: who sent it is what the credentials say."""
    return Signal(name=signal.name, arguments=signal.arguments, identity=identity_of(identity))


def _start_result(outcome: StartWorkflowResponse | BaseException) -> StartWorkflowResult:
    if isinstance(outcome, StartWorkflowResponse):
        return StartWorkflowResult(response=outcome)
    if isinstance(outcome, RomancyError):
        return StartWorkflowResult(error=error_of(outcome))
    raise outcome


_ENDS = frozenset(
    {"workflow_completed", "workflow_failed", "workflow_cancelled", "workflow_terminated", "workflow_timed_out"}
)


def _ends(event: HistoryEvent) -> bool:
    return event.WhichOneof("attributes") in _ENDS
