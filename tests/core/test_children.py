"""Children and messages, as the history of the run that asked for them sees them."""

from __future__ import annotations

import pytest

from romancy.v1.command_pb2 import (
    PARENT_CLOSE_POLICY_ABANDON,
    PARENT_CLOSE_POLICY_CANCEL,
    PARENT_CLOSE_POLICY_TERMINATE,
    ParentClosePolicy,
)
from romancy.v1.failure_pb2 import Failure
from romancy.v1.history_pb2 import Parent
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import (
    WORKFLOW_STATUS_CANCELLED,
    WORKFLOW_STATUS_COMPENSATING,
    WORKFLOW_STATUS_FAILED,
    WorkflowOutcome,
    WorkflowSpec,
)

from romancy_service.core import children
from romancy_service.core.task import NEVER_MS, REPORT_TASK_ID, TaskKind
from romancy_service.core.triggers import CompleteActivity, RequestCancel, StartRun, Terminate
from romancy_service.errors import StaleTask
from tests.core.life import CANCEL, Life, complete, fail, schedule
from tests.core.talk import NO, begun, cancel_child, child, ended, finished, send, send_cancel, sent, signal, told

POLICIES = [PARENT_CLOSE_POLICY_CANCEL, PARENT_CLOSE_POLICY_TERMINATE, PARENT_CLOSE_POLICY_ABANDON]
STOPPED = WorkflowOutcome(status=WORKFLOW_STATUS_CANCELLED, failure=Failure(message="stopped"))


def with_child(policy: ParentClosePolicy.ValueType = PARENT_CLOSE_POLICY_CANCEL, *, opened: bool = True) -> Life:
    """A run with one child."""
    life = Life.begin()
    life.code(child("kid:1", parent_close_policy=policy))
    if opened:
        life.do(begun(life, "kid:1"))
        life.code()
    return life


def state_of(life: Life, child_id: str = "kid:1") -> int:
    return life.run.tasks[f"h/{child_id}"].attempt


def test_a_child_is_an_errand_until_it_is_open_and_a_row_until_its_end_is_known() -> None:
    life = with_child(opened=False)
    task = life.run.tasks["h/kid:1"]
    assert (task.kind, task.attempt, task.due_ms) == (TaskKind.CHILD, children.START, life.now_ms)
    life.do(begun(life, "kid:1"))
    assert (task.attempt, task.due_ms) == (children.OPEN, NEVER_MS)
    life.do(ended("kid:1"))
    assert "h/kid:1" not in life.run.tasks
    assert [event.WhichOneof("attributes") for event in life.run.unseen] == ["child_started", "child_closed"]


def test_a_child_without_an_id_and_a_queue_gets_its_parents_queue_and_an_id_of_its_own() -> None:
    life = with_child(opened=False)
    command = life.history[-1].child_requested.command
    assert (command.workflow_id, command.spec.task_queue) == ("run-1/kid:1", "default")


def test_a_child_that_cannot_be_started_is_closed_by_that() -> None:
    life = with_child(opened=False)
    life.do(begun(life, "kid:1", NO))
    assert life.history[-1].child_start_failed.failure == NO
    assert "h/kid:1" not in life.run.tasks


def test_a_start_that_is_reported_twice_counts_once() -> None:
    life = with_child(opened=False)
    twice = begun(life, "kid:1")
    life.do(twice)
    with pytest.raises(StaleTask):
        life.do(twice)


def test_an_end_that_overtakes_its_start_records_both() -> None:
    life = with_child(opened=False)
    start = begun(life, "kid:1")
    life.do(ended("kid:1"))
    assert life.kinds()[-2:] == ["child_started", "child_closed"]
    with pytest.raises(StaleTask):
        life.do(start)


def test_an_end_that_is_reported_twice_counts_once() -> None:
    life = with_child()
    life.do(ended("kid:1"))
    with pytest.raises(StaleTask, match="its end is known"):
        life.do(ended("kid:1"))


