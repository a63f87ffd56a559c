"""The saga: what is undone, in which order, and when."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration

from romancy.v1.command_pb2 import COMPENSATE_WHEN_ALWAYS, Command
from romancy.v1.history_pb2 import (
    COMPENSATION_RESOLUTION_GIVE_UP,
    COMPENSATION_RESOLUTION_MARK_DONE,
    COMPENSATION_RESOLUTION_RETRY,
)
from romancy.v1.retry_pb2 import RetryPolicy
from romancy.v1.workflow_pb2 import (
    WORKFLOW_STATUS_CANCELLED,
    WORKFLOW_STATUS_COMPENSATING,
    WORKFLOW_STATUS_COMPLETED,
    WORKFLOW_STATUS_FAILED,
    WORKFLOW_STATUS_TERMINATED,
    WORKFLOW_STATUS_TIMED_OUT,
)

from romancy_service.core.rollback import NeedsHistory
from romancy_service.core.task import WORKFLOW_TASK_ID
from romancy_service.core.triggers import RequestCancel, ResolveCompensation, Terminate
from romancy_service.errors import CompensationNotFound, WorkflowClosed
from tests.core.life import CANCEL, Life, cancel_activity, compensate, complete, fail, register, schedule


def two_done() -> Life:
    life = Life.begin()
    life.code(schedule("reserve:1", "unreserve"), schedule("pay:1", "refund"))
    life.completes("reserve:1")
    life.completes("pay:1")
    return life


def test_a_failed_run_is_undone_newest_first() -> None:
    life = two_done()
    life.code(fail())
    assert life.run.status == WORKFLOW_STATUS_COMPENSATING
    life.completes("undo/pay:1")
    life.completes("undo/reserve:1")
    assert life.undone() == ["undo/pay:1", "undo/reserve:1"]
    assert life.run.status == WORKFLOW_STATUS_FAILED
    assert life.run.outcome is not None
    assert life.run.outcome.failure.message == "broken"


def test_the_order_is_that_of_closing_not_of_scheduling() -> None:
    life = Life.begin()
    life.code(schedule("reserve:1", "unreserve"), schedule("pay:1", "refund"))
    life.completes("pay:1")
    life.completes("reserve:1")
    life.code(fail())
    life.completes("undo/reserve:1")
    life.completes("undo/pay:1")
    assert life.undone() == ["undo/reserve:1", "undo/pay:1"]


def test_a_run_that_completes_is_not_undone() -> None:
    life = two_done()
    life.code(complete())
    assert life.run.status == WORKFLOW_STATUS_COMPLETED
    assert life.undone() == []


def test_a_run_without_anything_to_undo_fails_at_once() -> None:
    life = Life.begin()
    life.code(fail())
    assert life.kinds()[-2:] == ["rollback_started", "workflow_failed"]


def test_the_rollback_waits_for_open_activities() -> None:
    life = two_done()
    life.code(schedule("ship:1", "recall"))
    life.do(RequestCancel("", ""))
    life.code(CANCEL)
    assert life.run.status == WORKFLOW_STATUS_COMPENSATING
    assert life.undone() == []
    assert life.task("ship:1").cancel_requested
    life.completes("ship:1")
    assert life.undone() == ["undo/ship:1"]


def test_what_was_never_sent_is_not_undone() -> None:
    life = Life.begin()
    life.code(schedule("pay:1", "refund"), fail())
    life.due("a/pay:1")
    assert life.run.status == WORKFLOW_STATUS_FAILED
    assert life.undone() == []


def test_an_unknown_outcome_is_undone() -> None:
    life = Life.begin()
    life.code(schedule("pay:1", "refund"), schedule("other:1"))
    life.loses("pay:1")
    life.completes("other:1")
    life.code(fail())
    life.due("a/pay:1")
    assert life.undone() == ["undo/pay:1"]


def test_a_failure_in_own_words_is_not_undone() -> None:
    life = Life.begin()
    life.code(schedule("pay:1", "refund"))
    life.fails("pay:1", non_retryable=True)
    life.code(fail())
    assert life.run.status == WORKFLOW_STATUS_FAILED
    assert life.undone() == []


def test_a_failure_in_own_words_after_an_unknown_attempt_is_undone() -> None:
    life = Life.begin()
    life.code(schedule("pay:1", "refund"))
    life.loses("pay:1")
    life.fails("pay:1", non_retryable=True)
    life.code(fail())
    assert life.undone() == ["undo/pay:1"]


def test_compensate_always_undoes_a_failure_too() -> None:
    life = Life.begin()
    command: Command = schedule("pay:1", "refund")
    command.schedule_activity.compensation.when = COMPENSATE_WHEN_ALWAYS
    life.code(command)
    life.fails("pay:1", non_retryable=True)
    life.code(fail())
    assert life.undone() == ["undo/pay:1"]


def test_a_compensation_is_retried_for_ever_by_default() -> None:
    life = two_done()
    life.code(fail())
    for _ in range(50):
        life.fails("undo/pay:1")
    assert life.task("undo/pay:1").attempt == 51
    assert life.run.status == WORKFLOW_STATUS_COMPENSATING


def failed_refund() -> Life:
    life = two_done()
    life.code(fail())
    life.fails("undo/pay:1", non_retryable=True)
    life.completes("undo/reserve:1")
    return life


def test_a_compensation_that_failed_for_good_does_not_stop_the_others() -> None:
    life = failed_refund()
    assert life.undone() == ["undo/pay:1", "undo/reserve:1"]
    assert life.run.status == WORKFLOW_STATUS_COMPENSATING
    assert life.run.outcome is not None
    assert life.run.outcome.status == WORKFLOW_STATUS_FAILED


@pytest.mark.parametrize("resolution", [COMPENSATION_RESOLUTION_MARK_DONE, COMPENSATION_RESOLUTION_GIVE_UP])
def test_an_operator_closes_a_run_whose_compensation_failed(resolution: int) -> None:
    life = failed_refund()
    life.do(ResolveCompensation("undo/pay:1", resolution, "", ""))  # type: ignore[arg-type]
    assert life.run.status == WORKFLOW_STATUS_FAILED


def test_an_operator_has_a_failed_compensation_tried_again() -> None:
    life = failed_refund()
    life.do(ResolveCompensation("undo/pay:1", COMPENSATION_RESOLUTION_RETRY, "", ""))
    life.completes("undo/pay:1")
    assert life.run.status == WORKFLOW_STATUS_FAILED
    with pytest.raises(WorkflowClosed):
        life.do(ResolveCompensation("undo/pay:1", COMPENSATION_RESOLUTION_RETRY, "", ""))


def test_only_failed_compensations_can_be_resolved() -> None:
    life = failed_refund()
    with pytest.raises(CompensationNotFound, match="undo/reserve:1"):
        life.do(ResolveCompensation("undo/reserve:1", COMPENSATION_RESOLUTION_RETRY, "", ""))


def test_cancel_during_a_rollback_changes_nothing() -> None:
    life = two_done()
    life.code(fail())
    events = len(life.history)
    life.do(RequestCancel("", ""))
    assert len(life.history) == events


def test_a_cancelled_run_ends_as_cancelled_with_who_and_why() -> None:
    life = two_done()
    life.do(RequestCancel("too late", "ann"))
    life.code(CANCEL)
    life.completes("undo/pay:1")
    life.completes("undo/reserve:1")
    assert life.run.status == WORKFLOW_STATUS_CANCELLED
    assert life.run.outcome is not None
    assert "ann" in life.run.outcome.failure.message
    assert "too late" in life.run.outcome.failure.message


def test_terminate_undoes_nothing_and_says_what_is_left() -> None:
    life = two_done()
    reply = life.do(Terminate("", ""))
    assert reply.not_undone == ["pay:1", "reserve:1"]
    assert life.run.status == WORKFLOW_STATUS_TERMINATED
    assert not life.run.tasks


def test_a_run_timeout_of_nothing_is_none() -> None:
    assert not Life.begin(run_timeout=Duration()).run.tasks.keys() - {WORKFLOW_TASK_ID}


def test_a_run_timeout_undoes_what_was_done() -> None:

    life = Life.begin(run_timeout=Duration(seconds=60))
    life.code(schedule("pay:1", "refund"))
    life.completes("pay:1")
    life.due("d")
    life.completes("undo/pay:1")
    assert life.run.status == WORKFLOW_STATUS_TIMED_OUT


def test_a_registered_compensation_takes_its_place_in_the_order() -> None:
    life = Life.begin()
    life.code(schedule("pay:1", "refund"))
    life.completes("pay:1")
    life.code(register("tell"), fail())
    name = life.undone()[0]
    assert name.startswith("undo/#")
    life.completes(name)
    life.completes("undo/pay:1")
    assert life.run.status == WORKFLOW_STATUS_FAILED


def test_compensate_undoes_what_is_registered_now_and_goes_on() -> None:
    life = two_done()
    life.code(compensate("1"))
    life.completes("undo/pay:1")
    life.completes("undo/reserve:1")
    assert life.kinds()[-1] == "compensate_finished"
    life.code(fail())
    assert life.run.status == WORKFLOW_STATUS_FAILED
    assert life.undone() == ["undo/pay:1", "undo/reserve:1"]


def test_a_cancelled_activity_whose_worker_was_lost_is_undone() -> None:
    life = Life.begin()
    life.code(schedule("pay:1", "refund"), cancel_activity("pay:1"))
    life.loses("pay:1")
    life.code(fail())
    assert life.undone() == ["undo/pay:1"]


@pytest.mark.parametrize(("nothing_done", "undone"), [(True, []), (False, ["undo/pay:1"])])
def test_an_activity_that_stopped_when_asked_is_undone_unless_it_says_that_it_did_nothing(
    nothing_done: bool, undone: list[str]
) -> None:
    life = Life.begin()
    life.code(schedule("pay:1", "refund"), cancel_activity("pay:1"))
    life.stops("pay:1", nothing_done=nothing_done)
    life.code(fail())
    assert life.undone() == undone


def test_a_run_read_without_its_history_asks_for_it_before_it_rolls_back() -> None:
    life = two_done()
    life.run.saga = None
    with pytest.raises(NeedsHistory):
        life.code(fail())


def test_an_activity_with_a_policy_of_its_own_for_its_compensation() -> None:
    life = Life.begin()
    command = schedule("pay:1", "refund")
    command.schedule_activity.compensation.retry_policy.CopyFrom(RetryPolicy(max_attempts=2))
    life.code(command)
    life.completes("pay:1")
    life.code(fail())
    life.fails("undo/pay:1")
    life.fails("undo/pay:1")
    assert life.run.saga is not None
    assert list(life.run.saga.failed) == ["undo/pay:1"]


def test_a_worker_that_undoes_holds_the_run_up_to_what_it_is_told_also_when_there_is_nothing_to_undo() -> None:
    life = Life.begin()
    reply = life.code(compensate("1"))
    assert life.kinds()[-1] == "compensate_finished"
    assert reply.last_event_id == life.run.last_event_id == life.run.sticky_event_id
