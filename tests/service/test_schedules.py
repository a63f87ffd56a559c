"""Schedules: each start once, by the service's clock, whoever looks; and what people do with schedules."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from romancy.v1.command_pb2 import Command
from romancy.v1.payload_pb2 import Payload
from romancy.v1.schedule_pb2 import (
    OVERLAP_POLICY_ALLOW_ALL,
    OVERLAP_POLICY_BUFFER_ONE,
    OVERLAP_POLICY_CANCEL_OTHER,
    OVERLAP_POLICY_SKIP,
    OVERLAP_POLICY_TERMINATE_OTHER,
    CronSpec,
    IntervalSpec,
    Schedule,
    ScheduleAction,
    ScheduleSpec,
)
from romancy.v1.schedule_service_pb2 import (
    BackfillScheduleRequest,
    BackfillScheduleResponse,
    CreateScheduleRequest,
    DeleteScheduleRequest,
    GetScheduleRequest,
    GetScheduleResponse,
    ListSchedulesRequest,
    PauseScheduleRequest,
    ResumeScheduleRequest,
    TriggerScheduleRequest,
    UpdateScheduleRequest,
)
from romancy.v1.schedule_service_pb2_grpc import ScheduleServiceStub
from romancy.v1.worker_service_pb2 import ACKNOWLEDGEMENT_RESULT_ACCEPTED
from romancy.v1.workflow_pb2 import (
    WORKFLOW_STATUS_COMPLETED,
    WORKFLOW_STATUS_RUNNING,
    WORKFLOW_STATUS_TERMINATED,
    WorkflowInfo,
    WorkflowSpec,
)
from romancy.v1.workflow_service_pb2 import ListWorkflowsRequest, StartWorkflowRequest, WorkflowFilter

from romancy_service.core.times import rfc3339, timestamp, timestamp_ms
from romancy_service.starter import Starter
from tests.core.life import complete, fail
from tests.service.cluster import Tenant, refused, until

MINUTE_MS = 60_000


class Desk:
    """One test's schedules. What it makes is deleted at its end: others move the same clock."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.stub = tenant.schedules
        self.made: set[str] = set()

    def named(self, schedule_id: str) -> dict[str, Any]:
        """The fields that name a schedule."""
        return {"namespace": self.tenant.namespace, "schedule_id": schedule_id}

    async def create(
        self,
        schedule_id: str = "report",
        *,
        every_s: int = 60,
        request_id: str = "",
        paused: bool = False,
        **fields: Any,
    ) -> int:
        """Make a schedule of `order`, and have a minute begin just now."""
        request = CreateScheduleRequest(
            **self.named(schedule_id), schedule=a_schedule(every_s, **fields), request_id=request_id, paused=paused
        )
        self.made.add(schedule_id)
        return (await self.stub.CreateSchedule(request)).revision

    async def get(self, schedule_id: str = "report") -> GetScheduleResponse:
        """The schedule as people see it."""
        return await self.stub.GetSchedule(GetScheduleRequest(**self.named(schedule_id)))

    async def backfill(self, minutes: int, schedule_id: str = "report", **fields: Any) -> BackfillScheduleResponse:
        """Ask for the starts of the last full minutes."""
        end_ms = self.now_ms() // MINUTE_MS * MINUTE_MS
        request = BackfillScheduleRequest(
            **self.named(schedule_id),
            start_time=timestamp(end_ms - minutes * MINUTE_MS),
            end_time=timestamp(end_ms),
            **fields,
        )
        return await self.stub.BackfillSchedule(request)

    def now_ms(self) -> int:
        """By the service's clock."""
        return self.tenant.cluster.replicas[0].node.clock.earliest_ms()

    async def next_time(self, schedule_id: str = "report") -> int:
        """Go to just after the schedule's next time, and wait until it has been dealt with. Returns the time."""
        time_ms = timestamp_ms((await self.get(schedule_id)).next_times[0])
        await self.move(time_ms - self.now_ms() + 20)

        async def done() -> bool:
            return timestamp_ms((await self.get(schedule_id)).state.done_time) >= time_ms

        await until(done, "the schedule was looked at")
        return time_ms

    async def move(self, by_ms: int) -> None:
        """Let time pass, for all replicas alike, which then look at the same time."""
        await self.tenant.cluster.pass_ms(max(by_ms, 0))

    async def runs(self, prefix: str = "report") -> list[WorkflowInfo]:
        """The runs that were started, oldest first."""
        where = WorkflowFilter(workflow_id_prefix=f"{prefix}-")
        request = ListWorkflowsRequest(namespace=self.tenant.namespace, filter=where, page_size=1_000)
        return list((await self.tenant.workflows.ListWorkflows(request)).workflows)[::-1]

    async def some_runs(self, number: int, prefix: str = "report") -> list[WorkflowInfo]:
        """Wait until so many were started."""

        async def there() -> bool:
            return len(await self.runs(prefix)) >= number

        await until(there, f"{number} runs")
        found = await self.runs(prefix)
        assert len(found) == number
        return found

    async def end(self) -> None:
        """Nothing of it starts any more."""
        for schedule_id in self.made:
            try:
                await self.stub.DeleteSchedule(DeleteScheduleRequest(**self.named(schedule_id)))
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.NOT_FOUND


