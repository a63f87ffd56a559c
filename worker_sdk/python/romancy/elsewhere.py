"""Elsewhere: what a client says of attempts that it ends itself, instead of their workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from romancy.v1.activity_service_pb2 import ActivityRef as Ref
from romancy.v1.activity_service_pb2 import CompleteActivityRequest
from romancy.v1.worker_service_pb2 import ActivityCancelledOutcome

from romancy._checks import check_type
from romancy._failure import to_failure
from romancy.converter import codec


@dataclass(frozen=True, slots=True)
class ActivityRef:
    """An activity, or a compensation, of a workflow: whichever attempt of it is the current one."""

    workflow_id: str
    activity_id: str
    run_id: str = ""
    """Empty: the newest run."""


def to_ref(namespace: str, activity: str | ActivityRef) -> Ref:
    """An attempt in the words of the contract; a text is its token."""
    if isinstance(activity, ActivityRef):
        ids = {"workflow_id": activity.workflow_id, "run_id": activity.run_id, "activity_id": activity.activity_id}
        return Ref(namespace=namespace, **ids)
    check_type("activity", activity, str, "the token of an attempt, or an ActivityRef")
    return Ref(namespace=namespace, token=activity)


def completed(activity: Ref, result: Any) -> CompleteActivityRequest:
    """It returned."""
    return CompleteActivityRequest(activity=activity, result=codec(Any).encode(result, "the result of the activity"))


def failed(activity: Ref, error: BaseException) -> CompleteActivityRequest:
    """It raised."""
    return CompleteActivityRequest(activity=activity, failure=to_failure(error))


def cancelled(activity: Ref, *, nothing_done: bool) -> CompleteActivityRequest:
    """It was asked to stop, and did."""
    return CompleteActivityRequest(activity=activity, cancelled=ActivityCancelledOutcome(nothing_done=nothing_done))
