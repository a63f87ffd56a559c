"""The order saga: reserve, pay, ship; when shipping fails, refund and cancel, newest first."""

from __future__ import annotations

from dataclasses import dataclass

from romancy import TerminalError, WorkflowContext, activity, compensation, workflow


@dataclass
class OrderItem:
    product_id: str
    quantity: int
    unit_price: float


@dataclass
class ShippingAddress:
    street: str
    city: str
    postal_code: str
    country: str


@dataclass
class Order:
    order_id: str
    customer_email: str
    items: list[OrderItem]
    shipping_address: ShippingAddress


@dataclass
class OrderResult:
    order_id: str
    status: str
    total_amount: float
    confirmation_number: str


@dataclass
class Reservation:
    reservation_id: str
    total_amount: float


@dataclass
class Payment:
    transaction_id: str
    amount: float
    status: str


@dataclass
class Shipment:
    tracking_number: str
    status: str


@compensation
async def cancel_inventory_reservation(order_id: str) -> None:
    print(f"❌ Cancelling inventory reservation for {order_id}")


@compensation
async def refund_payment(order_id: str, amount: float) -> None:
    print(f"❌ Refunding payment for {order_id}: ${amount:.2f}")


@activity(compensation=cancel_inventory_reservation)
async def reserve_inventory(order_id: str, items: list[OrderItem]) -> Reservation:
    total = sum(item.quantity * item.unit_price for item in items)
    print(f"📦 Reserving inventory for {order_id}: ${total:.2f}")
    return Reservation(f"RES-{order_id}", total)


@activity(compensation=refund_payment)
async def process_payment(order_id: str, amount: float, customer_email: str) -> Payment:
    print(f"💳 Processing payment for {order_id}: ${amount:.2f}")
    return Payment(f"TXN-{order_id}", amount, "completed")


@activity
async def ship_order(order_id: str, address: ShippingAddress) -> Shipment:
    print(f"🚚 Shipping {order_id} to {address.city}, {address.country}")
    if address.street == "FAIL":
        raise TerminalError("shipping service unavailable")
    return Shipment(f"TRACK-{order_id}", "shipped")


@workflow
async def order_processing(ctx: WorkflowContext, order: Order) -> OrderResult:
    reservation = await reserve_inventory(order.order_id, order.items)
    payment = await process_payment(order.order_id, reservation.total_amount, order.customer_email)
    shipment = await ship_order(order.order_id, order.shipping_address)
    return OrderResult(order.order_id, "completed", payment.amount, shipment.tracking_number)
