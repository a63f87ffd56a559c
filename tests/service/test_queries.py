"""Queries: a run's code is asked, wherever its worker is connected, and nothing is recorded of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc
import pytest

from romancy.v1.failure_pb2 import Failure
from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.payload_pb2 import Payload
from romancy.v1.worker_service_pb2 import ConnectRequest, Hello, QueryAnswer, QueryTask
from romancy.v1.workflow_service_pb2 import QueryWorkflowRequest, QueryWorkflowResponse
from romancy.v1.workflow_service_pb2_grpc import WorkflowServiceStub

from romancy_service.core.limits import Limits
from romancy_service.core.run import Run
from romancy_service.sessions import open_session
from tests.core.life import complete, fail, schedule
from tests.service.cluster import Tenant, refused, seconds, until
from tests.service.scripted_worker import ScriptedWorker


def kinds(events: list[HistoryEvent]) -> list[str]:
    return [str(event.WhichOneof("attributes")) for event in events]


async def begin(tenant: Tenant, *, holds: bool = True) -> tuple[ScriptedWorker, str]:
    """A run that waits for an activity, and its worker."""
    worker = await tenant.worker()
    run_id = (await tenant.start("order")).run_id
    await worker.command(await worker.workflow_task(), schedule("pay:1"), holds=holds)
    return worker, run_id


def asking(tenant: Tenant, run_id: str, wait_s: float = 20, replica: int = 0) -> asyncio.Task[QueryWorkflowResponse]:
    """A query that is under way, at one replica."""
    replicas = tenant.cluster.replicas
    stub = WorkflowServiceStub(tenant.open_channel(replicas[replica % len(replicas)].port))
    request = QueryWorkflowRequest(
        workflow=tenant.ref(run_id), name="state", arguments=[Payload(json="7")], wait=seconds(wait_s)
    )

    async def ask() -> QueryWorkflowResponse:
        return await stub.QueryWorkflow(request)

    return asyncio.create_task(ask())


async def test_a_worker_that_holds_the_run_is_asked_and_sent_no_history(tenant: Tenant) -> None:
    worker = tenant.new_worker(port=tenant.cluster.replicas[0].port)
    await worker.connect()
    run_id = (await tenant.start("order")).run_id
    task = await worker.workflow_task()
    held = await worker.command(task, schedule("pay:1"))
    question = asking(tenant, run_id)
    query = await worker.query()
    assert (query.workflow_id, query.run_id, query.workflow_type) == ("order", run_id, "order")
    assert (query.name, [a.json for a in query.arguments]) == ("state", ["7"])
    assert (query.after_event_id, list(query.events)) == (held.last_event_id, [])
    await worker.answer_query(query, '"waits"')
    answer = await question
    assert (answer.run_id, answer.result.json) == (run_id, '"waits"')
    assert await tenant.kinds(run_id) == ["workflow_started", "activity_scheduled"]


async def test_a_worker_that_does_not_hold_the_run_gets_what_its_code_has_seen(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant)
    question = asking(tenant, run_id)
    query = await worker.query()
    if query.after_event_id:
        query = await worker.miss_query(query)
    assert kinds(list(query.events)) == ["workflow_started", "activity_scheduled"]
    await worker.answer_query(query, "1")
    assert (await question).result.json == "1"


async def test_a_long_history_comes_in_pages(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run_id = (await tenant.start("order", arguments=[Payload(json='"x"')])).run_id
    task = await worker.workflow_task()
    await worker.command(
        task, *(schedule(f"pay:{n}", arguments=[Payload(binary=b"x" * 300_000)]) for n in range(1, 9)), holds=False
    )
    question = asking(tenant, run_id)
    query = await worker.query()
    assert len(query.events) == 9
    await worker.answer_query(query)
    await question


async def test_whichever_replica_is_asked_the_worker_answers(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant)
    for replica in range(len(tenant.cluster.replicas)):
        question = asking(tenant, run_id, replica=replica)
        await worker.answer_query(await worker.query(), str(replica))
        assert (await question).result.json == str(replica)


async def test_a_query_waits_until_the_code_has_seen_what_was_recorded_before_it(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant)
    await tenant.signal(run_id, "before")
    task = await worker.workflow_task()
    question = asking(tenant, run_id)
    assert "has not seen" in (await refused(tenant.query(run_id, wait_s=0.2))).message
    assert not worker.queries
    await worker.command(task)
    query = await worker.query()
    if not query.after_event_id:
        names = [event.signal_received.signal.name for event in query.events if event.HasField("signal_received")]
        assert names == ["before"]
    await worker.answer_query(query, "1")
    assert (await question).result.json == "1"


async def test_a_run_that_is_closed_can_be_asked_what_its_code_saw(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant)
    await worker.complete(await worker.activity())
    task = await worker.workflow_task()
    await tenant.signal(run_id, "unseen")
    await worker.command(task, complete())
    question = asking(tenant, run_id)
    query = await worker.query()
    assert query.after_event_id == 0
    assert kinds(list(query.events)) == [
        "workflow_started", "activity_scheduled", "activity_completed", "workflow_completed"
    ]  # fmt: skip
    await worker.answer_query(query, "1")
    assert (await question).result.json == "1"


async def test_a_terminated_run_is_not_shown_what_its_code_never_saw(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant)
    await tenant.signal(run_id, "unseen")
    await tenant.terminate(run_id)
    question = asking(tenant, run_id)
    query = await worker.query()
    assert kinds(list(query.events)) == ["workflow_started", "activity_scheduled"]
    await worker.answer_query(query, "1")
    await question


async def test_a_run_whose_code_never_ran_and_never_will_has_no_answers(tenant: Tenant) -> None:
    run_id = (await tenant.start("order")).run_id
    await tenant.terminate(run_id)
    assert (await refused(tenant.query(run_id))).reason == "WORKFLOW_CLOSED"


async def test_a_run_that_undoes_itself_answers_as_its_code_ended(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run_id = (await tenant.start("order")).run_id
    await worker.command(await worker.workflow_task(), schedule("pay:1"), fail())
    question = asking(tenant, run_id)
    query = await worker.query()
    assert kinds(list(query.events)) == ["workflow_started", "activity_scheduled", "rollback_started"]
    await worker.answer_query(query, "1")
    await question


async def test_without_a_worker_a_query_says_so_when_its_time_is_over(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant)
    await worker.goodbye()
    refusal = await refused(tenant.query(run_id, wait_s=0.1))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "QUERY_TIMEOUT")
    assert "no worker of queue 'queue' that has 'order'" in refusal.message


async def test_code_that_does_not_get_to_see_makes_a_query_say_so(tenant: Tenant) -> None:
    run_id = (await tenant.start("order")).run_id
    refusal = await refused(tenant.query(run_id, wait_s=0.1))
    assert (refusal.reason, "has not seen" in refusal.message) == ("QUERY_TIMEOUT", True)


async def test_a_worker_that_does_not_answer_is_named(tenant: Tenant) -> None:
    worker = tenant.new_worker(port=tenant.cluster.replicas[0].port)
    await worker.connect()
    run_id = (await tenant.start("order")).run_id
    await worker.command(await worker.workflow_task(), schedule("pay:1"))
    refusal = await refused(asking(tenant, run_id, wait_s=0.3))
    assert "worker 'worker' has not answered" in refusal.message
    late = await worker.query()
    await worker.answer_query(late)  # nobody waits any more: it is dropped
    await tenant.signal(run_id)
    await worker.workflow_task()


async def test_when_the_worker_leaves_another_one_is_asked(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant)
    question = asking(tenant, run_id)
    await worker.query()
    await worker.cut()
    other = await tenant.worker(worker_id="other")
    query = await other.query()
    assert kinds(list(query.events)) == ["workflow_started", "activity_scheduled"]
    await other.answer_query(query, "2")
    assert (await question).result.json == "2"


async def test_a_worker_that_comes_back_is_asked_again(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant)
    question = asking(tenant, run_id)
    await worker.query()
    await worker.cut()
    await worker.connect()
    query = await worker.query()
    await worker.answer_query(query, "2")
    assert (await question).result.json == "2"


async def test_an_answer_of_somebody_else_is_dropped(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant)
    other = await tenant.worker(workflows=())
    question = asking(tenant, run_id)
    query = await worker.query()
    await other.answer_query(query, '"forged"')
    await other.cut()  # after its frame was read
    await worker.answer_query(query, '"true"')
    assert (await question).result.json == '"true"'


async def test_a_failure_of_the_handler_is_the_answer(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant)
    question = asking(tenant, run_id)
    query = await worker.query()
    failure = Failure(type="KeyError", message="x" * 10_000)
    await worker.send(ConnectRequest(query_answers=[QueryAnswer(query_id=query.query_id, failure=failure)]))
    answer = await question
    assert answer.failure.type == "KeyError"
    assert len(answer.failure.message) < 5_000


async def test_an_answer_that_is_too_large_is_a_failure(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant)
    question = asking(tenant, run_id)
    query = await worker.query()
    large = QueryAnswer(query_id=query.query_id, result=Payload(binary=b"x" * (3 << 20)))
    await worker.send(ConnectRequest(query_answers=[large]))
    assert (await question).failure.type == "PAYLOAD_TOO_LARGE"


async def test_bad_fields_of_queries_are_named(tenant: Tenant) -> None:
    _, run_id = await begin(tenant)
    bad = {
        "name": QueryWorkflowRequest(),
        "wait": QueryWorkflowRequest(name="state", wait=seconds(-1)),
        "arguments[0]": QueryWorkflowRequest(name="state", arguments=[Payload(binary=b"x" * (2 << 20) + b"x")]),
    }
    for field, request in bad.items():
        request.workflow.CopyFrom(tenant.ref(run_id))
        refusal = await refused(tenant.workflows.QueryWorkflow(request))
        assert (refusal.code, refusal.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert (await refused(tenant.query("none"))).reason == "WORKFLOW_NOT_FOUND"


async def test_no_question_stays_behind(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant)
    replicas = tenant.cluster.replicas
    await refused(asking(tenant, run_id, wait_s=0.2, replica=1))
    await refused(asking(tenant, run_id, wait_s=0.2, replica=0))
    assert worker.queries or len(replicas) > 1

    async def none() -> bool:
        return not await tenant.cluster.store.open_questions(0)

    await until(none, "all questions are dropped")


async def test_only_some_histories_are_held_for_queries_at_a_time(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = tenant.cluster.replicas[0]
    worker = tenant.new_worker(port=replica.port)
    await worker.connect()
    run_id = (await tenant.start("order")).run_id
    await worker.command(await worker.workflow_task(), schedule("pay:1"), holds=False)
    queries, most = replica.node.queries, Limits().query_histories
    lived, reading, read_at_once, go_on = queries._lived, 0, 0, asyncio.Event()

    async def slowly(run: Run) -> list[HistoryEvent]:
        nonlocal reading, read_at_once
        reading += 1
        read_at_once = max(read_at_once, reading)
        await go_on.wait()
        reading -= 1
        return await lived(run)

    monkeypatch.setattr(queries, "_lived", slowly)
    questions = [asking(tenant, run_id) for _ in range(3 * most)]

    async def some_are_read() -> bool:
        return reading == most

    async def all_came() -> bool:
        return len(queries._asked) == len(questions)

    await until(all_came, "all are under way")
    await until(some_are_read, "as many as may be are read")
    go_on.set()
    for number in range(len(questions)):
        await worker.answer_query(await worker.query(), str(number))
    assert {(await question).result.json for question in questions} == {str(n) for n in range(len(questions))}
    assert read_at_once == most


async def test_more_queries_than_a_replica_takes_are_refused(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    replica = tenant.cluster.replicas[0]
    worker = tenant.new_worker(port=replica.port)
    await worker.connect()
    run_id = (await tenant.start("order")).run_id
    await worker.command(await worker.workflow_task(), schedule("pay:1"))
    monkeypatch.setattr(replica.node.queries, "_limits", replace(Limits(), open_queries=1))
    first = asking(tenant, run_id)
    query = await worker.query()
    refusal = await refused(asking(tenant, run_id))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_QUERIES")
    await worker.answer_query(query, "1")
    assert (await first).result.json == "1"
    second = asking(tenant, run_id)
    await worker.answer_query(await worker.query(), "2")
    assert (await second).result.json == "2"


@pytest.mark.parametrize("written", [0, 1])
async def test_a_question_that_nobody_waits_for_is_not_asked_and_one_that_is_begun_is_finished(written: int) -> None:
    session = open_session("s", 1, Hello())
    session.queries += [QueryTask(query_id=name, more=True) for name in ("a", "b", "a")]
    asked = asyncio.create_task(session.asked("a"))
    await asyncio.sleep(0)
    for _ in range(written):
        session.take_frame(1)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert [query.query_id for query in session.queries] == [["b"], ["b", "a"]][written]
    session.take_frame(1_000)
    assert not session.queries
