"""Plans: no statement of the hot path walks over a table, whether the plan was made when it was empty or full."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import Select

from romancy_service.store import lookups, sqlite, workforce
from romancy_service.store.arrays import ANY_TEXT, Arrays
from romancy_service.store.event_rules import ACTIVE, NOTE
from romancy_service.store.events import CLOSE, RECEIVERS, SUBSCRIBERS, TOPICS
from romancy_service.store.postgres import DIALECT, INDEXED, WALKING
from romancy_service.store.postgres_commit import BY_KEY, Shape, statement
from romancy_service.store.postgres_tasks import CLAIM, HEARTBEAT, LEASED, LOAD, RELEASE, WANTS
from romancy_service.store.sql import compiled
from romancy_service.store.store import DUE, ERRANDS, ERRANDS_OF, open_store

Node = dict[str, Any]

_FILL_RUNS = """
insert into runs select 'run-' || n, 'default', 'order-' || n, 'order', 'main', 0, '', '', n, '', 1, 1, 0, 1, n, 1, 0,
    '{}', false, 0, null, null, '', 0 from generate_series(1, 20000) as n
"""
_FILL_TASKS = """
insert into tasks select 'run-' || n, 'w', 'default', 1, 'main', 'order', 0, 1, n, null, n, 1e18, 1e18, 1e18, 1e18,
    false, 0, 0, 0, false, null, 0, 1e18, '', 0, 0, 0, null from generate_series(1, 20000) as n
"""


@pytest.fixture(params=["never analyzed", "analyzed while empty", "filled after that", "full"])
async def url(request: pytest.FixtureRequest, fresh_postgres: Callable[[], str]) -> str:
    """A database at several points of its life."""
    url = fresh_postgres()
    connection = await asyncpg.connect(url)
    if request.param in ("analyzed while empty", "filled after that"):
        await connection.execute("vacuum analyze")
    if request.param in ("filled after that", "full"):
        await connection.execute(_FILL_RUNS)
        await connection.execute(_FILL_TASKS)
    if request.param == "full":
        await connection.execute("vacuum analyze")
    await connection.close()
    return url


async def plan(url: str, settings: dict[str, str], sql: str) -> list[Node]:
    """The nodes of a statement's generic plan."""
    connection = await asyncpg.connect(url, server_settings={**settings, "jit": "off"})
    try:
        await connection.execute(f"prepare planned as {sql}")
        types = await connection.fetchval("select parameter_types::text[] from pg_prepared_statements where from_sql")
        values = ", ".join("null" for _ in types)
        explained = await connection.fetchval(f"explain (format json) execute planned({values})")
    finally:
        await connection.close()
    return list(_nodes(json.loads(explained)[0]["Plan"]))


async def explained(connection: asyncpg.Connection, sql: str, arguments: Sequence[object]) -> list[Node]:
    """The nodes of a statement's plan, with what they found when it was carried out."""
    (found,) = await connection.fetch(f"explain (analyze, format json) {sql}", *arguments)
    return list(_nodes(json.loads(found[0])[0]["Plan"]))


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


@pytest.mark.parametrize(
    "sql",
    [
        pytest.param(statement(Shape())[0], id="commit"),
        pytest.param(statement(Shape(uses=False, drops=False, marks=False, updates=False))[0], id="commit of a start"),
        pytest.param(statement(Shape(opens=False, marks=False, asks=False))[0], id="commit of a completion"),
        pytest.param(statement(Shape(single=True))[0], id="commit of one row of each kind"),
        pytest.param(statement(Shape(updates=False, single=True))[0], id="commit of one start"),
        pytest.param(statement(Shape(opens=False, marks=False, single=True))[0], id="commit of one completion"),
        pytest.param(LOAD, id="load"),
        pytest.param(HEARTBEAT, id="heartbeat"),
        pytest.param(RELEASE, id="release"),
        pytest.param(LEASED, id="leased"),
    ],
)
async def test_every_row_is_found_by_its_key(url: str, sql: str) -> None:
    nodes = await plan(url, BY_KEY, sql)
    walked = [node for node in nodes if node["Node Type"] in ("Seq Scan", "Index Scan", "Index Only Scan", "Tid Scan")]
    assert walked == []
    assert all("Index Cond" in node for node in nodes if node["Node Type"] == "Bitmap Index Scan")


