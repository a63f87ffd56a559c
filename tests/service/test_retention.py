"""Retention: closed runs go when their namespace does not keep them any longer, or by hand; whoever waits is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from sqlalchemy import func, select
from structlog.testing import capture_logs

from romancy.v1.admin_service_pb2 import ListNamespacesRequest, Namespace, SetNamespaceRequest, SetNamespaceResponse
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_COMPLETED, WORKFLOW_STATUS_TERMINATED
from romancy.v1.workflow_service_pb2 import (
    CountWorkflowsRequest,
    DeleteWorkflowRequest,
    DeleteWorkflowResponse,
    GetHistoryRequest,
    GetWorkflowRequest,
    GetWorkflowResultRequest,
    WaitResultsRequest,
    WatchHistoryRequest,
    WatchHistoryResponse,
    WorkflowRef,
)

from romancy_service.core.limits import Limits
from romancy_service.courier import Courier
from romancy_service.rpc.admin_service import AdminService
from romancy_service.rpc.auth import CALLER, Grant, Right
from romancy_service.store.tables import attributes, history, removals, requests
from romancy_service.store.tables import runs as run_table
from tests.core.life import complete
from tests.core.talk import send
from tests.core.test_attributes import text
from tests.service.cluster import ShiftedClock, Tenant, cluster, refused, seconds, until
from tests.service.scripted_worker import PATIENCE_S

HOUR_MS, DAY_MS = 3_600_000, 86_400_000


@pytest.fixture
def moved_clock() -> Iterator[None]:
    """The clock of the replicas may be moved; later tests do not notice."""
    yield
    ShiftedClock.shift_ms = 0


@pytest_asyncio.fixture(loop_scope="session", params=["sqlite", "replicas"])
async def own(request: pytest.FixtureRequest, tmp_path: object, moved_clock: None) -> AsyncIterator[Tenant]:
    """A service of its own, whose clock may be moved far ahead."""
    alone = request.param == "sqlite"
    database = f"{tmp_path}/romancy.db" if alone else request.getfixturevalue("fresh_postgres")()
    async with cluster(database, replicas=1 if alone else 2) as up, up.tenant() as tenant:
        yield tenant


async def set_retention(tenant: Tenant, hours: float, **fields: str) -> SetNamespaceResponse:
    request = SetNamespaceRequest(namespace=tenant.namespace, retention=seconds(hours * 3600), **fields)
    return await tenant.admin.SetNamespace(request)


async def ended(tenant: Tenant, workflow_id: str = "order") -> str:
    """A run that is closed."""
    run = await tenant.start(workflow_id, request_id=f"start {workflow_id}", attributes={"customer": text("ada")})
    await tenant.terminate(run.run_id, request_id=f"end {workflow_id}")
    return run.run_id


async def delete(tenant: Tenant, run_id: str, **fields: str) -> DeleteWorkflowResponse:
    return await tenant.workflows.DeleteWorkflow(DeleteWorkflowRequest(workflow=tenant.ref(run_id), **fields))


async def left_of(tenant: Tenant, run_id: str) -> dict[str, int]:
    """How many rows of each table name the run."""
    store, found = tenant.cluster.store, {}
    for table in (run_table, history, attributes, removals, requests):
        query = select(func.count().label("count")).select_from(table).where(table.c.run_id == run_id)
        if count := (await store._read(query))[0]["count"]:
            found[table.name] = count
    return found


async def assert_not_found(tenant: Tenant, run_id: str) -> None:
    """Nobody finds the run any more, by its own id or by its workflow's."""
    for ref in (tenant.ref(run_id), tenant.ref("", "order")):
        for call in (
            tenant.workflows.GetWorkflow(GetWorkflowRequest(workflow=ref)),
            tenant.workflows.GetHistory(GetHistoryRequest(workflow=ref)),
            tenant.workflows.GetWorkflowResult(GetWorkflowResultRequest(workflow=ref)),
            tenant.workflows.DeleteWorkflow(DeleteWorkflowRequest(workflow=ref)),
        ):
            refusal = await refused(call)
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "WORKFLOW_NOT_FOUND")
    assert (await tenant.workflows.CountWorkflows(CountWorkflowsRequest(namespace=tenant.namespace))).count == 0


# By age ---------------------------------------------------------------------------------------------------------------


