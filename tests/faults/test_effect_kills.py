"""Service and workers die at each step of an effect in a database of the user's: it happens once, and is undone once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from romancy import Client, WorkflowFailed
from tests.faults.actor import Actor
from tests.faults.cashiers import shopping
from tests.faults.scene import Scene, until
from tests.worker_sdk.bank import STEPS, Bank

POINTS = [f"{point}:{hit}" for hit in (2, 5) for point in ("commit.before", "commit.after")]
AMOUNTS = [30, 40, 50]

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def bank(stage: Scene, tmp_path: Path, empty_postgres: Callable[[], str]) -> Bank:
    """One in a database of the same kind as the service's."""
    if stage.database.startswith("postgres"):
        bank = Bank(empty_postgres().replace("postgresql:", "postgresql+psycopg:"))
    else:
        bank = Bank(f"sqlite+aiosqlite:///{tmp_path / 'bank.db'}")
    bank.set_up()
    return bank


def a_worker(stage: Scene, bank: Bank, name: str, *step: str) -> Actor:
    return stage.start(name, "tests.faults.cashiers", f"127.0.0.1:{stage.port}", name, bank.url, *step)


async def go_shopping(client: Client, bank: Bank, *, broken: bool) -> None:
    """Pay, and be paid back if it comes to nothing."""
    handle = await client.start_workflow(shopping(bank), AMOUNTS, broken)
    if broken:
        with pytest.raises(WorkflowFailed, match="everything goes back"):
            await handle.result()
    else:
        assert await handle.result() == sum(AMOUNTS)


def expected(bank: Bank, count: int) -> list[int]:
    """Of so many who went shopping one after the other, every second one for nothing."""
    undone = [-amount for amount in reversed(AMOUNTS)]
    return [posting for number in range(count) for posting in (*AMOUNTS, *(undone if number % 2 else ()))]


async def test_whichever_commit_the_service_dies_at_each_effect_happens_once(stage: Scene, bank: Bank) -> None:
    worker, deaths = None, 0
    async with stage.client() as client:
        for number, point in enumerate(POINTS):
            service = await stage.service(ROMANCY_CRASH_AT=point)
            worker = worker or a_worker(stage, bank, "worker-1")
            going = asyncio.create_task(go_shopping(client, bank, broken=number % 2 == 1))
            await until(lambda: not service.alive or going.done(), f"the service died at {point}", worker)  # noqa: B023
            if not service.alive:
                deaths += 1
                service = await stage.service()
            await going
            service.kill()
    assert deaths > len(POINTS) // 2, "those who pay together need fewer commits"
    assert bank.postings() == expected(bank, len(POINTS))
    await stage.finish(ledger=False)


async def test_at_whichever_step_a_worker_dies_the_next_one_repeats_nothing(stage: Scene, bank: Bank) -> None:
    service = await stage.service()
    async with stage.client() as client:
        for number, step in enumerate(STEPS):
            victim = a_worker(stage, bank, f"victim-{step}", step)
            going = asyncio.create_task(go_shopping(client, bank, broken=number % 2 == 1))
            await until(lambda: not victim.alive, f"the worker died when {step}", service)  # noqa: B023
            other = a_worker(stage, bank, f"other-{step}")
            await going
            other.kill()
    assert bank.postings() == expected(bank, len(STEPS))
    await stage.finish(ledger=False)
