"""Validate: whether a whole request is allowed, before anything is done with it. One function for each kind of request.

Values are checked by core/check.py; here stands which fields a request has and how they go together.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.duration_pb2 import Duration

from romancy.v1.activity_service_pb2 import ActivityRef, CompleteActivityRequest, HeartbeatActivityRequest
from romancy.v1.admin_service_pb2 import SetNamespaceRequest
from romancy.v1.worker_service_pb2 import Hello
from romancy.v1.workflow_pb2 import WorkflowStatus
from romancy.v1.workflow_service_pb2 import (
    AttributeFilter,
    CancelWorkflowRequest,
    DeleteWorkflowRequest,
    IdConflictPolicy,
    IdReusePolicy,
    QueryWorkflowRequest,
    ResolveCompensationRequest,
    SignalWithStartRequest,
    SignalWorkflowRequest,
    StartWorkflowRequest,
    TerminateWorkflowRequest,
    UpdateStage,
    UpdateWorkflowRequest,
    WorkflowFilter,
    WorkflowRef,
)

from romancy_service.core.attributes import check_attribute
from romancy_service.core.check import (
    check_count,
    check_duration,
    check_failure,
    check_id,
    check_payload,
    check_payloads,
    check_text,
    check_timestamp,
)
from romancy_service.core.limits import Limits
from romancy_service.core.spec import check_signal, check_spec
from romancy_service.core.times import duration_ms
from romancy_service.errors import InvalidField

DEFAULT_NAMESPACE = "default"
DEFAULT_TASK_QUEUE = "default"


def namespace_of(namespace: str, limits: Limits) -> str:
    """The namespace that a request means."""
    if namespace:
        check_id("namespace", namespace, limits)
    return namespace or DEFAULT_NAMESPACE


def task_queue_of(field: str, task_queue: str, limits: Limits) -> str:
    """The task queue that a request means."""
    if task_queue:
        check_id(field, task_queue, limits)
    return task_queue or DEFAULT_TASK_QUEUE


def check_start(request: StartWorkflowRequest, limits: Limits) -> None:
    """A start of a run."""
    _check_optional_ids(request, ("workflow_id", "request_id", "identity"), limits)
    _check_enum("id_reuse_policy", request.id_reuse_policy, IdReusePolicy.values())
    _check_enum("id_conflict_policy", request.id_conflict_policy, IdConflictPolicy.values())
    check_duration("wait", request.wait)
    check_spec("spec", request.spec, limits)


def check_ref(field: str, ref: WorkflowRef, limits: Limits) -> None:
    """The name of a run."""
    if not ref.workflow_id and not ref.run_id:
        raise InvalidField(f"{field}.workflow_id", "is empty, and so is run_id", "give one of them")
    for name in ("workflow_id", "run_id"):
        if value := getattr(ref, name):
            check_id(f"{field}.{name}", value, limits)


def check_change(
    request: CancelWorkflowRequest | TerminateWorkflowRequest | ResolveCompensationRequest | DeleteWorkflowRequest,
    limits: Limits,
) -> None:
    """A request that changes a run: which one, why, and who asks."""
    check_ref("workflow", request.workflow, limits)
    check_text("reason", request.reason, limits.reason_bytes)
    _check_optional_ids(request, ("request_id", "identity"), limits)
    if isinstance(request, ResolveCompensationRequest):
        check_id("compensation_id", request.compensation_id, limits)


def check_signal_request(request: SignalWorkflowRequest, limits: Limits) -> None:
    """A signal to a run."""
    check_ref("workflow", request.workflow, limits)
    check_signal("signal", request.signal, limits)
    _check_optional_ids(request, ("request_id", "identity"), limits)


def check_signal_with_start(request: SignalWithStartRequest, limits: Limits) -> None:
    """A signal to a run that may have to be started."""
    check_start(request.start, limits)
    check_signal("signal", request.signal, limits)


def check_activity_ref(activity: ActivityRef, limits: Limits) -> None:
    """The name of an attempt: its token, or workflow and activity id."""
    named = activity.workflow_id or activity.run_id or activity.activity_id
    if activity.token:
        if named:
            problem = "is given, and so is a workflow_id, run_id or activity_id"
            raise InvalidField("activity.token", problem, "give one of them")
        check_text("activity.token", activity.token, limits.token_bytes)
        return
    if not named:
        raise InvalidField("activity.token", "is empty, and so are workflow_id and activity_id", "give one of them")
    check_ref("activity", WorkflowRef(workflow_id=activity.workflow_id, run_id=activity.run_id), limits)
    check_id("activity.activity_id", activity.activity_id, limits)


def check_completion(request: CompleteActivityRequest, limits: Limits) -> None:
    """How an attempt ended, and who says so."""
    check_activity_ref(request.activity, limits)
    _check_optional_ids(request, ("request_id", "identity"), limits)
    match request.WhichOneof("outcome"):
        case "result":
            check_payload("result", request.result, limits)
        case "failure":
            check_failure("failure", request.failure, limits)
        case "cancelled":
            check_payloads("cancelled.details", request.cancelled.details, limits)
        case None:
            raise InvalidField("outcome", "is missing", "set result, failure or cancelled")


def check_heartbeat(request: HeartbeatActivityRequest, limits: Limits) -> None:
    """How far an attempt is."""
    check_activity_ref(request.activity, limits)
    if request.HasField("details"):
        check_payload("details", request.details, limits)


def check_update(request: UpdateWorkflowRequest, limits: Limits) -> None:
    """An update of a run."""
    check_ref("workflow", request.workflow, limits)
    check_id("name", request.name, limits)
    check_payloads("arguments", request.arguments, limits)
    _check_optional_ids(request, ("request_id", "identity"), limits)
    _check_enum("wait_for", request.wait_for, UpdateStage.values())


def check_query(request: QueryWorkflowRequest, limits: Limits) -> None:
    """A question to a run."""
    check_ref("workflow", request.workflow, limits)
    check_id("name", request.name, limits)
    check_payloads("arguments", request.arguments, limits)


def check_filter(field: str, wanted: WorkflowFilter, limits: Limits) -> None:
    """A choice of runs."""
    for status in wanted.statuses:
        _check_enum(f"{field}.statuses", status, WorkflowStatus.values()[1:])
    for name in ("workflow_type", "workflow_id", "workflow_id_prefix"):
        if value := getattr(wanted, name):
            check_id(f"{field}.{name}", value, limits)
    for name in ("started_from", "started_before", "closed_from", "closed_before"):
        check_timestamp(f"{field}.{name}", getattr(wanted, name))
    check_count(f"{field}.attributes", len(wanted.attributes), limits.attribute_filters)
    for number, attribute in enumerate(wanted.attributes):
        _check_attribute_filter(f"{field}.attributes[{number}]", attribute, limits)


_ORDERED = ("less", "less_or_equal", "greater", "greater_or_equal")


def _check_attribute_filter(field: str, wanted: AttributeFilter, limits: Limits) -> None:
    check_id(f"{field}.name", wanted.name, limits)
    condition = wanted.WhichOneof("condition")
    if condition is None:
        raise InvalidField(f"{field}.condition", "is not set", "set one of those that AttributeFilter has")
    if condition == "exists":
        return
    if condition == "one_of":
        values = list(wanted.one_of.values)
        if not 1 <= len(values) <= limits.attribute_values:
            problem = f"has {len(values)} values, allowed are 1 to {limits.attribute_values}"
            raise InvalidField(f"{field}.one_of", problem, value=len(values), limit=limits.attribute_values)
        if len({value.WhichOneof("value") for value in values}) > 1:
            raise InvalidField(f"{field}.one_of", "has values of several types", "give values of one type")
    else:
        values = [getattr(wanted, condition)]
    for value in values:
        check_attribute(f"{field}.{condition}", value, limits)
        if value.WhichOneof("value") == "texts":
            raise InvalidField(
                f"{field}.{condition}", "is a list of texts", "give a text: lists are compared with each"
            )
        if value.WhichOneof("value") == "flag" and condition in _ORDERED:
            raise InvalidField(f"{field}.{condition}", "orders flags", "compare a flag by equal or not_equal")


def check_namespace(request: SetNamespaceRequest, limits: Limits) -> None:
    """What a namespace is to be."""
    _check_optional_ids(request, ("request_id", "identity"), limits)
    check_duration("retention", request.retention)
    given, least = duration_ms(request.retention), limits.shortest_retention_ms
    if given < least:
        problem = f"is {given / 1000:g} s, at least {least / 1000:g} s are needed"
        raise InvalidField("retention", problem, "delete single workflows by DeleteWorkflow", value=given, limit=least)


def check_events(events: Sequence[object], limits: Limits) -> None:
    """How many events one call has."""
    if not events:
        raise InvalidField("events", "is empty", "give at least one")
    if len(events) > limits.events_per_call:
        problem = f"has {len(events)} events, at most {limits.events_per_call} are allowed"
        remedy, most = "send them in several calls", limits.events_per_call
        raise InvalidField("events", problem, remedy, limit=most, reason="MESSAGE_TOO_LARGE")


def page_size(field: str, asked: int, usual: int, most: int) -> int:
    """How long a page is: as asked, but never longer than allowed."""
    if asked < 0:
        raise InvalidField(field, f"is {asked}", f"give 0 for {usual}, or up to {most}", value=asked, limit=most)
    return min(asked, most) or usual


def wait_ms(field: str, asked: Duration, limits: Limits) -> int:
    """How long to wait for a result: as asked, but never longer than allowed."""
    check_duration(field, asked)
    return min(duration_ms(asked), limits.result_wait_ms)


def check_hello(hello: Hello, limits: Limits) -> None:
    """A worker's introduction. Raises InvalidField with reason INVALID_HELLO."""
    try:
        _check_hello(hello, limits)
    except InvalidField as error:
        raise InvalidField(
            f"hello.{error.field}",
            error.problem,
            error.remedy,
            value=error.value,
            limit=error.limit,
            reason="INVALID_HELLO",
        ) from error


