"""ScheduleService: starts at given times. One short method for each rpc."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, islice
from typing import Any, TypeVar

import grpc

from romancy.v1.schedule_pb2 import ScheduleInfo, ScheduleState
from romancy.v1.schedule_service_pb2 import (
    BackfillScheduleRequest,
    BackfillScheduleResponse,
    CreateScheduleRequest,
    CreateScheduleResponse,
    DeleteScheduleRequest,
    DeleteScheduleResponse,
    GetScheduleRequest,
    GetScheduleResponse,
    ListSchedulesRequest,
    ListSchedulesResponse,
    PauseScheduleRequest,
    PauseScheduleResponse,
    ResumeScheduleRequest,
    ResumeScheduleResponse,
    TriggerScheduleRequest,
    TriggerScheduleResponse,
    UpdateScheduleRequest,
    UpdateScheduleResponse,
)
from romancy.v1.schedule_service_pb2_grpc import ScheduleServiceServicer

from romancy_service.core import schedule as core
from romancy_service.core.schedule import ScheduleRecord
from romancy_service.core.task import NEVER_MS
from romancy_service.core.times import timestamp, timestamp_ms
from romancy_service.node import Node
from romancy_service.rpc.once import once
from romancy_service.rpc.pages import name_token, read_name_token
from romancy_service.rpc.validate import namespace_of, page_size, task_queue_of
from romancy_service.rpc.validate_schedule import Change, check_schedule_change
from romancy_service.schedules import Key, Schedules
from romancy_service.starter import new_id
from romancy_service.store.schedules import ScheduleSummary
from romancy_service.store.store import Request

# The generated servicer names its methods as the contract does.

Context = grpc.aio.ServicerContext[Any, Any]
Changed = TypeVar(
    "Changed",
    UpdateScheduleResponse,
    PauseScheduleResponse,
    ResumeScheduleResponse,
    TriggerScheduleResponse,
    BackfillScheduleResponse,
    DeleteScheduleResponse,
)


class ScheduleService(ScheduleServiceServicer):
    """Checks, translates, calls the schedules or the store."""

    def __init__(self, node: Node, schedules: Schedules) -> None:
        self._node = node
        self._schedules = schedules

    # Reading ------------------------------------------------------------------------------------------------------

    async def GetSchedule(self, request: GetScheduleRequest, context: Context) -> GetScheduleResponse:
        """One schedule and where it stands."""
        record = await self._schedules.look_up(self._checked(request))
        return GetScheduleResponse(
            info=_info(record),
            schedule=record.schedule,
            state=record.state,
            next_times=[timestamp(time_ms) for time_ms in core.next_times(record)],
        )

    async def ListSchedules(self, request: ListSchedulesRequest, context: Context) -> ListSchedulesResponse:
        """One page of schedules, by id."""
        limits = self._node.limits
        namespace = namespace_of(request.namespace, limits)
        size = page_size("page_size", request.page_size, limits.page_runs, limits.max_page_runs)
        after = read_name_token(request.page_token, namespace, limits)
        found = await self._node.store.list_schedules(namespace, after, size + 1)
        sizes = accumulate(_info(each).ByteSize() for each in found[:size])
        fitting = 1 + sum(so_far <= limits.page_bytes for so_far in islice(sizes, 1, None))
        page = found[:fitting]
        token = name_token(namespace, page[-1].schedule_id) if len(found) > len(page) else ""
        return ListSchedulesResponse(schedules=map(_info, page), next_page_token=token)

    # Changing -----------------------------------------------------------------------------------------------------

    async def CreateSchedule(self, request: CreateScheduleRequest, context: Context) -> CreateScheduleResponse:
        """Make a schedule."""
        namespace, schedule_id = self._checked(request)
        now_ms = self._node.clock.now_ms()
        record = ScheduleRecord(
            namespace=namespace,
            schedule_id=schedule_id,
            uid=new_id(),
            schedule=request.schedule,
            state=ScheduleState(paused=request.paused, note=request.note, done_time=timestamp(now_ms)),
            revision=1,
            create_ms=now_ms,
            update_ms=now_ms,
        )
        response = CreateScheduleResponse(revision=record.revision)
        request_id, method = request.request_id or new_id(), f"CreateSchedule {schedule_id}"

        async def carry_out() -> CreateScheduleResponse:
            await self._schedules.create(
                record, Request(namespace, request_id, "", method, response.SerializeToString())
            )
            return response

        return await once(self._node.store, namespace, request_id, method, CreateScheduleResponse, carry_out)

    async def UpdateSchedule(self, request: UpdateScheduleRequest, context: Context) -> UpdateScheduleResponse:
        """Replace what is started, and when."""

        def change(record: ScheduleRecord, now_ms: int) -> UpdateScheduleResponse:
            core.update(record, request.schedule, request.revision, now_ms)
            return UpdateScheduleResponse(revision=record.revision)

        return await self._change("UpdateSchedule", request, UpdateScheduleResponse, change)

    async def PauseSchedule(self, request: PauseScheduleRequest, context: Context) -> PauseScheduleResponse:
        """Start nothing at its times."""

        def change(record: ScheduleRecord, now_ms: int) -> PauseScheduleResponse:
            core.pause(record, request.note)
            return PauseScheduleResponse()

        return await self._change("PauseSchedule", request, PauseScheduleResponse, change)

    async def ResumeSchedule(self, request: ResumeScheduleRequest, context: Context) -> ResumeScheduleResponse:
        """End a pause."""

        def change(record: ScheduleRecord, now_ms: int) -> ResumeScheduleResponse:
            core.resume(record, request.note, now_ms)
            return ResumeScheduleResponse()

        return await self._change("ResumeSchedule", request, ResumeScheduleResponse, change)

    async def TriggerSchedule(self, request: TriggerScheduleRequest, context: Context) -> TriggerScheduleResponse:
        """Ask for one start now."""

        def change(record: ScheduleRecord, now_ms: int) -> TriggerScheduleResponse:
            workflow_id = core.trigger(record, request.overlap_policy, now_ms, self._node.limits)
            return TriggerScheduleResponse(workflow_id=workflow_id)

        response = await self._change("TriggerSchedule", request, TriggerScheduleResponse, change)
        await self._schedules.settle(self._checked(request))  # so that the caller finds the run
        return response

    async def BackfillSchedule(self, request: BackfillScheduleRequest, context: Context) -> BackfillScheduleResponse:
        """Ask for the starts of a range."""
        from_ms, before_ms = timestamp_ms(request.start_time), timestamp_ms(request.end_time)

        def change(record: ScheduleRecord, now_ms: int) -> BackfillScheduleResponse:
            starts = core.backfill(record, from_ms, before_ms, request.overlap_policy, self._node.limits)
            return BackfillScheduleResponse(starts=starts)

        return await self._change("BackfillSchedule", request, BackfillScheduleResponse, change)

    async def DeleteSchedule(self, request: DeleteScheduleRequest, context: Context) -> DeleteScheduleResponse:
        """Forget a schedule."""
        return await self._change(
            "DeleteSchedule",
            request,
            DeleteScheduleResponse,
            lambda record, now_ms: DeleteScheduleResponse(),
            delete=True,
        )

    async def _change(
        self,
        method: str,
        request: Change,
        response: type[Changed],
        change: Callable[[ScheduleRecord, int], Changed],
        *,
        delete: bool = False,
    ) -> Changed:
        namespace, schedule_id = self._checked(request)
        request_id, exactly = request.request_id or new_id(), f"{method} {schedule_id}"

        def change_and_answer(record: ScheduleRecord, now_ms: int) -> Request:
            return Request(namespace, request_id, "", exactly, change(record, now_ms).SerializeToString())

        async def carry_out() -> Changed:
            done = await self._schedules.change((namespace, schedule_id), change_and_answer, delete=delete)
            return response.FromString(done.reply)

        return await once(self._node.store, namespace, request_id, exactly, response, carry_out)

    def _checked(self, request: Change | GetScheduleRequest) -> Key:
        check_schedule_change(request, self._node.clock.now_ms(), self._node.limits)
        if isinstance(request, CreateScheduleRequest | UpdateScheduleRequest):
            workflow = request.schedule.action.workflow
            workflow.task_queue = task_queue_of("task_queue", workflow.task_queue, self._node.limits)
        return namespace_of(request.namespace, self._node.limits), request.schedule_id


def _info(each: ScheduleRecord | ScheduleSummary) -> ScheduleInfo:
    return ScheduleInfo(
        schedule_id=each.schedule_id,
        workflow_type=each.workflow_type,
        revision=each.revision,
        paused=each.state.paused,
        note=each.state.note,
        create_time=timestamp(each.create_ms),
        update_time=timestamp(each.update_ms),
        next_time=None if each.state.paused or each.due_ms == NEVER_MS else timestamp(each.due_ms),
    )
