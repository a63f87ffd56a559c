"""Budget: what an order may cost, as it is recorded; a change that makes it dearer by more than the error fails.

Not by the clock. Counted are rows, commits, round trips, and *calls*: how often Python calls a function, its own or one
in C, in service, worker and client together. That hardly depends on the machine or on who else uses it, and follows CPU
time as long as calls cost what they did.

CPU time itself is measured too, in *units*: that of a fixed piece of work of the same kind (messages, texts, objects,
statements), done again and again between the orders, in the same process. What makes one slower makes the other one
slower: a busy machine, a shared processor, another frequency. What is left is an error of a tenth, so this is only
for what no count shows.

    python -m tests.bench.budget             compare with what is recorded; exit code 1 if something rose too far
    python -m tests.bench.budget --record    record what is measured
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sqlite3
import statistics
import sys
import threading
import time
from _lsprof import Profiler
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.worker_service_pb2 import ConnectRequest

from romancy import Client, Worker, testing
from romancy_service.store.store import open_store
from tests.bench.database import SqliteDatabase, databases
from tests.bench.order import order
from tests.bench.workload import order_workflow, pay, reserve, ship

RECORD: Final = Path(__file__).with_name("budget.json")
ALLOWED: Final = {
    "cpu_units_per_workflow": 1.25,
    "calls_per_workflow_sqlite": 1.10,
    "calls_per_workflow_postgres": 1.10,
    "commits_per_workflow": 1.02,
    "rows_per_workflow_sqlite": 1.03,
    "rows_per_workflow_postgres": 1.03,
    "round_trips_per_lone_workflow_postgres": 1.25,
}
"""How much more than what is recorded is let pass: some times what a figure differs by itself. One commit or one row
more for each order is too much."""
ROUNDS: Final = 24
ORDERS: Final = 64
"""Orders of a round, all at once."""
COUNTED_ROUNDS: Final = 4
"""Rounds in which rows and commits are counted: so many orders that what the service does by itself hardly counts."""
LONE: Final = 60
"""Orders one after the other, whose round trips are counted: those of several would travel together."""
_MESSAGES: Final = 1_500
"""Of a piece of work: about as much CPU time as a round's orders take, a third of it at least."""


# What is measured ---------------------------------------------------------------------------------------------------


async def cpu_units(url: str) -> float:
    """CPU time of an order, service, worker and client together, in thousandths of a piece of work."""
    ratios = []
    async with testing.service(url) as service, _worker(service.address):
        await _place(service.client, ORDERS)
        await _place(service.client, ORDERS)
        gc.collect()
        gc.freeze()
        for _ in range(ROUNDS):
            before_s = _work_s()
            begin_s = time.process_time()
            await _place(service.client, ORDERS)
            orders_s = time.process_time() - begin_s
            ratios.append(2 * orders_s / (before_s + _work_s()))
        gc.unfreeze()
    return 1_000 * statistics.median(ratios) / ORDERS


async def calls(url: str) -> float:
    """How often an order calls a function, in all threads. The profiler that counts is in C: the code runs on."""
    profilers: list[Profiler] = []

    def count(*_: object) -> None:
        profilers.append(Profiler(subcalls=False))
        profilers[-1].enable()

    def counted() -> int:
        return sum(entry.callcount for profiler in profilers for entry in profiler.getstats())

    threading.setprofile(count)  # for the threads of the service and of the worker, which begin only now
    try:
        async with testing.service(url) as service, _worker(service.address):
            await _place(service.client, ORDERS)
            count()
            try:
                before = counted()
                for _ in range(COUNTED_ROUNDS):
                    await _place(service.client, ORDERS)
                return (counted() - before) / (COUNTED_ROUNDS * ORDERS)
            finally:
                profilers[-1].disable()
    finally:
        threading.setprofile(None)


async def _place(client: Client, count: int) -> None:
    await asyncio.gather(*(client.execute_workflow(order_workflow, order(number)) for number in range(count)))


def _worker(address: str) -> Worker:
    return Worker(address, workflows=[order_workflow], activities=[reserve, pay, ship], worker_id="budget")