def _check_hello(hello: Hello, limits: Limits) -> None:
    check_id("worker_id", hello.worker_id, limits)
    _check_optional_ids(hello, ("namespace", "session_id", "build_id", "sdk"), limits)
    if not hello.task_queues:
        raise InvalidField("task_queues", "is empty", "name the queues that the worker serves")
    for name, most in (
        ("task_queues", limits.task_queues_per_session),
        ("workflow_types", limits.types_per_session),
        ("activity_types", limits.types_per_session),
        ("tokens_in_hand", 2 * limits.slots_per_session),
    ):
        check_count(name, len(getattr(hello, name)), most)
    for name in ("task_queues", "workflow_types", "activity_types"):
        for value in getattr(hello, name):
            check_id(name, value, limits)
    _check_slots("workflow_slots", hello.workflow_slots, "workflow_types", len(hello.workflow_types), limits)
    _check_slots("activity_slots", hello.activity_slots, "activity_types", len(hello.activity_types), limits)


def _check_slots(field: str, slots: int, types_field: str, types: int, limits: Limits) -> None:
    least, most = min(types, 1), limits.slots_per_session
    if not least <= slots <= most:
        problem = f"is {slots}, with {types} {types_field} it must be {least} to {most}"
        raise InvalidField(field, problem, value=slots, limit=most)


def _check_optional_ids(
    request: StartWorkflowRequest
    | CancelWorkflowRequest
    | TerminateWorkflowRequest
    | ResolveCompensationRequest
    | SignalWorkflowRequest
    | UpdateWorkflowRequest
    | DeleteWorkflowRequest
    | SetNamespaceRequest
    | CompleteActivityRequest
    | Hello,
    names: tuple[str, ...],
    limits: Limits,
) -> None:
    for name in names:
        if value := getattr(request, name):
            check_id(name, value, limits)


def _check_enum(field: str, value: int, known: Sequence[int]) -> None:
    if value not in known:
        raise InvalidField(field, f"is {value}, which this service does not know", value=value)
