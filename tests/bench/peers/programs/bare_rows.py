"""The floor of the database: as many rows as our order saga writes, in as large statements, and nothing around them.

`python -m tests.bench.peers.programs.bare_rows URL PLAN IN_FLIGHT WARM_UP_S SECONDS`, the plan as JSON. Tells as
closed_loop.py does; a workflow is as many statements as one of ours takes.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import asyncpg
import uvloop

from tests.bench.closed_loop import tell
from tests.bench.peers.programs.share import Share

LANES: Final = 3
"""Connections, as many as the service commits on."""
_TABLE: Final = "create table bare (key text primary key, payload bytea not null)"
_STATEMENT: Final = """
with gone as (delete from bare where key = any($3::text[])),
changed as (
    update bare set payload = later.payload
    from unnest($4::text[], $5::bytea[]) as later (key, payload) where bare.key = later.key
)
insert into bare select * from unnest($1::text[], $2::bytea[])
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one workflow writes."""

    inserted: float
    updated: float
    deleted: float
    statements: float
    row_bytes: int


@dataclass(slots=True)
class Lane:
    """One connection with rows of its own, so that no lane waits for another."""

    name: str
    plan: Plan
    url: str
    statements: int = 0
    stopping: bool = False
    latencies_s: list[float] = field(default_factory=list)

    async def run(self) -> None:
        """Write until told to stop."""
        plan = self.plan
        shares = [Share(part / plan.statements) for part in (plan.inserted, plan.updated, plan.deleted)]
        alive: deque[str] = deque()
        payload = b"x" * plan.row_bytes
        each = max(1, round(plan.statements))
        connection = await asyncpg.connect(self.url)
        try:
            written = 0
            statement = await connection.prepare(_STATEMENT)
            while not self.stopping:
                begin = time.perf_counter()
                for _ in range(each):
                    inserted, updated, deleted = (share.next() for share in shares)
                    gone = [alive.popleft() for _ in range(min(deleted, len(alive)))]
                    changed = [alive[-1 - number] for number in range(min(updated, len(alive)))]
                    new = [f"{self.name}-{number:030}" for number in range(written, written + inserted)]
                    written += inserted
                    await statement.fetch(new, [payload] * inserted, gone, changed, [payload] * len(changed))
                    alive.extend(new)
                    self.statements += 1
                self.latencies_s.append(time.perf_counter() - begin)
        finally:
            await connection.close()


async def main() -> None:
    """Warm up, measure, and end."""
    url, words, in_flight, warm_up_s, seconds = sys.argv[1:]
    plan = Plan(**json.loads(words))
    connection = await asyncpg.connect(url)
    await connection.execute(_TABLE)
    await connection.close()
    lanes = [Lane(f"lane-{number}", plan, url) for number in range(LANES if int(in_flight) > 1 else 1)]
    async with asyncio.TaskGroup() as group:
        for lane in lanes:
            group.create_task(lane.run())
        await asyncio.sleep(float(warm_up_s))
        before = sum(lane.statements for lane in lanes)
        for lane in lanes:
            lane.latencies_s.clear()
        begin = time.perf_counter()
        tell(at="begin")
        await asyncio.sleep(float(seconds))
        elapsed_s = time.perf_counter() - begin
        completed = (sum(lane.statements for lane in lanes) - before) / plan.statements
        latencies_s = sorted(latency for lane in lanes for latency in lane.latencies_s)
        tell(at="end", elapsed_s=elapsed_s, completed=completed, latencies_s=latencies_s)
        for lane in lanes:
            lane.stopping = True
    tell(at="done", started=completed)


if __name__ == "__main__":
    uvloop.run(main())
