"""Why: sentences out of facts, and what of them programs rely on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from google.protobuf.duration_pb2 import Duration

from romancy.v1 import wait_pb2 as why
from romancy.v1.channel_pb2 import CHANNEL_MODE_BROADCAST, CHANNEL_MODE_COMPETING
from romancy.v1.command_pb2 import Command
from romancy.v1.failure_pb2 import FAILURE_SOURCE_SERVICE, Failure
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_RUNNING

from romancy_service.core.limits import Limits
from romancy_service.core.task import WORKFLOW_TASK_ID, TaskKind
from romancy_service.core.triggers import FailWorkflowTask, RequestCancel
from romancy_service.core.why.facts import Facts, Holder, Serving, Undelivered
from romancy_service.core.why.place import raised_at
from romancy_service.core.why.waits import waits
from romancy_service.core.why.whole import is_long
from romancy_service.core.why.words import failure_text, span
from tests.core.life import T0, Life, fail, schedule, timer
from tests.core.talk import begun, child, update
from tests.core.test_channel import answered, join
from tests.core.test_subscription import subscribe

PAY = ("default", TaskKind.ACTIVITY, "pay")
OWN = 'Traceback:\n  File "/app/order.py", line 31, in order\n'


def facts(life: Life, after_ms: int = 0, **more: object) -> Facts:
    counts: dict[TaskKind, int] = {}
    for task in life.run.tasks.values():
        counts[task.kind] = counts.get(task.kind, 0) + 1
    return Facts(life.run, life.now_ms + after_ms, life.limits, counts, **more)  # type: ignore[arg-type]


def begin(*commands: object) -> Life:
    life = Life.begin()
    life.code(*commands)  # type: ignore[arg-type]
    return life


def test_an_open_run_always_waits_for_something() -> None:
    life = Life.begin()
    assert [wait.kind for wait in waits(facts(life))] == [why.WAIT_KIND_NO_WORKER]
    life.code()
    assert [wait.kind for wait in waits(facts(life))] == [why.WAIT_KIND_CONDITION]
    life.do(update("up-1"))
    life.code()
    assert [wait.kind for wait in waits(facts(life))] == [why.WAIT_KIND_UPDATE, why.WAIT_KIND_CONDITION]


def test_code_that_may_await_a_subscription_is_not_said_to_wait_for_no_event() -> None:
    life = begin(
        subscribe(1, "paid", False), join(2, mode=CHANNEL_MODE_BROADCAST), join(3, "shifts", CHANNEL_MODE_COMPETING)
    )
    for number in (2, 3):
        answered(life, number)
    life.code()
    condition, *_ = waits(facts(life))
    assert condition.kind == why.WAIT_KIND_CONDITION
    assert (
        "its code waits for events paid or messages of channel jobs, or for something that only" in condition.sentence
    )
    assert condition.sentence.endswith(": no activity or child is awaited")
    assert condition.remedy.startswith("what it subscribed to wakes it, and a signal or an update wakes it")
    many = begin(*(subscribe(number, f"paid{number}", False) for number in range(1, 8)))
    condition, *_ = waits(facts(many))
    assert "events paid5 or those of 2 more subscriptions, or for something" in condition.sentence
    condition, *_ = waits(facts(begin()))
    assert condition.sentence.endswith(": no activity, event or child is awaited")


def test_a_subscription_or_a_timeout_is_nothing_that_the_code_waits_for() -> None:
    life = Life.begin(run_timeout=Duration(seconds=60))
    life.code(subscribe(1, "paid", False))
    assert [wait.kind for wait in waits(facts(life))] == [
        why.WAIT_KIND_CONDITION,
        why.WAIT_KIND_TIMEOUT,
        why.WAIT_KIND_SUBSCRIPTION,
    ]


def test_what_was_asked_for_just_now_is_not_taken_for_delayed_or_tried_again() -> None:
    """What is decided has the clock's latest reading, who looks an earlier one."""
    life = Life.begin()
    assert [wait.kind for wait in waits(facts(life, -5))] == [why.WAIT_KIND_NO_WORKER]
    life.code(schedule("pay:1"))
    assert [wait.kind for wait in waits(facts(life, -5))] == [why.WAIT_KIND_NO_WORKER]


def test_who_was_asked_to_stop_is_named_also_before_its_code_has_seen_that() -> None:
    life = Life.begin()
    life.do(RequestCancel("too late", "ann"))
    said = {wait.kind: wait.sentence for wait in waits(facts(life))}
    assert said.keys() == {why.WAIT_KIND_NO_WORKER, why.WAIT_KIND_CANCELLATION}
    text = "it was asked to stop (cancelled by ann: too late); its code has something to see yet"
    assert said[why.WAIT_KIND_CANCELLATION] == text


