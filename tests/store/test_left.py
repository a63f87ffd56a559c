"""What was left behind: found a page at a time, whatever else is stored, and none of it hides the rest."""

from __future__ import annotations

from collections.abc import Callable

import asyncpg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.sql.expression import TextClause

from romancy_service.core.channel import CHANNELS_END, aside_of, topic_of_channel
from romancy_service.store import tables
from romancy_service.store.events import FIRST_LINE, Line, NewEvent
from romancy_service.store.left import LEFT_EVENTS, LEFT_MESSAGES
from romancy_service.store.postgres import DIALECT, INDEXED
from romancy_service.store.sql import compiled
from romancy_service.store.store import Change, Store, open_store
from tests.core.talk import send
from tests.core.test_channel import join, receive
from tests.store.drive import NAMESPACE, T0, begin, code, store_all
from tests.store.test_plans import Node, explained

PAGES = [pytest.param(LEFT_EVENTS, id="events"), pytest.param(LEFT_MESSAGES, id="messages")]
CHANNELS = 100_000
STEPS = 1_000


def values(after: Line = FIRST_LINE) -> dict[str, object]:
    namespace, line = after
    ends = {"channels": topic_of_channel(""), "channels_end": CHANNELS_END}
    return {"after_namespace": namespace, "after_line": line, "limit": STEPS} | ends


async def add(store: Store, *lines: str, namespace: str = NAMESPACE) -> None:
    for line in lines:
        await store.add_events(namespace, [NewEvent("/s", line, line, b"", T0 + 1_000)], T0)


async def waits(store: Store, channel: str, *, receives: bool = True) -> None:
    """A run that uses a competing channel, and waits for what is there."""
    run = begin(f"{channel} {receives}")
    await store_all(store, Change(run))
    await store_all(store, code(run, receive(1, channel) if receives else join(1, channel)))


async def all_pages(store: Store, look: str, steps: int) -> list[str]:
    """The lines that are found before it begins again."""
    found: list[str] = []
    after = FIRST_LINE
    while True:
        page, after = await getattr(store, look)(after, steps)
        assert len(page) <= steps
        found += [line for (_, line), oldest_ms in page if oldest_ms == T0]
        if after == FIRST_LINE:
            return found


@pytest.mark.parametrize("steps", [1, 2, 100])
async def test_lines_of_events_are_all_found_and_those_of_channels_passed_over(store: Store, steps: int) -> None:
    await add(store, *(topic_of_channel(f"c{n}") for n in range(5)))
    assert await all_pages(store, "left_events", steps) == []
    await add(store, "\tc1\tsomebody", "paid", "sent")
    await add(store, "paid", topic_of_channel("c"), namespace="other")
    await add(store, topic_of_channel("c"), namespace="z")
    assert await all_pages(store, "left_events", steps) == ["\tc1\tsomebody", "paid", "sent", "paid"]


async def test_what_a_run_failed_to_take_waits_aside_of_its_line_and_is_forgotten_in_its_time(store: Store) -> None:
    await add(store, "paid", topic_of_channel("c"))
    await store.add_events(NAMESPACE, [NewEvent("/s", f"more-{n}", "paid", b"", T0 + 1_000) for n in (1, 2)], T0)
    first, second, third = await store.open_events(NAMESPACE, "paid", 10)
    await store.close_events(NAMESPACE, "paid", [second])
    await store.put_aside("paid", [second.position, third.position])
    assert await store.open_events(NAMESPACE, "paid", 10) == [first]
    assert await store.open_events(NAMESPACE, aside_of("paid"), 10) == [third], "what is delivered stays so"
    assert await store.open_events(NAMESPACE, aside_of("paid"), 10, after=third.position) == []
    assert await all_pages(store, "left_events", 1) == [aside_of("paid"), "paid"]
    assert await store.forget_events(T0 + 1_000, 10) == 0
    assert await store.forget_events(T0 + 1_001, 10) == 3, "but what is open in its line"
    assert await store.open_events(NAMESPACE, "paid", 10) == [first]


@pytest.mark.parametrize("steps", [1, 2, 100])
async def test_a_message_is_left_behind_only_where_somebody_waits_for_it(store: Store, steps: int) -> None:
    await add(store, "paid", *(topic_of_channel(f"c{n}") for n in range(9)))
    await add(store, topic_of_channel("c3"), namespace="a")
    await add(store, topic_of_channel("c3"), namespace="z")
    await waits(store, "c2", receives=False)
    await waits(store, "d")
    assert await all_pages(store, "left_messages", steps) == []
    for channel in ("c3", "c7", "c8"):
        await waits(store, channel)
    assert await all_pages(store, "left_messages", steps) == [topic_of_channel(f"c{n}") for n in (3, 7, 8)]


