"""What is refused at the edge, and what passes: each limit at its last allowed value and one above."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from romancy.v1.command_pb2 import ScheduleActivity
from romancy.v1.failure_pb2 import Failure
from romancy.v1.payload_pb2 import Payload
from romancy.v1.retry_pb2 import RetryPolicy
from romancy.v1.worker_service_pb2 import Hello
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_RUNNING, AttributeValue, WorkflowSpec
from romancy.v1.workflow_service_pb2 import (
    CancelWorkflowRequest,
    ResolveCompensationRequest,
    StartWorkflowRequest,
    WorkflowFilter,
    WorkflowRef,
)

from romancy_service.core.check import (
    check_duration,
    check_failure,
    check_headers,
    check_id,
    check_payload,
    check_payloads,
    check_priority,
    check_retry_policy,
    check_timeouts,
)
from romancy_service.core.limits import LONGEST_DURATION_MS, Limits
from romancy_service.errors import InvalidField
from romancy_service.rpc.validate import (
    check_change,
    check_filter,
    check_hello,
    check_ref,
    check_start,
    namespace_of,
    page_size,
    wait_ms,
)

LIMITS = Limits()
SMALL = replace(
    LIMITS, payload_bytes=100, payloads_bytes=150, memo_bytes=100, headers=2, headers_bytes=20, attributes=2
)


def refused(check: Callable[[], object]) -> InvalidField:
    with pytest.raises(InvalidField) as error:
        check()
    return error.value


@given(st.text(min_size=1, max_size=300))
def test_an_id_passes_exactly_when_it_is_short_and_free_of_control_characters(text: str) -> None:
    short = len(text.encode(errors="surrogatepass")) <= 255
    plain = not any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in text)
    try:
        check_id("id", text, LIMITS)
        passed = True
    except InvalidField:
        passed = False
    assert passed == (short and plain)


@pytest.mark.parametrize("good", ["x" * 255, "\u00e9" * 127, "\U0001f600" * 63, "order 1/\u6ce8\u6587", "a\u200db"])
def test_ordinary_ids_of_any_language_pass(good: str) -> None:
    check_id("id", good, LIMITS)


@pytest.mark.parametrize(
    "bad", ["", "x" * 256, "\u00e9" * 128, "\U0001f600" * 64, "a\0b", "a\nb", "\x1b[2J", "\x7f", "\x85", "\ud800"]
)
def test_bad_ids_are_refused_with_field_value_and_limit(bad: str) -> None:
    error = refused(lambda: check_id("spec.task_queue", bad, LIMITS))
    assert error.metadata["field"] == "spec.task_queue"
    assert error.metadata["limit"] == "255"
    assert str(error).isprintable()


def test_a_payload_passes_up_to_its_limit() -> None:
    fits = Payload(binary=b"x" * 98)
    assert fits.ByteSize() == 100
    check_payload("result", fits, SMALL)
    error = refused(lambda: check_payload("result", Payload(binary=b"x" * 99), SMALL))
    assert error.reason == "PAYLOAD_TOO_LARGE"
    assert error.metadata == {"field": "result", "value": "101", "limit": "100"}


def test_payloads_are_limited_together_too() -> None:
    error = refused(lambda: check_payloads("arguments", [Payload(json="x" * 90)] * 2, SMALL))
    assert (error.field, error.reason, error.limit) == ("arguments", "PAYLOAD_TOO_LARGE", 150)
    error = refused(lambda: check_payloads("arguments", [Payload(), Payload(json="x" * 200)], SMALL))
    assert error.field == "arguments[1]"


def test_a_duration_passes_up_to_ten_years_and_below_zero_only_where_that_means_at_once() -> None:
    check_duration("wait", Duration())
    check_duration("wait", Duration(seconds=LONGEST_DURATION_MS // 1000))
    refused(lambda: check_duration("wait", Duration(seconds=LONGEST_DURATION_MS // 1000, nanos=1)))
    refused(lambda: check_duration("wait", Duration(seconds=315_576_000_000)))
    refused(lambda: check_duration("wait", Duration(seconds=2**63 - 1)))
    refused(lambda: check_duration("wait", Duration(nanos=-1)))
    refused(lambda: check_duration("wait", Duration(seconds=1, nanos=-1)))
    refused(lambda: check_duration("wait", Duration(nanos=10**9)))
    check_duration("timer", Duration(seconds=-5, nanos=-1), allow_negative=True)
    check_duration("timer", Duration(seconds=-300 * 365 * 86_400), allow_negative=True)
    check_duration("timer", Duration(seconds=-315_576_000_000, nanos=-999_999_999), allow_negative=True)
    refused(lambda: check_duration("timer", Duration(seconds=-315_576_000_001), allow_negative=True))
    refused(lambda: check_duration("timer", Duration(seconds=-(2**63)), allow_negative=True))


def test_a_failures_details_are_limited_at_any_depth() -> None:
    failure = Failure(cause=Failure(cause=Failure(details=[Payload(json="x" * 200)])))
    assert refused(lambda: check_failure("failure", failure, SMALL)).field == "failure.cause.cause.details[0]"


def test_a_failures_wait_is_a_duration() -> None:
    error = refused(lambda: check_failure("failure", Failure(retry_after=Duration(seconds=-1)), LIMITS))
    assert error.field == "failure.retry_after"


def test_headers_are_limited_in_number_and_size() -> None:
    check_headers("headers", {"a": "1", "b": "2"}, SMALL)
    refused(lambda: check_headers("headers", {"a": "1", "b": "2", "c": "3"}, SMALL))
    refused(lambda: check_headers("headers", {"a": "x" * 20}, SMALL))
    refused(lambda: check_headers("headers", {"": "x"}, SMALL))


def test_a_priority_lies_between_its_limits() -> None:
    check_priority("priority", -LIMITS.priority, LIMITS)
    refused(lambda: check_priority("priority", LIMITS.priority + 1, LIMITS))


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (RetryPolicy(max_attempts=-1), "max_attempts"),
        (RetryPolicy(backoff_coefficient=0.5), "backoff_coefficient"),
        (RetryPolicy(backoff_coefficient=float("nan")), "backoff_coefficient"),
        (RetryPolicy(backoff_coefficient=float("inf")), "backoff_coefficient"),
        (RetryPolicy(jitter=1.1), "jitter"),
        (RetryPolicy(jitter=float("nan")), "jitter"),
        (RetryPolicy(initial_interval=Duration(seconds=-1)), "initial_interval"),
        (RetryPolicy(max_interval=Duration(seconds=2**40)), "max_interval"),
        (RetryPolicy(initial_interval=Duration(seconds=2), max_interval=Duration(seconds=1)), "initial_interval"),
        (RetryPolicy(non_retryable_types=["x"] * 101), "non_retryable_types"),
        (RetryPolicy(non_retryable_types=[""]), "non_retryable_types"),
    ],
)
def test_a_retry_policy_that_makes_no_sense_is_refused(policy: RetryPolicy, field: str) -> None:
    assert refused(lambda: check_retry_policy("retry_policy", policy, LIMITS)).field == f"retry_policy.{field}"


def test_an_ordinary_retry_policy_passes() -> None:
    check_retry_policy("retry_policy", RetryPolicy(), LIMITS)
    check_retry_policy("retry_policy", RetryPolicy(max_attempts=0, backoff_coefficient=1, jitter=0), LIMITS)


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        ("heartbeat_timeout", "start_to_close_timeout"),
        ("heartbeat_timeout", "schedule_to_close_timeout"),
        ("start_to_close_timeout", "schedule_to_close_timeout"),
        ("schedule_to_start_timeout", "schedule_to_close_timeout"),
    ],
)
def test_a_timeout_that_is_longer_than_what_it_lies_within_is_refused(inner: str, outer: str) -> None:
    timeouts = {inner: Duration(seconds=9), outer: Duration(seconds=9)}
    check_timeouts("activity", ScheduleActivity(**timeouts), (inner, outer))  # type: ignore[arg-type]
    timeouts[inner] = Duration(seconds=9, nanos=1_000_000)
    error = refused(lambda: check_timeouts("activity", ScheduleActivity(**timeouts), (inner, outer)))  # type: ignore[arg-type]
    assert error.field == f"activity.{inner}"
    assert f"is 9.001 s, longer than {outer}, 9 s" in str(error)


def test_a_timeout_of_zero_is_none_and_contradicts_nothing() -> None:
    timeouts = ScheduleActivity(start_to_close_timeout=Duration(), heartbeat_timeout=Duration(seconds=9))
    check_timeouts("activity", timeouts, ("start_to_close_timeout", "heartbeat_timeout"))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"session_lease_ms": 12_000}, "session_lease_ms is 12000, but a worker reconnects only after 3 heartbeats"),
        ({"payload_bytes": 5 << 20}, "payload_bytes is 5242880, which is above payloads_bytes"),
        ({"page_runs": 2_000}, "page_runs is 2000, which is above max_page_runs"),
        ({"sessions": 0}, "sessions is 0, but must be at least 1"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(changes: dict[str, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        replace(LIMITS, **changes)


def start(**changes: object) -> StartWorkflowRequest:
    spec = WorkflowSpec(workflow_type="order", task_queue="default")
    request = StartWorkflowRequest(workflow_id="order-1", spec=spec)
    request.MergeFrom(StartWorkflowRequest(**changes))  # type: ignore[arg-type]  # any of its fields
    return request


def test_an_ordinary_start_passes() -> None:
    check_start(start(), LIMITS)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (StartWorkflowRequest(), "spec.workflow_type"),
        (start(spec=WorkflowSpec(task_queue="\0")), "spec.task_queue"),
        (start(workflow_id="a\0"), "workflow_id"),
        (start(request_id="r" * 256), "request_id"),
        (start(identity="\n"), "identity"),
        (start(id_reuse_policy=99), "id_reuse_policy"),
        (start(id_conflict_policy=-1), "id_conflict_policy"),
        (start(wait=Duration(seconds=-1)), "wait"),
        (start(spec=WorkflowSpec(run_timeout=Duration(seconds=-1))), "spec.run_timeout"),
        (start(spec=WorkflowSpec(priority=2**31 - 1)), "spec.priority"),
        (start(spec=WorkflowSpec(build_id="\t")), "spec.build_id"),
        (start(spec=WorkflowSpec(arguments=[Payload(json="x" * 200)])), "spec.arguments[0]"),
        (start(spec=WorkflowSpec(headers={"k": "x" * 100})), "spec.headers"),
        (start(spec=WorkflowSpec(memo={"k": Payload(json="x" * 200)})), "spec.memo"),
        (start(spec=WorkflowSpec(memo={"": Payload()})), "spec.memo key"),
        (start(spec=WorkflowSpec(attributes={k: AttributeValue(flag=True) for k in "abc"})), "spec.attributes"),
        (start(spec=WorkflowSpec(attributes={"a": AttributeValue()})), "spec.attributes['a']"),
        (start(spec=WorkflowSpec(attributes={"a": AttributeValue(number=float("nan"))})), "spec.attributes['a']"),
        (start(spec=WorkflowSpec(attributes={"a": AttributeValue(text="x" * 3000)})), "spec.attributes['a']"),
        (
            start(spec=WorkflowSpec(attributes={"a": AttributeValue(time=Timestamp(seconds=2**60))})),
            "spec.attributes['a']",
        ),
    ],
)
def test_a_start_with_a_fault_is_refused_by_the_fields_name(request_: StartWorkflowRequest, field: str) -> None:
    assert refused(lambda: check_start(request_, SMALL)).field == field


def test_a_run_is_named_by_one_of_its_ids() -> None:
    check_ref("workflow", WorkflowRef(workflow_id="a"), LIMITS)
    check_ref("workflow", WorkflowRef(run_id="a"), LIMITS)
    refused(lambda: check_ref("workflow", WorkflowRef(), LIMITS))
    refused(lambda: check_ref("workflow", WorkflowRef(workflow_id="a", run_id="\0"), LIMITS))


def test_a_change_is_refused_for_its_reason_and_its_ids() -> None:
    ref = WorkflowRef(workflow_id="a")
    check_change(CancelWorkflowRequest(workflow=ref, reason="two\nlines"), LIMITS)
    assert refused(lambda: check_change(CancelWorkflowRequest(workflow=ref, reason="x" * 4097), LIMITS)).limit == 4096
    error = refused(lambda: check_change(ResolveCompensationRequest(workflow=ref), LIMITS))
    assert error.field == "compensation_id"


def test_a_filter_with_a_fault_is_refused() -> None:
    check_filter(
        "filter", WorkflowFilter(statuses=[WORKFLOW_STATUS_RUNNING], workflow_id_prefix="%_' OR 1=1--"), LIMITS
    )
    refused(lambda: check_filter("filter", WorkflowFilter(statuses=[0]), LIMITS))  # type: ignore[list-item]
    refused(lambda: check_filter("filter", WorkflowFilter(statuses=[77]), LIMITS))  # type: ignore[list-item]
    refused(lambda: check_filter("filter", WorkflowFilter(started_from=Timestamp(nanos=-1)), LIMITS))


def test_pages_are_as_long_as_asked_and_never_longer_than_allowed() -> None:
    assert [page_size("page_size", asked, 100, 1000) for asked in (0, 1, 1000, 1001)] == [100, 1, 1000, 1000]
    refused(lambda: page_size("page_size", -1, 100, 1000))


def test_waits_are_as_long_as_asked_and_never_longer_than_allowed() -> None:
    assert [wait_ms("wait", Duration(seconds=s), LIMITS) for s in (0, 5, 86_400)] == [0, 5_000, 60_000]


def test_no_namespace_means_default() -> None:
    assert namespace_of("", LIMITS) == "default"
    assert namespace_of("orders", LIMITS) == "orders"
    refused(lambda: namespace_of("a\0b", LIMITS))


HELLO = Hello(worker_id="w", task_queues=["q"], activity_types=["a"], activity_slots=1)


def hello(**changes: object) -> Hello:
    changed = Hello()
    changed.CopyFrom(HELLO)
    changed.MergeFrom(Hello(**changes))  # type: ignore[arg-type]  # any of its fields
    return changed


def test_an_ordinary_hello_passes() -> None:
    check_hello(HELLO, LIMITS)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (Hello(task_queues=["q"]), "hello.worker_id"),
        (Hello(worker_id="w"), "hello.task_queues"),
        (hello(task_queues=[""]), "hello.task_queues"),
        (hello(task_queues=[f"q{n}" for n in range(100)]), "hello.task_queues"),
        (hello(workflow_types=["w"] * 1001), "hello.workflow_types"),
        (hello(workflow_types=["w"]), "hello.workflow_slots"),
        (hello(activity_slots=10_001), "hello.activity_slots"),
        (hello(activity_slots=-1), "hello.activity_slots"),
        (hello(session_id="\0"), "hello.session_id"),
        (hello(namespace="n" * 256), "hello.namespace"),
    ],
)
def test_a_hello_with_a_fault_is_refused_by_the_fields_name(wrong: Hello, field: str) -> None:
    error = refused(lambda: check_hello(wrong, LIMITS))
    assert (error.field, error.reason) == (field, "INVALID_HELLO")
