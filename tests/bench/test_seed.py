"""A seeded database is what the store would have left."""

from __future__ import annotations

from typing import Any

import pytest

from romancy_service.store.rows import part_hash
from romancy_service.store.store import Change, Request, open_store
from romancy_service.store.tables import metadata
from tests.bench.seed import copy_runs, execute, sleeping, waiting

NOW_MS = 1_800_000_000_000
TABLES = ("runs", "history", "tasks", "attributes", "requests")


async def _rows(url: str, run_id: str) -> dict[str, list[tuple[Any, ...]]]:
    """All that the tables keep of the run, without what names it."""
    found = {}
    for table in TABLES:
        names = {"run_id", "workflow_id", "request_id", "part_hash"}
        columns = ", ".join(column.name for column in metadata.tables[table].columns if column.name not in names)
        rows = await execute(url, f"select {columns} from {table} where run_id = '{run_id}'")
        found[table] = sorted(map(tuple, rows))
    return found


@pytest.mark.parametrize("kind", ["sleeping", "waiting"])
async def test_a_copy_is_what_the_store_commits(database_url: str, kind: str) -> None:
    def make(run_id: str, workflow_id: str) -> Change:
        if kind == "sleeping":
            run = sleeping("nap", 86_400_000, NOW_MS, run_id=run_id, workflow_id=workflow_id)
        else:
            run = waiting("order", NOW_MS, run_id=run_id, workflow_id=workflow_id)
        request = Request(run.namespace, f"start-{workflow_id}", run_id, "StartWorkflow", b"")
        return Change(run, requests=[request])

    store = open_store(database_url)
    await store.open()
    changes = [make("run-a", "pattern"), make("run-b", "committed")]
    assert (await store.commit(changes, NOW_MS)).written == {"run-a", "run-b"}
    await copy_runs(database_url, iter([("run-a", "run-c", "copied", part_hash("run-c"))]))

    committed, copied = await _rows(database_url, "run-b"), await _rows(database_url, "run-c")
    assert copied == committed
    assert all(copied[table] for table in TABLES if table != "attributes")
    runs = await store.load(["run-b", "run-c"])
    assert runs["run-c"].workflow_id == "copied"
    hashes = await execute(database_url, "select run_id, part_hash from tasks where run_id <> 'run-a'")
    assert {tuple(row) for row in hashes} == {(run_id, part_hash(run_id)) for run_id in ("run-b", "run-c")}
    await store.close()
