"""A mistake in a workflow's code undoes nothing: the run waits for code that is put right, and says so."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.history_pb2 import EventReceived, SubscriptionAnswered
from romancy.v1.wait_pb2 import WAIT_KIND_CODE_FAILS, WAIT_STATE_BLOCKED, Wait
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_RUNNING

from romancy import (
    InvalidCall,
    UpdateAborted,
    Worker,
    WorkflowContext,
    WorkflowHandle,
    WorkflowTaskError,
    activity,
    compensation,
    testing,
    workflow,
)
from romancy.errors import BUGS
from romancy.workflow import WorkflowDefinition, definition_of
from tests.worker_sdk.driver import Driver


class OutOfStock(AttributeError):
    """An outcome of the business, whatever it derives from."""


@activity(raises=[TypeError])
async def price(item: str) -> int:
    raise TypeError(f"no price of {item}")


def read_price() -> int:
    raise TypeError("no price list")


async def mistake_in(how: str, ctx: WorkflowContext) -> None:
    match how:
        case "a name":
            undefined_name  # type: ignore[name-defined]  # noqa: B018, F821
        case "a local name":
            late = late + 1  # type: ignore[has-type]  # noqa: F821, F841
        case "an attribute":
            ctx.infoo  # type: ignore[attr-defined]  # noqa: B018
        case "a frozen value":
            ctx.info.workflow_id = "x"  # type: ignore[misc]
        case "a type":
            "1" + 1  # type: ignore[operator]  # noqa: B018
        case "an import":
            from romancy import there_is_no_such  # noqa: F401
        case "a module":
            import there_is_no_such_module  # type: ignore[import-not-found]  # noqa: F401
        case "syntax":
            raise IndentationError("of a module that is imported late")
        case "a call of the SDK":
            await ctx.sleep(math.inf)
        case "a group":
            async with asyncio.TaskGroup() as group:
                group.create_task(mistake_in("a name", ctx))
                group.create_task(mistake_in("a value", ctx))
        case "a value":
            raise ValueError("no mistake")


@workflow
async def mistaken(ctx: WorkflowContext, how: str) -> None:
    await mistake_in(how, ctx)


MISTAKES = {
    "a name": NameError,
    "a local name": UnboundLocalError,
    "an attribute": AttributeError,
    "a frozen value": AttributeError,
    "a type": TypeError,
    "an import": ImportError,
    "a module": ModuleNotFoundError,
    "syntax": IndentationError,
    "a call of the SDK": InvalidCall,
    "a group": NameError,
}


@pytest.mark.parametrize("how", MISTAKES)
def test_a_mistake_fails_the_task_and_not_the_run(how: str) -> None:
    run = Driver(mistaken, how)
    with pytest.raises(MISTAKES[how]) as raised:
        run.start()
    assert type(raised.value) in BUGS
    assert not run.instance.machine.closed


def test_any_other_error_fails_the_run() -> None:
    run = Driver(mistaken, "a value")
    assert run.start() == ["fail_workflow"]


@workflow
async def outcomes(ctx: WorkflowContext, how: str) -> None:
    match how:
        case "of an activity":
            await price("tea")
        case "of an activity, caught and raised again":
            try:
                await price("tea")
            except TypeError as error:
                raise error from ValueError("on the way")
        case "of a step":
            await ctx.step(read_price, raises=[TypeError])
        case "of a class of the user's":
            raise OutOfStock("tea")
        case "that the code makes of a mistake":
            raise ValueError("tea") from NameError("tea")


@pytest.mark.parametrize(
    ("how", "failed_as"),
    [
        ("of an activity", "TypeError"),
        ("of an activity, caught and raised again", "TypeError"),
        ("of a step", "TypeError"),
        ("of a class of the user's", "OutOfStock"),
        ("that the code makes of a mistake", "ValueError"),
    ],
)
def test_what_was_raised_elsewhere_or_on_purpose_is_an_outcome(how: str, failed_as: str) -> None:
    run = Driver(outcomes, how)
    if run.start() == ["schedule_activity price:1"]:
        run.fail("price:1", "TypeError", "no price of tea")
    assert run.failure().type == failed_as


@workflow
class Told:
    def __init__(self) -> None:
        self.said: list[str] = []

    @workflow.run
    async def run(self, ctx: WorkflowContext) -> list[str]:
        self.ctx = ctx
        self.waiter = asyncio.create_task(ctx.wait_condition(self.is_met))
        await ctx.wait_condition(lambda: "end" in self.said)
        return self.said

    def is_met(self) -> bool:
        return "condition" in self.said and self.there_is_no_such  # type: ignore[attr-defined]

    @workflow.signal
    def say(self, word: str) -> None:
        self.said.append(word)

    @workflow.signal
    async def mistake(self) -> None:
        self.there_is_no_such()  # type: ignore[attr-defined]

    @workflow.update(name="mistake")
    def update_mistake(self) -> None:
        self.there_is_no_such()  # type: ignore[attr-defined]

    @workflow.update
    async def ask(self) -> int:
        return await price("tea")

    @workflow.update
    def guarded(self, amount: Any) -> None: ...

    @guarded.validator
    def is_positive(self, amount: Any) -> None:
        if amount <= 0:
            raise ValueError("too little")

    @workflow.signal
    async def recur_by_signal(self) -> None:
        try:
            await self.ctx.recur()
        except Exception:  # careless code does not hide it
            self.said.append("end")

    @workflow.update
    async def recur_by_update(self) -> None:
        await self.ctx.recur()


def told() -> Driver:
    run = Driver(definition_of(Told))
    assert run.start() == []
    return run


SAYINGS: dict[str, Callable[[Driver], Any]] = {
    "a signal": lambda run: run.signal("mistake"),
    "an update": lambda run: run.update("u", "mistake"),
    "a condition that nobody awaits": lambda run: run.signal("say", "condition"),
}


@pytest.mark.parametrize("how", SAYINGS)
def test_a_mistake_in_a_handler_or_a_condition_fails_the_task(how: str) -> None:
    with pytest.raises(AttributeError, match="there_is_no_such"):
        SAYINGS[how](told())


def test_an_update_is_answered_with_what_an_activity_raised_and_refused_with_what_its_validator_raised() -> None:
    run = told()
    assert run.update("u1", "ask") == ["accept_update u1", "schedule_activity price:1"]
    assert run.fail("price:1", "TypeError", "no price of tea") == ["complete_update u1"]
    # What a validator finds wrong changed nothing: the sender may be at fault, and must not stop the run.
    assert run.update("u2", "guarded", "much") == ["reject_update u2"]


@pytest.mark.parametrize("kind", ["signal", "update"])
def test_recurring_in_a_handler_is_refused_in_words_and_ends_nothing(kind: str) -> None:
    run = told()
    words = rf"ctx.recur was called at test_mistakes.py:\d+ in the handler of {kind} recur_by_{kind}, but only"
    with pytest.raises(WorkflowTaskError, match=words):
        run.signal("recur_by_signal") if kind == "signal" else run.update("u", "recur_by_update")
    assert not run.instance.machine.closed


# Values whose model raises what is a mistake elsewhere ----------------------------------------------------------------


@dataclass
class Positive:
    n: int

    def __post_init__(self) -> None:
        if self.n == -1:
            raise TypeError("n must be positive")
        if self.n < 0:
            _ = {0: 0}[self.n]


@activity
async def count() -> Positive:
    raise NotImplementedError


@workflow
async def counts(ctx: WorkflowContext, start: Positive, how: str) -> int:
    counted: list[int] = []

    @ctx.signal
    def add(number: Positive) -> None:
        counted.append(number.n)

    @ctx.update
    def put(number: Positive) -> None:
        counted.append(number.n)

    match how:
        case "an event":
            return (await ctx.wait_event("counted", Positive)).data.n
        case "a message":
            await ctx.subscribe("counts")
            return (await ctx.receive("counts", Positive)).data.n
        case "a result":
            return (await count()).n
    await ctx.wait_condition(lambda: bool(counted))
    return counted[0]


def counting(how: str, start: int = 1) -> Driver:
    first = Positive(1)
    first.n = start
    return Driver(counts, first, how)


BAD = [-1, -2]


@pytest.mark.parametrize("number", BAD)
def test_a_signal_and_an_update_that_a_model_refuses_cost_the_run_nothing(number: int) -> None:
    run = counting("what is said")
    run.start()
    assert run.signal("add", {"n": number}) == []
    assert run.update("u1", "put", {"n": number}) == ["reject_update u1"]
    run.signal("add", {"n": 7})
    assert run.result() == 7


@pytest.mark.parametrize("number", BAD)
@pytest.mark.parametrize("how", ["an argument", "an event", "a message", "a result"])
def test_a_value_that_a_model_refuses_fails_the_run_as_data(how: str, number: int) -> None:
    run = counting(how, number if how == "an argument" else 1)
    run.start()
    match how:
        case "an event":
            run.step(event_received=received(run, number))
        case "a message":
            (wanted,) = run.service.subscriptions
            run.step(subscription_answered=SubscriptionAnswered(subscription_id=wanted))
            run.step(event_received=received(run, number, channel="counts"))
        case "a result":
            run.complete("count:1", {"n": number})
    assert run.failure().type == "ConversionError"
    assert "fit Positive: " + {-1: "TypeError: n must be positive", -2: "KeyError"}[number] in run.failure().message


def received(run: Driver, number: int, channel: str = "") -> EventReceived:
    event = CloudEvent(id="1", source="/", spec_version="1.0", type="counted", text_data=f'{{"n": {number}}}')
    if channel:
        event.attributes["romancychannel"].ce_string = channel
    return EventReceived(event=event, subscription_ids=list(run.service.subscriptions))


# Refusals that code can catch -----------------------------------------------------------------------------------------


async def ask_wrongly(ctx: WorkflowContext, how: str) -> Any:
    match how:
        case "a long event type":
            return await ctx.wait_event("x" * 300)
        case "no event type":
            return ctx.subscribe_event("")
        case "an attribute that cannot be":
            return await ctx.wait_event("paid", where={"Subject": 7})
        case "a field without a name":
            return await ctx.wait_event("paid", where={"data..id": 7})
        case "too many values":
            return await ctx.wait_event("paid", where={f"data.{n}": n for n in range(9)})
        case "a long value":
            return await ctx.wait_event("paid", where={"subject": "x" * 5000})
        case "a long channel":
            return await ctx.publish("x" * 300, 1)
        case "a control character":
            return await ctx.subscribe("a\x00b")
        case "a sleep too long":
            return await ctx.sleep(1e12)
        case "a sleep too long, of asyncio":
            return await asyncio.sleep(1e12)
        case "a sleep without end":
            return await ctx.sleep(math.inf)
        case "a sleep of no length":
            return await ctx.sleep(math.nan)
        case "a timeout without end":
            return await ctx.wait_condition(lambda: False, timeout=math.inf)
        case "an event's timeout without end":
            return await ctx.wait_event("paid", timeout=math.inf)
        case "a long child":
            return await ctx.run_child(mistaken, "a value", id="x" * 300)


WRONG = [
    "a long event type", "no event type", "an attribute that cannot be", "a field without a name", "too many values",
    "a long value", "a long channel", "a control character", "a sleep too long", "a sleep too long, of asyncio",
    "a sleep without end", "a sleep of no length", "a timeout without end", "an event's timeout without end",
    "a long child",
]  # fmt: skip


@workflow
async def catches(ctx: WorkflowContext, how: str) -> str:
    try:
        await ask_wrongly(ctx, how)
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


@pytest.mark.parametrize("how", WRONG)
def test_what_is_never_allowed_is_refused_where_code_can_catch_it(how: str) -> None:
    run = Driver(catches, how)
    run.start()
    text = run.result()
    assert text.startswith(("InvalidCall: ", "ValueError: ")), text
    assert len(text) < 300


@pytest.mark.parametrize("is_lambda", [False, True])
def test_an_async_condition_is_refused(is_lambda: bool) -> None:
    async def never() -> bool:
        return False

    @workflow
    async def waits(ctx: WorkflowContext) -> None:
        await ctx.wait_condition((lambda: never()) if is_lambda else never)  # type: ignore[arg-type, return-value]

    with pytest.raises(TypeError, match="is async, but must be a plain function"):
        Driver(waits).start()


# Through the service --------------------------------------------------------------------------------------------------

refunded: list[str] = []
charged: list[str] = []


@compensation
async def refund(order_id: str) -> None:
    refunded.append(order_id)


@activity(compensation=refund)
async def charge(order_id: str) -> str:
    charged.append(order_id)
    return f"receipt of {order_id}"


@activity
async def ship(receipt: str) -> str:
    return f"shipped by {receipt}"


@workflow(name="order")
async def broken_order(ctx: WorkflowContext, order_id: str) -> str:
    receipt = await charge(order_id)  # noqa: F841
    return await ship(reciept)  # type: ignore[name-defined]  # noqa: F821


@workflow(name="order")
async def mended_order(ctx: WorkflowContext, order_id: str) -> str:
    receipt = await charge(order_id)
    return await ship(receipt)


async def why_blocked(handle: WorkflowHandle[Any]) -> Wait:
    async with asyncio.timeout(20):
        while True:
            described = await handle.describe()
            blocked = [wait for wait in described.waits if wait.kind == WAIT_KIND_CODE_FAILS]
            if blocked:
                assert described.info.status == WORKFLOW_STATUS_RUNNING
                return blocked[0]
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("cached_runs", [0, 100], ids=["replayed at each task", "held in memory"])
async def test_a_deploy_with_a_typo_undoes_nothing(cached_runs: int) -> None:
    refunded.clear()
    charged.clear()

    def deploy(order: WorkflowDefinition[..., Any], address: str) -> Worker:
        return Worker(address, workflows=[order], activities=[charge, ship], cached_runs=cached_runs)

    async with testing.service() as service:
        handle = await service.client.start_workflow(broken_order, "o1", id="o1")
        async with deploy(broken_order, service.address):
            wait = await why_blocked(handle)
            kinds = [event.WhichOneof("attributes") async for event in handle.history()]
        assert wait.state == WAIT_STATE_BLOCKED
        assert "NameError: name 'reciept' is not defined" in wait.sentence
        assert "test_mistakes.py:" in wait.sentence
        # What the activity did is recorded, and nothing of what the broken code made of it.
        assert kinds == ["workflow_started", "activity_scheduled", "activity_completed"]
        async with deploy(mended_order, service.address):
            await service.skip(timedelta(minutes=2))
            assert await handle.result() == "shipped by receipt of o1"
    assert (charged, refunded) == (["o1"], [])


# Handlers that are half done ------------------------------------------------------------------------------------------


@workflow
class Counter:
    def __init__(self) -> None:
        self.waits = False
        self.ends = ""
        self.total = 0

    @workflow.run
    async def run(self, ctx: WorkflowContext, waits: bool, total: int = 0) -> int:
        self.ctx = ctx
        self.total = total
        await ctx.wait_condition(lambda: bool(self.ends))
        if waits:
            await ctx.wait_condition(ctx.all_handlers_finished)
        return await ctx.recur(waits, self.total) if self.ends == "recur" else self.total

    @workflow.signal
    async def add(self, number: int) -> None:
        await self.ctx.sleep(1)
        self.total += number

    @workflow.update
    async def add_slowly(self, number: int) -> int:
        await self.ctx.sleep(1)
        self.total += number
        return self.total

    @workflow.signal
    def end(self, how: str) -> None:
        self.ends = how


@pytest.mark.parametrize("how", ["recur", "return"])
def test_code_that_ends_with_handlers_half_done_is_warned_of_by_their_names(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = Driver(definition_of(Counter), False)
    run.start()
    run.signal("add", 1)
    run.update("u", "add_slowly", 2)
    with caplog.at_level(logging.WARNING, "romancy.workflow"):
        run.signal("end", how)
    (warning,) = caplog.messages  # once: the replay is silent
    assert "signal add, update add_slowly are half done" in warning
    assert "ctx.all_handlers_finished" in warning


@pytest.mark.parametrize("how", ["recur", "return"])
def test_code_that_waits_for_its_handlers_loses_nothing(how: str, caplog: pytest.LogCaptureFixture) -> None:
    run = Driver(definition_of(Counter), True)
    run.start()
    run.signal("add", 1)
    run.update("u", "add_slowly", 2)
    assert run.signal("end", how) == []
    assert run.fire("1") == []
    commands = run.fire("2")
    assert commands[0] == "complete_update u"
    assert commands[1:] == (["continue_workflow"] if how == "recur" else ["complete_workflow"])
    ended = run.commands[-1]
    value = ended.continue_workflow.spec.arguments[1] if how == "recur" else ended.complete_workflow.result
    assert value.json == "3"
    assert caplog.messages == []


async def test_an_update_that_its_run_leaves_half_done_is_answered_at_once() -> None:
    for how in ("return", "recur", "cancel", "terminate"):
        async with testing.service() as service, Worker(service.address, workflows=[Counter]):
            handle = await service.client.start_workflow(Counter.run, False)
            update = await handle.start_update(Counter.add_slowly, 1)
            asking = asyncio.create_task(update.result())
            match how:
                case "cancel":
                    await handle.cancel()
                case "terminate":
                    await handle.terminate()
                case _:
                    await handle.signal(Counter.end, how)
            async with asyncio.timeout(10):  # a client tries for a minute what may succeed by trying again
                with pytest.raises(UpdateAborted, match="ended, or began to undo itself, before it answered"):
                    await asking
                with pytest.raises(UpdateAborted):
                    await update.result()


# Compensations that nobody has ----------------------------------------------------------------------------------------


@workflow
async def kid(ctx: WorkflowContext) -> str:
    return "done"


@workflow
async def parent(ctx: WorkflowContext, how: str) -> None:
    if how == "a child's":
        await ctx.run_child(kid, compensation=tear_down)
    elif how == "one that belongs to no activity":
        ctx.compensate_with(tear_down)
    else:
        ctx.compensate_with(tear_down_elsewhere)


@compensation
async def tear_down() -> None: ...


torn_down: list[str] = []


@compensation(name="tear_down")
async def really_tear_down() -> None:
    torn_down.append("kid")


@compensation(task_queue="elsewhere", name="tear_down_there")
async def tear_down_elsewhere() -> None: ...


@pytest.mark.parametrize(
    ("how", "activities", "warned"),
    [
        ("a child's", [], 1),
        ("one that belongs to no activity", [], 1),
        ("a child's", [really_tear_down], 0),
        ("one of another queue", [], 0),
    ],
)
async def test_code_that_asks_for_a_compensation_that_its_worker_has_not_is_warned_of_once(
    how: str, activities: list[Any], warned: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        testing.service() as service,
        Worker(service.address, workflows=[parent, kid], activities=activities),
    ):
        for _ in range(2):
            await service.client.execute_workflow(parent, how)
    texts = [text for text in caplog.messages if "which this worker does not have" in text]
    assert len(texts) == warned
    assert all("'tear_down'" in text and "Worker(..., activities=[..., tear_down])" in text for text in texts)