def a_schedule(every_s: int = 60, **fields: Any) -> Schedule:
    """What the tests have started: an `order` on `queue`."""
    workflow = WorkflowSpec(workflow_type="order", task_queue="queue", arguments=[Payload(json='"x"')])
    spec = fields.pop("spec", None) or ScheduleSpec(intervals=[IntervalSpec(interval=Duration(seconds=every_s))])
    action = fields.pop("action", None) or ScheduleAction(workflow=workflow)
    return Schedule(spec=spec, action=action, **fields)


@pytest_asyncio.fixture(loop_scope="session")
async def desk(tenant: Tenant) -> AsyncIterator[Desk]:
    """One test's schedules."""
    desk = Desk(tenant)
    yield desk
    await desk.end()


async def run_code(desk: Desk, *commands: Command) -> None:
    """A worker comes, answers the newest workflow task, and leaves: none is connected while time is moved."""
    worker = await desk.tenant.worker()
    while (await worker.command(await worker.workflow_task(), *commands)).result != ACKNOWLEDGEMENT_RESULT_ACCEPTED:
        pass
    await worker.goodbye()


def names(runs: Sequence[WorkflowInfo]) -> list[str]:
    return [run.workflow_id for run in runs]


# Starting -------------------------------------------------------------------------------------------------------------


async def test_each_time_is_started_once_in_time_and_never_early(desk: Desk) -> None:
    await desk.create(overlap_policy=OVERLAP_POLICY_ALLOW_ALL)
    times = [await desk.next_time() for _ in range(5)]
    runs = await desk.some_runs(5)
    assert names(runs) == [f"report-{rfc3339(time_ms)}" for time_ms in times]
    for run, time_ms in zip(runs, times, strict=True):
        assert 0 <= timestamp_ms(run.start_time) - time_ms < MINUTE_MS
        assert run.attributes["romancy.schedule_id"].text == "report"
        assert timestamp_ms(run.attributes["romancy.scheduled_time"].time) == time_ms
    shown = await desk.get()
    assert [run.run_id for run in shown.state.recent] == [run.run_id for run in runs]
    assert (shown.state.started_count, shown.state.missed_count, shown.state.skipped_count) == (5, 0, 0)


async def test_without_anybody_moving_the_clock_it_starts_within_a_moment_of_its_time(desk: Desk) -> None:
    await desk.create(every_s=1, overlap_policy=OVERLAP_POLICY_ALLOW_ALL, max_actions=2)
    for run in await desk.some_runs(2):
        late_ms = timestamp_ms(run.start_time) - timestamp_ms(run.attributes["romancy.scheduled_time"].time)
        assert late_ms >= 0
    assert not (await desk.get()).next_times, "as many as were wanted"


