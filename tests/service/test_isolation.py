"""One bad thing among good ones: only it is refused, and the others go on as if it were not there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from sqlalchemy import update

from romancy.v1.worker_service_pb2 import (
    ACKNOWLEDGEMENT_RESULT_ACCEPTED,
    ACKNOWLEDGEMENT_RESULT_STALE,
    ActivityCompletion,
    Chunk,
    ConnectRequest,
    Hello,
    WorkflowTaskCompletion,
    WorkflowTaskMiss,
)
from romancy.v1.worker_service_pb2_grpc import WorkerServiceStub
from romancy.v1.workflow_service_pb2 import GetHistoryRequest, GetHistoryResponse

from romancy_service.config import Address, Config, Security
from romancy_service.server import running
from romancy_service.store.tables import history
from tests.core.life import complete, schedule
from tests.service.cluster import QUICK, Tenant, json, refusal_of, refused


async def test_good_completions_in_a_frame_with_a_stale_one_are_accepted(tenant: Tenant) -> None:
    worker = await tenant.worker(activities=[])
    mine = await tenant.worker(workflows=[], activities=["ship"])
    other = await tenant.worker(workflows=[], activities=["pay"])
    run = await tenant.start("order")
    await worker.command(await worker.workflow_task(), schedule("ship:1"), schedule("pay:1"), schedule("ship:2"))
    first, second, theirs = await mine.activity(), await mine.activity(), await other.activity()
    frame = [ActivityCompletion(token=task.token, result=json("1")) for task in (first, theirs, second)]
    await mine.send(ConnectRequest(activity_completions=frame))
    answers = {}
    for _ in frame:
        answer = await mine.acknowledgements.take("acknowledgement")
        answers[answer.token] = answer.result
    assert answers == {
        first.token: ACKNOWLEDGEMENT_RESULT_ACCEPTED,
        theirs.token: ACKNOWLEDGEMENT_RESULT_STALE,
        second.token: ACKNOWLEDGEMENT_RESULT_ACCEPTED,
    }
    assert (await tenant.kinds(run.run_id)).count("activity_completed") == 2
    assert (await other.complete(theirs)).result == ACKNOWLEDGEMENT_RESULT_ACCEPTED


async def test_a_history_that_cannot_be_read_fails_only_those_who_ask_for_it(tenant: Tenant) -> None:
    worker = await tenant.worker()
    bad, good = await tenant.start(), await tenant.start()
    tasks = {task.run_id: task for task in [await worker.workflow_task() for _ in range(2)]}
    whole = {run_id: await tenant.cluster.store.show_history(run_id, 0, 10, 1 << 20) for run_id in tasks}
    store = tenant.cluster.store
    await store._write(update(history).where(history.c.run_id == bad.run_id).values(events=b"\xff"))
    try:
        question = GetHistoryRequest(workflow=tenant.ref(bad.run_id))
        refusal = await refused(tenant.workflows.GetHistory(question))
        assert refusal.code is grpc.StatusCode.INTERNAL
        # Nor can its task be sent whole. Nobody else notices, not even on the same stream.
        await worker.send(_miss(tasks[bad.run_id].token))
        await worker.command(tasks[good.run_id], complete())
        assert await tenant.result(good.run_id) is not None
        assert [event.event_id for event in await tenant.history(good.run_id)] == [1, 2]
        assert not worker.ended.done()
    finally:
        events = GetHistoryResponse(events=whole[bad.run_id]).SerializeToString()
        await store._write(update(history).where(history.c.run_id == bad.run_id).values(events=events))
    await tenant.terminate(bad.run_id)


def _miss(token: str) -> ConnectRequest:
    missed = WorkflowTaskCompletion(token=token, miss=WorkflowTaskMiss())
    return ConnectRequest(workflow_task_completions=[missed])


@pytest_asyncio.fixture(loop_scope="session")
async def guarded(tmp_path: Path) -> AsyncIterator[int]:
    """The port of a service that knows one worker, of the namespace `orders`."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"token:{sha256(b'secret').hexdigest()} worker orders work\n")
    security = Security(token_file=tokens)
    database = str(tmp_path / "romancy.db")
    config = Config(database=database, listen=Address("127.0.0.1", 0), limits=QUICK, security=security)
    async with running(config) as service:
        yield service.port


@pytest.mark.parametrize(("namespace", "welcome"), [("orders", True), ("returns", False), ("", False)])
async def test_a_worker_that_says_hello_in_pieces_connects_only_to_its_namespaces(
    guarded: int, namespace: str, welcome: bool
) -> None:
    hello = Hello(namespace=namespace, worker_id="w", task_queues=["q"], activity_types=["pay"], activity_slots=1)
    data = ConnectRequest(hello=hello).SerializeToString()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{guarded}") as channel:
        call = WorkerServiceStub(channel).Connect(metadata=(("authorization", "Bearer secret"),))
        for piece, last in ((data[:5], False), (data[5:], True)):
            await call.write(ConnectRequest(chunk=Chunk(frame_id=1, data=piece, last=last)))
        if welcome:
            assert (await call.read()).welcome.session_id
            call.cancel()
            return
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call.read()
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "namespace" in refusal_of(error.value).message
