"""Workflow tasks: what a worker gets, in which order; sticky runs, misses, pages, carried commands, duplicates."""

from __future__ import annotations

import asyncio

from google.protobuf.timestamp_pb2 import Timestamp

from romancy.v1.command_pb2 import Command
from romancy.v1.failure_pb2 import Failure
from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.payload_pb2 import Payload
from romancy.v1.worker_service_pb2 import (
    ACKNOWLEDGEMENT_RESULT_ACCEPTED,
    ACKNOWLEDGEMENT_RESULT_ACCEPTED_ALONE,
    ACKNOWLEDGEMENT_RESULT_DUPLICATE,
    ACKNOWLEDGEMENT_RESULT_STALE,
    Acknowledgement,
    ConnectRequest,
    Then,
    WorkflowTask,
    WorkflowTaskCommands,
    WorkflowTaskCompletion,
)
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_COMPLETED, WORKFLOW_STATUS_RUNNING

from tests.core.life import complete, register, schedule, timer
from tests.service.cluster import Tenant, json, until
from tests.service.scripted_worker import ScriptedWorker


def kinds(events: list[HistoryEvent]) -> list[tuple[int, str]]:
    """Number and kind of each event."""
    return [(event.event_id, str(event.WhichOneof("attributes"))) for event in events]


def commands_of(task: WorkflowTask, *commands: Command, holds: bool = True) -> WorkflowTaskCompletion:
    """The completion of a workflow task."""
    return WorkflowTaskCompletion(
        token=task.token,
        seen_event_id=task.last_event_id,
        commands=WorkflowTaskCommands(commands=commands, holds_run=holds),
    )


async def test_a_worker_that_holds_the_run_gets_only_what_is_new(tenant: Tenant) -> None:
    worker = await tenant.worker()
    await tenant.start("order")
    accepted = await worker.command(await worker.workflow_task(), schedule("pay:1"))
    await worker.complete(await worker.activity(), "1")
    task = await worker.workflow_task()
    assert task.after_event_id == accepted.last_event_id == 2
    assert kinds(list(task.events)) == [(3, "activity_completed")]
    assert task.last_event_id == 3


async def test_a_worker_that_does_not_hold_the_run_gets_the_whole_history_in_replay_order(tenant: Tenant) -> None:
    worker = await tenant.worker()
    await tenant.start("order")
    await worker.command(await worker.workflow_task(), schedule("pay:1"), schedule("ship:1"), holds=False)
    pay, ship = await worker.activity(), await worker.activity()
    await worker.complete(pay)
    task = await worker.workflow_task()
    assert task.after_event_id == 0
    assert kinds(list(task.events)) == [
        (1, "workflow_started"),
        (2, "activity_scheduled"),
        (3, "activity_scheduled"),
        (4, "activity_completed"),
    ]
    # An input that arrives while the task is out is numbered before its commands, but comes after them on replay.
    await worker.complete(ship)
    await worker.command(task, timer("1", 3600), holds=False)
    task = await worker.workflow_task()
    assert kinds(list(task.events))[3:] == [(4, "activity_completed"), (6, "timer_started"), (5, "activity_completed")]
    assert task.events[4].seen_event_id == 4
    assert task.last_event_id == 6


