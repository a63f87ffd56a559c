"""The contract as a black box: real stubs over a real channel to the real process, and reflection alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

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
from romancy.v1.activity_service_pb2_grpc import ActivityServiceStub
from romancy.v1.admin_service_pb2_grpc import AdminServiceStub
from romancy.v1.channel_service_pb2_grpc import ChannelServiceStub
from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.event_rule_pb2 import EventRule
from romancy.v1.event_service_pb2_grpc import EventServiceStub
from romancy.v1.outbox_service_pb2_grpc import OutboxServiceStub
from romancy.v1.schedule_pb2 import Schedule, ScheduleAction
from romancy.v1.schedule_service_pb2 import (
    BackfillScheduleRequest,
    CreateScheduleRequest,
    DeleteScheduleRequest,
    GetScheduleRequest,
    ListSchedulesRequest,
    PauseScheduleRequest,
    ResumeScheduleRequest,
    TriggerScheduleRequest,
    UpdateScheduleRequest,
)
from romancy.v1.schedule_service_pb2_grpc import ScheduleServiceStub
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_RUNNING, WORKFLOW_STATUS_TERMINATED, WorkflowSpec
from romancy.v1.workflow_service_pb2 import (
    CancelWorkflowRequest,
    CountWorkflowsRequest,
    DeleteWorkflowRequest,
    GetHistoryRequest,
    GetWorkflowRequest,
    GetWorkflowResultRequest,
    ListWorkflowsRequest,
    ResolveCompensationRequest,
    StartWorkflowRequest,
    StartWorkflowsRequest,
    TerminateWorkflowRequest,
    WaitResultsRequest,
    WatchHistoryRequest,
    WorkflowRef,
)
from romancy.v1.workflow_service_pb2_grpc import WorkflowServiceStub


@pytest.fixture(scope="module")
def grpc_addr(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the real service listens."""
    database = tmp_path_factory.mktemp("contract") / "romancy.db"
    command = [sys.executable, "-m", "romancy_service", "dev", "--database", str(database), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "serving" in line)
        yield line.partition("127.0.0.1:")[0] and f"127.0.0.1:{_port(line)}"
        process.terminate()
        process.stdout.read()
        assert process.wait(20) == 0


def _port(line: str) -> int:
    digits = line.partition("127.0.0.1:")[2]
    return int("".join(character for character in digits[:6] if character.isdigit()))


@pytest.fixture(scope="module")
def grpc_server(grpc_addr: str) -> str:
    """The plugin's fixture, which would start a server of its own: ours runs already."""
    return grpc_addr


@pytest.fixture(scope="module")
def grpc_stub_cls() -> type[WorkflowServiceStub]:
    """The stub that `grpc_stub` is."""
    return WorkflowServiceStub


def _start(workflow_id: str, **fields: Any) -> StartWorkflowRequest:
    spec = WorkflowSpec(workflow_type="order", task_queue="default")
    return StartWorkflowRequest(workflow_id=workflow_id, spec=spec, **fields)


