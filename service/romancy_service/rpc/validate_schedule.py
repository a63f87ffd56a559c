"""Validate: whether a request about a schedule is allowed. See validate.py."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from romancy.v1.schedule_pb2 import OverlapPolicy, Schedule
from romancy.v1.schedule_service_pb2 import (
    BackfillScheduleRequest,
    CreateScheduleRequest,
    DeleteScheduleRequest,
    GetScheduleRequest,
    PauseScheduleRequest,
    ResumeScheduleRequest,
    TriggerScheduleRequest,
    UpdateScheduleRequest,
)

from romancy_service.core.check import check_duration, check_id, check_text
from romancy_service.core.cron import END_S
from romancy_service.core.limits import Limits
from romancy_service.core.schedule import TIME_BYTES
from romancy_service.core.spec import check_spec
from romancy_service.core.times import duration_ms, timestamp_ms
from romancy_service.core.timetable import check_spec_times
from romancy_service.errors import InvalidField

Change = (
    CreateScheduleRequest
    | UpdateScheduleRequest
    | PauseScheduleRequest
    | ResumeScheduleRequest
    | TriggerScheduleRequest
    | BackfillScheduleRequest
    | DeleteScheduleRequest
)


def check_schedule_change(request: Change | GetScheduleRequest, now_ms: int, limits: Limits) -> None:
    """A request about one schedule."""
    check_id("schedule_id", request.schedule_id, limits)
    if isinstance(request, GetScheduleRequest):
        return
    if request.request_id:
        check_id("request_id", request.request_id, limits)
    match request:
        case CreateScheduleRequest():
            check_text("note", request.note, limits.reason_bytes)
            _check_schedule(request.schedule_id, request.schedule, now_ms, limits)
        case UpdateScheduleRequest():
            if request.revision < 0:
                raise InvalidField("revision", f"is {request.revision}", "give 0 for any", value=request.revision)
            _check_schedule(request.schedule_id, request.schedule, now_ms, limits)
        case PauseScheduleRequest() | ResumeScheduleRequest():
            check_text("note", request.note, limits.reason_bytes)
        case TriggerScheduleRequest():
            _check_policy("overlap_policy", request.overlap_policy)
        case BackfillScheduleRequest():
            _check_policy("overlap_policy", request.overlap_policy)
            _check_range(request, now_ms)


def _check_schedule(schedule_id: str, schedule: Schedule, now_ms: int, limits: Limits) -> None:
    _check_times("schedule.spec", schedule, now_ms, limits)
    _check_action("schedule.action", schedule_id, schedule, limits)
    _check_policy("schedule.overlap_policy", schedule.overlap_policy)
    check_duration("schedule.catch_up_window", schedule.catch_up_window)
    window_ms, least_ms = duration_ms(schedule.catch_up_window), limits.least_catch_up_ms
    if 0 < window_ms < least_ms:
        problem, remedy = f"is {window_ms} ms", f"give {least_ms} ms or more, or leave it out for 60 s"
        raise InvalidField("schedule.catch_up_window", problem, remedy, value=window_ms, limit=least_ms)
    if schedule.max_actions < 0:
        problem = f"is {schedule.max_actions}"
        raise InvalidField("schedule.max_actions", problem, "give zero for no limit", value=schedule.max_actions)


def _check_times(field: str, schedule: Schedule, now_ms: int, limits: Limits) -> None:
    spec = schedule.spec
    for number, interval in enumerate(spec.intervals):
        for name in ("interval", "offset"):
            check_duration(f"{field}.intervals[{number}].{name}", getattr(interval, name))
    for number, cron in enumerate(spec.crons):
        check_id(f"{field}.crons[{number}].expression", cron.expression, limits)
        if cron.time_zone:
            check_id(f"{field}.crons[{number}].time_zone", cron.time_zone, limits)
    check_duration(f"{field}.jitter", spec.jitter)
    jitter_ms = duration_ms(spec.jitter)
    if jitter_ms > limits.jitter_ms:
        problem = f"is {jitter_ms} ms, at most {limits.jitter_ms} are allowed"
        raise InvalidField(f"{field}.jitter", problem, value=jitter_ms, limit=limits.jitter_ms)
    # What is not set is 1970.
    _check_moment(f"{field}.start_time", spec.start_time)
    _check_moment(f"{field}.end_time", spec.end_time)
    if spec.HasField("end_time") and spec.HasField("start_time"):
        _check_order(f"{field}.end_time", spec.start_time, spec.end_time)
    check_spec_times(field, spec, now_ms, limits)


def _check_action(field: str, schedule_id: str, schedule: Schedule, limits: Limits) -> None:
    prefix = schedule.action.workflow_id_prefix
    if prefix:
        check_id(f"{field}.workflow_id_prefix", prefix, limits)
    size, most = len((prefix or schedule_id).encode()), limits.id_bytes - TIME_BYTES
    if size > most:
        problem = f"{'has' if prefix else 'is empty, and the schedule id has'} {size} bytes"
        remedy = f"give at most {most}: workflow ids have a time behind it"
        raise InvalidField(f"{field}.workflow_id_prefix", problem, remedy, value=size, limit=most)
    check_spec(f"{field}.workflow", schedule.action.workflow, limits)


def _check_policy(field: str, policy: int) -> None:
    if policy not in OverlapPolicy.values():
        raise InvalidField(field, f"is {policy}, which this service does not know", value=policy)


def _check_range(request: BackfillScheduleRequest, now_ms: int) -> None:
    _check_moment("start_time", request.start_time)
    _check_moment("end_time", request.end_time)
    _check_order("end_time", request.start_time, request.end_time)
    if timestamp_ms(request.end_time) > now_ms:
        raise InvalidField("end_time", "is in the future", "what is to come is started when it comes")


def _check_moment(field: str, time: Timestamp) -> None:
    if not (0 <= time.seconds < END_S and 0 <= time.nanos < 10**9):
        raise InvalidField(field, f"{time.seconds} s and {time.nanos} ns are no moment in the years 1970 to 8999")


def _check_order(field: str, start: Timestamp, end: Timestamp) -> None:
    if timestamp_ms(end) <= timestamp_ms(start):
        raise InvalidField(field, "is not after start_time", "give a later one")