async def test_a_claim_takes_the_first_tasks_of_its_type_from_the_index(url: str) -> None:
    nodes = await plan(url, WALKING, CLAIM)
    found = [node for node in nodes if node.get("Relation Name") == "tasks"]
    assert {node["Node Type"] for node in found} == {"Index Scan", "Index Only Scan", "Tid Scan", "ModifyTable"}
    indexes = [node for node in found if "Index" in node["Node Type"]]
    assert {node["Index Name"] for node in indexes} == {"tasks_claim"}
    # What is due later is not walked over: the index is asked for what is due of one priority.
    (due,) = (node["Index Cond"] for node in indexes if node["Node Type"] == "Index Scan")
    assert "priority = level" in due
    assert "due_ms <= " in due
    # It comes out of the index in its order: nothing is sorted below the limit.
    limited = [below["Node Type"] for node in nodes if node["Node Type"] == "Limit" for below in _nodes(node)]
    assert "Index Scan" in limited
    assert "Sort" not in limited
    (runs,) = (node for node in nodes if node.get("Relation Name") == "runs")
    assert "Index Cond" in runs


async def test_what_is_due_is_read_off_its_index(url: str) -> None:
    values = {"now_ms": 0, "overdue_ms": 0, "limit": 1, "part": 0, "parts": 1}
    sql, _ = compiled(DUE, DIALECT, values)
    nodes = await plan(url, WALKING, sql)
    assert {node.get("Index Name") for node in nodes if node.get("Relation Name") == "tasks"} == {"tasks_relay"}


async def test_runs_with_errands_are_read_off_their_index(url: str) -> None:
    values = {"after": "", "now_ms": 0, "overdue_ms": 0, "limit": 1, "part": 0, "parts": 1}
    sql, _ = compiled(ERRANDS, DIALECT, values)
    nodes = await plan(url, INDEXED, sql)
    assert [node for node in nodes if node["Node Type"] == "Seq Scan"] == []
    found = {node.get("Index Name") for node in nodes if node.get("Relation Name") == "tasks"} - {None}
    assert found <= {"tasks_errands", "tasks_pk"}
    assert "tasks_errands" in found


async def test_what_a_run_owes_others_is_read_off_an_index_in_its_order(url: str) -> None:
    values = {"run_id": "", "after_number": 0, "after_task": "", "limit": 1}
    sql, _ = compiled(ERRANDS_OF, DIALECT, values)
    nodes = await plan(url, WALKING, sql)
    (found,) = (node for node in nodes if node.get("Relation Name") == "tasks")
    assert (found["Node Type"], found["Index Name"]) == ("Index Scan", "tasks_errands")
    assert "ROW(" in found["Index Cond"], "the page begins where the last one ended"
    assert "Sort" not in [node["Node Type"] for node in nodes]


async def test_on_sqlite_too_what_a_run_owes_others_is_read_off_an_index(tmp_path: Path) -> None:
    values = {"run_id": "", "after_number": 0, "after_task": "", "limit": 1}
    sql, arguments = compiled(ERRANDS_OF, sqlite._DIALECT, values)
    store = open_store(str(tmp_path / "romancy.db"))
    await store.open()
    assert isinstance(store, sqlite.SqliteStore)

    def plan_of(connection: sqlite3.Connection) -> list[str]:
        return [row["detail"] for row in connection.execute(f"explain query plan {sql}", arguments)]

    try:
        (step,) = await store._reading.run(plan_of)
    finally:
        await store.close()
    assert "USING INDEX tasks_errands (run_id=? AND (scheduled_ms,task_id)>(?,?))" in step


