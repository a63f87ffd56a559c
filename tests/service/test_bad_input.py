"""Bad input: each gets the right status with reason, field and limit; nothing is lost, and nothing else is disturbed."""

from __future__ import annotations

import asyncio
import base64
import json as json_text
from collections.abc import Callable

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from structlog.testing import capture_logs

from romancy.v1.admin_service_pb2 import DescribeTaskQueueRequest, ListSessionsRequest
from romancy.v1.command_pb2 import (
    CancelActivity,
    CancelTimer,
    Command,
    Compensation,
    CompensationArgument,
    FailWorkflow,
    RegisterCompensation,
    ScheduleActivity,
    StartTimer,
)
from romancy.v1.failure_pb2 import Failure
from romancy.v1.payload_pb2 import Payload
from romancy.v1.retry_pb2 import RetryPolicy
from romancy.v1.worker_service_pb2 import (
    ACKNOWLEDGEMENT_RESULT_ACCEPTED,
    ACKNOWLEDGEMENT_RESULT_INVALID,
    ActivityCompletion,
    Chunk,
    ConnectRequest,
    WorkflowTaskCommands,
    WorkflowTaskCompletion,
)
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_COMPENSATING, WORKFLOW_STATUS_RUNNING, AttributeValue
from romancy.v1.workflow_service_pb2 import (
    CountWorkflowsRequest,
    GetHistoryRequest,
    GetWorkflowRequest,
    ListWorkflowsRequest,
    ResolveCompensationRequest,
    StartWorkflowRequest,
    WorkflowFilter,
    WorkflowRef,
)

from tests.core.life import CANCEL, cancel_timer, compensate, complete, fail, register, schedule, timer
from tests.service.cluster import Tenant, json, refusal_of, refused, seconds
from tests.service.scripted_worker import ScriptedWorker

MIB = 1 << 20


async def assert_alive(tenant: Tenant) -> None:
    """The service still runs workflows."""
    worker = await tenant.worker(queue="alive", activity_slots=1)
    run = await tenant.start(task_queue="alive")
    await worker.command(await worker.workflow_task(), schedule("pay:1"))
    await worker.complete(await worker.activity())
    await worker.command(await worker.workflow_task(), complete())
    assert await tenant.result(run.run_id) is not None
    await worker.goodbye()


def payload_of(size: int) -> Payload:
    """A payload that takes exactly `size` bytes on the wire."""
    payload = Payload(json="")
    while (missing := size - payload.ByteSize()) > 0:
        payload.json += "x" * max(missing - 8, 1)
    assert payload.ByteSize() == size
    return payload


def memo_of(count: int, size: int) -> dict[str, Payload]:
    return {f"{n:04}": Payload(json="x" * size) for n in range(count)}


BAD_STARTS: list[tuple[str, dict[str, object], str]] = [
    ("no type", {"workflow_type": ""}, "spec.workflow_type"),
    ("NUL in the queue", {"task_queue": "\x00"}, "spec.task_queue"),
    ("long id", {"workflow_id": "x" * 256}, "workflow_id"),
    ("long id of few characters", {"workflow_id": "\u00e4" * 128}, "workflow_id"),
    ("NUL in the id", {"workflow_id": "a\x00b"}, "workflow_id"),
    ("newline in the id", {"workflow_id": "a\nb"}, "workflow_id"),
    ("escape in the type", {"workflow_type": "\x1b[31m"}, "spec.workflow_type"),
    ("C1 control", {"workflow_id": "a\x85b"}, "workflow_id"),
    ("NUL in the request id", {"request_id": "\x00"}, "request_id"),
    ("NUL in the namespace", {"namespace": "\x00"}, "namespace"),
    ("long namespace", {"namespace": "n" * 256}, "namespace"),
    ("unknown policy", {"id_reuse_policy": 99}, "id_reuse_policy"),
    ("unknown conflict policy", {"id_conflict_policy": -1}, "id_conflict_policy"),
    ("negative wait", {"wait": Duration(seconds=-1)}, "wait"),
    ("absurd wait", {"wait": Duration(seconds=10**12)}, "wait"),
    ("negative timeout", {"run_timeout": Duration(seconds=-1)}, "spec.run_timeout"),
    ("timeout of 300 years", {"run_timeout": Duration(seconds=300 * 365 * 86_400)}, "spec.run_timeout"),
    ("timeout beyond Duration", {"run_timeout": Duration(seconds=2**62)}, "spec.run_timeout"),
    ("signs that differ", {"run_timeout": Duration(seconds=1, nanos=-1)}, "spec.run_timeout"),
    ("nanos beyond a second", {"run_timeout": Duration(nanos=2_000_000_000)}, "spec.run_timeout"),
    ("absurd priority", {"priority": 2**31 - 1}, "spec.priority"),
    ("large payload", {"arguments": [payload_of(2 * MIB + 1)]}, "spec.arguments[0]"),
    ("large memo", {"memo": memo_of(33, 1024)}, "spec.memo"),
    ("long header", {"headers": {"a": "x" * 9_000}}, "spec.headers"),
    ("many headers", {"headers": {str(n): "" for n in range(65)}}, "spec.headers"),
    ("many attributes", {"attributes": {str(n): AttributeValue(flag=True) for n in range(33)}}, "spec.attributes"),
    ("attribute without a value", {"attributes": {"a": AttributeValue()}}, "spec.attributes['a']"),
    ("attribute that is no number", {"attributes": {"a": AttributeValue(number=float("nan"))}}, "spec.attributes['a']"),
    ("long attribute", {"attributes": {"a": AttributeValue(text="x" * 2_049)}}, "spec.attributes['a']"),
    (
        "attribute in year 0",
        {"attributes": {"a": AttributeValue(time=Timestamp(seconds=-(10**12)))}},
        "spec.attributes['a']",
    ),
]