async def test_closed_runs_go_after_their_namespaces_retention_with_all_that_belongs_to_them(own: Tenant) -> None:
    await set_retention(own, 2)
    async with own.cluster.tenant() as usual:
        old, kept = await ended(own), await ended(usual)
        still_open = await own.start("open")
        await own.cluster.pass_ms(2 * HOUR_MS - 60_000)
        assert (await own.get(old)).info.status == WORKFLOW_STATUS_TERMINATED
        await own.cluster.pass_ms(120_000)

        async def gone() -> bool:
            return "runs" not in await left_of(own, old)

        await until(gone, "the run is deleted")
        assert (await own.get(still_open.run_id)).info.workflow_id == "open"
        assert (await usual.get(kept)).info.workflow_id == "order"

        async def only_requests() -> bool:
            await own.cluster.pass_ms(120_000)
            return await left_of(own, old) == {"requests": 2}

        await until(only_requests, "what belonged to it is cleared away, but for its requests")
        assert (await own.start("order", request_id="start order")).run_id == old, "the same request starts nothing"

        await own.cluster.pass_ms(DAY_MS)

        async def nothing() -> bool:
            return await left_of(own, old) == {}

        await until(nothing, "its requests are forgotten after a day")
        await own.terminate(still_open.run_id)
        fresh = await own.start("order", request_id="start order")
        assert fresh.run_id != old
        await own.terminate(fresh.run_id)


async def test_a_namespace_that_says_nothing_keeps_runs_as_long_as_the_service_does(own: Tenant) -> None:
    old = await ended(own)
    await own.cluster.pass_ms(Limits().retention_ms - HOUR_MS)
    young = await ended(own, "young")
    await own.cluster.pass_ms(2 * HOUR_MS)

    async def gone() -> bool:
        return "runs" not in await left_of(own, old)

    await until(gone, "the old run is deleted")
    assert (await own.get(young)).info.workflow_id == "young"