async def test_many_schedules_of_one_moment_all_start_once(desk: Desk) -> None:
    ids = [f"many-{n:03}" for n in range(60)]
    await asyncio.gather(*(desk.create(name) for name in ids))
    time_ms = await desk.next_time(ids[0])
    runs = await desk.some_runs(len(ids), "many")
    assert sorted(names(runs)) == [f"{name}-{rfc3339(time_ms)}" for name in ids]


async def test_after_an_outage_what_is_within_the_window_is_made_up_for_and_the_rest_is_missed(desk: Desk) -> None:
    await desk.create(overlap_policy=OVERLAP_POLICY_ALLOW_ALL, catch_up_window=Duration(seconds=150))
    first_ms = timestamp_ms((await desk.get()).next_times[0])
    await desk.move(first_ms + 9 * MINUTE_MS + 1_000 - desk.now_ms())
    runs = await desk.some_runs(3)
    assert sorted(names(runs)) == [f"report-{rfc3339(first_ms + minute * MINUTE_MS)}" for minute in (7, 8, 9)]
    assert (await desk.get()).state.missed_count == 7


async def test_a_run_of_the_same_workflow_id_that_is_open_is_left_alone(desk: Desk) -> None:
    await desk.create()
    time_ms = timestamp_ms((await desk.get()).next_times[0])
    own = await desk.tenant.start(f"report-{rfc3339(time_ms)}")
    await desk.next_time()
    assert [run.run_id for run in await desk.runs()] == [own.run_id]
    assert (await desk.get()).state.skipped_count == 1


# Overlaps -------------------------------------------------------------------------------------------------------------


async def test_skipping_starts_again_once_the_run_has_closed(desk: Desk) -> None:
    await desk.create(overlap_policy=OVERLAP_POLICY_SKIP)
    first = await desk.next_time()
    await desk.next_time()
    assert (await desk.get()).state.skipped_count == 1
    await run_code(desk, complete())
    third = await desk.next_time()
    assert names(await desk.some_runs(2)) == [f"report-{rfc3339(time_ms)}" for time_ms in (first, third)]


async def test_what_is_buffered_starts_when_the_run_closes(desk: Desk) -> None:
    await desk.create(overlap_policy=OVERLAP_POLICY_BUFFER_ONE)
    times = [await desk.next_time() for _ in range(3)]
    shown = await desk.get()
    assert [timestamp_ms(start.scheduled_time) for start in shown.state.waiting] == [times[1]]
    assert (shown.state.skipped_count, len(shown.state.running), len(await desk.runs())) == (1, 1, 1)
    await run_code(desk, complete())
    assert names(await desk.some_runs(2)) == [f"report-{rfc3339(time_ms)}" for time_ms in times[:2]]


async def test_the_run_before_is_cancelled_and_the_next_one_waits_for_its_end(desk: Desk) -> None:
    await desk.create(overlap_policy=OVERLAP_POLICY_CANCEL_OTHER)
    await desk.next_time()
    (first,) = await desk.some_runs(1)
    await run_code(desk)
    await desk.next_time()

    async def asked() -> bool:
        return (await desk.tenant.get(first.run_id)).HasField("cancellation")

    await until(asked, "it is asked to stop")
    assert len(await desk.runs()) == 1
    await run_code(desk, fail("cancelled"))
    closed, _ = await desk.some_runs(2)
    assert closed.status != WORKFLOW_STATUS_RUNNING
    assert (await desk.tenant.kinds(first.run_id)).count("workflow_cancel_requested") == 1