@pytest.mark.parametrize(("fields", "field"), [case[1:] for case in BAD_STARTS], ids=[case[0] for case in BAD_STARTS])
async def test_a_bad_start_is_refused_and_names_the_field(
    tenant: Tenant, fields: dict[str, object], field: str
) -> None:
    fields = dict(fields)
    request = tenant.start_request(
        str(fields.pop("workflow_id", "")), **{k: v for k, v in fields.items() if k != "namespace"}
    )
    request.namespace = str(fields.get("namespace", tenant.namespace))
    refusal = await refused(tenant.workflows.StartWorkflow(request))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.reason in ("INVALID_FIELD", "PAYLOAD_TOO_LARGE")
    assert refusal.field == field
    count = await tenant.workflows.CountWorkflows(CountWorkflowsRequest(namespace=tenant.namespace))
    assert count.count == 0


async def test_the_largest_values_that_are_allowed_are_taken(tenant: Tenant) -> None:
    worker = await tenant.worker()
    name = "\u00e4" * 127 + "x"
    request = tenant.start_request(
        name, arguments=[payload_of(2 * MIB)], headers={"a": "x" * 8_000}, memo=memo_of(30, 1024)
    )
    request.request_id = "r" * 255
    run = await tenant.workflows.StartWorkflow(request)
    task = await worker.workflow_task()
    assert task.workflow_id == name
    assert task.events[0].workflow_started.spec.arguments[0].ByteSize() == 2 * MIB
    await worker.command(task, schedule("pay:1", arguments=[payload_of(2 * MIB)]))
    activity = await worker.activity()
    assert activity.arguments[0].ByteSize() == 2 * MIB
    answer = await worker.report(ActivityCompletion(token=activity.token, result=payload_of(2 * MIB)))
    assert answer.result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    assert (await tenant.get(run.run_id)).info.memo["0000"].json == "x" * 1024


@pytest.mark.parametrize(
    "name", ["a'b", '"; drop table runs; --', "%", "_", "\\", "\u202e", "a\u0301", "\U0001f600", "   x", "$1", "{}"]
)
async def test_odd_but_allowed_ids_work_everywhere(tenant: Tenant, name: str) -> None:
    worker = await tenant.worker(workflows=[name], activities=[name], queue=name, worker_id=name)
    run = await tenant.start(name, workflow_type=name, task_queue=name, request_id=name, identity=name)
    await worker.command(await worker.workflow_task(), schedule(f"{name}:1"))
    await worker.complete(await worker.activity())
    await worker.command(await worker.workflow_task(), complete())
    shown = await tenant.workflows.GetWorkflow(GetWorkflowRequest(workflow=tenant.ref("", name)))
    assert shown.info.run_id == run.run_id
    listed = await tenant.workflows.ListWorkflows(
        ListWorkflowsRequest(
            namespace=tenant.namespace, filter=WorkflowFilter(workflow_id_prefix=name, workflow_type=name)
        )
    )
    assert [info.run_id for info in listed.workflows] == [run.run_id]


