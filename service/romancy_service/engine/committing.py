"""Committing: writes a batch of drafts in one round trip, then tells whoever waits for what is stored now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from romancy_service.clock import Clock
from romancy_service.core.decide import Reply
from romancy_service.core.limits import Limits
from romancy_service.core.run import Run
from romancy_service.core.task import Task, TaskKind
from romancy_service.core.why.whole import is_long
from romancy_service.engine.cache import RunCache
from romancy_service.engine.draft import Draft
from romancy_service.engine.gathering import Gathering
from romancy_service.errors import BatchRejected, InternalError, StoreUnavailable
from romancy_service.store.store import CommitResult, Lease, Store
from romancy_service.submission import Submission

_log = structlog.get_logger("romancy.engine")


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


class Committing:
    """A draft is stored and published, or was not and is put back."""

    def __init__(
        self, store: Store, clock: Clock, limits: Limits, outlet: Outlet, cache: RunCache, gathering: Gathering
    ) -> None:
        self._store = store
        self._clock = clock
        self._limits = limits
        self._outlet = outlet
        self._cache = cache
        self._gathering = gathering
        self.observers: list[Callable[[Run], None]] = []
        self.doubters: list[Callable[[], None]] = []
        self.commits = 0
        """Runs written, counted over all batches."""

    async def commit(self, drafts: Sequence[Draft]) -> None:
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
            for doubter in self.doubters:
                doubter()
            await self._gathering.again_later([s for draft in drafts for s in draft.submissions], error)
        except BatchRejected as error:
            for each in every:
                self._withdraw(each)
            if len(drafts) > 1:
                await self._commit_in_halves(drafts)
            else:
                self._reject(drafts[0], error)
        except BaseException:
            for each in every:
                self._drop(each)
            raise
        else:
            for draft in drafts:
                self._finish(draft, result)

    async def _commit_in_halves(self, drafts: Sequence[Draft]) -> None:
        middle = len(drafts) // 2
        try:
            await self.commit(drafts[:middle])
        except BaseException:
            # The other half is not tried: what was decided for it must not stay in memory as if it were stored.
            for draft in drafts[middle:]:
                for each in draft.both():
                    self._drop(each)
            raise
        await self.commit(drafts[middle:])

    def _reject(self, draft: Draft, error: BatchRejected) -> None:
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
        self._gathering.again(submissions)

    def _again_or_conflict(self, submissions: list[Submission], error: BatchRejected) -> None:
        refused = [s for s in submissions if s.new_run is not None and s.tries > 0]
        for submission in refused:
            submission.fail(error)
        self._gathering.again([s for s in submissions if s not in refused])

    def _finish(self, draft: Draft, result: CommitResult) -> None:
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

    def _publish(self, draft: Draft, result: CommitResult) -> None:
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
            _warn_of_length(run, self._limits)
            self.commits += 1
            for observer in self.observers:
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
            if task.kind <= TaskKind.ACTIVITY and task.due_ms <= now_ms and not task.cancel_requested:
                lease = self._outlet.offer(run, task)
                if lease is not None:
                    leases[task_id] = lease
        return leases

    def _withdraw(self, draft: Draft) -> None:
        for task_id, lease in draft.change.leases.items():
            self._outlet.withdraw(draft.run.tasks[task_id], lease)
        draft.change.leases = {}

    def _drop(self, draft: Draft) -> None:
        self._withdraw(draft)
        self._cache.drop(draft.run.run_id)


def _warn_of_length(run: Run, limits: Limits) -> None:
    """One line, by whoever made the history long."""
    if not is_long(run, limits) or not run.is_open:
        return
    events_before = run.last_event_id - len(run.new_events)
    bytes_before = run.history_bytes - sum(event.ByteSize() for event in run.new_events)
    if events_before < limits.history_warn_events and bytes_before < limits.history_warn_bytes:
        _log.warning(
            "the history is long; let the workflow recur, or it will be ended",
            workflow_id=run.workflow_id,
            run_id=run.run_id,
            workflow_type=run.workflow_type,
            events=run.last_event_id,
            bytes=run.history_bytes,
            most_events=limits.history_events,
            most_bytes=limits.history_bytes,
        )
