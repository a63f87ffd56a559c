"""Schedule: which starts are due, which of them are made, and what people change. Facts in, facts out.

A start is first taken into `state.waiting`, which is stored, then made, then taken out again. Its request id comes from
the schedule and the time, so a start that is tried again after a crash is the same one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from romancy.v1.schedule_pb2 import (
    OVERLAP_POLICY_ALLOW_ALL,
    OVERLAP_POLICY_BUFFER_ONE,
    OVERLAP_POLICY_CANCEL_OTHER,
    OVERLAP_POLICY_SKIP,
    OVERLAP_POLICY_TERMINATE_OTHER,
    OverlapPolicy,
    Schedule,
    ScheduledRun,
    ScheduledStart,
    ScheduleState,
)
from romancy.v1.workflow_pb2 import (
    WORKFLOW_STATUS_FAILED,
    WORKFLOW_STATUS_TIMED_OUT,
    WorkflowStatus,
)

from romancy_service.core.limits import Limits
from romancy_service.core.own import own_request_id
from romancy_service.core.run import OPEN_STATUSES
from romancy_service.core.task import NEVER_MS
from romancy_service.core.times import duration_ms, rfc3339, timestamp, timestamp_ms
from romancy_service.core.timetable import Timetable
from romancy_service.errors import InvalidField, ScheduleBusy, ScheduleChanged

CATCH_UP_MS: Final = 60_000
"""The catch-up window unless the schedule says otherwise."""
TAKEN: Final = 100
"""So many times are taken up, and starts made, between two writes of the state."""
MISSED: Final = 1_000
"""So many missed times of one outage are counted: to count on takes longer than anybody wants to know it."""
FOLLOWED: Final = 100
"""So many open runs of a schedule are known."""
RECENT: Final = 10
"""So many of the last starts are shown."""
NEXT_TIMES: Final = 10
"""So many of the next times are shown."""
TIME_BYTES: Final = 25
"""What a time adds to the prefix of a workflow id, the hyphen included."""
_LEAST_LOOK_MS, _LONGEST_LOOK_MS = 1_000, 60_000
"""How often it is looked whether a run has closed: every tenth of its age, but not more or less often than this."""

_REPLACING: Final = (OVERLAP_POLICY_CANCEL_OTHER, OVERLAP_POLICY_TERMINATE_OTHER)
_FAILED: Final = (WORKFLOW_STATUS_FAILED, WORKFLOW_STATUS_TIMED_OUT)


@dataclass(slots=True)
class ScheduleRecord:
    """A schedule with where it stands, as it is stored."""

    namespace: str
    schedule_id: str
    uid: str
    """Tells it from schedules of the same id that were deleted."""
    schedule: Schedule
    state: ScheduleState
    revision: int
    create_ms: int
    update_ms: int
    version: int = 0
    """Raised by each write: a write rests on the version that was read. 0: not stored."""
    due_ms: int = NEVER_MS
    """When it starts something at its times next."""
    look_ms: int = NEVER_MS
    """When the service must look at it again: for a time, or for the end of a run that something waits for."""

    @property
    def workflow_type(self) -> str:
        """What it starts."""
        return self.schedule.action.workflow.workflow_type


@dataclass(slots=True)
class Step:
    """What is to be done for a schedule now: first the open runs are ended, then the starts are made."""

    starts: list[ScheduledStart] = field(default_factory=list)
    cancel: bool = False
    terminate: bool = False

    def __bool__(self) -> bool:
        return bool(self.starts or self.cancel or self.terminate)


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What became of a run that a schedule started, or of the run that went on after it."""

    run_id: str
    status: WorkflowStatus.ValueType


# The service's own part -----------------------------------------------------------------------------------------------


def see_runs(record: ScheduleRecord, statuses: Mapping[str, RunStatus]) -> None:
    """Forget the runs that have closed; pause if one failed and that is what the schedule says. By run id started."""
    state = record.state
    running, failed = [], None
    for run in state.running:
        found = statuses.get(run.run_id)
        if found is not None and found.status in OPEN_STATUSES:
            run.run_id = found.run_id
            running.append(run)
        elif found is not None and found.status in _FAILED:
            failed = run
    state.ClearField("running")
    state.running.extend(running)
    if failed is not None and record.schedule.pause_on_failure and not state.paused:
        state.paused = True
        state.note = f"run {failed.run_id} of workflow {failed.workflow_id} failed"


def take_due(record: ScheduleRecord, now_ms: int) -> None:
    """Take the times that are due by now into what waits, or count them as missed; a limited number of them."""
    state, times = record.state, Timetable(record.schedule.spec)
    if state.paused or _is_used_up(record):
        return
    window_ms = catch_up_ms(record.schedule)
    _pass_over_missed(state, times, now_ms - window_ms - times.jitter_ms)
    for _ in range(TAKEN):
        time_ms = NEVER_MS if _is_used_up(record) else times.after(timestamp_ms(state.done_time))
        due_ms = times.due_ms(time_ms, record.uid)
        if due_ms > now_ms:
            return
        state.done_time.CopyFrom(timestamp(time_ms))
        if now_ms - due_ms > window_ms:
            state.missed_count += 1
        else:
            policy = record.schedule.overlap_policy or OVERLAP_POLICY_SKIP
            state.waiting.append(_start(record, time_ms, policy, requested=False))


