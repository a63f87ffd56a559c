"""The engine on real databases: one culprit fails alone, nothing acts twice, nothing is answered from a stale cache."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from romancy.v1.command_pb2 import Command, CompleteWorkflow
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import (
    WORKFLOW_STATUS_COMPLETED,
    WORKFLOW_STATUS_RUNNING,
    WORKFLOW_STATUS_TERMINATED,
    Signal,
    WorkflowSpec,
)

from romancy_service import faults
from romancy_service.core.apply import fold
from romancy_service.core.decide import Reply
from romancy_service.core.limits import Limits
from romancy_service.core.run import Run
from romancy_service.core.task import WORKFLOW_TASK_ID, Fence, Task
from romancy_service.core.triggers import (
    CompleteActivity,
    CompleteWorkflowTask,
    LoseTask,
    RequestCancel,
    SendSignal,
    StartRun,
    Terminate,
)
from romancy_service.engine import Engine
from romancy_service.engine.drafting import BATCH_BYTES
from romancy_service.errors import BatchRejected, InternalError, StaleTask, WorkflowClosed, WorkflowNotFound
from romancy_service.starter import new_id
from romancy_service.store.store import Change, CommitResult, Lease, Store
from romancy_service.submission import Recorded, RequestKey
from tests.core.life import schedule


class _NoWorkers:
    """An outlet without sessions: every task waits."""

    def offer(self, run: Run, task: Task) -> Lease | None:
        return None

    def withdraw(self, task: Task, lease: Lease) -> None:
        raise AssertionError("nothing was offered")

    def uncertain(self) -> None:
        pass

    def committed(self, run: Run, leases: dict[str, Lease]) -> None:
        pass


class _Clock:
    def now_ms(self) -> int:
        return int(time.time() * 1000)

    earliest_ms = latest_ms = now_ms

    def certain(self) -> bool:
        return True


class _Refusing:
    """A store that refuses every batch with one of these workflow ids in it."""

    def __init__(self, store: Store, *poison: str) -> None:
        self._store = store
        self._poison = poison
        self.batches: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, changes: Sequence[Change], now_ms: int) -> CommitResult:
        self.batches.append(len(changes))
        if any(change.run.workflow_id in self._poison for change in changes):
            raise BatchRejected("the database does not like it")
        return await self._store.commit(changes, now_ms)


@asynccontextmanager
async def running(store: Any) -> AsyncIterator[Engine]:
    engine = Engine(store, _Clock(), Limits(), _NoWorkers())
    task = asyncio.create_task(engine.run())
    try:
        yield engine
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def new_run(workflow_id: str) -> Run:
    return Run("default", workflow_id, new_id())


def start(engine: Engine, run: Run, request_id: str = "") -> asyncio.Future[Reply | Recorded]:
    key = RequestKey("default", request_id or new_id(), "StartWorkflow", lambda _: run.run_id.encode())
    return engine.start(run, StartRun(WorkflowSpec(workflow_type="order", task_queue="default"), ""), key)


def cancel(engine: Engine, run: Run, request_id: str) -> asyncio.Future[Reply | Recorded]:
    key = RequestKey("default", request_id, "CancelWorkflow", lambda _: b"cancelled")
    return engine.submit(run.run_id, RequestCancel("why", "who"), key)


async def stored(store: Store, run: Run) -> Run:
    """The run as it is in the database; what is stored is the fold of its history."""
    (found,) = (await store.load([run.run_id])).values()
    folded = fold(
        "default", run.workflow_id, run.run_id, await store.show_history(run.run_id, 0, 10_000, max_bytes=1 << 30)
    )
    assert (found.status, found.last_event_id, found.counters) == (folded.status, folded.last_event_id, folded.counters)
    return found


async def test_one_poisoned_run_among_128_fails_alone(store: Store) -> None:
    refusing = _Refusing(store, "poison")
    runs = [new_run("poison" if number == 77 else f"good-{number}") for number in range(128)]
    async with running(refusing) as engine:
        outcomes = await asyncio.gather(*(start(engine, run) for run in runs), return_exceptions=True)
    assert refusing.batches[0] == 128
    failed = [run.workflow_id for run, outcome in zip(runs, outcomes, strict=True) if isinstance(outcome, Exception)]
    assert failed == ["poison"]
    assert len(await store.load([run.run_id for run in runs])) == 127


async def test_one_poisoned_trigger_fails_alone_in_its_run(store: Store) -> None:
    run = new_run("order")
    async with running(store) as engine:
        await start(engine, run)
        # Nothing like it can come in by the API; a bug that lets it through must not hurt the others.
        broken = RequestKey("default", "broken", "CancelWorkflow", lambda _: object())  # type: ignore[arg-type,return-value]
        good = [cancel(engine, run, f"good-{number}") for number in range(3)]
        bad = engine.submit(run.run_id, RequestCancel("", ""), broken)
        with pytest.raises(InternalError):
            await bad
        assert all(isinstance(outcome, Reply) for outcome in await asyncio.gather(*good))
    assert (await stored(store, run)).cancel_requested


class _Weighing:
    """A store that notes how many bytes of events each batch had."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.weights: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, changes: Sequence[Change], now_ms: int) -> CommitResult:
        self.weights.append(sum(event.ByteSize() for change in changes for event in change.run.new_events))
        return await self._store.commit(changes, now_ms)