async def test_waiting_for_the_end_of_a_cancelled_run_writes_no_more_than_once_for_a_look(desk: Desk) -> None:
    await desk.create(overlap_policy=OVERLAP_POLICY_CANCEL_OTHER)
    await desk.next_time()
    (first,) = await desk.some_runs(1)
    await desk.next_time()

    async def asked() -> bool:
        return (await desk.tenant.get(first.run_id)).HasField("cancellation")

    await until(asked, "it is asked to stop")
    looks, key = 10, (desk.tenant.namespace, "report")
    before, replica = await desk.tenant.cluster.store.get_schedule(*key), desk.tenant.cluster.replicas[0]
    for _ in range(looks):
        replica.schedules.look_at(key)
        await replica.schedules.look(whole=False)
    after = await desk.tenant.cluster.store.get_schedule(*key)
    assert before is not None
    assert after is not None
    assert after.version - before.version <= 2 * looks, "one by us, one by the service itself"
    assert [start.scheduled_time for start in after.state.waiting] == [s.scheduled_time for s in before.state.waiting]


async def test_the_run_before_is_terminated_and_the_next_one_starts_at_once(desk: Desk) -> None:
    await desk.create(overlap_policy=OVERLAP_POLICY_TERMINATE_OTHER)
    for _ in range(3):
        await desk.next_time()
    assert [run.status for run in await desk.some_runs(3)] == [
        WORKFLOW_STATUS_TERMINATED,
        WORKFLOW_STATUS_TERMINATED,
        WORKFLOW_STATUS_RUNNING,
    ]


# Pauses ---------------------------------------------------------------------------------------------------------------


async def test_a_paused_schedule_starts_nothing_until_it_is_resumed(desk: Desk) -> None:
    await desk.create(paused=True)
    await desk.move(3 * MINUTE_MS)
    shown = await desk.get()
    assert (shown.info.paused, shown.info.HasField("next_time"), len(shown.next_times)) == (True, False, 0)
    await desk.stub.ResumeSchedule(ResumeScheduleRequest(**desk.named("report"), note="go"))
    time_ms = await desk.next_time()
    assert names(await desk.some_runs(1)) == [f"report-{rfc3339(time_ms)}"]
    await desk.stub.PauseSchedule(PauseScheduleRequest(**desk.named("report"), note="stop"))
    await desk.move(3 * MINUTE_MS)
    shown = await desk.get()
    assert (len(await desk.runs()), shown.info.note, shown.state.missed_count) == (1, "stop", 0)


async def test_a_failed_run_pauses_the_schedule_and_says_so(desk: Desk) -> None:
    await desk.create(pause_on_failure=True)
    await desk.next_time()
    await run_code(desk, fail("broken"))

    async def paused() -> bool:
        listed = await desk.stub.ListSchedules(ListSchedulesRequest(namespace=desk.tenant.namespace))
        return listed.schedules[0].paused

    await until(paused, "it pauses")
    assert "of workflow report-" in (await desk.get()).info.note
    await desk.move(2 * MINUTE_MS)
    assert len(await desk.runs()) == 1


# What people ask ------------------------------------------------------------------------------------------------------


async def test_a_trigger_that_is_repeated_is_one_start(desk: Desk) -> None:
    await desk.create(paused=True)
    request = TriggerScheduleRequest(**desk.named("report"), request_id="t1")
    answers = await asyncio.gather(*(desk.stub.TriggerSchedule(request) for _ in range(4)))
    assert len({answer.workflow_id for answer in answers}) == 1
    assert names(await desk.some_runs(1)) == [answers[0].workflow_id]
    assert (await desk.get()).state.requested_count == 1


async def test_triggers_that_come_together_are_a_start_each(desk: Desk) -> None:
    await desk.create(paused=True)
    request = TriggerScheduleRequest(**desk.named("report"))
    answers = await asyncio.gather(*(desk.stub.TriggerSchedule(request) for _ in range(8)))
    assert sorted(names(await desk.some_runs(8))) == sorted(answer.workflow_id for answer in answers)


async def test_a_backfill_starts_what_lies_in_its_range(desk: Desk) -> None:
    await desk.create()
    answer = await desk.backfill(150, request_id="b1")
    assert answer.starts == (await desk.backfill(150, request_id="b1")).starts == 150
    runs = await desk.some_runs(150)
    assert len(set(names(runs))) == 150
    state = (await desk.get()).state
    assert (state.requested_count, len(state.waiting)) == (150, 0)