def test_every_rpc_of_the_workflow_service_answers(grpc_stub: WorkflowServiceStub) -> None:
    run = grpc_stub.StartWorkflow(_start("every"))
    ref = WorkflowRef(run_id=run.run_id)
    other = WorkflowRef(run_id=grpc_stub.StartWorkflow(_start("other")).run_id)
    grpc_stub.TerminateWorkflow(TerminateWorkflowRequest(workflow=other))
    assert grpc_stub.StartWorkflows(StartWorkflowsRequest(requests=[_start("many")])).results[0].response.started
    assert grpc_stub.GetWorkflow(GetWorkflowRequest(workflow=ref)).info.status == WORKFLOW_STATUS_RUNNING
    wait = GetWorkflowResultRequest(workflow=ref)
    wait.wait.FromMilliseconds(10)
    assert not grpc_stub.GetWorkflowResult(wait).HasField("outcome")
    assert len(grpc_stub.ListWorkflows(ListWorkflowsRequest()).workflows) == 3
    assert grpc_stub.CountWorkflows(CountWorkflowsRequest()).count == 3
    assert grpc_stub.CancelWorkflow(CancelWorkflowRequest(workflow=ref)).run_id == run.run_id
    with pytest.raises(grpc.RpcError):
        grpc_stub.ResolveCompensation(
            ResolveCompensationRequest(workflow=ref, compensation_id="undo/x:1", resolution=1)
        )
    assert grpc_stub.TerminateWorkflow(TerminateWorkflowRequest(workflow=ref)).run_id == run.run_id
    assert len(grpc_stub.GetHistory(GetHistoryRequest(workflow=ref)).events) == 3
    watched = [event for page in grpc_stub.WatchHistory(WatchHistoryRequest(workflow=ref)) for event in page.events]
    assert [event.event_id for event in watched] == [1, 2, 3]
    assert grpc_stub.DeleteWorkflow(DeleteWorkflowRequest(workflow=other)).run_id == other.run_id
    answers = list(grpc_stub.WaitResults(iter([WaitResultsRequest(run_ids=[run.run_id])])))
    assert answers[0].results[0].outcome.status == WORKFLOW_STATUS_TERMINATED


def test_every_rpc_of_the_admin_service_answers(grpc_channel: grpc.Channel) -> None:
    stub = AdminServiceStub(grpc_channel)
    assert not stub.ListSessions(admin_service_pb2.ListSessionsRequest()).sessions
    stub.DescribeTaskQueue(admin_service_pb2.DescribeTaskQueueRequest(task_queue="default"))
    request = admin_service_pb2.SetNamespaceRequest(namespace="tenant")
    request.retention.FromSeconds(7_200)
    said = stub.SetNamespace(request).namespace
    assert said in stub.ListNamespaces(admin_service_pb2.ListNamespacesRequest()).namespaces


