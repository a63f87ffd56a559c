"""Schedules: workflows that the service starts at given times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from romancy.v1.schedule_pb2 import (
    OVERLAP_POLICY_ALLOW_ALL,
    OVERLAP_POLICY_BUFFER_ONE,
    OVERLAP_POLICY_CANCEL_OTHER,
    OVERLAP_POLICY_SKIP,
    OVERLAP_POLICY_TERMINATE_OTHER,
    OVERLAP_POLICY_UNSPECIFIED,
    CronSpec,
    IntervalSpec,
    OverlapPolicy,
    Schedule,
    ScheduleAction,
    ScheduleSpec,
)
from romancy.v1.schedule_service_pb2 import (
    BackfillScheduleRequest,
    CreateScheduleRequest,
    DeleteScheduleRequest,
    GetScheduleRequest,
    GetScheduleResponse,
    PauseScheduleRequest,
    ResumeScheduleRequest,
    TriggerScheduleRequest,
    UpdateScheduleRequest,
)

from romancy._checks import check_choice, check_type, refuse_unknown
from romancy._spec import SpecOptions, check_spec, to_spec
from romancy.handle import new_id
from romancy.options import Seconds, check_seconds, to_duration
from romancy.refusals import ScheduleChanged

if TYPE_CHECKING:
    from romancy.client import Client
    from romancy.handle import WorkflowHandle

_R_co = TypeVar("_R_co", covariant=True)

Overlap = Literal["skip", "buffer_one", "allow_all", "cancel_other", "terminate_other"]
"""What happens at a time while a run that the schedule started is open.

Nothing; start when it has closed; start all the same; cancel it and start when it has undone what it did; terminate it.
"""
OVERLAPS: Final[Mapping[str, OverlapPolicy.ValueType]] = {
    "skip": OVERLAP_POLICY_SKIP,
    "buffer_one": OVERLAP_POLICY_BUFFER_ONE,
    "allow_all": OVERLAP_POLICY_ALLOW_ALL,
    "cancel_other": OVERLAP_POLICY_CANCEL_OTHER,
    "terminate_other": OVERLAP_POLICY_TERMINATE_OTHER,
}
_TRIES: Final = 10
"""So often may somebody else change a schedule between our look and our change."""


@dataclass(frozen=True, slots=True)
class Cron:
    """Times of the calendar: `Cron("30 6 * * MON-FRI", "Europe/Berlin")`. docs/schedules.md says what is understood."""

    expression: str
    time_zone: str = "UTC"

    def __post_init__(self) -> None:
        check_type("expression", self.expression, str, 'a cron expression, as "30 6 * * *"')
        check_type("time_zone", self.time_zone, str, 'the name of a time zone, as "Europe/Berlin"')


@dataclass(frozen=True, slots=True)
class Every:
    """Times at equal distances, counted from 1970-01-01T00:00:00Z: `Every(timedelta(hours=6), offset=3600)`."""

    interval: Seconds
    offset: Seconds = 0

    def __post_init__(self) -> None:
        check_seconds("interval", self.interval)
        check_seconds("offset", self.offset)


Times = Cron | Every | Sequence[Cron | Every]
"""When: one of these, or several, whose times are taken together."""


class ScheduleOptions(SpecOptions, total=False):
    """How a schedule starts its workflow, and how that runs."""

    starts: datetime | None
    """No times before this."""
    ends: datetime | None
    """No times at or after this."""
    jitter: Seconds | None
    """Put each start off by a length between nothing and this."""
    overlap: Overlap
    """What happens while a run is open; "skip" unless said."""
    catch_up: Seconds | None
    """So late may a start be after an outage; 60 s unless said, at least 10 s."""
    pause_on_failure: bool
    """Pause when a run failed or timed out."""
    max_actions: int
    """So many starts in all; without it no limit."""
    workflow_id_prefix: str
    """Runs have the workflow id `PREFIX-TIME`; the schedule's id unless said."""


class CreateScheduleOptions(ScheduleOptions, total=False):
    """The same, and how the schedule begins."""

    paused: bool
    """Make it paused."""
    note: str
    """Why."""
    request_id: str
    """The same one never makes two; without one, each call has its own."""


def to_schedule(times: Times, workflow: Any, args: tuple[Any, ...], options: ScheduleOptions) -> Schedule:
    """What is started and when, in the contract's form. Raises TypeError, ValueError and ConversionError."""
    _check(options)
    spec = ScheduleSpec(start_time=to_timestamp("starts", options.get("starts")))
    spec.MergeFrom(ScheduleSpec(end_time=to_timestamp("ends", options.get("ends"))))
    for each in times if isinstance(times, Sequence) else (times,):
        check_type("times", each, (Cron, Every), "Cron(...), Every(...), or a list of these")
        if isinstance(each, Cron):
            spec.crons.append(CronSpec(expression=each.expression, time_zone=each.time_zone))
        else:
            spec.intervals.append(IntervalSpec(interval=to_duration(each.interval), offset=to_duration(each.offset)))
    if (jitter := options.get("jitter")) is not None:
        spec.jitter.CopyFrom(to_duration(jitter))
    catch_up = options.get("catch_up")
    return Schedule(
        spec=spec,
        action=ScheduleAction(
            workflow_id_prefix=options.get("workflow_id_prefix", ""), workflow=to_spec(workflow, args, options)
        ),
        overlap_policy=OVERLAPS[options.get("overlap", "skip")],
        catch_up_window=None if catch_up is None else to_duration(catch_up),
        pause_on_failure=options.get("pause_on_failure", False),
        max_actions=options.get("max_actions", 0),
    )


