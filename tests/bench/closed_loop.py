"""Closed loop: the load that every system is measured under. Needs nothing but Python, as peers' clients use it too."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from tests.bench.order import Order, Receipt, check_receipt, order

PATIENCE_S: Final = 60.0
"""A period ends by then even if fewer orders ended than are open; and so long may the last ones take to end."""

Place = Callable[[Order], Awaitable[Receipt]]
"""Starts a workflow for the order, and waits for its result."""


def tell(**document: object) -> None:
    """Print a JSON document for whoever measures."""
    print(json.dumps(document), flush=True)


async def closed_loop(place: Place, numbers: Sequence[str]) -> None:
    """Place orders as the command line says: IN_FLIGHT WARM_UP_S SECONDS. Tells `begin`, `end` and `done`."""
    in_flight, warm_up_s, seconds = numbers
    await ClosedLoop(place, int(in_flight)).run(float(warm_up_s), float(seconds))


@dataclass(slots=True)
class ClosedLoop:
    """Orders, so many at a time: each that ends is followed by another. Those that end while it is measured count.

    A slow system with many orders open ends them in waves. So a period, the warm-up too, lasts until as many have ended
    as are open: it then has a whole wave in it, whenever it began.
    """

    place: Place
    in_flight: int
    started: int = 0
    ended: int = 0
    stopping: bool = False
    measuring: bool = False
    latencies_s: list[float] = field(default_factory=list)
    _target: int = 0
    _reached: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, warm_up_s: float, seconds: float) -> None:
        """Warm up, measure, and let what is open end, within a minute."""
        with suppress(TimeoutError):
            await self._load(warm_up_s, seconds)
        tell(at="done", started=self.started, unfinished=self.started - self.ended)

    async def _load(self, warm_up_s: float, seconds: float) -> None:
        async with asyncio.timeout(None) as ending, asyncio.TaskGroup() as group:
            for _ in range(self.in_flight):
                group.create_task(self._place_orders())
            await self._period(warm_up_s)
            self.measuring = True
            begin = time.perf_counter()
            tell(at="begin")
            await self._period(seconds)
            self.measuring = False
            self.stopping = True
            elapsed_s = time.perf_counter() - begin
            tell(at="end", elapsed_s=elapsed_s, completed=len(self.latencies_s), latencies_s=sorted(self.latencies_s))
            ending.reschedule(asyncio.get_running_loop().time() + PATIENCE_S)

    async def _period(self, seconds: float) -> None:
        self._target = self.ended + self.in_flight
        self._reached.clear()
        await asyncio.sleep(seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, PATIENCE_S - seconds)):
                await self._reached.wait()

    async def _place_orders(self) -> None:
        while not self.stopping:
            placed = order(self.started)
            self.started += 1
            begin = time.perf_counter()
            check_receipt(placed, await self.place(placed))
            self.ended += 1
            if self.measuring:
                self.latencies_s.append(time.perf_counter() - begin)
            if self.ended == self._target:
                self._reached.set()