async def test_a_backfill_one_after_the_other_waits_for_each(desk: Desk) -> None:
    await desk.create()
    await desk.backfill(3, overlap_policy=OVERLAP_POLICY_BUFFER_ONE)
    await desk.some_runs(1)
    await run_code(desk, complete())
    assert [run.status for run in await desk.some_runs(2)] == [WORKFLOW_STATUS_COMPLETED, WORKFLOW_STATUS_RUNNING]


async def test_a_changed_schedule_starts_what_it_says_now(desk: Desk) -> None:
    revision = await desk.create()
    workflow = WorkflowSpec(workflow_type="invoice", task_queue="queue")
    new = a_schedule(3_600, action=ScheduleAction(workflow_id_prefix="bill", workflow=workflow))
    request = UpdateScheduleRequest(**desk.named("report"), schedule=new, revision=revision)
    assert (await desk.stub.UpdateSchedule(request)).revision == 2
    refusal = await refused(desk.stub.UpdateSchedule(request))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SCHEDULE_CHANGED")
    assert refusal.metadata["revision"] == "2"
    time_ms = await desk.next_time()
    assert time_ms % 3_600_000 == 0
    (run,) = await desk.some_runs(1, "bill")
    assert (run.workflow_id, run.workflow_type) == (f"bill-{rfc3339(time_ms)}", "invoice")
    assert not await desk.runs()
    assert (await desk.get()).info.workflow_type == "invoice"


async def test_of_two_changes_that_rest_on_one_revision_one_is_made(desk: Desk) -> None:
    revision = await desk.create()
    stubs = [ScheduleServiceStub(desk.tenant.open_channel(r.port)) for r in desk.tenant.cluster.replicas] * 3
    requests = [
        UpdateScheduleRequest(**desk.named("report"), schedule=a_schedule(60 + n), revision=revision)
        for n in range(len(stubs))
    ]
    calls = (stub.UpdateSchedule(request) for stub, request in zip(stubs, requests, strict=True))
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(not isinstance(answer, Exception) for answer in answers) == 1


async def test_a_schedule_that_was_deleted_starts_nothing_and_its_name_is_free(desk: Desk) -> None:
    await desk.create()
    delete = DeleteScheduleRequest(**desk.named("report"), request_id="d1")
    await desk.stub.DeleteSchedule(delete)
    await desk.stub.DeleteSchedule(delete)
    refusal = await refused(desk.get())
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "SCHEDULE_NOT_FOUND")
    await desk.move(2 * MINUTE_MS)
    assert not await desk.runs()
    await desk.create()
    await desk.next_time()
    assert len(await desk.some_runs(1)) == 1


