"""The order saga on DBOS. It is a library: one process has the workflows, the steps and the client.

`python -m tests.bench.peers.programs.dbos_app URL SETTINGS IN_FLIGHT WARM_UP_S SECONDS`, the settings as JSON. Without
the numbers it is one of several: it gets its orders as a member of a crew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from functools import partial

import uvloop
from dbos import DBOS, DBOSConfig

from tests.bench.closed_loop import closed_loop
from tests.bench.order import Item, Order, Payment, Receipt, Reservation, Shipment, total
from tests.bench.peers.programs.crew import serve


@DBOS.step()
async def cancel_reservation(order_id: str) -> None:
    """Undo `reserve`."""


@DBOS.step()
async def refund(order_id: str, amount: float) -> None:
    """Undo `pay`."""


@DBOS.step()
async def reserve(order_id: str, items: list[Item]) -> Reservation:
    """Put the items aside."""
    return Reservation(f"RES-{order_id}", total(items))


@DBOS.step()
async def pay(order_id: str, amount: float, customer_email: str) -> Payment:
    """Take the money."""
    return Payment(f"TXN-{order_id}", amount)


@DBOS.step()
async def ship(order_id: str, street: str, city: str) -> Shipment:
    """Send the goods."""
    return Shipment(f"TRACK-{order_id}")


@DBOS.workflow()
async def order_workflow(order: Order) -> Receipt:
    """Reserve, pay, ship."""
    undo: list[Callable[[], Awaitable[None]]] = []
    try:
        undo.append(partial(cancel_reservation, order.order_id))
        reservation = await reserve(order.order_id, order.items)
        undo.append(partial(refund, order.order_id, reservation.total_amount))
        payment = await pay(order.order_id, reservation.total_amount, order.customer_email)
        shipment = await ship(order.order_id, order.street, order.city)
    except Exception:
        for compensation in reversed(undo):
            await compensation()
        raise
    return Receipt(order.order_id, payment.amount, shipment.tracking_number)


async def place(order: Order) -> Receipt:
    """Start it here, and wait for it."""
    handle = await DBOS.start_workflow_async(order_workflow, order)
    receipt: Receipt = await handle.get_result()
    return receipt


async def main() -> None:
    """Launch, load or serve, and end."""
    url, settings, *numbers = sys.argv[1:]
    DBOS(config=DBOSConfig(name="bench", system_database_url=url, log_level="ERROR", **json.loads(settings)))
    DBOS.launch()
    try:
        await (closed_loop(place, numbers) if numbers else serve(place))
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    uvloop.run(main())
