"""The tutorial's order saga, as its code sees it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

import romancy
from romancy import TerminalError
from tests.worker_sdk.driver import Driver


@pytest.fixture(scope="module")
def saga() -> Any:
    path = Path(romancy.__file__).parents[1] / "examples" / "order_saga.py"
    spec = importlib.util.spec_from_file_location("order_saga", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["order_saga"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def order(saga: Any, street: str) -> Any:
    items = [saga.OrderItem("PROD-1", 2, 29.99), saga.OrderItem("PROD-2", 1, 49.99)]
    address = saga.ShippingAddress(street, "Shibuya", "150-0001", "Japan")
    return saga.Order("ORD-12345", "customer@example.com", items, address)


async def run_task(run: Driver, definition: Any) -> Any:
    """Run the activity that was just asked for, as a worker would."""
    command = run.commands[-1].schedule_activity
    args, kwargs = definition.decode_arguments(command.arguments)
    return await definition.fn(*args, **kwargs)


async def test_a_good_order_is_reserved_paid_and_shipped(saga: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = Driver(saga.order_processing, order(saga, "1-2-3 Dogenzaka"))
    run.start()
    for definition in (saga.reserve_inventory, saga.process_payment, saga.ship_order):
        run.complete(f"{definition.name}:1", await run_task(run, definition))
    assert run.result() == saga.OrderResult("ORD-12345", "completed", 109.97, "TRACK-ORD-12345")
    assert capsys.readouterr().out.splitlines() == [
        "📦 Reserving inventory for ORD-12345: $109.97",
        "💳 Processing payment for ORD-12345: $109.97",
        "🚚 Shipping ORD-12345 to Shibuya, Japan",
    ]


async def test_an_order_that_cannot_be_shipped_fails_with_what_undoes_it(
    saga: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Driver(saga.order_processing, order(saga, "FAIL"))
    run.start()
    asked = [run.commands[0].schedule_activity]
    run.complete("reserve_inventory:1", await run_task(run, saga.reserve_inventory))
    asked.append(run.commands[0].schedule_activity)
    run.complete("process_payment:1", await run_task(run, saga.process_payment))
    with pytest.raises(TerminalError) as raised:
        await run_task(run, saga.ship_order)
    failure = saga.ship_order.encode_failure(raised.value)
    assert run.step(activity_failed={"activity_id": "ship_order:1", "failure": failure}) == ["fail_workflow"]
    assert run.failure().message == "shipping service unavailable"
    undone_with = [
        [command.arguments[argument.activity_argument].json for argument in command.compensation.arguments]
        for command in reversed(asked)
    ]
    assert undone_with == [['"ORD-12345"', "109.97"], ['"ORD-12345"']]
    assert "Refunding" not in capsys.readouterr().out  # undoing is the service's
