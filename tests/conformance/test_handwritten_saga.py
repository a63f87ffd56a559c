"""One saga in three languages, on the real service: reserve in Python, pay in TypeScript, ship in Go; and kill -9."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from romancy import (
    Client,
    RetryPolicy,
    Worker,
    WorkflowCancelled,
    WorkflowContext,
    WorkflowFailed,
    activity,
    compensation,
    workflow,
)
from tests.conformance.peer import PATIENCE_S
from tests.conformance.service import Service
from tests.conformance.workers import BUILD_S, GO, TYPESCRIPT, RunningWorker, WorkerProgram, started

ORDER = "ORD-12345"
RESERVED = f"📦 Reserving inventory for {ORDER}: $109.97"
PAID = f"💳 Processing payment for {ORDER}: $109.97"
SHIPPED = f"🚚 Shipping {ORDER} to Shibuya, Japan"
REFUNDED = f"❌ Refunding payment for {ORDER}: $109.97"
UNRESERVED = f"❌ Cancelling inventory reservation for {ORDER}"
pytestmark = pytest.mark.timeout(BUILD_S)  # the first test may have to build the programs
Result = TypeVar("Result")
LONG_S = 2.0
"""Work that is still going on when something is killed."""


@dataclass
class Address:
    city: str
    country: str


@dataclass
class Payment:
    transaction_id: str
    amount: float
    status: str


@dataclass
class Shipment:
    tracking_number: str
    status: str


printed_here: list[str] = []
"""What activities in Python would print."""


@compensation
async def cancel_inventory_reservation(order_id: str) -> None:
    printed_here.append(f"❌ Cancelling inventory reservation for {order_id}")


@activity(compensation=cancel_inventory_reservation)
async def reserve_inventory(order_id: str, amount: float) -> float:
    printed_here.append(f"📦 Reserving inventory for {order_id}: ${amount:.2f}")
    return amount


@compensation
async def refund_payment(order_id: str, amount: float) -> None: ...


@activity(compensation=refund_payment)
async def process_payment(order_id: str, amount: float, customer_email: str) -> Payment: ...  # type: ignore[empty-body]  # declared


@activity
async def ship_order(order_id: str, address: Address) -> Shipment: ...  # type: ignore[empty-body]  # declared


@workflow
async def order_processing(ctx: WorkflowContext, order_id: str, country: str) -> str:
    amount = await reserve_inventory(order_id, 109.97)
    payment = await process_payment(order_id, amount, "customer@example.com")
    shipment = await ship_order(order_id, Address("Shibuya", country))
    return f"{payment.transaction_id} {shipment.tracking_number}"


@workflow
async def hurried_shipment(ctx: WorkflowContext, order_id: str) -> None:
    hurried = ship_order.options(timeout=1, retry=RetryPolicy(max_attempts=2))
    await hurried(order_id, Address("Shibuya", "Japan"))


RESULT = f"TXN-{ORDER} TRACK-{ORDER}"


@dataclass
class Shop:
    """A service with the Python part of the saga; the other parts are started by the tests."""

    service: Service
    client: Client
    folder: Path

    def start(self, program: WorkerProgram, *, work_s: float = 0) -> AbstractAsyncContextManager[RunningWorker]:
        """Start a worker by hand. What it prints goes to one file for all workers of its kind."""
        return started(program, self.service.address, self._printed(program), work_s=work_s)

    def _printed(self, program: WorkerProgram) -> Path:
        return self.folder / f"{program.name}.txt"

    def lines(self, program: WorkerProgram) -> list[str]:
        """All that workers of a kind have printed."""
        path = self._printed(program)
        return path.read_text().splitlines() if path.exists() else []

    async def prints(self, program: WorkerProgram, line: str, times: int = 1) -> None:
        """Wait until a line was printed so often."""
        async with asyncio.timeout(PATIENCE_S):
            while self.lines(program).count(line) < times:  # noqa: ASYNC110 - another process prints
                await asyncio.sleep(0.02)

    async def idle(self, worker_id: str) -> None:
        """Wait until the service knows of nothing that a worker has in hand."""
        async with asyncio.timeout(PATIENCE_S):
            while any(  # noqa: ASYNC110 - it is asked for
                session.tasks_in_hand for session in await self.client.list_workers() if session.worker_id == worker_id
            ):
                await asyncio.sleep(0.02)

    async def result(self, running: Awaitable[Result]) -> Result:
        """The result, in good time."""
        async with asyncio.timeout(2 * PATIENCE_S):
            return await running

    def order(self, country: str = "Japan") -> asyncio.Task[str]:
        """Start an order and wait for its result, aside."""
        run = self.client.execute_workflow(order_processing, ORDER, country, task_queue="orders")
        return asyncio.ensure_future(run)


@pytest.fixture(autouse=True, scope="module")
def programs() -> None:
    """All parts of the saga are there, or the tests are left out."""
    GO.build()
    TYPESCRIPT.build()


@pytest.fixture
async def shop(database_url: str, tmp_path: Path) -> AsyncIterator[Shop]:
    printed_here.clear()
    async with (
        Service(database_url, tmp_path / "service.log") as service,
        Worker(
            service.address,
            task_queues=["orders"],
            workflows=[order_processing, hurried_shipment],
            activities=[reserve_inventory],
        ),
        Client(service.address) as client,
    ):
        yield Shop(service, client, tmp_path)


async def test_three_languages_fulfil_one_order(shop: Shop) -> None:
    async with shop.start(GO), shop.start(TYPESCRIPT):
        assert await shop.result(shop.order()) == RESULT
    assert printed_here == [RESERVED]
    assert shop.lines(TYPESCRIPT) == [PAID]
    assert shop.lines(GO) == [SHIPPED]


async def test_what_go_refuses_to_ship_is_refunded_in_typescript_and_then_given_back_in_python(shop: Shop) -> None:
    async with shop.start(GO), shop.start(TYPESCRIPT):
        with pytest.raises(WorkflowFailed) as failed:
            await shop.result(shop.order(country=""))
        await shop.prints(TYPESCRIPT, REFUNDED)
    assert failed.value.type == "InvalidOrder"
    assert printed_here == [RESERVED, UNRESERVED]
    assert shop.lines(TYPESCRIPT) == [PAID, REFUNDED]


@pytest.mark.parametrize(("killed", "line"), [(GO, SHIPPED), (TYPESCRIPT, PAID)], ids=["go", "typescript"])
async def test_another_worker_goes_on_where_one_was_killed_at_work(
    shop: Shop, killed: WorkerProgram, line: str
) -> None:
    other = TYPESCRIPT if killed is GO else GO
    async with shop.start(other), shop.start(killed, work_s=600) as victim:
        order = shop.order()
        await shop.prints(killed, line)
        victim.kill()
        async with shop.start(killed):
            assert await shop.result(order) == RESULT
    assert printed_here == [RESERVED]
    assert shop.lines(killed).count(line) == 2
    assert len(shop.lines(other)) == 1


@pytest.mark.parametrize(("busy", "line"), [(GO, SHIPPED), (TYPESCRIPT, PAID)], ids=["go", "typescript"])
async def test_work_that_goes_on_while_the_service_is_killed_and_started_again_is_done_once(
    shop: Shop, busy: WorkerProgram, line: str
) -> None:
    other = TYPESCRIPT if busy is GO else GO
    async with shop.start(other), shop.start(busy, work_s=LONG_S):
        order = shop.order()
        await shop.prints(busy, line)
        await shop.service.kill()
        await shop.service.start()
        assert await shop.result(order) == RESULT
    assert shop.lines(busy).count(line) == 1
    assert printed_here == [RESERVED]


@pytest.mark.parametrize(("leaving", "line"), [(GO, SHIPPED), (TYPESCRIPT, PAID)], ids=["go", "typescript"])
async def test_a_worker_that_is_terminated_finishes_what_it_has_and_leaves(
    shop: Shop, leaving: WorkerProgram, line: str
) -> None:
    other = TYPESCRIPT if leaving is GO else GO
    async with shop.start(leaving, work_s=LONG_S) as worker:
        order = shop.order()
        if leaving is GO:
            async with shop.start(other):
                await shop.prints(leaving, line)
        else:
            await shop.prints(leaving, line)
        worker.terminate()
        assert await worker.exit_code() == 0
    assert shop.lines(leaving).count(line) == 1
    async with shop.start(other):
        assert await shop.result(order) == RESULT


async def test_cancelling_the_order_stops_the_shipment_and_refunds_the_payment(shop: Shop) -> None:
    async with shop.start(TYPESCRIPT), shop.start(GO, work_s=600):
        handle = await shop.client.start_workflow(order_processing, ORDER, "Japan", task_queue="orders")
        await shop.prints(GO, SHIPPED)
        await handle.cancel("the customer changed their mind")
        with pytest.raises(WorkflowCancelled):
            await shop.result(handle.result())
        await shop.prints(TYPESCRIPT, REFUNDED)


async def test_an_attempt_that_takes_too_long_is_told_to_stop_and_frees_its_slot(shop: Shop) -> None:
    async with shop.start(GO, work_s=600):
        run = shop.client.execute_workflow(hurried_shipment, ORDER, task_queue="orders")
        with pytest.raises(WorkflowFailed) as failed:
            await shop.result(run)
        assert failed.value.type == "StartToCloseTimeout"
        assert shop.lines(GO) == [SHIPPED, SHIPPED]
        await shop.idle("shipping")


async def test_a_result_above_the_limit_fails_the_activity_and_disturbs_nothing_else(shop: Shop) -> None:
    async with shop.start(GO), shop.start(TYPESCRIPT):
        too_long = "x" * (2 * 1024 * 1024 - 50)  # fits as an argument; the result has some words more
        run = shop.client.execute_workflow(order_processing, too_long, "Japan", task_queue="orders")
        with pytest.raises(WorkflowFailed) as failed:
            await shop.result(run)
        assert failed.value.type == "PAYLOAD_TOO_LARGE"
        assert await shop.result(shop.order()) == RESULT
