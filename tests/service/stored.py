"""Stored: what is stored of every run is the fold of its history. Checked after each test that touches the store."""

from __future__ import annotations

from sqlalchemy import select

from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_RUNNING
from romancy.v1.workflow_service_pb2 import WorkflowFilter

from romancy_service.core.apply import fold
from romancy_service.core.replay import is_input
from romancy_service.core.run import OPEN_STATUSES, Run
from romancy_service.core.task import WORKFLOW_TASK_ID, Task, TaskKind
from romancy_service.core.times import timestamp_ms
from romancy_service.store.rows import attribute_rows
from romancy_service.store.store import Store
from romancy_service.store.tables import attributes

_EVERYTHING = 2**40
_SAME = (
    "workflow_type",
    "task_queue",
    "priority",
    "build_id",
    "status",
    "start_ms",
    "close_ms",
    "last_event_id",
    "last_event_ms",
    "history_bytes",
    "counters",
    "cancel_requested",
    "closing_status",
    "failure",
    "attributes",
)
_LEASE = ("owner", "owner_epoch", "leased_ms", "heartbeat_ms", "relay_ms")


async def assert_stored_is_folded(store: Store, namespace: str) -> int:
    """Compare all runs of a namespace with their histories. Returns how many there are."""
    after: tuple[int, str] | None = None
    count = 0
    while page := await store.list_runs(namespace, WorkflowFilter(), after, 500):
        loaded = await store.load([summary.run_id for summary in page])
        await assert_attributes_are_found(store, loaded)
        for run_id, run in loaded.items():
            events = await store.show_history(run_id, 0, _EVERYTHING, max_bytes=_EVERYTHING)
            # More may have been recorded since the run was read.
            assert_run_is_folded(run, [event for event in events if event.event_id <= run.last_event_id])
        after = (page[-1].start_ms, page[-1].run_id)
        count += len(page)
    return count


def assert_run_is_folded(run: Run, events: list[HistoryEvent]) -> None:
    """One run: numbered without gaps, never back in time, closed once, and stored as it folds."""
    about = f"run {run.run_id} of {run.workflow_id!r}"
    assert [event.event_id for event in events] == list(range(1, len(events) + 1)), f"{about}: gaps"
    times = [timestamp_ms(event.time) for event in events]
    assert times == sorted(times), f"{about}: its time goes back"
    folded = fold(run.namespace, run.workflow_id, run.run_id, events)
    for name in _SAME:
        assert getattr(run, name) == getattr(folded, name), f"{about}: {name}"
    if not run.is_open:
        assert run.outcome == folded.outcome, f"{about}: outcome"
        left = [task_id for task_id, task in run.tasks.items() if task.kind < TaskKind.CHILD]
        assert not left, f"{about}: closed, but with {left}"
        # What it had left to be done elsewhere goes when it is done; nothing is recorded of that.
        for task_id in folded.tasks.keys() - run.tasks.keys():
            del folded.tasks[task_id]
    assert _tasks(run) == _tasks(folded), f"{about}: tasks"
    _assert_code_will_see_all(run, events, about)


async def assert_attributes_are_found(store: Store, loaded: dict[str, Run]) -> None:
    """What lists are filtered on is what the runs have."""
    rows = await store._read(select(attributes).where(attributes.c.run_id.in_(loaded)))
    found: dict[str, set[tuple[object, ...]]] = {run_id: set() for run_id in loaded}
    for row in rows:
        found[row["run_id"]].add(tuple(row[column.name] for column in attributes.columns))
    has = {
        run_id: {row for name in run.attributes for row in attribute_rows(run, name)} for run_id, run in loaded.items()
    }
    doubtful = [run_id for run_id in loaded if found[run_id] != has[run_id]]
    now = await store.load(doubtful)
    # They may have been changed, or deleted, since they were read.
    assert not [run_id for run_id in doubtful if run_id in now and now[run_id].version == loaded[run_id].version]


def _tasks(run: Run) -> dict[str, dict[str, object]]:
    """All tasks but the workflow task, without their leases."""
    return {
        task_id: {name: getattr(task, name) for name in Task.__slots__ if name not in _LEASE}
        for task_id, task in run.tasks.items()
        if task_id != WORKFLOW_TASK_ID
    }


def _assert_code_will_see_all(run: Run, events: list[HistoryEvent], about: str) -> None:
    """A workflow task waits exactly when there are inputs that the code has not seen."""
    if run.status not in OPEN_STATUSES:
        return
    inputs = [event for event in events if is_input(event) and event.event_id > run.seen_event_id]
    if run.status == WORKFLOW_STATUS_RUNNING:
        assert run.unseen == inputs, f"{about}: unseen inputs"
        assert (run.workflow_task is not None) == bool(inputs), (
            f"{about}: a workflow task without inputs, or none for them"
        )
    else:
        assert run.workflow_task is None, f"{about}: a workflow task while it is undone"