async def test_a_message_that_is_not_utf8_or_no_message_at_all_is_refused(tenant: Tenant) -> None:
    for data in (
        b"\x12\x02\xff\xfe",
        b"\xff\xff\xff",
        b"\x12\x05\xed\xa0\x80xx",
    ):  # not UTF-8, garbage, a lone surrogate
        call = tenant.channel.unary_unary("/romancy.v1.WorkflowService/StartWorkflow")
        refusal = await refused(call(data))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    await assert_alive(tenant)


async def test_unknown_fields_are_ignored(tenant: Tenant) -> None:
    data = tenant.start_request("order").SerializeToString() + b"\xfa\x7f\x03abc"
    call = tenant.channel.unary_unary("/romancy.v1.WorkflowService/StartWorkflow")
    await call(data)
    await tenant.workflows.GetWorkflow(GetWorkflowRequest(workflow=tenant.ref("", "order")))


async def test_a_message_of_a_client_beyond_4_mebibytes_is_refused(tenant: Tenant) -> None:
    request = tenant.start_request("order", arguments=[payload_of(2 * MIB), payload_of(2 * MIB)])
    refusal = await refused(tenant.workflows.StartWorkflow(request))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_TOO_LARGE")
    assert refusal.metadata["limit"] == str(4 * MIB)


async def test_a_method_that_is_not_there_is_unimplemented(tenant: Tenant) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused_:
        await tenant.channel.unary_unary("/romancy.v1.WorkflowService/Explode")(b"")
    assert refused_.value.code() is grpc.StatusCode.UNIMPLEMENTED


BAD_TOKENS = [
    "x",
    "\u00e4",
    base64.urlsafe_b64encode(b"5").decode(),
    base64.urlsafe_b64encode(b"null").decode(),
    base64.urlsafe_b64encode(b'["a"]').decode(),
    base64.urlsafe_b64encode(b"[" * 100_000).decode(),
    base64.urlsafe_b64encode(b'{"a": 1}').decode(),
    base64.urlsafe_b64encode(b"\xff\xfe").decode(),
    base64.urlsafe_b64encode(b"9" * 5_000).decode(),
]


@pytest.mark.parametrize("token", BAD_TOKENS, ids=range(len(BAD_TOKENS)))
async def test_a_page_token_that_the_service_did_not_make_is_refused(tenant: Tenant, token: str) -> None:
    refusal = await refused(
        tenant.workflows.ListWorkflows(ListWorkflowsRequest(namespace=tenant.namespace, page_token=token))
    )
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN")


async def test_a_page_token_of_another_list_or_with_absurd_values_is_refused(tenant: Tenant) -> None:
    for n in range(2):
        await tenant.start(f"order-{n}")
    page = await tenant.workflows.ListWorkflows(ListWorkflowsRequest(namespace=tenant.namespace, page_size=1))
    digest, start_ms, run_id = json_text.loads(base64.urlsafe_b64decode(page.next_page_token))
    forged = [[digest, 10**30, run_id], [digest, -(10**30), run_id], [digest, start_ms, "a\x00b"], [digest, True, "x"]]
    tokens = [base64.urlsafe_b64encode(json_text.dumps(parts).encode()).decode() for parts in forged]
    requests = [ListWorkflowsRequest(namespace=tenant.namespace, page_token=token) for token in tokens]
    requests.append(ListWorkflowsRequest(namespace="elsewhere", page_token=page.next_page_token))
    other = WorkflowFilter(workflow_type="order")
    requests.append(ListWorkflowsRequest(namespace=tenant.namespace, filter=other, page_token=page.next_page_token))
    for request in requests:
        refusal = await refused(tenant.workflows.ListWorkflows(request))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN")