def test_every_rpc_of_the_activity_service_answers(grpc_channel: grpc.Channel, grpc_stub: WorkflowServiceStub) -> None:
    stub = ActivityServiceStub(grpc_channel)
    named = activity_service_pb2.ActivityRef(
        run_id=grpc_stub.StartWorkflow(_start("activity")).run_id, activity_id="pay:1"
    )
    for call in (
        lambda: stub.CompleteActivity(activity_service_pb2.CompleteActivityRequest(activity=named, result={})),
        lambda: stub.HeartbeatActivity(activity_service_pb2.HeartbeatActivityRequest(activity=named)),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION, "there is no such activity"


def test_every_rpc_of_the_channel_service_answers(grpc_channel: grpc.Channel) -> None:
    stub = ChannelServiceStub(grpc_channel)
    assert not stub.PublishMessage(channel_service_pb2.PublishMessageRequest(channel="contract")).duplicate
    channel = stub.GetChannel(channel_service_pb2.GetChannelRequest(channel="contract")).channel
    assert (channel.name, channel.unread) == ("contract", 1)
    assert channel in stub.ListChannels(channel_service_pb2.ListChannelsRequest()).channels


def test_every_rpc_of_the_outbox_service_answers(grpc_channel: grpc.Channel) -> None:
    stub = OutboxServiceStub(grpc_channel)
    with pytest.raises(grpc.RpcError) as refused:
        stub.SetSink(outbox_service_pb2.SetSinkRequest(url="https://hooks.example.com/"))
    assert "--sink-allow" in str(refused.value.details())
    sink = stub.SetSink(outbox_service_pb2.SetSinkRequest(url="http://127.0.0.1:1/", name="contract")).sink
    assert sink in stub.ListSinks(outbox_service_pb2.ListSinksRequest()).sinks
    stub.DeleteSink(outbox_service_pb2.DeleteSinkRequest(name="contract"))
    assert not stub.ListOutbox(outbox_service_pb2.ListOutboxRequest()).events
    assert stub.RetryDeadLetters(outbox_service_pb2.RetryDeadLettersRequest(sink="contract")).count == 0
    assert stub.DropDeadLetters(outbox_service_pb2.DropDeadLettersRequest(sink="contract")).count == 0


def test_every_rpc_of_the_event_service_answers(grpc_channel: grpc.Channel) -> None:
    stub = EventServiceStub(grpc_channel)
    event = CloudEvent(id="contract", source="/tests", spec_version="1.0", type="tested", text_data="1")
    assert not stub.PublishEvent(event_service_pb2.PublishEventRequest(event=event)).duplicate
    assert list(stub.PublishEvents(event_service_pb2.PublishEventsRequest(events=[event])).duplicates) == [True]

    rule = EventRule(event_type="ruled", workflow=WorkflowSpec(workflow_type="order", task_queue="default"))
    named: Any = {"namespace": "rules", "rule_id": "start"}
    assert stub.SetEventRule(event_service_pb2.SetEventRuleRequest(**named, rule=rule)).created
    shown = stub.GetEventRule(event_service_pb2.GetEventRuleRequest(**named)).rule
    assert shown.rule == rule
    assert list(stub.ListEventRules(event_service_pb2.ListEventRulesRequest(namespace="rules")).rules) == [shown]
    stub.PauseEventRule(event_service_pb2.PauseEventRuleRequest(**named))
    stub.ResumeEventRule(event_service_pb2.ResumeEventRuleRequest(**named))
    stub.DeleteEventRule(event_service_pb2.DeleteEventRuleRequest(**named))


def test_every_rpc_of_the_schedule_service_answers(grpc_channel: grpc.Channel) -> None:
    stub = ScheduleServiceStub(grpc_channel)
    schedule = Schedule(action=ScheduleAction(workflow=WorkflowSpec(workflow_type="order", task_queue="default")))
    schedule.spec.crons.add(expression="0 0 1 1 *")
    named: Any = {"namespace": "schedules", "schedule_id": "yearly"}
    assert stub.CreateSchedule(CreateScheduleRequest(**named, schedule=schedule)).revision == 1
    assert stub.GetSchedule(GetScheduleRequest(**named)).info.workflow_type == "order"
    assert [each.schedule_id for each in stub.ListSchedules(ListSchedulesRequest(namespace="schedules")).schedules] == [
        "yearly"
    ]
    assert stub.UpdateSchedule(UpdateScheduleRequest(**named, schedule=schedule, revision=1)).revision == 2
    stub.PauseSchedule(PauseScheduleRequest(**named))
    stub.ResumeSchedule(ResumeScheduleRequest(**named))
    assert stub.TriggerSchedule(TriggerScheduleRequest(**named)).workflow_id.startswith("yearly-")
    backfill = BackfillScheduleRequest(**named)
    backfill.end_time.FromSeconds(1_700_000_000)
    assert stub.BackfillSchedule(backfill).starts == 54
    stub.DeleteSchedule(DeleteScheduleRequest(**named))


def test_an_error_carries_reason_and_metadata_in_the_standard_form(grpc_stub: WorkflowServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        grpc_stub.StartWorkflow(_start("a\nb"))
    status = rpc_status.from_call(refused.value)  # type: ignore[arg-type]
    assert status is not None
    info = ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.domain, info.reason, info.metadata["field"]) == ("romancy", "INVALID_FIELD", "workflow_id")
    assert status.message.startswith("workflow_id: has the control character U+000A")


def test_health_is_served_for_the_whole_and_for_each_service(grpc_channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(grpc_channel)
    for name in ("WorkflowService", "ScheduleService", "WorkerService", "AdminService", ""):
        service = f"romancy.v1.{name}" if name else ""
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, service


class Reflected:
    """A client that knows nothing but what reflection tells it."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        self.pool = descriptor_pool.DescriptorPool()

    def services(self) -> list[str]:
        """What is served."""
        answer = self._ask(reflection_pb2.ServerReflectionRequest(list_services=""))
        return [service.name for service in answer.list_services_response.service]

    def describe(self, symbol: str) -> Any:
        """A service, with all that its messages are made of."""
        answer = self._ask(reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol))
        files = [
            descriptor_pb2.FileDescriptorProto.FromString(data)
            for data in answer.file_descriptor_response.file_descriptor_proto
        ]
        self._add(files)
        return self.pool.FindServiceByName(symbol)

    def _add(self, files: list[descriptor_pb2.FileDescriptorProto]) -> None:
        waiting = {file.name: file for file in files}

        def add(name: str) -> None:
            file = waiting.pop(name, None)
            if file is None:
                try:
                    self.pool.FindFileByName(name)
                    return
                except KeyError:
                    answer = self._ask(reflection_pb2.ServerReflectionRequest(file_by_filename=name))
                    (data,) = answer.file_descriptor_response.file_descriptor_proto[:1]
                    file = descriptor_pb2.FileDescriptorProto.FromString(data)
            for dependency in file.dependency:
                add(dependency)
            self.pool.Add(file)  # type: ignore[no-untyped-call]

        for name in list(waiting):
            if name in waiting:
                add(name)

    def _ask(self, request: reflection_pb2.ServerReflectionRequest) -> reflection_pb2.ServerReflectionResponse:
        answer = next(iter(self._stub.ServerReflectionInfo(iter([request]))))
        assert not answer.HasField("error_response"), answer
        return answer

    def call(self, service: str, method: str, text: str) -> dict[str, Any]:
        """Call a unary method with JSON, as grpcurl does."""
        described = self.describe(service).methods_by_name[method]
        request = message_factory.GetMessageClass(described.input_type)()
        json_format.Parse(text, request, descriptor_pool=self.pool)
        answer_class = message_factory.GetMessageClass(described.output_type)
        call = self._channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer_class.FromString,
        )
        return json_format.MessageToDict(call(request), descriptor_pool=self.pool)


def test_reflection_lists_and_describes_all_that_is_served(grpc_channel: grpc.Channel) -> None:
    reflected = Reflected(grpc_channel)
    assert {
        "romancy.v1.WorkflowService",
        "romancy.v1.EventService",
        "romancy.v1.ChannelService",
        "romancy.v1.OutboxService",
        "romancy.v1.ScheduleService",
        "romancy.v1.WorkerService",
        "romancy.v1.ActivityService",
        "romancy.v1.AdminService",
        "grpc.health.v1.Health",
    } <= set(reflected.services())
    ours = (
        activity_service_pb2,
        workflow_service_pb2,
        event_service_pb2,
        channel_service_pb2,
        outbox_service_pb2,
        schedule_service_pb2,
        worker_service_pb2,
        admin_service_pb2,
    )
    for contract in ours:
        for service in contract.DESCRIPTOR.services_by_name.values():
            described = reflected.describe(service.full_name)
            assert [method.name for method in described.methods] == [method.name for method in service.methods]


def test_a_workflow_is_started_with_json_by_reflection_alone(
    grpc_channel: grpc.Channel, grpc_stub: WorkflowServiceStub
) -> None:
    text = """{"workflowId": "by-json", "spec": {"workflowType": "order", "taskQueue": "default",
               "arguments": [{"json": "{\\"sku\\": 7}"}], "runTimeout": "60s", "memo": {"note": {"json": "1"}}}}"""
    answer = Reflected(grpc_channel).call("romancy.v1.WorkflowService", "StartWorkflow", text)
    assert (answer["workflowId"], answer["started"]) == ("by-json", True)
    shown = grpc_stub.GetWorkflow(GetWorkflowRequest(workflow=WorkflowRef(run_id=answer["runId"])))
    assert shown.spec.arguments[0].json == '{"sku": 7}'


@pytest.mark.parametrize("arguments", [["list"], ["describe", "romancy.v1.WorkflowService"]])
def test_grpcurl_needs_no_files(grpc_addr: str, arguments: list[str]) -> None:
    if shutil.which("grpcurl") is None:
        pytest.skip("grpcurl is not installed")
    done = subprocess.run(["grpcurl", "-plaintext", grpc_addr, *arguments], capture_output=True, text=True, check=True)
    assert "WorkflowService" in done.stdout
