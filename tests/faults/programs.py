"""What the workers of the fault tests run. `python -m tests.faults.programs ADDRESS WORKER_ID` is such a worker.

ROMANCY_TEST_FOLDER is where the ledger lies and where gates are opened; ROMANCY_TEST_DIE=pay:in kills the worker in its
first attempt of `pay`: `before` the effect, `in` (after it, before the answer) or `after` the answer was given.
ROMANCY_TEST_QUEUE is the task queue that it serves.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from romancy import (
    Attribute,
    RetryPolicy,
    TerminalError,
    Worker,
    WorkflowContext,
    activity,
    activity_info,
    compensation,
    heartbeat,
    workflow,
)
from tests.faults.ledger import Entry, Kind, write

SLOTS = 400
STAGE = Attribute("stage", str)
TAGS = Attribute("tags", list[str])
_FOLDER = Path(os.environ.get("ROMANCY_TEST_FOLDER", "."))
_DIE_IN, _, _DIE_WHEN = os.environ.get("ROMANCY_TEST_DIE", "").partition(":")
_AT_ONCE = RetryPolicy(initial_interval=0.02, jitter=0)


def _note(kind: Kind) -> None:
    info = activity_info()
    write(_FOLDER / "ledger", Entry(kind, info.run_id, info.activity_id, info.attempt, str(os.getpid())))


def _die(when: str) -> None:
    info = activity_info()
    if (info.activity_type, when) == (_DIE_IN, _DIE_WHEN) and info.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def _have_effect() -> None:
    _note("begin")
    _die("before")
    _note("effect")
    _die("in")
    if (activity_info().activity_type, "after") == (_DIE_IN, _DIE_WHEN) and activity_info().attempt == 1:
        asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGKILL)


@compensation(retry=_AT_ONCE)
async def cancel(order_id: str) -> None:
    _have_effect()


@compensation(retry=_AT_ONCE)
async def refund(order_id: str) -> None:
    _have_effect()


@compensation(retry=_AT_ONCE)
async def undo(number: int) -> None:
    _have_effect()


@activity(compensation=cancel)
async def reserve(order_id: str) -> str:
    _have_effect()
    return f"reserved {order_id}"


@activity(compensation=refund)
async def pay(order_id: str) -> str:
    _have_effect()
    return f"paid {order_id}"


@activity
async def ship(order_id: str, broken: bool) -> str:
    if broken:
        raise TerminalError(f"cannot ship {order_id}")
    _have_effect()
    return f"shipped {order_id}"


async def _pass_gate(gate: str) -> None:
    while not (_FOLDER / gate).exists():
        heartbeat(gate)
        await asyncio.sleep(0.1)


@activity(compensation=undo)
async def held(number: int, gate: str) -> int:
    _note("begin")
    await _pass_gate(gate)
    _note("effect")
    return number


@workflow
async def order(ctx: WorkflowContext, order_id: str, broken: bool) -> str:
    await reserve(order_id)
    ctx.set_attributes({STAGE: "reserved", TAGS: [order_id, "broken" if broken else "good"]})
    await pay(order_id)
    ctx.set_attributes({STAGE: "paid", TAGS: None})
    return await ship(order_id, broken)


@workflow
async def crowd(ctx: WorkflowContext, count: int) -> int:
    """So many activities at once, held until their gates open; every second one must beat."""
    beating = held.options(heartbeat_timeout=5)
    calls = [(beating if n % 2 else held)(n, f"gate-{n % 4}") for n in range(count)]
    return sum(await asyncio.gather(*calls))


def main(address: str, worker_id: str) -> None:
    """Work until SIGTERM."""
    Worker(
        address,
        worker_id=worker_id,
        task_queues=[os.environ.get("ROMANCY_TEST_QUEUE", "default")],
        workflows=[order, crowd],
        activities=[reserve, pay, ship, held],
        activity_slots=SLOTS,
        drain_timeout=5,
    ).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