async def test_bad_questions_are_refused_and_name_the_field(tenant: Tenant) -> None:
    run = await tenant.start("order")
    stub, ref = tenant.workflows, tenant.ref(run.run_id)
    years = Timestamp(seconds=2**62)
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: stub.GetWorkflow(GetWorkflowRequest()), "workflow.workflow_id"),
        (lambda: stub.GetWorkflow(GetWorkflowRequest(workflow=WorkflowRef(run_id="a\x00"))), "workflow.run_id"),
        (lambda: stub.GetHistory(GetHistoryRequest(workflow=ref, page_size=-1)), "page_size"),
        (lambda: stub.ListWorkflows(ListWorkflowsRequest(page_size=-5)), "page_size"),
        (lambda: stub.ListWorkflows(ListWorkflowsRequest(filter=WorkflowFilter(statuses=[77]))), "filter.statuses"),
        (
            lambda: stub.ListWorkflows(ListWorkflowsRequest(filter=WorkflowFilter(started_from=years))),
            "filter.started_from",
        ),
        (
            lambda: stub.CountWorkflows(CountWorkflowsRequest(filter=WorkflowFilter(workflow_id="\x00"))),
            "filter.workflow_id",
        ),
        (lambda: tenant.cancel(run.run_id, reason="x" * 4_097), "reason"),
        (lambda: tenant.cancel(run.run_id, request_id="\x07"), "request_id"),
        (lambda: tenant.terminate(run.run_id, identity="x" * 256), "identity"),
        (lambda: stub.ResolveCompensation(ResolveCompensationRequest(workflow=ref)), "compensation_id"),
        (
            lambda: stub.ResolveCompensation(ResolveCompensationRequest(workflow=ref, compensation_id="undo/pay:1")),
            "resolution",
        ),
        (lambda: tenant.admin.DescribeTaskQueue(DescribeTaskQueueRequest(task_queue="\n")), "task_queue"),
        (lambda: tenant.admin.ListSessions(ListSessionsRequest(namespace="\n")), "namespace"),
    ]
    for call, field in cases:
        refusal = await refused(call())  # type: ignore[arg-type]
        assert (refusal.code, refusal.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
        assert refusal.reason == "INVALID_FIELD"
    assert (await tenant.get(run.run_id)).info.status == WORKFLOW_STATUS_RUNNING


async def test_a_resolution_of_what_is_no_failed_compensation_is_not_found(tenant: Tenant) -> None:
    run = await tenant.start("order")
    request = ResolveCompensationRequest(workflow=tenant.ref(run.run_id), compensation_id="undo/pay:1", resolution=1)
    refusal = await refused(tenant.workflows.ResolveCompensation(request))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "COMPENSATION_NOT_FOUND")


async def test_a_closed_run_takes_no_requests(tenant: Tenant) -> None:
    run = await tenant.start("order")
    await tenant.terminate(run.run_id)
    for call in (tenant.cancel(run.run_id), tenant.terminate(run.run_id)):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "WORKFLOW_CLOSED")


# Workers ------------------------------------------------------------------------------------------------------------


def _schedule(**fields: object) -> Command:
    return Command(
        schedule_activity=ScheduleActivity(**{"activity_id": "pay:1", "activity_type": "pay", **fields})  # type: ignore[arg-type]
    )


def _undo(**fields: object) -> Command:
    return _schedule(compensation=Compensation(**{"activity_type": "refund", **fields}))  # type: ignore[arg-type]


def _timer(timer_id: str, duration: Duration) -> Command:
    return Command(start_timer=StartTimer(timer_id=timer_id, duration=duration))


