"""The worker against a scripted service: what it makes of tasks, and how it lives and ends."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from romancy.v1.command_pb2 import Command
from romancy.v1.history_pb2 import (
    ActivityCompleted,
    ActivityScheduled,
    HistoryEvent,
    TimerStarted,
    WorkflowStarted,
)
from romancy.v1.payload_pb2 import Payload
from romancy.v1.worker_service_pb2 import (
    ACKNOWLEDGEMENT_RESULT_ACCEPTED,
    ACKNOWLEDGEMENT_RESULT_ACCEPTED_ALONE,
    ACKNOWLEDGEMENT_RESULT_STALE,
    CANCELLATION_REASON_STALE,
    Acknowledgement,
    ActivityCompletion,
    ActivityTask,
    Cancellation,
    ConnectResponse,
    WorkflowTask,
    WorkflowTaskCompletion,
)
from romancy.v1.workflow_pb2 import WorkflowSpec

from romancy import (
    NothingDone,
    TerminalError,
    WorkflowContext,
    activity,
    activity_info,
    compensation,
    heartbeat,
    workflow,
)
from romancy.errors import DefinitionError
from romancy.worker import Worker, WorkerStopped
from tests.worker_sdk.scripted import PATIENCE_S, ScriptedService, ScriptedStream, duration, scripted_service

# What the worker runs -------------------------------------------------------------------------------------------------


@activity
async def double(number: int) -> int:
    return 2 * number


@activity
def sync_double(number: int) -> int:
    return 2 * number


@activity
async def shout(text: str) -> str:
    return text.upper()


@activity
async def fail(kind: str) -> None:
    if kind == "exit":
        raise SystemExit(3)
    if kind == "terminal":
        raise TerminalError("no such card")
    raise KeyError(kind)


@activity
def sync_exit() -> None:
    raise SystemExit(3)


@activity
async def unencodable() -> int:
    return "not a number"  # type: ignore[return-value]


@activity
async def wait_for_ever() -> str:
    heartbeat("waiting")
    await asyncio.Event().wait()
    return "never"


@activity
async def block_the_loop() -> None:
    STOP.wait(PATIENCE_S)


STOP = threading.Event()


@activity
def poll_for_ever() -> None:
    while not STOP.wait(0.01):
        heartbeat()


@activity
async def think_again() -> None:
    heartbeat("thinking")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise NothingDone("it only thought") from None


@activity
async def progress(count: int) -> None:
    for number in range(count):
        heartbeat(number)
    raise ValueError("stopped in the middle")


@activity
async def who() -> str:
    info = activity_info()
    return f"{info.activity_id} {info.attempt} {info.idempotency_key} {info.heartbeat_details()}"


@compensation
async def undo_pay(order: str) -> None: ...


@compensation
async def give_back(order: str) -> str:
    return f"gave {order} back"


@activity(compensation=give_back)
async def pay(order: str) -> str:
    return f"paid {order}"


@workflow
async def two_steps(ctx: WorkflowContext, text: str) -> str:
    first = await shout(text)
    second = await shout(first + "!")
    return first + second


@workflow
async def three_at_once(ctx: WorkflowContext) -> list[int]:
    return list(await asyncio.gather(double(1), double(2), double(3)))


ALL: dict[str, Any] = {
    "workflows": [two_steps, three_at_once],
    "activities": [
        *(
            double,
            sync_double,
            shout,
            fail,
            sync_exit,
            unencodable,
            wait_for_ever,
            poll_for_ever,
            think_again,
            progress,
            who,
            pay,
            block_the_loop,
        )
    ],
}

# Helpers --------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def service() -> AsyncIterator[ScriptedService]:
    STOP.clear()
    async with scripted_service() as service:
        yield service
    STOP.set()


@asynccontextmanager
async def working(service: ScriptedService, **options: Any) -> AsyncIterator[tuple[Worker, ScriptedStream]]:
    worker = Worker(service.target, **{**ALL, "worker_id": "w", "drain_timeout": 0.2, **options})
    starting = asyncio.create_task(worker.start())
    stream = await service.connected()
    await starting
    try:
        yield worker, stream
    finally:
        await worker.stop()


def activity_task(activity_type: str, *arguments: str, token: str = "a", **more: Any) -> ActivityTask:  # noqa: S107 - of a task
    return ActivityTask(
        token=token,
        run_id="run",
        activity_type=activity_type,
        activity_id=more.pop("activity_id", f"{activity_type}:1"),
        arguments=[Payload(json=argument) for argument in arguments],
        attempt=more.pop("attempt", 1),
        **more,
    )


async def send(stream: ScriptedStream, **lists: Any) -> None:
    await stream.send(ConnectResponse(**lists))


async def next_completion(stream: ScriptedStream) -> ActivityCompletion:
    while not (frame := await stream.frame()).activity_completions:
        pass
    (completion,) = frame.activity_completions
    return completion


async def next_task_completion(stream: ScriptedStream) -> WorkflowTaskCompletion:
    while not (frame := await stream.frame()).workflow_task_completions:
        pass
    (completion,) = frame.workflow_task_completions
    return completion


async def run(stream: ScriptedStream, *task: str, **more: Any) -> ActivityCompletion:
    await send(stream, activity_tasks=[activity_task(*task, **more)])
    return await next_completion(stream)


def started(workflow_type: str, *arguments: str) -> HistoryEvent:
    spec = WorkflowSpec(
        workflow_type=workflow_type,
        task_queue="default",
        arguments=[Payload(json=argument) for argument in arguments],
    )
    return HistoryEvent(event_id=1, workflow_started=WorkflowStarted(spec=spec))


def completed(event_id: int, activity_id: str, result: str) -> HistoryEvent:
    done = ActivityCompleted(activity_id=activity_id, attempt=1, result=Payload(json=result))
    return HistoryEvent(event_id=event_id, activity_completed=done)


def workflow_task(*events: HistoryEvent, token: str = "w", after: int = 0, last: int = 0) -> WorkflowTask:  # noqa: S107
    return WorkflowTask(
        token=token,
        workflow_id="wf",
        run_id="run",
        workflow_type=events[0].workflow_started.spec.workflow_type if not after else "",
        attempt=1,
        after_event_id=after,
        events=events,
        last_event_id=last or events[-1].event_id,
    )


async def begin_two_steps(stream: ScriptedStream) -> list[Command]:
    """The run is held, idle, and waits for its first activity: events 1 and 2 are recorded."""
    await send(stream, workflow_tasks=[workflow_task(started("two_steps", '"a"'))])
    completion = await next_task_completion(stream)
    assert completion.commands.holds_run
    await stream.accept("w", last_event_id=2)
    return list(completion.commands.commands)


def shout_task(number: int, text: str, token: str) -> ActivityTask:
    task = activity_task("shout", f'"{text}"', token=token)
    task.activity_id = f"shout:{number}"
    return task


# Activities -----------------------------------------------------------------------------------------------------------


async def test_async_and_sync_activities_return_their_results(service: ScriptedService) -> None:
    async with working(service) as (_, stream):
        assert (await run(stream, "double", "21")).result.json == "42"
        assert (await run(stream, "sync_double", "21", token="b")).result.json == "42"


async def test_an_activity_knows_its_attempt(service: ScriptedService) -> None:
    async with working(service) as (_, stream):
        task = {"attempt": 3, "idempotency_key": "run/who:1", "heartbeat_details": Payload(json='"half"')}
        assert (await run(stream, "who", **task)).result.json == '"who:1 3 run/who:1 half"'


@pytest.mark.parametrize(
    ("task", "failure_type"),
    [(("fail", '"x"'), "KeyError"), (("fail", '"exit"'), "SystemExit"), (("sync_exit",), "SystemExit")],
)
async def test_what_user_code_raises_fails_the_attempt_and_not_the_worker(
    service: ScriptedService, task: tuple[str, ...], failure_type: str
) -> None:
    async with working(service) as (_, stream):
        assert (await run(stream, *task)).failure.type == failure_type
        assert (await run(stream, "double", "1", token="b")).result.json == "2"
        assert (await run(stream, "sync_double", "1", token="c")).result.json == "2"


async def test_a_terminal_error_is_marked_so(service: ScriptedService) -> None:
    async with working(service) as (_, stream):
        failure = (await run(stream, "fail", '"terminal"')).failure
        assert (failure.type, failure.message, failure.non_retryable) == ("TerminalError", "no such card", True)


async def test_values_that_do_not_fit_fail_the_attempt_and_are_named(service: ScriptedService) -> None:
    async with working(service) as (_, stream):
        assert "result of unencodable" in (await run(stream, "unencodable")).failure.message
        assert "argument 'number' of double" in (await run(stream, "double", '"x"', token="b")).failure.message


async def test_an_activity_that_is_not_registered_fails_and_is_named(service: ScriptedService) -> None:
    async with working(service) as (_, stream):
        failure = (await run(stream, "unheard_of")).failure
        assert failure.type == "UnknownActivityType"
        assert "'unheard_of'" in failure.message


async def test_compensations_of_given_activities_are_registered_and_declarations_are_not(
    service: ScriptedService,
) -> None:
    @activity(compensation=undo_pay)
    async def elsewhere(order: str) -> str:
        raise NotImplementedError

    worker = Worker(service.target, activities=[pay, elsewhere])
    starting = asyncio.create_task(worker.start())
    hello = await (stream := await service.accept()).welcome()
    await starting
    assert list(hello.activity_types) == ["give_back", "pay"]
    assert hello.workflow_slots == 0
    assert (await run(stream, "give_back", '"o1"', compensation=True)).result.json == '"gave o1 back"'
    await stream.accept("a")
    await worker.stop()


async def test_a_cancelled_async_activity_is_interrupted(service: ScriptedService) -> None:
    async with working(service) as (_, stream):
        await send(stream, activity_tasks=[activity_task("wait_for_ever")])
        assert (await stream.frame()).activity_heartbeats[0].details.json == '"waiting"'
        await send(stream, cancellations=[Cancellation(token="a")])
        completion = await next_completion(stream)
        assert completion.WhichOneof("outcome") == "cancelled"
        assert not completion.cancelled.nothing_done, "nobody knows what the await that was interrupted has done"


async def test_an_activity_that_is_asked_to_stop_can_say_that_it_did_nothing(service: ScriptedService) -> None:
    async with working(service) as (_, stream):
        await send(stream, activity_tasks=[activity_task("think_again")])
        assert (await stream.frame()).activity_heartbeats
        await send(stream, cancellations=[Cancellation(token="a")])
        completion = await next_completion(stream)
        assert completion.WhichOneof("outcome") == "cancelled"
        assert completion.cancelled.nothing_done


async def test_a_cancelled_sync_activity_hears_of_it_at_its_next_heartbeat(service: ScriptedService) -> None:
    async with working(service) as (_, stream):
        await send(stream, activity_tasks=[activity_task("poll_for_ever")])
        assert (await stream.frame()).activity_heartbeats
        await send(stream, cancellations=[Cancellation(token="a")])
        assert (await next_completion(stream)).WhichOneof("outcome") == "cancelled"


async def test_an_activity_that_is_cancelled_before_it_begins_is_cancelled(service: ScriptedService) -> None:
    async with working(service) as (_, stream):
        tasks = [activity_task("wait_for_ever", token=f"{number}") for number in range(20)]
        cancellations = [Cancellation(token=task.token) for task in tasks]
        await send(stream, activity_tasks=tasks, cancellations=[])
        await send(stream, cancellations=cancellations)
        outcomes: list[str | None] = []
        while len(outcomes) < 20:
            outcomes += [c.WhichOneof("outcome") for c in (await stream.frame()).activity_completions]
        assert outcomes == ["cancelled"] * 20


async def test_many_heartbeats_become_few_and_a_failure_sends_the_last_one(service: ScriptedService) -> None:
    async with working(service) as (_, stream):
        task = activity_task("progress", "1000", heartbeat_timeout=duration(60))
        await send(stream, activity_tasks=[task])
        details = []
        while True:
            frame = await stream.frame()
            details += [beat.details.json for beat in frame.activity_heartbeats]
            if frame.activity_completions:
                break
        assert len(details) <= 2
        assert details[-1] == "999"


async def test_an_activity_that_blocks_the_others_is_reported_and_heartbeats_go_on(
    service: ScriptedService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("romancy._watch.BLOCKED_S", 0.1)
    worker = Worker(service.target, **ALL)
    starting = asyncio.create_task(worker.start())
    stream = await service.connected(interval_s=0.2)
    await starting
    await send(stream, activity_tasks=[activity_task("block_the_loop")])
    async with asyncio.timeout(PATIENCE_S):
        while "STOP.wait(PATIENCE_S)" not in caplog.text or stream.empty_frames < 3:
            await send(stream)
            await asyncio.sleep(0.05)
    STOP.set()
    assert (await next_completion(stream)).WhichOneof("outcome") == "result"
    await stream.accept("a")
    await worker.stop()


# Workflows ------------------------------------------------------------------------------------------------------------


async def test_a_held_run_carries_what_follows_from_its_activity(service: ScriptedService) -> None:
    async with working(service) as (_, stream):
        (command,) = await begin_two_steps(stream)
        assert command.schedule_activity.activity_id == "shout:1"
        await send(stream, activity_tasks=[shout_task(1, "a", "a1")])
        first = await next_completion(stream)
        assert first.result.json == '"A"'
        assert first.then.after_event_id == 2
        assert [c.schedule_activity.activity_id for c in first.then.commands] == ["shout:2"]
        await stream.accept("a1", last_event_id=4)
        await send(stream, activity_tasks=[shout_task(2, "A!", "a2")])
        second = await next_completion(stream)
        assert second.then.after_event_id == 4
        assert second.then.commands[0].complete_workflow.result.json == '"AA!"'


async def test_the_time_of_carried_commands_is_not_before_the_last_event(service: ScriptedService) -> None:
    async with working(service) as (_, stream):
        await send(stream, workflow_tasks=[workflow_task(started("two_steps", '"a"'))])
        await next_task_completion(stream)
        future = Acknowledgement(token="w", result=ACKNOWLEDGEMENT_RESULT_ACCEPTED, last_event_id=2)
        future.last_event_time.GetCurrentTime()
        future.last_event_time.seconds += 3600
        await send(stream, acknowledgements=[future])
        then = (await run_shout(stream, 1)).then
        assert then.time.ToMilliseconds() == future.last_event_time.ToMilliseconds()


async def run_shout(stream: ScriptedStream, number: int) -> ActivityCompletion:
    await send(stream, activity_tasks=[shout_task(number, "a", f"a{number}")])
    return await next_completion(stream)


async def test_an_activity_that_overtakes_an_acknowledgement_waits_for_it(service: ScriptedService) -> None:
    async with working(service) as (_, stream):
        await send(stream, workflow_tasks=[workflow_task(started("two_steps", '"a"'))])
        await next_task_completion(stream)
        await send(stream, activity_tasks=[shout_task(1, "a", "a1"), activity_task("double", "1", token="b")])
        assert (await next_completion(stream)).token == "b"
        await stream.accept("w", last_event_id=2)
        completion = await next_completion(stream)
        assert completion.token == "a1"
        assert completion.then.after_event_id == 2


async def test_nothing_is_carried_while_other_activities_are_open(service: ScriptedService) -> None:
    async with working(service) as (_, stream):
        await send(stream, workflow_tasks=[workflow_task(started("three_at_once"))])
        assert len((await next_task_completion(stream)).commands.commands) == 3
        await stream.accept("w", last_event_id=4)
        assert not (await run(stream, "double", "1")).HasField("then")


@pytest.mark.parametrize("more", [{"attempt": 2}, {"activity_id": "undo/shout:1"}])
async def test_nothing_is_carried_where_something_else_was_recorded(
    service: ScriptedService, more: dict[str, Any]
) -> None:
    async with working(service) as (_, stream):
        await begin_two_steps(stream)
        assert not (await run(stream, "shout", '"a"', **more)).HasField("then")


async def test_a_run_in_memory_gets_only_what_is_new(service: ScriptedService) -> None:
    async with working(service) as (_, stream):
        await begin_two_steps(stream)
        await send(stream, workflow_tasks=[workflow_task(completed(3, "shout:1", '"A"'), token="x", after=2)])
        completion = await next_task_completion(stream)
        assert completion.seen_event_id == 3
        assert [c.schedule_activity.activity_id for c in completion.commands.commands] == ["shout:2"]


async def test_a_run_that_is_not_in_memory_is_missed_and_then_comes_whole(service: ScriptedService) -> None:
    async with working(service) as (_, stream):
        await send(stream, workflow_tasks=[workflow_task(completed(3, "shout:1", '"A"'), after=2)])
        assert (await next_task_completion(stream)).WhichOneof("outcome") == "miss"
        history = [started("two_steps", '"a"'), scheduled(2, 1, "shout:1"), completed(3, "shout:1", '"A"')]
        pages = [workflow_task(history[0], last=3), workflow_task(history[0], last=3)]
        pages[0].more = True
        del pages[1].events[:]
        pages[1].events.extend(history[1:])
        for page in pages:
            await send(stream, workflow_tasks=[page])
        completion = await next_task_completion(stream)
        assert [c.schedule_activity.activity_id for c in completion.commands.commands] == ["shout:2"]
        assert completion.seen_event_id == 3


def scheduled(event_id: int, seen: int, activity_id: str) -> HistoryEvent:
    event = HistoryEvent(event_id=event_id, seen_event_id=seen, activity_scheduled=ActivityScheduled())
    event.activity_scheduled.command.activity_id = activity_id
    event.activity_scheduled.command.activity_type = activity_id.partition(":")[0]
    return event


async def test_carried_commands_that_were_not_accepted_make_the_worker_forget_the_run(
    service: ScriptedService,
) -> None:
    async with working(service) as (_, stream):
        await begin_two_steps(stream)
        assert (await run_shout(stream, 1)).HasField("then")
        alone = Acknowledgement(token="a1", result=ACKNOWLEDGEMENT_RESULT_ACCEPTED_ALONE)
        await send(stream, acknowledgements=[alone])
        assert list((await stream.frame()).forgotten_runs) == ["run"]
        await send(stream, workflow_tasks=[workflow_task(completed(4, "shout:1", '"A"'), token="x", after=2)])
        assert (await next_task_completion(stream)).WhichOneof("outcome") == "miss"


async def test_code_that_does_not_fit_its_history_fails_the_task_readably(service: ScriptedService) -> None:
    async with working(service) as (_, stream):
        recorded = HistoryEvent(event_id=2, seen_event_id=1, timer_started=TimerStarted(timer_id="1"))
        await send(stream, workflow_tasks=[workflow_task(started("two_steps", '"a"'), recorded)])
        completion = await next_task_completion(stream)
        assert completion.failure.type == "Divergence"
        assert "event 2 recorded StartTimer 1" in completion.failure.message
        assert "test_worker.py:" in completion.failure.message


async def test_a_workflow_that_is_not_registered_fails_its_task_and_is_named(service: ScriptedService) -> None:
    async with working(service) as (_, stream):
        await send(stream, workflow_tasks=[workflow_task(started("unheard_of"))])
        assert "'unheard_of'" in (await next_task_completion(stream)).failure.message


async def test_the_run_used_least_recently_is_put_out_of_memory(service: ScriptedService) -> None:
    async with working(service, cached_runs=1) as (_, stream):
        await begin_two_steps(stream)
        other = workflow_task(started("two_steps", '"b"'), token="o")
        other.run_id = "other"
        await send(stream, workflow_tasks=[other])
        assert list((await stream.frame()).forgotten_runs) == ["run"]


async def test_in_the_mode_that_replays_always_no_run_is_held(
    service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROMANCY_REPLAY_ALWAYS", "1")
    async with working(service) as (_, stream):
        await send(stream, workflow_tasks=[workflow_task(started("two_steps", '"a"'))])
        assert not (await next_task_completion(stream)).commands.holds_run
        assert not (await run_shout(stream, 1)).HasField("then")


# Reconnecting ---------------------------------------------------------------------------------------------------------


async def test_a_run_stays_in_memory_over_a_reconnect_of_its_session(service: ScriptedService) -> None:
    async with working(service) as (_, stream):
        await begin_two_steps(stream)
        await run(stream, "double", "1", token="sync")  # so that the acknowledgement before was read
        stream.fail(grpc.StatusCode.UNAVAILABLE)
        again = await service.connected()
        await send(again, workflow_tasks=[workflow_task(completed(3, "shout:1", '"A"'), token="x", after=2)])
        assert (await next_task_completion(again)).WhichOneof("outcome") == "commands"


async def test_a_new_session_holds_no_runs(service: ScriptedService) -> None:
    async with working(service) as (_, stream):
        await begin_two_steps(stream)
        stream.fail(grpc.StatusCode.UNAVAILABLE)
        again = await service.connected(session_id="another")
        await send(again, workflow_tasks=[workflow_task(completed(3, "shout:1", '"A"'), token="x", after=2)])
        assert (await next_task_completion(again)).WhichOneof("outcome") == "miss"


async def test_an_activity_that_is_not_the_workers_any_more_is_stopped_and_settled_by_the_answer(
    service: ScriptedService,
) -> None:
    async with working(service) as (worker, stream):
        await send(stream, activity_tasks=[activity_task("wait_for_ever")])
        await stream.frame()
        stream.fail(grpc.StatusCode.UNAVAILABLE)
        again = await service.connected(session_id="another")
        await send(again, cancellations=[Cancellation(token="a", reason=CANCELLATION_REASON_STALE)])
        assert (await next_completion(again)).HasField("cancelled")
        stale = Acknowledgement(token="a", result=ACKNOWLEDGEMENT_RESULT_STALE)
        await send(again, acknowledgements=[stale])
        await asyncio.wait_for(worker.stop(), PATIENCE_S)  # nothing is in hand


async def test_what_waits_for_an_acknowledgement_is_sent_alone_when_that_is_not_what_it_built_on(
    service: ScriptedService,
) -> None:
    async with working(service) as (_, stream):
        await send(stream, workflow_tasks=[workflow_task(started("two_steps", '"a"'))])
        await next_task_completion(stream)
        await send(stream, activity_tasks=[shout_task(1, "a", "a1"), activity_task("double", "1", token="b")])
        assert (await next_completion(stream)).token == "b"
        stream.fail(grpc.StatusCode.UNAVAILABLE)
        again = await service.connected()
        await send(again, cancellations=[Cancellation(token="w", reason=CANCELLATION_REASON_STALE)])
        await next_task_completion(again)  # sent again, since it was not acknowledged
        await send(again, acknowledgements=[Acknowledgement(token="w", result=ACKNOWLEDGEMENT_RESULT_STALE)])
        completion = await next_completion(again)
        while completion.token != "a1":
            completion = await next_completion(again)
        assert completion.result.json == '"A"'
        assert not completion.HasField("then")


@pytest.mark.parametrize(("choice", "outcome"), [("cancel", "cancelled"), ("go_on", None)])
async def test_when_nothing_is_heard_for_a_lease_work_goes_on_or_is_cancelled_as_chosen(
    service: ScriptedService, choice: str, outcome: str | None
) -> None:
    worker = Worker(service.target, **ALL, lease_lost=choice, drain_timeout=0.1)  # type: ignore[arg-type]
    lost = asyncio.Event()
    loop = asyncio.get_running_loop()
    inner = worker.lease_lost

    def lease_lost() -> None:
        inner()
        loop.call_soon_threadsafe(lost.set)

    worker.lease_lost = lease_lost  # type: ignore[method-assign]
    starting = asyncio.create_task(worker.start())
    stream = await service.connected(interval_s=60, lease_s=0.3)
    await starting
    await send(stream, activity_tasks=[activity_task("wait_for_ever")])
    await stream.frame()
    stream.fail(grpc.StatusCode.UNAVAILABLE)
    hung = await service.accept()
    await hung.hello()
    await asyncio.wait_for(lost.wait(), PATIENCE_S)
    hung.fail(grpc.StatusCode.UNAVAILABLE)
    again = await service.connected(lease_s=60)
    await send(again, activity_tasks=[activity_task("double", "1", token="b")])
    outcomes: dict[str, str | None] = {}
    while "b" not in outcomes:
        outcomes |= {c.token: c.WhichOneof("outcome") for c in (await again.frame()).activity_completions}
    assert outcomes.get("a") == outcome
    await worker.stop()


# The end --------------------------------------------------------------------------------------------------------------


async def test_a_drain_finishes_what_is_in_hand_and_gives_back_what_comes_late(service: ScriptedService) -> None:
    async with working(service, drain_timeout=PATIENCE_S) as (worker, stream):
        await send(stream, activity_tasks=[activity_task("poll_for_ever")])
        await stream.frame()
        stopping = asyncio.create_task(worker.stop())
        while not (await stream.frame()).HasField("drain"):
            pass
        await send(stream, activity_tasks=[activity_task("double", "1", token="late")])
        assert list((await stream.frame()).returned_tasks) == ["late"]
        assert not stopping.done()
        await send(stream, cancellations=[Cancellation(token="a")])
        assert (await next_completion(stream)).token == "a"
        await stream.accept("a")
        assert (await stream.frame()).HasField("goodbye")
        await asyncio.wait_for(stopping, PATIENCE_S)


async def test_what_does_not_end_in_a_drain_is_cancelled_and_left_to_others(service: ScriptedService) -> None:
    async with working(service) as (worker, stream):
        await send(stream, activity_tasks=[activity_task("wait_for_ever")])
        await stream.frame()
        await asyncio.wait_for(worker.stop(), PATIENCE_S)
        frames = [await stream.frame()]
        while not frames[-1].HasField("goodbye"):
            frames.append(await stream.frame())
        assert not any(frame.activity_completions for frame in frames)


async def test_a_worker_that_the_service_refuses_does_not_start(service: ScriptedService) -> None:
    worker = Worker(service.target, **ALL)
    starting = asyncio.create_task(worker.start())
    stream = await service.accept()
    await stream.hello()
    stream.fail(grpc.StatusCode.UNAUTHENTICATED, message="who are you")
    with pytest.raises(WorkerStopped, match="who are you"):
        await starting


async def test_two_functions_of_one_name_are_refused() -> None:
    def other() -> Callable[..., Any]:
        async def double(number: int) -> int:
            return number

        return double

    with pytest.raises(DefinitionError, match="two functions are registered as activity 'double'"):
        Worker(activities=[double, activity(other())])
    with pytest.raises(DefinitionError, match="is no workflow"):
        Worker(workflows=[double])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"workflows": two_steps}, DefinitionError, r"put it into a list, as in workflows=\[\.\.\.\]"),
        ({"activities": double}, DefinitionError, r"put it into a list, as in activities=\[\.\.\.\]"),
        ({"lease_lost": "foo"}, TypeError, "lease_lost is 'foo', but must be 'go_on' or 'cancel'"),
        ({"task_queues": []}, ValueError, "task_queues is empty"),
        ({"task_queues": ["a", "b", "a"]}, ValueError, "task_queues has 'a' more than once"),
        ({"task_queues": [7]}, TypeError, "a name in task_queues is 7"),
        ({"drain_timeout": "long"}, TypeError, "drain_timeout is 'long'"),
        ({"target": ""}, ValueError, "address is empty"),
    ],
)
def test_a_worker_that_makes_no_sense_is_refused_in_a_sentence(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        Worker(**options)


async def test_a_queue_may_be_named_without_a_list(service: ScriptedService) -> None:
    async with asyncio.TaskGroup() as tasks:
        worker = Worker(service.target, activities=[double], task_queues="orders")
        starting = tasks.create_task(worker.start())
        stream = await service.accept()
        hello = await stream.welcome()
        await starting
        tasks.create_task(worker.stop())
    assert list(hello.task_queues) == ["orders"]


def test_a_worker_that_is_never_started_opens_nothing() -> None:
    before = len(os.listdir("/proc/self/fd"))
    workers = [Worker(activities=[double], workflows=[]) for _ in range(20)]
    # What tests before left behind may be closed meanwhile.
    assert len(os.listdir("/proc/self/fd")) <= before, workers
