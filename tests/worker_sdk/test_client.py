"""The client against a scripted service: batches, retries, and waits that outlive streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import grpc.aio
import pytest

from romancy.v1.failure_pb2 import Failure
from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import (
    WORKFLOW_STATUS_CANCELLED,
    WORKFLOW_STATUS_COMPLETED,
    WORKFLOW_STATUS_FAILED,
    WorkflowInfo,
    WorkflowOutcome,
)
from romancy.v1.workflow_service_pb2 import (
    CancelWorkflowRequest,
    CancelWorkflowResponse,
    Error,
    GetHistoryRequest,
    GetHistoryResponse,
    GetWorkflowRequest,
    GetWorkflowResponse,
    GetWorkflowResultRequest,
    GetWorkflowResultResponse,
    ListWorkflowsRequest,
    ListWorkflowsResponse,
    RunResult,
    StartWorkflowResponse,
    StartWorkflowResult,
    StartWorkflowsRequest,
    StartWorkflowsResponse,
    WaitResultsRequest,
    WaitResultsResponse,
    WatchHistoryRequest,
    WatchHistoryResponse,
)
from romancy.v1.workflow_service_pb2_grpc import WorkflowServiceServicer, add_WorkflowServiceServicer_to_server

from romancy import Attribute, Client, WorkflowCancelled, WorkflowContext, WorkflowFailed, workflow
from romancy.errors import ConversionError
from romancy.refusals import (
    AccessDenied,
    RequestRefused,
    ServiceUnavailable,
    WorkflowAlreadyOpen,
    WorkflowNotFound,
)
from tests.worker_sdk.scripted import PATIENCE_S, status_details

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]
ALREADY_EXISTS = grpc.StatusCode.ALREADY_EXISTS.value[0]
NOT_FOUND = grpc.StatusCode.NOT_FOUND.value[0]


@dataclass
class Point:
    x: int
    y: int


@workflow
async def move(ctx: WorkflowContext, point: Point, by: int = 1) -> Point:
    return Point(point.x + by, point.y + by)


class Scripted(WorkflowServiceServicer):
    """Answers as the test says; what it is not told of, it starts and completes."""

    def __init__(self) -> None:
        self.target = ""
        self.changed = asyncio.Event()
        """Set at each call."""
        self.server: grpc.aio.Server
        self.starts: list[StartWorkflowsRequest] = []
        self.start_errors: list[Error | grpc.StatusCode] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.subscriptions: list[list[str]] = []
        self.given_up: list[list[str]] = []
        self.outcomes: dict[str, WorkflowOutcome | Error] = {}
        self.cuts = 0
        self.mute = False
        self.probes: list[str] = []
        self.cancels: list[CancelWorkflowRequest] = []
        self.fail_cancels = 0
        self.watched: list[int] = []
        self.listed: list[str] = []

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for calls until something is so."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await self.changed.wait()
                self.changed.clear()

    async def StartWorkflows(self, request: StartWorkflowsRequest, context: Any) -> StartWorkflowsResponse:
        self.starts.append(request)
        self.changed.set()
        await self.gate.wait()
        results = []
        for start in request.requests:
            error = self.start_errors.pop(0) if self.start_errors else None
            if isinstance(error, grpc.StatusCode):
                await context.abort(error, "scripted", status_details(error, "scripted", ""))
            elif error is not None:
                results.append(StartWorkflowResult(error=error))
            else:
                started = StartWorkflowResponse(
                    workflow_id=start.workflow_id or "made-up", run_id=f"run-{start.workflow_id}", started=True
                )
                results.append(StartWorkflowResult(response=started))
        return StartWorkflowsResponse(results=results)

    async def WaitResults(
        self, request_iterator: AsyncIterator[WaitResultsRequest], context: Any
    ) -> AsyncIterator[WaitResultsResponse]:
        async for request in request_iterator:
            if request.run_ids:
                self.subscriptions.append(list(request.run_ids))
            if request.given_up_run_ids:
                self.given_up.append(list(request.given_up_run_ids))
            self.changed.set()
            if self.cuts:
                self.cuts -= 1
                await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
            if self.mute:
                continue
            yield WaitResultsResponse(results=[self._result(run_id) for run_id in request.run_ids])

    def _result(self, run_id: str) -> RunResult:
        outcome = self.outcomes.get(run_id, completed('"done"'))
        if isinstance(outcome, Error):
            return RunResult(run_id=run_id, error=outcome)
        return RunResult(run_id=run_id, outcome=outcome)

    async def GetWorkflowResult(self, request: GetWorkflowResultRequest, context: Any) -> GetWorkflowResultResponse:
        run_id = request.workflow.run_id
        self.probes.append(run_id)
        return GetWorkflowResultResponse(run_id=run_id, outcome=self._result(run_id).outcome)

    async def GetWorkflow(self, request: GetWorkflowRequest, context: Any) -> GetWorkflowResponse:
        if request.workflow.workflow_id == "missing":
            code = grpc.StatusCode.NOT_FOUND
            await context.abort(code, "no workflow", status_details(code, "no workflow", "WORKFLOW_NOT_FOUND"))
        return GetWorkflowResponse(info=WorkflowInfo(run_id="newest"))

    async def CancelWorkflow(self, request: CancelWorkflowRequest, context: Any) -> CancelWorkflowResponse:
        self.cancels.append(request)
        if self.fail_cancels:
            self.fail_cancels -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "scripted")
        return CancelWorkflowResponse()

    async def GetHistory(self, request: GetHistoryRequest, context: Any) -> GetHistoryResponse:
        first = request.after_event_id + 1
        events = [HistoryEvent(event_id=number) for number in range(first, min(first + 2, 6))]
        return GetHistoryResponse(run_id="run", events=events, more=first + 2 < 6)

    async def WatchHistory(self, request: WatchHistoryRequest, context: Any) -> AsyncIterator[WatchHistoryResponse]:
        self.watched.append(request.after_event_id)
        for number in range(request.after_event_id + 1, 6):
            yield WatchHistoryResponse(run_id="run", events=[HistoryEvent(event_id=number)])
            if number == 3 and self.cuts:
                self.cuts -= 1
                await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
            if number == 3 and not self.gate.is_set():
                await asyncio.Event().wait()

    async def ListWorkflows(self, request: ListWorkflowsRequest, context: Any) -> ListWorkflowsResponse:
        self.listed.append(request.page_token)
        page = int(request.page_token or 0)
        infos = [WorkflowInfo(workflow_id=f"{page}{letter}") for letter in "abc"]
        return ListWorkflowsResponse(workflows=infos, next_page_token=str(page + 1) if page < 2 else "")


def completed(result: str) -> WorkflowOutcome:
    return WorkflowOutcome(status=WORKFLOW_STATUS_COMPLETED, result=Payload(json=result))


@pytest.fixture
async def service() -> AsyncIterator[Scripted]:
    service = Scripted()  # type: ignore[abstract]  # the other methods are not called
    service.server = grpc.aio.server()
    add_WorkflowServiceServicer_to_server(service, service.server)
    service.target = f"127.0.0.1:{service.server.add_insecure_port('127.0.0.1:0')}"
    await service.server.start()
    yield service
    await service.server.stop(None)


@pytest.fixture
async def client(service: Scripted) -> AsyncIterator[Client]:
    async with asyncio.timeout(PATIENCE_S * 2), Client(service.target, identity="tester") as client:
        yield client


# Starting -------------------------------------------------------------------------------------------------------------


async def test_a_workflow_is_started_with_typed_arguments_and_gives_a_typed_result(
    service: Scripted, client: Client
) -> None:
    service.outcomes["run-m"] = completed('{"x": 2, "y": 3}')
    handle = await client.start_workflow(move, Point(1, 2), id="m", task_queue="q", memo={"why": "test"})
    (request,) = service.starts[0].requests
    assert [payload.json for payload in request.spec.arguments] == ['{"x":1,"y":2}', "1"]
    assert (request.spec.workflow_type, request.spec.task_queue, request.identity) == ("move", "q", "tester")
    assert request.request_id
    assert request.spec.memo["why"].json == '"test"'
    assert (handle.workflow_id, handle.run_id) == ("m", "run-m")
    assert await handle.result() == Point(2, 3)


async def test_a_workflow_is_started_by_name_with_plain_values(service: Scripted, client: Client) -> None:
    assert await client.execute_workflow("move", {"x": 1}, [2], None) == "done"
    arguments = service.starts[0].requests[0].spec.arguments
    assert [payload.json for payload in arguments] == ['{"x":1}', "[2]", "null"]


async def test_an_argument_that_does_not_fit_is_named_before_anything_is_sent(
    service: Scripted, client: Client
) -> None:
    with pytest.raises(ConversionError, match="argument 'point' of move"):
        await client.start_workflow(move, "nowhere")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"move\(\): missing a required argument: 'point'"):
        await client.start_workflow(move)  # type: ignore[call-arg,arg-type]
    assert service.starts == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tsk_queue": "q"}, "start_workflow has no option 'tsk_queue'; it has task_queue, run_timeout, "),
        ({"id_conflict": "replace"}, "id_conflict is 'replace', but must be 'fail' or 'use_existing' or "),
        ({"id_reuse": True}, "id_reuse is True, but must be 'allow' or "),
        ({"run_timeout": "1h"}, "run_timeout is '1h', but must be a timedelta or a number of seconds"),
        ({"priority": "high"}, "priority is 'high', but must be a whole number"),
        ({"id": 5}, "id is 5, but must be a text"),
        ({"attributes": {"tier": "gold"}}, "the key of an attribute is 'tier', but must be an Attribute"),
        ({"attributes": {Attribute("tier", int): "gold"}}, "attribute 'tier' is 'gold', but must be a whole number"),
        ({"attributes": "gold"}, "attributes is 'gold', but must be a mapping"),
        ({"headers": {"trace": 5}}, "header 'trace' is 5, but must be a text"),
    ],
)
async def test_options_that_are_wrong_are_named_before_anything_is_sent(
    service: Scripted, client: Client, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(TypeError) as refused:
        await client.start_workflow("move", **options)
    assert str(refused.value).startswith(text)
    assert service.starts == []


async def test_concurrent_starts_share_a_call(service: Scripted, client: Client) -> None:
    handles = await asyncio.gather(*(client.start_workflow("move", id=f"w{number}") for number in range(100)))
    assert [handle.workflow_id for handle in handles] == [f"w{number}" for number in range(100)]
    assert [len(call.requests) for call in service.starts] == [100]
    assert len({request.request_id for request in service.starts[0].requests}) == 100


async def test_what_is_started_while_calls_are_under_way_goes_with_the_next(service: Scripted, client: Client) -> None:
    service.gate.clear()
    tasks = []

    def reached(calls: int) -> bool:
        return len(service.starts) >= calls

    for number in range(10):
        tasks.append(asyncio.create_task(client.start_workflow("move", id=f"w{number}")))
        await service.until(partial(reached, min(number, 1) + 1))
    service.gate.set()
    await asyncio.gather(*tasks)
    assert [len(call.requests) for call in service.starts] == [1, 1, 8]


async def test_a_start_is_sent_again_with_the_same_request_id_until_the_service_answers(
    service: Scripted, client: Client
) -> None:
    service.start_errors = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE]
    await client.start_workflow("move", id="w")
    ids = {request.request_id for call in service.starts for request in call.requests}
    assert (len(service.starts), len(ids)) == (3, 1)


async def test_of_a_shared_call_each_start_fails_alone(service: Scripted, client: Client) -> None:
    service.start_errors = [
        Error(code=UNAVAILABLE, reason="STORE_UNAVAILABLE", message="not now"),
        Error(code=ALREADY_EXISTS, reason="WORKFLOW_ALREADY_OPEN", message="w1 is open", metadata={"run_id": "r"}),
    ]
    starts = (client.start_workflow("move", id=f"w{number}") for number in range(3))
    first, second, third = await asyncio.gather(*starts, return_exceptions=True)
    assert isinstance(second, WorkflowAlreadyOpen)
    assert second.metadata == {"run_id": "r"}
    assert not isinstance(first, BaseException)
    assert not isinstance(third, BaseException)
    assert [[request.workflow_id for request in call.requests] for call in service.starts] == [
        ["w0", "w1", "w2"],
        ["w0"],
    ]


async def test_an_error_that_will_not_pass_is_raised_at_once(service: Scripted, client: Client) -> None:
    service.start_errors = [grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT]
    with pytest.raises(AccessDenied):
        await client.start_workflow("move")
    with pytest.raises(RequestRefused):
        await client.start_workflow("move")
    assert len(service.starts) == 2


async def test_when_patience_ends_the_service_is_said_to_be_unavailable() -> None:
    async with Client("127.0.0.1:1", patience=0.2) as client:
        starting = client.start_workflow("move")
        waiting = client.get_handle("w", "run").result()
        looking = client.get_handle("w").describe()
        errors = await asyncio.gather(starting, waiting, looking, return_exceptions=True)
    assert [type(error) for error in errors] == [ServiceUnavailable] * 3


# Waiting --------------------------------------------------------------------------------------------------------------


async def test_all_waits_share_a_stream(service: Scripted, client: Client) -> None:
    results = await asyncio.gather(*(client.get_handle("w", f"r{number}").result() for number in range(100)))
    assert results == ["done"] * 100
    assert sum(len(run_ids) for run_ids in service.subscriptions) == 100
    assert len(service.subscriptions) < 5


async def test_two_waits_for_one_run_are_one_subscription(service: Scripted, client: Client) -> None:
    results = await asyncio.gather(*(client.get_handle("w", "r").result() for _ in range(2)))
    assert results == ["done", "done"]
    assert service.subscriptions == [["r"]]


async def test_a_wait_goes_on_after_its_stream_was_cut(service: Scripted, client: Client) -> None:
    service.cuts = 2
    assert await client.get_handle("w", "r").result() == "done"
    assert service.subscriptions == [["r"]] * 3


async def test_a_stream_that_says_nothing_is_checked_and_replaced(
    service: Scripted, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("romancy._results._SILENCE_S", 0.05)
    service.mute = True
    first = asyncio.create_task(client.get_handle("w", "r1").result())
    await service.until(lambda: service.subscriptions)
    assert await first == "done"
    assert service.probes == ["r1"]


async def test_without_a_run_id_the_newest_run_is_waited_for(service: Scripted, client: Client) -> None:
    assert await client.get_handle("w").result() == "done"
    assert service.subscriptions == [["newest"]]


async def test_what_cannot_be_waited_for_is_refused(service: Scripted, client: Client) -> None:
    service.outcomes["r"] = Error(code=NOT_FOUND, reason="WORKFLOW_NOT_FOUND", message="no run r")
    with pytest.raises(WorkflowNotFound, match="no run r"):
        await client.get_handle("w", "r").result()
    with pytest.raises(WorkflowNotFound):
        await client.get_handle("missing").result()


async def test_a_run_that_cannot_be_answered_for_now_is_asked_for_again(service: Scripted, client: Client) -> None:
    service.outcomes["r"] = Error(code=UNAVAILABLE, reason="STORE_UNAVAILABLE", message="not now")
    waiting = asyncio.create_task(client.get_handle("w", "r").result())
    await service.until(lambda: len(service.subscriptions) >= 2)
    del service.outcomes["r"]
    assert await waiting == "done"


async def test_a_workflow_without_a_result_raises_why(service: Scripted, client: Client) -> None:
    failure = Failure(message="no money", type="Declined", cause=Failure(message="limit", type="BankError"))
    service.outcomes["failed"] = WorkflowOutcome(status=WORKFLOW_STATUS_FAILED, failure=failure)
    service.outcomes["cancelled"] = WorkflowOutcome(status=WORKFLOW_STATUS_CANCELLED, failure=failure)
    with pytest.raises(WorkflowFailed, match="no money") as raised:
        await client.get_handle("w", "failed").result()
    assert (raised.value.type, str(raised.value.cause)) == ("Declined", "limit")
    with pytest.raises(WorkflowCancelled):
        await client.get_handle("w", "cancelled").result()


async def test_a_wait_goes_on_after_its_stream_was_cut_off_with_a_connection_that_another_call_left(
    service: Scripted, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("romancy._calls._CLOSING_S", 0)
    service.mute = True
    waiting = asyncio.create_task(client.get_handle("w", "r").result())
    await service.until(lambda: service.subscriptions)
    service.mute = False
    client.calls.reopen()
    assert await waiting == "done"
    assert service.subscriptions == [["r"]] * 2


async def test_what_no_run_is_called_is_said_to_whoever_waits_for_it_and_to_nobody_else(
    service: Scripted, client: Client
) -> None:
    waiting = asyncio.create_task(client.get_handle("w", "r").result())
    with pytest.raises(ValueError, match=r"run_id is '\\ud800', but holds U\+D800, half of a character"):
        await client.get_handle("w", "\ud800").result()
    with pytest.raises(ValueError, match=r"run_id begins with 'x+' and has 5,000,000 characters: no run is called so"):
        await client.get_handle("w", "x" * 5_000_000).result()
    assert await waiting == "done"


async def test_a_wait_that_was_given_up_leaves_nothing_behind(service: Scripted, client: Client) -> None:
    service.mute = True
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await client.get_handle("w", "r").result()
    assert client.results.waiting == 0


async def _give_up(service: Scripted, client: Client, run_ids: Sequence[str]) -> None:
    """Wait for them until the service knows, and then no more."""
    waits = [asyncio.create_task(client.get_handle("w", run_id).result()) for run_id in run_ids]
    await service.until(lambda: {*run_ids} <= {run_id for each in service.subscriptions for run_id in each})
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*waits, return_exceptions=True)


async def test_the_service_is_told_of_all_waits_that_were_given_up_in_one_message(
    service: Scripted, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("romancy._results._GIVE_UP_S", 0.05)
    service.mute = True
    kept = asyncio.create_task(client.get_handle("w", "kept").result())
    run_ids = [f"r{number}" for number in range(100)]
    await _give_up(service, client, run_ids)
    await service.until(lambda: service.given_up)
    assert service.given_up == [run_ids]
    assert not kept.done()
    kept.cancel()


async def test_waits_that_were_given_up_go_with_the_next_message(service: Scripted, client: Client) -> None:
    service.mute = True
    await _give_up(service, client, ["r1", "r2"])
    service.mute = False
    assert await client.get_handle("w", "r3").result() == "done"
    assert service.given_up == [["r1", "r2"]]


async def test_what_is_waited_for_anew_is_not_given_up(service: Scripted, client: Client) -> None:
    service.mute = True
    await _give_up(service, client, ["r1", "r2"])
    service.mute = False
    assert await client.get_handle("w", "r1").result() == "done"
    assert service.given_up == [["r2"]]
    assert service.subscriptions[-1] == ["r1"]


async def test_what_was_given_up_is_asked_for_when_it_is_waited_for_again(
    service: Scripted, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("romancy._results._GIVE_UP_S", 0.0)
    service.mute = True
    await _give_up(service, client, ["r"])
    await service.until(lambda: service.given_up)
    service.mute = False
    assert await client.get_handle("w", "r").result() == "done"
    assert service.subscriptions == [["r"]] * 2


async def test_closing_the_client_cancels_whoever_waits(service: Scripted) -> None:
    service.mute = True
    async with Client(service.target) as client:
        waiting = asyncio.create_task(client.get_handle("w", "r").result())
        await service.until(lambda: service.subscriptions)
    with pytest.raises(asyncio.CancelledError):
        await waiting


# Looking and stopping -------------------------------------------------------------------------------------------------


async def test_a_cancellation_is_sent_again_with_the_same_request_id(service: Scripted, client: Client) -> None:
    service.fail_cancels = 2
    await client.get_handle("w", "r").cancel("no need")
    assert len(service.cancels) == 3
    assert len({request.request_id for request in service.cancels}) == 1
    assert service.cancels[0].reason == "no need"


async def test_a_call_that_is_cut_off_with_a_connection_that_was_left_is_made_again_on_the_next_one(
    service: Scripted, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("romancy._calls._CLOSING_S", 0)
    service.gate.clear()
    starting = asyncio.create_task(client.start_workflow("order", id="one"))
    await service.until(lambda: service.starts)
    client.calls.reopen()  # as the call does that waited in vain for an answer
    await service.until(lambda: len(service.starts) == 2)
    service.gate.set()
    assert (await starting).run_id == "run-one"


async def test_a_client_that_was_closed_and_is_used_again_tries_again_as_before(
    service: Scripted, client: Client
) -> None:
    await client.get_handle("w", "r").cancel()
    await client.close()
    service.fail_cancels = 2
    await client.get_handle("w", "r").cancel()
    assert len(service.cancels) == 1 + 3


async def test_what_is_to_be_tried_again_is_not_after_the_client_was_closed(
    service: Scripted, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("romancy._calls.backoff_s", lambda failures: 0.05)
    monkeypatch.setattr("romancy._starts.backoff_s", lambda failures: 0.05)
    service.fail_cancels = 100
    service.start_errors += [Error(code=UNAVAILABLE)] * 100
    starting = asyncio.create_task(client.start_workflow("order", id="one"))
    cancelling = asyncio.create_task(client.get_handle("w", "r").cancel())
    await service.until(lambda: service.starts and service.cancels)
    await client.close()
    sent = (len(service.starts), len(service.cancels))
    for task in (starting, cancelling):
        with pytest.raises(asyncio.CancelledError):
            await task
    # It may be used again, while what began before stays cancelled.
    service.fail_cancels, service.start_errors = 0, []
    await client.start_workflow("order", id="two")
    await client.get_handle("w", "r2").cancel()
    assert [start.workflow_id for call in service.starts[sent[0] :] for start in call.requests] == ["two"]
    assert [request.workflow.run_id for request in service.cancels[sent[1] :]] == ["r2"]


async def test_a_history_is_read_page_by_page(service: Scripted, client: Client) -> None:
    assert [event.event_id async for event in client.get_handle("w").history()] == [1, 2, 3, 4, 5]


async def test_a_history_is_watched_on_where_its_stream_was_cut(service: Scripted, client: Client) -> None:
    service.cuts = 1
    assert [event.event_id async for event in client.get_handle("w").watch()] == [1, 2, 3, 4, 5]
    assert service.watched == [0, 3]


async def test_a_history_is_watched_on_where_its_stream_was_cut_off_with_a_connection_that_was_left(
    service: Scripted, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("romancy._calls._CLOSING_S", 0)
    service.gate.clear()
    watched = []
    async for event in client.get_handle("w").watch():
        watched.append(event.event_id)
        if event.event_id == 3 and not service.gate.is_set():
            client.calls.reopen()
            service.gate.set()
    assert watched == [1, 2, 3, 4, 5]


async def test_lists_go_on_over_pages_up_to_a_limit(service: Scripted, client: Client) -> None:
    everything = [info.workflow_id async for info in client.list_workflows()]
    assert everything == ["0a", "0b", "0c", "1a", "1b", "1c", "2a", "2b", "2c"]
    assert [info.workflow_id async for info in client.list_workflows(limit=4)] == everything[:4]
    assert service.listed == ["", "1", "2", "", "1"]