def _of_events(**values: Any) -> dict[str, Any]:
    return {"of_namespace": "default", "first": "", "before": "", "topic": "", "key": "", "limit": 1} | values


async def test_an_event_finds_who_waits_and_what_it_starts_by_indexes(url: str) -> None:
    for statement_, indexes in (
        (TOPICS, ("tasks_subscribed",)),
        (SUBSCRIBERS, ("tasks_subscribed", "runs_pk")),
        (RECEIVERS, ("tasks_receivers", "runs_pk")),
        (ACTIVE, ("event_rules",)),
    ):
        sql, _ = compiled(statement_, DIALECT, _of_events(after_run="", after_task=""))
        nodes = await plan(url, WALKING, sql)
        assert [node for node in nodes if node["Node Type"] == "Seq Scan"] == [], indexes
        used = {node["Index Name"] for node in nodes if "Index Name" in node}
        assert all(name.startswith(indexes) for name in used), indexes
        assert used, indexes


async def test_an_event_is_closed_and_counted_by_keys(url: str) -> None:
    values = {"of_namespace": "", "of_type": "", "since": 1, "up_to": 1, "deliveries": [], "kept": False}
    rules = {"started": [], "skipped": [], "failed": [], "now_ms": 0}
    for statement_, given in ((CLOSE, values), (NOTE, rules)):
        sql, _ = compiled(statement_, DIALECT, given)
        nodes = await plan(url, WALKING, sql)
        assert [node for node in nodes if node["Node Type"] == "Seq Scan"] == []


def test_arrays_carry_rows_by_column() -> None:
    columns = (("name", "text"), ("number", "int"), ("note", ANY_TEXT))
    arrays = Arrays(row=columns, one=(("flag", "bool"),))
    names = "(string_to_array($1::text, chr(31)))[2:]"
    assert arrays.rows("row") == f"unnest({names}, ($2::text)::int[], $3::text[]) as row(name, number, note)"
    assert arrays.column("one", "flag") == "($4::text)::bool[]"
    values = arrays.values(row=[("a", 1, "x\x1f"), ("", 2, "")], one=[(True,)])
    assert list(values) == ["\x1fa\x1f", "{1,2}", ("x\x1f", ""), "{True}"]
    assert list(arrays.values(row=[], one=[])) == ["", "{}", (), "{}"]
    assert arrays.next_parameter == 5
    assert WANTS.next_parameter == 8


async def test_single_rows_arrive_as_they_were(url: str) -> None:
    columns = (("name", "text"), ("note", ANY_TEXT), ("number", "bigint"), ("flag", "bool"), ("data", "bytea"))
    arrays = Arrays(single=True, row=columns, one=(("id", "text"),))
    row = ("", "\x1f,{}", 2**62, True, None)
    connection = await asyncpg.connect(url)
    try:
        sql = f"select row.*, {arrays.column('one', 'id')} as ids from {arrays.rows('row')}"
        (found,) = await connection.fetch(sql, *arrays.values(row=[row], one=[("a",)]))
        assert tuple(found) == (*row, ["a"])
    finally:
        await connection.close()


async def test_arrays_arrive_as_they_were(url: str) -> None:
    arrays = Arrays(row=(("name", "text"), ("note", ANY_TEXT)))
    connection = await asyncpg.connect(url)
    try:
        for rows in ([], [("", "")], [("", "\x1f"), ('a,{}"\\é', "b"), ("", "")]):
            found = await connection.fetch(f"select name, note from {arrays.rows('row')}", *arrays.values(row=rows))
            assert [tuple(row) for row in found] == rows
    finally:
        await connection.close()


def test_a_text_that_would_become_two_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a text of row\.name has the control character"):
        Arrays(row=(("name", "text"),)).values(row=[("a\x1fb",)])


