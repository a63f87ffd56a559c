"""Queries: brings questions to runs' code, and answers back. Nothing of it is recorded in a history."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.payload_pb2 import Payload
from romancy.v1.worker_service_pb2 import QueryAnswer, QueryTask

from romancy_service.core.replay import ReplayOrder
from romancy_service.core.run import Run
from romancy_service.dispatch import Dispatch
from romancy_service.dispatch.sending import pages
from romancy_service.errors import QueryTimeout, WorkflowNotFound
from romancy_service.results import Results
from romancy_service.sessions import Session
from romancy_service.store.store import Store

_RETRY_S = 0.5
"""How often a session is looked for while none serves the run's type."""


@dataclass(slots=True, eq=False)
class _Asked:
    """A question that a session has."""

    session: Session
    answer: asyncio.Future[QueryAnswer]


class Queries:
    """The questions that are open here."""

    def __init__(self, store: Store, dispatch: Dispatch, results: Results) -> None:
        self._store = store
        self._dispatch = dispatch
        self._results = results
        self._asked: dict[str, _Asked] = {}

    def answered(self, session: Session, answer: QueryAnswer) -> None:
        """A worker answers. What is not its to answer, or no longer waited for, is dropped."""
        asked = self._asked.get(answer.query_id)
        if asked is not None and asked.session is session and not asked.answer.done():
            asked.answer.set_result(answer)

    def left(self, session: Session) -> None:
        """A session is gone: what it was asked is asked of others."""
        for asked in self._asked.values():
            if asked.session is session and not asked.answer.done():
                asked.answer.cancel()

    async def ask(self, run_id: str, name: str, arguments: Sequence[Payload], wait_s: float) -> QueryAnswer:
        """Ask the run's code, after it has seen all that was recorded by now. Raises QueryTimeout, WorkflowNotFound."""
        waiting_for = "its code has not seen what was recorded when the query came; GetWorkflow says why"
        try:
            async with asyncio.timeout(wait_s):
                run = await self._seen(run_id)
                task = QueryTask(
                    workflow_id=run.workflow_id,
                    run_id=run_id,
                    workflow_type=run.workflow_type,
                    name=name,
                    arguments=arguments,
                )
                while True:
                    session = self._dispatch.able(run)
                    if session is None:
                        waiting_for = f"no worker of queue {run.task_queue!r} that has {run.workflow_type!r} is here"
                        await asyncio.sleep(_RETRY_S)
                        continue
                    waiting_for = f"worker {session.hello.worker_id!r} has not answered"
                    answer = await self._ask(session, run, task)
                    if answer is not None:
                        return answer
        except TimeoutError as error:
            raise QueryTimeout(run_id, waiting_for) from error

    async def _seen(self, run_id: str) -> Run:
        """The run, when its code has seen what was recorded at the beginning, or sees nothing any more."""
        grown = asyncio.Event()
        self._results.watch(run_id, grown)
        awaited: int | None = None
        try:
            while True:
                grown.clear()
                run = (await self._store.load([run_id])).get(run_id)
                if run is None:
                    raise WorkflowNotFound(run_id)
                if awaited is None:
                    awaited = run.unseen[-1].event_id if run.unseen else 0
                if not run.unseen or run.seen_event_id >= awaited > 0:
                    return run
                await grown.wait()
        finally:
            self._results.unwatch(run_id, grown)

    async def _ask(self, session: Session, run: Run, task: QueryTask) -> QueryAnswer | None:
        """One session's answer; None when it left."""
        query_id = task.query_id = secrets.token_hex(8)
        holds = session.session_id == run.sticky_session
        while True:
            asked = self._asked[query_id] = _Asked(session, asyncio.get_running_loop().create_future())
            try:
                if holds:
                    _send(session, task, run.sticky_event_id, ())
                else:
                    _send(session, task, 0, await self._lived(run))
                answer = await asked.answer
            except asyncio.CancelledError:
                if asked.answer.cancelled() and session.closed:
                    return None
                raise
            finally:
                del self._asked[query_id]
            if not answer.HasField("miss"):
                return answer
            holds = False

    async def _lived(self, run: Run) -> list[HistoryEvent]:
        """What the code has seen: what no task has brought to it is left out, as it would see it too early."""
        unseen = {event.event_id for event in run.unseen}
        order, lived = ReplayOrder(), list[HistoryEvent]()
        async for page in self._store.history_pages(run.run_id, for_client=True):
            seen = (e for e in page if e.event_id <= run.last_event_id and e.event_id not in unseen)
            lived += order.take(seen)
        return [*lived, *order.rest()]


def _send(session: Session, task: QueryTask, after_event_id: int, events: Iterable[HistoryEvent]) -> None:
    for page, more in pages(events):
        piece = QueryTask()
        piece.CopyFrom(task)
        piece.after_event_id = after_event_id
        piece.events.extend(page)
        piece.more = more
        session.queries.append(piece)
    session.wake.set()
