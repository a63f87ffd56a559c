"""Schedules as they are stored: written if they are what was read, with an answer, and found when they are due."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from romancy.v1.schedule_pb2 import Schedule, ScheduleState
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_RUNNING

from romancy_service.core.schedule import ScheduleRecord
from romancy_service.core.task import NEVER_MS
from romancy_service.errors import BatchRejected
from romancy_service.store.postgres import DIALECT
from romancy_service.store.rows import Request
from romancy_service.store.schedules import LOOK
from romancy_service.store.sql import compiled
from romancy_service.store.store import Change, Store
from tests.store.drive import NAMESPACE, T0, begin, store_all


def a_record(schedule_id: str = "s", *, uid: str = "uid", look_ms: int = T0) -> ScheduleRecord:
    schedule = Schedule()
    schedule.action.workflow.workflow_type = "order"
    state = ScheduleState(note="as made")
    return ScheduleRecord(NAMESPACE, schedule_id, uid, schedule, state, 1, T0, T0, due_ms=look_ms, look_ms=look_ms)


def asked(request_id: str, method: str = "PauseSchedule") -> Request:
    return Request(NAMESPACE, request_id, "", method, request_id.encode())


async def made(store: Store, record: ScheduleRecord) -> ScheduleRecord:
    await store.create_schedule(record, asked(f"make {record.schedule_id}"), T0)
    return record


async def read(store: Store, schedule_id: str = "s") -> ScheduleRecord:
    record = await store.get_schedule(NAMESPACE, schedule_id)
    assert record is not None
    return record


async def test_what_is_stored_is_what_is_read(store: Store) -> None:
    record = await made(store, a_record())
    assert await read(store) == record
    assert await store.get_schedule("another", "s") is None
    record.state.note, record.revision, record.update_ms, record.look_ms = "changed", 2, T0 + 1, NEVER_MS
    assert await store.save_schedule(record, asked("change"), T0)
    assert record.version == 2
    assert await read(store) == record
    found = await store.find_requests([(NAMESPACE, "change"), (NAMESPACE, "make s")])
    assert {request.reply for request in found.values()} == {b"change", b"make s"}


async def test_of_two_that_rest_on_one_version_one_is_written_and_the_other_leaves_nothing(store: Store) -> None:
    await made(store, a_record())
    one, other = await read(store), await read(store)
    one.state.note, other.state.note = "one", "other"
    written = await asyncio.gather(
        store.save_schedule(one, asked("one"), T0), store.save_schedule(other, asked("other"), T0)
    )
    assert sorted(written) == [False, True]
    winner = "one" if written[0] else "other"
    assert (await read(store)).state.note == winner
    assert [key[1] for key in await store.find_requests([(NAMESPACE, "one"), (NAMESPACE, "other")])] == [winner]


async def test_an_id_or_a_request_id_that_is_taken_writes_nothing(store: Store) -> None:
    await made(store, a_record())
    with pytest.raises(BatchRejected) as refused:
        await store.create_schedule(a_record(uid="new"), asked("again"), T0)
    assert refused.value.conflict
    assert await store.find_requests([(NAMESPACE, "again")]) == {}
    record = await read(store)
    record.state.note = "changed"
    for write in (store.save_schedule, store.delete_schedule):
        with pytest.raises(BatchRejected) as refused:
            await write(record, asked("make s"), T0)
        assert refused.value.conflict
    assert (await read(store)).state.note == "as made"


async def test_one_that_was_made_anew_is_another_one(store: Store) -> None:
    old = await made(store, a_record())
    assert await store.delete_schedule(old, asked("delete"), T0)
    assert await store.get_schedule(NAMESPACE, "s") is None
    await store.create_schedule(a_record(uid="new"), asked("again"), T0)
    assert not await store.save_schedule(old, None, T0)
    assert not await store.delete_schedule(old, asked("delete again"), T0)
    assert (await read(store)).uid == "new"


async def test_lists_go_by_id(store: Store) -> None:
    for name in ("b", "a", "c"):
        await made(store, a_record(name))
    assert [each.schedule_id for each in await store.list_schedules(NAMESPACE, "", 2)] == ["a", "b"]
    assert [each.state.note for each in await store.list_schedules(NAMESPACE, "b", 2)] == ["as made"]
    assert await store.list_schedules("another", "", 2) == []


async def test_those_that_are_due_are_found_by_part_and_what_is_overdue_by_all(store: Store) -> None:
    for name, look_ms in (
        ("now", T0),
        ("soon", T0 + 900),
        ("late", T0 - 1_000),
        ("far", T0 + 9_000),
        ("off", NEVER_MS),
    ):
        await made(store, a_record(name, look_ms=look_ms))
    assert [name for _, name, _ in await store.schedules_to_look_at(T0, 1_000, 9, 0, 1)] == ["late", "now", "soon"]
    parts = [await store.schedules_to_look_at(T0, 1_000, 9, part, 2) for part in (0, 1)]
    names = [{name for _, name, _ in part} for part in parts]
    assert (names[0] & names[1], names[0] | names[1]) == ({"late"}, {"late", "now", "soon"})
    assert await store.schedules_to_look_at(T0, 1_000, 1, 0, 1) == [(NAMESPACE, "late", T0 - 1_000)]
    assert await store.next_schedule_ms(T0) == T0 + 900
    assert await store.next_schedule_ms(NEVER_MS) == NEVER_MS


async def test_the_statuses_of_runs_are_those_of_the_namespace(store: Store) -> None:
    run = begin()
    await store_all(store, Change(run))
    assert await store.run_statuses(NAMESPACE, [run.run_id, "none"]) == {run.run_id: WORKFLOW_STATUS_RUNNING}
    assert await store.run_statuses("another", [run.run_id]) == {}


async def test_looking_for_what_is_due_walks_over_nothing_else(fresh_postgres_with_schedules: str) -> None:
    values = {"until_ms": 1, "overdue_ms": 1, "limit": 1, "part": 0, "parts": 1}
    sql, arguments = compiled(LOOK, DIALECT, values)
    connection = await asyncpg.connect(fresh_postgres_with_schedules)
    explained = await connection.fetch(f"explain {sql}", *arguments)
    await connection.close()
    assert "schedules_look" in "\n".join(row[0] for row in explained)


@pytest.fixture
async def fresh_postgres_with_schedules(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue("fresh_postgres")()
    connection = await asyncpg.connect(url)
    await connection.execute(
        "insert into schedules select 'default', 's' || n, 'u', 'order', '', '', 1, 1, 1, 1, n, n * 1000, n * 1000"
        " from generate_series(1, 20000) as n"
    )
    await connection.execute("analyze schedules")
    await connection.close()
    return url
