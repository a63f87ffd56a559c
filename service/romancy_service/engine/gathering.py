"""Gathering: what was submitted, by run, until it is taken into a batch. A run is in one batch at a time."""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

import structlog

from romancy_service.errors import StoreUnavailable, TooMuchContention
from romancy_service.submission import Submission

_log = structlog.get_logger("romancy.engine")

BATCH_RUNS: Final = 128
"""So many runs go into one commit at most: beyond, a transition gets no cheaper and a lone one waits longer."""
MAX_TRIES: Final = 50
"""So often is a trigger decided again because its run changed meanwhile. Each time somebody else made progress."""

Batch = dict[str, list[Submission]]
"""What is asked of each run, in order."""


class Gathering:
    """Batches form by themselves: whatever waits when a lane is free."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, list[Submission]] = OrderedDict()
        self._parked: dict[str, list[Submission]] = {}
        """Submissions for runs that are in a batch right now; every busy run has an entry."""
        self._arrived = asyncio.Event()
        self._taking = asyncio.Lock()
        """Whoever has it waits for the next batch. The other lanes sleep on: what arrives is for one of them."""
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return self._idle.is_set()

    async def drained(self) -> None:
        """Wait until nothing is under way."""
        await self._idle.wait()

    def is_busy(self, run_id: str) -> bool:
        """Whether the run is in a batch."""
        return run_id in self._parked

    def add(self, submission: Submission) -> None:
        """One more."""
        if submission.run_id in self._parked:
            self._parked[submission.run_id].append(submission)
        else:
            self._waiting.setdefault(submission.run_id, []).append(submission)
            self._arrived.set()
        self._idle.clear()

    async def take(self) -> Batch:
        """The next batch, as soon as there is one. Its runs are busy until `release`."""
        async with self._taking:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
                # Whatever the event loop has ready in this round joins the batch.
                await asyncio.sleep(0)
            batch: Batch = {}
            while self._waiting and len(batch) < BATCH_RUNS:
                run_id, submissions = self._waiting.popitem(last=False)
                batch[run_id] = submissions
                self._parked[run_id] = []
            return batch

    def release(self, run_ids: Iterable[str]) -> None:
        """A batch is done; what came for its runs meanwhile waits for the next one."""
        for run_id in run_ids:
            if parked := self._parked.pop(run_id, None):
                self._waiting.setdefault(run_id, []).extend(parked)
        if self._waiting:
            self._arrived.set()
        elif not self._parked:
            self._idle.set()

    def put_back(self, run_id: str, submissions: Sequence[Submission]) -> None:
        """These are decided in the next batch, before what came for the busy run meanwhile."""
        self._parked[run_id][:0] = submissions

    def again(self, submissions: Iterable[Submission]) -> None:
        """Decide on the run anew: it changed meanwhile, or nobody knows what became of the commit."""
        by_run: Batch = {}
        for submission in submissions:
            submission.tries += 1
            submission.fresh = True
            if submission.tries > MAX_TRIES:
                submission.fail(TooMuchContention(submission.run_id))
            elif not submission.future.done():
                by_run.setdefault(submission.run_id, []).append(submission)
        for run_id, again in by_run.items():
            self.put_back(run_id, again)

    async def again_later(self, submissions: Sequence[Submission], error: StoreUnavailable) -> None:
        """Nobody knows what became of the commit, and reading would not tell: submit again, the fences decide."""
        _log.warning("database unavailable, trying again", error=str(error), triggers=len(submissions))
        for submission in submissions:
            submission.tries -= 1  # not the run's fault
            submission.outages += 1
        outages = max((submission.outages for submission in submissions), default=0)
        await asyncio.sleep(random.uniform(0.05, min(1.0, 0.1 * 2 ** min(outages, 5))))
        self.again(submissions)