def test_a_request_to_stop_waits_for_code_that_fails_and_why_says_so() -> None:
    life = Life.begin()
    fence = life.fence(life.run.tasks[WORKFLOW_TASK_ID])
    life.do(FailWorkflowTask(fence, Failure(message="no name", type="NameError")))
    life.do(RequestCancel("too late", "ann"))
    assert life.run.cancel_requested, "it is recorded, and reaches the code that is put right"
    said = {wait.kind: wait for wait in waits(facts(life))}[why.WAIT_KIND_CANCELLATION]
    text = "it was asked to stop (cancelled by ann: too late); its code fails, and sees that only when it is put right"
    assert said.sentence == text
    assert "deploy code that is put right, and it stops" in said.remedy
    assert "romancy workflow terminate" in said.remedy


def test_a_task_that_a_free_worker_is_about_to_get_is_no_trouble() -> None:
    life = begin(schedule("pay:1"))
    free = {PAY: Serving(workers=2, slots=20, busy=3)}
    (wait,) = waits(facts(life, serving=free))
    assert (wait.kind, wait.state) == (why.WAIT_KIND_HANDED_OUT, why.WAIT_STATE_WORKING)
    assert "is about to be given to one of 2 workers of queue default (3 of 20 slots are taken)" in wait.sentence


def test_where_the_tasks_of_workers_are_too_many_to_be_counted_they_count_as_busy() -> None:
    (wait,) = waits(facts(begin(schedule("pay:1")), 1_000, serving={PAY: Serving(workers=900, slots=9_000)}))
    assert wait.kind == why.WAIT_KIND_WORKERS_BUSY
    assert "waits for 1 s: each of the 900 workers of queue default with type pay is busy" in wait.sentence


def test_where_not_all_workers_were_looked_at_nobody_is_told_to_start_one() -> None:
    (wait,) = waits(facts(begin(schedule("pay:1")), all_workers=False))
    assert (wait.state, wait.remedy) == (why.WAIT_STATE_WAITING, "")
    assert "none of the workers that were looked at" in wait.sentence


@pytest.mark.parametrize(
    ("holder", "lost"),
    [
        (Holder("w", connected=True, lease_ms=T0 + 20_000), False),
        (Holder("w", connected=False, lease_ms=T0 + 20_000), True),
        (Holder("w", connected=True, lease_ms=T0), True),
        (None, True),
    ],
)
def test_a_task_is_with_a_worker_only_as_long_as_that_is_heard(holder: Holder | None, lost: bool) -> None:
    life = begin(schedule("pay:1"))
    task = life.task("pay:1")
    task.owner, task.leased_ms = "session", T0
    (wait,) = waits(facts(life, 1_000, holders={"session": holder} if holder is not None else {}))
    assert wait.kind == (why.WAIT_KIND_WORKER_LOST if lost else why.WAIT_KIND_ACTIVITY_RUNS)
    assert "session" not in wait.sentence, "what names a session is a secret"


def test_code_that_fails_is_in_trouble_until_it_gets_through() -> None:
    life = Life.begin()
    failure = Failure(message="no", type="NameError", stack_trace='File "/a/order.py", line 31, in order')
    for _ in range(5):
        task = life.run.tasks[WORKFLOW_TASK_ID]
        life.do(FailWorkflowTask(life.fence(task), failure))
    (wait,) = waits(facts(life, 4_000))
    text = "its code fails since 5 attempts (4 s): NameError: no at order.py:31; it is tried again in 12 s"
    assert wait.sentence == text
    life.run.tasks[WORKFLOW_TASK_ID].due_ms = life.now_ms
    free = {("default", TaskKind.WORKFLOW, "order"): Serving(workers=1, slots=1, busy=0)}
    assert [wait.kind for wait in waits(facts(life, serving=free))] == [why.WAIT_KIND_CODE_FAILS]
    assert [wait.kind for wait in waits(facts(life))] == [why.WAIT_KIND_NO_WORKER]


def test_code_that_did_what_would_be_another_thing_on_replay_is_to_be_put_right_not_undone() -> None:
    life = Life.begin()
    stack = OWN + '  File "/sdk/romancy/_guard.py", line 124, in _refuse_in_run\n'
    message = "workflow code called random.random() at order.py:31: use ctx.random()"
    failure = Failure(message=message, type="NonDeterminism", source=FAILURE_SOURCE_SERVICE, stack_trace=stack)
    life.do(FailWorkflowTask(life.fence(life.run.tasks[WORKFLOW_TASK_ID]), failure))
    (wait,) = waits(facts(life, 500))
    assert (wait.kind, wait.state) == (why.WAIT_KIND_CODE_FAILS, why.WAIT_STATE_BLOCKED)
    assert wait.sentence.startswith(f"its code fails since 1 attempt (0.5 s): NonDeterminism: {message}; ")
    assert "patched" not in wait.remedy