async def test_making_one_twice_is_refused_unless_it_is_the_same_request(desk: Desk) -> None:
    assert await desk.create(request_id="c1") == await desk.create(request_id="c1") == 1
    refusal = await refused(desk.create(request_id="c2"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "SCHEDULE_EXISTS")


@pytest.mark.parametrize("change", ["update", "delete", "create"])
async def test_the_same_request_many_times_at_once_is_answered_alike(desk: Desk, change: str) -> None:
    if change != "create":
        await desk.create()
    stubs = [ScheduleServiceStub(desk.tenant.open_channel(r.port)) for r in desk.tenant.cluster.replicas] * 8
    named = desk.named("report") | {"request_id": "once"}
    calls: dict[str, Callable[[Any], Any]] = {
        "create": lambda stub: stub.CreateSchedule(CreateScheduleRequest(**named, schedule=a_schedule(60))),
        "update": lambda stub: stub.UpdateSchedule(UpdateScheduleRequest(**named, schedule=a_schedule(61), revision=1)),
        "delete": lambda stub: stub.DeleteSchedule(DeleteScheduleRequest(**named)),
    }
    desk.made.add("report")
    answers = await asyncio.gather(*(calls[change](stub) for stub in stubs))
    assert all(answer == answers[0] for answer in answers)


async def test_a_request_id_is_for_one_rpc_about_one_schedule(desk: Desk) -> None:
    await desk.create(request_id="r1")
    await desk.create("bill")
    named = desk.named("report")
    await desk.stub.PauseSchedule(PauseScheduleRequest(**named, request_id="p1"))
    await desk.stub.TriggerSchedule(TriggerScheduleRequest(**named, request_id="t1"))
    for call in (
        desk.create("other", request_id="r1"),
        desk.stub.PauseSchedule(PauseScheduleRequest(**desk.named("bill"), request_id="p1")),
        desk.stub.TriggerSchedule(TriggerScheduleRequest(**desk.named("bill"), request_id="t1")),
        desk.stub.PauseSchedule(PauseScheduleRequest(**named, request_id="r1")),
        desk.stub.DeleteSchedule(DeleteScheduleRequest(**named, request_id="r1")),
        desk.tenant.start(request_id="r1"),
    ):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REQUEST_ID_REUSED")
    await desk.tenant.start(request_id="r2")
    assert (await refused(desk.create("other", request_id="r2"))).reason == "REQUEST_ID_REUSED"


@pytest.mark.parametrize("method", ["Get", "Update", "Pause", "Resume", "Trigger", "Backfill", "Delete"])
async def test_what_is_not_there_is_not_found(desk: Desk, method: str) -> None:
    request_type = getattr(__import__("romancy.v1.schedule_service_pb2", fromlist=["*"]), f"{method}ScheduleRequest")
    fields: dict[str, Any] = {"Update": {"schedule": a_schedule()}, "Backfill": {"end_time": timestamp(1_000)}}
    request = request_type(**desk.named("none"), **fields.get(method, {}))
    refusal = await refused(getattr(desk.stub, f"{method}Schedule")(request))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "SCHEDULE_NOT_FOUND")


async def test_schedules_are_listed_by_id_in_pages(desk: Desk) -> None:
    await asyncio.gather(*(desk.create(f"s{n}", paused=n == 3) for n in range(5)))
    listed: list[Any] = []
    token = ""
    while not listed or token:
        request = ListSchedulesRequest(namespace=desk.tenant.namespace, page_size=2, page_token=token)
        page = await desk.stub.ListSchedules(request)
        assert len(page.schedules) <= 2
        listed, token = [*listed, *page.schedules], page.next_page_token
    assert [each.schedule_id for each in listed] == [f"s{n}" for n in range(5)]
    assert [each.HasField("next_time") for each in listed] == [True, True, True, False, True]
    page = await desk.stub.ListSchedules(ListSchedulesRequest(namespace=desk.tenant.namespace, page_size=2))
    other = ListSchedulesRequest(namespace="another", page_token=page.next_page_token)
    assert (await refused(desk.stub.ListSchedules(other))).reason == "INVALID_PAGE_TOKEN"


# Bad input ------------------------------------------------------------------------------------------------------------


def of_times(*crons: str, zone: str = "", **fields: Any) -> dict[str, Any]:
    spec = ScheduleSpec(crons=[CronSpec(expression=cron, time_zone=zone) for cron in crons], **fields)
    return {"schedule": a_schedule(spec=spec)}


def of_action(prefix: str = "", **fields: Any) -> dict[str, Any]:
    workflow = WorkflowSpec(**{"workflow_type": "order", "task_queue": "queue", **fields})
    return {"schedule": a_schedule(action=ScheduleAction(workflow_id_prefix=prefix, workflow=workflow))}


