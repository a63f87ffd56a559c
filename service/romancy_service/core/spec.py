"""Spec: whether what a run is started with, or told, is allowed. Alike for clients and for workers' commands."""

from __future__ import annotations

from collections.abc import Mapping

from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import Signal, WorkflowSpec

from romancy_service.core.attributes import check_attributes
from romancy_service.core.check import (
    check_durations,
    check_headers,
    check_id,
    check_payloads,
    check_priority,
    check_size,
)
from romancy_service.core.limits import Limits


def check_spec(field: str, spec: WorkflowSpec, limits: Limits) -> None:
    """What a run is started with."""
    check_id(f"{field}.workflow_type", spec.workflow_type, limits)
    if spec.task_queue:
        check_id(f"{field}.task_queue", spec.task_queue, limits)
    if spec.build_id:
        check_id(f"{field}.build_id", spec.build_id, limits)
    check_payloads(f"{field}.arguments", spec.arguments, limits)
    check_durations(field, spec, ("run_timeout", "execution_timeout", "start_delay"))
    check_priority(f"{field}.priority", spec.priority, limits)
    check_headers(f"{field}.headers", spec.headers, limits)
    _check_memo(f"{field}.memo", spec.memo, limits)
    check_attributes(f"{field}.attributes", spec.attributes, limits)


def _check_memo(field: str, memo: Mapping[str, Payload], limits: Limits) -> None:
    for key in memo:
        check_id(f"{field} key", key, limits)
    check_size(field, sum(len(key.encode()) + value.ByteSize() for key, value in memo.items()), limits.memo_bytes)


def check_signal(field: str, signal: Signal, limits: Limits) -> None:
    """A message for a run's code."""
    check_id(f"{field}.name", signal.name, limits)
    check_payloads(f"{field}.arguments", signal.arguments, limits)
    if signal.identity:
        check_id(f"{field}.identity", signal.identity, limits)
