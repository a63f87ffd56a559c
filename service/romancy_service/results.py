"""Results: wakes whoever waits for a run's outcome, or watches its history."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Final

import structlog

from romancy.v1.workflow_pb2 import WorkflowOutcome

from romancy_service.core.run import Run
from romancy_service.errors import Draining, StoreUnavailable, WorkflowNotFound
from romancy_service.store.store import Store

_log = structlog.get_logger("romancy.results")

POLL_S: Final = 1.0
"""How often it is looked for runs that ended on another replica: a notification may be lost."""

LOOK_S: Final = 0.05
"""So long such a look takes, and one page besides; the next one goes on where it ended: however many wait, others have
the database and the event loop. About 20,000 runs fit: of a hundred thousand each is looked at every 5 s."""

PAGE_RUNS: Final = 1_000
"""Runs that are looked for at once: it takes some milliseconds, and hardly more for each run than any larger number."""

DOUBT_S: Final = 35.0
"""A statement whose answer was lost is carried out within this, or never: the statement timeout is 25 s."""


Waiter = Callable[[WorkflowOutcome | None], None]
"""Called with the outcome of a run; None: the run was deleted before whoever waits was told of it."""


class Results:
    """Outcomes as they come about, on this replica or another one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiters: dict[str, set[Waiter]] = defaultdict(set)
        self._watchers: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._ended: set[str] = set()
        self._told_of: set[str] = set()
        self._wake = asyncio.Event()
        self._doubts_until = 0.0
        self._certain_at = 0.0
        """All that was waited for then was looked at since."""
        self._round_at = 0.0
        self._round: list[str] = []
        """What is still to be looked at of that which was waited for when this round of looks began."""
        self._leaving: set[Callable[[], None]] = set()
        """What ends each wait when this replica stops."""
        self._draining = False
        self.has_peers = False

    def observe(self, run: Run) -> None:
        """A run was written here."""
        watchers = self._watchers.get(run.run_id)
        if watchers:
            for event in watchers:
                event.set()
        if run.outcome is not None:
            self._resolve(run.run_id, run.outcome)
        if self.has_peers and (run.outcome is not None or run.new_events):
            self._ended.add(run.run_id)
            self._wake.set()

    def doubt(self) -> None:
        """The answer to a commit was lost: runs may be written, now or in a while, that we are not told of."""
        self._doubts_until = time.monotonic() + DOUBT_S

    def removed(self, run_id: str) -> None:
        """A run was deleted here. Other replicas miss it when they look for outcomes."""
        self._resolve(run_id, None)
        for event in self._watchers.get(run_id, ()):
            event.set()

    def _resolve(self, run_id: str, outcome: WorkflowOutcome | None) -> None:
        for waiter in self._waiters.pop(run_id, ()):
            waiter(outcome)

    def wait(self, run_id: str, waiter: Waiter) -> None:
        """Have `waiter` called once, with the run's outcome. Ask the store afterwards: it may be there already."""
        self._waiters[run_id].add(waiter)

    def forget(self, run_id: str, waiter: Waiter) -> None:
        """Nobody waits any more."""
        waiters = self._waiters.get(run_id)
        if waiters is not None:
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[run_id]

    def start_drain(self) -> None:
        """This replica stops: end all waits, so that whoever waits asks another one at once."""
        self._draining = True
        for leave in list(self._leaving):
            leave()

    @contextmanager
    def leaving(self, leave: Callable[[], None]) -> Iterator[None]:
        """Have `leave` called should this replica stop inside the block. Raises Draining when it does already."""
        if self._draining:
            raise Draining()
        self._leaving.add(leave)
        try:
            yield
        finally:
            self._leaving.discard(leave)

    async def outcome(self, run_id: str, wait_s: float) -> WorkflowOutcome | None:
        """The run's outcome, if it has one within `wait_s` seconds.

        Raises Draining when this replica stops, WorkflowNotFound when the run is not kept.
        """
        future: asyncio.Future[WorkflowOutcome | None] = asyncio.get_running_loop().create_future()

        def resolve(outcome: WorkflowOutcome | None) -> None:
            if not future.done():
                future.set_result(outcome)

        def leave() -> None:
            if not future.done():
                future.set_exception(Draining())

        self.wait(run_id, resolve)
        try:
            kept = await self._store.outcomes([run_id])
            outcome = kept[run_id][1] if run_id in kept else None
            if outcome is None and run_id in kept:
                with self.leaving(leave):
                    async with asyncio.timeout(wait_s):
                        outcome = await future
            if outcome is None:
                raise WorkflowNotFound(run_id)
            return outcome
        except TimeoutError:
            return None
        finally:
            self.forget(run_id, resolve)

    def watch(self, run_id: str, event: asyncio.Event) -> None:
        """Set `event` whenever the run's history grows."""
        self._watchers[run_id].add(event)

    def unwatch(self, run_id: str, event: asyncio.Event) -> None:
        """No longer."""
        self._watchers[run_id].discard(event)
        if not self._watchers[run_id]:
            del self._watchers[run_id]

    def told(self, payload: str) -> None:
        """Another replica wrote runs."""
        for run_id in json.loads(payload).get("written", ()):
            for event in self._watchers.get(run_id, ()):
                event.set()
            if run_id in self._waiters:
                self._told_of.add(run_id)
                self._wake.set()

    async def run(self) -> None:
        """Tell peers, hear from them, and look every second for what was missed. Until cancelled."""
        asked_at = 0.0
        while True:
            try:
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            ended, self._ended = self._ended, set()
            try:
                if self.has_peers and ended:
                    await self._tell(sorted(ended))
                await self._ask_told()
                if self._is_uncertain and time.monotonic() - asked_at >= POLL_S:
                    await self._look()
                    asked_at = time.monotonic()
            except StoreUnavailable as error:
                _log.warning("database unavailable", error=str(error))
                await asyncio.sleep(POLL_S)

    @property
    def _is_uncertain(self) -> bool:
        """Whether a run may have ended unheard. A doubt ends with a look at all that is waited for, begun after it."""
        return self.has_peers or self._certain_at < self._doubts_until

    async def _ask_told(self) -> None:
        """Ask for the outcomes of the runs that we were told of."""
        told, self._told_of = self._told_of, set()
        try:
            while told:
                page = list(islice(told, PAGE_RUNS))
                await self._ask(page)
                told.difference_update(page)
        finally:
            self._told_of |= told

    async def _look(self) -> None:
        """Look for what was missed of some of the runs that somebody waits for; of all in turn."""
        for event in [event for events in self._watchers.values() for event in events]:
            event.set()
        if not self._round:
            # From its end, so that what is waited for longest comes first.
            self._round_at, self._round = time.monotonic(), list(reversed(self._waiters))
        taken_s = 0.0
        while self._round and taken_s < LOOK_S:
            began = time.monotonic()
            page = self._round[-PAGE_RUNS:]
            await self._ask(page)
            del self._round[-len(page) :]
            taken_s += time.monotonic() - began
            await self._ask_told()
        if not self._round:
            self._certain_at = self._round_at

    async def _ask(self, run_ids: Sequence[str]) -> None:
        wanted = [run_id for run_id in run_ids if run_id in self._waiters]
        if wanted:
            kept = await self._store.outcomes(wanted)
            for run_id in wanted:
                _, outcome = kept.get(run_id, ("", None))
                if outcome is not None or run_id not in kept:
                    self._resolve(run_id, outcome)

    async def _tell(self, run_ids: list[str]) -> None:
        # A notification holds 8,000 bytes; a run id takes 40.
        for start in range(0, len(run_ids), 150):
            await self._store.notify(json.dumps({"written": run_ids[start : start + 150]}))
