"""Order: what every system that is measured is given, and what each must make of it. Needs nothing but Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TOTAL: float = 109.97
"""What every order comes to."""


@dataclass(frozen=True, slots=True)
class Item:
    """What is ordered."""

    product_id: str
    quantity: int
    unit_price: float


@dataclass(frozen=True, slots=True)
class Order:
    """What an order workflow is started with."""

    order_id: str
    customer_email: str
    items: list[Item]
    street: str
    city: str


@dataclass(frozen=True, slots=True)
class Reservation:
    """What was put aside."""

    reservation_id: str
    total_amount: float


@dataclass(frozen=True, slots=True)
class Payment:
    """What was paid."""

    transaction_id: str
    amount: float


@dataclass(frozen=True, slots=True)
class Shipment:
    """What was sent."""

    tracking_number: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an order workflow returns."""

    order_id: str
    total_amount: float
    tracking_number: str


def order(number: int) -> Order:
    """An order as the tutorial's, with a number of its own."""
    items = [Item("PROD-1", 2, 29.99), Item("PROD-2", 1, 49.99)]
    return Order(f"ORD-{number}", "customer@example.com", items, "1-2-3 Dogenzaka", "Shibuya")


def check_receipt(placed: Order, receipt: Receipt) -> None:
    """Raise AssertionError unless this is the receipt of that order, from all three activities."""
    expected = Receipt(placed.order_id, TOTAL, f"TRACK-{placed.order_id}")
    if Receipt(receipt.order_id, round(receipt.total_amount, 2), receipt.tracking_number) != expected:
        raise AssertionError(f"the order {placed.order_id} came back as {receipt}")


def order_of(document: Mapping[str, Any]) -> Order:
    """An order that travelled as JSON."""
    items = [Item(**item) for item in document["items"]]
    return Order(**{**document, "items": items})


def receipt_of(document: Mapping[str, Any]) -> Receipt:
    """A receipt that travelled as JSON."""
    return Receipt(document["order_id"], document["total_amount"], document["tracking_number"])


def total(items: Sequence[Item]) -> float:
    """What the items cost together."""
    return sum(item.quantity * item.unit_price for item in items)
