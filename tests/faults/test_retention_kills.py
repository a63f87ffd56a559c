"""The service dies between two batches of what it deletes, again and again: each run is there whole, or not at all."""

from __future__ import annotations

from sqlalchemy import func, select, update

from romancy_service import retention
from romancy_service.store.store import Store, open_store
from romancy_service.store.tables import history, namespaces, removals, requests, runs
from tests.faults.scene import Scene, until
from tests.store.drive import T0
from tests.store.test_removal import closed

RUNS = retention.RUNS + 30
"""Two batches."""
EVENTS = 4


async def _whole(store: Store) -> int:
    """How many runs are there, each with all its history; nothing else says that it is."""
    rows = await store._read(select(runs.c.run_id))
    for row in rows:
        events = await store.show_history(row["run_id"], 0, 100, 10**9)
        assert [event.event_id for event in events] == list(range(1, EVENTS + 1))
    return len(rows)


async def _left(store: Store) -> dict[str, int]:
    found = {}
    for table in (runs, history, removals, requests):
        count = (await store._read(select(func.count().label("count")).select_from(table)))[0]["count"]
        found[table.name] = int(count)
    return found


async def test_a_service_that_dies_between_batches_goes_on_where_it_was(stage: Scene) -> None:
    store = open_store(stage.database)
    await store.open()
    for n in range(RUNS):
        await closed(store, f"order-{n}", now_ms=T0 + n, activities=1)
    await store.close()

    async def life(until_batch: int) -> None:
        service = await stage.service(ROMANCY_CRASH_AT=f"retention.batch:{until_batch}")
        await until(lambda: not service.alive, f"it died after batch {until_batch}")

    await life(1)
    await store.open()
    assert await _whole(store) == RUNS - retention.RUNS
    assert (await _left(store))["removals"] == retention.RUNS
    await store.close()

    await life(2)  # the last runs, then what clients asked for
    await store.open()
    assert await _whole(store) == 0
    assert await _left(store) == {"runs": 0, "history": RUNS * EVENTS, "removals": RUNS, "requests": 0}
    # A minute passes, after which nobody reads what is deleted.
    await store._write(update(removals).values(removed_ms=T0))
    await store.close()

    await life(1)
    await store.open()
    left = await _left(store)
    assert 0 < left["history"] < RUNS * EVENTS
    await store.close()

    service = await stage.service()

    async def nothing_is_left() -> bool:
        return "cleared_rows" in service.said()

    await until(nothing_is_left, "the rest is cleared away", service)
    assert service.stop() == 0
    await store.open()
    assert set((await _left(store)).values()) == {0}
    assert await store._read(select(namespaces)) == []
    await store.close()
