"""Drafting: loads the runs of a batch and has decided what is asked of them. Nothing is stored yet."""

from __future__ import annotations

from typing import Final

import structlog

from romancy.v1.workflow_pb2 import WorkflowInfo

from romancy_service.clock import Clock
from romancy_service.core.apply import CorruptHistory
from romancy_service.core.decide import Reply, decide
from romancy_service.core.limits import MIB, Limits
from romancy_service.core.rollback import NeedsHistory
from romancy_service.core.run import Run
from romancy_service.core.task import Fence
from romancy_service.core.triggers import StartRun
from romancy_service.engine.cache import RunCache
from romancy_service.engine.draft import Draft
from romancy_service.engine.gathering import Batch, Gathering
from romancy_service.errors import InternalError, RomancyError, StaleTask, WorkflowNotFound
from romancy_service.ledger import read_saga
from romancy_service.store.store import Change, Request, Store
from romancy_service.submission import Recorded, Submission

_log = structlog.get_logger("romancy.engine")

BATCH_BYTES: Final = 4 * MIB
"""So many bytes of events go into one commit, and the last change besides: with more, none gets cheaper, what is small
waits for what is large, and memory has no bound."""


class Drafting:
    """Makes a batch into drafts; what needs none is answered, what must be decided anew is put back."""

    def __init__(self, store: Store, clock: Clock, limits: Limits, cache: RunCache, gathering: Gathering) -> None:
        self._store = store
        self._clock = clock
        self._limits = limits
        self._cache = cache
        self._gathering = gathering

    async def drafts(self, batch: Batch) -> list[Draft]:
        """Those runs of the batch of which something is to be written or confirmed. Raises StoreUnavailable."""
        await self._answer_recorded(batch)
        runs = await self._load(batch)
        now_ms = self._clock.latest_ms()
        drafts = []
        room = BATCH_BYTES
        for run_id, submissions in batch.items():
            if room <= 0:
                self._gathering.put_back(run_id, submissions)
                continue
            draft = self._draft(run_id, runs.get(run_id), submissions, now_ms, room) if submissions else None
            if draft is not None:
                drafts.append(draft)
                room -= draft.bytes
        return drafts

    async def _answer_recorded(self, batch: Batch) -> None:
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

    async def _load(self, batch: Batch) -> dict[str, Run]:
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

    def _draft(
        self, run_id: str, run: Run | None, submissions: list[Submission], now_ms: int, room: int
    ) -> Draft | None:
        """Decide what is asked of one run, in order, until there are `room` bytes of new events. None: all is answered,
        nothing is to be written.
        """
        if run is None:
            for submission in submissions:
                submission.fail(WorkflowNotFound(run_id))
            return None
        if len(submissions) > 1 and submissions[0].alone:
            self._gathering.put_back(run_id, submissions[1:])
            submissions = submissions[:1]
        fresh = all(s.fresh for s in submissions)
        draft = Draft(run, Change(run))
        for position, submission in enumerate(submissions):
            if submission.future.cancelled():
                continue
            if draft.bytes >= room:
                self._gathering.put_back(run_id, submissions[position:])
                break
            if _is_repeated(draft, submission):
                self._gathering.again(submissions[position:])
                break
            try:
                if fresh:
                    _check_lease(run, submission.fence)
                reply = decide(run, submission.trigger, now_ms, self._limits)
            except RomancyError as error:
                if submission.request is not None and not submission.fresh:
                    # It may have been carried out before, which is why it cannot be now: look for its answer first.
                    # What came after it waits for it, so that all things happen in the order in which they came.
                    self._gathering.again(submissions[position:])
                    break
                if fresh and not run.touched and not run.new_events:
                    submission.fail(error)
                else:
                    draft.decided.append((submission, error))
            except NeedsHistory:
                for unlucky in submissions:
                    unlucky.history = True
                self._cache.drop(run_id)
                self._gathering.again(submissions)
                return None
            except Exception as error:  # one culprit fails alone, and is named
                _log.exception("decide failed", run_id=run_id, trigger=type(submission.trigger).__name__)
                submission.fail(InternalError(f"{type(error).__name__} while {type(submission.trigger).__name__}"))
                self._cache.drop(run_id)
                self._gathering.again([*submissions[:position], *submissions[position + 1 :]])
                return None
            else:
                self._note(draft, submission, reply)
        return draft if draft.decided else None

    def _note(self, draft: Draft, submission: Submission, reply: Reply) -> None:
        draft.decided.append((submission, reply))
        fence = submission.fence
        # A row that an earlier trigger of the batch brought about is not in the database yet.
        if fence is not None and draft.run.touched.get(fence.task_id, True):
            draft.change.fences.append(fence)
        change = draft.change
        if submission.successor is not None:
            new, start = submission.successor
            change = self._succeed(draft, new.begin(), start).change
        elif reply.successor is not None:
            run_id, start = reply.successor
            memo = WorkflowInfo(
                memo=start.spec.memo,
                continued_from_run_id=start.continued_from_run_id,
                first_run_id=start.first_run_id,
            ).SerializeToString()
            self._succeed(draft, Run(draft.run.namespace, draft.run.workflow_id, run_id, memo=memo), start)
        request = submission.request
        if request is not None:
            change.requests.append(
                Request(request.namespace, request.request_id, change.run.run_id, request.method, request.encode(reply))
            )

    def _succeed(self, draft: Draft, new: Run, start: StartRun) -> Draft:
        """Open another run together with what the draft does."""
        draft.successor = successor = Draft(new, Change(new, after=draft.run.run_id))
        # After all that its predecessor went through, also if another replica's clock told the times of that.
        decide(new, start, max(self._clock.latest_ms(), draft.run.last_event_ms + 1), self._limits)
        return successor


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


def _is_repeated(draft: Draft, submission: Submission) -> bool:
    """Whether the same request is in the draft already: it is answered from what that leaves."""
    request = submission.request
    return request is not None and any(
        (done.namespace, done.request_id) == (request.namespace, request.request_id) for done in draft.change.requests
    )
