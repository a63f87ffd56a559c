"""Looks for outcomes that nobody here was told of: a piece at a time, all that is waited for in turn."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_COMPLETED, WorkflowOutcome

from romancy_service import results as waiting
from romancy_service.errors import StoreUnavailable
from romancy_service.results import PAGE_RUNS, Results

PATIENCE_S = 30
DONE = WorkflowOutcome(status=WORKFLOW_STATUS_COMPLETED)
RUN_IDS = [f"run-{number}" for number in range(2 * PAGE_RUNS + 500)]


class _Store:
    """A database in which all runs are open but those that a test says ended."""

    def __init__(self) -> None:
        self.ended: set[str] = set()
        self.away = False
        self.pages: list[list[str]] = []
        self.asked = asyncio.Event()

    async def outcomes(self, run_ids: Sequence[str]) -> dict[str, tuple[str, WorkflowOutcome | None]]:
        if self.away:
            raise StoreUnavailable("away")
        self.pages.append(list(run_ids))
        self.asked.set()
        return {run_id: ("default", DONE if run_id in self.ended else None) for run_id in run_ids}

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for looks until something is so."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self.asked.clear()
                await self.asked.wait()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> _Store:
    """One that takes so long for a page that a look has no time for another one."""
    monkeypatch.setattr(waiting, "LOOK_S", 1e-9)
    monkeypatch.setattr(waiting, "POLL_S", 1e-3)
    return _Store()


def _waited_for(store: Any, *, has_peers: bool = True) -> tuple[Results, dict[str, WorkflowOutcome | None]]:
    """All the runs are waited for; and what became known of them."""
    results = Results(store)
    results.has_peers = has_peers
    known: dict[str, WorkflowOutcome | None] = {}
    for run_id in RUN_IDS:
        results.wait(run_id, lambda outcome, run_id=run_id: known.update({run_id: outcome}))  # type: ignore[misc]
    return results, known


@asynccontextmanager
async def _running(results: Results) -> AsyncIterator[None]:
    task = asyncio.create_task(results.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_look_asks_for_a_page_and_the_next_one_for_the_next_until_all_had_their_turn(store: _Store) -> None:
    results, _ = _waited_for(store)
    for _ in range(2):
        await results._look()
    results.wait("late", lambda outcome: None)
    await results._look()
    assert store.pages[0][-1] == RUN_IDS[0], "what is waited for longest comes first"
    assert [len(page) for page in store.pages] == [PAGE_RUNS, PAGE_RUNS, 500]
    assert {run_id for page in store.pages for run_id in page} == set(RUN_IDS)
    for _ in range(3):
        await results._look()
    assert "late" in {run_id for page in store.pages[3:] for run_id in page}


async def test_a_look_that_has_time_for_them_asks_for_all_and_for_none_twice(
    store: _Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "LOOK_S", 1e9)
    results, _ = _waited_for(store)
    await results._look()
    assert sorted(run_id for page in store.pages for run_id in page) == sorted(RUN_IDS)
    assert max(len(page) for page in store.pages) == PAGE_RUNS


async def test_what_ended_elsewhere_unheard_is_found_however_many_are_waited_for(store: _Store) -> None:
    results, known = _waited_for(store)
    store.ended = {RUN_IDS[0], RUN_IDS[PAGE_RUNS], RUN_IDS[-1]}
    async with _running(results):
        await store.until(lambda: known.keys() == store.ended)
    assert set(known) == store.ended


async def test_what_was_told_is_asked_for_between_the_pages_of_a_look(
    store: _Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "LOOK_S", 1e9)
    results, known = _waited_for(store)
    store.ended = {RUN_IDS[-1]}
    results.told(json.dumps({"written": [RUN_IDS[-1]]}))
    await results._look()
    assert store.pages[1] == [RUN_IDS[-1]]
    assert set(known) == store.ended


async def test_a_doubt_lasts_until_all_that_is_waited_for_was_looked_at_after_it(
    store: _Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "DOUBT_S", 0)
    results, _ = _waited_for(store, has_peers=False)
    async with _running(results):
        results.doubt()
        await store.until(lambda: len(store.pages) == 1)
        results.doubt()  # the round that is under way says nothing of it
        await store.until(lambda: len(store.pages) == 6)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not results._is_uncertain
    assert {run_id for page in store.pages[3:] for run_id in page} == set(RUN_IDS)


async def test_what_was_told_while_the_database_was_away_is_asked_for_again(store: _Store) -> None:
    results, known = _waited_for(store)
    store.ended = {RUN_IDS[7]}
    results.told(json.dumps({"written": [RUN_IDS[7]]}))
    store.away = True
    with pytest.raises(StoreUnavailable):
        await results._ask_told()
    store.away = False
    await results._ask_told()
    assert set(known) == store.ended
