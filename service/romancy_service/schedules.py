"""Schedules: makes their starts when they are due, and carries out what people change about them.

It does not matter how many replicas find that a start is due, or how often: what waits is stored first, each start is
tried with a request id of its own, and a schedule is written only if it is still what was read.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final, TypeAlias

import structlog

from romancy.v1.schedule_pb2 import ScheduledRun, ScheduledStart
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_CONTINUED, WorkflowOutcome
from romancy.v1.workflow_service_pb2 import StartWorkflowRequest

from romancy_service import faults
from romancy_service.clock import Clock
from romancy_service.core import schedule as core
from romancy_service.core.own import own_request_id
from romancy_service.core.schedule import RunStatus, ScheduleRecord, Step
from romancy_service.core.task import NEVER_MS
from romancy_service.core.triggers import RequestCancel, Terminate
from romancy_service.engine import Engine
from romancy_service.errors import (
    BatchRejected,
    InternalError,
    InvalidField,
    RequestIdReused,
    RomancyError,
    ScheduleExists,
    ScheduleNotFound,
    StoreUnavailable,
    TooMuchContention,
    WorkflowAlreadyOpen,
    WorkflowClosed,
    WorkflowNotFound,
)
from romancy_service.results import Results
from romancy_service.starter import Starter
from romancy_service.store.store import Request, Store
from romancy_service.submission import RequestKey

_log = structlog.get_logger("romancy.schedules")

HORIZON_MS: Final = 3_000
"""What is due within this is held in memory, so that it starts to the millisecond."""
RETRY_S: Final = 1.0
"""So long at most is waited when the database is away, or the time is not known well enough."""
BATCH: Final = 500
AT_ONCE: Final = 8
"""So many schedules are carried at a time: each takes some statements on the connections that lookups use."""
_STEPS: Final = 12
"""So many steps are made for one schedule before it is another one's turn: more than the starts that may wait need."""
_TRIES: Final = 20
"""So often may a schedule change between our look and our write. Each time somebody else made progress."""
_CLASH_S: Final = 0.005
"""By so much more, on average by half of it, is each further try put off."""
_PUT_OFF_MS: Final = 30_000
"""A schedule that the service cannot carry because of a mistake of its own is tried again after this."""

Key: TypeAlias = tuple[str, str]
"""Namespace and schedule id."""
Outcome: TypeAlias = tuple[ScheduledStart, Callable[[ScheduleRecord], None]]
"""A start that was tried, and what notes its outcome."""


