"""Who is asked to stop when a run is, and who is said to have answered."""

from __future__ import annotations

from romancy.v1.command_pb2 import Command, StartChild
from romancy.v1.history_pb2 import Author
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import WorkflowSpec

from romancy_service.core.run import Run
from romancy_service.core.task import ELSEWHERE, Fence
from romancy_service.core.triggers import CompleteActivity, CompleteWorkflowTask, RequestCancel
from tests.core.life import CANCEL, T0, Life, complete, schedule, timer


def asked(run: Run) -> set[str]:
    """The tasks that are asked to stop."""
    return {task_id for task_id, task in run.tasks.items() if task.cancel_requested}


def test_a_request_to_cancel_leaves_alone_what_is_shielded_and_the_end_of_the_code_does_not() -> None:
    life = Life.begin()
    child = Command(start_child=StartChild(child_id="k:1", spec=WorkflowSpec(workflow_type="k"), shielded=True))
    life.code(schedule("pay:1", shielded=True), schedule("ship:1"), child)
    life.do(RequestCancel("snow", "ann"))
    assert asked(life.run) == {"a/ship:1"}
    assert life.run.counters.cancellation == ("snow", "ann")
    life.code(CANCEL)
    assert asked(life.run) == {"a/ship:1", "a/pay:1", "h/k:1"}


def test_events_say_who_answered_once_for_each_task() -> None:
    life = Life.begin()
    us, them = Author(name="worker-1", build_id="b1"), Author(name="ann")
    code = Fence("w", 1, "session", 1)
    life.do(CompleteWorkflowTask(code, 1, [schedule("pay:1"), timer("1", 5)], holds_run=True, author=us))
    life.do(CompleteActivity(Fence("a/pay:1", 1, ELSEWHERE, 1), T0, result=Payload(json="1"), author=them))
    life.do(CompleteWorkflowTask(code, life.run.last_event_id, [complete()], holds_run=True, author=us))
    assert [event.author for event in life.history] == [Author(), us, Author(), them, us]