BAD_SCHEDULES: list[tuple[str, dict[str, Any], str]] = [
    ("no id", {"schedule_id": ""}, "schedule_id"),
    ("long id", {"schedule_id": "x" * 256}, "schedule_id"),
    ("NUL in the id", {"schedule_id": "a\x00"}, "schedule_id"),
    ("NUL in the namespace", {"namespace": "\x00"}, "namespace"),
    ("long request id", {"request_id": "x" * 256}, "request_id"),
    ("long note", {"note": "x" * 4_097}, "note"),
    ("nothing at all", {"schedule": Schedule()}, "schedule.spec.crons"),
    ("no times", of_times(), "schedule.spec.crons"),
    ("a day that never comes", of_times("0 0 30 2 *"), "schedule.spec.crons[0].expression"),
    ("a day that never comes either", of_times("0 0 1 1 *", "0 0 */20 * 1L"), "schedule.spec.crons[1].expression"),
    ("no cron", of_times("every day"), "schedule.spec.crons[0].expression"),
    ("empty cron", of_times(""), "schedule.spec.crons[0].expression"),
    ("long cron", of_times("0 0 1 1 " + "1," * 200 + "1"), "schedule.spec.crons[0].expression"),
    ("control character in the cron", of_times("0 0 1 1\n*"), "schedule.spec.crons[0].expression"),
    ("many crons", of_times(*["0 0 1 1 *"] * 17), "schedule.spec.crons"),
    ("no zone", of_times("0 0 1 1 *", zone="Mars/Olympus"), "schedule.spec.crons[0].time_zone"),
    ("a path as zone", of_times("0 0 1 1 *", zone="../../../etc/passwd"), "schedule.spec.crons[0].time_zone"),
    ("NUL in the zone", of_times("0 0 1 1 *", zone="Europe/\x00"), "schedule.spec.crons[0].time_zone"),
    ("negative jitter", of_times("* * * * *", jitter=Duration(seconds=-1)), "schedule.spec.jitter"),
    ("absurd jitter", of_times("* * * * *", jitter=Duration(seconds=86_401)), "schedule.spec.jitter"),
    ("start in 1969", of_times("* * * * *", start_time=Timestamp(seconds=-1)), "schedule.spec.start_time"),
    ("end in year 9000", of_times("* * * * *", end_time=Timestamp(seconds=2**40)), "schedule.spec.end_time"),
    ("broken start", of_times("* * * * *", start_time=Timestamp(nanos=-1)), "schedule.spec.start_time"),
    ("end before start", of_times("* * * * *", start_time=timestamp(9_000), end_time=timestamp(9_000)), "schedule.spec.end_time"),
    ("no interval", {"schedule": a_schedule(0)}, "schedule.spec.intervals[0].interval"),
    ("negative interval", {"schedule": a_schedule(-60)}, "schedule.spec.intervals[0].interval"),
    ("absurd interval", {"schedule": a_schedule(2**40)}, "schedule.spec.intervals[0].interval"),
    ("no type", of_action(workflow_type=""), "schedule.action.workflow.workflow_type"),
    ("NUL in the queue", of_action(task_queue="\x00"), "schedule.action.workflow.task_queue"),
    ("large payload", of_action(arguments=[Payload(json="x" * (2 << 20))]), "schedule.action.workflow.arguments[0]"),
    ("long prefix", of_action("x" * 231), "schedule.action.workflow_id_prefix"),
    ("id too long for a prefix", {"schedule_id": "x" * 231}, "schedule.action.workflow_id_prefix"),
    ("newline in the prefix", of_action("a\nb"), "schedule.action.workflow_id_prefix"),
    ("unknown policy", {"schedule": a_schedule(overlap_policy=99)}, "schedule.overlap_policy"),
    ("short window", {"schedule": a_schedule(catch_up_window=Duration(seconds=9))}, "schedule.catch_up_window"),
    ("negative window", {"schedule": a_schedule(catch_up_window=Duration(seconds=-9))}, "schedule.catch_up_window"),
    ("negative limit", {"schedule": a_schedule(max_actions=-1)}, "schedule.max_actions"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "field"), [case[1:] for case in BAD_SCHEDULES], ids=[case[0] for case in BAD_SCHEDULES]
)
async def test_a_bad_schedule_is_refused_and_names_the_field(desk: Desk, fields: dict[str, Any], field: str) -> None:
    request = CreateScheduleRequest(**{**desk.named("bad"), "schedule": a_schedule(), **fields})
    refusal = await refused(desk.stub.CreateSchedule(request))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.reason in ("INVALID_FIELD", "PAYLOAD_TOO_LARGE")
    assert refusal.field == field
    assert not (await desk.stub.ListSchedules(ListSchedulesRequest(namespace=desk.tenant.namespace))).schedules