def _pass_over_missed(state: ScheduleState, times: Timetable, before_ms: int) -> None:
    done_ms = timestamp_ms(state.done_time)
    if done_ms < before_ms - 1:
        state.missed_count += sum(1 for _ in islice(times.times(done_ms + 1, before_ms), MISSED))
        state.done_time.CopyFrom(timestamp(before_ms - 1))


def judge(record: ScheduleRecord) -> Step:
    """What becomes of the starts that wait, given the open runs. Those that are left out are counted and gone."""
    state, step = record.state, Step()
    kept: list[ScheduledStart] = []
    skipped: set[str] = set()
    busy = bool(state.running)
    ready = _ready(state)
    newest = next((start for start in reversed(ready) if start.overlap_policy in _REPLACING), None)
    for start in ready:
        policy = start.overlap_policy
        if policy == OVERLAP_POLICY_ALLOW_ALL:
            step.starts.append(start)
        elif policy in _REPLACING and start is not newest:
            skipped.add(start.request_id)
        elif not busy and not step.starts and not kept:
            step.starts.append(start)
        elif policy == OVERLAP_POLICY_TERMINATE_OTHER and not step.starts:
            step.terminate = True
            step.starts.append(start)
        elif policy in _REPLACING:
            # What starts in this step is open in the next one.
            step.cancel = policy == OVERLAP_POLICY_CANCEL_OTHER and busy
            kept.append(start)
        elif policy == OVERLAP_POLICY_BUFFER_ONE and not any(other.overlap_policy == policy for other in kept):
            kept.append(start)
        else:
            skipped.add(start.request_id)
    _take_out(state, skipped)
    state.skipped_count += len(skipped)
    del step.starts[TAKEN:]
    return step


def _ready(state: ScheduleState) -> list[ScheduledStart]:
    """What waits and is not held by a pause."""
    return [start for start in state.waiting if start.requested or not state.paused]


def waits(record: ScheduleRecord, start: ScheduledStart) -> bool:
    """Whether nobody has noted yet what became of a start."""
    return any(other.request_id == start.request_id for other in record.state.waiting)


def made(record: ScheduleRecord, start: ScheduledStart, workflow_id: str, run_id: str, now_ms: int) -> None:
    """A start is recorded as a run."""
    state = record.state
    run = ScheduledRun(
        scheduled_time=start.scheduled_time, start_time=timestamp(now_ms), workflow_id=workflow_id, run_id=run_id
    )
    _take_out(state, {start.request_id})
    state.running.append(run)
    del state.running[:-FOLLOWED]
    _show(state, run)
    if start.requested:
        state.requested_count += 1
    else:
        state.started_count += 1


def left_out(record: ScheduleRecord, start: ScheduledStart) -> None:
    """A run of the same workflow id is open, which is as if the start had been made."""
    _take_out(record.state, {start.request_id})
    record.state.skipped_count += 1


def failed(record: ScheduleRecord, start: ScheduledStart, workflow_id: str, error: str, now_ms: int) -> None:
    """A start cannot be made."""
    _take_out(record.state, {start.request_id})
    record.state.failed_count += 1
    time, now = start.scheduled_time, timestamp(now_ms)
    _show(record.state, ScheduledRun(scheduled_time=time, start_time=now, workflow_id=workflow_id, error=error))


def _take_out(state: ScheduleState, request_ids: set[str]) -> None:
    for position in reversed(range(len(state.waiting))):
        if state.waiting[position].request_id in request_ids:
            del state.waiting[position]


def _show(state: ScheduleState, run: ScheduledRun) -> None:
    state.recent.append(run)
    del state.recent[:-RECENT]


# When -----------------------------------------------------------------------------------------------------------------


def plan(record: ScheduleRecord, now_ms: int) -> None:
    """Say when something is to be done next, as it is stored with the rest."""
    record.due_ms = _due_ms(record)
    record.look_ms = look_ms(record, now_ms)


def _due_ms(record: ScheduleRecord) -> int:
    if record.state.paused or _is_used_up(record):
        return NEVER_MS
    times = Timetable(record.schedule.spec)
    return times.due_ms(times.after(timestamp_ms(record.state.done_time)), record.uid)


