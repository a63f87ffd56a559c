"""What workflow code is told and asked, and what it asks of others; each step of it replayed from what is recorded."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any

import pytest

from romancy.v1.failure_pb2 import FAILURE_SOURCE_SERVICE, Failure
from romancy.v1.history_pb2 import ChildStartFailed
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_COMPLETED, WORKFLOW_STATUS_FAILED, WorkflowOutcome

from romancy import (
    Attribute,
    ChildError,
    ChildNotStarted,
    DefinitionError,
    SendError,
    StepError,
    WorkflowContext,
    activity,
    workflow,
)
from romancy._instance import WorkflowInstance
from romancy.errors import NonDeterminism
from romancy.workflow import WorkflowDefinition, definition_of
from tests.worker_sdk.driver import Driver

GROWN = WorkflowOutcome(status=WORKFLOW_STATUS_COMPLETED, result=Payload(json="7"))
BAD = WorkflowOutcome(status=WORKFLOW_STATUS_FAILED, failure=Failure(type="TooSmall", message="too small"))


class TooSmall(Exception):
    pass


@activity
async def charge(amount: int) -> str:
    return f"charged {amount}"


def ask(run: Driver, name: str, *args: str) -> Any:
    payload = run.instance.query(name, [Payload(json=arg) for arg in args])
    assert payload == replayed(run).query(name, [Payload(json=arg) for arg in args]), "a replay answers the same"
    return payload.json


def replayed(run: Driver) -> WorkflowInstance:
    again = run.new_instance()
    again.activate(run.history())
    return again


def recorded_failure(run: Driver) -> Failure:
    (command,) = [
        each for each in run.commands if each.WhichOneof("attributes") in ("reject_update", "complete_update")
    ]
    return getattr(command, str(command.WhichOneof("attributes"))).failure  # type: ignore[no-any-return]


# Signals --------------------------------------------------------------------------------------------------------------


@workflow
async def listener(ctx: WorkflowContext, wanted: int) -> list[Any]:
    heard: list[Any] = []

    @ctx.signal
    async def slow(number: int) -> None:
        await ctx.sleep(1)
        heard.append(f"slow {number}")

    await ctx.sleep(1)

    @ctx.signal
    def say(number: int) -> None:
        if number < 0:
            raise TooSmall("below zero")
        heard.append(number)

    await ctx.wait_condition(lambda: len(heard) >= wanted)
    return heard


def test_signals_wait_for_their_handler_and_come_in_order() -> None:
    run = Driver(listener, 3)
    run.start()
    for number in (1, 2):
        assert run.signal("say", number) == []
    run.fire("1")
    run.signal("say", 3)
    assert run.result() == [1, 2, 3]


def test_an_async_handler_runs_beside_the_workflow() -> None:
    run = Driver(listener, 2)
    run.start()
    assert run.signal("slow", 1) == ["start_timer 2"]
    run.fire("1")
    run.signal("say", 5)
    run.fire("2")
    assert run.result() == [5, "slow 1"]


def test_a_signal_whose_arguments_do_not_fit_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    run = Driver(listener, 1)
    run.start()
    run.fire("1")
    assert run.signal("say", "no number") == []
    assert "dropped" in caplog.text
    run.signal("say", 4)
    assert run.result() == [4]


def test_a_signal_handler_that_raises_fails_the_run() -> None:
    run = Driver(listener, 1)
    run.start()
    run.fire("1")
    run.signal("say", -1)
    assert (run.failure().type, run.failure().message) == ("TooSmall", "below zero")


def test_two_handlers_of_one_name_are_a_mistake() -> None:
    @workflow
    async def twice(ctx: WorkflowContext) -> None:
        ctx.signal(lambda: None, name="go")
        ctx.signal(lambda: None, name="go")

    run = Driver(twice)
    run.start()
    assert run.failure().type == DefinitionError.__name__


# Updates and queries --------------------------------------------------------------------------------------------------


@workflow
class Account:
    def __init__(self) -> None:
        self.balance = 10
        self.closed = asyncio.Event()

    @workflow.run
    async def run(self, ctx: WorkflowContext) -> int:
        self.ctx = ctx
        await self.closed.wait()
        return self.balance

    @workflow.update
    async def draw(self, amount: int) -> int:
        if amount > self.balance:
            raise TooSmall(f"only {self.balance}")
        self.balance -= amount
        await charge(amount)
        return self.balance

    @draw.validator
    def check(self, amount: int) -> None:
        if amount <= 0:
            raise ValueError("draw something")

    @workflow.update
    def sneaky(self) -> None: ...

    @sneaky.validator
    def sneak(self) -> None:
        self.ctx.patched("sneaked")

    @workflow.signal
    def close(self) -> None:
        self.closed.set()

    @workflow.query
    def state(self, currency: str = "EUR") -> str:
        return f"{self.balance} {currency} {self.ctx.random().random()}"

    @workflow.query
    def asks(self) -> bool:
        return self.ctx.patched("new")

    @workflow.query
    def wakes(self) -> None:
        self.closed.set()


def account() -> Driver:
    run = Driver(definition_of(Account))
    run.start()
    return run


def test_an_update_is_accepted_carried_out_and_answered() -> None:
    run = account()
    assert run.update("u1", "draw", 4) == ["accept_update u1", "schedule_activity charge:1"]
    assert run.complete("charge:1", "charged") == ["complete_update u1"]
    assert run.commands[0].complete_update.result.json == "6"
    run.signal("close")
    assert run.result() == 6


@pytest.mark.parametrize(
    ("name", "args", "kind", "text"),
    [
        ("draw", [0], "ValueError", "draw something"),
        ("draw", ["much"], "ConversionError", "amount"),
        ("pay", [], "UnknownHandler", "no update 'pay'; it has draw, sneaky"),
        ("sneaky", [], "NonDeterminism", "a validator asked for MarkPatch"),
    ],
)
def test_an_update_that_is_not_valid_is_refused_and_changes_nothing(
    name: str, args: list[Any], kind: str, text: str
) -> None:
    run = account()
    assert run.update("u1", name, *args) == ["reject_update u1"]
    failure = recorded_failure(run)
    assert (failure.type, text in failure.message) == (kind, True), failure
    assert ask(run, "state").startswith('"10 EUR')


def test_what_an_update_raises_is_its_answer_and_the_run_goes_on() -> None:
    run = account()
    assert run.update("u1", "draw", 40) == ["accept_update u1", "complete_update u1"]
    answered = run.commands[1].complete_update.failure
    assert (answered.type, answered.message) == ("TooSmall", "only 10")
    run.signal("close")
    assert run.result() == 10


def test_queries_read_and_leave_no_trace() -> None:
    run = account()
    assert ask(run, "state") == ask(run, "state")
    assert ask(run, "state", '"CHF"').startswith('"10 CHF')
    run.signal("close")
    assert ask(run, "state").startswith('"10'), "a closed run answers too"


@pytest.mark.parametrize("name", ["asks", "wakes"])
def test_a_query_that_does_more_than_read_is_an_error_and_changes_nothing(name: str) -> None:
    run = account()
    with pytest.raises(NonDeterminism, match=r"a query .*may only read"):
        run.instance.query(name, [])
    assert run.update("u1", "draw", 1) == ["accept_update u1", "schedule_activity charge:1"]


# Conditions -----------------------------------------------------------------------------------------------------------


def test_what_two_wait_for_only_one_gets() -> None:
    @workflow
    async def takers(ctx: WorkflowContext) -> list[str]:
        items: list[str] = []
        ctx.signal(items.append, name="put")

        async def take(who: str) -> str:
            await ctx.wait_condition(lambda: bool(items))
            return f"{who} {items.pop()}"

        return list(await asyncio.gather(take("a"), take("b")))

    run = Driver(takers)
    run.start()
    run.signal("put", "1")
    run.signal("put", "2")
    assert sorted(each[-1] for each in run.result()) == ["1", "2"]


def test_a_condition_that_is_not_met_in_time_raises_and_one_that_raises_says_so() -> None:
    @workflow
    async def waits(ctx: WorkflowContext) -> str:
        try:
            await ctx.wait_condition(lambda: False, timeout=5)
        except TimeoutError:
            pass
        try:
            await ctx.wait_condition(lambda: bool(1 // 0))
        except ZeroDivisionError:
            return "noticed"
        return "not noticed"

    run = Driver(waits)
    run.start()
    run.fire("1", 5_000)
    assert run.result() == "noticed"


# Steps and patches ----------------------------------------------------------------------------------------------------


def test_a_step_is_called_once_and_what_it_raised_comes_back_as_itself_on_replay() -> None:
    calls: list[str] = []
    caught: list[str] = []

    def read(name: str) -> str:
        calls.append(name)
        if name == "declared":
            raise TooSmall("no")
        if name == "other":
            raise KeyError("no")
        return name.upper()

    async def slowly(name: str) -> str:
        await asyncio.sleep(0)
        return read(name)

    @workflow
    async def reads(ctx: WorkflowContext) -> list[str]:
        found = [await ctx.step(read, "a"), await ctx.step(slowly, "b")]
        for name in ("declared", "other"):
            try:
                await ctx.step(read, name, raises=[TooSmall])
            except (TooSmall, StepError) as error:
                caught.append(type(error).__name__)
        await ctx.sleep(1)
        return found

    run = Driver(reads)
    assert run.start() == [
        "record_step read:1", "record_step slowly:1", "record_step read:2", "record_step read:3", "start_timer 1"
    ]  # fmt: skip
    run.fire("1")
    assert run.result() == ["A", "B"]
    assert calls == ["a", "b", "declared", "other"], "replays call nothing"
    assert caught == ["TooSmall", "StepError"] * 3, "live, and in two replays"


def order(patched: bool, *, there: bool = True) -> WorkflowDefinition[..., Any]:
    """The code before a change, after it, and when the patch is not needed any more."""

    @workflow(name="order")
    async def code(ctx: WorkflowContext) -> str:
        way = "old"
        if patched and (ctx.patched("change") if there else True):
            way = "new"
            await charge(1)
        await ctx.sleep(1)
        return way

    return code


def test_runs_from_before_a_change_keep_the_old_branch_and_new_ones_take_the_new() -> None:
    old = Driver(order(patched=False))
    assert old.start() == ["start_timer 1"]
    old.definition = order(patched=True)
    old.instance = replayed(old)
    old.fire("1")
    assert old.result() == "old"
    new = Driver(order(patched=True))
    assert new.start() == ["mark_patch change", "schedule_activity charge:1"]
    new.complete("charge:1", "done")
    new.fire("1")
    assert new.result() == "new"


def test_a_patch_that_is_not_asked_for_any_more_is_passed_over() -> None:
    run = Driver(order(patched=True))
    run.start()
    run.definition = order(patched=True, there=False)
    run.instance = replayed(run)
    assert run.complete("charge:1", "done") == ["start_timer 1"]
    run.fire("1")
    assert run.result() == "new"


# Children and messages ------------------------------------------------------------------------------------------------


@workflow
async def kid(ctx: WorkflowContext, number: int) -> int:
    return number


@workflow
async def parent(ctx: WorkflowContext) -> str:
    try:
        return f"grown {await ctx.run_child(kid, 1)}"
    except (ChildError, ChildNotStarted) as error:
        await ctx.sleep(1)
        return f"{type(error).__name__} {error.type}"


def test_a_child_is_started_and_awaited() -> None:
    run = Driver(parent)
    assert run.start() == ["start_child kid:1"]
    assert run.commands[0].start_child.spec.task_queue == "q"
    assert run.child_started("kid:1") == []
    run.child_closed("kid:1", GROWN)
    assert run.result() == "grown 7"


STAGE = Attribute("stage", str)


@workflow
async def guardian(ctx: WorkflowContext) -> int:
    return await ctx.run_child(
        kid, 1, memo={"who": "Ann"}, attributes={STAGE: "new"}, start_delay=5, execution_timeout=60, run_timeout=30
    )


def test_a_child_is_started_with_all_that_a_client_can_start_a_workflow_with() -> None:
    run = Driver(guardian)
    run.start()
    spec = run.commands[0].start_child.spec
    assert {name: value.json for name, value in spec.memo.items()} == {"who": '"Ann"'}
    assert {name: value.text for name, value in spec.attributes.items()} == {"stage": "new"}
    assert (spec.start_delay.seconds, spec.execution_timeout.seconds, spec.run_timeout.seconds) == (5, 60, 30)


@workflow
async def patient(ctx: WorkflowContext) -> None:
    bids = ctx.subscribe_event("bid")
    for wait in (
        ctx.wait_event("x" * 250, timeout=60),
        ctx.wait_condition(lambda: False, timeout=60),
        bids.receive(timeout=60),
    ):
        with contextlib.suppress(TimeoutError):
            await wait
    never = ctx.wait_condition(lambda: False)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(never, 60)
    waits = [asyncio.ensure_future(ctx.wait_condition(lambda: False))]
    await asyncio.wait(waits, timeout=60)
    with contextlib.suppress(TimeoutError):
        for each in asyncio.as_completed(waits, timeout=60):
            await each
    async with asyncio.timeout(60):
        await ctx.sleep(5)


def test_a_timer_says_what_it_is_the_timeout_of() -> None:
    run = Driver(patient)
    run.start()
    told = []
    for number in range(1, 8):
        told += [each.start_timer.timeout_of for each in run.commands if each.HasField("start_timer")]
        run.fire(str(number))
    assert told == [
        f"wait_event {'x' * 244}", "wait_condition", "receive of event bid",
        "asyncio.wait or wait_for" if sys.version_info < (3, 12) else "an asyncio.timeout block",
        "asyncio.wait or wait_for", "asyncio.as_completed", "an asyncio.timeout block", "",
    ]  # fmt: skip


def test_a_childs_failure_is_caught_as_the_same_type_on_replay() -> None:
    run = Driver(parent)
    run.start()
    run.child_started("kid:1")
    assert run.child_closed("kid:1", BAD) == ["start_timer 1"]
    run.instance = replayed(run)
    run.fire("1")
    assert run.result() == "ChildError TooSmall"


def test_a_child_that_could_not_be_started_says_why() -> None:
    run = Driver(parent)
    run.start()
    taken = Failure(type="WORKFLOW_ALREADY_OPEN", message="taken", source=FAILURE_SOURCE_SERVICE)
    run.step(child_start_failed=ChildStartFailed(child_id="kid:1", failure=taken))
    run.fire("1")
    assert run.result() == "ChildNotStarted WORKFLOW_ALREADY_OPEN"


@pytest.mark.parametrize("opened", [False, True])
def test_whoever_stops_waiting_for_a_child_asks_it_to_stop(opened: bool) -> None:
    run = Driver(parent)
    run.start()
    if opened:
        run.child_started("kid:1")
    assert run.cancel() == ["cancel_child kid:1", "cancel_workflow"]


def test_messages_are_sent_once_and_a_failure_is_raised_each_time() -> None:
    @workflow
    async def teller(ctx: WorkflowContext) -> list[str]:
        heard = []
        for name in ("a", "b"):
            try:
                await ctx.workflow("other").signal("say", name)
            except SendError as error:
                heard.append(error.type)
        await ctx.workflow("other").cancel("enough")
        await ctx.sleep(1)
        return heard

    run = Driver(teller)
    assert run.start() == ["send 1"]
    refused = Failure(type="WORKFLOW_CLOSED", message="closed", source=FAILURE_SOURCE_SERVICE)
    assert run.sent("1", refused) == ["send 2"]
    assert run.sent("2") == ["send 3"]
    assert run.commands[0].send.cancel.reason == "enough"
    run.sent("3")
    run.fire("1")
    assert run.result() == ["WORKFLOW_CLOSED"]


# Recurring ------------------------------------------------------------------------------------------------------------


@workflow
async def recurring(ctx: WorkflowContext, total: int) -> int:
    numbers: list[int] = []
    ctx.signal(numbers.append, name="add")
    async with asyncio.TaskGroup():  # which wraps what leaves it
        await ctx.wait_condition(lambda: bool(numbers))
        return await ctx.recur(total + sum(numbers))


def test_recurring_takes_along_what_no_handler_took_and_says_what_it_read() -> None:
    run = Driver(recurring, 1)
    run.start()
    run.signal("unknown", 9)
    run.arrive_signal("add", 2)
    run.arrive_signal("add", 40)
    assert run.step() == ["continue_workflow"]
    command = run.commands[0].continue_workflow
    assert [payload.json for payload in command.spec.arguments] == ["3"]
    assert [signal.name for signal in command.unread_signals] == ["unknown"]
    assert run.instance.last_event_id == 3, "the second one was not taken: it goes to the next run"