@pytest.mark.parametrize("steps", [1, 2, 100])
async def test_a_run_with_many_errands_does_not_hide_the_others(store: Store, steps: int) -> None:
    runs = [begin(f"order-{n}") for n in range(3)]
    for run, many in zip(runs, (5, 1, 0), strict=True):
        await store_all(store, Change(run))
        await store_all(store, code(run, *(send(f"{n}") for n in range(1, many + 1))))
    found, after = [], ""
    while True:
        page, after = await store.with_errands(after, T0 + 2_000, steps, 0, 1)
        assert len(page) <= steps
        found += page
        if not after:
            break
    assert found == [run.run_id for run in runs[:2]]
    assert await store.with_errands("", T0 - 1, 100, 0, 1) == ([], "")


_EVENTS = """
insert into events (namespace, source, event_id, type, event, accepted_ms, forget_ms, open, deliveries)
select 'default', '/s', n, {line}, '', 1, 9, true, 1 from {numbers}
"""
_TASKS = """
insert into tasks select 'run-' || n, 's/1', 'default', 8, '{key}', {line}, 0, 1, 4611686018427387904, null, n,
    1, 1, 1, 1, false, 0, 0, 0, false, null, 0, 4611686018427387904, '', 0, 0, 0, null from {numbers}
"""
_CASES = [
    pytest.param(None, id="nobody uses the channels"),
    pytest.param("competing", id="nobody waits in the channels"),
    pytest.param("other channels", id="others wait in other channels"),
]


def _fill(case: str | None, newline: str, numbers: str) -> list[str]:
    """Messages in so many channels, which nobody receives."""
    fill = [_EVENTS.format(line=f"{newline} || 'channel ' || n", numbers=numbers)]
    if case is not None:
        name = "" if case == "competing" else " || 'x'"
        key = "competing" if case == "competing" else "receiver"
        fill.append(_TASKS.format(line=f"{newline} || 'channel ' || n{name}", key=key, numbers=numbers))
    return fill


@pytest.mark.parametrize("case", _CASES)
async def test_on_postgres_a_page_costs_the_same_however_many_messages_nobody_receives(
    fresh_postgres: Callable[[], str], case: str | None
) -> None:
    connection = await asyncpg.connect(fresh_postgres(), server_settings=INDEXED)
    for fill in _fill(case, "chr(10)", f"generate_series(1, {CHANNELS}) as n"):
        await connection.execute(fill)
    await connection.execute("vacuum analyze")
    for page in (LEFT_EVENTS, LEFT_MESSAGES):
        sql, arguments = compiled(page, DIALECT, values())
        nodes: list[Node] = await explained(connection, sql, arguments)
        assert [node for node in nodes if node["Node Type"] == "Seq Scan"] == []
        looked = [node for node in nodes if "Index Name" in node]
        assert {node["Index Name"] for node in looked} <= {"events_open", "events_pk", "tasks_subscribed"}
        assert sum(node["Actual Rows"] * node["Actual Loops"] for node in looked) <= 6 * STEPS
        assert max(node.get("Rows Removed by Filter", 0) for node in nodes) <= STEPS
    await connection.close()


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("case", _CASES)
def test_on_sqlite_a_page_costs_the_same_however_many_messages_nobody_receives(
    page: TextClause, case: str | None
) -> None:
    engine = create_engine("sqlite://")
    tables.metadata.create_all(engine)
    connection = engine.raw_connection()
    numbers = f"(with recursive g(n) as (select 1 union all select n + 1 from g where n < {CHANNELS}) select n from g)"
    for fill in _fill(case, "char(10)", numbers):
        connection.execute(fill)
    plan = [row[3] for row in connection.execute(f"explain query plan {page.text}", values())]
    assert {step for step in plan if step.startswith("SCAN")} == {"SCAN line"}
    assert not [step for step in plan if "TEMP B-TREE" in step]
    hundreds = 0

    def count() -> int:
        nonlocal hundreds
        hundreds += 1
        return 0

    connection.driver_connection.set_progress_handler(count, 100)  # type: ignore[union-attr]
    rows = connection.execute(page.text, values()).fetchall()
    assert len(rows) <= 1, "nothing, or where it stopped"
    assert hundreds <= 2 * STEPS, "at most two hundred instructions for a step"
    connection.close()
    engine.dispose()


async def test_who_waits_is_found_in_the_first_page_among_messages_that_nobody_receives(
    fresh_postgres: Callable[[], str],
) -> None:
    url = fresh_postgres()
    connection = await asyncpg.connect(url)
    for fill in _fill(None, "chr(10)", f"generate_series(1, {CHANNELS}) as n"):
        await connection.execute(fill)
    await connection.close()
    store = open_store(url)
    await store.open()
    await waits(store, f"channel {CHANNELS - 1}")
    await waits(store, "channel of nobody")
    found, after = await store.left_messages(FIRST_LINE, STEPS)
    assert [line for (_, line), _ in found] == [topic_of_channel(f"channel {CHANNELS - 1}")]
    assert after == FIRST_LINE
    await store.close()