class Schedules:
    """Carries schedules."""

    def __init__(self, store: Store, clock: Clock, engine: Engine, results: Results) -> None:
        self._store = store
        self._clock = clock
        self._engine = engine
        self._results = results
        self._starter = Starter(engine, store)
        self._soon: dict[Key, int] = {}
        """When those that are due soon must be looked at."""
        self._followed: set[str] = set()
        """Ids of the runs whose end is waited for here."""
        self._wake = asyncio.Event()
        self._looking = asyncio.Lock()
        self._look_whole = True
        self.part = 0
        self.parts = 1
        """Which share of all schedules is this replica's to look at first."""

    # When to look -------------------------------------------------------------------------------------------------

    def look_at(self, key: Key) -> None:
        """Something about the schedule is new: look at it at once."""
        self._soon[key] = 0
        self._wake.set()

    def look_now(self) -> None:
        """Schedules are due soon, or now: ask the database which."""
        self._look_whole = True
        self._wake.set()

    async def next_ms(self) -> int:
        """When any schedule starts something next."""
        return await self._store.next_schedule_ms(self._clock.now_ms())

    @property
    def idle(self) -> bool:
        """Whether nothing is under way or due that is known here."""
        now_ms = self._clock.earliest_ms()
        return not self._looking.locked() and all(look_ms > now_ms for look_ms in self._soon.values())

    async def run(self) -> None:
        """Look at what is due, until cancelled."""
        while True:
            await self._sleep()
            try:
                if self._clock.certain():
                    whole, self._look_whole = self._look_whole, False
                    await self.look(whole=whole)
                else:
                    await asyncio.sleep(RETRY_S / 10)
            except StoreUnavailable as error:
                _log.warning("database unavailable", error=str(error))
                self._look_whole = True
                await asyncio.sleep(random.uniform(0.2, RETRY_S))

    async def _sleep(self) -> None:
        timeout = None
        if self._soon:
            timeout = max((min(self._soon.values()) - self._clock.earliest_ms()) / 1000, 0)
        if self._look_whole:
            timeout = 0
        self._wake.clear()
        try:
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def look(self, *, whole: bool) -> None:
        """Carry every schedule that is due; `whole`: ask the database which are."""
        async with self._looking:
            while True:
                found = await self._find() if whole else 0
                now_ms = self._clock.earliest_ms()
                due = [key for key, look_ms in self._soon.items() if look_ms <= now_ms]
                await self._carry_all(due)
                if found < BATCH or not due:
                    return

    async def _find(self) -> int:
        now_ms = self._clock.earliest_ms()
        found = await self._store.schedules_to_look_at(now_ms, HORIZON_MS, BATCH, self.part, self.parts)
        for namespace, schedule_id, look_ms in found:
            self._soon.setdefault((namespace, schedule_id), look_ms)
        return len(found)

    async def _carry_all(self, keys: Iterable[Key]) -> None:
        places = asyncio.Semaphore(AT_ONCE)

        async def carry(key: Key) -> None:
            async with places:
                # First, so that what becomes new meanwhile is looked at again.
                self._soon.pop(key, None)
                look_ms = await self._carry_safely(key)
                if look_ms <= self._clock.earliest_ms() + HORIZON_MS:
                    self._soon.setdefault(key, look_ms)

        for outcome in await asyncio.gather(*map(carry, keys), return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _carry_safely(self, key: Key) -> int:
        try:
            return await self._carry(key)
        except StoreUnavailable:
            self._soon[key] = 0
            raise
        except Exception as error:  # a bug, or a schedule that is contended for: the others must go on
            _log.error("schedule not carried", namespace=key[0], schedule_id=key[1], exc_info=error)
            self._soon[key] = self._clock.earliest_ms() + _PUT_OFF_MS
            return NEVER_MS

    # Starting -----------------------------------------------------------------------------------------------------

    async def _carry(self, key: Key) -> int:
        """Do all that is to be done for one schedule now. Returns when it must be looked at again."""
        record = await self._store.get_schedule(*key)
        for _ in range(_STEPS):
            if record is None:
                return NEVER_MS
            before = record.state.SerializeToString()
            core.see_runs(record, await self._statuses(record))
            core.take_due(record, self._clock.earliest_ms())
            step = core.judge(record)
            if record.state.SerializeToString() != before and not await self._save(record):
                record = await self._store.get_schedule(*key)
            elif step.starts:
                record = await self._note(key, record, await self._make(record, step))
            else:
                if step:
                    await self._make(record, step)  # the end of the open runs has the schedule looked at again
                break
        if record is None:
            return NEVER_MS
        self._follow(key, record)
        now_ms = self._clock.earliest_ms()
        if record.look_ms <= now_ms or core.look_ms(record, now_ms) < record.look_ms:
            await self._save(record)
        return record.look_ms

    async def _note(self, key: Key, read: ScheduleRecord, outcomes: Sequence[Outcome]) -> ScheduleRecord | None:
        """Store what became of starts. That is so whatever was changed meanwhile, a pause for example."""
        record: ScheduleRecord | None = read
        while record is not None:
            for start, note in outcomes:
                if core.waits(record, start):
                    note(record)
            if await self._save(record):
                return record
            record = await self._store.get_schedule(*key)
        return None

    async def _save(self, record: ScheduleRecord) -> bool:
        faults.point("schedule.before")
        now_ms = self._clock.earliest_ms()
        core.plan(record, now_ms)
        saved = await self._store.save_schedule(record, None, now_ms)
        faults.point("schedule.after")
        return saved

    def _follow(self, key: Key, record: ScheduleRecord) -> None:
        """Have the schedule looked at when its runs end, if something depends on that."""
        if not core.follows(record):
            return
        for run_id in {run.run_id for run in record.state.running} - self._followed:
            self._followed.add(run_id)
            self._results.wait(run_id, partial(self._ended, key, run_id))
            self.look_at(key)  # once more: it may have ended meanwhile

    def _ended(self, key: Key, run_id: str, _: WorkflowOutcome) -> None:
        self._followed.discard(run_id)
        self.look_at(key)

    async def _statuses(self, record: ScheduleRecord) -> dict[str, RunStatus]:
        """By run id: what became of the runs; of those that were continued, what became of the run that goes on."""
        running = record.state.running
        if not running:
            return {}
        found = await self._store.run_statuses(record.namespace, [run.run_id for run in running])
        statuses = {run_id: RunStatus(run_id, status) for run_id, status in found.items()}
        continued = [run for run in running if found.get(run.run_id) == WORKFLOW_STATUS_CONTINUED]
        if continued:
            latest = await self._store.latest([(record.namespace, run.workflow_id) for run in continued])
            for run in continued:
                if (last := latest.get((record.namespace, run.workflow_id))) is not None:
                    statuses[run.run_id] = RunStatus(*last)
        return statuses

    async def _make(self, record: ScheduleRecord, step: Step) -> list[Outcome]:
        """End the open runs, if that is to be done, and start what is to be started."""
        if step.cancel or step.terminate:
            await asyncio.gather(*(self._end(record, run, step) for run in record.state.running))
        workflow_ids = [core.workflow_id(record, start) for start in step.starts]
        starting = (self._start(record, *each) for each in zip(step.starts, workflow_ids, strict=True))
        runs = await asyncio.gather(*starting, return_exceptions=True)
        faults.point("schedule.started")
        outcomes: list[Outcome] = []
        now_ms = self._clock.now_ms()
        for start, workflow_id, run_id in zip(step.starts, workflow_ids, runs, strict=True):
            if isinstance(run_id, str):
                note = partial(core.made, start=start, workflow_id=workflow_id, run_id=run_id, now_ms=now_ms)
            elif isinstance(run_id, WorkflowAlreadyOpen):
                note = partial(core.left_out, start=start)
            elif isinstance(run_id, InvalidField | InternalError | RequestIdReused):
                _log.error("start refused", schedule_id=record.schedule_id, error=str(run_id))
                note = partial(core.failed, start=start, workflow_id=workflow_id, error=str(run_id), now_ms=now_ms)
            else:
                raise run_id
            outcomes.append((start, note))
        return outcomes

    async def _start(self, record: ScheduleRecord, start: ScheduledStart, workflow_id: str) -> str:
        request = StartWorkflowRequest(
            namespace=record.namespace,
            workflow_id=workflow_id,
            spec=record.schedule.action.workflow,
            request_id=start.request_id,
        )
        request.spec.attributes["romancy.schedule_id"].text = record.schedule_id
        request.spec.attributes["romancy.scheduled_time"].time.CopyFrom(start.scheduled_time)
        return (await self._starter.start(record.namespace, request, _identity(record))).run_id

    async def _end(self, record: ScheduleRecord, run: ScheduledRun, step: Step) -> None:
        reason = f"schedule {record.schedule_id} starts its next run"
        trigger = (Terminate if step.terminate else RequestCancel)(reason, _identity(record))
        request_id = own_request_id("schedule", record.uid, type(trigger).__name__, run.run_id)
        key = RequestKey(record.namespace, request_id, type(trigger).__name__, lambda _: b"")
        try:
            await self._engine.submit(run.run_id, trigger, key)
        except (WorkflowClosed, WorkflowNotFound):
            pass

    # What people ask and change ----------------------------------------------------------------------------------

    async def look_up(self, key: Key) -> ScheduleRecord:
        """The schedule as it stands, with the runs that are open now. Raises ScheduleNotFound."""
        record = await self._store.get_schedule(*key)
        if record is None:
            raise ScheduleNotFound(key[1])
        core.see_runs(record, await self._statuses(record))
        return record

    async def create(self, record: ScheduleRecord, request: Request) -> None:
        """Keep a new schedule, and that `request` was carried out. Raises ScheduleExists, also if that was before."""
        now_ms = self._clock.earliest_ms()
        core.plan(record, now_ms)
        faults.point("change.before")
        try:
            await self._store.create_schedule(record, request, now_ms)
        except BatchRejected as error:
            if not error.conflict:
                raise
            raise ScheduleExists(record.schedule_id) from error
        faults.point("change.after")
        self.look_at((record.namespace, record.schedule_id))

    async def change(
        self, key: Key, change: Callable[[ScheduleRecord, int], Request], *, delete: bool = False
    ) -> Request:
        """Change the schedule, or forget it. `change` makes the change and returns what is recorded as carried out.

        Raises ScheduleNotFound, what `change` raises, and TooMuchContention, also if it was carried out before.
        """
        for tries in range(_TRIES):
            # Several who change it at once let each other through.
            await asyncio.sleep(random.uniform(0, tries * _CLASH_S))
            record = await self._store.get_schedule(*key)
            if record is None:
                raise ScheduleNotFound(key[1])
            now_ms = self._clock.earliest_ms()
            request = change(record, now_ms)
            core.plan(record, now_ms)
            write = self._store.delete_schedule if delete else self._store.save_schedule
            faults.point("change.before")
            try:
                if await write(record, request, now_ms):
                    faults.point("change.after")
                    self.look_at(key)
                    return request
            except BatchRejected as error:
                if not error.conflict:
                    raise
                raise TooMuchContention(key[1]) from error
        raise TooMuchContention(key[1])

    async def settle(self, key: Key) -> None:
        """Do now what is to be done for the schedule; if that cannot be, it is done later."""
        try:
            await self._carry(key)
        except RomancyError as error:
            _log.info("schedule not carried at once", schedule_id=key[1], error=str(error))


def _identity(record: ScheduleRecord) -> str:
    return f"schedule {record.schedule_id}"
