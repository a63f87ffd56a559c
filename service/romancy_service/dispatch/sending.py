"""Sending: puts leased tasks on the streams of their sessions; workflow tasks with what of the history is new there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Final

import structlog

from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.payload_pb2 import Payload
from romancy.v1.worker_service_pb2 import ActivityTask, WorkflowTask

from romancy_service.core.replay import ReplayOrder
from romancy_service.core.run import Run
from romancy_service.core.task import NEVER_MS, WORKFLOW_TASK_ID, Task, TaskKind
from romancy_service.core.times import duration, timestamp
from romancy_service.errors import RomancyError, StoreUnavailable
from romancy_service.sessions import InHand, Session
from romancy_service.store.store import Claimed, Store
from romancy_service.tokens import TaskRef, Tokens

_log = structlog.get_logger("romancy.dispatch")

PAGE_BYTES: Final = 1 << 20
"""A history goes out in messages of about this size, so that heartbeats find room between them."""


class Sending:
    """Makes tasks into messages. A task is in hand from the moment in which it is to be sent."""

    def __init__(
        self,
        store: Store,
        tokens: Tokens,
        cached: Callable[[str], Run | None],
        disconnect: Callable[[Session, RomancyError], None],
        uncertain: Callable[[], None],
    ) -> None:
        """`disconnect` ends a stream; `uncertain`: a leased task could not be sent, so leases are to be compared."""
        self._store = store
        self._tokens = tokens
        self._cached = cached
        self._disconnect = disconnect
        self._uncertain = uncertain
        self._under_way: set[asyncio.Task[None]] = set()

    def hand_out(self, session: Session, run: Run, task: Task, leased_ms: int) -> None:
        """Send a task whose lease is stored. Its slot is reserved."""
        token = self._token(run.namespace, run.run_id, task)
        if token in session.in_hand or token in session.reported:
            session.free[task.kind] += 1
            return  # sent already, since it was found to be leased
        held = _take(session, token, run.run_id, task, leased_ms)
        if task.kind is TaskKind.ACTIVITY:
            self._send_activity(session, held, run.workflow_id, run.workflow_type, task, None)
        else:
            self._send_workflow(session, held, run, task)

    def hand_out_claimed(self, session: Session, row: Claimed) -> None:
        """Send a task that was claimed for the session. Its slot is reserved."""
        token = self.token(row)
        if token in session.in_hand:
            session.free[row.task.kind] += 1
            return  # sent already, since it was found to be leased
        held = _take(session, token, row.run_id, row.task, row.task.leased_ms)
        self._send_claimed(session, held, row)

    def resume(self, session: Session, row: Claimed, *, running: bool) -> InHand:
        """After a reconnect: a task that the session had. `running`: the worker still has it; else send it again."""
        held = _take(session, self.token(row), row.run_id, row.task, row.task.leased_ms)
        session.free[row.task.kind] -= 1
        if not running:
            self._send_claimed(session, held, row)
        return held

    async def resend_whole(self, session: Session, held: InHand) -> None:
        """The worker does not hold the run after all: send everything, under the same token."""
        runs = await self._store.load([held.run_id])
        run = runs.get(held.run_id)
        task = run.tasks.get(WORKFLOW_TASK_ID) if run is not None else None
        if run is None or task is None or task.attempt != held.attempt:
            return
        await self._send_history(session, held, run, task)

    def token(self, row: Claimed) -> str:
        """The token of a task that a session has."""
        return self._token(row.namespace, row.run_id, row.task)

    def _token(self, namespace: str, run_id: str, task: Task) -> str:
        return self._tokens.sign(TaskRef(namespace, run_id, task.task_id, task.attempt, task.scheduled_ms))

    def _send_activity(
        self, session: Session, held: InHand, workflow_id: str, workflow_type: str, task: Task, details: bytes | None
    ) -> None:
        command = task.command
        assert command is not None
        session.activity_tasks.append(
            ActivityTask(
                token=held.token,
                workflow_id=workflow_id,
                run_id=held.run_id,
                workflow_type=workflow_type,
                activity_id=command.activity_id,
                activity_type=command.activity_type,
                task_queue=task.queue,
                arguments=command.arguments,
                attempt=task.attempt,
                idempotency_key=f"{held.run_id}/{command.activity_id}",
                scheduled_time=timestamp(task.scheduled_ms),
                start_to_close_timeout=(command.start_to_close_timeout if task.start_to_close_ms < NEVER_MS else None),
                heartbeat_timeout=duration(task.heartbeat_timeout_ms) if task.heartbeat_timeout_ms < NEVER_MS else None,
                heartbeat_details=Payload.FromString(details) if details else None,
                headers=command.headers,
                compensation=task.is_compensation,
            )
        )
        session.wake.set()

    def _send_workflow(self, session: Session, held: InHand, run: Run, task: Task) -> None:
        """Only what is new to the session that holds the run; everything to any other."""
        if run.sticky_session == session.session_id and task.attempt == 1:
            self._send_events(session, held, run, task, run.sticky_event_id, run.unseen, run.last_event_id)
        elif run.seen_event_id == 0:
            # The code has not run yet, so the inputs in memory are all there is to it.
            self._send_events(session, held, run, task, 0, run.unseen, run.last_event_id)
        else:
            self._spawn(self._send_history(session, held, run, task))

    def _send_claimed(self, session: Session, held: InHand, row: Claimed) -> None:
        if row.task.kind is TaskKind.ACTIVITY:
            session.claimed_bytes += row.bytes
            self._send_activity(session, held, row.workflow_id, row.workflow_type, row.task, row.heartbeat_details)
        else:
            self._spawn(self._send_claimed_workflow(session, held, row))

    async def _send_claimed_workflow(self, session: Session, held: InHand, row: Claimed) -> None:
        run = self._cached(row.run_id)
        if run is not None and run.version == row.version:
            self._send_workflow(session, held, run, row.task)
            return
        run = Run(row.namespace, row.workflow_id, row.run_id, workflow_type=row.workflow_type)
        await self._send_history(session, held, run, row.task)

    async def _send_history(self, session: Session, held: InHand, run: Run, task: Task) -> None:
        """All of it, read as fast as the worker takes it, and what it takes already."""
        session.unread.add(held.token)
        async with session.histories:
            await session.room()
            if held.token in session.in_hand and not session.closed:
                await self._read_history(session, held, run, task)

    async def _read_history(self, session: Session, held: InHand, run: Run, task: Task) -> None:
        order, last_event_id = ReplayOrder(), 0
        ready: list[HistoryEvent] = []
        try:
            async for page in self._store.history_pages(held.run_id):
                if ready:
                    self._send_events(session, held, run, task, 0, ready, last_event_id, more=True)
                    await session.room()
                if held.token not in session.in_hand:
                    return  # it was taken away meanwhile
                ready, last_event_id = order.take(page), page[-1].event_id
        except StoreUnavailable as error:
            _log.warning("history not read; the task is sent later", run_id=held.run_id, error=str(error))
            if held.token in session.brought:
                self._disconnect(session, error)  # so that the worker drops what it has of it
            else:
                session.put_down(held.token)
                self._uncertain()
        except Exception:
            # Nobody can run it as it is: it times out, again and again, in sight, and disturbs nobody else.
            _log.exception("history cannot be read", run_id=held.run_id)
            session.put_down(held.token)
            session.check_left()
        else:
            if last_event_id:
                self._send_events(session, held, run, task, 0, [*ready, *order.rest()], last_event_id)

    def _send_events(
        self,
        session: Session,
        held: InHand,
        run: Run,
        task: Task,
        after_event_id: int,
        events: Iterable[HistoryEvent],
        last_event_id: int,
        *,
        more: bool = False,
    ) -> None:
        session.unread.discard(held.token)
        session.brought[held.token] = last_event_id
        for page, followed in pages(events):
            session.workflow_tasks.append(
                WorkflowTask(
                    token=held.token,
                    workflow_id=run.workflow_id,
                    run_id=held.run_id,
                    workflow_type=run.workflow_type,
                    attempt=task.attempt,
                    after_event_id=after_event_id,
                    events=page,
                    more=more or followed,
                    last_event_id=last_event_id,
                )
            )
        session.wake.set()

    def _spawn(self, sending: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(sending)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)


def _take(session: Session, token: str, run_id: str, task: Task, leased_ms: int) -> InHand:
    held = InHand(token, run_id, task.task_id, task.attempt, task.kind, leased_ms)
    session.take(held)
    return held


def pages(events: Iterable[HistoryEvent]) -> list[tuple[list[HistoryEvent], bool]]:
    """Events in lists that fit into messages, each with whether another one follows. At least one."""
    pages: list[list[HistoryEvent]] = [[]]
    size = 0
    for event in events:
        event_size = event.ByteSize()
        if size and size + event_size > PAGE_BYTES:
            pages.append([])
            size = 0
        pages[-1].append(event)
        size += event_size
    return [(page, number < len(pages)) for number, page in enumerate(pages, 1)]
