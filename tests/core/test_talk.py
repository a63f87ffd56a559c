"""Signals, updates, steps, patches and recurring: what a run may be told, what its code may answer, what goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from romancy.v1.command_pb2 import Command, RecordStep, SetAttributes, StartChild
from romancy.v1.failure_pb2 import Failure
from romancy.v1.history_pb2 import Parent, UpdateReceived
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import (
    WORKFLOW_STATUS_COMPENSATING,
    WORKFLOW_STATUS_CONTINUED,
    WORKFLOW_STATUS_TIMED_OUT,
    AttributeValue,
    Signal,
    WorkflowSpec,
)

from romancy_service.core.decide import Reply
from romancy_service.core.limits import Limits
from romancy_service.core.run import Run
from romancy_service.core.task import DEADLINE_TASK_ID
from romancy_service.core.triggers import CompleteWorkflowTask, RequestCancel, StartRun, Terminate
from romancy_service.errors import InvalidField, TooManyUpdates, WorkflowClosed
from tests.core.life import T0, Life, complete, fail, schedule
from tests.core.talk import (
    NO,
    accept,
    answer,
    cancel_child,
    child,
    patch,
    recur,
    reject,
    send,
    send_cancel,
    signal,
    step,
    update,
)


def recurring(life: Life, *commands: Command, seen: int | None = None) -> StartRun:
    """The start of the run that goes on after the code asked for these."""
    task = life.run.tasks["w"]
    seen_event_id = life.run.last_event_id if seen is None else seen
    reply = life.do(CompleteWorkflowTask(life.fence(task), seen_event_id, commands, True, successor_run_id="run-2"))
    assert reply.successor is not None
    run_id, start = reply.successor
    assert run_id == "run-2"
    return start


def next_life(start: StartRun) -> Life:
    """The run that goes on."""
    life = Life(Run("default", "order-1", "run-1"))
    life.do(start)
    return life


def signals_of(life: Life) -> list[str]:
    """The names of the signals in a history, in order."""
    return [event.signal_received.signal.name for event in life.history if event.HasField("signal_received")]


# Signals --------------------------------------------------------------------------------------------------------------


def test_a_signal_is_an_input_that_brings_a_workflow_task() -> None:
    life = Life.begin()
    life.code()
    life.do(signal("pay"))
    assert life.run.workflow_task is not None
    assert [event.signal_received.signal.identity for event in life.run.unseen] == ["test"]


def test_signals_keep_the_order_in_which_they_came_while_a_task_is_out() -> None:
    life = Life.begin()
    for name in ("a", "b", "c"):
        life.do(signal(name))
    life.code(seen=2)
    assert [event.signal_received.signal.name for event in life.run.unseen] == ["b", "c"]


@pytest.mark.parametrize("trigger", [signal(), update("u1")])
def test_what_is_undoing_itself_or_closed_is_told_nothing(trigger: Any) -> None:
    life = Life.begin()
    life.code(schedule("pay:1", "refund"))
    life.completes("pay:1")
    life.code(fail())
    assert life.run.status == WORKFLOW_STATUS_COMPENSATING
    with pytest.raises(WorkflowClosed, match="is undoing what it did"):
        life.do(trigger)
    life.completes("undo/pay:1")
    with pytest.raises(WorkflowClosed, match="is closed"):
        life.do(trigger)


# Updates --------------------------------------------------------------------------------------------------------------


def test_an_update_is_accepted_and_answered_once() -> None:
    life = Life.begin()
    life.do(update("u1"))
    assert life.run.counters.open_updates == {"u1": False}
    life.code(accept("u1"))
    assert life.run.counters.open_updates == {"u1": True}
    life.do(signal())
    life.code(answer("u1"))
    assert life.run.counters.open_updates == {}
    life.do(signal())
    assert life.code(answer("u1")).rejection is not None


def test_an_update_may_be_refused_or_answered_in_the_task_that_brought_it() -> None:
    life = Life.begin()
    life.do(update("u1"))
    life.do(update("u2"))
    life.code(reject("u1"), accept("u2"), answer("u2", failure=NO))
    assert life.kinds()[-3:] == ["update_rejected", "update_accepted", "update_completed"]
    assert life.run.counters.open_updates == {}


def test_open_updates_are_limited_and_there_is_room_again_when_one_is_answered() -> None:
    life = Life(limits=replace(Limits(), open_updates=2))
    life.do(StartRun(WorkflowSpec(workflow_type="order", task_queue="default"), "test"))
    life.do(update("u1"))
    life.do(update("u2"))
    with pytest.raises(TooManyUpdates, match="2 unanswered updates"):
        life.do(update("u3"))
    life.code(reject("u1"))
    life.do(update("u3"))


def test_a_rollback_forgets_updates_that_nobody_will_answer() -> None:
    life = Life.begin()
    life.do(update("u1"))
    life.code(accept("u1"), schedule("pay:1"), fail())
    assert life.run.counters.open_updates == {}


# Steps and patches ----------------------------------------------------------------------------------------------------


def test_steps_are_counted_by_name_and_keep_what_they_returned_or_raised() -> None:
    life = Life.begin()
    life.code(step("read:1"), step("roll:1", failure=NO), step("read:2"))
    assert life.run.counters.steps == {"read": 2, "roll": 1}
    assert life.history[2].step_recorded.command.failure == NO


def test_a_failure_of_a_step_is_cut_to_size() -> None:
    life = Life.begin()
    life.code(step("read:1", failure=Failure(message="x" * 10_000)))
    assert len(life.history[-1].step_recorded.command.failure.message) <= Limits().failure_message_bytes


def test_a_patch_is_marked_once_in_a_run() -> None:
    life = Life.begin()
    life.code(patch("fraud-check"))
    assert life.run.counters.patches == ["fraud-check"]
    life.do(signal())
    rejection = life.code(patch("fraud-check")).rejection
    assert rejection is not None
    assert "is marked already" in str(rejection)


# Recurring ------------------------------------------------------------------------------------------------------------


def test_recurring_closes_the_run_and_names_the_next_one() -> None:
    life = Life.begin()
    start = recurring(life, recur(memo={"a": Payload(json="1")}))
    assert life.run.status == WORKFLOW_STATUS_CONTINUED
    assert life.run.outcome is not None
    assert life.run.outcome.continued_run_id == "run-2"
    assert (start.continued_from_run_id, start.first_run_id) == ("run-1", "run-1")
    again = next_life(start)
    assert recurring(again, recur()).first_run_id == "run-1"


def test_recurring_carries_over_what_was_not_read_and_what_no_task_brought_in_their_order() -> None:
    life = Life.begin()
    life.do(signal("read"))
    life.do(update("u-read"))
    seen = life.run.last_event_id
    life.do(signal("late"))
    life.do(update("u-late"))
    life.do(signal("later"))
    following = next_life(recurring(life, reject("u-read"), recur("kept"), seen=seen))
    assert signals_of(following) == ["kept", "late", "later"]
    assert following.run.counters.open_updates == {"u-late": False}
    assert following.kinds() == [
        "workflow_started", "signal_received", "signal_received", "update_received", "signal_received"
    ]  # fmt: skip


def test_what_a_task_brought_after_the_code_had_ended_goes_to_the_next_run() -> None:
    life = Life.begin()
    for name in ("taken", "not taken"):
        life.do(signal(name))
    life.do(update("u1"))
    life.do(signal("late"))
    following = next_life(recurring(life, recur(), seen=2))
    assert signals_of(following) == ["not taken", "late"]
    assert following.run.counters.open_updates == {"u1": False}


def test_a_request_to_stop_that_no_task_brought_is_not_lost_by_recurring() -> None:
    life = Life.begin()
    life.do(RequestCancel("enough", "ann"))
    following = next_life(recurring(life, recur(), seen=1))
    assert following.run.cancel_requested
    assert following.history[-1].workflow_cancel_requested.reason == "enough"


def test_a_request_to_stop_that_the_code_saw_ends_with_the_run() -> None:
    life = Life.begin()
    life.do(RequestCancel("enough", "ann"))
    assert not next_life(recurring(life, recur())).run.cancel_requested


def test_the_next_run_has_the_parent_and_the_deadline_of_the_one_before() -> None:
    parent = Parent(workflow_id="boss", run_id="boss-1", child_id="order:1")
    spec = WorkflowSpec(workflow_type="order", task_queue="default", execution_timeout=Duration(seconds=60))
    life = Life()
    life.do(StartRun(spec, "test", parent=parent))
    life.now_ms += 50_000
    following = next_life(recurring(life, recur(execution_timeout=Duration(seconds=60))))
    assert following.history[0].workflow_started.parent == parent
    assert following.run.tasks[DEADLINE_TASK_ID].due_ms == T0 + 60_000
    following.now_ms = T0 + 60_000
    following.due(DEADLINE_TASK_ID)
    assert following.run.status == WORKFLOW_STATUS_TIMED_OUT
    assert following.run.outcome is not None
    assert following.run.outcome.failure.type == "ExecutionTimeout"


def test_a_child_that_recurs_reports_to_its_parent_only_at_its_last_end() -> None:
    life = Life()
    parent = Parent(workflow_id="boss", run_id="boss-1", child_id="order:1")
    life.do(StartRun(WorkflowSpec(workflow_type="order", task_queue="default"), "test", parent=parent))
    following = next_life(recurring(life, recur()))
    assert "r" not in life.run.tasks
    following.code(complete())
    assert "r" in following.run.tasks


def test_the_next_run_keeps_the_attributes_of_the_run_whatever_the_command_says() -> None:
    life = Life.begin()
    rome = Command(set_attributes=SetAttributes(set={"city": AttributeValue(text="Rome")}))
    start = recurring(life, rome, recur(attributes={"city": AttributeValue(text="Bern")}))
    assert start.spec.attributes["city"].text == "Rome"


def test_start_inputs_come_directly_after_the_start() -> None:
    life = Life()
    inputs: list[Signal | UpdateReceived] = [Signal(name="first"), UpdateReceived(update_id="u", name="change")]
    life.do(StartRun(WorkflowSpec(workflow_type="order", task_queue="default"), "test", inputs=inputs))
    assert life.kinds() == ["workflow_started", "signal_received", "update_received"]


def test_a_start_delay_holds_back_the_first_task_and_begins_the_timeouts_after_it() -> None:
    second = Duration(seconds=10)
    life = Life.begin(start_delay=second, run_timeout=Duration(seconds=5), execution_timeout=Duration(seconds=7))
    assert life.run.workflow_task is not None
    life.do(signal())
    assert life.run.workflow_task.due_ms == T0 + 10_000
    assert life.run.tasks[DEADLINE_TASK_ID].due_ms == T0 + 15_000


# What is refused ------------------------------------------------------------------------------------------------------

SPEC = WorkflowSpec(workflow_type="order")
BIG = Payload(binary=b"x" * (2 << 20) + b"x")
BAD_TIME = AttributeValue(time=Timestamp(seconds=2**60))
LARGE = Payload(binary=b"x" * ((2 << 20) - 8))
BIG_CHILD = child("kid:1", "undo", spec={"arguments": [LARGE]})
BIG_CHILD.start_child.compensation.arguments.add(payload=LARGE)
BIG_EVENT = recur()
BIG_EVENT.continue_workflow.unread_events.add(binary_data=b"x" * (3 << 20))
BAD: list[tuple[str, Command]] = [
    ("record_step.step_id", step("")),
    ("record_step.step_id", step(":1")),
    ("record_step.step_id", step("read:2")),
    ("record_step.step_id", step("read:01")),
    ("record_step.step_id", step("re\0ad:1")),
    ("record_step.outcome", Command(record_step=RecordStep(step_id="read:1"))),
    ("record_step.result", step("read:1", result=BIG)),
    ("record_step.failure.details", step("read:1", failure=Failure(details=[BIG]))),
    ("mark_patch.patch_id", patch("")),
    ("mark_patch.patch_id", patch("x" * 256)),
    ("accept_update.update_id", accept("none")),
    ("accept_update.update_id", accept("accepted")),
    ("reject_update.update_id", reject("none")),
    ("reject_update.update_id", reject("accepted")),
    ("complete_update.update_id", answer("none")),
    ("complete_update.update_id", answer("open")),
    ("complete_update.result", answer("accepted", result=BIG)),
    ("complete_update.outcome", answer("accepted", failure=None)),
    ("start_child.spec.workflow_type", Command(start_child=StartChild(child_id=":1"))),
    ("start_child.child_id", child("kid:2")),
    ("start_child.child_id", child("kid:x")),
    ("start_child.workflow_id", child("kid:1", workflow_id="x" * 256)),
    ("start_child.workflow_id", child("k" * 250 + ":1")),
    ("start_child.spec.task_queue", child("kid:1", spec={"task_queue": "\n"})),
    ("start_child.spec.arguments", child("kid:1", spec={"arguments": [BIG]})),
    ("start_child.spec.run_timeout", child("kid:1", spec={"run_timeout": Duration(seconds=-1)})),
    ("start_child.spec.start_delay", child("kid:1", spec={"start_delay": Duration(seconds=10**12)})),
    ("start_child.spec.priority", child("kid:1", spec={"priority": 10**7})),
    ("start_child.spec.attributes", child("kid:1", spec={"attributes": {"t": BAD_TIME}})),
    ("start_child.parent_close_policy", child("kid:1", parent_close_policy=99)),
    ("start_child.compensation.activity_type", child("kid:1", "\0")),
    ("start_child", BIG_CHILD),
    ("cancel_child.child_id", cancel_child("kid:1")),
    ("cancel_child.child_id", cancel_child("nonsense")),
    ("send.send_id", send("2")),
    ("send.send_id", send("")),
    ("send.workflow_id", send("1", "")),
    ("send.signal.name", send("1", name="")),
    ("send.cancel.reason", send_cancel("1", reason="x" * 5_000)),
    ("continue_workflow", recur()),
    ("continue_workflow.spec.workflow_type", recur(workflow_type="")),
    ("continue_workflow.spec.task_queue", recur(task_queue="\n")),
    ("continue_workflow.unread_signals[0].name", recur("")),
    ("continue_workflow.unread_events[0]", BIG_EVENT),
]


@pytest.mark.parametrize(("field", "command"), BAD)
def test_a_bad_command_is_refused_by_its_field_and_the_task_is_tried_again(field: str, command: Command) -> None:
    life = Life.begin()
    life.do(update("accepted"))
    life.do(update("open"))
    life.code(accept("accepted"))
    life.do(signal())
    events = life.run.last_event_id
    # What ends the run must be the last command; here something follows it.
    commands = [command, step("after:1")] if field == "continue_workflow" else [command]
    rejection = life.code(*commands).rejection
    assert isinstance(rejection, InvalidField)
    assert str(rejection).startswith(f"commands[0].{field}"), rejection
    assert life.run.last_event_id == events
    assert life.run.workflow_task is not None
    assert life.run.workflow_task.failures == 1


def test_a_send_without_a_message_is_refused() -> None:
    life = Life.begin()
    command = send("1")
    command.send.ClearField("signal")
    rejection = life.code(command).rejection
    assert rejection is not None
    assert "send.message" in str(rejection)


def test_one_bad_command_leaves_the_good_ones_before_it_out_too() -> None:
    life = Life.begin()
    reply: Reply = life.code(step("read:1"), patch("p"), child("kid:1"), send("2"))
    assert reply.rejection is not None
    assert life.kinds() == ["workflow_started"]
    assert life.run.counters.steps == {}


def test_patches_of_a_run_are_limited() -> None:
    life = Life(limits=replace(Limits(), patches=2))
    life.do(StartRun(WorkflowSpec(workflow_type="order", task_queue="default"), "test"))
    rejection = life.code(patch("a"), patch("b"), patch("c")).rejection
    assert rejection is not None
    assert "at most 2 are allowed" in str(rejection)


def test_a_terminated_run_has_seen_what_it_had_seen() -> None:
    life = Life.begin()
    life.code()
    life.do(signal())
    life.do(Terminate("enough", "ann"))
    assert life.run.seen_event_id == 1
