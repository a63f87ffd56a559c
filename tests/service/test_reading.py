"""Reading: get, list, count, pages, histories, waiting for results, what operators see."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from romancy.v1.admin_service_pb2 import (
    TASK_KIND_ACTIVITY,
    TASK_KIND_WORKFLOW,
    DescribeTaskQueueRequest,
    ListSessionsRequest,
    TaskKind,
)
from romancy.v1.failure_pb2 import Failure
from romancy.v1.payload_pb2 import Payload
from romancy.v1.worker_service_pb2 import ActivityCompletion
from romancy.v1.workflow_pb2 import (
    WORKFLOW_STATUS_COMPLETED,
    WORKFLOW_STATUS_RUNNING,
    WORKFLOW_STATUS_TERMINATED,
)
from romancy.v1.workflow_service_pb2 import (
    CountWorkflowsRequest,
    GetHistoryRequest,
    GetWorkflowRequest,
    GetWorkflowResultRequest,
    ListWorkflowsRequest,
    StartWorkflowsRequest,
    WaitResultsRequest,
    WatchHistoryRequest,
    WorkflowFilter,
    WorkflowRef,
)
from romancy.v1.workflow_service_pb2_grpc import WorkflowServiceStub

from tests.core.life import complete, schedule, timer
from tests.service.cluster import Tenant, json, refused, seconds, until
from tests.service.scripted_worker import PATIENCE_S


async def _started(tenant: Tenant, count: int, **spec: object) -> list[str]:
    requests = [tenant.start_request(f"order-{n:04}", **spec) for n in range(count)]
    results = (await tenant.workflows.StartWorkflows(StartWorkflowsRequest(requests=requests))).results
    return [result.response.run_id for result in results]


async def _pages(tenant: Tenant, size: int, wanted: WorkflowFilter | None = None) -> list[list[str]]:
    pages: list[list[str]] = []
    token = ""
    while True:
        page = await tenant.workflows.ListWorkflows(
            ListWorkflowsRequest(namespace=tenant.namespace, filter=wanted, page_size=size, page_token=token)
        )
        pages.append([run.run_id for run in page.workflows])
        token = page.next_page_token
        if not token:
            return pages


@pytest.mark.parametrize("size", [1, 2, 7, 0, 1000])
async def test_pages_of_every_size_make_the_same_list_newest_first(tenant: Tenant, size: int) -> None:
    run_ids = await _started(tenant, 15)
    pages = await _pages(tenant, size)
    assert all(len(page) <= (size or 100) for page in pages)
    listed = [run_id for page in pages for run_id in page]
    assert sorted(listed) == sorted(run_ids)
    starts = [(await tenant.get(run_id)).info.start_time.ToNanoseconds() for run_id in listed]
    assert starts == sorted(starts, reverse=True)


async def test_pages_stay_stable_while_runs_are_started(tenant: Tenant) -> None:
    run_ids = await _started(tenant, 6)
    first = await tenant.workflows.ListWorkflows(ListWorkflowsRequest(namespace=tenant.namespace, page_size=3))
    await tenant.start("late")
    second = await tenant.workflows.ListWorkflows(
        ListWorkflowsRequest(namespace=tenant.namespace, page_size=3, page_token=first.next_page_token)
    )
    listed = [run.run_id for run in (*first.workflows, *second.workflows)]
    assert sorted(listed) == sorted(run_ids)


async def test_filters_select_by_status_type_id_prefix_and_time(tenant: Tenant) -> None:
    await _started(tenant, 3)
    await _started(tenant, 0)
    odd = await tenant.start("Ünlikely", workflow_type="invoice")
    await tenant.terminate(odd.run_id)
    started = (await tenant.get(odd.run_id)).info.start_time

    async def count(**wanted: object) -> int:
        request = CountWorkflowsRequest(namespace=tenant.namespace, filter=WorkflowFilter(**wanted))  # type: ignore[arg-type]
        response = await tenant.workflows.CountWorkflows(request)
        listed = await _pages(tenant, 100, WorkflowFilter(**wanted))  # type: ignore[arg-type]
        assert response.count == sum(map(len, listed))
        assert not response.estimated
        return response.count

    assert await count() == 4
    assert await count(statuses=[WORKFLOW_STATUS_RUNNING]) == 3
    assert await count(statuses=[WORKFLOW_STATUS_RUNNING, WORKFLOW_STATUS_TERMINATED]) == 4
    assert await count(statuses=[WORKFLOW_STATUS_COMPLETED]) == 0
    assert await count(workflow_type="invoice") == 1
    assert await count(workflow_id="order-0001") == 1
    assert await count(workflow_id_prefix="order-") == 3
    assert await count(workflow_id_prefix="Ü") == 1
    assert await count(workflow_id_prefix="%") == 0
    assert await count(workflow_type="' or 1=1 --") == 0
    assert await count(started_from=started) >= 1
    assert await count(started_before=started) == 3
    assert await count(closed_from=started) == 1
    assert await count(closed_before=started) == 0


async def test_a_run_is_found_only_in_its_namespace(tenant: Tenant) -> None:
    run = await tenant.start("order")
    for ref in (
        WorkflowRef(namespace="elsewhere", workflow_id="order"),
        WorkflowRef(namespace="elsewhere", run_id=run.run_id),
        tenant.ref(run.run_id, "another"),
        tenant.ref("", "unknown"),
    ):
        refusal = await refused(tenant.workflows.GetWorkflow(GetWorkflowRequest(workflow=ref)))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "WORKFLOW_NOT_FOUND")
    by_id = await tenant.workflows.GetWorkflow(GetWorkflowRequest(workflow=tenant.ref("", "order")))
    assert by_id.info.run_id == run.run_id


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
async def test_history_pages_of_every_size_make_the_same_history(tenant: Tenant, size: int) -> None:
    worker = await tenant.worker()
    run = await tenant.start("order")
    await worker.command(await worker.workflow_task(), *(timer(str(n), 3600) for n in range(1, 20)))
    whole = await tenant.history(run.run_id)
    assert [event.event_id for event in whole] == list(range(1, 21))
    paged = []
    after, more = 0, True
    while more:
        page = await tenant.workflows.GetHistory(
            GetHistoryRequest(workflow=tenant.ref(run.run_id), page_size=size, after_event_id=after)
        )
        assert page.run_id == run.run_id
        assert 1 <= len(page.events) <= size
        paged += page.events
        after, more = page.events[-1].event_id, page.more
    assert paged == whole


async def test_a_history_page_ends_at_two_mebibytes(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run = await tenant.start("order")
    big = [json(f'"{"x" * 1_500_000}"')]
    await worker.command(await worker.workflow_task(), *(schedule(f"pay:{n}", arguments=big) for n in range(1, 5)))
    pages = []
    after, more = 0, True
    while more:
        page = await tenant.workflows.GetHistory(
            GetHistoryRequest(workflow=tenant.ref(run.run_id), after_event_id=after)
        )
        pages.append([event.event_id for event in page.events])
        after, more = page.events[-1].event_id, page.more
    assert pages == [[1, 2], [3], [4], [5]]


async def test_a_watched_history_brings_what_is_there_and_what_comes_and_ends_with_the_run(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run = await tenant.start("order")
    watch = tenant.workflows.WatchHistory(WatchHistoryRequest(workflow=tenant.ref(run.run_id)))
    kinds: list[str] = []

    async def read() -> None:
        async for page in watch:
            kinds.extend(str(event.WhichOneof("attributes")) for event in page.events)

    reader = asyncio.create_task(read())

    async def seen(count: int) -> None:
        async def enough() -> bool:
            return len(kinds) >= count

        await until(enough, f"{count} events")

    await seen(1)
    await worker.command(await worker.workflow_task(), schedule("pay:1"))
    await seen(2)
    await worker.complete(await worker.activity())
    await seen(3)
    await worker.command(await worker.workflow_task(), complete())
    async with asyncio.timeout(PATIENCE_S):
        await reader
    assert kinds == ["workflow_started", "activity_scheduled", "activity_completed", "workflow_completed"]


async def test_watching_from_the_last_event_of_a_closed_run_ends_at_once(tenant: Tenant) -> None:
    run = await tenant.start("order")
    await tenant.terminate(run.run_id)
    watch = tenant.workflows.WatchHistory(WatchHistoryRequest(workflow=tenant.ref(run.run_id), after_event_id=2))
    async with asyncio.timeout(PATIENCE_S):
        assert [page async for page in watch] == []


async def test_waiting_for_a_result_ends_when_the_time_is_over(tenant: Tenant) -> None:
    run = await tenant.start("order")
    request = GetWorkflowResultRequest(workflow=tenant.ref(run.run_id), wait=seconds(0.05))
    response = await tenant.workflows.GetWorkflowResult(request)
    assert response.run_id == run.run_id
    assert not response.HasField("outcome")


async def test_one_stream_waits_for_many_results_and_answers_each_once(tenant: Tenant) -> None:
    worker = await tenant.worker(workflow_slots=100)
    run_ids = await _started(tenant, 50)
    call = tenant.workflows.WaitResults()
    await call.write(WaitResultsRequest(namespace=tenant.namespace, run_ids=run_ids[:25]))
    await call.write(WaitResultsRequest(namespace=tenant.namespace, run_ids=[*run_ids[20:], "unknown", run_ids[0]]))
    await call.done_writing()
    for _ in run_ids:
        await worker.command(await worker.workflow_task(), complete())
    async with asyncio.timeout(PATIENCE_S):
        results = [result async for answer in call for result in answer.results]
    by_id = {result.run_id: result for result in results}
    assert by_id.keys() == {*run_ids, "unknown"}
    asked_twice = {run_ids[0], *run_ids[20:25]}
    assert len([result for result in results if result.run_id not in asked_twice]) == len(by_id) - len(asked_twice)
    assert by_id["unknown"].error.reason == "WORKFLOW_NOT_FOUND"
    assert all(by_id[run_id].outcome.status == WORKFLOW_STATUS_COMPLETED for run_id in run_ids)


async def test_a_bad_id_is_answered_by_itself_and_what_else_is_waited_for_does_not_suffer(tenant: Tenant) -> None:
    run = await tenant.start("order")
    call = tenant.workflows.WaitResults()
    await call.write(WaitResultsRequest(namespace=tenant.namespace, run_ids=["a\x00b", run.run_id, "x" * 256]))
    await tenant.terminate(run.run_id)
    await call.done_writing()
    async with asyncio.timeout(PATIENCE_S):
        results = {result.run_id: result async for answer in call for result in answer.results}
    assert results[run.run_id].HasField("outcome")
    bad = [results["a\x00b"].error, results["x" * 256].error]
    assert [(error.code, error.reason) for error in bad] == [
        (grpc.StatusCode.INVALID_ARGUMENT.value[0], "INVALID_FIELD")
    ] * 2
    assert "control character U+0000" in bad[0].message


async def test_a_bad_namespace_ends_the_stream_of_results_although_others_are_open(tenant: Tenant) -> None:
    run = await tenant.start("order")
    call = tenant.workflows.WaitResults()
    await call.write(WaitResultsRequest(namespace=tenant.namespace, run_ids=[run.run_id]))
    await call.write(WaitResultsRequest(namespace="a\x00b", run_ids=[run.run_id]))

    async def read() -> None:
        async for _ in call:
            pass

    async with asyncio.timeout(PATIENCE_S):
        refusal = await refused(read())
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


async def test_a_wait_that_the_client_gave_up_is_forgotten_and_not_answered(tenant: Tenant) -> None:
    worker = await tenant.worker()
    kept, given_up, again = await _started(tenant, 3)

    def waited_for() -> set[str]:
        results = (replica.node.results for replica in tenant.cluster.replicas)
        return {run_id for each in results for run_id in each._waiters} & {kept, given_up, again}

    async def is_waited_for(*run_ids: str) -> None:
        async def is_so() -> bool:
            return waited_for() == {*run_ids}

        await until(is_so, f"{run_ids} are waited for")

    call = tenant.workflows.WaitResults()
    await call.write(WaitResultsRequest(namespace=tenant.namespace, run_ids=[kept, given_up, again]))
    await is_waited_for(kept, given_up, again)
    left = WaitResultsRequest(
        namespace=tenant.namespace, run_ids=[again], given_up_run_ids=["unknown", given_up, again]
    )
    await call.write(left)
    await is_waited_for(kept, again)
    await call.done_writing()
    for _ in range(3):
        await worker.command(await worker.workflow_task(), complete())
    async with asyncio.timeout(PATIENCE_S):
        results = [result async for answer in call for result in answer.results]
    assert sorted(result.run_id for result in results) == sorted([kept, again])
    await is_waited_for()


async def test_results_of_another_namespace_are_not_given(tenant: Tenant) -> None:
    run = await tenant.start("order")
    await tenant.terminate(run.run_id)
    call = tenant.workflows.WaitResults()
    await call.write(WaitResultsRequest(namespace="elsewhere", run_ids=[run.run_id]))
    await call.done_writing()
    results = [result async for answer in call for result in answer.results]
    assert [result.error.reason for result in results] == ["WORKFLOW_NOT_FOUND"]


async def test_an_open_run_says_what_it_waits_for(tenant: Tenant) -> None:
    worker = await tenant.worker(activities=["pay"])
    run = await tenant.start("order")
    await worker.command(await worker.workflow_task(), schedule("pay:1"), schedule("ship:1"), timer("1", 3600))
    await worker.activity()
    shown = await tenant.get(run.run_id)
    assert [activity.activity_id for activity in shown.activities] == ["pay:1", "ship:1"]
    assert [activity.worker_id for activity in shown.activities] == ["worker", ""]
    assert [pending.timer_id for pending in shown.timers] == ["1"]
    text = "\n".join(wait.sentence for wait in shown.waits)
    assert "activity pay:1 (attempt 1) runs on worker worker" in text
    assert "no worker of queue queue has type ship" in text
    assert "timer 1 fires in" in text


async def test_of_a_run_with_very_much_open_some_is_shown_and_the_rest_counted(tenant: Tenant) -> None:
    worker = await tenant.worker(activities=["other"])
    run = await tenant.start("order")
    commands = [*(schedule(f"pay:{n}") for n in range(1, 151)), *(timer(str(n), 3600 + n) for n in range(1, 121))]
    await worker.command(await worker.workflow_task(), *commands)
    shown = await tenant.get(run.run_id)
    assert (shown.open_activities, shown.open_timers) == (150, 120)
    assert (len(shown.activities), len(shown.timers)) == (100, 100)
    assert [pending.timer_id for pending in shown.timers] == [str(n) for n in range(1, 101)]
    assert shown.waits[-1].count == 70


async def test_whatever_is_allowed_can_be_read_by_clients_that_take_messages_of_4_mib(tenant: Tenant) -> None:
    value = Payload(binary=b"x" * (1024 * 1024))
    most = [value, value, Payload(binary=b"x" * (1000 * 1024))]
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{tenant.cluster.proxy.port}")
    stub = WorkflowServiceStub(channel)
    worker = await tenant.worker()
    run = await tenant.start("order", arguments=most)
    pay = schedule("pay:1", arguments=most[:2])
    pay.schedule_activity.compensation.activity_type = "refund"
    pay.schedule_activity.compensation.arguments.add(payload=most[2])
    both = schedule("pay:2", arguments=most)
    both.schedule_activity.compensation.CopyFrom(pay.schedule_activity.compensation)
    task = await worker.workflow_task()
    refused = await worker.command(task, pay, both)
    assert (refused.rejection.reason, refused.rejection.metadata["field"]) == (
        "PAYLOAD_TOO_LARGE",
        "commands[1].schedule_activity",
    )
    await worker.command(await worker.workflow_task(), pay)
    first = await worker.activity()
    await worker.report(ActivityCompletion(token=first.token, failure=Failure(message="no", details=most)))

    shown = await stub.GetWorkflow(GetWorkflowRequest(workflow=tenant.ref(run.run_id)))
    assert shown.ByteSize() < 4 << 20
    assert "too many to be shown" in shown.activities[0].last_failure.message
    after, sizes = 0, []
    while True:
        page = await stub.GetHistory(GetHistoryRequest(workflow=tenant.ref(run.run_id), after_event_id=after))
        sizes.append(page.ByteSize())
        after = page.events[-1].event_id
        if not page.more:
            break
    assert sum(sizes) > 8 << 20
    assert max(sizes) < 4 << 20
    await channel.close()


async def test_operators_see_workers_and_backlogs(tenant: Tenant) -> None:
    worker = await tenant.worker(workflows=["order"], activities=["pay"], activity_slots=1, build_id="v7")
    for n in range(3):
        await tenant.start(f"order-{n}")
    for _ in range(3):
        await worker.command(await worker.workflow_task(), schedule("pay:1"), schedule("ship:1"))
    await tenant.start("unknown", workflow_type="invoice")
    await worker.activity()

    async def backlogs() -> dict[tuple[TaskKind.ValueType, str], tuple[int, bool]]:
        request = DescribeTaskQueueRequest(namespace=tenant.namespace, task_queue="queue")
        queue = await tenant.admin.DescribeTaskQueue(request)
        return {(backlog.kind, backlog.type): (backlog.tasks, backlog.served) for backlog in queue.backlogs}

    async def all_are_due() -> bool:
        # What was made just now is due when the clock has surely reached its time.
        return await backlogs() == {
            (TASK_KIND_ACTIVITY, "pay"): (2, True),
            (TASK_KIND_ACTIVITY, "ship"): (3, False),
            (TASK_KIND_WORKFLOW, "invoice"): (1, False),
        }

    await until(all_are_due, "the queue shows what waits in it")
    sessions = (await tenant.admin.ListSessions(ListSessionsRequest(namespace=tenant.namespace))).sessions
    assert [(s.worker_id, s.connected, s.build_id, s.tasks_in_hand) for s in sessions] == [("worker", True, "v7", 1)]
    other = await tenant.admin.ListSessions(ListSessionsRequest(namespace=tenant.namespace, task_queue="other"))
    assert not other.sessions
    await worker.goodbye()

    async def gone() -> bool:
        response = await tenant.admin.ListSessions(ListSessionsRequest(namespace=tenant.namespace))
        return not response.sessions

    await until(gone, "a worker that said goodbye is not listed any more")


async def test_results_come_in_messages_that_any_client_takes(tenant: Tenant) -> None:
    worker = await tenant.worker()
    run_ids = []
    for _ in range(4):
        run_ids.append((await tenant.start()).run_id)
        await worker.command(await worker.workflow_task(), complete(f'"{"x" * 2_000_000}"'))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{tenant.cluster.proxy.port}") as usual:  # takes 4 MiB
        call = WorkflowServiceStub(usual).WaitResults()
        await call.write(WaitResultsRequest(namespace=tenant.namespace, run_ids=run_ids))
        await call.done_writing()
        async with asyncio.timeout(PATIENCE_S):
            results = [result async for answer in call for result in answer.results]
    assert {result.run_id for result in results} == {*run_ids}


async def test_pages_of_a_list_are_messages_that_any_client_takes(tenant: Tenant) -> None:
    memo = {"note": json(f'"{"x" * 32_000}"')}
    runs = await asyncio.gather(*(tenant.start(memo=memo) for _ in range(140)))
    listed: list[str] = []
    token = ""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{tenant.cluster.proxy.port}") as usual:  # takes 4 MiB
        while token or not listed:
            question = ListWorkflowsRequest(namespace=tenant.namespace, page_token=token, page_size=1_000)
            page = await WorkflowServiceStub(usual).ListWorkflows(question)
            listed += [workflow.run_id for workflow in page.workflows]
            token = page.next_page_token
    assert sorted(listed) == sorted(run.run_id for run in runs)
