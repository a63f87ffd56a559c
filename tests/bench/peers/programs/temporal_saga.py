"""The order saga on Temporal: workflow and activities."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow

with workflow.unsafe.imports_passed_through():
    from tests.bench.order import Item, Order, Payment, Receipt, Reservation, Shipment, total

TASK_QUEUE = "orders"
_TIMEOUT = timedelta(seconds=30)


@activity.defn
async def cancel_reservation(order_id: str) -> None:
    """Undo `reserve`."""


@activity.defn
async def refund(order_id: str, amount: float) -> None:
    """Undo `pay`."""


@activity.defn
async def reserve(order_id: str, items: list[Item]) -> Reservation:
    """Put the items aside."""
    return Reservation(f"RES-{order_id}", total(items))


@activity.defn
async def pay(order_id: str, amount: float, customer_email: str) -> Payment:
    """Take the money."""
    return Payment(f"TXN-{order_id}", amount)


@activity.defn
async def ship(order_id: str, street: str, city: str) -> Shipment:
    """Send the goods."""
    return Shipment(f"TRACK-{order_id}")


@workflow.defn(name="order")
class OrderWorkflow:
    """Reserve, pay, ship."""

    @workflow.run
    async def run(self, order: Order) -> Receipt:
        """As saga samples do it: what undoes a step is noted before the step is taken."""
        undo: list[Callable[[], Awaitable[None]]] = []
        try:
            undo.append(lambda: _do(cancel_reservation, order.order_id))
            reservation: Reservation = await _do(reserve, order.order_id, order.items)
            amount = reservation.total_amount
            undo.append(lambda: _do(refund, order.order_id, amount))
            payment: Payment = await _do(pay, order.order_id, amount, order.customer_email)
            shipment: Shipment = await _do(ship, order.order_id, order.street, order.city)
        except Exception:
            for compensation in reversed(undo):
                await compensation()
            raise
        return Receipt(order.order_id, payment.amount, shipment.tracking_number)


def _do(what: Callable[..., Awaitable[Any]], *arguments: object) -> Awaitable[Any]:
    return workflow.execute_activity(what, args=arguments, start_to_close_timeout=_TIMEOUT)
