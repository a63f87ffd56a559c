"""The backlog: what becomes due later is woken for in time, and takes no more memory the more of it there is."""

from __future__ import annotations

import asyncio

from romancy_service.core.task import TaskKind
from romancy_service.dispatch.backlog import SOON_MS, STEP_MS, Backlog

KEY = ("default", "main", TaskKind.ACTIVITY, "charge")
OTHER = ("default", "main", TaskKind.ACTIVITY, "ship")
NOW_MS = 1_000_000


def test_what_is_due_later_ripens_within_a_step_and_never_early() -> None:
    backlog = Backlog(asyncio.Event())
    due = [NOW_MS + 1, NOW_MS + 2_345, NOW_MS + SOON_MS]
    for due_ms in due:
        backlog.add_later(due_ms, NOW_MS, KEY)
    for due_ms in due:
        assert backlog.ripe(due_ms - 1) == []
        wait_ms = 1000 * backlog.wait_s(due_ms, most_s=1.0)
        assert 0 <= wait_ms < STEP_MS
        assert backlog.ripe(due_ms + STEP_MS - 1) == [KEY]
    assert backlog.wait_s(NOW_MS, most_s=0.5) == 0.5


def test_a_hundred_thousand_that_wait_are_kept_as_few_times_of_their_keys() -> None:
    backlog = Backlog(asyncio.Event())
    for number in range(100_000):
        backlog.add_later(NOW_MS + 1 + number % 5_000, NOW_MS, KEY if number % 2 else OTHER)
    assert len(backlog._due) <= 2 * (5_000 // STEP_MS + 1)
    ripe = backlog.ripe(NOW_MS + SOON_MS)
    assert set(ripe) == {KEY, OTHER}
    # What comes after that is noted anew.
    backlog.add_later(NOW_MS + 1, NOW_MS, KEY)
    assert backlog.ripe(NOW_MS + SOON_MS) == [KEY]
    assert not backlog._awaited


def test_only_what_is_due_before_all_else_wakes_the_dispatch() -> None:
    wake = asyncio.Event()
    backlog = Backlog(wake)
    backlog.add_later(NOW_MS + 1_000, NOW_MS, KEY)
    assert wake.is_set()
    wake.clear()
    backlog.add_later(NOW_MS + 1_000, NOW_MS, KEY)
    assert not wake.is_set()
    backlog.add_later(NOW_MS + 2_000, NOW_MS, KEY)
    assert not wake.is_set(), "it is woken for the first one before"
    backlog.add_later(NOW_MS + 2 * SOON_MS, NOW_MS, KEY)
    assert not wake.is_set(), "the poll finds it"
    backlog.add_later(NOW_MS + 500, NOW_MS, KEY)
    assert wake.is_set()
