"""Why: each situation in which a run can wait or be blocked, brought about through the service, and what is said of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import update
from structlog.testing import capture_logs

from romancy.v1 import wait_pb2 as why
from romancy.v1.channel_pb2 import CHANNEL_MODE_BROADCAST
from romancy.v1.command_pb2 import Command, SendEvent
from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.failure_pb2 import FAILURE_SOURCE_SERVICE, Failure
from romancy.v1.history_pb2 import COMPENSATION_RESOLUTION_MARK_DONE
from romancy.v1.outbox_service_pb2 import SetSinkRequest
from romancy.v1.payload_pb2 import Payload
from romancy.v1.retry_pb2 import RetryPolicy
from romancy.v1.wait_pb2 import WAIT_STATE_BLOCKED, WAIT_STATE_TROUBLED, WAIT_STATE_WAITING, WAIT_STATE_WORKING, Wait
from romancy.v1.worker_service_pb2 import (
    ActivityCompletion,
    ActivityHeartbeat,
    ConnectRequest,
    WorkflowTaskCompletion,
)
from romancy.v1.workflow_service_pb2 import (
    UPDATE_STAGE_RECEIVED,
    CountWorkflowsRequest,
    ListWorkflowsRequest,
    ResolveCompensationRequest,
    WorkflowFilter,
)

from romancy_service.courier import Courier
from romancy_service.store.tables import tasks
from tests.core.life import cancel_activity, compensate, complete, fail, schedule, timer
from tests.core.talk import accept, cancel_child, child, recur, send
from tests.core.test_channel import join, receive
from tests.core.test_subscription import subscribe
from tests.service.cluster import QUICK, Tenant, cluster, seconds, until
from tests.service.scripted_worker import ScriptedWorker
from tests.service.sink import sink

SLOW_RETRY = RetryPolicy(initial_interval=seconds(60), backoff_coefficient=1, jitter=0)
NAME_ERROR = Failure(
    message="name 'ordr' is not defined",
    type="NameError",
    stack_trace='Traceback:\n  File "/app/lib.py", line 7, in call\n  File "/app/order.py", line 31, in order\n',
)


async def begin(
    tenant: Tenant, *commands: Command, fields: dict[str, object] | None = None, **said: object
) -> tuple[ScriptedWorker, str]:
    """A run whose code asked for these, and its worker."""
    worker = await tenant.worker(**said)
    run_id = (await tenant.start("order-1", **fields or {})).run_id
    await worker.command(await worker.workflow_task(), *commands)
    return worker, run_id


async def told(tenant: Tenant, run_id: str, kind: why.WaitKind.ValueType, text: str = "") -> Wait:
    """What is said of that kind, once it is, and with that text."""
    found: list[Wait] = []

    async def there() -> bool:
        waits = (await tenant.get(run_id)).waits
        found[:] = [wait for wait in waits if wait.kind == kind and text in wait.sentence]
        return bool(found)

    await until(there, why.WaitKind.Name(kind))
    return found[0]


async def kinds(tenant: Tenant, run_id: str) -> list[str]:
    waits = (await tenant.get(run_id)).waits
    return [why.WaitKind.Name(wait.kind).removeprefix("WAIT_KIND_") for wait in waits]


# What the code asked for -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """What the code asked for, and what is said of it."""

    commands: tuple[Command, ...]
    kind: why.WaitKind.ValueType
    sentence: str
    """Parts of it, with … between."""
    id: str = ""
    type: str = ""


ASKED = {
    "timer": Asked((timer("1", 3_600),), why.WAIT_KIND_TIMER, "timer 1 fires in …at 20", "1"),
    "event": Asked(
        (subscribe(1, "payment.completed", data__order="7"),),
        why.WAIT_KIND_EVENT,
        "waits for event payment.completed with data.order=7 since 20…",
        "1",
        "payment.completed",
    ),
    "all events": Asked(
        (subscribe(1, "paid", False),),
        why.WAIT_KIND_SUBSCRIPTION,
        "events paid are kept for its code since 20",
        "1",
        "paid",
    ),
    "a message": Asked(
        (join(1), receive(2)), why.WAIT_KIND_MESSAGE, "waits for a message of channel jobs since 20", "2", "jobs"
    ),
    "all messages": Asked(
        (join(1, mode=CHANNEL_MODE_BROADCAST),),
        why.WAIT_KIND_SUBSCRIPTION,
        "messages of channel jobs are kept for its code (broadcast) since 20",
        "1",
        "jobs",
    ),
    "a condition": Asked((), why.WAIT_KIND_CONDITION, "its code waits for something that only the code knows…since 20"),
    "a child": Asked(
        (child("kid:1", workflow_id="junior"),),
        why.WAIT_KIND_CHILD,
        "child kid:1 (workflow junior) is RUNNING",
        "kid:1",
        "kid",
    ),
    "a child that stops": Asked(
        (child("kid:1", workflow_id="junior"), cancel_child("kid:1")),
        why.WAIT_KIND_CHILD_STOPS,
        "child kid:1 (workflow junior) was asked to stop and is RUNNING",
        "kid:1",
        "kid",
    ),
}


@pytest.mark.parametrize("name", ASKED)
async def test_what_the_code_waits_for_is_said(tenant: Tenant, name: str) -> None:
    asked = ASKED[name]
    _, run_id = await begin(tenant, *asked.commands)
    first, *parts = asked.sentence.split("…")
    wait = await told(tenant, run_id, asked.kind, first)
    assert wait.sentence.startswith(first)
    assert all(part in wait.sentence for part in parts), wait.sentence
    assert (wait.state, wait.id, wait.type) == (WAIT_STATE_WAITING, asked.id, asked.type)


async def test_the_values_of_an_event_and_the_times_are_there_for_programs(tenant: Tenant) -> None:
    _, run_id = await begin(tenant, subscribe(1, "paid", data__order="7"), timer("1", 3_600))
    shown = await tenant.get(run_id)
    fires, event = shown.waits
    assert (dict(event.where), event.HasField("since")) == ({"data.order": "7"}, True)
    assert fires.due == shown.timers[0].fire_time


# Work ----------------------------------------------------------------------------------------------------------------


async def test_nobody_was_ever_seen_that_has_the_type(tenant: Tenant) -> None:
    run_id = (await tenant.start("order-1")).run_id
    wait = await told(tenant, run_id, why.WAIT_KIND_NO_WORKER)
    assert "no worker of queue queue has type order, none was seen in the last 30 d" in wait.sentence
    assert (wait.state, wait.type, wait.task_queue) == (WAIT_STATE_BLOCKED, "order", "queue")
    assert "start a worker of queue queue that has order" in wait.remedy


async def test_who_had_a_type_last_is_remembered_and_when(tenant: Tenant) -> None:
    old = await tenant.worker(workflows=[], activities=["pay"], worker_id="old")
    await old.goodbye()
    last = await tenant.worker(workflows=[], activities=["pay"], worker_id="payer-7")
    before_ms = tenant.cluster.replicas[0].node.clock.now_ms()
    await last.goodbye()
    _, run_id = await begin(tenant, schedule("pay:1"), activities=["other"])
    wait = await told(tenant, run_id, why.WAIT_KIND_NO_WORKER, "payer-7")
    assert wait.sentence.startswith("activity pay:1 (attempt 1) waits for ")
    assert "no worker of queue queue has type pay, last seen at 20" in wait.sentence
    assert wait.worker_id == "payer-7"
    assert wait.last_served.ToMilliseconds() >= before_ms - 1_000


async def test_of_a_worker_that_is_gone_just_now_it_is_said_at_once(tenant: Tenant) -> None:
    worker = await tenant.worker(workflows=[], activities=["pay"], worker_id="gone-1")
    before_ms = tenant.cluster.replicas[0].node.clock.now_ms()
    coder, run_id = await begin(tenant, schedule("pay:1"), activities=["other"])
    await worker.complete(await worker.activity())
    await worker.cut()
    await coder.command(await coder.workflow_task(), schedule("pay:2"))
    wait = await told(tenant, run_id, why.WAIT_KIND_NO_WORKER)
    assert "no worker of queue queue has type pay, last seen at 20" in wait.sentence
    assert wait.worker_id == "gone-1"
    assert wait.last_served.ToMilliseconds() >= before_ms - 1_000


async def test_of_a_worker_that_was_lost_it_is_remembered_too(tenant: Tenant) -> None:
    lost = await tenant.worker(workflows=[], activities=["pay"], worker_id="lost-1")
    _, run_id = await begin(tenant, schedule("pay:1"), activities=["other"])
    await lost.activity()
    await lost.cut()
    await told(tenant, run_id, why.WAIT_KIND_NO_WORKER, "(attempt 2)")
    store, clock = tenant.cluster.store, tenant.cluster.replicas[0].node.clock

    async def forgotten() -> bool:
        return bool(await store.expire_sessions(clock.now_ms())) or "lost-1" in str(await tenant.get(run_id))

    await until(forgotten, "the session is forgotten")
    wait = await told(tenant, run_id, why.WAIT_KIND_NO_WORKER, "lost-1")
    assert wait.last_served.ToMilliseconds() <= clock.now_ms()


async def test_what_finds_no_worker_in_time_says_when_it_fails(tenant: Tenant) -> None:
    late = schedule("pay:1", schedule_to_start_timeout=seconds(630))
    _, run_id = await begin(tenant, late, activities=["other"])
    wait = await told(tenant, run_id, why.WAIT_KIND_NO_WORKER)
    assert "; it fails if no worker takes it in 10 min" in wait.sentence
    assert wait.HasField("due")


async def test_all_that_have_the_type_are_busy(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant, schedule("pay:1"), schedule("pay:2"), activity_slots=1)
    taken = await worker.activity()
    wait = await told(tenant, run_id, why.WAIT_KIND_WORKERS_BUSY)
    assert "the only worker of queue queue with type pay is busy (1 of 1 slots)" in wait.sentence
    assert (wait.state, wait.slots) == (WAIT_STATE_WAITING, 1)
    assert {wait.id, taken.activity_id} == {"pay:1", "pay:2"}
    await tenant.worker(workflows=[], activities=["pay"], activity_slots=1)
    await worker.complete(taken)
    await told(tenant, run_id, why.WAIT_KIND_ACTIVITY_RUNS)


async def test_all_that_have_the_type_are_leaving(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant, schedule("pay:1"), schedule("pay:2"), activity_slots=1)
    await worker.activity()
    await worker.drain()
    wait = await told(tenant, run_id, why.WAIT_KIND_WORKERS_LEAVING)
    assert "the only worker of queue queue with type pay is leaving, and takes nothing more" in wait.sentence
    assert wait.state == WAIT_STATE_BLOCKED


async def test_a_worker_that_is_not_heard_has_some_time_to_come_back(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant, schedule("pay:1"))
    await worker.activity()
    # Of several that end at once the leases are kept: there is time to look.
    others = [await tenant.worker(workflows=[], activities=["x"]) for _ in range(6)]
    await asyncio.gather(worker.cut(), *(other.cut() for other in others))
    wait = await told(tenant, run_id, why.WAIT_KIND_WORKER_LOST)
    assert "activity pay:1 (attempt 1) is with worker worker, which is not heard any more" in wait.sentence
    assert (wait.state, wait.worker_id) == (WAIT_STATE_TROUBLED, "worker")
    assert wait.due.ToMilliseconds() > wait.since.ToMilliseconds()


async def test_the_code_runs(tenant: Tenant) -> None:
    worker = await tenant.worker(worker_id="w-1")
    run_id = (await tenant.start("order-1")).run_id
    task = await worker.workflow_task()
    wait = await told(tenant, run_id, why.WAIT_KIND_CODE_RUNS)
    assert wait.sentence.startswith("its code runs on worker w-1 for ")
    assert (wait.state, wait.worker_id) == (WAIT_STATE_WORKING, "w-1")
    await worker.command(task)


FAILURES = {
    "broken": (NAME_ERROR, why.WAIT_KIND_CODE_FAILS, "its code fails since 1 attempt (…): NameError: …at order.py:31"),
    "diverged": (
        Failure(message="event 2 recorded reserve:1, the code asks for pay:1", type="Divergence"),
        why.WAIT_KIND_CODE_DIVERGES,
        "its code does not fit its history since 1 attempt (…): Divergence: event 2 recorded reserve:1, the code asks for",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_code_that_does_not_get_through_is_shown_with_place_and_remedy(tenant: Tenant, name: str) -> None:
    failure, kind, sentence = FAILURES[name]
    worker = await tenant.worker()
    run_id = (await tenant.start("order-1")).run_id
    task = await worker.workflow_task()
    await worker.answer(WorkflowTaskCompletion(token=task.token, seen_event_id=1, failure=failure))
    wait = await told(tenant, run_id, kind)
    assert all(part in wait.sentence for part in sentence.split("…")), wait.sentence
    assert "deploy code" in wait.remedy
    assert (wait.state, wait.last_failure) == (WAIT_STATE_BLOCKED, failure)
    assert wait.HasField("since")
    again = await worker.workflow_task()
    assert "tries it again since" in (await told(tenant, run_id, kind, "worker worker tries")).sentence
    await worker.command(again)


async def test_what_the_code_asked_for_is_refused(tenant: Tenant) -> None:
    _, run_id = await begin(tenant, schedule("pay:7"))
    wait = await told(tenant, run_id, why.WAIT_KIND_COMMANDS_REFUSED)
    assert wait.sentence.startswith("what its code asked for was refused since 1 attempt (")
    assert "): INVALID_FIELD: " in wait.sentence
    assert wait.last_failure.source == FAILURE_SOURCE_SERVICE


async def test_the_code_is_lost_again_and_again(tenant: Tenant) -> None:
    run_id = (await tenant.start("order-1")).run_id
    for _ in range(3):
        worker = await tenant.worker()
        await worker.workflow_task()
        await worker.goodbye()
    await tenant.worker()
    wait = await told(tenant, run_id, why.WAIT_KIND_CODE_FAILS)
    assert "its code does not get through: 3 times its worker was lost" in wait.sentence
    assert "belongs into an activity" in wait.remedy


async def test_an_activity_runs_with_its_progress(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant, schedule("pay:1", heartbeat_timeout=seconds(60)))
    task = await worker.activity()
    beat = ActivityHeartbeat(token=task.token, details=Payload(json='{"rows": 7}'))
    await worker.send(ConnectRequest(activity_heartbeats=[beat]))
    wait = await told(tenant, run_id, why.WAIT_KIND_ACTIVITY_RUNS, "progress")
    assert wait.sentence.startswith("activity pay:1 (attempt 1) runs on worker worker for ")
    assert 'ago, progress {"rows": 7}; unless it is heard it times out in ' in wait.sentence
    assert (wait.state, wait.progress, wait.HasField("heartbeat_time")) == (WAIT_STATE_WORKING, '{"rows": 7}', True)


async def test_an_activity_is_tried_again_after_its_failure(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant, schedule("pay:1", retry_policy=SLOW_RETRY))
    await worker.report(ActivityCompletion(token=(await worker.activity()).token, failure=NAME_ERROR))
    wait = await told(tenant, run_id, why.WAIT_KIND_ACTIVITY_RETRIES)
    assert wait.sentence.startswith("activity pay:1 is tried again in ")
    assert "(attempt 2) after NameError: name 'ordr' is not defined at order.py:31" in wait.sentence
    assert (wait.state, wait.attempt) == (WAIT_STATE_TROUBLED, 2)
    assert 0 < wait.due.ToMilliseconds() - wait.since.ToMilliseconds() <= 90_000


async def test_an_activity_was_asked_to_stop_and_has_not_answered(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant, schedule("pay:1"), schedule("ship:1", start_to_close_timeout=seconds(630)))
    await worker.activity()
    await worker.activity()
    await tenant.signal(run_id)
    await worker.command(await worker.workflow_task(), cancel_activity("pay:1"), cancel_activity("ship:1"))
    wait = await told(tenant, run_id, why.WAIT_KIND_ACTIVITY_STOPS, "pay:1")
    assert "was asked to stop and has not answered; worker worker has it for" in wait.sentence
    assert "stop its worker" in wait.remedy
    timed = await told(tenant, run_id, why.WAIT_KIND_ACTIVITY_STOPS, "ship:1")
    assert "it times out in 10 min" in timed.sentence
    assert (timed.HasField("due"), timed.remedy) == (True, "")


# Times -----------------------------------------------------------------------------------------------------------------


async def test_the_code_begins_later(tenant: Tenant) -> None:
    await tenant.worker()
    run_id = (await tenant.start("order-1", start_delay=seconds(630))).run_id
    wait = await told(tenant, run_id, why.WAIT_KIND_START_DELAY)
    assert wait.sentence.startswith("its code begins in 10 min")
    assert (wait.state, wait.due.ToMilliseconds() - wait.since.ToMilliseconds()) == (WAIT_STATE_WAITING, 630_000)


@pytest.mark.parametrize(
    ("field", "name"), [("run_timeout", "run timeout"), ("execution_timeout", "execution timeout")]
)
async def test_a_run_is_undone_when_it_takes_too_long(tenant: Tenant, field: str, name: str) -> None:
    _, run_id = await begin(tenant, timer("1", 60), fields={field: seconds(630)})
    wait = await told(tenant, run_id, why.WAIT_KIND_TIMEOUT)
    assert "it is undone in 10 min" in wait.sentence
    assert name in wait.sentence
    assert await kinds(tenant, run_id) == ["TIMER", "TIMEOUT"]


# Being told --------------------------------------------------------------------------------------------------------


async def test_an_update_is_not_answered(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant)
    asking = asyncio.create_task(tenant.update(run_id, "up-1", wait_for=UPDATE_STAGE_RECEIVED))
    task = await worker.workflow_task()
    await told(tenant, run_id, why.WAIT_KIND_UPDATE, "waits until its code has seen it")
    await worker.command(task)
    await asking
    wait = await told(tenant, run_id, why.WAIT_KIND_UPDATE, "neither")
    assert "update up-1 came, and its code has neither accepted nor refused it" in wait.sentence
    await tenant.signal(run_id)
    await worker.command(await worker.workflow_task(), accept("up-1"))
    accepted = await told(tenant, run_id, why.WAIT_KIND_UPDATE, "was accepted")
    assert (accepted.id, accepted.state) == ("up-1", WAIT_STATE_WAITING)
    assert "CONDITION" in await kinds(tenant, run_id)


async def test_the_code_was_asked_to_stop_and_goes_on(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant)
    await tenant.cancel(run_id, reason="too late", identity="ann")
    await worker.command(await worker.workflow_task(), timer("1", 3_600))
    wait = await told(tenant, run_id, why.WAIT_KIND_CANCELLATION, "goes on")
    assert "it was asked to stop (cancelled by ann: too late); its code has seen that and goes on" in wait.sentence
    assert "terminate" in wait.remedy


# Between runs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_errands(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Nothing is brought about in other runs until this is called."""
    monkeypatch.setattr(Courier, "visit", lambda *_: None)
    return monkeypatch.undo