def _work_s() -> float:
    """CPU time of the piece of work."""
    begin_s = time.process_time()
    seen: dict[str, list[int]] = {}
    rows = []
    with sqlite3.connect(":memory:") as connection:
        connection.execute("create table work (name text primary key, number integer, value blob)")
        for number in range(_MESSAGES):
            event = HistoryEvent(event_id=number)
            event.activity_completed.activity_id = f"step:{number}"
            event.activity_completed.result.json = json.dumps({"number": number, "words": ["a", "b", str(number)]})
            event.time.FromMilliseconds(1_700_000_000_000 + number)
            data = event.SerializeToString()
            frame = ConnectRequest()
            frame.activity_completions.add(token=f"token-{number}").result.CopyFrom(event.activity_completed.result)
            frame.ParseFromString(frame.SerializeToString())
            read = HistoryEvent.FromString(data)
            seen.setdefault(read.activity_completed.activity_id[:6], []).append(read.event_id)
            json.loads(read.activity_completed.result.json)
            rows.append((read.activity_completed.activity_id, read.event_id, data))
        connection.executemany("insert into work values (?, ?, ?)", rows)
    return time.process_time() - begin_s


async def _counted(url: str, rounds: int, together: int) -> int:
    """Orders whose rows or round trips are counted. Returns how many."""
    async with testing.service(url) as service, _worker(service.address):
        for _ in range(rounds):
            await _place(service.client, together)
    return rounds * together


def measure() -> dict[str, float]:
    """All figures, by name."""
    figures = {}
    with databases("sqlite") as made:
        figures["cpu_units_per_workflow"] = asyncio.run(cpu_units(made.fresh().url))
        figures["calls_per_workflow_sqlite"] = asyncio.run(calls(made.fresh().url))
        database = made.fresh()
        assert isinstance(database, SqliteDatabase)
        asyncio.run(_migrate(database.url))
        database.count_rows()
        orders = asyncio.run(_counted(database.url, COUNTED_ROUNDS, ORDERS))
        work = database.work()
        assert work.rows_written is not None
        figures["commits_per_workflow"] = work.versions_per_run
        figures["rows_per_workflow_sqlite"] = work.rows_written / orders
    with databases("postgres") as made:
        figures["calls_per_workflow_postgres"] = asyncio.run(calls(made.fresh().url))
        on_postgres = made.fresh()
        orders = asyncio.run(_counted(on_postgres.url, COUNTED_ROUNDS, ORDERS))
        work = on_postgres.work()
        assert work.rows_written is not None
        figures["rows_per_workflow_postgres"] = work.rows_written / orders
        on_postgres = made.fresh()
        orders = asyncio.run(_counted(on_postgres.url, LONE, 1))
        work = on_postgres.work()
        assert work.transactions is not None
        figures["round_trips_per_lone_workflow_postgres"] = work.transactions / orders
    return {name: round(value, 2) for name, value in figures.items()}


async def _migrate(url: str) -> None:
    store = open_store(url)
    await store.open()
    await store.close()


# What is compared ---------------------------------------------------------------------------------------------------


def risen(measured: Mapping[str, float], recorded: Mapping[str, float]) -> list[str]:
    """What is too far above what is recorded, each as a sentence."""
    return [
        f"{name} is {measured[name]:g}, {measured[name] / before - 1:+.0%} against the {before:g} that is recorded; "
        f"up to {ALLOWED[name] - 1:+.0%} is let pass. If it must be so, record it: make budget RECORD=--record"
        for name, before in recorded.items()
        if measured[name] > before * ALLOWED[name]
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and record or compare."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.budget")
    parser.add_argument("--record", action="store_true", help="keep what is measured in tests/bench/budget.json")
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    measured = measure()
    recorded: dict[str, float] = {} if options.record else json.loads(RECORD.read_text())
    for name, value in measured.items():
        print(f"{name:<34} {value:>8g}  recorded {recorded.get(name, value):g}")
    if options.record:
        RECORD.write_text(json.dumps(measured, indent=2) + "\n")
    print(f"measured in {time.monotonic() - begin:.0f} s")
    if too_high := risen(measured, recorded):
        sys.exit("\n".join(too_high))


if __name__ == "__main__":
    main()
