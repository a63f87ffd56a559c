"""What `@activity` and `@compensation` make of functions, and what activities may call."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

import pytest

from romancy.v1.command_pb2 import COMPENSATE_WHEN_ALWAYS, ScheduleActivity
from romancy.v1.failure_pb2 import FAILURE_SOURCE_APPLICATION, FAILURE_SOURCE_TIMEOUT, Failure
from romancy.v1.history_pb2 import RETRY_STATE_MAX_ATTEMPTS, HistoryEvent
from romancy.v1.payload_pb2 import Payload
from romancy.v1.worker_service_pb2 import ActivityCompletion, ActivityHeartbeat, ActivityTask

from romancy import (
    ActivityError,
    ConversionError,
    DefinitionError,
    OutsideActivity,
    RemoteError,
    RetryPolicy,
    TerminalError,
    WorkflowContext,
    activity,
    activity_info,
    compensation,
    heartbeat,
    is_cancelled,
    workflow,
)
from romancy._activities import Activities
from romancy.activity import ActivityContext, ActivityDefinition, ActivityInfo, current_activity
from romancy.converter import codec
from tests.worker_sdk.driver import Driver


@dataclass
class Receipt:
    id: str
    amount: float


@compensation(retry=RetryPolicy(max_attempts=9), timeout=7)
async def refund(amount: float, result: Receipt | None, reason: str = "rollback") -> None:
    pass


@activity(compensation=refund, timeout=timedelta(seconds=30), at_most_once=True)
async def charge(order_id: str, amount: float) -> Receipt:
    return Receipt(order_id, amount)


@activity
def plain(text: str, *, loud: bool = False) -> str:
    return text.upper() if loud else text


def scheduled(definition: Any, *args: Any, **kwargs: Any) -> ScheduleActivity:
    """The command that a call asks for."""

    @workflow
    async def calls(ctx: WorkflowContext) -> None:
        await definition(*args, **kwargs)

    run = Driver(calls)
    run.start()
    assert run.commands[0].WhichOneof("attributes") == "schedule_activity", run.commands
    return run.commands[0].schedule_activity


def test_a_call_sends_options_and_arguments_by_position() -> None:
    command = scheduled(charge, amount=2, order_id="o")
    assert [payload.json for payload in command.arguments] == ['"o"', "2.0"]
    assert command.start_to_close_timeout.seconds == 30
    assert command.at_most_once
    assert not command.HasField("retry_policy")
    assert command.task_queue == ""


def test_options_of_one_call_replace_those_of_the_definition_and_leave_it_alone() -> None:
    other = charge.options(timeout=0.5, retry=RetryPolicy(max_attempts=1), task_queue="slow", priority=3)
    command = scheduled(other, "o", 2)
    assert command.start_to_close_timeout.nanos == 500_000_000
    assert command.retry_policy.max_attempts == 1
    assert (command.task_queue, command.priority, command.at_most_once) == ("slow", 3, True)
    assert scheduled(charge, "o", 2).start_to_close_timeout.seconds == 30


def test_a_compensation_takes_arguments_by_name_the_result_and_its_own_defaults() -> None:
    undo = scheduled(charge, "o", 2).compensation
    assert undo.activity_type == "refund"
    assert undo.arguments[0].activity_argument == 1
    assert undo.arguments[1].HasField("activity_result")
    assert undo.arguments[2].payload.json == '"rollback"'
    assert (undo.retry_policy.max_attempts, undo.start_to_close_timeout.seconds) == (9, 7)


def test_compensate_always_is_said_in_the_command() -> None:
    @activity(compensation=refund, compensate="always")
    async def risky(amount: float) -> None:
        pass

    assert scheduled(risky, 1.0).compensation.when == COMPENSATE_WHEN_ALWAYS


def test_a_compensation_that_does_not_fit_is_refused_when_it_is_decorated() -> None:
    with pytest.raises(
        DefinitionError, match="refund cannot undo ship: its parameter 'amount' is none of order_id, result"
    ):

        @activity(compensation=refund)
        async def ship(order_id: str) -> None:
            pass


def test_a_parameter_called_result_is_refused_when_there_is_a_compensation() -> None:
    with pytest.raises(DefinitionError, match="rename the parameter"):

        @activity(compensation=refund)
        async def confused(amount: float, result: str) -> None:
            pass


def test_a_compensation_must_allow_for_no_result() -> None:
    @compensation
    async def strict(result: Receipt) -> None:
        pass

    with pytest.raises(DefinitionError, match=r"annotate it with `\| None`"):

        @activity(compensation=strict)
        async def pay() -> Receipt:
            return Receipt("r", 1)


def test_variadic_parameters_are_refused() -> None:
    with pytest.raises(DefinitionError, match=r"takes \*values, but arguments travel by position"):

        @activity
        async def many(*values: int) -> None:
            pass


def test_a_wrong_call_is_a_type_error_as_of_any_function() -> None:
    @workflow
    async def calls(ctx: WorkflowContext) -> None:
        await charge("o")  # type: ignore[call-arg]

    with pytest.raises(TypeError) as raised:
        Driver(calls).start()
    assert str(raised.value) == "charge(): missing a required argument: 'amount'"


def test_types_reach_the_caller() -> None:
    async def never_run() -> None:
        assert_type(await charge("o", 1.0), Receipt)
        assert_type(await charge.options(timeout=1)("o", 1.0), Receipt)
        assert_type(await plain("x", loud=True), str)  # sync functions are awaited as well
        assert_type(await charge.fn("o", 1.0), Receipt)  # the function itself
        assert_type(plain.fn("x", loud=True), str)

    assert asyncio.iscoroutinefunction(never_run)
    assert charge.is_async
    assert not plain.is_async
    assert plain.fn("x", loud=True) == "X"


def test_a_worker_decodes_arguments_and_encodes_results_by_the_annotations() -> None:
    args, kwargs = plain.decode_arguments([Payload(json='"hi"'), Payload(json="true")])
    assert plain.fn(*args, **kwargs) == "HI"
    payload = charge.encode_result(Receipt("o", 1.0))
    assert payload.json == '{"id":"o","amount":1.0}'
    with pytest.raises(ConversionError, match="the result of charge cannot be encoded: a value of type object"):
        charge.encode_result(object())


def test_arguments_that_are_missing_at_the_end_have_their_defaults() -> None:
    assert plain.decode_arguments([Payload(json='"hi"')]) == (["hi"], {})
    with pytest.raises(ConversionError, match="charge takes argument 'amount', but only 1 arguments came"):
        charge.decode_arguments([Payload(json='"o"')])
    with pytest.raises(ConversionError, match="plain takes 2 arguments, but 3 came"):
        plain.decode_arguments([Payload(json="1")] * 3)


# What follows is declared, for workers elsewhere.


@activity(name="shop.Ship", task_queue="go")
async def ship(order_id: str) -> Receipt:
    """Ships it."""
    raise NotImplementedError


@compensation(task_queue="go")
async def unship(order_id: str) -> None: ...


@compensation
async def nothing_to_undo(order_id: str) -> None:
    pass


def test_a_function_without_a_body_is_a_declaration() -> None:
    assert (ship.name, ship.is_declared, unship.is_declared) == ("shop.Ship", True, True)
    assert not nothing_to_undo.is_declared
    assert scheduled(ship, "o").task_queue == "go"


def test_annotations_may_use_names_of_the_enclosing_function() -> None:
    @dataclass
    class Local:
        n: int

    @activity
    async def local(value: Local) -> Local:
        return value

    local.check()
    assert local.decode_arguments([Payload(json='{"n":1}')]) == ([Local(1)], {})


def test_annotations_that_cannot_be_evaluated_are_named() -> None:
    @activity
    async def broken(value: Unknown) -> None:  # type: ignore[name-defined]  # noqa: F821
        pass

    with pytest.raises(DefinitionError, match="annotations of broken cannot be evaluated: name 'Unknown'"):
        broken.check()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"timeout": -1}, "timeout is -1, but must be zero or more seconds"),
        ({"timeout": 0}, "timeout is 0, but must be more than nothing"),
        ({"heartbeat_timeout": float("nan")}, "heartbeat_timeout is nan"),
        ({"heartbeat_timeout": 9, "timeout": 8}, "heartbeat_timeout is 9, which is longer than timeout, 8"),
        ({"heartbeat_timeout": 9, "schedule_to_close_timeout": 8, "timeout": 8}, "heartbeat_timeout is 9"),
        ({"timeout": 9, "schedule_to_close_timeout": timedelta(seconds=8)}, "timeout is 9, which is longer than sch"),
        ({"schedule_to_start_timeout": 100, "schedule_to_close_timeout": 99}, "schedule_to_start_timeout is 100"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        charge.options(**options)


@pytest.mark.parametrize(
    "policy", [{"max_attempts": -1}, {"backoff_coefficient": 0.5}, {"jitter": 2}, {"max_interval": timedelta(-1)}]
)
def test_retry_policies_that_make_no_sense_are_refused(policy: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(policy))} is .*, but must be"):
        RetryPolicy(**policy)


def test_a_first_wait_that_is_longer_than_the_longest_is_refused() -> None:
    with pytest.raises(ValueError, match="initial_interval is 9, which is longer than max_interval, 8"):
        RetryPolicy(initial_interval=9, max_interval=8)


def test_who_counts_attempts_is_not_stopped_by_the_default_for_their_time() -> None:
    counted = RetryPolicy(max_attempts=10).to_proto()
    assert counted.HasField("max_elapsed")
    assert counted.max_elapsed.ToMilliseconds() == 0  # no limit
    assert RetryPolicy(max_attempts=10, max_elapsed=60).to_proto().max_elapsed.seconds == 60
    assert not RetryPolicy(initial_interval=1).to_proto().HasField("max_elapsed")


def test_errors_that_are_not_tried_again_include_those_that_derive_from_them() -> None:
    @activity(retry=RetryPolicy(non_retryable=(LookupError, "ArithmeticError")))
    async def risky() -> None:
        pass

    assert risky.encode_failure(KeyError("x")).non_retryable
    assert risky.encode_failure(KeyError("x")).type == "KeyError"
    assert risky.encode_failure(ZeroDivisionError("x")).non_retryable
    assert not risky.encode_failure(ValueError("x")).non_retryable


@pytest.mark.parametrize(
    ("make", "options", "text"),
    [
        (RetryPolicy, {"max_attempts": "5"}, "max_attempts is '5', but must be a whole number"),
        (RetryPolicy, {"max_attempts": True}, "max_attempts is True, but must be a whole number"),
        (RetryPolicy, {"max_interval": "1s"}, "max_interval is '1s', but must be a timedelta or a number of seconds"),
        (RetryPolicy, {"non_retryable": "Declined"}, "non_retryable is 'Declined', but must be a tuple"),
        (RetryPolicy, {"non_retryable": (5,)}, "non_retryable has 5, but takes exception classes"),
        (charge.options, {"retry": 3}, "retry is 3, but must be a RetryPolicy"),
        (charge.options, {"timeout": "30s"}, "timeout is '30s', but must be a timedelta or a number of seconds"),
        (charge.options, {"task_queue": 1}, "task_queue is 1, but must be the name of a queue"),
        (activity, {"retries": 3}, "@activity has no option 'retries'; it has name, compensation, compensate"),
        (compensation, {"priority": 3}, "@compensation has no option 'priority'; it has name, task_queue, timeout"),
    ],
)
def test_options_of_another_type_or_name_are_refused_in_a_sentence(
    make: Callable[..., object], options: dict[str, Any], text: str
) -> None:
    with pytest.raises(TypeError) as refused:
        make(**options)
    assert str(refused.value).startswith(text)


async def nothing() -> None: ...


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"compensate": "allways"}, "compensate of nothing is 'allways', but must be 'unless_failed' or 'always'"),
        ({"compensation": nothing}, "compensation of nothing is .*, but must be a function decorated with @compens"),
        ({"raises": ValueError}, "raises of nothing is .*, but must be a list of exception classes"),
        ({"raises": ["ValueError"]}, "raises of nothing has 'ValueError', which is no exception class"),
        ({"name": 5}, "name of nothing is 5, but must be a text"),
    ],
)
def test_definitions_that_make_no_sense_are_refused_in_a_sentence(options: dict[str, Any], text: str) -> None:
    with pytest.raises(DefinitionError, match=text):
        activity(**options)(nothing)


def test_an_activity_that_failed_for_good_says_why_there_is_no_further_attempt() -> None:
    event = HistoryEvent()
    event.activity_failed.activity_id, event.activity_failed.attempt = "charge:1", 5
    event.activity_failed.failure.type = "ConnectionError"
    event.activity_failed.retry_state = RETRY_STATE_MAX_ATTEMPTS
    with pytest.raises(ActivityError) as failed:
        charge.outcome(event)
    assert failed.value.__notes__ == [
        "charge:1 has no attempt after number 5: max_attempts of its retry policy is reached"
    ]


def test_a_retry_policy_says_only_what_was_said() -> None:
    proto = RetryPolicy(max_attempts=0, initial_interval=0.1, non_retryable=(KeyError, "Declined")).to_proto()
    assert proto.HasField("max_attempts")
    assert not proto.HasField("jitter")
    assert proto.initial_interval.nanos == 100_000_000
    assert list(proto.non_retryable_types) == ["KeyError", "Declined"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        RetryPolicy().jitter = 1  # type: ignore[misc]


# While an activity runs.


@pytest.fixture
def context() -> Any:
    sent: list[Payload | None] = []
    info = dataclasses.replace(_info(), last_heartbeat=codec(Any).encode({"row": 7}, "details"))
    made = ActivityContext(info, sent.append)
    token = current_activity.set(made)
    yield made, sent
    current_activity.reset(token)


def test_an_activity_knows_itself_and_what_the_attempt_before_said(context: Any) -> None:
    assert activity_info().idempotency_key == "r/a:1"
    assert activity_info().heartbeat_details(dict[str, int]) == {"row": 7}
    heartbeat({"row": 8})
    heartbeat()
    assert [payload and payload.json for payload in context[1]] == ['{"row":8}', None]


def test_a_heartbeat_of_a_sync_function_raises_once_it_is_to_stop(context: Any) -> None:
    assert not is_cancelled()
    context[0].cancelled.set()
    assert is_cancelled()
    with pytest.raises(asyncio.CancelledError, match="a:1 is to stop"):
        heartbeat()


async def test_a_heartbeat_of_an_async_function_leaves_stopping_to_its_task() -> None:
    info = dataclasses.replace(_info(), activity_id="a:2")
    sent: list[Payload | None] = []
    made = ActivityContext(info, sent.append)
    made.cancelled.set()
    current_activity.set(made)
    heartbeat(1)
    assert len(sent) == 1


def test_outside_of_an_activity_there_is_nothing_to_know() -> None:
    for call in (activity_info, heartbeat, is_cancelled):
        with pytest.raises(OutsideActivity, match="no activity runs here"):
            call()


def _info() -> ActivityInfo:
    return ActivityInfo(
        workflow_id="w",
        run_id="r",
        workflow_type="t",
        activity_id="a:1",
        activity_type="a",
        task_queue="q",
        attempt=1,
        idempotency_key="r/a:1",
        scheduled_time=datetime.now(UTC),
    )


def test_definitions_show_their_names() -> None:
    assert repr(charge) == "<activity charge>"
    assert isinstance(charge, ActivityDefinition)
    assert ship.__doc__ == "Ships it."


def test_a_compensation_s_annotations_are_checked_once_all_names_are_defined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @compensation
    async def early(result: Later) -> None:  # type: ignore[name-defined]  # noqa: F821
        pass

    @activity(compensation=early)
    async def pay() -> None:
        pass

    monkeypatch.setitem(globals(), "Later", Receipt)
    with pytest.raises(DefinitionError, match=r"annotate it with `\| None`"):
        pay.check()


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (ZeroDivisionError("division"), logging.WARNING),
        (TerminalError("no"), logging.INFO),
        (LookupError("declared"), logging.INFO),
    ],
)
def test_an_error_that_nobody_meant_is_logged_with_its_traceback(
    error: Exception, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    @activity(raises=[LookupError])
    async def risky() -> None:
        pass

    async def run() -> None:
        raise error

    risky.fn = run
    ended = threading.Event()
    activities = Activities({"risky": risky}, 1, Outlet(ended))
    task = ActivityTask(token="t", activity_type="risky", activity_id="risky:1", workflow_id="w", attempt=2)
    with caplog.at_level(logging.INFO, "romancy.worker"):
        activities.start([task])
        assert ended.wait(10)
    activities.stop()
    (record,) = caplog.records
    text = f"attempt 2 of risky:1 in workflow 'w' failed: {type(error).__name__}: {error}"
    assert (record.levelno, record.getMessage()) == (level, text)
    assert bool(record.exc_info) == (level == logging.WARNING)


class Outlet:
    """Knows when an attempt ended."""

    def __init__(self, ended: threading.Event) -> None:
        self.ended = ended

    def completed(self, task: ActivityTask, completion: ActivityCompletion) -> None:
        self.ended.set()

    def heartbeat(self, heartbeat: ActivityHeartbeat) -> None:
        pass

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        pass


class Gateway:
    """An activity with something of its own."""

    def __init__(self, fee: float) -> None:
        self.fee = fee

    async def charge(self, amount: float) -> float:
        return amount + self.fee


async def test_a_bound_method_can_be_an_activity() -> None:
    charged = activity(Gateway(0.5).charge)
    assert charged.decode_arguments([Payload(json="1")]) == ([1.0], {})
    assert await charged.fn(1.0) == 1.5
    assert scheduled(charged, 2).activity_id == "charge:1"


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(DefinitionError, match="must be a function or a bound method"):
        activity(functools.partial(print, "x"))


def test_an_error_of_another_run_is_the_activity_s_own_when_it_lets_it_through() -> None:
    error = RemoteError("RunTimeout", "late", failure=Failure(type="RunTimeout", source=FAILURE_SOURCE_TIMEOUT))
    assert charge.encode_failure(error).source == FAILURE_SOURCE_APPLICATION
    assert error.failure is not None
    assert error.failure.source == FAILURE_SOURCE_TIMEOUT


def test_no_activity_may_be_called_as_compensations_are() -> None:
    with pytest.raises(DefinitionError, match="'undo/' is how the ids of compensations begin"):
        activity(name="undo/pay")(charge.fn)
