"""Engine: gathers triggers, loads runs, decides, commits the whole batch in one round trip. Only it writes history.

While a batch is being committed the next one gathers, so batches grow with load and are of size one when idle. A run is
in one batch at a time; what is decided for it lies in memory only until the commit is confirmed. Nothing is answered
before the commit, nor from a cached run that the database did not confirm.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from romancy_service.cache import RunCache
from romancy_service.clock import Clock
from romancy_service.core.apply import CorruptHistory
from romancy_service.core.decide import Reply, decide
from romancy_service.core.limits import Limits
from romancy_service.core.rollback import NeedsHistory
from romancy_service.core.run import Run
from romancy_service.core.task import Fence, Task, TaskKind
from romancy_service.core.triggers import StartRun, Terminate, Trigger
from romancy_service.errors import (
    BatchRejected,
    InternalError,
    RomancyError,
    StaleTask,
    StoreUnavailable,
    TooMuchContention,
    WorkflowNotFound,
)
from romancy_service.ledger import read_saga
from romancy_service.store.store import Change, CommitResult, Lease, Request, Store
from romancy_service.submission import Recorded, RequestKey, Submission

_log = structlog.get_logger("romancy.engine")

BATCH_RUNS: Final = 128
"""So many runs go into one commit at most: beyond, a transition gets no cheaper and a lone one waits longer."""
MAX_TRIES: Final = 50
"""So often is a trigger decided again because its run changed meanwhile. Each time somebody else made progress."""


class Outlet(Protocol):
    """Where tasks go. The engine asks before the commit who takes a task, and hands it over after."""

    def offer(self, run: Run, task: Task) -> Lease | None:
        """A session with a free slot, which is reserved by this; None: the task waits in the database."""
        ...

    def withdraw(self, task: Task, lease: Lease) -> None:
        """Nothing came of an offer."""
        ...

    def uncertain(self) -> None:
        """Leases may have been stored although the commit's answer never came."""
        ...

    def committed(self, run: Run, leases: dict[str, Lease]) -> None:
        """The run's changes are stored, its tasks with these leases. Called before `run.new_events` is emptied."""
        ...


@dataclass(slots=True)
class _Draft:
    """One run of a batch, decided and not committed yet."""

    run: Run
    change: Change
    decided: list[tuple[Submission, Reply | RomancyError]] = field(default_factory=list)
    successor: _Draft | None = None
    """Written together with this one, or not at all."""

    @property
    def submissions(self) -> list[Submission]:
        return [submission for submission, _ in self.decided]

    def both(self) -> Iterator[_Draft]:
        yield self
        if self.successor is not None:
            yield self.successor


