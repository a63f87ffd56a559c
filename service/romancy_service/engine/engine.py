"""Engine: gathers triggers, loads runs, decides, commits the whole batch in one round trip. Only it writes history.

While a batch is being committed the next one gathers, so batches grow with load and are of size one when idle. A run is
in one batch at a time; what is decided for it lies in memory only until the commit is confirmed. Nothing is answered
before the commit, nor from a cached run that the database did not confirm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from romancy_service.clock import Clock
from romancy_service.core.decide import Reply
from romancy_service.core.limits import Limits
from romancy_service.core.run import Run
from romancy_service.core.triggers import StartRun, Terminate, Trigger
from romancy_service.engine.cache import RunCache
from romancy_service.engine.committing import Committing, Outlet
from romancy_service.engine.drafting import Drafting
from romancy_service.engine.gathering import Gathering
from romancy_service.errors import InternalError, StoreUnavailable
from romancy_service.store.store import Store
from romancy_service.submission import Recorded, RequestKey, Submission

_log = structlog.get_logger("romancy.engine")


class Engine:
    """Carries triggers to their commit. Every submission is durable when its future resolves, or did not happen."""

    def __init__(self, store: Store, clock: Clock, limits: Limits, outlet: Outlet) -> None:
        self._lanes = store.lanes
        self._cache = RunCache(limits.cached_bytes)
        self._gathering = Gathering()
        self._drafting = Drafting(store, clock, limits, self._cache, self._gathering)
        self._committing = Committing(store, clock, limits, outlet, self._cache, self._gathering)

    @property
    def commits(self) -> int:
        """Runs written, counted over all batches."""
        return self._committing.commits

    def observe(self, observer: Callable[[Run], None]) -> None:
        """Have `observer` called with each run that was written, before its `new_events` are emptied."""
        self._committing.observers.append(observer)

    def doubt(self, doubter: Callable[[], None]) -> None:
        """Have `doubter` called whenever runs may have been written that no observer was told of."""
        self._committing.doubters.append(doubter)

    def submit(
        self, run_id: str, trigger: Trigger, request: RequestKey | None = None
    ) -> asyncio.Future[Reply | Recorded]:
        """Have `trigger` decided on the run and committed.

        The future fails with a RomancyError: WorkflowNotFound, StaleTask, WorkflowClosed, InvalidField, ...
        """
        return self._add(Submission(run_id, trigger, asyncio.get_running_loop().create_future(), request))

    def start(self, run: Run, trigger: StartRun, request: RequestKey | None) -> asyncio.Future[Reply | Recorded]:
        """Open `run`, of which only the ids are set. Fails with BatchRejected if its workflow id has an open run."""
        future = asyncio.get_running_loop().create_future()
        return self._add(Submission(run.run_id, trigger, future, request, new_run=run))

    def replace(
        self, run_id: str, trigger: Terminate, run: Run, start: StartRun, request: RequestKey
    ) -> asyncio.Future[Reply | Recorded]:
        """Close one run of a workflow id and open the next, in one transaction."""
        future = asyncio.get_running_loop().create_future()
        return self._add(Submission(run_id, trigger, future, request, successor=(run, start)))

    def _add(self, submission: Submission) -> asyncio.Future[Reply | Recorded]:
        self._gathering.add(submission)
        return submission.future

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return self._gathering.idle

    async def drained(self) -> None:
        """Wait until nothing is under way."""
        await self._gathering.drained()

    def cached(self, run_id: str) -> Run | None:
        """The run as this replica committed or read it last; another replica may have changed it since."""
        return None if self._gathering.is_busy(run_id) else self._cache.get(run_id)

    def held(self, run_id: str) -> Run | None:
        """The run if it is in memory, perhaps with changes that are being committed."""
        return self._cache.get(run_id)

    def open_runs(self) -> list[Run]:
        """The runs in memory."""
        return self._cache.runs()

    async def run(self) -> None:
        """Commit batches until cancelled."""
        async with asyncio.TaskGroup() as lanes:
            for _ in range(self._lanes):
                lanes.create_task(self._lane())

    async def _lane(self) -> None:
        while True:
            batch = await self._gathering.take()
            try:
                await self._committing.commit(await self._drafting.drafts(batch))
            except StoreUnavailable as error:
                # What a commit meets is seen to there; so nothing was to be written.
                await self._gathering.again_later([s for submissions in batch.values() for s in submissions], error)
            except Exception as error:
                # A bug; what was submitted must not wait for ever, and the next batch must not pay for it.
                _log.exception("batch failed", runs=len(batch))
                for submission in (s for submissions in batch.values() for s in submissions):
                    submission.fail(InternalError(f"{type(error).__name__} in the engine; the log says more"))
            finally:
                self._gathering.release(batch)