def limit(number: int, of_what: str) -> Command:
    started = timer(str(number), 60)
    started.start_timer.timeout_of = of_what
    return started


def test_a_timeout_stands_behind_what_it_is_the_timeout_of() -> None:
    life = begin(limit(1, "wait_event paid"), subscribe(1, "paid", order="7"))
    event, fires = waits(facts(life))
    assert (event.kind, fires.kind) == (why.WAIT_KIND_EVENT, why.WAIT_KIND_TIMER)
    assert fires.sentence.endswith(": the timeout of wait_event paid")
    assert (fires.type, fires.id) == ("wait_event paid", "1")


def test_a_condition_is_not_hidden_by_its_own_timeout() -> None:
    life = begin(limit(1, "wait_condition"))
    condition, fires = waits(facts(life))
    assert (condition.kind, fires.type) == (why.WAIT_KIND_CONDITION, "wait_condition")
    assert "a signal or an update wakes it" in condition.remedy
    assert [wait.kind for wait in waits(facts(begin(timer("1", 60))))] == [why.WAIT_KIND_TIMER], "the code sleeps"


def test_what_a_timer_is_the_timeout_of_has_a_limit() -> None:
    (wait,) = waits(facts(begin(limit(1, "x" * 256)), 500))
    assert wait.kind == why.WAIT_KIND_COMMANDS_REFUSED
    assert "start_timer.timeout_of: has 256 bytes" in wait.sentence


def test_a_child_that_nobody_says_is_open_is_said_to_be_open_without_its_status() -> None:
    life = begin(child("kid:1", workflow_id="junior"))
    life.do(begun(life, "kid:1"))
    life.code()
    open_children = {"junior": WORKFLOW_STATUS_RUNNING}
    assert "(workflow junior) is RUNNING" in waits(facts(life, children=open_children))[0].sentence
    unknown = waits(facts(life))[0]
    assert (unknown.sentence, unknown.workflow_id) == ("child kid:1 (workflow junior) is open", "junior")
    assert "romancy workflow why junior" in unknown.remedy


def test_a_large_errand_that_was_not_read_is_named_all_the_same() -> None:
    life = begin(child("kid:1", workflow_id="junior"), subscribe(1, "paid", order="7"))
    for task in life.run.tasks.values():
        task.errand = None
    said = {wait.kind: wait.sentence for wait in waits(facts(life))}
    assert said[why.WAIT_KIND_CHILD_STARTS].startswith("child kid:1 is to be started")
    assert said[why.WAIT_KIND_EVENT].startswith("waits for event paid with a certain order since")


def test_what_is_not_shown_is_counted() -> None:
    life = begin(timer("1", 60))
    more = replace(facts(life), counts={TaskKind.TIMER: 9_000, TaskKind.ACTIVITY: 1_000})
    last = waits(more)[-1]
    assert (last.kind, last.count) == (why.WAIT_KIND_MORE, 9_999)


def of_sink(life: Life, **fields: object) -> why.Wait:
    """What is said of events for a sink."""
    known: dict[str, object] = {"count": 1, "since_ms": T0, "position": 17, "error": "", "is_dead": False, **fields}
    (wait, _) = waits(facts(life, 60_000, undelivered=[Undelivered("shop", **known)]))  # type: ignore[arg-type]
    return wait


def test_events_that_are_not_delivered_are_named_with_the_next_try_and_the_last_error() -> None:
    life = begin()
    on_its_way = of_sink(life, due_ms=T0 + 60_000)
    assert (on_its_way.kind, on_its_way.state) == (why.WAIT_KIND_DELIVERY, why.WAIT_STATE_WORKING)
    assert on_its_way.sentence.startswith("1 event for sink shop is not delivered since 20")
    put_off = of_sink(life, count=3, due_ms=T0 + 72_000, attempts=2, error="answered 500")
    assert put_off.state == why.WAIT_STATE_TROUBLED
    assert put_off.sentence.startswith("3 events for sink shop are not delivered since 20")
    assert put_off.sentence.endswith("; the first one is tried again in 12 s (attempt 3) after answered 500")
    assert (put_off.type, put_off.count, put_off.attempt) == ("shop", 3, 3)
    assert (put_off.due.ToMilliseconds(), put_off.last_failure.message) == (T0 + 72_000, "answered 500")
    assert put_off.remedy.endswith("romancy outbox list --sink shop")
    tried = of_sink(life, due_ms=T0 + 70_000, is_tried=True, attempts=2, error="answered 500")
    assert tried.sentence.endswith("; the first one is being sent (attempt 3) after answered 500")
    behind = of_sink(life, due_ms=T0 + 60_000, is_behind=True)
    assert behind.sentence.endswith(" (1 min), behind those of a run before")
    left_alone = of_sink(life, due_ms=T0)
    assert left_alone.state == why.WAIT_STATE_TROUBLED
    assert "none was tried yet: the sink takes no more at a time, or cannot be reached" in left_alone.sentence