BAD_COMMANDS: list[tuple[str, list[Command], str]] = [
    ("empty", [Command()], "commands[0].attributes"),
    ("second is bad", [timer("1", 5), Command()], "commands[1].attributes"),
    ("after the end", [complete(), timer("1", 1)], "commands[0]"),
    ("two ends", [complete(), fail()], "commands[0]"),
    ("activity id of another type", [_schedule(activity_id="ship:1")], "schedule_activity.activity_id"),
    ("activity id skipped", [_schedule(activity_id="pay:2")], "schedule_activity.activity_id"),
    ("activity id twice", [schedule("pay:1"), schedule("pay:1")], "commands[1].schedule_activity.activity_id"),
    ("activity without a type", [_schedule(activity_type="", activity_id=":1")], "schedule_activity.activity_type"),
    (
        "argument that is not there",
        [_undo(arguments=[CompensationArgument(activity_argument=0)])],
        "schedule_activity.compensation.arguments[0].activity_argument",
    ),
    ("type of a compensation", [_schedule(activity_type="undo/pay", activity_id="undo/pay:1")], "schedule_activity.activity_type"),
    ("NUL in the queue", [_schedule(task_queue="\x00")], "schedule_activity.task_queue"),
    ("long type", [_schedule(activity_type="x" * 256, activity_id="x" * 256 + ":1")], "schedule_activity.activity_type"),
    ("large argument", [_schedule(arguments=[payload_of(2 * MIB + 1)])], "schedule_activity.arguments[0]"),
    ("large arguments", [_schedule(arguments=[payload_of(2 * MIB)] * 3)], "schedule_activity.arguments"),
    ("negative timeout", [_schedule(start_to_close_timeout=Duration(seconds=-1))], "schedule_activity.start_to_close_timeout"),
    ("absurd timeout", [_schedule(heartbeat_timeout=Duration(seconds=10**11))], "schedule_activity.heartbeat_timeout"),
    ("timeouts that contradict each other", [_schedule(start_to_close_timeout=Duration(seconds=1), heartbeat_timeout=Duration(seconds=2))], "schedule_activity.heartbeat_timeout"),
    ("negative attempts", [_schedule(retry_policy=RetryPolicy(max_attempts=-1))], "retry_policy.max_attempts"),
    ("coefficient below 1", [_schedule(retry_policy=RetryPolicy(backoff_coefficient=0.5))], "retry_policy.backoff_coefficient"),
    ("coefficient NaN", [_schedule(retry_policy=RetryPolicy(backoff_coefficient=float("nan")))], "retry_policy.backoff_coefficient"),
    ("coefficient infinite", [_schedule(retry_policy=RetryPolicy(backoff_coefficient=float("inf")))], "retry_policy.backoff_coefficient"),
    ("jitter above 1", [_schedule(retry_policy=RetryPolicy(jitter=1.5))], "retry_policy.jitter"),
    ("absurd priority", [_schedule(priority=-(2**31))], "schedule_activity.priority"),
    ("timer id", [_timer("2", Duration(seconds=1))], "start_timer.timer_id"),
    ("timer id with a zero", [_timer("01", Duration(seconds=1))], "start_timer.timer_id"),
    ("timer of 300 years", [_timer("1", Duration(seconds=300 * 365 * 86_400))], "start_timer.duration"),
    ("timer of less than a duration may be", [_timer("1", Duration(seconds=-315_576_000_001))], "start_timer.duration"),
    ("unknown timer", [cancel_timer("1")], "cancel_timer.timer_id"),
    ("timer id of 5,000 digits", [Command(cancel_timer=CancelTimer(timer_id="9" * 5_000))], "cancel_timer.timer_id"),
    ("timer id in other digits", [timer("1", 9), Command(cancel_timer=CancelTimer(timer_id="\u0661"))], "cancel_timer.timer_id"),
    ("unknown activity", [Command(cancel_activity=CancelActivity(activity_id="pay:1"))], "cancel_activity.activity_id"),
    ("activity id of 5,000 digits", [Command(cancel_activity=CancelActivity(activity_id="pay:" + "9" * 5_000))], "cancel_activity.activity_id"),
    ("activity id with a zero", [schedule("pay:1"), Command(cancel_activity=CancelActivity(activity_id="pay:01"))], "cancel_activity.activity_id"),
    ("cancelled by itself", [CANCEL], "cancel_workflow"),
    ("compensate id", [compensate("7")], "compensate.compensate_id"),
    ("undo without a type", [_undo(activity_type="")], "compensation.activity_type"),
    ("undo with a large argument", [_undo(arguments=[CompensationArgument(payload=payload_of(2 * MIB + 1))])], "compensation.arguments"),
    (
        "registered undo with a result",
        [Command(register_compensation=RegisterCompensation(compensation=Compensation(activity_type="refund", arguments=[CompensationArgument(activity_result={})])))],
        "register_compensation.compensation.arguments",
    ),
    ("undo argument without a value", [_undo(arguments=[CompensationArgument()])], "compensation.arguments"),
    ("large result", [Command(complete_workflow={"result": payload_of(2 * MIB + 1)})], "complete_workflow.result"),
    (
        "large details of a failure",
        [Command(fail_workflow=FailWorkflow(failure=Failure(type="E", details=[payload_of(2 * MIB + 1)])))],
        "fail_workflow.failure",
    ),
    (
        "large details of a cause",
        [Command(fail_workflow=FailWorkflow(failure=Failure(type="E", cause=Failure(type="F", details=[payload_of(2 * MIB + 1)]))))],
        "fail_workflow.failure",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("commands", "field"), [case[1:] for case in BAD_COMMANDS], ids=[case[0] for case in BAD_COMMANDS]
)
async def test_bad_commands_fail_their_task_and_leave_the_run_as_it_was(
    tenant: Tenant, commands: list[Command], field: str
) -> None:
    worker = await tenant.worker()
    run = await tenant.start("order")
    answer = await worker.command(await worker.workflow_task(), *commands)
    assert answer.result == ACKNOWLEDGEMENT_RESULT_INVALID
    assert answer.rejection.reason in ("INVALID_FIELD", "PAYLOAD_TOO_LARGE")
    assert field in answer.rejection.metadata["field"]
    assert await tenant.kinds(run.run_id) == ["workflow_started"]
    shown = await tenant.get(run.run_id)
    assert shown.workflow_task.attempt == 2
    assert shown.workflow_task.last_failure.type == answer.rejection.reason


async def test_ten_thousand_commands_are_taken_and_one_more_is_refused(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run = await tenant.start("order")
    answer = await worker.command(await worker.workflow_task(), *(register("undo") for _ in range(10_001)))
    assert (answer.result, answer.rejection.metadata["limit"]) == (ACKNOWLEDGEMENT_RESULT_INVALID, "10000")
    answer = await worker.command(await worker.workflow_task(), *(timer(str(n), 3600) for n in range(1, 10_001)))
    assert answer.result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    assert (await tenant.get(run.run_id)).info.history_length == 10_001
    await tenant.terminate(run.run_id)


async def test_more_than_ten_thousand_open_tasks_are_refused(tenant: Tenant) -> None:
    worker = await tenant.worker(activities=["pay"], activity_slots=1)
    run = await tenant.start("order")
    await worker.command(
        await worker.workflow_task(), schedule("pay:1"), *(timer(str(n), 3600) for n in range(1, 9_000))
    )
    await worker.complete(await worker.activity())
    answer = await worker.command(await worker.workflow_task(), *(timer(str(n), 3600) for n in range(9_000, 11_000)))
    assert (answer.result, answer.rejection.metadata["limit"]) == (ACKNOWLEDGEMENT_RESULT_INVALID, "10000")
    await tenant.terminate(run.run_id)


async def test_a_hundred_thousand_commands_are_refused_and_others_are_served_meanwhile(tenant: Tenant) -> None:
    worker, other = await tenant.worker(), await tenant.worker(queue="other")
    await tenant.start("order")
    task = await worker.workflow_task()
    completion = WorkflowTaskCompletion(
        token=task.token,
        seen_event_id=task.last_event_id,
        commands=WorkflowTaskCommands(commands=[register("undo") for _ in range(100_000)]),
    )
    refusing = asyncio.create_task(worker.answer(completion))
    for n in range(3):
        await tenant.start(f"other-{n}", task_queue="other")
        await other.command(await other.workflow_task(), complete())
    answer = await refusing
    assert (answer.result, answer.rejection.metadata["limit"]) == (ACKNOWLEDGEMENT_RESULT_INVALID, "10000")


async def _activity(tenant: Tenant, worker: ScriptedWorker) -> tuple[str, str]:
    run = await tenant.start()
    await worker.command(await worker.workflow_task(), schedule("pay:1"))
    return run.run_id, (await worker.activity()).token


@pytest.mark.parametrize("size", [2 * MIB + 1, 5 * MIB, 31 * MIB])
async def test_a_result_that_is_too_large_fails_its_activity_and_the_stream_goes_on(tenant: Tenant, size: int) -> None:
    worker = await tenant.worker()
    run_id, token = await _activity(tenant, worker)
    answer = await worker.report(ActivityCompletion(token=token, result=Payload(binary=bytes(size))))
    assert (answer.result, answer.rejection.reason) == (ACKNOWLEDGEMENT_RESULT_INVALID, "PAYLOAD_TOO_LARGE")
    assert (answer.rejection.metadata["field"], answer.rejection.metadata["limit"]) == ("result", str(2 * MIB))
    task = await worker.workflow_task()
    failure = task.events[-1].activity_failed.failure
    assert (failure.type, failure.non_retryable) == ("PAYLOAD_TOO_LARGE", True)
    await worker.command(task, complete())
    assert await tenant.result(run_id) is not None


async def test_a_result_of_40_mebibytes_ends_the_stream_and_the_session_goes_on(tenant: Tenant) -> None:
    worker, other = await tenant.worker(), await tenant.worker(queue="other")
    run_id, token = await _activity(tenant, worker)
    frame = ConnectRequest(
        activity_completions=[ActivityCompletion(token=token, result=Payload(binary=bytes(40 * MIB)))]
    )
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError, asyncio.InvalidStateError)):
        await worker.send(frame)
        await worker.send(ConnectRequest())
        raise asyncio.InvalidStateError
    error = await worker.end()
    assert error is not None
    # INTERNAL is what this library says by itself when the stream ends while it writes.
    assert error.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL)
    await worker.connect(tokens=[token])
    answer = await worker.report(ActivityCompletion(token=token, failure=Failure(type="TooLarge", non_retryable=True)))
    assert answer.result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    await worker.command(await worker.workflow_task(), complete())
    assert await tenant.result(run_id) is not None
    assert not other.ended.done()