async def test_more_runs_than_a_batch_go_and_new_ones_run_meanwhile(
    own: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("romancy_service.retention.RUNS", 3)
    await set_retention(own, 1)
    await asyncio.gather(*(ended(own, f"order-{n}") for n in range(20)))
    worker = await own.worker()
    for replica in own.cluster.replicas:
        replica.retention.lead(True)  # nothing rests on its being one alone
    await own.cluster.pass_ms(2 * HOUR_MS)

    async def none_is_left() -> bool:
        wanted = CountWorkflowsRequest(namespace=own.namespace)
        return (await own.workflows.CountWorkflows(wanted)).count == 1

    run = await own.start("new")
    await worker.command(await worker.workflow_task(), complete())
    await until(none_is_left, "all but the new one are deleted")
    assert (await own.result(run.run_id)) is not None


# Namespaces -----------------------------------------------------------------------------------------------------------


async def listed(tenant: Tenant) -> dict[str, Namespace]:
    found: dict[str, Namespace] = {}
    token = ""
    while True:
        page = await tenant.admin.ListNamespaces(ListNamespacesRequest(page_size=2, page_token=token))
        assert len(page.namespaces) <= 2
        found |= {namespace.name: namespace for namespace in page.namespaces}
        token = page.next_page_token
        if not token:
            return found


async def test_a_namespace_is_listed_once_it_is_used_or_set(tenant: Tenant) -> None:
    assert tenant.namespace not in await listed(tenant)
    await tenant.start("order")
    used = (await listed(tenant))[tenant.namespace]
    assert used.retention.seconds == 30 * 86_400
    assert not used.HasField("create_time")
    said = (await set_retention(tenant, 36)).namespace
    assert said.retention.seconds == 36 * 3600
    assert said.HasField("create_time")
    assert (await listed(tenant))[tenant.namespace] == said
    changed = (await set_retention(tenant, 48)).namespace
    assert changed.create_time == said.create_time


async def test_a_repeated_request_does_not_undo_what_was_set_since(tenant: Tenant) -> None:
    first = await set_retention(tenant, 5, request_id="one")
    await set_retention(tenant, 7)
    assert await set_retention(tenant, 5, request_id="one") == first
    assert (await listed(tenant))[tenant.namespace].retention.seconds == 7 * 3600
    answers = await asyncio.gather(*(set_retention(tenant, 9, request_id="same") for _ in range(5)))
    assert all(answer == answers[0] for answer in answers)
    run = await tenant.start("order", request_id="start")
    refusal = await refused(set_retention(tenant, 5, request_id="start"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REQUEST_ID_REUSED")
    await tenant.terminate(run.run_id)


@pytest.mark.parametrize(
    "retention",
    [
        Duration(),
        Duration(seconds=-1),
        Duration(seconds=3_599),
        Duration(seconds=11 * 365 * 86_400),
        Duration(seconds=2**62),
        Duration(seconds=1, nanos=-1),
    ],
)
async def test_a_retention_that_makes_no_sense_is_refused(tenant: Tenant, retention: Duration) -> None:
    request = SetNamespaceRequest(namespace=tenant.namespace, retention=retention)
    refusal = await refused(tenant.admin.SetNamespace(request))
    assert (refusal.code, refusal.field) == (grpc.StatusCode.INVALID_ARGUMENT, "retention")
    assert tenant.namespace not in await listed(tenant)


async def test_bad_names_and_tokens_of_namespaces_are_refused(tenant: Tenant) -> None:
    hour = Duration(seconds=3_600)
    for bad in (
        SetNamespaceRequest(namespace="\x00", retention=hour),
        SetNamespaceRequest(namespace="n" * 256, retention=hour),
        SetNamespaceRequest(namespace=tenant.namespace, retention=hour, request_id="\x00"),
        SetNamespaceRequest(namespace=tenant.namespace, retention=hour, identity="\x00"),
    ):
        assert (await refused(tenant.admin.SetNamespace(bad))).code is grpc.StatusCode.INVALID_ARGUMENT
    for token in ("!", "AA==", "_w=="):
        refusal = await refused(tenant.admin.ListNamespaces(ListNamespacesRequest(page_token=token)))
        assert refusal.reason == "INVALID_PAGE_TOKEN"
    refusal = await refused(tenant.admin.ListNamespaces(ListNamespacesRequest(page_size=-1)))
    assert refusal.field == "page_size"


async def test_a_caller_is_shown_only_the_namespaces_that_it_may_act_in(tenant: Tenant) -> None:
    await tenant.start("order")
    service = AdminService(tenant.cluster.replicas[0].node)

    async def shown(*granted: str) -> list[str]:
        token = CALLER.set(Grant("somebody", frozenset(granted), frozenset(Right)))
        try:
            page = await service.ListNamespaces(ListNamespacesRequest(page_size=1_000), None)
        finally:
            CALLER.reset(token)
        return [namespace.name for namespace in page.namespaces]

    assert await shown(tenant.namespace, "unknown") == [tenant.namespace]
    assert await shown("unknown") == []
    assert tenant.namespace in await shown("*")


# By hand --------------------------------------------------------------------------------------------------------------


async def test_a_deleted_run_is_not_found_any_more_and_the_log_says_who_did_it(tenant: Tenant) -> None:
    run_id = await ended(tenant)
    with capture_logs() as lines:
        assert (await delete(tenant, run_id, request_id="gone", identity="alice", reason="too much")).run_id == run_id
    (line,) = (line for line in lines if line["event"] == "workflow deleted")
    said = {key: line[key] for key in ("namespace", "workflow_id", "run_id", "identity", "reason", "request_id")}
    assert said == {
        "namespace": tenant.namespace,
        "workflow_id": "order",
        "run_id": run_id,
        "identity": "alice",
        "reason": "too much",
        "request_id": "gone",
    }
    assert (await delete(tenant, run_id, request_id="gone")).run_id == run_id, "the same request gets the same answer"
    await assert_not_found(tenant, run_id)
    assert (await tenant.start("order", request_id="start order")).run_id == run_id, "nor does its start start again"


async def test_deletions_at_the_same_time_delete_once(tenant: Tenant) -> None:
    run_id = await ended(tenant)
    same = await asyncio.gather(*(delete(tenant, run_id, request_id="gone") for _ in range(5)))
    assert {answer.run_id for answer in same} == {run_id}
    assert (await refused(delete(tenant, run_id, request_id="another"))).reason == "WORKFLOW_NOT_FOUND"


async def test_the_newest_run_is_deleted_when_none_is_named_and_the_one_before_shows(tenant: Tenant) -> None:
    first, second = await ended(tenant), await tenant.start("order")
    await tenant.terminate(second.run_id)
    answer = await tenant.workflows.DeleteWorkflow(DeleteWorkflowRequest(workflow=tenant.ref("", "order")))
    assert answer.run_id == second.run_id
    shown = await tenant.workflows.GetWorkflow(GetWorkflowRequest(workflow=tenant.ref("", "order")))
    assert shown.info.run_id == first


async def test_a_request_id_that_deleted_one_run_deletes_no_other_of_its_workflow(tenant: Tenant) -> None:
    runs = []
    for _ in range(2):
        runs.append((await tenant.start("order")).run_id)
        await tenant.terminate(runs[-1])
    for run_id in runs:
        request = DeleteWorkflowRequest(workflow=tenant.ref(run_id, "order"), request_id="gone")
        if run_id == runs[0]:
            assert (await tenant.workflows.DeleteWorkflow(request)).run_id == run_id
        else:
            refusal = await refused(tenant.workflows.DeleteWorkflow(request))
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REQUEST_ID_REUSED")
            assert (await tenant.get(run_id)).info.run_id == run_id


async def test_an_open_run_cannot_be_deleted(tenant: Tenant) -> None:
    run = await tenant.start("order")
    refusal = await refused(delete(tenant, run.run_id, request_id="gone"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "WORKFLOW_OPEN")
    await tenant.terminate(run.run_id)
    assert (await delete(tenant, run.run_id, request_id="gone")).run_id == run.run_id


async def test_a_closed_run_is_deleted_after_what_it_has_to_tell_others_is_delivered(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await tenant.worker()
    other = await tenant.start("other", workflow_type="other")
    with monkeypatch.context() as patch:
        patch.setattr(Courier, "visit", lambda *_: None)
        run = await tenant.start("order")
        await worker.command(await worker.workflow_task(), send("1", "other"), complete())

        async def is_closed() -> bool:
            return (await tenant.get(run.run_id)).info.status == WORKFLOW_STATUS_COMPLETED

        await until(is_closed, "the run is closed")
        refusal = await refused(delete(tenant, run.run_id, request_id="gone"))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "WORKFLOW_UNSETTLED")
        assert (await tenant.get(run.run_id)).info.run_id == run.run_id

    async def deleted() -> bool:
        try:
            return (await delete(tenant, run.run_id, request_id="gone")).run_id == run.run_id
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            return False

    await until(deleted, "the run is deleted")
    assert "signal_received" in await tenant.kinds(other.run_id)
    await tenant.terminate(other.run_id)


async def test_bad_deletions_are_refused(tenant: Tenant) -> None:
    run_id = await ended(tenant)
    ref = tenant.ref(run_id)
    for bad in (
        DeleteWorkflowRequest(workflow=WorkflowRef(namespace=tenant.namespace)),
        DeleteWorkflowRequest(workflow=tenant.ref("\x00")),
        DeleteWorkflowRequest(workflow=ref, request_id="\x00"),
        DeleteWorkflowRequest(workflow=ref, identity="x" * 256),
        DeleteWorkflowRequest(workflow=ref, reason="x" * 4097),
    ):
        assert (await refused(tenant.workflows.DeleteWorkflow(bad))).code is grpc.StatusCode.INVALID_ARGUMENT
    refusal = await refused(delete(tenant, run_id, request_id="start order"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REQUEST_ID_REUSED")
    elsewhere = DeleteWorkflowRequest(workflow=WorkflowRef(namespace="elsewhere", run_id=run_id))
    assert (await refused(tenant.workflows.DeleteWorkflow(elsewhere))).reason == "WORKFLOW_NOT_FOUND"
    assert (await tenant.get(run_id)).info.run_id == run_id


async def test_whoever_waits_for_a_run_that_is_deleted_is_told(tenant: Tenant) -> None:
    """They did not hear how it ended: the run is closed and deleted behind the back of all replicas."""
    run = await tenant.start("order")
    result = asyncio.ensure_future(
        tenant.workflows.GetWorkflowResult(GetWorkflowResultRequest(workflow=tenant.ref(run.run_id), wait=seconds(60)))
    )
    stream = tenant.workflows.WaitResults()
    await stream.write(WaitResultsRequest(namespace=tenant.namespace, run_ids=[run.run_id]))
    await stream.done_writing()
    watch = tenant.workflows.WatchHistory(WatchHistoryRequest(workflow=tenant.ref(run.run_id)))
    first = await watch.read()
    assert [event.event_id for event in first.events] == [1]
    replicas = tenant.cluster.replicas

    async def all_wait() -> bool:
        waiting = [waiter for replica in replicas for waiter in replica.node.results._waiters.get(run.run_id, ())]
        watching = [event for replica in replicas for event in replica.node.results._watchers.get(run.run_id, ())]
        return len(waiting) == 2 and len(watching) == 1

    await until(all_wait, "all wait")
    for replica in replicas:
        replica.node.engine._cache.drop(run.run_id)  # as if the run had been another replica's
    await tenant.cluster.store._write(run_table.delete().where(run_table.c.run_id == run.run_id))
    if len(replicas) == 1:
        replicas[0].node.results.removed(run.run_id)
    async with asyncio.timeout(PATIENCE_S):
        assert (await refused(result)).reason == "WORKFLOW_NOT_FOUND"
        answers = [one async for answer in stream for one in answer.results]
        assert [(one.run_id, one.error.reason) for one in answers] == [(run.run_id, "WORKFLOW_NOT_FOUND")]
        assert (await refused(_rest(watch))).reason == "WORKFLOW_NOT_FOUND"


async def _rest(watch: grpc.aio.UnaryStreamCall[WatchHistoryRequest, WatchHistoryResponse]) -> None:
    while await watch.read() is not grpc.aio.EOF:
        pass
