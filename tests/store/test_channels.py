"""Channels: who uses each is counted in few statements, and those that nobody uses go, a bounded number at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import create_engine
from sqlalchemy.sql.expression import TextClause

from romancy.v1.channel_pb2 import CHANNEL_MODE_COMPETING, CHANNEL_MODE_UNSPECIFIED

from romancy_service.core.channel import topic_of_channel
from romancy_service.core.task import Fence, subscription_task_id
from romancy_service.core.triggers import AnswerSubscription
from romancy_service.store import channels, tables
from romancy_service.store.channels import FORGET, KEEP, PAGE, ChannelInfo
from romancy_service.store.events import NewEvent
from romancy_service.store.postgres import DIALECT, WALKING
from romancy_service.store.sql import compiled
from romancy_service.store.store import Change, Store
from tests.core.test_channel import join, receive
from tests.store.drive import NAMESPACE, T0, begin, code, store_all, then
from tests.store.test_plans import plan

VALUES = {"before_ms": 1, "now_ms": 2, "limit": 100, "before": "\n", "of_namespace": NAMESPACE, "after": ""}


async def uses(store: Store, channel: str) -> None:
    """A run that competes for the channel's messages, and waits for one."""
    run = begin(channel)
    await store_all(store, Change(run))
    await store_all(store, code(run, join(1, channel), receive(2, channel)))
    await store.join_channel(NAMESPACE, channel, CHANNEL_MODE_COMPETING, T0)
    await store_all(store, then(run, AnswerSubscription(Fence(subscription_task_id("1"), 1, ""), "1")))


async def test_who_waits_longest_for_a_message_comes_first_however_many_wait(store: Store) -> None:
    for number, since_ms in enumerate((30, 10, 20, 40)):
        run = begin(f"order-{number}", run_id=f"run-{number}")
        await store_all(store, Change(run))
        await store_all(store, code(run, join(1), receive(2), now_ms=T0 + since_ms))
    await uses(store, "another")
    topic = topic_of_channel("jobs")
    assert [each.run_id for each in await store.receivers(NAMESPACE, topic, 3)] == ["run-1", "run-2", "run-0"]
    assert [each.since_ms for each in await store.receivers(NAMESPACE, topic, 1)] == [T0 + 10]


async def unread(store: Store, channel: str, count: int) -> None:
    topic = topic_of_channel(channel)
    await store.add_channel(NAMESPACE, channel, T0)
    await store.add_events(NAMESPACE, [NewEvent("/s", f"{topic}{n}", topic, b"", T0) for n in range(count)], T0)


async def names(store: Store) -> list[str]:
    return [each.name for each in await store.list_channels(NAMESPACE, "", 1_000)]


@pytest.mark.parametrize("together", [1, 2, 100])
async def test_each_channel_is_listed_with_its_own_counts(
    store: Store, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr(channels, "SHOWN_TOGETHER", together)
    await uses(store, "b")
    for name, count in (("a", 2), ("b", 1), ("c", 0)):
        await unread(store, name, count)
    listed = [
        ChannelInfo("a", CHANNEL_MODE_UNSPECIFIED, 0, 0, 2),
        ChannelInfo("b", CHANNEL_MODE_COMPETING, 1, 1, 1),
        ChannelInfo("c", CHANNEL_MODE_UNSPECIFIED, 0, 0, 0),
    ]
    assert await store.list_channels(NAMESPACE, "", 1_000) == listed
    assert await store.list_channels(NAMESPACE, "", 2) == listed[:2]
    assert await store.list_channels(NAMESPACE, "a", 1) == listed[1:2]
    assert await store.list_channels("elsewhere", "", 10) == []
    assert [await store.show_channel(NAMESPACE, name) for name in "abc"] == listed


async def test_channels_that_are_in_use_do_not_stand_before_those_that_may_go(store: Store) -> None:
    for n in range(4):
        await uses(store, f"used {n}")
        await unread(store, f"unread {n}", 1)
    for n in range(3):
        await store.add_channel(NAMESPACE, f"unused {n}", T0 + 1)
    await store.add_channel(NAMESPACE, "used lately", T0 + 100)
    looks = []
    while looked := await store.forget_channels(T0 + 50, T0 + 200, 3):
        looks.append(looked)
    assert sum(looks) == 11
    assert max(looks) <= 6, "at most `limit` of each"
    assert not [name for name in await names(store) if name.startswith("unused")]
    assert len(await names(store)) == 9
    assert await store.forget_channels(T0 + 150, T0 + 200, 3) == 1, "those in use are looked at a day later again"
    assert len(await names(store)) == 8


@pytest.mark.parametrize("statement", [FORGET, KEEP, PAGE])
async def test_on_postgres_channels_are_found_by_indexes(
    fresh_postgres: Callable[[], str], statement: TextClause
) -> None:
    sql, _ = compiled(statement, DIALECT, VALUES)
    nodes = await plan(fresh_postgres(), WALKING, sql)
    assert [node for node in nodes if node["Node Type"] == "Seq Scan"] == []
    assert [node for node in nodes if "Index Name" in node and "Index Cond" not in node] == []
    assert statement is PAGE or "channels_by_age" in {node.get("Index Name") for node in nodes}


@pytest.mark.parametrize("statement", [FORGET, KEEP, PAGE])
def test_on_sqlite_channels_are_found_by_indexes(statement: TextClause) -> None:
    engine = create_engine("sqlite://")
    tables.metadata.create_all(engine)
    with engine.connect() as connection:
        rows = connection.connection.execute(f"explain query plan {statement.text}", VALUES)
        steps = [row[3] for row in rows]
    engine.dispose()
    assert {step for step in steps if step.startswith("SCAN")} <= {"SCAN found"}
    assert statement is PAGE or any("channels_by_age" in step for step in steps)