def _check(options: ScheduleOptions) -> None:
    refuse_unknown("create_schedule", options, CreateScheduleOptions.__annotations__)
    check_spec(options)
    check_choice("overlap", options.get("overlap", "skip"), OVERLAPS)
    for name in ("jitter", "catch_up"):
        check_seconds(name, options.get(name))
    for name in ("workflow_id_prefix", "note", "request_id"):
        check_type(name, options.get(name, ""), str, "a text")
    for name in ("pause_on_failure", "paused"):
        check_type(name, options.get(name, False), bool, "True or False")
    check_type("max_actions", options.get("max_actions", 0), int, "a whole number")


def to_timestamp(name: str, time: datetime | None) -> Timestamp | None:
    """A moment in the contract's form; one without a time zone would mean something else on each machine."""
    if time is None:
        return None
    check_type(name, time, datetime, "a datetime")
    if time.tzinfo is None:
        raise ValueError(f"{name} is {time!r}, but must have a time zone, as datetime(..., tzinfo=UTC)")
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp


class ScheduleHandle(Generic[_R_co]):
    """One schedule as its client sees it.

    What changes something takes a `request_id`: the same one acts once, and is answered alike. Without one, each call
    has its own.
    """

    def __init__(self, client: Client, schedule_id: str, workflow: Any) -> None:
        self._client = client
        self.schedule_id = schedule_id
        self._workflow = workflow

    def __repr__(self) -> str:
        return f"<schedule {self.schedule_id!r}>"

    @property
    def _named(self) -> dict[str, Any]:
        return {"namespace": self._client.namespace, "schedule_id": self.schedule_id}

    async def create(self, schedule: Schedule, *, paused: bool = False, note: str = "", request_id: str = "") -> None:
        """Make the schedule, said in the contract's form; see `Client.create_schedule`. Raises ScheduleExists."""
        request = CreateScheduleRequest(
            **self._named, schedule=schedule, paused=paused, note=note, request_id=request_id or new_id()
        )
        await self._client.calls.call(lambda calls: calls.schedules.CreateSchedule, request)

    async def describe(self) -> GetScheduleResponse:
        """The schedule and where it stands: its next times, what it started last, what is running and what waits."""
        return await self._client.calls.call(
            lambda calls: calls.schedules.GetSchedule, GetScheduleRequest(**self._named)
        )

    async def pause(self, note: str = "", *, request_id: str | None = None) -> None:
        """Start nothing at its times until it is resumed."""
        request = PauseScheduleRequest(**self._named, note=note, request_id=request_id or new_id())
        await self._client.calls.call(lambda calls: calls.schedules.PauseSchedule, request)

    async def resume(self, note: str = "", *, request_id: str | None = None) -> None:
        """End a pause. Times that passed meanwhile are not made up for."""
        request = ResumeScheduleRequest(**self._named, note=note, request_id=request_id or new_id())
        await self._client.calls.call(lambda calls: calls.schedules.ResumeSchedule, request)

    async def trigger(self, *, overlap: Overlap | None = None, request_id: str | None = None) -> WorkflowHandle[_R_co]:
        """Ask for one start now, also when a run is open unless `overlap` says otherwise, also when it is paused.

        The workflow is there when this returns, unless `overlap` has it wait or leaves it out.
        """
        request = TriggerScheduleRequest(
            **self._named, overlap_policy=_overlap(overlap), request_id=request_id or new_id()
        )
        answer = await self._client.calls.call(lambda calls: calls.schedules.TriggerSchedule, request)
        return self._client.get_handle(answer.workflow_id, workflow=self._workflow)

    async def backfill(
        self, start: datetime, end: datetime, *, overlap: Overlap | None = None, request_id: str | None = None
    ) -> int:
        """Ask for a start for each of its times from `start` on and before `end`; all at once unless `overlap` says
        otherwise. Returns how many."""
        request = BackfillScheduleRequest(
            **self._named,
            start_time=to_timestamp("start", start),
            end_time=to_timestamp("end", end),
            overlap_policy=_overlap(overlap),
            request_id=request_id or new_id(),
        )
        return (await self._client.calls.call(lambda calls: calls.schedules.BackfillSchedule, request)).starts

    async def update(self, change: Callable[[Schedule], None], *, request_id: str | None = None) -> None:
        """Have `change` change what is started and when, and store that. Called again if somebody else was quicker.

        Times of a changed `spec` count from now. Raises ScheduleChanged when others are quicker all the time.
        """
        request_id = request_id or new_id()  # what was refused is not known by it
        for left in reversed(range(_TRIES)):
            shown = await self.describe()
            change(shown.schedule)
            request = UpdateScheduleRequest(
                **self._named, schedule=shown.schedule, revision=shown.info.revision, request_id=request_id
            )
            try:
                await self._client.calls.call(lambda calls: calls.schedules.UpdateSchedule, request)
                return
            except ScheduleChanged:
                if not left:
                    raise

    async def delete(self, *, request_id: str | None = None) -> None:
        """Forget the schedule. Workflows that it started go on."""
        request = DeleteScheduleRequest(**self._named, request_id=request_id or new_id())
        await self._client.calls.call(lambda calls: calls.schedules.DeleteSchedule, request)


def _overlap(overlap: Overlap | None) -> OverlapPolicy.ValueType:
    if overlap is None:
        return OVERLAP_POLICY_UNSPECIFIED
    check_choice("overlap", overlap, OVERLAPS)
    return OVERLAPS[overlap]