class Engine:
    """Carries triggers to their commit. Every submission is durable when its future resolves, or did not happen."""

    def __init__(self, store: Store, clock: Clock, limits: Limits, outlet: Outlet) -> None:
        self._store = store
        self._clock = clock
        self._limits = limits
        self._outlet = outlet
        self._observers: list[Callable[[Run], None]] = []
        self._doubters: list[Callable[[], None]] = []
        self._cache = RunCache(limits.cached_bytes)
        self._waiting: OrderedDict[str, list[Submission]] = OrderedDict()
        self._parked: dict[str, list[Submission]] = {}
        """Submissions for runs that are in a batch right now; every busy run has an entry."""
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.commits = 0
        """Runs written, counted over all batches."""

    def observe(self, observer: Callable[[Run], None]) -> None:
        """Have `observer` called with each run that was written, before its `new_events` are emptied."""
        self._observers.append(observer)

    def doubt(self, doubter: Callable[[], None]) -> None:
        """Have `doubter` called whenever runs may have been written that no observer was told of."""
        self._doubters.append(doubter)

    def submit(
        self, run_id: str, trigger: Trigger, request: RequestKey | None = None
    ) -> asyncio.Future[Reply | Recorded]:
        """Have `trigger` decided on the run and committed.

        The future fails with a RomancyError: WorkflowNotFound, StaleTask, WorkflowClosed, InvalidField, ...
        """
        return self._enqueue(Submission(run_id, trigger, asyncio.get_running_loop().create_future(), request))

    def start(self, run: Run, trigger: StartRun, request: RequestKey | None) -> asyncio.Future[Reply | Recorded]:
        """Open `run`, of which only the ids are set. Fails with BatchRejected if its workflow id has an open run."""
        future = asyncio.get_running_loop().create_future()
        return self._enqueue(Submission(run.run_id, trigger, future, request, new_run=run))

    def replace(
        self, run_id: str, trigger: Terminate, run: Run, start: StartRun, request: RequestKey
    ) -> asyncio.Future[Reply | Recorded]:
        """Close one run of a workflow id and open the next, in one transaction."""
        future = asyncio.get_running_loop().create_future()
        return self._enqueue(Submission(run_id, trigger, future, request, successor=(run, start)))

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return self._idle.is_set()

    async def drained(self) -> None:
        """Wait until nothing is under way."""
        await self._idle.wait()

    async def run(self) -> None:
        """Commit batches until cancelled."""
        async with asyncio.TaskGroup() as lanes:
            for _ in range(self._store.lanes):
                lanes.create_task(self._lane())

    def cached(self, run_id: str) -> Run | None:
        """The run as this replica committed or read it last; another replica may have changed it since."""
        return None if run_id in self._parked else self._cache.get(run_id)

    def held(self, run_id: str) -> Run | None:
        """The run if it is in memory, perhaps with changes that are being committed."""
        return self._cache.get(run_id)

    def open_runs(self) -> list[Run]:
        """The runs in memory."""
        return self._cache.runs()

    # Gathering ----------------------------------------------------------------------------------------------------

    def _enqueue(self, submission: Submission) -> asyncio.Future[Reply | Recorded]:
        run_id = submission.run_id
        if run_id in self._parked:
            self._parked[run_id].append(submission)
        else:
            self._waiting.setdefault(run_id, []).append(submission)
            self._arrived.set()
        self._idle.clear()
        return submission.future

    async def _lane(self) -> None:
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
                # Whatever the event loop has ready in this round joins the batch.
                await asyncio.sleep(0)
            batch: dict[str, list[Submission]] = {}
            while self._waiting and len(batch) < BATCH_RUNS:
                run_id, submissions = self._waiting.popitem(last=False)
                batch[run_id] = submissions
                self._parked[run_id] = []
            try:
                await self._carry(batch)
            except Exception as error:
                # A bug; what was submitted must not wait for ever, and the next batch must not pay for it.
                _log.exception("batch failed", runs=len(batch))
                for submission in (s for submissions in batch.values() for s in submissions):
                    submission.fail(InternalError(f"{type(error).__name__} in the engine; the log says more"))
            finally:
                self._unpark(batch)

    def _unpark(self, run_ids: Iterable[str]) -> None:
        for run_id in run_ids:
            if parked := self._parked.pop(run_id, None):
                self._waiting.setdefault(run_id, []).extend(parked)
        if self._waiting:
            self._arrived.set()
        elif not self._parked:
            self._idle.set()

    def _again(self, submissions: Iterable[Submission]) -> None:
        """Decide on the run anew: it changed meanwhile, or nobody knows what became of the commit."""
        by_run: dict[str, list[Submission]] = {}
        for submission in submissions:
            submission.tries += 1
            submission.fresh = True
            if submission.tries > MAX_TRIES:
                submission.fail(TooMuchContention(submission.run_id))
            elif not submission.future.done():
                by_run.setdefault(submission.run_id, []).append(submission)
        for run_id, again in by_run.items():
            self._parked[run_id][:0] = again

    # Deciding -----------------------------------------------------------------------------------------------------

    async def _carry(self, batch: dict[str, list[Submission]]) -> None:
        try:
            await self._answer_recorded(batch)
            runs = await self._load(batch)
        except StoreUnavailable as error:
            await self._wait_for_store(error, [s for submissions in batch.values() for s in submissions])
            return
        drafts = []
        for run_id, submissions in batch.items():
            if submissions and (draft := self._draft(run_id, runs.get(run_id), submissions)) is not None:
                drafts.append(draft)
        await self._commit(drafts)

    async def _answer_recorded(self, batch: dict[str, list[Submission]]) -> None:
        """Answer what was carried out by an earlier try, ours or the client's, from what it left."""
        repeated: dict[tuple[str, str], list[Submission]] = {}
        for submission in (s for submissions in batch.values() for s in submissions):
            if submission.fresh and submission.request is not None:
                key = (submission.request.namespace, submission.request.request_id)
                repeated.setdefault(key, []).append(submission)
        if not repeated:
            return
        for key, request in (await self._store.find_requests(list(repeated))).items():
            for submission in repeated[key]:
                submission.resolve(Recorded(request.method, request.run_id, request.reply))
                batch[submission.run_id].remove(submission)

    async def _load(self, batch: dict[str, list[Submission]]) -> dict[str, Run]:
        runs: dict[str, Run] = {}
        missing: list[str] = []
        for run_id, submissions in batch.items():
            if any(s.fresh or s.history for s in submissions):
                self._cache.drop(run_id)
            new = next((s.new_run for s in submissions if s.new_run is not None), None)
            cached = self._cache.get(run_id)
            if new is not None:
                runs[run_id] = new.begin()
            elif cached is not None:
                runs[run_id] = cached
            elif submissions:
                missing.append(run_id)
        if missing:
            runs.update(await self._store.load(missing))
            for run_id in missing:
                for submission in batch[run_id]:
                    # One with a request id is fresh only after a look for its answer, which it may have got before.
                    submission.fresh |= submission.request is None
        for run_id, submissions in batch.items():
            if any(s.history for s in submissions) and run_id in runs:
                await self._fold_saga(runs[run_id], submissions)
        return runs

    async def _fold_saga(self, run: Run, submissions: list[Submission]) -> None:
        try:
            run.saga = await read_saga(run, self._store.history_pages(run.run_id))
        except CorruptHistory as error:
            _log.error("corrupt history", run_id=run.run_id, error=str(error))
            for submission in submissions:
                submission.fail(InternalError(str(error)))
            submissions.clear()

    def _draft(self, run_id: str, run: Run | None, submissions: list[Submission]) -> _Draft | None:
        """Decide what is asked of one run, in order. None: all is answered, nothing is to be written."""
        if run is None:
            for submission in submissions:
                submission.fail(WorkflowNotFound(run_id))
            return None
        if len(submissions) > 1 and submissions[0].alone:
            self._parked[run_id][:0] = submissions[1:]
            submissions = submissions[:1]
        fresh = all(s.fresh for s in submissions)
        draft = _Draft(run, Change(run))
        now_ms = self._clock.latest_ms()
        for position, submission in enumerate(submissions):
            if submission.future.cancelled():
                continue
            if _is_repeated(draft, submission):
                self._again([submission])
                continue
            try:
                if fresh:
                    _check_lease(run, submission.fence)
                reply = decide(run, submission.trigger, now_ms, self._limits)
            except RomancyError as error:
                if submission.request is not None and not submission.fresh:
                    # It may have been carried out before, which is why it cannot be now: look for its answer first.
                    self._again([submission])
                elif fresh and not run.touched and not run.new_events:
                    submission.fail(error)
                else:
                    draft.decided.append((submission, error))
            except NeedsHistory:
                for unlucky in submissions:
                    unlucky.history = True
                self._cache.drop(run_id)
                self._again(submissions)
                return None
            except Exception as error:  # one culprit fails alone, and is named
                _log.exception("decide failed", run_id=run_id, trigger=type(submission.trigger).__name__)
                submission.fail(InternalError(f"{type(error).__name__} while {type(submission.trigger).__name__}"))
                self._cache.drop(run_id)
                self._again([*submissions[:position], *submissions[position + 1 :]])
                return None
            else:
                self._note(draft, submission, reply)
        return draft if draft.decided else None

    def _note(self, draft: _Draft, submission: Submission, reply: Reply) -> None:
        draft.decided.append((submission, reply))
        fence = submission.fence
        # A row that an earlier trigger of the batch brought about is not in the database yet.
        if fence is not None and draft.run.touched.get(fence.task_id, True):
            draft.change.fences.append(fence)
        change = draft.change
        if submission.successor is not None:
            new, start = submission.successor
            draft.successor = successor = _Draft(new.begin(), Change(new, after=draft.run.run_id))
            successor.change.run = successor.run
            decide(successor.run, start, self._clock.latest_ms(), self._limits)
            change = successor.change
        request = submission.request
        if request is not None:
            change.requests.append(
                Request(request.namespace, request.request_id, change.run.run_id, request.method, request.encode(reply))
            )

    # Committing ---------------------------------------------------------------------------------------------------

    async def _commit(self, drafts: Sequence[_Draft]) -> None:
        """Commit the drafts in one round trip; when the batch fails on data, in halves."""
        if not drafts:
            return
        now_ms = self._clock.latest_ms()
        every = [each for draft in drafts for each in draft.both()]
        for each in every:
            each.change.leases = self._offers(each.run, now_ms)
        try:
            result = await self._store.commit([each.change for each in every], now_ms)
        except StoreUnavailable as error:
            for each in every:
                self._drop(each)
            self._outlet.uncertain()
            for doubter in self._doubters:
                doubter()
            await self._wait_for_store(error, [s for draft in drafts for s in draft.submissions])
        except BatchRejected as error:
            for each in every:
                self._withdraw(each)
            if len(drafts) > 1:
                middle = len(drafts) // 2
                await self._commit(drafts[:middle])
                await self._commit(drafts[middle:])
            else:
                self._reject(drafts[0], error)
        except BaseException:
            for each in every:
                self._drop(each)
            raise
        else:
            for draft in drafts:
                self._finish(draft, result)

    def _reject(self, draft: _Draft, error: BatchRejected) -> None:
        self._cache.drop(draft.run.run_id)
        submissions = draft.submissions
        if error.conflict:
            # Somebody else opened the same id, or used the same request id, at the same time: look, and decide again.
            self._again_or_conflict(submissions, error)
            return
        _log.error("refused by the database", run_id=draft.run.run_id, triggers=len(submissions), error=str(error))
        if len(submissions) == 1:
            submissions[0].fail(InternalError(f"the database refused it: {error}"))
            return
        for submission in submissions:
            submission.alone = True
        self._again(submissions)

    def _again_or_conflict(self, submissions: list[Submission], error: BatchRejected) -> None:
        refused = [s for s in submissions if s.new_run is not None and s.tries > 0]
        for submission in refused:
            submission.fail(error)
        self._again([s for s in submissions if s not in refused])

    def _finish(self, draft: _Draft, result: CommitResult) -> None:
        run = draft.run
        if run.run_id not in result.written:
            for each in draft.both():
                self._drop(each)
            error = BatchRejected(f"workflow id {run.workflow_id!r} has an open run", conflict=True)
            self._again_or_conflict(draft.submissions, error)
            return
        for each in draft.both():
            self._publish(each, result)
        for submission, outcome in draft.decided:
            if isinstance(outcome, Reply):
                submission.resolve(outcome)
            else:
                submission.fail(outcome)

    def _publish(self, draft: _Draft, result: CommitResult) -> None:
        """What is stored now goes to whoever waits for it."""
        run = draft.run
        granted = {}
        for task_id, lease in draft.change.leases.items():
            if (run.run_id, task_id) in result.unleased:
                self._outlet.withdraw(run.tasks[task_id], lease)
            else:
                granted[task_id] = lease
        changed = bool(run.new_events or run.touched)
        if changed:
            self.commits += 1
            for observer in self._observers:
                observer(run)
        self._outlet.committed(run, granted)
        if changed:
            run.committed()
        self._cache.put(run)

    def _offers(self, run: Run, now_ms: int) -> dict[str, Lease]:
        leases = {}
        for task_id in run.touched:  # in the order in which the code asked for them
            if task_id not in run.rewritten:
                continue
            task = run.tasks[task_id]
            if task.kind is TaskKind.ACTIVITY and task.attempt > 1:
                continue  # how far the attempt before got is known to the database only, and comes with a claim
            if task.kind <= TaskKind.ACTIVITY and task.due_ms <= now_ms and not task.cancel_requested:
                lease = self._outlet.offer(run, task)
                if lease is not None:
                    leases[task_id] = lease
        return leases

    def _withdraw(self, draft: _Draft) -> None:
        for task_id, lease in draft.change.leases.items():
            self._outlet.withdraw(draft.run.tasks[task_id], lease)
        draft.change.leases = {}

    def _drop(self, draft: _Draft) -> None:
        self._withdraw(draft)
        self._cache.drop(draft.run.run_id)

    async def _wait_for_store(self, error: StoreUnavailable, submissions: list[Submission]) -> None:
        """Nobody knows what became of the commit, and reading would not tell: submit again, the fences decide."""
        _log.warning("database unavailable, trying again", error=str(error), triggers=len(submissions))
        for submission in submissions:
            submission.tries -= 1  # not the run's fault
            submission.outages += 1
        outages = max((submission.outages for submission in submissions), default=0)
        await asyncio.sleep(random.uniform(0.05, min(1.0, 0.1 * 2 ** min(outages, 5))))
        self._again(submissions)


def _check_lease(run: Run, fence: Fence | None) -> None:
    """On a run that was just read: whether the row is still as the trigger knows it."""
    if fence is None or fence.task_id in run.touched:
        return
    task = run.tasks.get(fence.task_id)
    if task is None:
        return
    if (task.owner, task.owner_epoch) != (fence.owner, fence.epoch):
        raise StaleTask(fence.task_id, "it is another worker's now")
    if fence.relay_ms >= 0 and task.relay_ms != fence.relay_ms:
        raise StaleTask(fence.task_id, "it was put off meanwhile")


def _is_repeated(draft: _Draft, submission: Submission) -> bool:
    """Whether the same request is in the draft already: it is answered from what that leaves."""
    request = submission.request
    return request is not None and any(
        (done.namespace, done.request_id) == (request.namespace, request.request_id) for done in draft.change.requests
    )