async def test_a_batch_ends_where_its_events_become_too_large(store: Store) -> None:
    large = Payload(binary=b"x" * (1 << 20))
    weighing = _Weighing(store)
    runs = [new_run(f"order-{number}") for number in range(10)]
    order = WorkflowSpec(workflow_type="order", task_queue="default", arguments=[large])
    async with running(weighing) as engine:
        starts = [engine.start(run, StartRun(order, ""), key_of(run.run_id)) for run in runs]
        # What is asked of one run while it is in a batch comes all at once after it.
        signals = [
            engine.submit(runs[0].run_id, SendSignal(Signal(name=str(number), arguments=[large])))
            for number in range(10)
        ]
        await asyncio.gather(*starts, *signals)
    assert sum(weighing.weights) > 20 << 20
    assert max(weighing.weights) < BATCH_BYTES + (1 << 20) + 1_000
    assert len(weighing.weights) < 10, "what goes together is still written together"
    history = await store.show_history(runs[0].run_id, 0, 100, max_bytes=1 << 30)
    assert [e.signal_received.signal.name for e in history[1:]] == [str(number) for number in range(10)]


async def test_what_was_decided_for_a_batch_that_ends_by_a_bug_is_not_taken_for_stored(store: Store) -> None:
    class Buggy(_Refusing):
        """Refuses a batch, and then fails at its first half."""

        errors: list[Exception] = []  # noqa: RUF012

        async def commit(self, changes: Sequence[Change], now_ms: int) -> CommitResult:
            if self.errors:
                raise self.errors.pop(0)
            return await self._store.commit(changes, now_ms)

    buggy = Buggy(store)
    runs = [new_run("one"), new_run("other")]
    async with running(buggy) as engine:
        await asyncio.gather(*(start(engine, run) for run in runs))
        buggy.errors += [BatchRejected("the database does not like it"), RuntimeError("a bug")]
        outcomes = await asyncio.gather(*(cancel(engine, run, run.workflow_id) for run in runs), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [InternalError] * 2
        for run in runs:
            await engine.submit(run.run_id, SendSignal(Signal(name="next")))
    for run in runs:
        assert not (await stored(store, run)).cancel_requested
    assert not await store.find_requests([("default", run.workflow_id) for run in runs])


async def test_the_same_request_twice_in_one_batch_acts_once(store: Store) -> None:
    run = new_run("order")
    async with running(store) as engine:
        await start(engine, run)
        first, second = await asyncio.gather(cancel(engine, run, "same"), cancel(engine, run, "same"))
    assert isinstance(first, Reply)
    assert second == Recorded("CancelWorkflow", run.run_id, b"cancelled")
    assert (await stored(store, run)).last_event_id == 2


async def test_the_same_start_twice_in_one_batch_starts_one_run(store: Store) -> None:
    runs = [new_run("order-a"), new_run("order-b")]
    async with running(store) as engine:
        outcomes = await asyncio.gather(*(start(engine, run, "same") for run in runs))
    recorded = [outcome for outcome in outcomes if isinstance(outcome, Recorded)]
    assert len(recorded) == 1
    assert len(await store.load([run.run_id for run in runs])) == 1


async def test_a_second_open_run_of_a_workflow_id_is_refused(store: Store) -> None:
    async with running(store) as engine:
        await start(engine, new_run("order"))
        with pytest.raises(BatchRejected):
            await start(engine, new_run("order"))


async def test_one_transaction_closes_a_run_and_opens_the_next(store: Store) -> None:
    old, new = new_run("order"), new_run("order")
    async with running(store) as engine:
        await start(engine, old)
        key = RequestKey("default", "replace", "StartWorkflow", lambda _: b"started")
        trigger = StartRun(WorkflowSpec(workflow_type="order", task_queue="default"), "")
        await engine.replace(old.run_id, Terminate("", ""), new, trigger, key)
        with pytest.raises(WorkflowClosed):
            await engine.replace(old.run_id, Terminate("", ""), new_run("order"), trigger, key_of("again"))
    assert (await stored(store, old)).status == WORKFLOW_STATUS_TERMINATED
    assert (await stored(store, new)).status == WORKFLOW_STATUS_RUNNING
    assert (await store.find_requests([("default", "replace")]))["default", "replace"].run_id == new.run_id


def key_of(request_id: str) -> RequestKey:
    return RequestKey("default", request_id, "StartWorkflow", lambda _: b"started")


async def test_a_stale_cache_answers_nothing(store: Store) -> None:
    run = new_run("order")
    async with running(store) as here, running(store) as there:
        await start(here, run)
        await there.submit(run.run_id, Terminate("", ""))
        # `here` still holds the run as open, and must not act on it; nor may it refuse what has become possible.
        with pytest.raises(WorkflowClosed):
            await cancel(here, run, "late")


async def test_a_task_that_another_session_has_is_stale(store: Store) -> None:
    run = new_run("order")
    async with running(store) as engine:
        await start(engine, run)
        fence = Fence(WORKFLOW_TASK_ID, 1, "not-mine", 1)
        commands = [Command(complete_workflow=CompleteWorkflow(result=Payload(json="1")))]
        with pytest.raises(StaleTask):
            await engine.submit(run.run_id, CompleteWorkflowTask(fence, 1, commands, holds_run=False))
        unowned = Fence(WORKFLOW_TASK_ID, 1, "")
        await engine.submit(run.run_id, CompleteWorkflowTask(unowned, 1, commands, holds_run=False))
    assert (await stored(store, run)).status == WORKFLOW_STATUS_COMPLETED


async def test_an_unknown_run_is_not_found(store: Store) -> None:
    async with running(store) as engine:
        with pytest.raises(WorkflowNotFound):
            await engine.submit(new_id(), RequestCancel("", ""))


@pytest.mark.parametrize("what", ["start", "cancel", "complete"])
async def test_a_commit_whose_answer_is_lost_happens_once(
    store: Store, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    run = new_run("order")
    async with running(store) as engine:
        if what != "start":
            await start(engine, run)
        monkeypatch.setattr(faults, "_ACTIVE", True)
        monkeypatch.setattr(faults, "_AMBIGUOUS_AT", ("commit", faults._reached["commit"] + 1))
        if what == "start":
            outcome = await start(engine, run)
            assert outcome == Recorded("StartWorkflow", run.run_id, run.run_id.encode())
            expected = 1
        elif what == "cancel":
            outcome = await cancel(engine, run, "cancel")
            assert outcome == Recorded("CancelWorkflow", run.run_id, b"cancelled")
            expected = 2
        else:
            commands = [Command(complete_workflow=CompleteWorkflow(result=Payload(json="1")))]
            # What it consumes is gone: the caller looks up what consumed it.
            trigger = CompleteWorkflowTask(Fence(WORKFLOW_TASK_ID, 1, ""), 1, commands, holds_run=False)
            with pytest.raises(StaleTask):
                await engine.submit(run.run_id, trigger)
            expected = 2
    assert (await stored(store, run)).last_event_id == expected


async def test_two_replicas_that_start_the_same_ids_in_opposite_order_start_each_once(store: Store) -> None:
    ids = [f"order-{number}" for number in range(64)]
    async with running(store) as here, running(store) as there:
        outcomes = await asyncio.gather(
            *(start(here, new_run(workflow_id)) for workflow_id in ids),
            *(start(there, new_run(workflow_id)) for workflow_id in reversed(ids)),
            return_exceptions=True,
        )
    assert sum(isinstance(outcome, Reply) for outcome in outcomes) == 64
    assert sum(isinstance(outcome, BatchRejected) for outcome in outcomes) == 64
    latest = await store.latest([("default", workflow_id) for workflow_id in ids])
    assert len(latest) == 64


async def test_many_triggers_for_one_run_are_decided_in_order(store: Store) -> None:
    run = new_run("order")
    async with running(store) as engine:
        await start(engine, run)
        await asyncio.gather(*(cancel(engine, run, f"cancel-{number}") for number in range(100)))
        assert engine.commits <= 10
    assert (await stored(store, run)).last_event_id == 2


async def test_a_check_of_a_task_that_was_put_off_meanwhile_is_stale(store: Store) -> None:
    run = new_run("order")
    async with running(store) as engine:
        await start(engine, run)
        (task,) = (await stored(store, run)).tasks.values()
        late = Fence(task.task_id, task.attempt, task.owner, task.owner_epoch, relay_ms=task.relay_ms - 1)
        for _ in range(2):  # on the cached run, and on one that was just read
            with pytest.raises(StaleTask):
                await engine.submit(run.run_id, LoseTask(late))
        assert (await stored(store, run)).tasks[task.task_id].attempt == task.attempt
        now = Fence(task.task_id, task.attempt, task.owner, task.owner_epoch, relay_ms=task.relay_ms)
        await engine.submit(run.run_id, LoseTask(now))
        assert (await stored(store, run)).tasks[task.task_id].attempt == task.attempt + 1


async def test_good_completions_in_a_batch_with_a_stale_one_are_recorded(store: Store) -> None:
    run = new_run("order")
    async with running(store) as engine:
        await start(engine, run)
        commands = [schedule(name) for name in ("pay:1", "pay:2", "pay:3")]
        await engine.submit(
            run.run_id, CompleteWorkflowTask(Fence(WORKFLOW_TASK_ID, 1, ""), 1, commands, holds_run=False)
        )
        fences = [Fence("a/pay:1", 1, ""), Fence("a/pay:2", 1, "not-mine", 1), Fence("a/pay:3", 1, "")]
        completions = [CompleteActivity(fence, 0, result=Payload(json="1")) for fence in fences]
        outcomes = await asyncio.gather(*(engine.submit(run.run_id, c) for c in completions), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Reply, StaleTask, Reply]
    assert (await stored(store, run)).tasks.keys() == {"a/pay:2", WORKFLOW_TASK_ID}
