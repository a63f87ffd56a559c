"""Ledger: what a run has done and may have to undo, read from its history a page at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from romancy.v1.history_pb2 import HistoryEvent

from romancy_service.core.apply import apply
from romancy_service.core.run import Run
from romancy_service.core.saga import Saga


async def read_saga(run: Run, pages: AsyncIterator[list[HistoryEvent]]) -> Saga:
    """The saga of `run` as it was when the run was read; `pages` are its history. Raises CorruptHistory."""
    folded = Run(run.namespace, run.workflow_id, run.run_id, saga=Saga())
    assert folded.saga is not None
    async for page in pages:
        for event in page:
            # Another replica may have written more since the run was read; what it added is not this run's saga.
            if event.event_id <= run.last_event_id:
                apply(folded, event)
        await asyncio.sleep(0)  # a long history must not hold up the rest
    return folded.saga
