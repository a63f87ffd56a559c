"""Queries: brings questions to runs' code, and answers back. Nothing of it is recorded in a history.

A worker answers over its stream, so it is asked by the replica that has the stream. A query that reached another
replica is left in the database, told of, and answered there by whoever can.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from romancy.v1.failure_pb2 import FAILURE_SOURCE_SERVICE, Failure
from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.payload_pb2 import Payload
from romancy.v1.worker_service_pb2 import QueryAnswer, QueryTask
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_RUNNING

from romancy_service.clock import Clock
from romancy_service.core.check import check_failure, check_payload
from romancy_service.core.failures import cut
from romancy_service.core.limits import Limits
from romancy_service.core.replay import ReplayOrder, is_input
from romancy_service.core.run import Run
from romancy_service.dispatch import Dispatch
from romancy_service.dispatch.sending import pages
from romancy_service.errors import (
    InvalidField,
    QueryTimeout,
    StoreUnavailable,
    TooManyQueries,
    WorkflowClosed,
    WorkflowNotFound,
)
from romancy_service.results import Results
from romancy_service.sessions import Session
from romancy_service.store.questions import Question
from romancy_service.store.store import Store

_log = structlog.get_logger("romancy.queries")

_RETRY_S: Final = 0.5
"""How often a session is looked for here while none serves the run's type."""
_KEPT_MS: Final = 60_000
"""So long after its time a question of a replica that is gone is dropped."""


@dataclass(slots=True, eq=False)
class _Asked:
    """A question that a session has."""

    session: Session
    answer: asyncio.Future[QueryAnswer | None]
    """None: the session left."""