async def test_claims_stay_quick_with_a_backlog(fresh_postgres: Callable[[], str]) -> None:
    """Not a measurement: the number of rows looked at is that of the tasks taken, whatever waits."""
    url = fresh_postgres()
    store = open_store(url)
    await store.open()
    connection = await asyncpg.connect(url, server_settings=WALKING)
    await connection.execute(_FILL_RUNS)
    await connection.execute(_FILL_TASKS)
    await connection.execute("insert into sessions values ('s', 'default', 'w', 'r', 1, 1, true, false, 1, '')")
    values = [
        *WANTS.values(want=[("default", "main", 1, "order", 10, "s", 1), ("default", "main", 2, "order", 10, "s", 1)]),
        10**9,
    ]
    (explained,) = await connection.fetch(f"explain (analyze, format json) {CLAIM}", *values)
    nodes = _nodes(json.loads(explained[0])[0]["Plan"])
    indexes = [node for node in nodes if node.get("Index Name") == "tasks_claim"]
    assert indexes
    assert all(index["Actual Rows"] * index["Actual Loops"] <= 20 for index in indexes)
    await connection.close()
    await store.close()


@pytest.mark.parametrize(
    ("statement", "values", "index"),
    [
        pytest.param(workforce._IN_HAND, {"session_ids": ["s"]}, "tasks_owner", id="tasks in hand"),
        pytest.param(
            lookups._OPEN_CHILDREN,
            {"namespace": "default", "workflow_ids": ["order-1", "order-2"]},
            "runs_open",
            id="open children",
        ),
        pytest.param(
            lookups._SHOWN_TASKS,
            {"run_id": "run-1", "limit": 100, "bytes": 1, "command_bytes": 1},
            "tasks_pk",
            id="tasks of a run",
        ),
    ],
)
async def test_what_is_known_of_one_run_is_found_by_index_among_many(
    fresh_postgres: Callable[[], str], statement: Select[Any], values: dict[str, Any], index: str
) -> None:
    connection = await asyncpg.connect(fresh_postgres())
    await connection.execute(_FILL_RUNS)
    await connection.execute(_FILL_TASKS)
    await connection.execute("vacuum analyze")
    sql, arguments = compiled(statement, DIALECT, values)
    (explained,) = await connection.fetch(f"explain (format json) {sql}", *arguments)
    await connection.close()
    nodes = list(_nodes(json.loads(explained[0])[0]["Plan"]))
    assert [node for node in nodes if node["Node Type"] == "Seq Scan"] == []
    assert index in {node.get("Index Name") for node in nodes}


_FILL_SUBSCRIPTIONS = """
insert into tasks select 'run-' || n, 's/1', 'default', 8, 'key-' || n, E'paid\\ndata.order', 0, 1, 4611686018427387904,
    null, n, 1e18, 1e18, 1e18, 1e18, false, 0, 0, 0, false, null, 0, 4611686018427387904, '', 0, 0, 0, null
    from generate_series(1, 20000) as n
"""


async def test_an_event_looks_only_at_those_that_wait_for_it(fresh_postgres: Callable[[], str]) -> None:
    """Not a measurement: the number of rows looked at is that of the runs that get the event, however many wait."""
    url = fresh_postgres()
    connection = await asyncpg.connect(url, server_settings=WALKING)
    await connection.execute(_FILL_RUNS)
    await connection.execute(_FILL_SUBSCRIPTIONS)
    for statement_, values in (
        (TOPICS, {"of_namespace": "default", "first": "paid", "before": "paid\x0b"}),
        (
            SUBSCRIBERS,
            _of_events(topic="paid\ndata.order", key="key-77", limit=1_000, after_run="", after_task=""),
        ),
    ):
        sql, arguments = compiled(statement_, DIALECT, values)
        assert len(await connection.fetch(sql, *arguments)) == 1
        (explained,) = await connection.fetch(f"explain (analyze, format json) {sql}", *arguments)
        looked = [node for node in _nodes(json.loads(explained[0])[0]["Plan"]) if "Index Name" in node]
        assert looked
        assert sum(node["Actual Rows"] * node["Actual Loops"] for node in looked) <= 3
    await connection.close()
