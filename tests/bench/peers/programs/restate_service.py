"""The order saga as a Restate service: `hypercorn tests.bench.peers.programs.restate_service:app`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

import restate
from restate.exceptions import TerminalError

from tests.bench.order import Item, Receipt, order_of, total

orders = restate.Service("orders")


async def cancel_reservation(order_id: str) -> None:
    """Undo `reserve`."""


async def refund(order_id: str, amount: float) -> None:
    """Undo `pay`."""


async def reserve(order_id: str, items: list[Item]) -> dict[str, Any]:
    """Put the items aside."""
    return {"reservation_id": f"RES-{order_id}", "total_amount": total(items)}


async def pay(order_id: str, amount: float, customer_email: str) -> dict[str, Any]:
    """Take the money."""
    return {"transaction_id": f"TXN-{order_id}", "amount": amount}


async def ship(order_id: str, street: str, city: str) -> dict[str, Any]:
    """Send the goods."""
    return {"tracking_number": f"TRACK-{order_id}"}


# Named: `orders.handler` reads the annotations, which are texts here, so it gets and gives plain JSON.
@orders.handler("place")
async def place(ctx: restate.Context, document: dict[str, Any]) -> dict[str, Any]:
    """Reserve, pay, ship."""
    order = order_of(document)
    undo: list[Callable[[], Awaitable[None]]] = []
    try:
        undo.append(lambda: ctx.run_typed("cancel_reservation", cancel_reservation, order_id=order.order_id))
        reservation = await ctx.run_typed("reserve", reserve, order_id=order.order_id, items=order.items)
        amount = reservation["total_amount"]
        undo.append(lambda: ctx.run_typed("refund", refund, order_id=order.order_id, amount=amount))
        payment = await ctx.run_typed(
            "pay", pay, order_id=order.order_id, amount=amount, customer_email=order.customer_email
        )
        shipment = await ctx.run_typed("ship", ship, order_id=order.order_id, street=order.street, city=order.city)
    except TerminalError:
        for compensation in reversed(undo):
            await compensation()
        raise
    return asdict(Receipt(order.order_id, payment["amount"], shipment["tracking_number"]))


app = restate.app(services=[orders])
