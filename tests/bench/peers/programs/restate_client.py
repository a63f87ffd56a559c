"""Restate's client, over its HTTP ingress with connections that stay open.

`python -m tests.bench.peers.programs.restate_client INGRESS IN_FLIGHT WARM_UP_S SECONDS`
"""

from __future__ import annotations

import sys
from dataclasses import asdict

import aiohttp
import uvloop

from tests.bench.closed_loop import closed_loop
from tests.bench.order import Order, Receipt, receipt_of


async def main() -> None:
    """Load until told."""
    ingress, *numbers = sys.argv[1:]
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None), raise_for_status=True
    ) as session:

        async def place(order: Order) -> Receipt:
            async with session.post(f"{ingress}/orders/place", json=asdict(order)) as response:
                return receipt_of(await response.json())

        await closed_loop(place, numbers)


if __name__ == "__main__":
    uvloop.run(main())