@pytest.mark.parametrize("token", ["", "x", "AAAA" * 60, "\x00" * 40, "ÿ" * 40, "not base64!", "A" * MIB])
async def test_an_unknown_token_is_invalid_and_the_stream_goes_on(tenant: Tenant, token: str) -> None:
    worker = await tenant.worker()
    await worker.send(ConnectRequest(activity_completions=[ActivityCompletion(token=token, result=json("1"))]))
    answer = await worker.acknowledgements.take("acknowledgement")
    assert (answer.result, answer.rejection.reason) == (ACKNOWLEDGEMENT_RESULT_INVALID, "INVALID_TOKEN")
    answer = await worker.answer(WorkflowTaskCompletion(token=token, commands=WorkflowTaskCommands()))
    assert (answer.result, answer.rejection.reason) == (ACKNOWLEDGEMENT_RESULT_INVALID, "INVALID_TOKEN")
    await worker.send(ConnectRequest(returned_tasks=[token], forgotten_runs=["unknown", "\x00"]))
    run_id, good = await _activity(tenant, worker)
    assert (
        await worker.report(ActivityCompletion(token=good, result=json("1")))
    ).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    assert run_id


async def test_a_token_with_another_character_is_invalid(tenant: Tenant) -> None:
    worker = await tenant.worker()
    _, token = await _activity(tenant, worker)
    for position in (*range(0, len(token), 7), len(token) - 1):
        other = chr(ord(token[position]) ^ 1)
        changed = token[:position] + other + token[position + 1 :]
        answer = await worker.report(ActivityCompletion(token=changed, result=json("1")))
        assert (answer.result, answer.rejection.reason) == (ACKNOWLEDGEMENT_RESULT_INVALID, "INVALID_TOKEN")
    assert (
        await worker.report(ActivityCompletion(token=token, result=json("1")))
    ).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED


async def test_a_token_used_for_the_other_kind_of_task_is_invalid_and_stays_in_hand(tenant: Tenant) -> None:
    worker = await tenant.worker()
    await tenant.start("order")
    task = await worker.workflow_task()
    answer = await worker.report(ActivityCompletion(token=task.token, result=json("1")))
    assert (answer.result, answer.rejection.reason) == (ACKNOWLEDGEMENT_RESULT_INVALID, "INVALID_TOKEN")
    assert (await worker.command(task, schedule("pay:1"))).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    activity = await worker.activity()
    wrong = WorkflowTaskCompletion(token=activity.token, seen_event_id=2, commands=WorkflowTaskCommands())
    answer = await worker.answer(wrong)
    assert (answer.result, answer.rejection.reason) == (ACKNOWLEDGEMENT_RESULT_INVALID, "INVALID_TOKEN")
    assert (await worker.complete(activity)).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED


async def test_completions_without_an_outcome_are_invalid(tenant: Tenant) -> None:
    worker = await tenant.worker()
    await tenant.start("order")
    task = await worker.workflow_task()
    answer = await worker.answer(WorkflowTaskCompletion(token=task.token, seen_event_id=task.last_event_id))
    assert (answer.result, answer.rejection.metadata["field"]) == (ACKNOWLEDGEMENT_RESULT_INVALID, "outcome")
    await worker.command(await worker.workflow_task(), schedule("pay:1"))
    answer = await worker.report(ActivityCompletion(token=(await worker.activity()).token))
    assert (answer.result, answer.rejection.metadata["field"]) == (ACKNOWLEDGEMENT_RESULT_INVALID, "outcome")


@pytest.mark.parametrize("seen", [0, -1, 2, 2**62])
async def test_a_completion_that_saw_what_is_not_there_is_invalid(tenant: Tenant, seen: int) -> None:
    worker = await tenant.worker()
    await tenant.start("order")
    task = await worker.workflow_task()
    answer = await worker.answer(
        WorkflowTaskCompletion(
            token=task.token, seen_event_id=seen, commands=WorkflowTaskCommands(commands=[complete()])
        )
    )
    assert (answer.result, answer.rejection.metadata["field"]) == (ACKNOWLEDGEMENT_RESULT_INVALID, "seen_event_id")