def look_ms(record: ScheduleRecord, now_ms: int) -> int:
    """When the service must look at the schedule again, as it stands at `now_ms`."""
    if not follows(record):
        return _due_ms(record)
    youngest_ms = max((timestamp_ms(run.start_time) for run in record.state.running), default=now_ms)
    return min(_due_ms(record), now_ms + max(_LEAST_LOOK_MS, min((now_ms - youngest_ms) // 10, _LONGEST_LOOK_MS)))


def follows(record: ScheduleRecord) -> bool:
    """Whether anything depends on when the open runs close."""
    state = record.state
    return bool(_ready(state) or (state.running and record.schedule.pause_on_failure and not state.paused))


def next_times(record: ScheduleRecord) -> list[int]:
    """The next times, for people."""
    if record.state.paused or _is_used_up(record):
        return []
    most = NEXT_TIMES
    if record.schedule.max_actions:
        most = min(most, record.schedule.max_actions - _taken(record.state))
    times = Timetable(record.schedule.spec).times(timestamp_ms(record.state.done_time) + 1, NEVER_MS)
    return list(islice(times, most))


def catch_up_ms(schedule: Schedule) -> int:
    """So late may a start be."""
    return duration_ms(schedule.catch_up_window) or CATCH_UP_MS


def _is_used_up(record: ScheduleRecord) -> bool:
    return 0 < record.schedule.max_actions <= _taken(record.state)


def _taken(state: ScheduleState) -> int:
    """Starts at the schedule's times that were made, or are to be."""
    return state.started_count + sum(not start.requested for start in state.waiting)


# What people change ---------------------------------------------------------------------------------------------------


def update(record: ScheduleRecord, schedule: Schedule, revision: int, now_ms: int) -> None:
    """Start something else, or at other times: those of a changed spec count from now. Raises ScheduleChanged."""
    if revision not in (0, record.revision):
        raise ScheduleChanged(record.schedule_id, revision, record.revision)
    take_due(record, now_ms)
    if _is_used_up(record) or schedule.spec != record.schedule.spec:
        _done_by(record.state, now_ms)
    record.schedule.CopyFrom(schedule)
    record.revision += 1
    record.update_ms = now_ms


def pause(record: ScheduleRecord, note: str) -> None:
    """Start nothing at the schedule's times."""
    record.state.paused, record.state.note = True, note


def resume(record: ScheduleRecord, note: str, now_ms: int) -> None:
    """End a pause. What waited for longer than the catch-up window is missed."""
    state = record.state
    if state.paused:
        _done_by(state, now_ms)
        oldest_ms = now_ms - catch_up_ms(record.schedule)
        missed = [s for s in state.waiting if not s.requested and timestamp_ms(s.scheduled_time) < oldest_ms]
        state.missed_count += len(missed)
        _take_out(state, {start.request_id for start in missed})
    state.paused, state.note = False, note


def trigger(record: ScheduleRecord, policy: OverlapPolicy.ValueType, now_ms: int, limits: Limits) -> str:
    """Ask for a start now. Returns the workflow id that it will have. Raises ScheduleBusy."""
    # The schedule's own times are whole seconds: no workflow id is another one's.
    known = {timestamp_ms(start.scheduled_time) for start in record.state.waiting}
    known |= {timestamp_ms(run.scheduled_time) for run in record.state.recent}
    while now_ms in known or now_ms % 1_000 == 0:
        now_ms += 1
    start = _start(record, now_ms, policy or OVERLAP_POLICY_ALLOW_ALL, requested=True)
    _ask(record, [start], limits)
    return workflow_id(record, start)


def backfill(
    record: ScheduleRecord, from_ms: int, before_ms: int, policy: OverlapPolicy.ValueType, limits: Limits
) -> int:
    """Ask for a start for each time of a range. Returns how many. Raises InvalidField, ScheduleBusy."""
    most = limits.waiting_starts
    times = list(islice(Timetable(record.schedule.spec).times(from_ms, before_ms), most + 1))
    if len(times) > most:
        problem = f"is after more than {most} times of the schedule"
        raise InvalidField("end_time", problem, "ask for a part of the range at a time", limit=most)
    policy = policy or OVERLAP_POLICY_ALLOW_ALL
    _ask(record, [_start(record, time_ms, policy, requested=True) for time_ms in times], limits)
    return len(times)


def _ask(record: ScheduleRecord, starts: Sequence[ScheduledStart], limits: Limits) -> None:
    if len(record.state.waiting) + len(starts) > limits.waiting_starts:
        raise ScheduleBusy(record.schedule_id, limits.waiting_starts)
    record.state.waiting.extend(starts)


def _done_by(state: ScheduleState, now_ms: int) -> None:
    state.done_time.CopyFrom(timestamp(max(timestamp_ms(state.done_time), now_ms)))


def _start(record: ScheduleRecord, time_ms: int, policy: OverlapPolicy.ValueType, *, requested: bool) -> ScheduledStart:
    # The version tells what is asked for by one request from what is asked for by another, for the same time.
    request_id = own_request_id("schedule", record.uid, time_ms, *([record.version] if requested else []))
    time = timestamp(time_ms)
    return ScheduledStart(scheduled_time=time, overlap_policy=policy, request_id=request_id, requested=requested)


def workflow_id(record: ScheduleRecord, start: ScheduledStart) -> str:
    """The workflow id of the run for a start."""
    prefix = record.schedule.action.workflow_id_prefix or record.schedule_id
    return f"{prefix}-{rfc3339(timestamp_ms(start.scheduled_time))}"
