"""Workload: the order saga with three activities that do no work, a long walk of many steps, a wide fan, and naps."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

from romancy import WorkflowContext, activity, compensation, workflow
from tests.bench.order import Item, Order, Payment, Receipt, Reservation, Shipment, total


@compensation
async def cancel_reservation(order_id: str) -> None:
    """Undo `reserve`."""


@compensation
async def refund(order_id: str, amount: float) -> None:
    """Undo `pay`."""


@activity(compensation=cancel_reservation, timeout=timedelta(seconds=30))
async def reserve(order_id: str, items: list[Item]) -> Reservation:
    """Put the items aside."""
    return Reservation(f"RES-{order_id}", total(items))


@activity(compensation=refund, timeout=timedelta(seconds=30))
async def pay(order_id: str, amount: float, customer_email: str) -> Payment:
    """Take the money."""
    return Payment(f"TXN-{order_id}", amount)


@activity(timeout=timedelta(seconds=30))
async def ship(order_id: str, street: str, city: str) -> Shipment:
    """Send the goods."""
    return Shipment(f"TRACK-{order_id}")


@workflow(name="order")
async def order_workflow(ctx: WorkflowContext, order: Order) -> Receipt:
    """Reserve, pay, ship."""
    reservation = await reserve(order.order_id, order.items)
    payment = await pay(order.order_id, reservation.total_amount, order.customer_email)
    shipment = await ship(order.order_id, order.street, order.city)
    return Receipt(order.order_id, payment.amount, shipment.tracking_number)


@activity
async def step(number: int) -> int:
    """One of many steps."""
    return number


@workflow(name="walk")
async def walk_workflow(ctx: WorkflowContext, steps: int) -> int:
    """So many steps, one after the other."""
    total = 0

    @ctx.query
    def so_far() -> int:
        return total

    for number in range(steps):
        total += await step(number)
    return total


@workflow(name="fan")
async def fan_workflow(ctx: WorkflowContext, steps: int) -> int:
    """So many steps, all at once."""
    return sum(await asyncio.gather(*(step(number) for number in range(steps))))


@workflow(name="nap")
async def nap_workflow(ctx: WorkflowContext, number: int) -> int:
    """Sleep; the bench seeds runs of it that sleep already, for times of their own."""
    await asyncio.sleep(1)
    return number


@workflow(name="nothing")
async def nothing_workflow(ctx: WorkflowContext, number: int) -> int:
    """Return at once: one workflow task, and no activity."""
    return number


def now_s() -> float:
    """By the clock of this machine."""
    return time.time()


@workflow(name="listener")
async def listener_workflow(ctx: WorkflowContext, number: int) -> float:
    """Seconds from when an event was sent, by its sender's clock, until it woke this code."""
    ping = await ctx.wait_event("ping", where={"data.number": number})
    return await ctx.step(now_s) - float(ping.data["sent_s"])
