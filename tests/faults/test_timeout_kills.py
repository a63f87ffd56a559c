"""Service and workers die when a run, or a workflow with all its runs, has taken too long: it is timed out once and never
early, and what it did is undone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import pytest

from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_TIMED_OUT, WorkflowOutcome

from romancy import Client
from tests.faults.actor import Actor
from tests.faults.latecomers import holder, idler, recurrer
from tests.faults.scene import Scene, connected, until

ROUNDS = 2
TIMEOUT_S = 5.0
LATE: dict[str, tuple[Any, tuple[Any, ...], str]] = {
    "idler of one run": (idler, (), "run_timeout"),
    "idler": (idler, (), "execution_timeout"),
    "holder of one run": (holder, (), "run_timeout"),
    "holder": (holder, (), "execution_timeout"),
    "recurrer": (recurrer, (ROUNDS,), "execution_timeout"),
}
"""What is run, with what, and what it exceeds."""
UNDONE = {"idler": 0, "holder": 2, "recurrer": 1}
WORKER_DEATHS = ("reserve", "hold", "release")
MOST_LIVES = 60

pytestmark = pytest.mark.timeout(240)


def a_worker(stage: Scene, name: str, **environment: str) -> Actor:
    return stage.start(name, "tests.faults.latecomers", f"127.0.0.1:{stage.port}", name, **environment)


def timed_out(histories: Mapping[str, Sequence[HistoryEvent]]) -> list[HistoryEvent]:
    """Where runs are recorded to have taken too long."""
    return [event for history in histories.values() for event in history if event.HasField("rollback_started")]


def check(histories: Mapping[str, Sequence[HistoryEvent]], outcomes: Sequence[WorkflowOutcome]) -> None:
    """All that did not go on in another run took too long, was so for the reason that it was given, and was undone."""
    assert [outcome.status for outcome in outcomes] == [WORKFLOW_STATUS_TIMED_OUT] * len(outcomes)
    ends = [history for history in histories.values() if not history[-1].HasField("workflow_continued")]
    assert len(ends) == len(outcomes) == len(timed_out(histories)), "each once"
    for history in ends:
        started, spec = history[0].workflow_started, history[0].workflow_started.spec
        (rollback,) = [event for event in history if event.HasField("rollback_started")]
        whole = spec.HasField("execution_timeout")
        assert rollback.rollback_started.failure.type == ("ExecutionTimeout" if whole else "RunTimeout")
        first = histories[started.first_run_id] if started.first_run_id else history
        timeout = spec.execution_timeout if whole else spec.run_timeout
        lasted_ms = rollback.time.ToMilliseconds() - first[0].time.ToMilliseconds()
        assert lasted_ms >= timeout.ToMilliseconds(), "not early"
        undone = [event for event in history if event.HasField("compensation_completed")]
        assert len(undone) == UNDONE[spec.workflow_type]
        assert history[-1].HasField("workflow_timed_out")


async def start(client: Client) -> list[asyncio.Task[WorkflowOutcome]]:
    handles = [
        await client.start_workflow(workflow, *args, id=name, **{timeout: TIMEOUT_S})
        for name, (workflow, args, timeout) in LATE.items()
    ]
    return [asyncio.create_task(handle.outcome()) for handle in handles]


async def all_wait(stage: Scene, client: Client) -> bool:
    """Whether all have come as far as they ever will."""
    shown = [await client.get_handle(name).describe() for name in LATE if not name.startswith("holder")]
    waiting = [any("event never" in wait.sentence for wait in each.waits) for each in shown]
    return all(waiting) and stage.effects().count("hold:1") == len(LATE) - len(waiting)


async def test_wherever_the_service_dies_what_took_too_long_is_timed_out_once_and_undone(stage: Scene) -> None:
    await stage.service()
    worker = a_worker(stage, "worker")
    async with stage.client() as client:
        await until(lambda: connected(client, 1), "the worker is there", worker)
        outcomes = await start(client)
        await until(lambda: all_wait(stage, client), "all wait", worker)
        stage.kill_services()
        # All that happens to them next is that they are late.
        for death, recorded in (("commit.before:1", False), ("commit.after:1", True)):
            assert not timed_out(await stage.histories()), "not yet"
            mortal = await stage.service(ROMANCY_CRASH_AT=death)
            await until(lambda: not mortal.alive, f"it dies at {death}", worker)  # noqa: B023
            assert bool(timed_out(await stage.histories())) == recorded
        deaths = islice(cycle(("commit.before:1", "commit.after:1")), MOST_LIVES)
        assert await stage.outlive_all(deaths, lambda: all_done(outcomes)) > 2
        outcome = await asyncio.gather(*outcomes)
    check(await stage.finish(losses=False), outcome)


async def test_wherever_a_worker_dies_what_took_too_long_is_undone(stage: Scene) -> None:
    """Each on a task queue of its own: one dies in each activity, one before the timeout, and comes back after it."""
    service = await stage.service()
    async with stage.client() as client:
        queues = (*WORKER_DEATHS, "away")
        victims = {queue: a_worker(stage, queue, ROMANCY_TEST_DIE=queue, ROMANCY_TEST_QUEUE=queue) for queue in queues}
        await until(lambda: connected(client, len(queues)), "the workers are there", service)
        handles = {
            queue: await client.start_workflow(holder, id=queue, task_queue=queue, run_timeout=TIMEOUT_S)
            for queue in queues
        }
        outcomes = [asyncio.create_task(handle.outcome()) for handle in handles.values()]
        run_id = (await handles["away"].describe()).info.run_id
        held = [("effect", run_id, "hold:1")]
        await until(lambda: held[0] in [(e.kind, e.run_id, e.activity_id) for e in stage.ledger], "it holds", service)
        victims["away"].kill()
        for queue in WORKER_DEATHS:
            await until(lambda: not victims[queue].alive, f"the worker died in {queue}", service)  # noqa: B023
            a_worker(stage, f"other-{queue}", ROMANCY_TEST_QUEUE=queue)

        async def is_late() -> bool:
            return any([event.HasField("rollback_started") async for event in handles["away"].history()])

        await until(is_late, "the run whose worker is away took too long", service)
        a_worker(stage, "back", ROMANCY_TEST_QUEUE="away")
        outcome = await asyncio.gather(*outcomes)
    check(await stage.finish(), outcome)


async def test_a_workflow_that_recurs_without_end_is_timed_out_whichever_commit_the_service_dies_at(
    stage: Scene,
) -> None:
    await stage.service()
    worker = a_worker(stage, "worker")
    async with stage.client() as client:
        await until(lambda: connected(client, 1), "the worker is there", worker)
        handle = await client.start_workflow(recurrer, 1_000, id="recurrer", execution_timeout=TIMEOUT_S)
        outcome = [asyncio.create_task(handle.outcome())]
        await until(lambda: stage.effects().count("reserve:1") > 1, "it recurs", worker)
        deaths = (f"commit.{when}:{hit}" for hit in cycle((1, 2, 3, 4)) for when in ("before", "after"))
        assert await stage.outlive_all(islice(deaths, MOST_LIVES), outcome[0].done) > 2
        closed = await asyncio.gather(*outcome)
    histories = await stage.finish(losses=False)
    (last,) = [history for history in histories.values() if history[-1].HasField("workflow_timed_out")]
    assert closed[0].status == WORKFLOW_STATUS_TIMED_OUT
    assert last[-2].HasField("compensation_completed") or not any(e.HasField("activity_completed") for e in last)
    runs = {history[0].workflow_started.continued_from_run_id: run_id for run_id, history in histories.items()}
    assert len(runs) == len(histories), "each goes on in one"
    deadlines = {history[0].workflow_started.execution_deadline.ToMilliseconds() for history in histories.values()}
    (rollback,) = timed_out(histories)
    assert len(deadlines) == 1, "one for all"
    assert rollback.time.ToMilliseconds() >= deadlines.pop()


def all_done(tasks: Sequence[asyncio.Task[Any]]) -> bool:
    return all(task.done() for task in tasks)