@pytest.mark.parametrize(
    ("method", "request_type", "fields", "field"),
    [
        ("Update", UpdateScheduleRequest, {"schedule": a_schedule(), "revision": -1}, "revision"),
        ("Update", UpdateScheduleRequest, {}, "schedule.spec.crons"),
        ("Pause", PauseScheduleRequest, {"note": "x" * 4_097}, "note"),
        ("Resume", ResumeScheduleRequest, {"request_id": "\x00"}, "request_id"),
        ("Trigger", TriggerScheduleRequest, {"overlap_policy": 99}, "overlap_policy"),
        ("Backfill", BackfillScheduleRequest, {}, "end_time"),
        ("Backfill", BackfillScheduleRequest, {"end_time": Timestamp(seconds=2**32)}, "end_time"),
        ("Backfill", BackfillScheduleRequest, {"end_time": timestamp(1_001 * MINUTE_MS)}, "end_time"),
        ("Backfill", BackfillScheduleRequest, {"start_time": Timestamp(seconds=-1)}, "start_time"),
        ("Backfill", BackfillScheduleRequest, {"end_time": timestamp(1), "overlap_policy": -1}, "overlap_policy"),
        ("Get", GetScheduleRequest, {"schedule_id": "\x00"}, "schedule_id"),
        ("Delete", DeleteScheduleRequest, {"schedule_id": ""}, "schedule_id"),
    ],
)
async def test_a_bad_request_is_refused_and_names_the_field(
    desk: Desk, method: str, request_type: Any, fields: dict[str, Any], field: str
) -> None:
    await desk.create()
    before = await desk.get()
    refusal = await refused(getattr(desk.stub, f"{method}Schedule")(request_type(**{**desk.named("report"), **fields})))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.field == field
    assert (await desk.get()).schedule == before.schedule


@pytest.mark.parametrize("page", [{"page_size": -1}, {"page_token": "x"}, {"page_token": "WyIiXQ=="}])
async def test_a_bad_page_is_refused(desk: Desk, page: dict[str, Any]) -> None:
    refusal = await refused(desk.stub.ListSchedules(ListSchedulesRequest(namespace=desk.tenant.namespace, **page)))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.field in page


async def test_the_largest_names_that_are_allowed_are_taken(desk: Desk) -> None:
    name = "\u00e4" * 115
    await desk.create(name)
    await desk.next_time(name)
    (run,) = await desk.some_runs(1, name)
    assert len(run.workflow_id.encode()) <= 255
    start = StartWorkflowRequest(namespace=desk.tenant.namespace, workflow_id=run.workflow_id, spec=WorkflowSpec(workflow_type="order", task_queue="queue"))  # fmt: skip
    assert (await refused(desk.tenant.workflows.StartWorkflow(start))).reason == "WORKFLOW_ALREADY_OPEN"


async def test_a_run_that_is_started_while_the_schedule_is_paused_is_known_to_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause comes between the start of the run and the note of it."""
    await desk.create()
    starting = Starter.start

    async def start_and_pause(*arguments: Any) -> Any:
        started = await starting(*arguments)
        await desk.stub.PauseSchedule(PauseScheduleRequest(**desk.named("report")))
        return started

    monkeypatch.setattr(Starter, "start", start_and_pause)
    time_ms = await desk.next_time()
    (run,) = await desk.some_runs(1)

    async def known() -> bool:
        return (await desk.get()).state.started_count == 1

    await until(known, "it is noted")
    shown = await desk.get()
    assert (shown.info.paused, [each.run_id for each in shown.state.recent]) == (True, [run.run_id])
    assert timestamp_ms(shown.state.done_time) == time_ms