async def test_a_completion_that_saw_what_its_task_did_not_bring_is_invalid(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run = await tenant.start("order")
    task = await worker.workflow_task()
    await tenant.cancel(run.run_id)
    commands = WorkflowTaskCommands(commands=[complete()])
    answer = await worker.answer(
        WorkflowTaskCompletion(token=task.token, seen_event_id=task.last_event_id + 1, commands=commands)
    )
    assert (answer.result, answer.rejection.metadata["field"]) == (ACKNOWLEDGEMENT_RESULT_INVALID, "seen_event_id")


async def test_the_texts_of_a_failure_are_cut_and_not_refused(tenant: Tenant) -> None:
    worker = await tenant.worker()
    _, token = await _activity(tenant, worker)
    failure = Failure(message="\u00e4" * 100_000, type="T" * 1_000, stack_trace="s" * 100_000, non_retryable=True)
    inner = failure
    for _ in range(40):
        inner.cause.CopyFrom(Failure(message="because", type="Cause"))
        inner = inner.cause
    answer = await worker.report(ActivityCompletion(token=token, failure=failure))
    assert answer.result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    recorded = (await worker.workflow_task()).events[-1].activity_failed.failure
    assert len(recorded.message.encode()) <= 4_096
    assert len(recorded.type) <= 255
    assert len(recorded.stack_trace) <= 16_384
    depth = 0
    while recorded.HasField("cause"):
        recorded, depth = recorded.cause, depth + 1
    assert depth < 20


async def test_pieces_of_frames_that_do_not_fit_end_only_their_own_stream(tenant: Tenant) -> None:
    other = await tenant.worker(queue="other")
    for pieces in (
        [Chunk(frame_id=1, data=b"x"), Chunk(frame_id=2, data=b"y")],
        [Chunk(frame_id=1, data=b"\xff\xff\xff", last=True)],
        [Chunk(frame_id=1, data=bytes(8 * MIB)) for _ in range(5)],
    ):
        worker = await tenant.worker()
        try:
            for piece in pieces:
                await worker.send(ConnectRequest(chunk=piece))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # it was refused before all was sent
        error = await worker.end()
        assert error is not None
        # INTERNAL is what this library says by itself when the stream ends while it writes.
        interrupted = error.code() is grpc.StatusCode.INTERNAL and "Internal error from Core" in (error.details() or "")
        assert interrupted or refusal_of(error).code is grpc.StatusCode.INVALID_ARGUMENT
    assert not other.ended.done()
    await assert_alive(tenant)


async def test_a_run_that_grows_too_long_is_ended_with_a_failure_that_says_so(tenant: Tenant) -> None:
    worker = await tenant.worker(activities=["pay", "undo"], activity_slots=1)
    run = await tenant.start("order")
    registered = 0
    number = 1
    task = await worker.workflow_task()
    while True:
        filling = [register("undo") for _ in range(9_990)] if registered < 49_000 else []
        registered += len(filling)
        answer = await worker.command(task, *filling, schedule(f"pay:{number}"))
        await worker.complete(await worker.activity())
        task = await worker.workflow_task()
        if answer.last_event_id >= 49_000:
            break
        number += 1
    await worker.command(task, *(timer(str(n), 3600) for n in range(1, 2_500)))
    outcome_failure = (await tenant.history(run.run_id))[answer.last_event_id + 2_499 :]
    (started,) = [e.rollback_started for e in outcome_failure if e.HasField("rollback_started")]
    assert started.failure.type == "HistoryTooLong"
    assert "51200" in started.failure.message
    assert (await tenant.get(run.run_id)).info.status == WORKFLOW_STATUS_COMPENSATING
    assert (await worker.activity()).activity_type == "undo"
    await tenant.terminate(run.run_id)


async def test_a_start_request_as_bytes_of_every_kind_never_breaks_the_service(tenant: Tenant) -> None:
    good = tenant.start_request("order", arguments=[json("1")]).SerializeToString()
    call = tenant.channel.unary_unary("/romancy.v1.WorkflowService/StartWorkflow")
    for position in range(len(good)):
        for change in (0xFF, 0x00, 0x80):
            data = good[:position] + bytes([change]) + good[position + 1 :]
            try:
                await call(data)
            except grpc.aio.AioRpcError as error:
                assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ALREADY_EXISTS), error
    StartWorkflowRequest.FromString(good)
    assert seconds(1) == Duration(seconds=1)


async def test_the_log_has_one_line_for_each_refusal_and_no_values(tenant: Tenant) -> None:
    worker = await tenant.worker()
    _, token = await _activity(tenant, worker)
    with capture_logs() as lines:
        await refused(tenant.start("a\x00secret"))
        await worker.report(ActivityCompletion(token=token, result=Payload(json="canary" * MIB)))
    told = [line for line in lines if line["log_level"] in ("info", "warning", "error") and "reason" in line]
    assert [(line["event"], line["reason"]) for line in told] == [
        ("call refused", "INVALID_FIELD"),
        ("completion refused", "PAYLOAD_TOO_LARGE"),
    ]
    assert told[1]["field"] == "result"
    assert "canary" not in str(lines)
