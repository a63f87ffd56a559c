"""What is read for people and for the service's own decisions on what to try."""

from __future__ import annotations

import sys

import pytest

from romancy.v1.worker_service_pb2 import Hello
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_COMPLETED, WORKFLOW_STATUS_RUNNING, WORKFLOW_STATUS_TERMINATED
from romancy.v1.workflow_service_pb2 import WorkflowFilter

from romancy_service.core.limits import Limits
from romancy_service.core.run import Run
from romancy_service.core.task import TaskKind
from romancy_service.core.times import timestamp
from romancy_service.core.why.facts import Holder, Serving
from romancy_service.store import lookups
from romancy_service.store.store import Beat, Change, Store, Want
from tests.core.life import complete, schedule
from tests.store.drive import NAMESPACE, T0, begin, code, completes, session, store_all, terminated, waiting_activities

EVERYTHING = 2**40


async def history_of(store: Store, activities: int) -> Run:
    """A stored run of which so many activities completed, each in a commit of its own."""
    run = begin()
    await store_all(store, Change(run))
    await store_all(store, code(run, *(schedule(f"pay:{n}") for n in range(1, activities + 1))))
    for n in range(1, activities + 1):
        await store_all(store, completes(run, f"pay:{n}"))
    return run


async def test_a_history_is_read_in_pages_by_number_of_events(store: Store) -> None:
    run = await history_of(store, 5)
    read: list[int] = []
    while page := await store.show_history(run.run_id, read[-1] if read else 0, 3, EVERYTHING):
        assert len(page) <= 3
        read += [event.event_id for event in page]
    assert read == list(range(1, run.last_event_id + 1))


async def test_a_page_of_history_ends_at_its_bytes_but_has_one_event_at_least(store: Store) -> None:
    run = await history_of(store, 5)
    whole = await store.show_history(run.run_id, 0, EVERYTHING, EVERYTHING)

    assert [e.event_id for e in await store.show_history(run.run_id, 0, EVERYTHING, max_bytes=1)] == [1]
    room = sum(event.ByteSize() for event in whole[2:6])
    assert [e.event_id for e in await store.show_history(run.run_id, 2, EVERYTHING, max_bytes=room)] == [3, 4, 5, 6]


async def test_a_history_longer_than_a_page_of_rows_is_read_whole(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "_PAGE_ROWS", 2)
    run = await history_of(store, 7)
    events = await store.show_history(run.run_id, 0, EVERYTHING, EVERYTHING)
    assert [event.event_id for event in events] == list(range(1, run.last_event_id + 1))
    assert await store.show_history("none", 0, EVERYTHING, EVERYTHING) == []


async def test_runs_are_found_by_run_id_and_by_the_newest_of_a_workflow_id(store: Store) -> None:
    old = begin("order-1", run_id="old")
    await store_all(store, Change(old))
    await store_all(store, code(old, complete()))
    await store_all(store, Change(begin("order-1", run_id="new", now_ms=T0 + 1)), now_ms=T0 + 1)

    refs = [
        ("default", "order-1", ""),
        ("default", "", "old"),
        ("default", "order-1", "old"),
        ("default", "order-2", "old"),
        ("other", "", "old"),
        ("default", "order-2", ""),
    ]
    assert await store.find_runs(refs) == ["new", "old", "old", None, None, None]
    assert await store.latest([(NAMESPACE, "order-1"), (NAMESPACE, "order-2")]) == {
        (NAMESPACE, "order-1"): ("new", WORKFLOW_STATUS_RUNNING)
    }


async def test_the_open_run_is_the_newest_whatever_the_clock_said_when_it_started(store: Store) -> None:
    ended = begin(run_id="run-b", now_ms=T0 + 500)
    await store_all(store, Change(ended))
    await store_all(store, terminated(ended))
    await store_all(store, Change(begin(run_id="run-a", now_ms=T0)))
    assert await store.find_runs([(NAMESPACE, "order-1", "")]) == ["run-a"]
    assert await store.latest([(NAMESPACE, "order-1")]) == {(NAMESPACE, "order-1"): ("run-a", WORKFLOW_STATUS_RUNNING)}


async def test_of_runs_that_started_in_the_same_millisecond_the_later_id_is_the_newest(store: Store) -> None:
    for run_id in ("a", "b", "c"):
        run = begin("order-1", run_id=run_id)
        await store_all(store, Change(run))
        if run_id != "c":
            await store_all(store, terminated(run))
    assert await store.find_runs([(NAMESPACE, "order-1", "")]) == ["c"]


async def several(store: Store) -> None:
    """Four runs: order-1 completed, order-2 terminated, order-10 and other open."""
    for n, (workflow_id, workflow_type) in enumerate(
        (("order-1", "order"), ("order-2", "order"), ("order-10", "order"), ("other", "refund"))
    ):
        run = begin(workflow_id, run_id=workflow_id, now_ms=T0 + n, workflow_type=workflow_type)
        await store_all(store, Change(run), now_ms=T0 + n)
        if workflow_id == "order-1":
            await store_all(store, code(run, complete(), now_ms=T0 + 50))
        if workflow_id == "order-2":
            await store_all(store, terminated(run))


