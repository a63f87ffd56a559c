"""Temporal's client: `python -m tests.bench.peers.programs.temporal_client ADDRESS IN_FLIGHT WARM_UP_S SECONDS`."""

from __future__ import annotations

import sys
import uuid

import uvloop
from temporalio.client import Client

from tests.bench.closed_loop import closed_loop
from tests.bench.order import Order, Receipt
from tests.bench.peers.programs.temporal_saga import TASK_QUEUE, OrderWorkflow


async def main() -> None:
    """Load until told."""
    address, *numbers = sys.argv[1:]
    client = await Client.connect(address)

    async def place(order: Order) -> Receipt:
        return await client.execute_workflow(OrderWorkflow.run, order, id=str(uuid.uuid4()), task_queue=TASK_QUEUE)

    await closed_loop(place, numbers)


if __name__ == "__main__":
    uvloop.run(main())
