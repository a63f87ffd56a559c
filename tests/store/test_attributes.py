"""Attributes as they are stored with their run, and as lists find them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from sqlalchemy import select

from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_COMPLETED
from romancy.v1.workflow_service_pb2 import AttributeFilter, WorkflowFilter

from romancy import Attribute
from romancy_service.core.run import Run
from romancy_service.core.triggers import RequestCancel
from romancy_service.store import lookups, sqlite
from romancy_service.store.postgres import DIALECT
from romancy_service.store.selection import select_runs
from romancy_service.store.sql import compiled
from romancy_service.store.store import Change, Store, open_store
from romancy_service.store.tables import attributes, runs
from tests.core.life import complete
from tests.core.test_attributes import change, text, texts
from tests.store.drive import NAMESPACE, T0, begin, code, reloaded, store_all, then

CUSTOMER = Attribute("customer", str)
TOTAL = Attribute("total", int)
WEIGHT = Attribute("weight", float)
URGENT = Attribute("urgent", bool)
DUE = Attribute("due", datetime)
TAGS = Attribute("tags", list[str])
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
_starts = itertools.count(T0)


async def started(store: Store, name: str, values: dict[Attribute[Any], Any] | None = None) -> Run:
    """A stored run with these attributes, newer than the one before."""
    now_ms = next(_starts)
    run = begin(name, now_ms=now_ms, attributes={key.name: key.encode(value) for key, value in (values or {}).items()})
    await store_all(store, Change(run), now_ms=now_ms)
    return run


async def found(store: Store, *wanted: AttributeFilter, **more: Any) -> list[str]:
    """The workflow ids that a filter finds, newest first; their count says the same."""
    selection = WorkflowFilter(attributes=wanted, **more)
    summaries = await store.list_runs(NAMESPACE, selection, None, 100)
    assert await store.count_runs(NAMESPACE, selection) == (len(summaries), False)
    return [summary.workflow_id for summary in summaries]


async def rows_of(store: Store, run: Run) -> list[tuple[Any, ...]]:
    order = (attributes.c.name, attributes.c.position)
    rows = await store._read(select(attributes).where(attributes.c.run_id == run.run_id).order_by(*order))
    return [(row["name"], row["text_value"], row["integer_value"], row["number_value"]) for row in rows]


async def test_attributes_are_stored_with_the_start_and_come_back_with_the_run(store: Store) -> None:
    values: dict[Attribute[Any], Any] = {
        CUSTOMER: "ädä",
        TOTAL: -(2**63),
        WEIGHT: 5e-324,
        URGENT: True,
        DUE: NOON,
        TAGS: ["b", "a", "b"],
    }
    run = await started(store, "one", values)
    assert (await reloaded(store, run)).attributes == run.attributes
    assert await rows_of(store, run) == [
        ("customer", "ädä", 0, 0.0),
        ("due", "", int(NOON.timestamp()) * 1_000_000, 0.0),
        ("tags", "b", 0, 0.0),
        ("tags", "a", 0, 0.0),
        ("total", "", -(2**63), 0.0),
        ("urgent", "", 1, 0.0),
        ("weight", "", 0, 5e-324),
    ]


async def test_a_change_by_the_code_is_stored_as_one_net_change(store: Store) -> None:
    run = await started(store, "one", {TAGS: ["a", "b", "c"], CUSTOMER: "ada", TOTAL: 1})
    untouched = await started(store, "two", {TAGS: ["a", "b", "c"], CUSTOMER: "ada"})
    await store_all(store, code(run, change("customer", tags=texts("x", "y")), change(tags=texts("z"), new=text("n"))))
    assert await rows_of(store, run) == [("new", "n", 0, 0.0), ("tags", "z", 0, 0.0), ("total", "", 1, 0.0)]
    assert len(await rows_of(store, untouched)) == 4
    assert (await reloaded(store, run)).attributes == run.attributes

    await store_all(store, then(run, RequestCancel("", "")))
    await store_all(store, code(run, change(tags=texts(*"abcdef"), total=text("now a text"))))
    assert [row[1] for row in await rows_of(store, run)] == ["n", *"abcdef", "now a text"]


async def test_a_change_that_loses_its_race_changes_no_attribute(store: Store) -> None:
    run = await started(store, "one", {CUSTOMER: "ada"})
    late = await reloaded(store, run)
    await store_all(store, code(run, change(customer=text("bob"))))
    result = await store.commit([code(late, change("customer", tags=texts("x")))], T0)
    assert result.written == set()
    assert await rows_of(store, run) == [("customer", "bob", 0, 0.0)]


async def test_every_condition_compares_values_of_its_own_type(store: Store) -> None:
    await started(store, "none")
    await started(store, "low", {TOTAL: -5, CUSTOMER: "ada", WEIGHT: -0.5, URGENT: False, DUE: NOON.replace(hour=1)})
    await started(store, "mid", {TOTAL: 0, CUSTOMER: "", WEIGHT: 0.0, URGENT: True, TAGS: ["red", "blue"], DUE: NOON})
    await started(store, "top", {TOTAL: 7, CUSTOMER: "bob", WEIGHT: 1e300, TAGS: ["red"]})
    await started(store, "odd", {Attribute("total", str): "7", Attribute("customer", int): 1})

    assert await found(store) == ["odd", "top", "mid", "low", "none"]
    assert await found(store, TOTAL.equals(7)) == ["top"]
    assert await found(store, Attribute("total", str).equals("7")) == ["odd"]
    assert await found(store, Attribute("total", float).equals(7)) == []
    assert await found(store, TOTAL.differs_from(7)) == ["odd", "mid", "low"]
    assert await found(store, TOTAL.below(0)) == ["low"]
    assert await found(store, TOTAL.at_most(0)) == ["mid", "low"]
    assert await found(store, TOTAL.above(0)) == ["top"]
    assert await found(store, TOTAL.at_least(0)) == ["top", "mid"]
    assert await found(store, TOTAL.one_of(7, -5, 8)) == ["top", "low"]
    assert await found(store, TOTAL.one_of(7)) == ["top"]
    assert await found(store, TOTAL.exists()) == ["odd", "top", "mid", "low"]
    assert await found(store, TOTAL.is_missing()) == ["none"]
    assert await found(store, CUSTOMER.equals("")) == ["mid"]
    assert await found(store, CUSTOMER.above("ada")) == ["top"]
    assert await found(store, CUSTOMER.at_most("b")) == ["mid", "low"]
    assert await found(store, WEIGHT.below(0.0)) == ["low"]
    assert await found(store, WEIGHT.at_least(0.0)) == ["top", "mid"]
    assert await found(store, WEIGHT.one_of(0.0, 1e300)) == ["top", "mid"]
    assert await found(store, URGENT.equals(False)) == ["low"]
    assert await found(store, URGENT.differs_from(False)) == ["mid"]
    assert await found(store, DUE.below(NOON)) == ["low"]
    assert await found(store, DUE.equals(NOON)) == ["mid"]
    assert await found(store, TAGS.equals("red")) == ["top", "mid"]
    assert await found(store, TAGS.differs_from("blue")) == ["top"]
    assert await found(store, TAGS.one_of("red", "blue")) == ["top", "mid"]
    assert await found(store, TAGS.above("blue")) == ["top", "mid"]


async def test_conditions_are_joined_with_each_other_and_with_the_rest_of_the_filter(store: Store) -> None:
    for name, customer, total in (("a", "ada", 1), ("b", "ada", 2), ("c", "bob", 2)):
        await started(store, name, {CUSTOMER: customer, TOTAL: total, TAGS: [name, "all"]})
    done = await started(store, "d", {CUSTOMER: "ada", TOTAL: 2})
    await store_all(store, code(done, complete()))
    assert await found(store, CUSTOMER.equals("ada"), TOTAL.equals(2)) == ["d", "b"]
    assert await found(store, TOTAL.above(1), CUSTOMER.equals("ada")) == ["d", "b"]
    assert await found(store, CUSTOMER.equals("ada"), statuses=[WORKFLOW_STATUS_COMPLETED]) == ["d"]
    assert await found(store, CUSTOMER.equals("ada"), workflow_id_prefix="b") == ["b"]
    assert await found(store, TAGS.equals("all"), TAGS.equals("b")) == ["b"]
    assert await found(store, CUSTOMER.equals("ada"), CUSTOMER.equals("bob")) == []
    assert await found(store, CUSTOMER.equals("' or 1=1 --")) == []


async def test_attributes_of_another_namespace_are_not_found(store: Store) -> None:
    await started(store, "one", {CUSTOMER: "ada"})
    for wanted in (CUSTOMER.equals("ada"), CUSTOMER.exists(), CUSTOMER.above("")):
        assert await store.list_runs("elsewhere", WorkflowFilter(attributes=[wanted]), None, 10) == []


@pytest.mark.parametrize("wanted", [CUSTOMER.equals("ada"), CUSTOMER.at_least("ada")], ids=["equal", "range"])
async def test_pages_stay_stable_while_runs_come_and_change(store: Store, wanted: AttributeFilter) -> None:
    older = [await started(store, f"w{n}", {CUSTOMER: "ada"}) for n in range(7)]
    seen: list[str] = []
    after: tuple[int, str] | None = None
    selection = WorkflowFilter(attributes=[wanted])
    while page := await store.list_runs(NAMESPACE, selection, after, 2):
        seen += [run.workflow_id for run in page]
        after = (page[-1].start_ms, page[-1].run_id)
        await started(store, f"late{len(seen)}", {CUSTOMER: "ada"})
        if len(seen) == 4:
            await store_all(store, code(older[0], change("customer")))
    assert seen == ["w6", "w5", "w4", "w3", "w2", "w1"]


# Plans ----------------------------------------------------------------------------------------------------------------

_FILL = (
    """insert into runs select 'r' || n, 'default', 'w' || n, 'order', 'main', 0, '', '', n, '', 1, 1, 0, 1, n, 1, 0,
    '{}', false, 0, null, null, '', 0 from numbers""",
    """insert into attributes select 'r' || n, 'customer', 0, 'default', 1, 'c' || (n % 5), 0, 0, n from numbers""",
    """insert into attributes select 'r' || n, 'total', 0, 'default', 2, '', n, 0, n from numbers""",
)
_SUMMARY = [runs.c[name] for name in lookups.RunSummary.__slots__]


def _listed(*wanted: AttributeFilter) -> Any:
    selection = WorkflowFilter(attributes=wanted)
    return select_runs(NAMESPACE, selection).newest_first(*_SUMMARY, after=(15_000, "r15000"), limit=100)


async def test_postgres_takes_a_page_of_one_value_from_the_index_in_its_order(
    fresh_postgres: Callable[[], str],
) -> None:
    url = fresh_postgres()
    connection = await asyncpg.connect(url)
    for statement in _FILL:
        await connection.execute(f"with numbers as (select generate_series(1, 20000) as n) {statement}")
    await connection.execute("vacuum analyze")
    sql, values = compiled(_listed(CUSTOMER.equals("c3")), DIALECT, {})
    plan = "\n".join(row[0] for row in await connection.fetch(f"explain {sql}", *values))
    assert "attributes_by_value" in plan
    assert "Sort" not in plan
    assert "Seq Scan" not in plan
    for wanted in (TOTAL.above(19_900), TOTAL.one_of(5, 6), TOTAL.equals(7)):
        sql, values = compiled(_listed(wanted), DIALECT, {})
        plan = "\n".join(row[0] for row in await connection.fetch(f"explain {sql}", *values))
        assert "attributes_by_value" in plan, wanted
        assert "Seq Scan" not in plan, plan
    await connection.close()


async def test_sqlite_takes_a_page_of_one_value_from_the_index_in_its_order(tmp_path: Any) -> None:
    store = open_store(str(tmp_path / "romancy.db"))
    await store.open()
    numbers = "with recursive numbers(n) as (select 1 union all select n + 1 from numbers where n < 2000)"

    def plan(wanted: AttributeFilter) -> Callable[[Any], str]:
        sql, values = compiled(_listed(wanted), sqlite._DIALECT, {})
        return lambda connection: "\n".join(
            row["detail"] for row in connection.execute(f"explain query plan {sql}", values)
        )

    def fill(connection: Any) -> None:
        for statement in _FILL:
            before, _, after = statement.partition(" select ")
            connection.execute(f"{before} {numbers} select {after}")

    writing = store._writing  # type: ignore[attr-defined]
    for analyzed in (False, True):
        if analyzed:
            await writing.run(fill)
            await writing.run(lambda connection: connection.execute("analyze"))
        text_plan = await writing.run(plan(CUSTOMER.equals("c3")))
        assert "SEARCH sought USING COVERING INDEX attributes_by_value" in text_plan
        assert "SEARCH runs USING INDEX sqlite_autoindex_runs_1 (run_id=?)" in text_plan
        assert "TEMP B-TREE" not in text_plan
        for wanted in (TOTAL.above(1_900), TOTAL.one_of(5, 6), TOTAL.exists(), TOTAL.is_missing()):
            text_plan = await writing.run(plan(wanted))
            assert "attributes_by_value" in text_plan
            assert "SCAN" not in text_plan.replace("SCAN anon", "")
    await store.close()
