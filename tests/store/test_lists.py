"""Lists and counts: right for every combination of filters, and none looks at all that is there."""

from __future__ import annotations

import contextlib
import gc
import json
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest

from romancy.v1.workflow_pb2 import (
    WORKFLOW_STATUS_CANCELLED,
    WORKFLOW_STATUS_COMPLETED,
    WORKFLOW_STATUS_FAILED,
    WORKFLOW_STATUS_RUNNING,
    AttributeValue,
)
from romancy.v1.workflow_service_pb2 import AttributeFilter, WorkflowFilter

from romancy_service.core.times import timestamp, timestamp_ms
from romancy_service.store import lookups, sql, sqlite
from romancy_service.store.postgres import DIALECT
from romancy_service.store.sql import compiled
from romancy_service.store.store import Store, open_store
from tests.bench.seed import execute
from tests.store.test_plans import _nodes

RUNS: Final = 20_000
OPEN: Final = 20
"""The first ones are not closed yet."""
WALKED: Final = 100
COUNTED: Final = 200
LOOKED_AT: Final = 1_500
"""At most so many rows or index entries, of a page or a count."""
STEPS: Final = 80
"""Of SQLite's machine, for each of these at most; it has nothing else to say of how much it looked at."""

_NUMBERS: Final = "with recursive numbers(n) as (select 1 union all select n + 1 from numbers where n < {})"
_FILL: Final = f"""
insert into runs {{numbers}} select 'run-' || n, 'default', 'order-' || n,
    case when n % 20 = 1 then 'audit' when n % 10 < 8 then 'order' else 'refund' end, 'main', 0, '', '', n * 10, '', 5,
    case when n <= {OPEN} then 1 when n % 10 = 9 or n % 20 = 1 then 4 else 3 end,
    case when n <= {OPEN} then 0 else n * 10 + 5 end, 9, 1, 100, 0, '{{{{}}}}', false, 0, null, '', '', 0 from numbers
"""


def _filled(count: int) -> str:
    return _FILL.format(numbers=_NUMBERS.format(count))


def _run(n: int) -> dict[str, Any]:
    """What the filters see of the run of this number."""
    workflow_type = "audit" if n % 20 == 1 else "order" if n % 10 < 8 else "refund"
    status = 1 if n <= OPEN else 4 if n % 10 == 9 or n % 20 == 1 else 3
    close_ms = 0 if n <= OPEN else n * 10 + 5
    return {"id": f"order-{n}", "type": workflow_type, "status": status, "start_ms": n * 10, "close_ms": close_ms}


def _is_selected(run: dict[str, Any], wanted: WorkflowFilter) -> bool:
    asked_when_closed = wanted.HasField("closed_from") or wanted.HasField("closed_before")
    return (
        (not wanted.statuses or run["status"] in wanted.statuses)
        and wanted.workflow_type in ("", run["type"])
        and run["id"].startswith(wanted.workflow_id_prefix)
        and (not wanted.HasField("started_from") or run["start_ms"] >= timestamp_ms(wanted.started_from))
        and (not wanted.HasField("started_before") or run["start_ms"] < timestamp_ms(wanted.started_before))
        and (not asked_when_closed or run["close_ms"] > 0)
        and (not wanted.HasField("closed_from") or run["close_ms"] >= timestamp_ms(wanted.closed_from))
        and (not wanted.HasField("closed_before") or run["close_ms"] < timestamp_ms(wanted.closed_before))
    )


def _combinations() -> Iterator[WorkflowFilter]:
    statuses = ((), (WORKFLOW_STATUS_FAILED,), (WORKFLOW_STATUS_RUNNING, WORKFLOW_STATUS_COMPLETED))
    started: Sequence[dict[str, Any]] = ({}, {"started_from": timestamp(150), "started_before": timestamp(700)})
    closed: Sequence[dict[str, Any]] = (
        {},
        {"closed_from": timestamp(605)},
        {"closed_before": timestamp(505)},
        {"closed_from": timestamp(305), "closed_before": timestamp(405)},
    )
    for of_statuses, of_type, prefix, when_started, when_closed in product(
        statuses, ("", "audit", "order"), ("", "order-3", "order-"), started, closed
    ):
        yield WorkflowFilter(
            statuses=of_statuses, workflow_type=of_type, workflow_id_prefix=prefix, **when_started, **when_closed
        )