def test_a_child_that_is_cancelled_before_it_is_open_is_told_when_it_is() -> None:
    life = with_child(opened=False)
    life.do(signal())
    life.code(cancel_child("kid:1"))
    assert state_of(life) == children.START
    life.do(begun(life, "kid:1"))
    assert life.run.tasks["h/kid:1"].due_ms == life.now_ms
    telling = told(life, "kid:1")
    life.do(telling)
    assert life.run.tasks["h/kid:1"].due_ms == NEVER_MS
    with pytest.raises(StaleTask, match="told before"):
        life.do(telling)


def test_cancelling_a_child_that_is_closed_already_is_recorded_and_does_nothing() -> None:
    life = with_child()
    life.do(signal())
    seen = life.run.last_event_id
    life.do(ended("kid:1"))
    life.code(cancel_child("kid:1"), seen=seen)
    assert life.kinds()[-1] == "child_cancel_requested"
    assert "h/kid:1" not in life.run.tasks


def test_a_child_is_asked_to_stop_once() -> None:
    life = with_child()
    life.do(signal())
    life.code(cancel_child("kid:1"), cancel_child("kid:1"))
    life.do(told(life, "kid:1"))
    life.do(RequestCancel("", "ann"))
    assert life.run.tasks["h/kid:1"].due_ms == NEVER_MS


def test_cancelling_the_parent_asks_its_children_to_stop_and_waits_for_them() -> None:
    life = with_child()
    life.do(RequestCancel("enough", "ann"))
    assert life.run.tasks["h/kid:1"].cancel_requested
    life.code(CANCEL)
    assert life.run.status == WORKFLOW_STATUS_COMPENSATING
    life.do(ended("kid:1", STOPPED))
    assert life.run.status == WORKFLOW_STATUS_CANCELLED


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("opened", [False, True])
def test_what_becomes_of_a_child_when_its_parent_completes(policy: ParentClosePolicy.ValueType, opened: bool) -> None:
    life = with_child(policy, opened=opened)
    life.do(signal())
    life.code(complete())
    if policy == PARENT_CLOSE_POLICY_ABANDON:
        # One that is not started yet is started all the same; one that is open is let go.
        assert ("h/kid:1" in life.run.tasks) is not opened
        if not opened:
            assert state_of(life) == children.START
            life.do(begun(life, "kid:1"))
    else:
        assert state_of(life) == (children.CLOSE if opened else children.PREVENT)
        life.do(finished(life, "h/kid:1"))
    assert not life.run.tasks


@pytest.mark.parametrize("policy", POLICIES)
def test_what_becomes_of_a_child_that_ends_at_the_same_time_as_its_parent(policy: ParentClosePolicy.ValueType) -> None:
    life = with_child(policy)
    life.do(signal())
    life.code(complete())
    events = life.run.last_event_id
    if policy == PARENT_CLOSE_POLICY_ABANDON:
        with pytest.raises(StaleTask):
            life.do(ended("kid:1"))
    else:
        life.do(ended("kid:1"))  # there is nobody to close any more
    assert not life.run.tasks
    assert life.run.last_event_id == events, "of a closed run nothing is recorded"


def test_a_child_whose_start_is_not_known_stays_due_since_it_was_asked_for_when_its_parent_closes() -> None:
    life = with_child(opened=False)
    asked_ms = life.run.tasks["h/kid:1"].due_ms
    life.now_ms += 86_400_000
    life.do(Terminate("enough", "ann"))
    assert state_of(life) == children.PREVENT
    assert life.run.tasks["h/kid:1"].due_ms == asked_ms < life.now_ms


def test_terminating_the_parent_closes_its_children_by_their_policies() -> None:
    life = Life.begin()
    life.code(
        child("kid:1", parent_close_policy=PARENT_CLOSE_POLICY_TERMINATE),
        child("kid:2", parent_close_policy=PARENT_CLOSE_POLICY_ABANDON),
    )
    life.do(begun(life, "kid:2"))
    life.do(Terminate("enough", "ann"))
    assert list(life.run.tasks) == ["h/kid:1"]
    assert state_of(life) == children.PREVENT


