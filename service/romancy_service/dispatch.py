"""Dispatch: brings tasks to sessions. On the happy path a task goes in already leased and is sent after the commit;
what finds no free slot waits in the database and is claimed in batches when slots become free.
"""

from __future__ import annotations

import asyncio
import heapq
import json
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Final

import structlog

from romancy.v1.failure_pb2 import FAILURE_SOURCE_LOST, FAILURE_SOURCE_TIMEOUT
from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.payload_pb2 import Payload
from romancy.v1.worker_service_pb2 import (
    CANCELLATION_REASON_REQUESTED,
    CANCELLATION_REASON_STALE,
    ActivityTask,
    WorkflowTask,
)

from romancy_service.clock import Clock
from romancy_service.core.replay import ReplayOrder
from romancy_service.core.run import Run
from romancy_service.core.task import (
    NEVER_MS,
    WORKFLOW_TASK_ID,
    Task,
    TaskKind,
    activity_task_id,
    compensation_task_id,
)
from romancy_service.core.times import duration, timestamp
from romancy_service.errors import RomancyError, StoreUnavailable
from romancy_service.sessions import InHand, Session, TypeKey
from romancy_service.store.store import Claimed, Lease, LeasedRow, Store, Want
from romancy_service.tokens import TaskRef, Tokens

_log = structlog.get_logger("romancy.dispatch")

PAGE_BYTES: Final = 1 << 20
"""A history goes out in messages of about this size, so that heartbeats find room between them."""
POLL_S: Final = 1.0
"""The backstop: any notification may be lost."""
_NOTIFICATION_BYTES: Final = 7_900
"""What one notification of Postgres holds, less its frame."""
_NOT_BY_THE_WORKER: Final = (FAILURE_SOURCE_TIMEOUT, FAILURE_SOURCE_LOST)
SOON_MS: Final = 60_000
"""Tasks that become due within this are woken for to the millisecond; the poll finds the others."""
DOUBTS_S: Final = (0.0, 1.0, 5.0, 30.0)
"""So long after an answer was lost leases are compared: a database that was frozen carries out late what it got."""


