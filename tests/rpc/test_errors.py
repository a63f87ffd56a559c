"""How errors are answered: each class has a status, and what is our fault is not told to strangers."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
import structlog
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from romancy.v1.workflow_service_pb2 import StartWorkflowRequest
from romancy.v1.workflow_service_pb2_grpc import WorkflowServiceStub

from romancy_service import errors
from romancy_service.config import Address, Config
from romancy_service.errors import (
    BatchRejected,
    InternalError,
    InvalidField,
    RomancyError,
    StoreUnavailable,
    WorkflowAlreadyOpen,
    WorkflowNotFound,
)
from romancy_service.rpc.errors import STATUS
from tests.rpc.echo import echoing

LISTEN = Address("127.0.0.1", 0)


async def answer_to(failure: BaseException) -> tuple[grpc.aio.AioRpcError, ErrorInfo]:
    async with echoing(Config(listen=LISTEN)) as echo, echo.channel() as channel:
        echo.workflows.failure = failure
        with pytest.raises(grpc.aio.AioRpcError) as answered:
            await WorkflowServiceStub(channel).StartWorkflow(StartWorkflowRequest())
    status, info = Status(), ErrorInfo()
    trailing: Any = answered.value.trailing_metadata()
    status.ParseFromString(trailing["grpc-status-details-bin"])
    assert status.code == answered.value.code().value[0]
    assert status.message == answered.value.details()
    assert status.details[0].Unpack(info)
    assert info.domain == "romancy"
    return answered.value, info


def test_every_error_has_a_status_and_a_reason() -> None:
    classes = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, RomancyError) and value is not RomancyError
    }
    assert classes == set(STATUS)
    reasons = [cls.reason for cls in classes if cls is not InvalidField]
    assert len(reasons) == len(set(reasons)), "two errors with one reason cannot be told apart"


async def test_an_error_arrives_with_status_reason_text_and_metadata() -> None:
    error, info = await answer_to(WorkflowAlreadyOpen("order-1", "run-7"))
    assert error.code() is grpc.StatusCode.ALREADY_EXISTS
    assert info.reason == "WORKFLOW_ALREADY_OPEN"
    assert dict(info.metadata) == {"workflow_id": "order-1", "run_id": "run-7"}
    assert "order-1" in str(error.details())


async def test_a_bad_field_is_named_with_its_value_and_its_limit() -> None:
    refused = InvalidField("id", "has 300 bytes", value="x" * 300, limit=255).inside("spec")
    error, info = await answer_to(refused)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert info.metadata["field"] == "spec.id"
    assert info.metadata["limit"] == "255"
    assert len(info.metadata["value"]) < 120, "a bad value is cut"


async def test_a_long_text_full_of_control_characters_still_arrives() -> None:
    error, info = await answer_to(WorkflowNotFound("\x00\n\u202e" * 80))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert "\n" not in str(error.details())
    with structlog.testing.capture_logs():
        error, info = await answer_to(StoreUnavailable("\u20ac" * 10_000))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert info.reason == "STORE_UNAVAILABLE"


@pytest.mark.parametrize(
    "failure",
    [RuntimeError("password=hunter2"), InternalError("password=hunter2"), BatchRejected("password=hunter2")],
)
async def test_what_is_our_fault_is_logged_and_only_named_by_a_number(failure: BaseException) -> None:
    with structlog.testing.capture_logs() as logged:
        error, info = await answer_to(failure)
    assert error.code() is grpc.StatusCode.INTERNAL
    assert info.reason == "INTERNAL"
    assert "hunter2" not in str(error.details())
    line = next(line for line in logged if line.get("error_id") == info.metadata["error_id"])
    assert line["exc_info"] is failure
    assert line["method"] == "/romancy.v1.WorkflowService/StartWorkflow"


async def test_a_refused_call_leaves_one_line_in_the_log() -> None:
    with structlog.testing.capture_logs() as logged:
        await answer_to(WorkflowNotFound("order-1"))
    (line,) = [line for line in logged if line.get("reason") == "WORKFLOW_NOT_FOUND"]
    assert line["event"] == "call refused"
    assert "order-1" in line["error"]