def test_a_rollback_does_not_wait_for_an_abandoned_child() -> None:
    life = with_child(PARENT_CLOSE_POLICY_ABANDON)
    life.do(signal())
    life.code(fail())
    assert life.run.status == WORKFLOW_STATUS_FAILED
    assert not life.run.tasks


def test_an_abandoned_child_that_starts_while_its_parent_is_undone_is_let_go() -> None:
    life = Life.begin()
    life.code(schedule("pay:1"), child("kid:1", parent_close_policy=PARENT_CLOSE_POLICY_ABANDON))
    life.do(signal())
    life.code(fail())
    assert life.run.status == WORKFLOW_STATUS_COMPENSATING
    life.do(begun(life, "kid:1"))
    assert list(life.run.tasks) == ["a/pay:1"]


def test_a_completed_child_is_undone_in_its_turn_and_one_that_failed_is_not() -> None:
    life = Life.begin()
    life.code(child("kid:1", "unkid"), schedule("pay:1", "refund"), child("kid:2", "unkid"), child("kid:3", "unkid"))
    for child_id in ("kid:1", "kid:2", "kid:3"):
        life.do(begun(life, child_id))
    life.do(ended("kid:3"))
    life.completes("pay:1")
    life.do(ended("kid:1"))
    life.do(ended("kid:2", STOPPED))
    life.code(fail())
    for name in ("undo-child/kid:1", "undo/pay:1", "undo-child/kid:3"):
        assert life.undone()[-1] == name
        task = life.run.tasks[f"c/{name}"]
        life.do(CompleteActivity(life.fence(task), life.now_ms, result=Payload(json="null")))
    assert life.run.status == WORKFLOW_STATUS_FAILED


def test_terminating_names_children_that_are_not_undone() -> None:
    life = Life.begin()
    life.code(child("kid:1", "unkid"), child("kid:2", "unkid"), child("kid:3"))
    life.do(begun(life, "kid:1"))
    life.do(ended("kid:1"))
    assert life.do(Terminate("enough", "ann")).not_undone == ["kid:2", "kid:1"]


def test_messages_are_done_in_the_order_in_which_they_were_asked_for() -> None:
    life = Life.begin()
    life.code(send("1"), send_cancel("2"), child("kid:1"), send("3"))
    order = sorted((task for task in life.run.tasks.values() if task.errand), key=lambda task: task.scheduled_ms)
    assert [task.task_id for task in order] == ["s/1", "s/2", "h/kid:1", "s/3"]


def test_a_message_that_could_not_be_delivered_is_answered_by_why() -> None:
    life = Life.begin()
    life.code(send("1"), send("2"))
    life.do(sent(life, "2"))
    life.do(sent(life, "1", NO))
    assert [event.send_finished.failure.type for event in life.run.unseen] == ["", "Refused"]
    with pytest.raises(StaleTask):
        life.do(sent(life, "1"))


def test_messages_of_a_run_that_closed_are_still_delivered_and_nothing_is_recorded_of_it() -> None:
    life = Life.begin()
    life.code(send("1"), complete())
    assert list(life.run.tasks) == ["s/1"]
    events = life.run.last_event_id
    life.do(sent(life, "1"))
    assert not life.run.tasks
    assert life.run.last_event_id == events


def test_an_errand_of_a_run_that_is_open_cannot_just_be_dropped() -> None:
    life = with_child()
    with pytest.raises(StaleTask, match="the run is open"):
        life.do(finished(life, "h/kid:1"))


def test_a_child_that_ends_has_its_end_to_report_and_nothing_else() -> None:
    life = Life()
    parent = Parent(workflow_id="boss", run_id="boss-1", child_id="order:1")
    life.do(StartRun(WorkflowSpec(workflow_type="order", task_queue="default"), "test", parent=parent))
    life.code(complete())
    assert list(life.run.tasks) == [REPORT_TASK_ID]
    life.do(finished(life, REPORT_TASK_ID))
    assert not life.run.tasks