class Dispatch:
    """Knows which sessions are connected here, gives them tasks, and takes back what they lose."""

    def __init__(self, store: Store, clock: Clock, tokens: Tokens, cached: Callable[[str], Run | None]) -> None:
        self._store = store
        self._clock = clock
        self._tokens = tokens
        self._cached = cached
        self.sessions: dict[str, Session] = {}
        self._by_type: dict[TypeKey, deque[Session]] = defaultdict(deque)
        self._backlog: dict[TypeKey, int] = {}
        """What may have due tasks without an owner: new ones must not overtake them. The number counts those noted."""
        self._due: list[tuple[int, TypeKey]] = []
        """Heap: when a waiting task becomes due."""
        self._wake = asyncio.Event()
        self._unserved: set[TypeKey] = set()
        """What other replicas are to be told of."""
        self._cancelled: set[str] = set()
        """Runs with activities that were asked to stop, on whatever replica their session is."""
        self._stale: list[tuple[str, str, int]] = []
        """Run, task and attempt (0: any) whose result would be refused: other replicas may have their session."""
        self._doubts: list[float] = []
        """When leases are to be compared with what was sent, soonest first."""
        self._sendings: set[asyncio.Task[None]] = set()
        self.has_peers = False
        self.stopped = False

    # Sessions -----------------------------------------------------------------------------------------------------

    def connect(self, session: Session) -> None:
        """A worker is there: give it tasks."""
        self.sessions[session.session_id] = session
        for key in session.type_keys():
            self._by_type[key].append(session)
            self._add_backlog(key)
        self._wake.set()

    def disconnect(self, session: Session, why: RomancyError | None = None) -> None:
        """Its stream ended, or ends now because of `why`: give it nothing more."""
        if session.closed:
            return
        session.close(why)
        if self.sessions.get(session.session_id) is session:
            del self.sessions[session.session_id]
        for key in session.type_keys():
            self._by_type[key].remove(session)
            if not self._by_type[key]:
                del self._by_type[key]

    def look_now(self) -> None:
        """Look for waiting tasks at once."""
        for key in self._by_type:
            self._add_backlog(key)
        self._wake.set()

    def freed(self, session: Session) -> None:
        """A slot became free: something may wait for it."""
        if self._backlog and not self._wake.is_set():
            self._wake.set()
        session.wake.set()  # if it leaves: this may have been the last one

    # The engine's outlet ------------------------------------------------------------------------------------------

    def offer(self, run: Run, task: Task) -> Lease | None:
        """A session with a free slot for the task, its slot reserved; None if it is to be claimed instead."""
        key = (run.namespace, task.queue, task.kind, task.type)
        if key in self._backlog or self.stopped:
            return None
        if task.kind is TaskKind.ACTIVITY and task.attempt > 1:
            return None  # what its last attempt said of its progress is in the database: a claim brings it
        session = self._choose(run, task, key)
        if session is None:
            return None
        session.free[task.kind] -= 1
        return Lease(session.session_id, session.epoch)

    def _choose(self, run: Run, task: Task, key: TypeKey) -> Session | None:
        serving = self._by_type.get(key)
        if not serving:
            return None
        if task.kind is TaskKind.WORKFLOW and run.sticky_session:
            sticky = self.sessions.get(run.sticky_session)
            if sticky is not None and sticky in serving and sticky.takes(task.kind):
                return sticky
        for _ in range(len(serving)):
            session = serving[0]
            serving.rotate(-1)
            if session.takes(task.kind):
                return session
        return None

    def holder(self, run: Run) -> Session | None:
        """The session here that holds the run in memory."""
        session = self.sessions.get(run.sticky_session)
        return session if session is not None and not session.closed else None

    def serving(self, run: Run) -> Session | None:
        """A session here that could run the run's code, another one each time."""
        serving = self._by_type.get((run.namespace, run.task_queue, TaskKind.WORKFLOW, run.workflow_type))
        if not serving:
            return None
        serving.rotate(-1)
        return serving[0]

    def withdraw(self, task: Task, lease: Lease) -> None:
        """Nothing came of an offer: the slot is free again."""
        session = self.sessions.get(lease.session_id)
        if session is not None and session.epoch == lease.epoch:
            session.free[task.kind] += 1
            self.freed(session)

    def committed(self, run: Run, leases: dict[str, Lease]) -> None:
        """Send what was leased; note what waits; tell workers of what they need not finish."""
        now_ms = self._clock.latest_ms()
        self._stop_activities(run)
        for task_id in run.touched:
            if task_id not in run.rewritten or run.tasks[task_id].kind > TaskKind.ACTIVITY:
                continue
            task = run.tasks[task_id]
            lease = leases.get(task_id)
            if lease is None:
                self._wait(run.namespace, task, now_ms)
                continue
            session = self.sessions.get(lease.session_id)
            if session is None or session.epoch != lease.epoch:
                continue  # its stream ended just now; its next hello, or the sweep, finds the row
            self._hand_out(session, run, task, now_ms)

    def _stop_activities(self, run: Run) -> None:
        """Tell workers of activities that were asked to stop, and of attempts given up without their answer."""
        for task_id, was_stored in run.touched.items():
            task = run.tasks.get(task_id)
            if task is None:
                if was_stored and not run.is_open:
                    self._give_up(run.run_id, task_id, 0)
            elif was_stored and task.cancel_requested and task_id not in run.rewritten:
                self._cancelled.add(run.run_id)
                self._wake.set()
        for event in run.new_events:
            for task_id, attempt in _given_up(event):
                self._give_up(run.run_id, task_id, attempt)

    def _give_up(self, run_id: str, task_id: str, attempt: int) -> None:
        if not self._tell_stale(run_id, task_id, attempt) and self.has_peers:
            self._stale.append((run_id, task_id, attempt))
            self._wake.set()

    def _tell_stale(self, run_id: str, task_id: str, attempt: int) -> bool:
        """Tell the session here that has the attempt, if one does."""
        for session in self.sessions.values():
            held = session.find(run_id, task_id)
            if held is not None and held.kind is TaskKind.ACTIVITY and attempt in (0, held.attempt):
                session.cancel(held, CANCELLATION_REASON_STALE)
                return True
        return False

    def _wait(self, namespace: str, task: Task, now_ms: int) -> None:
        key = (namespace, task.queue, task.kind, task.type)
        if task.due_ms <= now_ms:
            self._note_backlog(key)
        elif task.due_ms <= now_ms + SOON_MS:
            heapq.heappush(self._due, (task.due_ms, key))
            self._wake.set()

    def _add_backlog(self, key: TypeKey) -> None:
        self._backlog[key] = self._backlog.get(key, 0) + 1

    def _note_backlog(self, key: TypeKey) -> None:
        serving = self._by_type.get(key)
        if serving:
            self._add_backlog(key)
            if any(session.takes(key[2]) for session in serving):
                self._wake.set()
        if self.has_peers and not (serving and any(s.takes(key[2]) for s in serving)):
            self._unserved.add(key)
            self._wake.set()

    # Handing out --------------------------------------------------------------------------------------------------

    def _hand_out(self, session: Session, run: Run, task: Task, leased_ms: int) -> None:
        token = self._token(run.namespace, run.run_id, task)
        if token in session.in_hand or token in session.reported:
            session.free[task.kind] += 1
            return  # sent already, since it was found to be leased
        held = self._held(session, run.namespace, run.run_id, task, leased_ms)
        if task.kind is TaskKind.ACTIVITY:
            self._send_activity(session, held, run.workflow_id, run.workflow_type, task, None)
        else:
            self._send_workflow(session, held, run, task)

    def _held(self, session: Session, namespace: str, run_id: str, task: Task, leased_ms: int) -> InHand:
        token = self._token(namespace, run_id, task)
        held = InHand(token, run_id, task.task_id, task.attempt, task.kind, leased_ms)
        session.take(held)
        return held

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

    async def _send_history(self, session: Session, held: InHand, run: Run, task: Task) -> None:
        """All of it, read as fast as the worker takes it."""
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
                self.disconnect(session, error)  # so that the worker drops what it has of it
            else:
                session.put_down(held.token)
                self.uncertain()
        except Exception:
            # Nobody can run it as it is: it times out, again and again, in sight, and disturbs nobody else.
            _log.exception("history cannot be read", run_id=held.run_id)
            session.put_down(held.token)
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

    def resume(self, session: Session, row: Claimed, *, running: bool) -> InHand:
        """After a reconnect: a task that the session had. `running`: the worker still has it; else send it again."""
        held = self._held(session, row.namespace, row.run_id, row.task, row.task.leased_ms)
        session.free[row.task.kind] -= 1
        if not running:
            self._send_claimed(session, held, row)
        return held

    def _send_claimed(self, session: Session, held: InHand, row: Claimed) -> None:
        if row.task.kind is TaskKind.ACTIVITY:
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

    # Claiming -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Claim whenever something may wait for a free slot, and every second in any case. Until cancelled."""
        polled_at = 0.0
        loop = asyncio.get_running_loop()
        while True:
            await self._until_something_to_do()
            self._wake.clear()
            try:
                if self._doubts and self._doubts[0] <= loop.time():
                    await self._reconcile()
                if loop.time() - polled_at >= POLL_S:
                    polled_at = loop.time()
                    await self._claim(self._by_type)
                    await self._push_cancellations(everywhere=True)
                await self._claim(self._backlog)
                await self._push_cancellations()
                await self._tell_peers()
            except StoreUnavailable as error:
                _log.warning("database unavailable", error=str(error))
                await asyncio.sleep(POLL_S / 2)

    def _spawn(self, sending: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(sending)
        self._sendings.add(task)
        task.add_done_callback(self._sendings.discard)

    async def _until_something_to_do(self) -> None:
        timeout = POLL_S
        if self._due:
            timeout = min(timeout, max((self._due[0][0] - self._clock.latest_ms()) / 1000, 0))
        try:
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        except TimeoutError:
            pass
        now_ms = self._clock.latest_ms()
        while self._due and self._due[0][0] <= now_ms:
            self._note_backlog(heapq.heappop(self._due)[1])

    async def _claim(self, keys: Iterable[TypeKey]) -> None:
        """Fill free slots with waiting tasks of these types, until no slot is free or nothing waits."""
        while not self.stopped:
            noted = dict(self._backlog)
            wants = self._wants(list(keys))
            if not wants:
                return
            got: dict[tuple[TypeKey, str], int] = defaultdict(int)
            try:
                claimed = await self._store.claim(wants, self._clock.latest_ms())
            except StoreUnavailable:
                self._settle(wants, got, noted={})
                self.uncertain()
                raise
            too_late = []
            for row in claimed:
                key = (row.namespace, row.task.queue, row.task.kind, row.task.type)
                got[key, row.session_id] += 1
                session = self.sessions.get(row.session_id)
                if session is None or session.epoch != row.task.owner_epoch:
                    # It left meanwhile, or came back and may have found it by itself, under its new epoch.
                    owner, epoch = row.session_id, row.task.owner_epoch
                    too_late.append(LeasedRow(row.run_id, row.task.task_id, row.task.attempt, owner, epoch))
                    continue
                if self.token(row) in session.in_hand:
                    session.free[row.task.kind] += 1
                    continue  # sent already, since it was found to be leased
                held = self._held(session, row.namespace, row.run_id, row.task, row.task.leased_ms)
                self._send_claimed(session, held, row)
            self._settle(wants, got, noted)
            await self.give_back(too_late)
            if len(claimed) < sum(want.slots for want in wants):
                return

    def _wants(self, keys: list[TypeKey]) -> list[Want]:
        """Share each session's free slots among those of its types. The slots are reserved by this."""
        keys_of: dict[tuple[str, TaskKind], list[TypeKey]] = defaultdict(list)
        for key in keys:
            for session in self._by_type.get(key, ()):
                if session.takes(key[2]):
                    keys_of[session.session_id, key[2]].append(key)
        wants = []
        for (session_id, kind), wanted in keys_of.items():
            session = self.sessions[session_id]
            for position, key in enumerate(wanted):
                slots = -(-session.free[kind] // (len(wanted) - position))
                if slots > 0:
                    session.free[kind] -= slots
                    wants.append(Want(key[0], key[1], kind, key[3], slots, session_id, session.epoch))
        return wants

    def _settle(self, wants: list[Want], got: dict[tuple[TypeKey, str], int], noted: dict[TypeKey, int]) -> None:
        """Free the slots that found nothing. If less came than was wanted a type has no backlog any more, unless
        another one was noted meanwhile.
        """
        for want in wants:
            key = (want.namespace, want.queue, want.kind, want.type)
            count = got[key, want.session_id]
            session = self.sessions.get(want.session_id)
            if session is not None and session.epoch == want.epoch:
                session.free[want.kind] += want.slots - count
                session.wake.set()  # if it leaves: nothing is on its way to it any more
            if count < want.slots and noted.get(key) == self._backlog.get(key):
                self._backlog.pop(key, None)
            elif count < want.slots:
                self._wake.set()  # it was noted while the slots were reserved, so nobody looked for it

    def uncertain(self) -> None:
        """The connection broke while leases were being written: some may be stored that nobody was told of."""
        now = asyncio.get_running_loop().time()
        self._doubts = [now + later_s for later_s in DOUBTS_S]
        self._wake.set()

    async def _reconcile(self) -> None:
        """Send what the database says our sessions have, and we never sent."""
        asked_at = asyncio.get_running_loop().time()
        try:
            for session in list(self.sessions.values()):
                await self._reconcile_session(session)
        except StoreUnavailable:
            self.uncertain()
            raise
        self._doubts = [moment for moment in self._doubts if moment > asked_at]

    async def _reconcile_session(self, session: Session) -> None:
        # A task that ended while the database was asked is in the answer, and neither in hand nor reported any more.
        known = session.known = {*session.in_hand, *session.reported}
        try:
            rows = await self._store.leased_tasks(session.session_id, session.epoch)
        finally:
            session.known = None
        for row in rows:
            if not session.closed and self.token(row) not in known:
                self.resume(session, row, running=False)

    # Cancelling, giving back, telling other replicas ----------------------------------------------------------------

    async def _push_cancellations(self, *, everywhere: bool = False) -> None:
        if not self._cancelled and not everywhere:
            return
        run_ids, self._cancelled = self._cancelled, set()
        rows = await self._store.to_cancel(list(self.sessions)) if self.sessions else []
        for row in rows:
            session = self.sessions.get(row.owner)
            held = session.find(row.run_id, row.task_id) if session is not None else None
            if session is not None and held is not None and held.attempt == row.attempt:
                session.cancel(held, CANCELLATION_REASON_REQUESTED)
        if run_ids and self.has_peers:
            await self._store.notify(json.dumps({"cancelled": True}))

    async def return_tasks(self, session: Session, tokens: list[str]) -> None:
        """A worker gives back what it did not begin."""
        rows = [self._row(session, held) for token in tokens if (held := session.put_down(token)) is not None]
        self.freed(session)
        await self.give_back(rows)

    async def give_back(self, rows: list[LeasedRow]) -> None:
        """Tasks that nobody began: others may have them at once."""
        if not rows:
            return
        try:
            await self._store.release(rows, self._clock.latest_ms())
        except StoreUnavailable as error:
            # Their session has them still, and gets them again if it is there.
            _log.warning("tasks not given back", tasks=len(rows), error=str(error))
            self.uncertain()
            return
        self.look_now()

    def _row(self, session: Session, held: InHand) -> LeasedRow:
        return LeasedRow(held.run_id, held.task_id, held.attempt, session.session_id, session.epoch)

    async def _tell_peers(self) -> None:
        if self._unserved:
            keys, self._unserved = sorted(self._unserved), set()
            await self._tell("waiting", keys)
        if self._stale:
            stale, self._stale = self._stale, []
            await self._tell("stale", stale)

    async def _tell(self, what: str, items: Sequence[tuple[object, ...]]) -> None:
        """As many notifications as it takes: each holds less than 8,000 bytes."""
        told: list[str] = []
        room = _NOTIFICATION_BYTES
        for item in map(json.dumps, items):
            if told and len(item) + 2 > room:
                await self._store.notify(f'{{"{what}": [{", ".join(told)}]}}')
                told, room = [], _NOTIFICATION_BYTES
            told.append(item)
            room -= len(item) + 2
        await self._store.notify(f'{{"{what}": [{", ".join(told)}]}}')

    def told(self, payload: str) -> None:
        """Another replica has tasks that wait, or activities that must stop."""
        message = json.loads(payload)
        for namespace, queue, kind, task_type in message.get("waiting", ()):
            key = (namespace, queue, TaskKind(kind), task_type)
            if key in self._by_type:
                self._add_backlog(key)
        for run_id, task_id, attempt in message.get("stale", ()):
            self._tell_stale(run_id, task_id, attempt)
        if message.get("cancelled"):
            self._cancelled.add("")
        self._wake.set()


def _given_up(event: HistoryEvent) -> Iterator[tuple[str, int]]:
    """The attempt that an event ends although its worker did not: it timed out, or was lost."""
    kind = event.WhichOneof("attributes")
    if kind in ("activity_attempt_failed", "activity_failed"):
        activity = getattr(event, kind)
        if activity.failure.source in _NOT_BY_THE_WORKER:
            yield activity_task_id(activity.activity_id), activity.attempt
    elif kind in ("compensation_attempt_failed", "compensation_failed"):
        compensation = getattr(event, kind)
        if compensation.failure.source in _NOT_BY_THE_WORKER:
            yield compensation_task_id(compensation.compensation_id), compensation.attempt
    elif kind == "activity_cancelled" and event.activity_cancelled.outcome_unknown:
        yield activity_task_id(event.activity_cancelled.activity_id), event.activity_cancelled.attempt


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
