"""Sessions: hello, coming back, goodbye, silence, drain, duplicates and stale results, tasks given back, chunks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from romancy.v1.admin_service_pb2 import ListSessionsRequest
from romancy.v1.failure_pb2 import FAILURE_SOURCE_LOST, Failure
from romancy.v1.payload_pb2 import Payload
from romancy.v1.worker_service_pb2 import (
    ACKNOWLEDGEMENT_RESULT_ACCEPTED,
    ACKNOWLEDGEMENT_RESULT_DUPLICATE,
    ACKNOWLEDGEMENT_RESULT_STALE,
    CANCELLATION_REASON_REQUESTED,
    CANCELLATION_REASON_STALE,
    ActivityCompletion,
    ActivityHeartbeat,
    ActivityTask,
    ConnectRequest,
    Drain,
    Goodbye,
    Hello,
)
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_RUNNING

from romancy_service import lookout, sessions
from romancy_service.dispatch import dispatch
from romancy_service.store.store import Claimed, Want
from tests.core.life import cancel_activity, complete, schedule
from tests.service.cluster import QUICK, Tenant, cluster, json, refusal_of, seconds, until
from tests.service.scripted_worker import PATIENCE_S, ScriptedWorker


async def _running(tenant: Tenant, worker: ScriptedWorker, *activity_ids: str, **fields: object) -> list[ActivityTask]:
    """Activities of one run that the worker has in hand."""
    await tenant.start()
    await worker.command(await worker.workflow_task(), *(schedule(name, **fields) for name in activity_ids))
    return [await worker.activity() for _ in activity_ids]


async def _end_of(worker: ScriptedWorker) -> tuple[grpc.StatusCode, str]:
    error = await worker.end()
    assert error is not None
    refusal = refusal_of(error)
    return refusal.code, refusal.reason


async def test_the_welcome_tells_what_the_worker_must_know(tenant: Tenant) -> None:
    worker = await tenant.worker()
    welcome = worker.welcome
    assert len(welcome.session_id) >= 20
    assert welcome.heartbeat_interval.ToMilliseconds() == QUICK.heartbeat_interval_ms
    assert welcome.lease.ToMilliseconds() == QUICK.session_lease_ms
    assert (welcome.max_payload_bytes, welcome.max_frame_bytes) == (QUICK.payload_bytes, QUICK.connect_message_bytes)


async def test_an_activity_task_brings_all_that_is_needed_to_run_it(tenant: Tenant) -> None:
    worker = await tenant.worker()
    fields = {
        "arguments": [json("1"), Payload(binary=b"\x00\xff", metadata={"encoding": "raw"})],
        "start_to_close_timeout": Duration(seconds=30),
        "heartbeat_timeout": Duration(seconds=20),
        "headers": {"traceparent": "00"},
    }
    (task,) = await _running(tenant, worker, "pay:1", **fields)
    assert [argument.WhichOneof("data") for argument in task.arguments] == ["json", "binary"]
    assert task.arguments[1].metadata["encoding"] == "raw"
    assert (task.activity_type, task.activity_id, task.attempt) == ("pay", "pay:1", 1)
    assert (task.workflow_type, task.task_queue) == ("order", "queue")
    assert task.idempotency_key == f"{task.run_id}/pay:1"
    assert task.start_to_close_timeout == Duration(seconds=30)
    assert task.heartbeat_timeout == Duration(seconds=20)
    assert task.headers["traceparent"] == "00"
    assert task.scheduled_time.ToMilliseconds() > 0
    assert not task.compensation


async def test_two_processes_may_carry_one_worker_id(tenant: Tenant) -> None:
    one, two = await tenant.worker(worker_id="worker-1"), await tenant.worker(worker_id="worker-1")
    assert one.welcome.session_id != two.welcome.session_id
    for n in range(4):
        await tenant.start(f"order-{n}")

    async def all_came() -> bool:
        return len(one.workflow_tasks) + len(two.workflow_tasks) == 4

    await until(all_came, "all tasks")


async def test_a_session_that_comes_back_keeps_what_it_has_and_gets_again_what_it_lost(tenant: Tenant) -> None:
    worker = await tenant.worker()
    one, two = await _running(tenant, worker, "pay:1", "ship:1")
    session_id = worker.welcome.session_id
    await worker.cut()
    welcome = await worker.connect(tokens=[one.token])
    assert welcome.session_id == session_id
    again = await worker.activity()
    assert (again.token, again.attempt) == (two.token, 1), "what was lost in the socket is no new attempt"
    for task in (one, again):
        assert (await worker.complete(task)).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED


async def test_a_session_comes_back_on_a_second_stream_although_the_first_seems_alive(tenant: Tenant) -> None:
    worker = await tenant.worker()
    (task,) = await _running(tenant, worker, "pay:1")
    twin = tenant.new_worker()
    twin.welcome.session_id = worker.welcome.session_id
    await twin.connect(tokens=[task.token])
    assert await _end_of(worker) == (grpc.StatusCode.ABORTED, "SESSION_SUPERSEDED")
    assert (await twin.complete(task)).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED


async def test_a_worker_that_sends_and_does_not_read_is_ended_before_it_fills_the_memory(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "ANSWERS_AHEAD", 100)
    worker = await tenant.worker()
    await worker.send(ConnectRequest(activity_heartbeats=[ActivityHeartbeat(token=b"x")] * 100))
    for _ in range(100):
        await worker.cancellations.take("cancellation")
    await worker.send(ConnectRequest(activity_heartbeats=[ActivityHeartbeat(token=b"x")] * 101))
    assert await _end_of(worker) == (grpc.StatusCode.UNAVAILABLE, "ANSWERS_UNREAD")
    await worker.connect()


async def test_an_attempt_that_follows_a_lost_one_at_once_knows_how_far_that_got(tenant: Tenant) -> None:
    first = await tenant.worker()
    (task,) = await _running(tenant, first, "pay:1")
    second = await tenant.worker(workflows=[])
    await first.send(ConnectRequest(activity_heartbeats=[ActivityHeartbeat(token=task.token, details=json('"half"'))]))

    async def written() -> bool:
        return (await tenant.get(task.run_id)).activities[0].HasField("heartbeat_details")

    await until(written, "the details are written")
    await first.goodbye()
    again = await second.activity()
    assert (again.attempt, again.heartbeat_details.json) == (2, '"half"')


async def test_operators_see_that_a_worker_takes_no_new_tasks(tenant: Tenant) -> None:
    worker = await tenant.worker()
    for replica in tenant.cluster.replicas:
        if (session := replica.node.dispatch.sessions.get(worker.welcome.session_id)) is not None:
            session.start_drain()

    async def shown() -> bool:
        listed = await tenant.admin.ListSessions(ListSessionsRequest(namespace=tenant.namespace))
        return [one.draining for one in listed.sessions] == [True]

    await until(shown, "the session is shown as draining")


async def test_a_session_that_is_not_known_becomes_a_new_one_and_owns_nothing(tenant: Tenant) -> None:
    owner = await tenant.worker()
    (task,) = await _running(tenant, owner, "pay:1")
    stranger = tenant.new_worker()
    stranger.welcome.session_id = "guessed"
    welcome = await stranger.connect(tokens=[task.token])
    assert welcome.session_id not in ("guessed", owner.welcome.session_id)
    assert (await stranger.stopped()) == task.token
    assert (await stranger.complete(task)).result == ACKNOWLEDGEMENT_RESULT_STALE
    assert (await owner.complete(task)).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED


async def test_a_session_of_another_namespace_cannot_be_taken_over(tenant: Tenant) -> None:
    worker = await tenant.worker()
    (task,) = await _running(tenant, worker, "pay:1")
    hello = tenant.hello()
    hello.namespace = "elsewhere"
    thief = tenant.new_worker(hello)
    thief.welcome.session_id = worker.welcome.session_id
    welcome = await thief.connect(tokens=[task.token])
    assert welcome.session_id != worker.welcome.session_id
    answer = await thief.report(ActivityCompletion(token=task.token, result=json("1")))
    assert answer.rejection.reason == "INVALID_TOKEN"
    assert (await worker.complete(task)).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED


async def test_a_result_sent_again_is_a_duplicate_and_one_of_an_older_attempt_is_stale(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run = await tenant.start()
    await worker.command(await worker.workflow_task(), schedule("pay:1"))
    first = await worker.activity()
    assert (await worker.fail(first)).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    second = await worker.activity()
    assert second.attempt == 2
    assert second.idempotency_key == first.idempotency_key
    assert (await worker.complete(first)).result == ACKNOWLEDGEMENT_RESULT_STALE
    assert (await worker.complete(second)).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    assert (await worker.complete(second)).result == ACKNOWLEDGEMENT_RESULT_DUPLICATE
    assert (await worker.complete(first)).result == ACKNOWLEDGEMENT_RESULT_STALE
    await worker.command(await worker.workflow_task(), complete())
    assert (await worker.complete(second)).result == ACKNOWLEDGEMENT_RESULT_DUPLICATE
    assert (await tenant.kinds(run.run_id)).count("activity_completed") == 1


async def test_a_result_for_a_terminated_run_is_stale_and_its_activities_are_told_to_stop(tenant: Tenant) -> None:
    worker = await tenant.worker()
    (task,) = await _running(tenant, worker, "pay:1")
    await tenant.terminate(task.run_id)
    told = await worker.cancellations.take("cancellation")
    assert (told.token, told.reason) == (task.token, CANCELLATION_REASON_STALE)
    assert (await worker.complete(task)).result == ACKNOWLEDGEMENT_RESULT_STALE


async def test_a_goodbye_frees_the_tasks_at_once(tenant: Tenant) -> None:
    worker = await tenant.worker()
    (task,) = await _running(tenant, worker, "pay:1")
    await worker.goodbye()
    other = await tenant.worker()
    again = await other.activity()
    assert (again.activity_id, again.attempt) == ("pay:1", 2)
    history = await tenant.history(task.run_id)
    lost = history[-1].activity_attempt_failed
    assert (lost.failure.source, lost.outcome_unknown) == (FAILURE_SOURCE_LOST, True)


async def test_an_at_most_once_activity_is_not_sent_again_when_its_worker_is_lost(tenant: Tenant) -> None:
    worker = await tenant.worker()
    (task,) = await _running(tenant, worker, "pay:1", at_most_once=True)
    other = await tenant.worker(activities=["pay"], workflows=["order"])
    await worker.goodbye()
    seen = await other.workflow_task()
    failed = seen.events[-1].activity_failed
    assert (failed.failure.type, failed.failure.source, failed.outcome_unknown) == (
        "ActivityLost",
        FAILURE_SOURCE_LOST,
        True,
    )
    assert not other.activities
    assert task.attempt == 1


async def test_a_task_lost_five_times_in_a_row_fails_as_lost(tenant: Tenant) -> None:
    first = await tenant.worker(activities=[])
    await tenant.start()
    await first.command(await first.workflow_task(), schedule("pay:1"))
    for attempt in range(1, 6):
        victim = await tenant.worker(workflows=[], activities=["pay"])
        assert (await victim.activity()).attempt == attempt
        await victim.goodbye()
    task = await first.workflow_task()
    assert task.events[-1].activity_failed.failure.type == "ActivityLost"


async def test_tasks_given_back_come_again_as_the_same_attempt(tenant: Tenant) -> None:
    worker = await tenant.worker()
    (task,) = await _running(tenant, worker, "pay:1", at_most_once=True)
    await worker.send(ConnectRequest(returned_tasks=[task.token]))
    again = await worker.activity()
    assert (again.token, again.attempt) == (task.token, 1)


@pytest.mark.parametrize("repeat", range(5))
async def test_tasks_given_back_with_the_goodbye_are_not_lost(tenant: Tenant, repeat: int) -> None:
    worker = await tenant.worker()
    tasks = await _running(tenant, worker, "pay:1", "pay:2", "pay:3", at_most_once=True)
    await worker.send(ConnectRequest(returned_tasks=[task.token for task in tasks], goodbye=Goodbye()))
    await worker.end()
    other = await tenant.worker()
    again = [await other.activity() for _ in tasks]
    assert {task.attempt for task in again} == {1}
    assert sorted(task.token for task in again) == sorted(task.token for task in tasks)


async def test_results_in_the_same_frame_as_the_goodbye_are_recorded(tenant: Tenant) -> None:
    worker = await tenant.worker()
    tasks = await _running(tenant, worker, "pay:1", "pay:2")
    completions = [ActivityCompletion(token=task.token, result=json("1")) for task in tasks]
    await worker.send(ConnectRequest(activity_completions=completions, goodbye=Goodbye()))
    await worker.end()

    async def both_completed() -> bool:
        return (await tenant.kinds(tasks[0].run_id)).count("activity_completed") == 2

    await until(both_completed, "both results are recorded")


async def test_the_stream_of_a_draining_worker_ends_well_when_nothing_is_in_hand(tenant: Tenant) -> None:
    worker = await tenant.worker()
    one, two = await _running(tenant, worker, "pay:1", "ship:1")
    await worker.drain()
    await worker.send(ConnectRequest(returned_tasks=[two.token]))
    await worker.drain()  # once or more often
    assert not worker.ended.done()
    assert (await worker.complete(one)).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    assert await worker.end() is None, "status OK"
    other = await tenant.worker()
    assert ((await other.activity()).token, (await other.workflow_task()).attempt) == (two.token, 1)


async def test_a_draining_worker_is_not_let_go_before_its_last_failure_is_answered(tenant: Tenant) -> None:
    worker = await tenant.worker()
    (task,) = await _running(tenant, worker, "pay:1")
    await worker.drain()
    # What the attempt said last of its progress is written first, and the failure waits for that.
    beat = ActivityHeartbeat(token=task.token, details=json("1"))
    failed = ActivityCompletion(token=task.token, failure=Failure(message="no", type="Declined"))
    await worker.send(ConnectRequest(activity_heartbeats=[beat], activity_completions=[failed]))
    assert (await worker.acknowledgement(task.token)).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    assert await worker.end() is None


async def test_an_idle_worker_that_drains_is_let_go_at_once_and_its_session_is_closed(tenant: Tenant) -> None:
    worker = await tenant.worker()
    session_id = worker.welcome.session_id
    await worker.drain()
    assert await worker.end() is None
    assert (await worker.connect()).session_id != session_id


async def test_a_worker_that_comes_back_to_leave_may_say_so_before_it_is_welcomed(tenant: Tenant) -> None:
    worker = await tenant.worker()
    (task,) = await _running(tenant, worker, "pay:1")
    await worker.cut()
    hello = Hello(session_id=worker.welcome.session_id, tokens_in_hand=[task.token])
    hello.MergeFrom(worker.hello)
    await worker.open(ConnectRequest(hello=hello))
    completion = ActivityCompletion(token=task.token, result=json("1"))
    # In one frame: else the workflow task that follows may be its own, and it would have to answer that too.
    await worker.send(ConnectRequest(activity_completions=[completion], drain=Drain()))
    worker.listen()
    assert (await worker.acknowledgement(task.token)).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    assert await worker.end() is None


async def test_what_is_claimed_for_a_worker_while_it_asks_to_leave_is_left_to_others(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await tenant.worker()
    (task,) = await _running(tenant, worker, "pay:1")
    await worker.cut()
    claims = asyncio.Event()
    for replica in tenant.cluster.replicas:
        monkeypatch.setattr(replica.node.store, "claim", _held_up(replica.node.store.claim, tenant.namespace, claims))
    await worker.connect(tokens=[task.token])
    # Its slots are reserved for a claim that has not reached the database, and now more waits there that it could have.
    completion = ActivityCompletion(token=task.token, result=json("1"))
    await worker.send(ConnectRequest(activity_completions=[completion], drain=Drain()))
    assert (await worker.acknowledgement(task.token)).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    claims.set()
    assert await worker.end() is None
    assert not worker.workflow_tasks
    other = await tenant.worker()
    assert (await other.workflow_task()).attempt == 1


Claim = Callable[[Sequence[Want], int], Awaitable[list[Claimed]]]


def _held_up(claim: Claim, namespace: str, until: asyncio.Event) -> Claim:
    async def claim_later(wants: Sequence[Want], now_ms: int) -> list[Claimed]:
        if any(want.namespace == namespace for want in wants):
            await until.wait()
        # As by a clock that is less certain: what became due meanwhile is taken too.
        return await claim(wants, now_ms + int(PATIENCE_S * 1_000))

    return claim_later


async def test_a_draining_worker_gets_nothing_new_but_its_results_count(tenant: Tenant) -> None:
    worker = await tenant.worker()
    (task,) = await _running(tenant, worker, "pay:1")
    await worker.drain()
    other = await tenant.worker()

    for n in range(5):
        await tenant.start(f"order-{n}")
    for _ in range(5):
        await other.workflow_task()
    assert not worker.workflow_tasks
    assert (await worker.complete(task)).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED


async def test_a_silent_worker_is_let_go_and_its_tasks_go_to_others(tenant: Tenant) -> None:
    worker = tenant.new_worker()
    await worker.connect(beats=False)
    await tenant.start()
    await worker.workflow_task()
    assert await _end_of(worker) == (grpc.StatusCode.DEADLINE_EXCEEDED, "PEER_SILENT")
    other = await tenant.worker()
    assert (await other.workflow_task()).attempt == 2


async def test_a_worker_that_is_cut_off_and_does_not_come_back_loses_its_tasks(tenant: Tenant) -> None:
    worker = await tenant.worker()
    (task,) = await _running(tenant, worker, "pay:1")
    await worker.cut()
    other = await tenant.worker()
    again = await other.activity()
    assert (again.attempt, again.idempotency_key) == (2, task.idempotency_key)
    await worker.connect(tokens=[task.token])
    assert (await worker.stopped()) == task.token
    assert (await worker.complete(task)).result == ACKNOWLEDGEMENT_RESULT_STALE
    assert (await other.complete(again)).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED


async def test_an_idle_stream_carries_signs_of_life_both_ways(tenant: Tenant) -> None:
    worker = await tenant.worker()
    worker.frames.clear()
    for _ in range(4):  # longer than the silence that would end it
        await worker.frames.take("sign of life")
    assert not worker.ended.done()


async def test_heartbeats_carry_details_to_people_and_to_the_next_attempt(tenant: Tenant) -> None:
    worker = await tenant.worker()
    (task,) = await _running(tenant, worker, "pay:1", heartbeat_timeout=seconds(60))
    await worker.send(ConnectRequest(activity_heartbeats=[ActivityHeartbeat(token=task.token, details=json('"half"'))]))

    async def shown() -> bool:
        return (await tenant.get(task.run_id)).activities[0].heartbeat_details.json == '"half"'

    await until(shown, "progress is shown")
    await worker.fail(task)
    assert (await worker.activity()).heartbeat_details.json == '"half"'


async def test_a_heartbeat_of_what_is_not_the_workers_is_answered_by_a_cancellation(tenant: Tenant) -> None:
    worker = await tenant.worker()
    await worker.send(ConnectRequest(activity_heartbeats=[ActivityHeartbeat(token="unknown")]))
    told = await worker.cancellations.take("cancellation")
    assert (told.token, told.reason) == ("unknown", CANCELLATION_REASON_STALE)


async def test_a_cancelled_activity_is_told_at_once_and_its_answer_is_an_input(tenant: Tenant) -> None:
    worker = await tenant.worker()
    await tenant.start()
    await worker.command(await worker.workflow_task(), schedule("pay:1"), schedule("ship:1"))
    pay, ship = await worker.activity(), await worker.activity()
    await worker.complete(ship)
    await worker.command(await worker.workflow_task(), cancel_activity("pay:1"))
    told = await worker.cancellations.take("cancellation")
    assert (told.token, told.reason) == (pay.token, CANCELLATION_REASON_REQUESTED)
    completion = ActivityCompletion(token=pay.token)
    completion.cancelled.details.add(json='"stopped"')
    assert (await worker.report(completion)).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED
    task = await worker.workflow_task()
    assert task.events[-1].activity_cancelled.details[0].json == '"stopped"'


async def test_large_frames_come_in_chunks_to_workers_that_join_them(tenant: Tenant) -> None:
    worker = await tenant.worker(accepts_chunks=True)
    big = [json(f'"{"x" * 1_900_000}"')]
    (task,) = await _running(tenant, worker, "pay:1", arguments=big)
    assert worker.chunks_joined
    assert len(task.arguments[0].json) == 1_900_002


async def test_frames_sent_in_chunks_are_joined_and_others_may_come_between(tenant: Tenant) -> None:
    worker = await tenant.worker()
    one, two = await _running(tenant, worker, "pay:1", "pay:2")
    frame = ConnectRequest(
        activity_completions=[ActivityCompletion(token=one.token, result=json(f'"{"y" * 500_000}"'))]
    )
    chunked = asyncio.create_task(worker.send_in_chunks(frame, 50_000))
    await worker.send(ConnectRequest(activity_completions=[ActivityCompletion(token=two.token, result=json("2"))]))
    await chunked
    answers = [await worker.acknowledgements.take("acknowledgement") for _ in range(2)]
    assert {answer.result for answer in answers} == {ACKNOWLEDGEMENT_RESULT_ACCEPTED}
    history = await tenant.history(one.run_id)
    sizes = {e.activity_completed.activity_id: len(e.activity_completed.result.json) for e in history}
    assert sizes["pay:1"] == 500_002


async def test_a_worker_without_a_namespace_serves_the_default_one(tenant: Tenant) -> None:
    queue = f"queue-of-{tenant.namespace}"
    hello = tenant.hello(queue=queue)
    hello.namespace = ""
    worker = tenant.new_worker(hello)
    await worker.connect()
    request = tenant.start_request(task_queue=queue)
    request.namespace = ""
    run = await tenant.workflows.StartWorkflow(request)
    task = await worker.workflow_task()
    assert task.run_id == run.run_id
    assert (await worker.command(task, complete())).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED


async def test_a_stream_that_does_not_say_hello_is_ended(tenant: Tenant) -> None:
    worker = tenant.new_worker()
    await worker.open()
    refusal = await worker.refusal()
    assert (refusal.code(), refusal.details()) == (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "nothing was heard for 2 s; send a frame at least every heartbeat_interval",
    )


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"worker_id": ""}, "hello.worker_id"),
        ({"worker_id": "a\nb"}, "hello.worker_id"),
        ({"task_queues": []}, "hello.task_queues"),
        ({"task_queues": ["q"] * 101}, "hello.task_queues"),
        ({"workflow_types": [f"t{n}" for n in range(1_001)]}, "hello.workflow_types"),
        ({"activity_types": [""]}, "hello.activity_types"),
        ({"activity_slots": 0}, "hello.activity_slots"),
        ({"workflow_slots": -1}, "hello.workflow_slots"),
        ({"activity_slots": 10_001}, "hello.activity_slots"),
        ({"namespace": "x" * 256}, "hello.namespace"),
    ],
)
async def test_a_bad_hello_is_refused_and_names_the_field(
    tenant: Tenant, change: dict[str, object], field: str
) -> None:
    hello = tenant.hello()
    for name in change:
        hello.ClearField(name)
    hello.MergeFrom(Hello(**change))  # type: ignore[arg-type]
    worker = tenant.new_worker(hello)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await worker.connect()
    refusal = refusal_of(refused.value)
    assert (refusal.code, refusal.reason, refusal.field) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_HELLO", field)


async def test_a_first_frame_without_hello_is_refused(tenant: Tenant) -> None:
    worker = tenant.new_worker()
    await worker.open(ConnectRequest())
    refusal = refusal_of(await worker.refusal())
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_HELLO")


async def test_a_half_closed_stream_is_no_goodbye(tenant: Tenant) -> None:
    worker = await tenant.worker()
    (task,) = await _running(tenant, worker, "pay:1")
    await worker.half_close()
    await worker.end()
    await worker.connect(tokens=[task.token])
    shown = await tenant.get(task.run_id)
    assert shown.info.status == WORKFLOW_STATUS_RUNNING
    assert shown.activities[0].attempt == 1


async def test_what_an_attempt_says_in_the_frame_in_which_it_fails_reaches_the_next_one(tenant: Tenant) -> None:
    worker = await tenant.worker()
    (task,) = await _running(tenant, worker, "pay:1")
    for said in ('"begun"', '"almost"'):
        await worker.send(ConnectRequest(activity_heartbeats=[ActivityHeartbeat(token=task.token, details=json(said))]))
    failed = ActivityCompletion(token=task.token, failure=Failure(message="no", type="Declined"))
    last = ActivityHeartbeat(token=task.token, details=json('"half"'))
    await worker.send(ConnectRequest(activity_completions=[failed], activity_heartbeats=[last]))
    assert (await worker.activity()).heartbeat_details.json == '"half"'


async def test_what_an_attempt_said_reaches_the_next_one_also_when_its_worker_is_lost(tenant: Tenant) -> None:
    worker, other = await tenant.worker(), await tenant.worker(workflows=[], activities=["other"])
    (task,) = await _running(tenant, worker, "pay:1", heartbeat_timeout=seconds(60))
    await worker.send(ConnectRequest(activity_heartbeats=[ActivityHeartbeat(token=task.token, details=json('"half"'))]))

    async def shown() -> bool:
        return (await tenant.get(task.run_id)).activities[0].heartbeat_details.json == '"half"'

    await until(shown, "progress is shown")
    third = await tenant.worker(workflows=[], activities=["pay"])
    await worker.goodbye()
    again = await third.activity()
    assert (again.attempt, again.heartbeat_details.json) == (2, '"half"')
    await other.goodbye()


async def test_large_tasks_follow_each_other_as_fast_as_the_worker_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing polls here: what the stream's end of a piece does not bring never comes."""
    monkeypatch.setattr(dispatch, "POLL_S", 1e9)
    monkeypatch.setattr(lookout, "PACE_S", 1e9)
    async with cluster(str(tmp_path / "romancy.db")) as up, up.tenant() as tenant:
        decider = await tenant.worker(activities=())
        arguments = [Payload(binary=b"x" * (QUICK.payload_bytes * 3 // 4))]
        for _ in range(10):
            await tenant.start()
            await decider.command(await decider.workflow_task(), schedule("pay:1", arguments=arguments))
        worker = await tenant.worker(workflows=())
        assert len({(await worker.activity()).run_id for _ in range(10)}) == 10