@pytest.mark.parametrize("walked", [0, 7, 1_000])
async def test_any_filters_select_the_same_however_the_runs_are_looked_for(
    store: Store, database_url: str, monkeypatch: pytest.MonkeyPatch, walked: int
) -> None:
    monkeypatch.setattr(lookups, "_WALKED", walked)
    await execute(database_url, _filled(80))
    everything = [_run(n) for n in range(80, 0, -1)]
    for wanted in _combinations():
        expected = [run["id"] for run in everything if _is_selected(run, wanted)]
        listed: list[str] = []
        after: tuple[int, str] | None = None
        while page := await store.list_runs("default", wanted, after, 30):
            listed += [run.workflow_id for run in page]
            after = (page[-1].start_ms, page[-1].run_id)
        assert listed == expected, wanted
        assert await store.count_runs("default", wanted) == (len(expected), False), wanted
    assert await store.list_runs("elsewhere", WorkflowFilter(workflow_type="order"), None, 10) == []


END_MS: Final = RUNS * 10
WANTED: Final = {
    "all": WorkflowFilter(),
    "of a type": WorkflowFilter(workflow_type="order"),
    "of a type that is not there": WorkflowFilter(workflow_type="nothing"),
    "of a type and a time": WorkflowFilter(
        workflow_type="order", started_from=timestamp(END_MS // 2), started_before=timestamp(END_MS // 2 + 1_000)
    ),
    "of a status": WorkflowFilter(statuses=[WORKFLOW_STATUS_FAILED]),
    "of two statuses": WorkflowFilter(statuses=[WORKFLOW_STATUS_RUNNING, WORKFLOW_STATUS_CANCELLED]),
    "of a type and a status": WorkflowFilter(workflow_type="order", statuses=[WORKFLOW_STATUS_COMPLETED]),
    "none, of a type and a status that are many": WorkflowFilter(
        workflow_type="order", statuses=[WORKFLOW_STATUS_FAILED]
    ),
    "open, of a type": WorkflowFilter(workflow_type="order", statuses=[WORKFLOW_STATUS_RUNNING]),
    "closed since ever": WorkflowFilter(closed_from=timestamp(1)),
    "closed just now": WorkflowFilter(closed_from=timestamp(END_MS - 100)),
    "closed long ago": WorkflowFilter(closed_from=timestamp(1_000), closed_before=timestamp(1_100)),
    "failed, closed just now": WorkflowFilter(statuses=[WORKFLOW_STATUS_FAILED], closed_from=timestamp(END_MS - 100)),
    "none, of a status, closed since ever": WorkflowFilter(
        statuses=[WORKFLOW_STATUS_CANCELLED], closed_from=timestamp(1)
    ),
    "none, of a type and a status, closed since ever": WorkflowFilter(
        workflow_type="order", statuses=[WORKFLOW_STATUS_FAILED], closed_from=timestamp(1)
    ),
    "of a prefix that all have": WorkflowFilter(workflow_id_prefix="order-"),
    "of a prefix that few have": WorkflowFilter(workflow_id_prefix="order-55"),
    "of a prefix that few have, failed": WorkflowFilter(
        workflow_id_prefix="order-55", statuses=[WORKFLOW_STATUS_FAILED]
    ),
    "of a prefix that all have and a status that none has": WorkflowFilter(
        workflow_id_prefix="order-", statuses=[WORKFLOW_STATUS_CANCELLED]
    ),
}


async def _looked_at(
    store: Store, monkeypatch: pytest.MonkeyPatch, measure: Callable[[str, Sequence[Any]], Awaitable[int]], dialect: Any
) -> dict[str, list[int]]:
    """By what is asked for, more than it may take: what `measure` says of each statement of a page and a count."""
    monkeypatch.setattr(lookups, "_WALKED", WALKED)
    monkeypatch.setattr(lookups, "COUNTED", COUNTED)
    search, statements = store._search, list[Any]()

    async def note(statement: Any, **values: Any) -> Any:
        statements.append(statement)
        return await search(statement, **values)

    monkeypatch.setattr(store, "_search", note)
    too_much = {}
    for name, wanted in WANTED.items():
        statements.clear()
        await store.list_runs("default", wanted, None, 50)
        await store.count_runs("default", wanted)
        assert len(statements) >= 2
        looked_at = [await measure(*compiled(statement, dialect, {})) for statement in statements]
        if sum(looked_at) > LOOKED_AT:
            too_much[name] = looked_at
    return too_much


async def test_on_postgres_no_page_and_no_count_looks_at_all_that_is_there(
    fresh_postgres: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = fresh_postgres()
    await execute(url, _filled(RUNS))
    await execute(url, "vacuum analyze runs")
    connection = await asyncpg.connect(url)

    async def rows(sql: str, arguments: Sequence[Any]) -> int:
        (found,) = await connection.fetch(f"explain (analyze, format json) {sql}", *arguments)
        return sum(
            (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
            for node in _nodes(json.loads(found[0])[0]["Plan"])
            if "Scan" in node["Node Type"] and "Relation Name" in node
        )

    store = open_store(url)
    await store.open()
    # What is estimated is asked of the planner, and looks at nothing.
    monkeypatch.setattr(store, "_estimate", _no_estimate)
    assert await _looked_at(store, monkeypatch, rows, DIALECT) == {}
    await store.close()
    await connection.close()


async def test_on_sqlite_no_page_and_no_count_looks_at_all_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "romancy.db")
    store = open_store(url)
    await store.open()
    await execute(url, _filled(RUNS))

    async def rows(sql: str, arguments: Sequence[Any]) -> int:
        return _steps(url, sql, arguments) // STEPS

    monkeypatch.setattr(store, "_estimate", _no_estimate)  # another test is of that
    assert await _looked_at(store, monkeypatch, rows, sqlite._DIALECT) == {}
    await store.close()


def _steps(url: str, sql: str, arguments: Sequence[Any]) -> int:
    """How many steps SQLite's machine takes for a query."""
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    with contextlib.closing(sqlite3.connect(url)) as connection:
        connection.set_progress_handler(count, 1)
        connection.execute(sql, arguments).fetchall()
    return steps


async def _no_estimate(_: Any) -> int:
    return 0


async def test_on_sqlite_an_estimate_is_near_what_is_there_and_looks_at_a_sample_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "romancy.db")
    store = open_store(url)
    await store.open()
    await execute(url, _filled(RUNS))
    await execute(url, f"delete from runs where start_ms > {END_MS // 2} and start_ms % 20 = 0")
    everything = [run for n in range(1, RUNS + 1) if (run := _run(n))["start_ms"] <= END_MS // 2 or n % 2]
    monkeypatch.setattr(lookups, "COUNTED", COUNTED)
    for wanted in WANTED.values():
        there = sum(_is_selected(run, wanted) for run in everything)
        count, estimated = await store.count_runs("default", wanted)
        assert estimated == (there > COUNTED)
        # By chance a sample has more or fewer of those that it looks for: five times what is usual is never seen.
        error = 5 * there**0.5 * (RUNS / sqlite._SAMPLED) ** 0.5 if estimated else 0
        assert abs(count - there) <= error, wanted
    await store.close()


async def test_on_sqlite_an_estimate_of_those_with_a_value_looks_at_a_sample_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "romancy.db")
    store = open_store(url)
    await store.open()
    await execute(url, _filled(RUNS))
    values = "'run-' || n, 'customer', 0, 'default', 1, 'c' || (n % 5), 0, 0, n * 10"
    await execute(url, f"insert into attributes {_NUMBERS.format(RUNS)} select {values} from numbers")
    monkeypatch.setattr(lookups, "COUNTED", COUNTED)
    asked: list[Any] = []
    search = store._search

    async def note(statement: Any, **values: Any) -> Any:
        asked.append(statement)
        return await search(statement, **values)

    monkeypatch.setattr(store, "_search", note)
    equal = AttributeFilter(name="customer", equal=AttributeValue(text="c3"))
    count, estimated = await store.count_runs("default", WorkflowFilter(workflow_type="order", attributes=[equal]))
    assert estimated
    there = sum(_run(n)["type"] == "order" for n in range(3, RUNS + 1, 5))
    assert abs(count - there) <= 5 * there**0.5 * (RUNS / sqlite._SAMPLED) ** 0.5
    assert _steps(url, *compiled(asked[-1], sqlite._DIALECT, {})) <= 200 * sqlite._SAMPLED
    await store.close()


async def test_the_statement_of_a_list_is_gone_with_its_call(store: Store) -> None:
    await store.list_runs("default", WorkflowFilter(workflow_type="order"), None, 10)
    gc.collect()
    before = len(sql._COMPILED)
    for number in range(20):
        await store.list_runs("default", WorkflowFilter(workflow_type=f"order-{number}"), None, 10)
    gc.collect()
    assert len(sql._COMPILED) <= before
