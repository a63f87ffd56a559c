"""The demo's worker: the order saga as it stands in order_saga.py, with books, and a door that can be held shut.

Each payment and each shipment is written into the books, a file that outlives every crash: that is how the demo counts
them. An order whose file `ORDER.hold` names this worker stops before it is shipped, until there is a file `ORDER.go`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path
from typing import Any, Final

from examples import order_saga
from examples.order_saga import (
    Payment,
    Shipment,
    ShippingAddress,
    order_processing,
    refund_payment,
    reserve_inventory,
)
from romancy import ActivityDefinition, TerminalError, Worker, activity, activity_info

FOLDER: Final = Path(os.environ["DEMO_FOLDER"])
NAME: Final = os.environ["DEMO_WORKER"]


@activity(compensation=refund_payment)
async def process_payment(order_id: str, amount: float, customer_email: str) -> Payment:
    enter_in_books("paid", order_id)
    payment: Payment = await order_saga.process_payment.fn(order_id, amount, customer_email)
    return payment


@activity
async def ship_order(order_id: str, address: ShippingAddress) -> Shipment:
    await pass_door(order_id)
    try:
        shipment: Shipment = await order_saga.ship_order.fn(order_id, address)
    except TerminalError as error:
        print(f"💥 Error: {error}\n")
        raise
    enter_in_books("shipped", order_id)
    return shipment


def enter_in_books(what: str, order_id: str) -> None:
    """Write a line that is on disk when this returns."""
    line = f"{what} {order_id} {activity_info().idempotency_key} {NAME}\n"
    books = os.open(FOLDER / "books", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(books, line.encode())
        os.fsync(books)
    finally:
        os.close(books)


async def pass_door(order_id: str) -> None:
    """Wait while the door is held shut for this order and this worker."""
    hold = FOLDER / f"{order_id}.hold"
    if not hold.exists() or hold.read_text() != NAME:
        return
    (FOLDER / f"{order_id}.waiting").touch()
    while not (FOLDER / f"{order_id}.go").exists():  # noqa: ASYNC110 - another process makes it
        await asyncio.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--queue", default="default")
    parser.add_argument("--without-shipping", action="store_true", help="somebody else ships")
    options = parser.parse_args()
    activities: list[ActivityDefinition[..., Any]] = [reserve_inventory, process_payment]
    if not options.without_shipping:
        activities.append(ship_order)
    worker = Worker(
        options.address,
        task_queues=[options.queue],
        workflows=[order_processing],
        activities=activities,
        worker_id=NAME,
    )
    worker.run()


if __name__ == "__main__":
    main()