class Queries:
    """The questions that are open here."""

    def __init__(self, store: Store, clock: Clock, dispatch: Dispatch, results: Results, limits: Limits) -> None:
        self._store = store
        self._clock = clock
        self._dispatch = dispatch
        self._results = results
        self._limits = limits
        self._asked: dict[str, _Asked] = {}
        self._left: dict[str, asyncio.Event] = {}
        """Questions that were left for other replicas: set when one answered."""
        self._open = 0
        """Queries of clients that are under way."""
        self._histories = asyncio.Semaphore(limits.query_histories)
        self._taken: set[str] = set()
        """Questions of other replicas that are being answered here."""
        self._look = asyncio.Event()
        self.has_peers = False

    def answered(self, session: Session, answer: QueryAnswer) -> None:
        """A worker answers. What is not its to answer, or no longer waited for, is dropped."""
        asked = self._asked.get(answer.query_id)
        if asked is not None and asked.session is session and not asked.answer.done():
            asked.answer.set_result(self._checked(answer))

    def _checked(self, answer: QueryAnswer) -> QueryAnswer:
        """The answer, or why it cannot be given to anybody."""
        try:
            if answer.HasField("result"):
                check_payload("result", answer.result, self._limits)
            elif answer.HasField("failure"):
                check_failure("failure", answer.failure, self._limits)
                answer.failure.CopyFrom(cut(answer.failure, self._limits))
        except InvalidField as error:
            failure = Failure(type=error.reason, message=str(error), source=FAILURE_SOURCE_SERVICE)
            return QueryAnswer(query_id=answer.query_id, failure=failure)
        return answer

    def left(self, session: Session) -> None:
        """A session is gone: what it was asked is asked of others."""
        for asked in self._asked.values():
            if asked.session is session and not asked.answer.done():
                asked.answer.set_result(None)

    # Asking ---------------------------------------------------------------------------------------------------------

    async def ask(self, run_id: str, name: str, arguments: Sequence[Payload], wait_s: float) -> QueryAnswer:
        """Ask the run's code, after it has seen all that was recorded by now.

        Raises QueryTimeout, TooManyQueries, WorkflowNotFound, and WorkflowClosed when no code of it ran or ever will.
        """
        if self._open >= self._limits.open_queries:
            raise TooManyQueries(self._limits.open_queries)
        self._open += 1
        try:
            return await self._ask_within(run_id, name, arguments, wait_s)
        finally:
            self._open -= 1

    async def _ask_within(self, run_id: str, name: str, arguments: Sequence[Payload], wait_s: float) -> QueryAnswer:
        waiting_for = "its code has not seen what was recorded when the query came; GetWorkflow says why"
        until_ms = self._clock.now_ms() + int(wait_s * 1000)
        try:
            async with asyncio.timeout(wait_s):
                run = await self._seen(run_id)
                if run.status != WORKFLOW_STATUS_RUNNING and not run.seen_event_id:
                    raise WorkflowClosed(run.workflow_id, run_id, undoing=run.is_open)
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
                        answer = await self._ask_others(run, task, until_ms)
                    else:
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
                    await self._send_history(session, run, task)
                if session.closed:
                    return None
                answer = await asked.answer
            finally:
                del self._asked[query_id]
            if answer is None or not answer.HasField("miss"):
                return answer
            holds = False

    async def _send_history(self, session: Session, run: Run, task: QueryTask) -> None:
        """Ask with all that the code has seen. Its memory is free again when the worker has taken it."""
        async with self._histories:
            events = await self._lived(run)
            if not session.closed:
                _send(session, task, 0, events)
                await session.asked(task.query_id)

    async def _lived(self, run: Run) -> list[HistoryEvent]:
        """What the code has seen. What no task has brought to it is left out, also when the run is closed: the code
        would go on by it, and do what nobody asked for."""
        order, lived = ReplayOrder(), list[HistoryEvent]()
        async for page in self._store.history_pages(run.run_id, for_client=True):
            ours = (event for event in page if event.event_id <= run.last_event_id)
            lived += order.take(event for event in ours if event.event_id <= run.seen_event_id or not is_input(event))
        return [*lived, *order.rest()]

    # Between replicas -----------------------------------------------------------------------------------------------

    async def _ask_others(self, run: Run, task: QueryTask, until_ms: int) -> QueryAnswer | None:
        """Another replica's answer; None when a worker came that can be asked here."""
        question = Question(secrets.token_hex(8), until_ms, task.SerializeToString())
        told = self._left[question.query_id] = asyncio.Event()
        left = False
        try:
            while self._dispatch.able(run) is None:
                if self.has_peers and not left:
                    left = True
                    await self._store.leave_question(question)
                    await self._tell(asked=question.query_id)
                told.clear()
                answer = await self._store.answer_to(question.query_id) if left else None
                if answer is not None:
                    return QueryAnswer.FromString(answer)
                try:
                    async with asyncio.timeout(_RETRY_S):
                        await told.wait()
                except TimeoutError:
                    pass
            return None
        finally:
            del self._left[question.query_id]
            if left:
                await self._store.drop_question(question.query_id)

    def look_now(self) -> None:
        """There are questions: perhaps one that nobody told us of."""
        self._look.set()

    def told(self, payload: str) -> None:
        """Another replica has a question, or an answer."""
        message = json.loads(payload)
        if "asked" in message:
            self._look.set()
        if (answered := self._left.get(message.get("answered", ""))) is not None:
            answered.set()

    async def run(self) -> None:
        """Answer questions of other replicas, until cancelled."""
        async with asyncio.TaskGroup() as answers:
            while True:
                await self._look.wait()
                self._look.clear()
                try:
                    now_ms = self._clock.now_ms()
                    for question in await self._store.open_questions(now_ms):
                        if len(self._taken) >= self._limits.open_queries:
                            break  # what is left is read again, here or by others
                        if question.query_id not in self._left and question.query_id not in self._taken:
                            self._taken.add(question.query_id)
                            answers.create_task(self._answer_other(question))
                    await self._store.expire_questions(now_ms - _KEPT_MS)
                except StoreUnavailable as error:
                    _log.warning("questions of other replicas not read", error=str(error))

    async def _answer_other(self, question: Question) -> None:
        """Answer a question of another replica, if a worker is here that can."""
        task = QueryTask.FromString(question.task)
        wait_s = max(question.until_ms - self._clock.now_ms(), 0) / 1000
        try:
            async with asyncio.timeout(wait_s):
                run = (await self._store.load([task.run_id])).get(task.run_id)
                session = None if run is None else self._dispatch.able(run)
                if run is None or session is None:
                    return
                answer = await self._ask(session, run, task)
                if answer is not None:
                    await self._store.answer_question(question.query_id, answer.SerializeToString())
                    await self._tell(answered=question.query_id)
        except (TimeoutError, StoreUnavailable) as error:
            _log.info("a question of another replica is not answered", run_id=task.run_id, error=str(error))
        finally:
            self._taken.discard(question.query_id)

    async def _tell(self, **news: str) -> None:
        await self._store.notify(json.dumps(news))


def _send(session: Session, task: QueryTask, after_event_id: int, events: Iterable[HistoryEvent]) -> None:
    for page, more in pages(events):
        piece = QueryTask()
        piece.CopyFrom(task)
        piece.after_event_id = after_event_id
        piece.events.extend(page)
        piece.more = more
        session.queries.append(piece)
    session.wake.set()
