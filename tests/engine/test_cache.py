"""The cache of runs: bounded by bytes, least recently used first out."""

from __future__ import annotations

from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_COMPLETED

from romancy_service.core.run import Run
from romancy_service.engine.cache import RunCache
from tests.core.life import Life, schedule

SMALL = 20_000


def run(run_id: str, argument_bytes: int = 0) -> Run:
    life = Life.begin()
    life.code(schedule("a:1", arguments=[Payload(binary=b"x" * argument_bytes)]))
    life.run.run_id = run_id
    return life.run


def test_what_was_not_used_for_longest_makes_room() -> None:
    cache = RunCache(3 * SMALL)
    for number in range(100):
        cache.put(run(f"r{number}"))
        cache.put(run("always"))
    assert cache.get("r0") is None
    assert cache.get("r99") is not None
    assert cache.get("always") is not None
    assert sum(kept.bytes_in_memory for kept in cache.runs()) <= 3 * SMALL


def test_one_large_run_takes_the_room_of_many_small_ones() -> None:
    cache = RunCache(5 * SMALL)
    for number in range(5):
        cache.put(run(f"r{number}"))
    cache.put(run("large", 4 * SMALL))
    assert cache.get("large") is not None
    assert len(cache.runs()) < 5


def test_a_run_that_grew_counts_as_it_is_now() -> None:
    cache = RunCache(2 * SMALL)
    cache.put(run("other"))
    cache.put(run("growing"))
    cache.put(run("growing", SMALL + 15_000))
    assert [kept.run_id for kept in cache.runs()] == ["growing"]


def test_a_run_larger_than_all_the_room_is_not_kept() -> None:
    cache = RunCache(SMALL)
    cache.put(run("large", SMALL))
    assert cache.runs() == []
    cache.put(run("small"))
    assert cache.get("small") is not None


def test_what_is_dropped_or_closed_frees_its_room() -> None:
    cache = RunCache(SMALL)
    for number in range(10):
        cache.put(run(f"r{number}"))
        cache.drop(f"r{number}")
    closed = run("closed")
    cache.put(closed)
    closed.status = WORKFLOW_STATUS_COMPLETED
    cache.put(closed)
    assert cache.runs() == []
    assert cache._bytes == 0