FILTERS = [
    (WorkflowFilter(), ["other", "order-10", "order-2", "order-1"]),
    (WorkflowFilter(statuses=[WORKFLOW_STATUS_RUNNING]), ["other", "order-10"]),
    (WorkflowFilter(statuses=[WORKFLOW_STATUS_COMPLETED, WORKFLOW_STATUS_TERMINATED]), ["order-2", "order-1"]),
    (WorkflowFilter(workflow_type="refund"), ["other"]),
    (WorkflowFilter(workflow_id="order-1"), ["order-1"]),
    (WorkflowFilter(workflow_id_prefix="order-1"), ["order-10", "order-1"]),
    (WorkflowFilter(workflow_id_prefix="p"), []),
    (WorkflowFilter(started_from=timestamp(T0 + 1), started_before=timestamp(T0 + 3)), ["order-10", "order-2"]),
    (WorkflowFilter(closed_from=timestamp(T0 + 50)), ["order-1"]),
    (WorkflowFilter(closed_before=timestamp(T0 + 51)), ["order-2", "order-1"]),
    (WorkflowFilter(statuses=[WORKFLOW_STATUS_RUNNING], workflow_type="order"), ["order-10"]),
]


async def test_lists_and_counts_show_what_the_filter_selects_newest_first(store: Store) -> None:
    await several(store)
    for selection, expected in FILTERS:
        assert [run.run_id for run in await store.list_runs(NAMESPACE, selection, None, 100)] == expected, selection
        assert await store.count_runs(NAMESPACE, selection) == (len(expected), False), selection
    assert await store.list_runs("other", WorkflowFilter(), None, 100) == []


async def test_pages_of_a_list_join_without_gap_also_where_runs_started_together(store: Store) -> None:
    for n in range(7):
        await store_all(store, Change(begin(f"order-{n}", run_id=f"run-{n}", now_ms=T0 + n // 4)))
    listed: list[str] = []
    after: tuple[int, str] | None = None
    while page := await store.list_runs(NAMESPACE, WorkflowFilter(), after, 2):
        listed += [run.run_id for run in page]
        after = (page[-1].start_ms, page[-1].run_id)
    assert listed == [f"run-{n}" for n in range(6, -1, -1)]


async def test_counts_beyond_the_exact_ones_are_marked_as_estimates(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "COUNTED", 3)
    for n in range(5):
        await store_all(store, Change(begin(f"order-{n}")))
    count, estimated = await store.count_runs(NAMESPACE, WorkflowFilter())
    assert estimated
    assert count >= 4
    assert await store.count_runs(NAMESPACE, WorkflowFilter(workflow_id="order-1")) == (1, False)


async def test_prefixes_may_end_with_any_character(store: Store) -> None:
    for workflow_id in ("a\ud7ff", "a\ud7ffb", "a\ue000", f"a{chr(sys.maxunicode)}", "b"):
        await store_all(store, Change(begin(workflow_id)))

    async def listed(prefix: str) -> set[str]:
        selection = WorkflowFilter(workflow_id_prefix=prefix)
        return {run.workflow_id for run in await store.list_runs(NAMESPACE, selection, None, 100)}

    assert await listed("a\ud7ff") == {"a\ud7ff", "a\ud7ffb"}
    assert await listed(f"a{chr(sys.maxunicode)}") == {f"a{chr(sys.maxunicode)}"}
    assert await listed(chr(sys.maxunicode)) == set()
    assert len(await listed("a")) == 4


async def test_a_run_is_shown_with_who_has_its_tasks_and_who_could(store: Store) -> None:
    hello = Hello(
        task_queues=["main"],
        workflow_types=["order"],
        activity_types=["pay", "ship"],
        workflow_slots=3,
        activity_slots=5,
    )
    await session(store, hello=hello.SerializeToString())
    run = await waiting_activities(store, ["pay:1", "ship:1"])
    await store.claim([Want(NAMESPACE, "main", TaskKind.ACTIVITY, "pay", 1, "session-1", 1)], T0)
    await store.heartbeat([Beat(run.run_id, "a/pay:1", 1, "session-1", 1, b"half")], T0)

    view = await store.get_run(run.run_id, Limits())

    assert view is not None
    assert (view.summary.workflow_id, view.summary.status) == (run.workflow_id, WORKFLOW_STATUS_RUNNING)
    assert view.run.tasks["a/pay:1"].owner == "session-1"
    assert view.holders == {"session-1": Holder("worker-of-session-1", connected=True, lease_ms=T0 + 20_000)}
    assert view.heartbeat_details == {"a/pay:1": b"half"}
    assert view.workforce.serving == {
        ("main", TaskKind.ACTIVITY, "ship"): Serving(workers=1, slots=5, busy=1),
    }
    assert await store.get_run("none", Limits()) is None


async def test_many_runs_are_loaded_at_once_each_with_its_own(store: Store) -> None:
    runs = [await waiting_activities(store, [f"pay:{n}" for n in range(1, count)]) for count in (1, 3, 5)]

    loaded = await store.load([*(run.run_id for run in runs), "none"])

    assert {run_id: set(run.tasks) for run_id, run in loaded.items()} == {run.run_id: set(run.tasks) for run in runs}
    assert await store.load([]) == {}