def test_dead_letters_are_named_with_why_and_what_can_be_done() -> None:
    life = begin()
    one = of_sink(life, is_dead=True, error="answered 410")
    assert (one.kind, one.state, one.id) == (why.WAIT_KIND_DEAD_LETTERS, why.WAIT_STATE_BLOCKED, "17")
    assert one.sentence == "1 event for sink shop is a dead letter since 1 min: answered 410"
    assert one.remedy == "mend the cause, then: romancy outbox retry 17 (or drop)"
    many = of_sink(life, is_dead=True, error="answered 410", count=10_000)
    assert many.sentence == "10000 or more events for sink shop are dead letters since 1 min: answered 410"
    assert many.remedy.endswith("; of the others: romancy outbox dead --workflow-id order-1")


def test_what_is_not_delivered_is_nothing_that_the_code_waits_for() -> None:
    sent = [Undelivered("shop", dead, 1, T0, 17, "") for dead in (True, False)]
    assert [wait.kind for wait in waits(facts(begin(), undelivered=sent))] == [
        why.WAIT_KIND_DEAD_LETTERS,
        why.WAIT_KIND_DELIVERY,
        why.WAIT_KIND_CONDITION,
    ]


def test_a_rollback_that_nothing_is_known_of_is_blocked_and_names_the_remedy() -> None:
    life = begin(schedule("pay:1", "refund"))
    life.completes("pay:1")
    life.code(fail())
    life.fails("undo/pay:1", non_retryable=True)
    (wait,) = waits(facts(life))
    assert (wait.kind, wait.state) == (why.WAIT_KIND_COMPENSATION_FAILED, why.WAIT_STATE_BLOCKED)
    assert "romancy workflow resolve" in wait.remedy


def test_a_history_is_long_by_events_or_by_bytes() -> None:
    life = begin(timer("1", 60))
    for limits, long in (
        (Limits(), False),
        (Limits(history_recur_events=2, history_warn_events=2), True),
        (Limits(history_recur_bytes=50, history_warn_bytes=50), True),
    ):
        assert is_long(life.run, limits) == long
        found = [wait.kind for wait in waits(replace(facts(life), limits=limits))]
        assert (why.WAIT_KIND_HISTORY in found) == long


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (-5, "0 s"),
        (999, "0.9 s"),
        (9_940, "9.9 s"),
        (12_999, "12 s"),
        (60_000, "1 min"),
        (125_000, "2 min 5 s"),
        (3_600_000, "1 h"),
        (11_100_000, "3 h 5 min"),
        (100 * 3_600_000, "4 d 4 h"),
    ],
)
def test_lengths_of_time_have_two_units_at_most(ms: int, text: str) -> None:
    assert span(ms) == text


@pytest.mark.parametrize(
    ("stack", "place"),
    [
        ('Traceback:\n  File "/app/a.py", line 7, in f\n  File "/app/order.py", line 31, in g\n', "order.py:31"),
        (f'{OWN}  File "/usr/lib/python3.11/random.py", line 9, in f\n', "order.py:31"),
        (f'{OWN}  File "/venv/lib/python3.11/site-packages/romancy/_guard.py", line 124, in f\n', "order.py:31"),
        (f'{OWN}  File "/venv/lib/python3.11/site-packages/httpx/_client.py", line 5, in f\n', "order.py:31"),
        (
            'File "/lib/python3/site-packages/shop/order.py", line 31, in f\n  File "/s/romancy/context.py", line 9',
            "order.py:31",
        ),
        ('File "/usr/lib/python3.11/json/decoder.py", line 3, in f\n', "decoder.py:3"),
        ("Error: no\n    at pay (/app/src/pay.ts:12:9)\n    at run (/app/src/main.ts:3:1)", "pay.ts:12"),
        ("java.lang.Error: no\n\tat io.shop.Pay.run(Pay.java:44)\n\tat io.shop.Main.main(Main.java:9)", "Pay.java:44"),
        ("main.pay(...)\n\t/app/pay.go:19 +0x1b\nmain.main()\n\t/app/main.go:7", "pay.go:19"),
        ("at Shop.Pay() in C:\\app\\Pay.cs:line 8", "Pay.cs:8"),
        ("", ""),
        ("nothing that is known", ""),
    ],
)
def test_the_place_of_an_error_is_read_from_stacks_of_many_languages(stack: str, place: str) -> None:
    assert raised_at(stack) == place


def test_a_failure_is_one_short_line() -> None:
    failure = Failure(message="a\nb  c" + "x" * 10_000, type="Error")
    text = failure_text(failure)
    assert text.startswith("Error: a b cxx")
    assert len(text) < 400
    assert failure_text(Failure()) == "a failure without a word"