async def test_a_miss_brings_the_whole_history_under_the_same_token_and_is_no_failure(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run = await tenant.start("order")
    await worker.command(await worker.workflow_task(), schedule("pay:1"))
    await worker.complete(await worker.activity())
    whole = await worker.miss(await worker.workflow_task())
    assert (whole.after_event_id, whole.attempt, len(whole.events)) == (0, 1, 3)
    await worker.command(whole, complete())
    assert await tenant.result(run.run_id) is not None


async def test_a_run_that_was_forgotten_comes_whole(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run = await tenant.start("order")
    await worker.command(await worker.workflow_task(), schedule("pay:1"))
    activity = await worker.activity()
    await worker.send(ConnectRequest(forgotten_runs=[run.run_id]))
    await worker.complete(activity)
    task = await worker.workflow_task()
    assert (task.after_event_id, len(task.events)) == (0, 3)


async def test_a_run_goes_back_to_the_worker_that_holds_it(tenant: Tenant) -> None:
    workers = [await tenant.worker(worker_id=f"worker-{n}") for n in range(3)]
    runs = [await tenant.start(f"order-{n}") for n in range(9)]
    held: dict[str, ScriptedWorker] = {}
    activities = []

    async def all_came() -> bool:
        return sum(len(worker.workflow_tasks) for worker in workers) == len(runs)

    await until(all_came, "all first workflow tasks")
    for worker in workers:
        while worker.workflow_tasks:
            task = await worker.workflow_task()
            held[task.run_id] = worker
            await worker.command(task, schedule("pay:1"))

    async def all_scheduled() -> bool:
        return sum(len(worker.activities) for worker in workers) == len(runs)

    await until(all_scheduled, "all activities")
    for worker in workers:
        while worker.activities:
            activities.append((worker, await worker.activity()))
    for worker, activity in activities:
        await worker.complete(activity)
        task = await held[activity.run_id].workflow_task()
        assert (task.run_id, task.after_event_id) == (activity.run_id, 2)


async def test_a_busy_holder_is_passed_over(tenant: Tenant) -> None:
    holder = await tenant.worker(worker_id="holder", workflow_slots=1)
    await tenant.start("held")
    await holder.command(await holder.workflow_task(), schedule("pay:1"))
    activity = await holder.activity()
    await tenant.start("other")
    await holder.workflow_task()  # its only slot is taken
    spare = await tenant.worker(worker_id="spare", activities=[])
    await holder.complete(activity)
    task = await spare.workflow_task()
    assert (task.workflow_id, task.after_event_id, len(task.events)) == ("held", 0, 3)


async def test_a_long_history_comes_in_pages(tenant: Tenant) -> None:
    worker = await tenant.worker()
    await tenant.start("order")
    big = [json(f'"{"x" * 700_000}"')]
    await worker.command(
        await worker.workflow_task(), *(schedule(f"pay:{n}", arguments=big) for n in range(1, 5)), holds=False
    )
    await worker.complete(await worker.activity())
    pages = [await worker.workflow_tasks.take("page")]
    while pages[-1].more:
        pages.append(await worker.workflow_tasks.take("page"))
    assert len(pages) > 2
    assert len({page.token for page in pages}) == 1
    assert [event.event_id for page in pages for event in page.events] == [1, 2, 3, 4, 5, 6]


async def _carrying(tenant: Tenant) -> tuple[ScriptedWorker, str, Acknowledgement]:
    worker = await tenant.worker()
    run = await tenant.start("order")
    return worker, run.run_id, await worker.command(await worker.workflow_task(), schedule("pay:1"))


def _then(known: Acknowledgement, *commands: Command, later_ms: int = 0) -> Then:
    time = Timestamp()
    time.FromMilliseconds(known.last_event_time.ToMilliseconds() + later_ms)
    return Then(after_event_id=known.last_event_id, time=time, commands=commands)


async def test_carried_commands_are_recorded_with_the_completion_that_carries_them(tenant: Tenant) -> None:
    worker, run_id, known = await _carrying(tenant)
    answer = await worker.complete(await worker.activity(), "1", then=_then(known, schedule("ship:1"), later_ms=1))
    assert answer.result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    assert answer.last_event_id == 4
    answer = await worker.complete(await worker.activity(), "2", then=_then(answer, complete("3")))
    assert (answer.result, answer.last_event_id) == (ACKNOWLEDGEMENT_RESULT_ACCEPTED, 6)
    history = await tenant.history(run_id)
    assert [(e.event_id, e.seen_event_id) for e in history] == [(1, 0), (2, 1), (3, 0), (4, 3), (5, 0), (6, 5)]
    assert history[2].time.ToMilliseconds() == known.last_event_time.ToMilliseconds() + 1, (
        "what the code saw is recorded"
    )
    outcome = await tenant.result(run_id)
    assert outcome is not None
    assert (outcome.status, outcome.result.json) == (WORKFLOW_STATUS_COMPLETED, "3")


async def test_carried_commands_are_left_out_when_another_input_came_first(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run = await tenant.start("order")
    known = await worker.command(await worker.workflow_task(), schedule("pay:1"), schedule("ship:1"))
    pay, ship = await worker.activity(), await worker.activity()
    await worker.complete(pay, then=None)
    answer = await worker.complete(ship, then=_then(known, complete()))
    assert answer.result == ACKNOWLEDGEMENT_RESULT_ACCEPTED_ALONE
    shown = await tenant.get(run.run_id)
    assert shown.info.status == WORKFLOW_STATUS_RUNNING
    assert "workflow_completed" not in await tenant.kinds(run.run_id)


async def test_carried_commands_that_are_refused_leave_the_completion_accepted(tenant: Tenant) -> None:
    worker, run_id, known = await _carrying(tenant)
    answer = await worker.complete(await worker.activity(), "1", then=_then(known, schedule("ship:7")))
    assert (answer.result, answer.rejection.reason) == (ACKNOWLEDGEMENT_RESULT_ACCEPTED_ALONE, "INVALID_FIELD")
    assert (await tenant.kinds(run_id))[-1] == "activity_completed"
    task = await worker.workflow_task()
    assert [e.event_id for e in task.events][-1] == 3


async def test_carried_commands_whose_time_is_impossible_are_left_out(tenant: Tenant) -> None:
    worker, _, known = await _carrying(tenant)
    activity = await worker.activity()
    answer = await worker.complete(activity, then=_then(known, complete(), later_ms=-5))
    assert answer.result == ACKNOWLEDGEMENT_RESULT_ACCEPTED_ALONE


async def test_carried_commands_of_a_worker_that_does_not_hold_the_run_are_left_out(tenant: Tenant) -> None:
    worker = await tenant.worker()
    await tenant.start("order")
    known = await worker.command(await worker.workflow_task(), schedule("pay:1"), holds=False)
    answer = await worker.complete(await worker.activity(), then=_then(known, complete()))
    assert answer.result == ACKNOWLEDGEMENT_RESULT_ACCEPTED_ALONE


async def test_a_completion_sent_twice_is_recorded_once(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run = await tenant.start("order")
    task = await worker.workflow_task()
    first = await worker.command(task, register("undo"), schedule("pay:1"))
    second = await worker.command(task, register("undo"), schedule("pay:1"))
    assert first.result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    assert second.result in (ACKNOWLEDGEMENT_RESULT_DUPLICATE, ACKNOWLEDGEMENT_RESULT_STALE)
    assert await tenant.kinds(run.run_id) == ["workflow_started", "compensation_registered", "activity_scheduled"]


async def test_a_completion_sent_again_is_not_taken_for_that_of_the_next_task(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run = await tenant.start("order")
    await worker.command(await worker.workflow_task(), schedule("pay:1"), schedule("pay:2"))
    one, two = await worker.activity(), await worker.activity()
    await worker.complete(one)
    task = await worker.workflow_task()
    await worker.complete(two)  # arrives while the task is out, so that another one follows at once
    accepted = await worker.command(task, register("undo"))
    following = await worker.workflow_task()
    assert following.token != task.token, "each workflow task has a name of its own"
    again = await worker.command(task, register("undo"))
    assert accepted.result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    assert again.result in (ACKNOWLEDGEMENT_RESULT_DUPLICATE, ACKNOWLEDGEMENT_RESULT_STALE)
    assert (await worker.command(following, complete())).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    assert (await tenant.kinds(run.run_id)).count("compensation_registered") == 1


async def test_a_task_whose_answer_was_lost_with_the_stream_is_not_taken_for_the_next_one(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run = await tenant.start("order")
    await worker.command(await worker.workflow_task(), schedule("pay:1"), schedule("pay:2"))
    one, two = await worker.activity(), await worker.activity()
    await worker.complete(one)
    task = await worker.workflow_task()
    await worker.complete(two)
    await worker.command(task, register("undo"))
    await worker.workflow_task()  # comes with the acknowledgement; the worker is to have seen neither
    await worker.cut()
    await worker.connect(tokens=[task.token])
    assert (await worker.stopped()) == task.token
    following = await worker.miss(await worker.workflow_task())
    assert kinds(list(following.events))[-2:] == [(6, "compensation_registered"), (5, "activity_completed")]
    assert (await worker.command(following, complete())).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    assert (await tenant.kinds(run.run_id)).count("compensation_registered") == 1


async def test_a_failed_workflow_task_leaves_the_run_open_and_comes_again_later(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run = await tenant.start("order")
    task = await worker.workflow_task()
    failure = Failure(message="event 2 recorded reserve:1, the code asks for pay:1", type="Divergence")
    answer = await worker.answer(WorkflowTaskCompletion(token=task.token, seen_event_id=1, failure=failure))
    assert answer.result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    shown = await tenant.get(run.run_id)
    assert (shown.info.status, shown.workflow_task.attempt) == (WORKFLOW_STATUS_RUNNING, 2)
    assert shown.workflow_task.last_failure.type == "Divergence"
    assert any("Divergence" in wait.sentence for wait in shown.waits)
    again = await worker.workflow_task()
    assert (again.attempt, again.after_event_id) == (2, 0)
    assert (await worker.command(again, complete())).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    assert (await worker.command(task, complete())).result == ACKNOWLEDGEMENT_RESULT_STALE


async def test_a_workflow_type_nobody_serves_waits_and_disturbs_nobody(tenant: Tenant) -> None:
    worker = await tenant.worker(workflow_slots=2)
    lonely = [await tenant.start(f"lonely-{n}", workflow_type="unknown") for n in range(20)]
    runs = [await tenant.start(f"order-{n}") for n in range(10)]
    for _ in runs:
        assert (
            await worker.command(await worker.workflow_task(), complete())
        ).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    shown = await tenant.get(lonely[0].run_id)
    assert shown.info.status == WORKFLOW_STATUS_RUNNING
    assert "no worker of queue queue has type unknown" in shown.waits[0].sentence
    late = await tenant.worker(workflows=["unknown"], activities=[], workflow_slots=20)
    for _ in lonely:
        await late.command(await late.workflow_task(), complete())


async def test_smaller_priorities_come_first_among_waiting_tasks(tenant: Tenant) -> None:
    for number, priority in enumerate([5, -3, 0]):
        await tenant.start(f"order-{number}", priority=priority)
    worker = await tenant.worker(workflow_slots=1)
    came = []
    for _ in range(3):
        task = await worker.workflow_task()
        came.append(task.workflow_id)
        await worker.command(task, complete())
    assert came == ["order-1", "order-2", "order-0"]


async def test_the_service_never_sends_more_than_the_free_slots(tenant: Tenant) -> None:
    worker = await tenant.worker(workflow_slots=3, activity_slots=5)
    runs = [await tenant.start(f"order-{n}") for n in range(8)]
    out, most = 0, 0
    done = 0
    while done < len(runs):
        task = await worker.workflow_task()
        most = max(most, 1 + len(worker.workflow_tasks))
        await worker.command(task, *(schedule(f"pay:{n}") for n in range(1, 5)))
        done += 1
    assert most <= 3
    done = 0
    held = []
    while done < 4 * len(runs):
        held.append(await worker.activity())
        out = len(held) + len(worker.activities)
        assert out <= 5
        if len(held) == 5:
            await asyncio.gather(*(worker.send(_completions([activity])) for activity in held))
            for _ in held:
                await worker.acknowledgements.take("acknowledgement")
            done += len(held)
            held = []
        elif done + len(held) == 4 * len(runs):
            break


def _completions(activities: list[object]) -> ConnectRequest:
    frame = ConnectRequest()
    for activity in activities:
        frame.activity_completions.add(token=activity.token, result=Payload(json="1"))  # type: ignore[attr-defined]
    return frame
