"""Workers that are really gone, and replicas that come back after their time: what they had goes to others, once."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil
import pytest

from romancy import WorkflowHandle
from romancy_service.faults import POINTS, Point
from tests.faults import ledger
from tests.faults import scene as scenes
from tests.faults.actor import Actor
from tests.faults.busy import busy
from tests.faults.scene import Scene, connected, free_port, scene, until

COUNT = 20
ONCE = 8
LONG_LEASE_S = 40
FROZEN: Final[tuple[Point, ...]] = ("claim.after", "commit.before", "commit.after")
"""After it claimed an activity for its worker, before it commits that one's completion, and after that."""

pytestmark = pytest.mark.timeout(120)


def _worker(stage: Scene, name: str, *kinds: str, port: int = 0) -> Actor:
    return stage.start(name, "tests.faults.busy", f"127.0.0.1:{port or stage.port}", name, *kinds)


async def _is_scheduled(handle: WorkflowHandle[list[str]]) -> bool:
    return bool((await handle.describe()).activities)


def _begun(stage: Scene, attempt: int) -> list[ledger.Entry]:
    return [entry for entry in stage.ledger if entry.kind == "begin" and entry.attempt == attempt]


async def test_what_a_killed_worker_had_runs_again_elsewhere_after_the_grace(
    stage: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Leases far longer than this takes: the end of its stream tells that the worker is lost, unless the machine is so
    # busy that the service distrusts what it sees.
    monkeypatch.setitem(scenes.LIMITS, "session_lease_ms", LONG_LEASE_S * 1_000)
    service = await stage.service()
    async with stage.client() as client:
        victim = _worker(stage, "victim", "activities")
        planner = _worker(stage, "planner", "workflows")
        handle = await client.start_workflow(busy, ["gate-1"] * COUNT, ONCE)
        await until(lambda: len(_begun(stage, 1)) == COUNT, "all run", victim, planner, service)
        other = _worker(stage, "other", "activities")
        await until(lambda: connected(client, 3), "the other worker is there", other)
        victim.kill()
        killed_at = time.monotonic()
        await until(lambda: len(_begun(stage, 2)) == COUNT - ONCE, "they run again", other)
        assert time.monotonic() - killed_at < LONG_LEASE_S or "did not run for a while" in service.log.read_text()
        stage.open_gates(1)
        outcomes = await handle.result()
    assert outcomes == [str(other.pid)] * (COUNT - ONCE) + ["ActivityLost"] * ONCE
    assert {entry.worker for entry in _begun(stage, 1)} == {str(victim.pid)}
    keys = ledger.read(stage.folder / "keys")
    first, second = ({e.activity_id for e in keys if e.attempt == attempt} for attempt in (1, 2))
    assert len(first) == COUNT
    assert len(second) == COUNT - ONCE
    assert second <= first, "the world outside knows it by the same key"
    assert max(entry.attempt for entry in keys) == 2
    await stage.finish()


def test_every_named_point_is_frozen_at() -> None:
    assert set(FROZEN) == set(POINTS)


async def test_a_replica_that_was_frozen_writes_nothing_that_it_may_no_longer_write(
    fresh_postgres: Callable[[], str], tmp_path: Path
) -> None:
    await asyncio.gather(*(_freeze(tmp_path / point, fresh_postgres(), point) for point in FROZEN))


async def _freeze(folder: Path, database: str, point: Point) -> None:
    ports = [free_port(), free_port()]
    async with scene(folder, database) as stage:
        frozen = await stage.service(port=ports[0], ROMANCY_STOP_AT=f"{point}:1")
        awake = await stage.service(port=ports[1])
        async with stage.client(ports[1]) as client:
            planner = _worker(stage, "planner", "workflows", port=ports[1])
            handle = await client.start_workflow(busy, ["gate-1"], 0)
            await until(lambda: _is_scheduled(handle), "the activity waits", planner)
            first = _worker(stage, "first", "activities", port=ports[0])
            if point != "claim.after":
                await until(lambda: len(_begun(stage, 1)) == 1, "it runs", first)
                stage.open_gates(1)
            await until(lambda: _is_frozen(frozen), "it is frozen", first)
            second = _worker(stage, "second", "activities", port=ports[1])
            if point == "commit.after":
                # What it wrote is there for the other one, which goes on from it.
                assert await handle.result() == [str(first.pid)]
                frozen.signal(signal.SIGCONT)
            else:
                (stage.folder / "gate-1").unlink(missing_ok=True)
                await until(
                    lambda: len(_begun(stage, 2)) == 1, "the other replica gave it to its worker", second, awake
                )
                frozen.signal(signal.SIGCONT)
                back = frozen.log.read_text().count("worker connected") + 1
                await until(
                    lambda: frozen.log.read_text().count("worker connected") >= back, "its worker is back", first
                )
                stage.open_gates(1)
                assert await handle.result() == [str(second.pid)]
        assert len(_begun(stage, 1)) == (0 if point == "claim.after" else 1)
        assert len(_begun(stage, 2)) == (0 if point == "commit.after" else 1)
        await stage.finish(losses=point != "commit.after")


def _is_frozen(actor: Actor) -> bool:
    return bool(psutil.Process(actor.pid).status() == psutil.STATUS_STOPPED)