@pytest.mark.parametrize(
    ("command", "kind", "sentence"),
    [
        pytest.param(
            child("kid:1", workflow_id="junior"),
            why.WAIT_KIND_CHILD_STARTS,
            "child kid:1 (workflow junior) is to be started since ",
            id="child",
        ),
        pytest.param(
            send("1", "other"), why.WAIT_KIND_SEND, "signal hello for workflow other is on its way since ", id="send"
        ),
        pytest.param(
            join(1), why.WAIT_KIND_SUBSCRIBING, "channel jobs is being subscribed to (competing) since 20", id="channel"
        ),
    ],
)
async def test_what_is_to_be_brought_about_elsewhere_is_on_its_way(
    tenant: Tenant, no_errands: Callable[[], None], command: Command, kind: why.WaitKind.ValueType, sentence: str
) -> None:
    _, run_id = await begin(tenant, command)
    wait = await told(tenant, run_id, kind)
    assert wait.sentence.startswith(sentence)
    assert (wait.state, wait.HasField("since")) == (WAIT_STATE_WORKING, True)
    no_errands()


async def test_a_closed_run_says_what_it_leaves_to_be_done(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, run_id = await begin(tenant, child("kid:1", workflow_id="junior"), workflows=["order", "kid"])
    junior = await worker.workflow_task()
    while junior.workflow_type != "kid":
        await worker.command(junior)
        junior = await worker.workflow_task()
    await told(tenant, run_id, why.WAIT_KIND_CHILD)
    with monkeypatch.context() as patch:
        patch.setattr(Courier, "visit", lambda *_: None)
        await worker.command(junior, complete())
        report = await told(tenant, junior.run_id, why.WAIT_KIND_REPORT)
        assert report.sentence.startswith("its parent, workflow order-1, is to be told of its end since ")
        assert report.workflow_id == "order-1"
        await tenant.terminate(run_id)
        closes = await told(tenant, run_id, why.WAIT_KIND_CHILD_CLOSES)
        assert closes.sentence == "child kid:1 (workflow junior) is to be closed, since this run is"
    await tenant.errands_done(run_id, junior.run_id)
    assert await kinds(tenant, run_id) == []


# Undoing -------------------------------------------------------------------------------------------------------------


async def test_a_rollback_waits_for_what_is_open(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant, schedule("pay:1", "refund"), schedule("ship:1"))
    await worker.complete(await worker.activity())
    await worker.activity()
    await worker.command(await worker.workflow_task(), fail("no stock"))
    wait = await told(tenant, run_id, why.WAIT_KIND_ROLLBACK)
    assert wait.sentence.startswith("rollback waits until what is open has ended, ship:1; 1 more to undo after that")
    assert "(it is undone because of Error: no stock)" in wait.sentence
    assert (wait.state, wait.count) == (WAIT_STATE_WORKING, 1)
    assert "ACTIVITY_STOPS" in await kinds(tenant, run_id)


async def undoing(tenant: Tenant, **said: object) -> tuple[ScriptedWorker, str]:
    """A run that undoes itself: its compensation is due."""
    worker, run_id = await begin(tenant, schedule("pay:1", "refund"), **said)
    await worker.complete(await worker.activity())
    await worker.command(await worker.workflow_task(), fail("no stock"))
    return worker, run_id


async def test_a_compensation_runs_then_waits_for_its_next_attempt_then_for_an_operator(tenant: Tenant) -> None:
    worker, run_id = await undoing(tenant)
    task = await worker.activity()
    runs = await told(tenant, run_id, why.WAIT_KIND_ACTIVITY_RUNS)
    assert runs.sentence.startswith("compensation undo/pay:1 (attempt 1) runs on worker worker for ")
    assert (runs.id, runs.compensation) == ("undo/pay:1", True)
    failure = Failure(message="bank is closed", type="BankClosed", retry_after=seconds(2))
    await worker.report(ActivityCompletion(token=task.token, failure=failure))
    again = await told(tenant, run_id, why.WAIT_KIND_ACTIVITY_RETRIES)
    assert again.sentence.startswith("compensation undo/pay:1 is tried again in ")
    assert "after BankClosed: bank is closed" in again.sentence
    await worker.fail(await worker.activity(), "CardClosed", final=True)
    gone = await told(tenant, run_id, why.WAIT_KIND_COMPENSATION_FAILED)
    assert gone.sentence.startswith("compensation undo/pay:1 failed for good: CardClosed: undo/pay:1 failed")
    assert "romancy workflow resolve order-1 undo/pay:1 retry" in gone.remedy
    assert (gone.state, gone.type, gone.compensation) == (WAIT_STATE_BLOCKED, "refund", True)


async def test_a_compensation_that_nobody_has(tenant: Tenant) -> None:
    _, run_id = await undoing(tenant, activities=["pay"])
    wait = await told(tenant, run_id, why.WAIT_KIND_NO_WORKER)
    assert wait.sentence.startswith("compensation undo/pay:1 (attempt 1) waits for ")
    assert (await kinds(tenant, run_id))[0] == "NO_WORKER"


async def test_the_code_waits_for_what_it_asked_to_undo(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant, schedule("pay:1", "refund"))
    await worker.complete(await worker.activity())
    await worker.command(await worker.workflow_task(), compensate("1"))
    await worker.activity()
    wait = await told(tenant, run_id, why.WAIT_KIND_UNDOING)
    assert "its code asked to undo what it did so far" in wait.sentence


# What it sent --------------------------------------------------------------------------------------------------------


async def test_events_that_a_sink_does_not_take_are_told_of_open_and_of_closed_runs(tenant: Tenant) -> None:
    answers = [500, 410]
    async with sink() as server:
        server.script = lambda _: answers[0]
        await tenant.outbox.SetSink(SetSinkRequest(namespace=tenant.namespace, url=server.url))
        event = CloudEvent(type="paid", spec_version="1.0")
        worker, run_id = await begin(tenant, Command(send_event=SendEvent(event=event)))
        waiting = await told(tenant, run_id, why.WAIT_KIND_DELIVERY, "answered 500")
        assert (waiting.state, waiting.type, waiting.count) == (WAIT_STATE_TROUBLED, "default", 1)
        assert await kinds(tenant, run_id) == ["DELIVERY", "CONDITION"]
        answers.pop(0)
        await tenant.signal(run_id)
        await worker.command(await worker.workflow_task(), complete())
        dead = await told(tenant, run_id, why.WAIT_KIND_DEAD_LETTERS, "answered 410")
        assert f"romancy outbox retry {dead.id} (or drop)" in dead.remedy
        assert await kinds(tenant, run_id) == ["DEAD_LETTERS"]


# All of it -----------------------------------------------------------------------------------------------------------


async def test_what_blocks_comes_before_what_is_waited_for(tenant: Tenant) -> None:
    worker, run_id = await begin(
        tenant,
        timer("1", 3_600),
        schedule("pay:1", retry_policy=SLOW_RETRY),
        schedule("ship:1"),
        schedule("nobody-has-it:1"),
        fields={"run_timeout": seconds(7_200)},
    )
    tasks = {task.activity_type: task for task in [await worker.activity(), await worker.activity()]}
    await worker.fail(tasks["pay"])
    await told(tenant, run_id, why.WAIT_KIND_ACTIVITY_RETRIES)
    await told(tenant, run_id, why.WAIT_KIND_NO_WORKER)
    assert await kinds(tenant, run_id) == ["NO_WORKER", "ACTIVITY_RETRIES", "ACTIVITY_RUNS", "TIMER", "TIMEOUT"]


async def test_of_ten_thousand_open_activities_some_are_said_and_the_rest_counted(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant, activities=["other"])
    for first in range(1, 10_001, 1_000):
        await tenant.signal(run_id)
        commands = [schedule(f"pay:{n}") for n in range(first, first + 1_000)]
        await worker.command(await worker.workflow_task(), *commands)
    shown = await tenant.get(run_id)
    assert len(shown.waits) == 101
    assert (shown.waits[-1].kind, shown.waits[-1].count) == (why.WAIT_KIND_MORE, 9_900)
    assert shown.ByteSize() < 200_000


async def test_a_closed_run_waits_for_nothing(tenant: Tenant) -> None:
    _, run_id = await begin(tenant, complete())
    assert await kinds(tenant, run_id) == []


# History ---------------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(loop_scope="session")
async def small(tmp_path: Path) -> AsyncIterator[Tenant]:
    """A service whose histories are soon too long."""
    limits = replace(QUICK, history_recur_events=5, history_warn_events=9, history_events=14)
    async with cluster(str(tmp_path / "small.db"), limits=limits) as up, up.tenant() as tenant:
        yield tenant


async def test_a_long_history_is_suggested_to_end_then_warned_of_then_ended(small: Tenant) -> None:
    with capture_logs() as lines:
        await grow_too_long(small)
    warned = [line for line in lines if line["event"].startswith("the history is long")]
    assert [(line["events"], line["most_events"], line["log_level"]) for line in warned] == [(9, 14, "warning")]


async def grow_too_long(small: Tenant) -> None:
    worker, run_id = await begin(small)
    told_at = []
    while not (await small.get(run_id)).HasField("outcome"):
        await small.signal(run_id)
        shown = await small.get(run_id)
        assert shown.info.history_warning == (9 <= shown.info.history_length < 14)
        assert ("HISTORY" in await kinds(small, run_id)) == (9 <= shown.info.history_length < 14)
        if shown.info.status != 1:
            break
        task = await worker.workflow_task()
        told_at += [event.event_id for event in task.events if event.suggests_recurring]
        await worker.command(task)
    assert told_at == [6]
    outcome = await small.result(run_id)
    assert outcome is not None
    assert outcome.failure.type == "HistoryTooLong"
    assert "has 14 events, at most 14 are allowed" in outcome.failure.message
    assert "should_recur" in outcome.failure.message


async def test_a_chain_of_runs_is_seen_from_each_of_them(tenant: Tenant) -> None:
    worker, first = await begin(tenant)
    run_ids = [first]
    for _ in range(2):
        await tenant.signal(run_ids[-1])
        await worker.command(await worker.workflow_task(), recur(task_queue="queue"))
        task = await worker.workflow_task()
        await worker.command(task)
        run_ids.append(task.run_id)
    shown = [(await tenant.get(run_id)) for run_id in run_ids]
    assert [each.info.first_run_id for each in shown] == [first] * 3
    assert [each.info.continued_from_run_id for each in shown] == ["", *run_ids[:2]]
    assert [each.outcome.continued_run_id for each in shown] == [*run_ids[1:], ""]


async def listed_as_blocked(tenant: Tenant) -> set[str]:
    where = WorkflowFilter(blocked=True)
    page = await tenant.workflows.ListWorkflows(ListWorkflowsRequest(namespace=tenant.namespace, filter=where))
    counted = await tenant.workflows.CountWorkflows(CountWorkflowsRequest(namespace=tenant.namespace, filter=where))
    assert counted.count == len(page.workflows)
    return {run.workflow_id for run in page.workflows}


async def test_lists_find_those_that_wait_for_somebody_to_mend_something(tenant: Tenant) -> None:
    worker, _ = await undoing(tenant)
    task = await worker.activity()
    await tenant.start("order-2")
    broken = await worker.workflow_task()
    assert await listed_as_blocked(tenant) == set(), "one is being undone, the other one's code runs"
    failed = WorkflowTaskCompletion(token=broken.token, seen_event_id=1, failure=NAME_ERROR)
    await worker.answer(failed)
    assert await listed_as_blocked(tenant) == {"order-2"}
    await worker.fail(task, "CardClosed", final=True)
    assert await listed_as_blocked(tenant) == {"order-1", "order-2"}
    await worker.command(await worker.workflow_task(), complete())
    assert await listed_as_blocked(tenant) == {"order-1"}
    resolve = ResolveCompensationRequest(
        workflow=tenant.ref(workflow_id="order-1"),
        compensation_id="undo/pay:1",
        resolution=COMPENSATION_RESOLUTION_MARK_DONE,
    )
    await tenant.workflows.ResolveCompensation(resolve)
    assert await listed_as_blocked(tenant) == set()


async def test_a_worker_that_comes_anew_tries_at_once_what_code_before_it_failed_at(tenant: Tenant) -> None:
    worker = await tenant.worker(worker_id="old")
    run_id = (await tenant.start("order-1")).run_id
    task = await worker.workflow_task()
    await worker.answer(WorkflowTaskCompletion(token=task.token, seen_event_id=1, failure=NAME_ERROR))
    later_ms = tenant.cluster.replicas[0].node.clock.now_ms() + 3_600_000
    store = tenant.cluster.store
    await store._write(update(tasks).where(tasks.c.run_id == run_id).values(due_ms=later_ms))
    await worker.goodbye()
    mended = await tenant.worker(worker_id="new")
    again = await mended.workflow_task()
    assert (again.run_id, again.attempt) == (run_id, 2)
    await mended.command(again, complete())
