"""Activities whose effects are in a database of their own. `python -m tests.faults.cashiers ADDRESS WORKER_ID BANK [STEP]`
is a worker that has them; it kills itself when its first attempt to pay gets as far as STEP, one of `bank.STEPS`.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

from romancy import TerminalError, Worker, WorkflowContext, WorkflowDefinition, workflow
from tests.worker_sdk.bank import Bank, stop_at


def shopping(bank: Bank) -> WorkflowDefinition[..., Any]:
    """The workflow that pays at this bank."""

    @workflow
    async def shop(ctx: WorkflowContext, amounts: list[int], broken: bool) -> int:
        paid = [(await bank.pay(amount)).amount for amount in amounts]
        if broken:
            raise TerminalError("everything goes back")
        return sum(paid)

    return shop


def main(address: str, worker_id: str, url: str, step: str = "") -> None:
    """Work until SIGTERM."""
    bank = Bank(url)
    if step:
        stop_at(bank, step, signal.SIGKILL)
    Worker(
        address, worker_id=worker_id, workflows=[shopping(bank)], activities=[bank.pay, bank.refund], drain_timeout=5
    ).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
