"""Updates: waits until a run's code has answered what it was asked to change."""

from __future__ import annotations

import asyncio

from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.workflow_service_pb2 import (
    UPDATE_STAGE_ACCEPTED,
    UPDATE_STAGE_COMPLETED,
    UPDATE_STAGE_RECEIVED,
    UpdateStage,
    UpdateWorkflowResponse,
)

from romancy_service.core.limits import Limits
from romancy_service.errors import UpdateAborted
from romancy_service.results import Results
from romancy_service.store.store import Store


class Updates:
    """How far updates got, read from the histories of their runs: whichever replica recorded it."""

    def __init__(self, store: Store, results: Results, limits: Limits) -> None:
        self._store = store
        self._results = results
        self._limits = limits

    async def wait(
        self, recorded: UpdateWorkflowResponse, stage: UpdateStage.ValueType, wait_s: float
    ) -> UpdateWorkflowResponse:
        """The update that was recorded, when it has reached `stage`, or as far as it got within `wait_s`.

        Follows a workflow through the runs that continue it. Raises UpdateAborted.
        """
        answer = UpdateWorkflowResponse(stage=UPDATE_STAGE_RECEIVED)
        answer.MergeFrom(recorded)
        deadline = asyncio.get_running_loop().time() + wait_s
        while answer.stage < stage:
            grown = asyncio.Event()
            self._results.watch(answer.run_id, grown)
            try:
                next_run_id = await self._follow(answer, stage, grown, deadline)
            finally:
                self._results.unwatch(answer.run_id, grown)
            if not next_run_id:
                break
            answer.run_id, answer.event_id = next_run_id, 0
        return answer

    async def _follow(
        self, answer: UpdateWorkflowResponse, stage: UpdateStage.ValueType, grown: asyncio.Event, deadline: float
    ) -> str:
        """Read one run's history as it grows, from the update on. Returns the run that goes on with it, if one does."""
        after = answer.event_id
        while True:
            grown.clear()
            for event in (events := await self._read(answer.run_id, after)):
                after = event.event_id
                _note(answer, event)
                if answer.stage >= stage:
                    return ""
                if event.HasField("workflow_continued") and answer.stage < UPDATE_STAGE_ACCEPTED:
                    return event.workflow_continued.new_run_id
                if answer.stage < UPDATE_STAGE_COMPLETED and _ends_code(event):
                    raise UpdateAborted(answer.run_id)
            if events:
                continue
            try:
                async with asyncio.timeout_at(deadline):
                    await grown.wait()
            except TimeoutError:
                return ""

    async def _read(self, run_id: str, after: int) -> list[HistoryEvent]:
        limits = self._limits
        return await self._store.show_history(run_id, after, limits.page_events, limits.page_bytes)


def _note(answer: UpdateWorkflowResponse, event: HistoryEvent) -> None:
    match event.WhichOneof("attributes"):
        case "update_received" if event.update_received.update_id == answer.update_id:
            answer.event_id = event.event_id
        case "update_accepted" if event.update_accepted.update_id == answer.update_id:
            answer.stage = UPDATE_STAGE_ACCEPTED
        case "update_rejected" if event.update_rejected.update_id == answer.update_id:
            answer.stage = UPDATE_STAGE_COMPLETED
            answer.rejected = True
            answer.failure.CopyFrom(event.update_rejected.failure)
        case "update_completed" if event.update_completed.update_id == answer.update_id:
            answer.stage = UPDATE_STAGE_COMPLETED
            if event.update_completed.HasField("failure"):
                answer.failure.CopyFrom(event.update_completed.failure)
            else:
                answer.result.CopyFrom(event.update_completed.result)


def _ends_code(event: HistoryEvent) -> bool:
    """Whether the code of the run answers nothing after this event."""
    return event.WhichOneof("attributes") in (
        "rollback_started",
        "workflow_completed",
        "workflow_continued",
        "workflow_terminated",
    )
