"""What workflow code can do, and what it asks for when it does."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import random
import weakref
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from romancy.v1.failure_pb2 import FAILURE_SOURCE_LOST, FAILURE_SOURCE_TIMEOUT, Failure
from romancy.v1.history_pb2 import HistoryEvent, RollbackStarted, WorkflowTerminated
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_TIMED_OUT

from romancy import (
    ActivityCancelled,
    ActivityError,
    ActivityLost,
    ActivityTimeout,
    CompensationError,
    DefinitionError,
    OutsideWorkflow,
    WorkflowContext,
    WorkflowTaskError,
    activity,
    compensation,
    workflow,
)
from tests.worker_sdk.driver import Driver
from tests.worker_sdk.simulated import EPOCH_MS, timestamp

seen: list[Any] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    seen.clear()


@compensation
async def undo(n: int) -> None:
    pass


@activity(compensation=undo)
async def do(n: int) -> int:
    return n


@activity
def say(text: str) -> str:
    return text


@workflow
async def one_after_the_other(ctx: WorkflowContext, n: int) -> str:
    return await say(str(await do(n)))


def test_an_activity_is_scheduled_when_it_is_awaited_and_gives_its_result() -> None:
    run = Driver(one_after_the_other, 3)
    assert run.start() == ["schedule_activity do:1"]
    assert run.complete("do:1", 4) == ["schedule_activity say:1"]
    assert run.complete("say:1", "four") == ["complete_workflow"]
    assert run.result() == "four"


@workflow
async def twice_at_once(ctx: WorkflowContext) -> list[int]:
    return list(await asyncio.gather(do(1), do(2), do(3)))


def test_gathered_activities_have_ids_by_order_of_call_and_results_by_place() -> None:
    run = Driver(twice_at_once)
    assert run.start() == ["schedule_activity do:1", "schedule_activity do:2", "schedule_activity do:3"]
    assert run.complete("do:3", 30) == []
    assert run.complete("do:1", 10) == []
    assert run.complete("do:2", 20) == ["complete_workflow"]
    assert run.result() == [10, 20, 30]


@workflow
async def race(ctx: WorkflowContext) -> str:
    try:
        async with asyncio.timeout(5):
            return str(await do(1))
    except TimeoutError:
        return "late"


def test_a_timeout_is_a_durable_timer_that_is_forgotten_when_the_activity_is_first() -> None:
    run = Driver(race)
    assert run.start() == ["start_timer 1", "schedule_activity do:1"]
    assert run.commands[0].start_timer.duration.ToTimedelta() == timedelta(seconds=5)
    assert run.complete("do:1", 1) == ["cancel_timer 1", "complete_workflow"]


def test_a_timeout_asks_the_activity_to_stop_and_does_not_wait_for_its_answer() -> None:
    run = Driver(race)
    run.start()
    assert run.fire("1", 5_000) == ["cancel_activity do:1", "complete_workflow"]
    assert run.result() == "late"


@workflow
async def late_answer(ctx: WorkflowContext) -> int:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(do(1), 5)
    return await do(2)


def test_the_answer_of_an_activity_that_was_given_up_is_dropped() -> None:
    run = Driver(late_answer)
    run.start()
    assert run.fire("1", 5_000) == ["cancel_activity do:1", "schedule_activity do:2"]
    assert run.complete("do:1", 1) == []
    assert run.complete("do:2", 2) == ["complete_workflow"]
    assert run.result() == 2


@workflow
async def naps(ctx: WorkflowContext) -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0.25)
    await ctx.sleep(timedelta(seconds=0))
    await ctx.sleep_until(ctx.now() - timedelta(days=1))
    await ctx.sleep_until(datetime(2023, 11, 14, 22, 13, 30, tzinfo=UTC))


def test_sleeping_is_a_durable_timer_also_when_the_time_has_passed() -> None:
    run = Driver(naps)
    assert run.start() == ["start_timer 1"]
    assert run.commands[0].start_timer.duration.nanos == 250_000_000
    assert run.fire("1", 250) == ["start_timer 2"]
    assert run.fire("2") == ["start_timer 3"]
    assert run.commands[0].start_timer.duration.ToTimedelta() == timedelta(days=-1)
    assert run.fire("3", 750) == ["start_timer 4"]
    assert run.commands[0].start_timer.duration.ToTimedelta() == timedelta(seconds=9)
    assert run.fire("4", 9_000) == ["complete_workflow"]


def test_sleeping_until_a_time_without_zone_says_what_to_use() -> None:
    @workflow
    async def naive(ctx: WorkflowContext) -> None:
        await ctx.sleep_until(datetime(2030, 1, 1))  # noqa: DTZ001 - that is the mistake

    run = Driver(naive)
    run.start()
    assert "has no time zone; use ctx.now()" in run.failure().message


# Time and chance.


@workflow
async def clock(ctx: WorkflowContext) -> None:
    while True:
        seen.append((ctx.now(), asyncio.get_running_loop().time()))
        await ctx.sleep(1)


def test_now_is_the_time_of_the_last_input_and_never_goes_back() -> None:
    run = Driver(clock)
    run.start()
    run.fire("1", 1_500)
    event = HistoryEvent(event_id=9, time=timestamp(EPOCH_MS))
    event.timer_fired.timer_id = "2"
    seen.clear()
    run.instance.activate([event])
    start = datetime.fromtimestamp(EPOCH_MS / 1000, UTC)
    assert seen == [(start + timedelta(milliseconds=1_500), 1.5)]


@workflow
async def draws(ctx: WorkflowContext) -> list[str]:
    numbers = [ctx.random().random() for _ in range(3)]
    await ctx.sleep(1)
    return [*map(str, numbers), str(ctx.random().randrange(10**9)), str(ctx.uuid4())]


def test_random_numbers_and_ids_are_the_same_on_replay_and_others_in_another_run() -> None:
    results = []
    for run_id in ("a", "a", "b"):
        run = Driver(draws, run_id=run_id)
        run.start()
        run.fire("1")
        results.append(run.result())
    assert results[0] == results[1]
    assert not set(results[0]) & set(results[2])


def test_drawing_random_numbers_does_not_shift_ids() -> None:
    ids = []
    for count in (0, 5):

        @workflow
        async def draw(ctx: WorkflowContext, count: int) -> str:
            for _ in range(count):
                ctx.random().random()
            return str(ctx.uuid4())

        run = Driver(draw, count)
        run.start()
        ids.append(run.result())
    assert ids[0] == ids[1]


# Errors.


@activity(raises=[KeyError])
async def lookup(key: str) -> int:
    return 0


@workflow
async def catches(ctx: WorkflowContext) -> str:
    try:
        await lookup("x")
    except (ActivityError, KeyError) as error:
        return f"{type(error).__name__} {error.args} {type(error.__cause__).__name__}"
    return "nothing"


@pytest.mark.parametrize(
    ("kind", "source", "expected"),
    [
        ("Anything", 0, "ActivityError ('why',) RemoteError"),
        ("StartToCloseTimeout", FAILURE_SOURCE_TIMEOUT, "ActivityTimeout ('why',) RemoteError"),
        ("ActivityLost", FAILURE_SOURCE_LOST, "ActivityLost ('why',) RemoteError"),
        ("KeyError", 0, "KeyError ('why',) RemoteError"),
    ],
)
def test_a_failed_activity_raises_by_what_failed(kind: str, source: Any, expected: str) -> None:
    run = Driver(catches)
    run.start()
    run.fail("lookup:1", kind, "why", source, cause=Failure(type="Root", message="root"))
    assert run.result() == expected
    assert issubclass(ActivityTimeout, ActivityError)
    assert issubclass(ActivityLost, ActivityError)


def test_an_error_that_leaves_the_workflow_fails_it_with_the_activity_s_own_type_and_text() -> None:
    run = Driver(one_after_the_other, 1)
    run.start()
    assert run.fail("do:1", "TerminalError", "shipping service unavailable") == ["fail_workflow"]
    assert (run.failure().type, run.failure().message) == ("TerminalError", "shipping service unavailable")


def test_an_argument_of_the_workflow_that_does_not_fit_fails_it_and_is_named() -> None:
    run = Driver(one_after_the_other, 1)
    run.service.events[0].workflow_started.spec.arguments[0].json = '"three"'
    run.start()
    assert "argument 'n' of one_after_the_other cannot be decoded: it does not fit int" in run.failure().message


def test_a_result_that_cannot_be_encoded_fails_the_workflow_and_is_named() -> None:
    @workflow
    async def odd(ctx: WorkflowContext) -> Any:
        return object()

    run = Driver(odd)
    run.start()
    assert "the result of odd cannot be encoded: a value of type object" in run.failure().message
    assert run.failure().non_retryable


def test_an_argument_of_an_activity_that_cannot_be_encoded_is_named_where_it_is_called() -> None:
    @workflow
    async def odd(ctx: WorkflowContext) -> str:
        return await say(object())  # type: ignore[arg-type]

    run = Driver(odd)
    run.start()
    assert "argument 'text' of say cannot be encoded" in run.failure().message


@workflow
async def group(ctx: WorkflowContext) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(do(1))
        tasks.create_task(do(2))


def test_a_failed_task_group_stops_the_others_and_its_failure_is_that_error() -> None:
    run = Driver(group)
    run.start()
    assert run.fail("do:1", "Declined", "no money") == ["cancel_activity do:2", "fail_workflow"]
    assert (run.failure().type, run.failure().message) == ("Declined", "no money")


# Cancellation.


def test_a_requested_cancellation_reaches_the_code_and_its_activity() -> None:
    run = Driver(one_after_the_other, 1)
    run.start()
    assert run.cancel() == ["cancel_activity do:1", "cancel_workflow"]


@workflow
async def cleans_up(ctx: WorkflowContext, swallow: bool) -> str:
    try:
        await do(1)
    except asyncio.CancelledError:
        await say("cleaning")
        if not swallow:
            raise
    return "went on"


@pytest.mark.parametrize(("swallow", "end"), [(False, "cancel_workflow"), (True, "complete_workflow")])
def test_clean_up_runs_when_cancelled_and_code_that_swallows_it_goes_on(swallow: bool, end: str) -> None:
    run = Driver(cleans_up, swallow)
    run.start()
    assert run.cancel() == ["cancel_activity do:1", "schedule_activity say:1"]
    assert run.complete("say:1", "done") == [end]


def test_a_cancelled_error_that_nobody_asked_for_fails_the_workflow() -> None:
    @workflow
    async def gives_up(ctx: WorkflowContext) -> None:
        raise asyncio.CancelledError

    run = Driver(gives_up)
    assert run.start() == ["fail_workflow"]
    assert run.failure().type == "CancelledError"


@workflow
async def waits_for_the_end(ctx: WorkflowContext) -> None:
    task = asyncio.create_task(do(1))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        try:
            await task
        except ActivityCancelled as error:
            seen.append(str(error))
            raise


def test_an_activity_that_was_shielded_answers_and_its_cancellation_cancels_the_workflow() -> None:
    run = Driver(waits_for_the_end)
    run.start()
    assert run.cancel() == []
    assert run.cancelled("do:1") == ["cancel_workflow"]
    assert seen[0] == "do:1 stopped because it was asked to"


# Compensation.


@workflow
async def undoes(ctx: WorkflowContext) -> str:
    ctx.compensate_with(undo, 7)
    try:
        await ctx.compensate()
    except CompensationError as error:
        return f"{error.type}: {error}"
    return "undone"


@pytest.mark.parametrize(
    ("failure", "result"), [(None, "undone"), (Failure(type="Stuck", message="no way"), "Stuck: no way")]
)
def test_compensations_can_be_registered_and_run_by_the_code(failure: Failure | None, result: str) -> None:
    run = Driver(undoes)
    assert run.start() == ["register_compensation", "compensate 1"]
    registered = run.commands[0].register_compensation.compensation
    assert (registered.activity_type, registered.arguments[0].payload.json) == ("undo", "7")
    assert run.finish_compensate("1", failure) == ["complete_workflow"]
    assert run.result() == result


# The end.


@workflow
async def leaves_things_open(ctx: WorkflowContext) -> str:
    async def background() -> None:
        seen.append("background")
        await do(1)
        seen.append("never")

    task = asyncio.create_task(background())
    await asyncio.sleep(0)
    task.add_done_callback(seen.append)
    return "done"


def test_nothing_runs_after_the_workflow_function_returned() -> None:
    run = Driver(leaves_things_open)
    assert run.start() == ["schedule_activity do:1", "complete_workflow"]
    live = seen.copy()
    run.instance.activate([])
    run.instance.close()
    assert seen == live
    assert "never" not in seen


@workflow
async def reads_halves(ctx: WorkflowContext) -> None:
    async def numbers(name: str) -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            seen.append(name)
            await do(1)

    for name in ("a", "b"):
        async for _ in numbers(name):
            break
    seen.append("returns")


def test_async_generators_that_were_left_are_closed_in_order_of_creation_before_the_run_ends() -> None:
    run = Driver(reads_halves)
    assert run.start() == ["schedule_activity do:1"]
    assert run.complete("do:1", 1) == ["schedule_activity do:2"]
    assert run.complete("do:2", 1) == ["complete_workflow"]
    assert seen[:2] == ["returns", "a"]


@pytest.mark.parametrize(
    "ending",
    [
        {"workflow_terminated": WorkflowTerminated(reason="enough")},
        {"rollback_started": RollbackStarted(closing_status=WORKFLOW_STATUS_TIMED_OUT)},
    ],
)
def test_a_run_that_the_service_ended_replays_as_closed_and_its_code_sees_nothing_more(ending: dict[str, Any]) -> None:
    run = Driver(one_after_the_other, 1)
    run.start()
    run.service._input(**ending)
    again = run.new_instance()
    late = HistoryEvent(event_id=9, time=timestamp(EPOCH_MS))
    late.activity_completed.activity_id = "do:1"
    activation = again.activate([*run.service.events, late])
    assert (activation.commands, activation.closed) == ([], True)


@workflow
async def holds_on(ctx: WorkflowContext) -> None:
    @contextlib.contextmanager
    def span() -> Iterator[None]:
        try:
            yield
        finally:
            seen.append("span")

    async def child() -> None:
        try:
            await do(1)
        finally:
            seen.append("child")

    generator = (n for n in range(3))
    next(generator)
    try:
        with span():
            await asyncio.gather(child(), child())
    finally:
        seen.append("main")


def test_putting_a_run_out_of_memory_runs_no_finally() -> None:
    run = Driver(holds_on)
    run.start()
    seen.clear()
    run.instance.close()
    del run
    assert seen == []


@workflow
async def logs(ctx: WorkflowContext) -> None:
    for _ in range(3):
        seen.append(ctx.is_replaying)
        await ctx.sleep(1)


def test_code_can_tell_what_it_does_again() -> None:
    run = Driver(logs)
    run.start()
    run.fire("1")
    seen.clear()
    run.service._input(timer_fired={"timer_id": "2"})
    fresh = run.new_instance()
    fresh.activate(run.history())
    assert seen == [True, True, False]


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def test_workflow_code_does_not_see_the_context_of_the_worker() -> None:
    @workflow
    async def reads(ctx: WorkflowContext) -> str:
        return variable.get()

    token = variable.set("the worker's")
    run = Driver(reads)
    run.start()
    variable.reset(token)
    assert run.result() == "unset"


def test_a_run_tells_what_it_is() -> None:
    @workflow(name="named")
    async def told(ctx: WorkflowContext) -> list[str]:
        return [ctx.info.workflow_id, ctx.info.run_id, ctx.info.workflow_type, ctx.info.task_queue]

    run = Driver(told)
    run.start()
    assert run.result() == ["w", "run-1", "named", "q"]


def test_a_workflow_can_be_called_inline_by_another() -> None:
    @workflow
    async def outer(ctx: WorkflowContext) -> str:
        return await one_after_the_other(ctx, 5)

    run = Driver(outer)
    assert run.start() == ["schedule_activity do:1"]


async def test_activities_and_workflows_say_where_they_can_be_called() -> None:
    with pytest.raises(OutsideWorkflow, match=r"activity do can be called only inside of a workflow; call do\.fn"):
        await do(1)
    with pytest.raises(OutsideWorkflow, match="start it by a client"):
        await race(None)  # type: ignore[arg-type]


def test_a_run_that_is_not_held_says_that_it_needs_its_history() -> None:
    run = Driver(one_after_the_other, 1)
    run.start()
    with pytest.raises(WorkflowTaskError, match="send its history from event 1 on"):
        run.new_instance().activate(run.service.events[1:])


def test_what_is_no_workflow_is_refused_when_it_is_decorated() -> None:
    with pytest.raises(DefinitionError, match="must be an async function"):
        workflow(lambda ctx: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(DefinitionError, match="WorkflowContext as its first parameter"):

        @workflow  # type: ignore[arg-type]
        async def bare() -> None: ...


def test_an_error_in_a_task_that_nobody_awaits_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    @workflow
    async def careless(ctx: WorkflowContext) -> None:
        async def fail() -> None:
            raise ValueError("oh")

        asyncio.get_running_loop().call_soon(seen.append)  # type: ignore[arg-type]
        await asyncio.create_task(fail())

    with caplog.at_level(logging.ERROR, "romancy.workflow"):
        Driver(careless).start()
    assert "takes exactly one argument" in caplog.text


def test_thousands_of_runs_share_no_hashes() -> None:
    hashes = set()

    @workflow
    async def hashed(ctx: WorkflowContext) -> None:
        hashes.add(hash(asyncio.current_task()))

    for number in range(300):
        Driver(hashed, run_id=f"{random.Random(number).random()}").start()
    assert len(hashes) == 300


def test_a_run_that_its_worker_lets_go_of_is_freed_at_once() -> None:
    run = Driver(holds_on)
    run.start()
    loop = weakref.ref(run.instance._loop)
    seen.clear()
    del run
    gc.collect()
    assert loop() is None
    assert seen == []


def test_a_workflow_that_fails_by_its_own_code_is_logged_with_its_traceback_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @workflow
    async def broken(ctx: WorkflowContext) -> None:
        await say("x")
        raise KeyError("nothing of the kind")

    run = Driver(broken)
    run.start()
    run.complete("say:1", "x")  # the driver replays it as well
    (record,) = caplog.records
    assert record.getMessage() == "workflow 'w' fails by an error of its code"
    assert record.exc_info is not None
    caplog.clear()
    failing = Driver(one_after_the_other, 1)
    failing.start()
    failing.fail("do:1", "Declined", "no money")
    assert not caplog.records


# Calls that are never awaited.


@workflow
async def forgets(ctx: WorkflowContext, how: str) -> None:
    match how:
        case "at once":
            do(1)  # type: ignore[unused-coroutine]
        case "by and by":
            call = do(1)
            await ctx.sleep(1)
            del call
        case "at the end":
            _never_used = do(1)
            return
        case "in a list":
            [do(n) for n in range(3)]
        case "before it failed":
            _gathered = asyncio.gather(do(1), do("x", "y"))  # type: ignore[call-arg, arg-type]
        case "later":
            call = do(1)
            await say("first")
            await call
        case "in a task that is cancelled before it begins":
            asyncio.create_task(do(1)).cancel()
    await say("last")


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
@pytest.mark.parametrize("how", ["at once", "by and by", "at the end", "in a list"])
def test_a_call_that_is_thrown_away_fails_the_task_before_anything_else_is_recorded(how: str) -> None:
    run = Driver(forgets, how)
    step = run.start
    if how == "by and by":
        assert run.start() == ["start_timer 1"]
        step = partial(run.fire, "1")
    with pytest.raises(WorkflowTaskError, match=r"do was called at test_workflow.py:\d+.*write `await do\(") as error:
        step()
    lines = Path(__file__).read_text().splitlines()
    assert "do(" in lines[int(str(error.value).split(":")[1].split(",")[0]) - 1]
    run.instance.close()


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
def test_a_call_that_was_not_awaited_because_the_workflow_failed_does_not_hide_why() -> None:
    with pytest.raises(TypeError, match="too many positional arguments"):
        Driver(forgets, "before it failed").start()


def test_a_call_may_be_awaited_later_or_belong_to_a_task_that_never_began() -> None:
    run = Driver(forgets, "later")
    assert run.start() == ["schedule_activity say:1"]
    assert run.complete("say:1", "x") == ["schedule_activity do:1"]
    assert Driver(forgets, "in a task that is cancelled before it begins").start() == ["schedule_activity say:1"]


@workflow
async def closes_itself(ctx: WorkflowContext) -> None:
    raise GeneratorExit("enough")


def test_an_error_that_python_uses_to_close_generators_fails_a_workflow_as_any_other_does() -> None:
    run = Driver(closes_itself)
    assert run.start() == ["fail_workflow"]
    assert run.commands[0].fail_workflow.failure.type == "GeneratorExit"
