"""Signals and updates: every one that was accepted reaches the code once, in order, whatever the run is doing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from romancy.v1.command_pb2 import Command
from romancy.v1.failure_pb2 import Failure
from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.payload_pb2 import Payload
from romancy.v1.worker_service_pb2 import ACKNOWLEDGEMENT_RESULT_ACCEPTED, WorkflowTask
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_CANCELLED, Signal
from romancy.v1.workflow_service_pb2 import (
    UPDATE_STAGE_ACCEPTED,
    UPDATE_STAGE_COMPLETED,
    UPDATE_STAGE_RECEIVED,
    SignalWithStartRequest,
    SignalWorkflowRequest,
    UpdateWorkflowRequest,
    UpdateWorkflowResponse,
)
from romancy.v1.workflow_service_pb2_grpc import WorkflowServiceStub

from tests.core.life import CANCEL, complete, fail, schedule
from tests.core.talk import accept, answer, recur, reject
from tests.service.cluster import Tenant, refused, seconds, until
from tests.service.scripted_worker import ScriptedWorker


def brought(events: list[HistoryEvent]) -> list[str]:
    """The signals and updates among events, by name or id."""
    names = (e.signal_received.signal.name or e.update_received.update_id for e in events)
    return [name for name in names if name]


def after(seen: list[str], task: WorkflowTask) -> list[str]:
    """What the code has been brought with this task: more, or all over again."""
    return [*(seen if task.after_event_id else []), *brought(list(task.events))]


async def begin(tenant: Tenant, *commands: Command) -> tuple[ScriptedWorker, str]:
    """A run whose code has begun to wait, and its worker."""
    worker = await tenant.worker()
    run_id = (await tenant.start("order")).run_id
    await worker.command(await worker.workflow_task(), *commands)
    return worker, run_id


async def update_that_arrived(
    tenant: Tenant, run_id: str, update_id: str, **fields: object
) -> asyncio.Task[UpdateWorkflowResponse]:
    """An update that is recorded and not answered."""
    asking = asyncio.create_task(tenant.update(run_id, update_id, **fields))

    async def recorded() -> bool:
        return update_id in brought(await tenant.history(run_id))

    await until(recorded, "the update is recorded")
    return asking


# Signals --------------------------------------------------------------------------------------------------------------


async def test_signals_reach_a_busy_run_in_order_with_its_next_task(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant, schedule("pay:1"))
    await tenant.signal(run_id, "first")
    task = await worker.workflow_task()
    for name in ("a", "b", "c"):
        await tenant.signal(run_id, name)
    await worker.command(task)
    assert after(brought(list(task.events)), await worker.workflow_task()) == ["first", "a", "b", "c"]


async def test_a_signal_says_who_sent_it_and_what(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant)
    await tenant.signal(run_id, "pay", identity="ann", arguments=[Payload(json="7")])
    event = (await worker.workflow_task()).events[-1]
    assert event.signal_received.signal == Signal(name="pay", identity="ann", arguments=[Payload(json="7")])


async def test_the_same_request_id_signals_once_also_after_the_run_closed(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant)
    for _ in range(3):
        assert await tenant.signal(run_id, request_id="r1") == run_id
    await worker.command(await worker.workflow_task(), complete())
    assert await tenant.signal(run_id, request_id="r1") == run_id
    assert await tenant.signals(run_id) == ["hello"]


async def test_a_request_id_of_another_call_is_refused(tenant: Tenant) -> None:
    _, run_id = await begin(tenant)
    await tenant.signal(run_id, request_id="r1")
    assert (await refused(tenant.cancel(run_id, request_id="r1"))).reason == "REQUEST_ID_REUSED"


async def test_a_request_id_of_another_workflow_or_another_name_is_refused(tenant: Tenant) -> None:
    _, run_id = await begin(tenant)
    other = (await tenant.start("other")).run_id
    await tenant.signal(run_id, request_id="r1")
    for reused in (
        tenant.signal(other, request_id="r1"),
        tenant.signal("", workflow_id="other", request_id="r1"),
        tenant.signal(run_id, "another", request_id="r1"),
    ):
        assert (await refused(reused)).reason == "REQUEST_ID_REUSED"
    workflow_id = (await tenant.get(run_id)).info.workflow_id
    assert await tenant.signal("", workflow_id=workflow_id, request_id="r1") == run_id, "the same run by its other name"
    assert (await tenant.signals(run_id), await tenant.signals(other)) == (["hello"], [])


async def test_a_run_that_is_closed_or_undoes_itself_is_told_nothing(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant, schedule("pay:1", "refund"))
    await worker.complete(await worker.activity())
    await worker.command(await worker.workflow_task(), fail())
    refund = await worker.activity()
    undoing = await refused(tenant.signal(run_id))
    assert (undoing.code, undoing.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "WORKFLOW_CLOSED")
    assert "undoing" in undoing.message
    await worker.complete(refund)
    await tenant.result(run_id)
    assert (await refused(tenant.signal(run_id))).reason == "WORKFLOW_CLOSED"
    assert (await refused(tenant.update(run_id, "u1"))).reason == "WORKFLOW_CLOSED"


async def test_eight_clients_at_once_lose_nothing_and_each_keeps_its_order(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant)

    async def client(number: int) -> None:
        for n in range(12):
            await tenant.signal(run_id, f"{number}-{n:02}")

    async with asyncio.TaskGroup() as clients:
        for number in range(8):
            clients.create_task(client(number))
        seen: list[str] = []
        while len(seen) < 96:
            task = await worker.workflow_task()
            seen = after(seen, task)
            await worker.command(task)
    assert sorted(seen) == [f"{number}-{n:02}" for number in range(8) for n in range(12)]
    for number in range(8):
        ours = [name for name in seen if name.startswith(f"{number}-")]
        assert ours == sorted(ours)


async def test_signal_with_start_starts_or_tells_and_is_safe_to_repeat(tenant: Tenant) -> None:
    async def tell(name: str, request_id: str) -> tuple[str, bool]:
        start = tenant.start_request("order", request_id=request_id)
        told = await tenant.workflows.SignalWithStart(SignalWithStartRequest(start=start, signal=Signal(name=name)))
        return told.run_id, told.started

    run_id, started = await tell("a", "r1")
    assert started
    assert await tell("b", "r2") == (run_id, False)
    assert await tell("a", "r1") == (run_id, True)
    assert await tell("b", "r2") == (run_id, False)
    worker = await tenant.worker()
    task = await worker.workflow_task()
    assert brought(list(task.events)) == ["a", "b"]
    await worker.command(task, complete())
    next_run_id, started = await tell("c", "r3")
    assert (started, next_run_id == run_id) == (True, False)


async def test_a_signal_by_workflow_id_follows_a_workflow_that_recurs_all_the_time(tenant: Tenant) -> None:
    worker = await tenant.worker()
    await tenant.start("order")

    async def recurring() -> None:
        while True:
            await worker.command(await worker.workflow_task(), recur(task_queue="queue"))

    running = asyncio.create_task(recurring())
    for n in range(20):
        await tenant.signal("", f"s{n}", workflow_id="order")
    running.cancel()


# Recurring ------------------------------------------------------------------------------------------------------------


async def last_task(worker: ScriptedWorker, tenant: Tenant, run_id: str) -> WorkflowTask:
    """A task of a run that waits, brought by a signal."""
    await tenant.signal(run_id, "wake")
    return await worker.workflow_task()


async def test_recurring_carries_over_what_no_task_brought(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant)
    task = await last_task(worker, tenant, run_id)
    await tenant.signal(run_id, "late")
    asking = await update_that_arrived(tenant, run_id, "u1")
    await tenant.signal(run_id, "later")
    await worker.command(task, recur("kept", task_queue="queue"))
    following = await worker.workflow_task()
    assert following.run_id != run_id
    assert brought(list(following.events)) == ["kept", "late", "u1", "later"]
    assert following.events[0].workflow_started.continued_from_run_id == run_id
    await worker.command(following, accept("u1"), answer("u1"))
    answered = await asking
    assert (answered.run_id, answered.stage) == (following.run_id, UPDATE_STAGE_COMPLETED)
    again = await tenant.update("", "u1", workflow=tenant.ref(workflow_id="order"))
    assert (again.run_id, again.result.json) == (following.run_id, "1"), "a repeated update follows as well"
    outcome = await tenant.result(run_id)
    assert outcome is not None
    assert outcome.continued_run_id == following.run_id


async def test_a_request_to_stop_reaches_the_run_that_goes_on(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant)
    task = await last_task(worker, tenant, run_id)
    await tenant.cancel(run_id, reason="enough")
    await worker.command(task, recur(task_queue="queue"))
    following = await worker.workflow_task()
    assert following.events[-1].workflow_cancel_requested.reason == "enough"
    await worker.command(following, CANCEL)
    outcome = await tenant.result(following.run_id)
    assert outcome is not None
    assert outcome.status == WORKFLOW_STATUS_CANCELLED


# Updates --------------------------------------------------------------------------------------------------------------


async def test_an_update_is_accepted_and_answered(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant)
    asking = asyncio.create_task(tenant.update(run_id, "u1", wait_for=UPDATE_STAGE_ACCEPTED))
    await worker.command(await worker.workflow_task(), accept("u1"))
    accepted = await asking
    assert (accepted.update_id, accepted.stage) == ("u1", UPDATE_STAGE_ACCEPTED)
    asking = asyncio.create_task(tenant.update(run_id, "u1"))
    await tenant.signal(run_id)
    await worker.command(await worker.workflow_task(), answer("u1"))
    completed = await asking
    assert (completed.stage, completed.result.json, completed.rejected) == (UPDATE_STAGE_COMPLETED, "1", False)
    assert (await tenant.kinds(run_id)).count("update_received") == 1


async def test_an_update_is_followed_from_the_event_that_recorded_it(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, run_id = await begin(tenant)
    for number in range(30):
        await tenant.signal(run_id, f"before-{number}")
    read: list[HistoryEvent] = []
    for replica in tenant.cluster.replicas:
        updates = replica.node.updates

        async def reading(run_id: str, after: int, original: Callable[..., Any] = updates._read) -> list[HistoryEvent]:
            page = list(await original(run_id, after))
            read.extend(page)
            return page

        monkeypatch.setattr(updates, "_read", reading)
    asking = await update_that_arrived(tenant, run_id, "u1")
    seen: list[str] = []
    while "u1" not in seen:
        task = await worker.workflow_task()
        seen = after(seen, task)
        await worker.command(task, *([accept("u1"), answer("u1")] if "u1" in seen else []))
    answered = await asking
    recorded = next(event for event in await tenant.history(run_id) if event.HasField("update_received"))
    assert answered.event_id == recorded.event_id
    again = await tenant.update(run_id, "u1")
    assert again == answered, "asked again it is followed from there, too"
    assert read
    assert min(event.event_id for event in read) > recorded.event_id > 30


async def test_a_refused_update_says_why(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant)
    asking = asyncio.create_task(tenant.update(run_id, "u1"))
    await worker.command(await worker.workflow_task(), reject("u1"))
    refusal = await asking
    assert (refusal.stage, refusal.rejected, refusal.failure.type) == (UPDATE_STAGE_COMPLETED, True, "Refused")


async def test_what_the_handler_raised_is_the_answer(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant)
    asking = asyncio.create_task(tenant.update(run_id, "u1"))
    failed = answer("u1", failure=Failure(message="sold out", type="SoldOut"))
    await worker.command(await worker.workflow_task(), accept("u1"), failed)
    assert (await asking).failure.type == "SoldOut"


async def test_an_update_that_is_not_answered_in_time_says_how_far_it_got(tenant: Tenant) -> None:
    _, run_id = await begin(tenant)
    answered = await tenant.update(run_id, "u1", wait=seconds(0.05))
    assert answered.stage == UPDATE_STAGE_RECEIVED
    recorded = await tenant.update(run_id, "u1", wait_for=UPDATE_STAGE_RECEIVED)
    assert recorded.stage == UPDATE_STAGE_RECEIVED


async def test_an_update_of_a_run_that_ends_first_is_aborted(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant)
    task = await last_task(worker, tenant, run_id)
    unread = await update_that_arrived(tenant, run_id, "unread")
    await worker.command(task, complete())
    assert (await refused(unread)).reason == "UPDATE_ABORTED"
    again = await refused(tenant.update(run_id, "unread"))
    assert (again.code, again.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "UPDATE_ABORTED")


async def test_an_update_that_was_accepted_is_told_so_although_its_run_ended_at_once(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant)
    asking = asyncio.create_task(tenant.update(run_id, "u1", wait_for=UPDATE_STAGE_ACCEPTED))
    await worker.command(await worker.workflow_task(), accept("u1"), complete())
    assert (await asking).stage == UPDATE_STAGE_ACCEPTED
    assert (await refused(tenant.update(run_id, "u1"))).reason == "UPDATE_ABORTED"


async def test_an_update_is_heard_of_on_whichever_replica_it_is_asked(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant)
    stubs = [WorkflowServiceStub(tenant.open_channel(replica.port)) for replica in tenant.cluster.replicas]
    request = UpdateWorkflowRequest(workflow=tenant.ref(run_id), name="change", request_id="u1")
    asking = [stub.UpdateWorkflow(request) for stub in stubs for _ in range(2)]
    await worker.command(await worker.workflow_task(), accept("u1"), answer("u1"))
    assert {answered.result.json for answered in await asyncio.gather(*asking)} == {"1"}
    assert (await tenant.kinds(run_id)).count("update_received") == 1


async def test_an_answer_to_an_update_that_nobody_asked_for_fails_the_task(tenant: Tenant) -> None:
    worker, run_id = await begin(tenant)
    await tenant.signal(run_id)
    acknowledgement = await worker.command(await worker.workflow_task(), answer("nobody"))
    assert acknowledgement.result != ACKNOWLEDGEMENT_RESULT_ACCEPTED
    assert acknowledgement.rejection.metadata["field"] == "commands[0].complete_update.update_id"
    assert "update_completed" not in await tenant.kinds(run_id)


# Bad input ------------------------------------------------------------------------------------------------------------


async def test_bad_fields_of_signals_are_named(tenant: Tenant) -> None:
    _, run_id = await begin(tenant)
    bad = {
        "signal.name": SignalWorkflowRequest(signal=Signal(name="")),
        "signal.arguments[0]": SignalWorkflowRequest(
            signal=Signal(name="a", arguments=[Payload(binary=b"x" * (2 << 20) + b"x")])
        ),
        "request_id": SignalWorkflowRequest(signal=Signal(name="a"), request_id="\0"),
        "identity": SignalWorkflowRequest(signal=Signal(name="a"), identity="x" * 256),
        "workflow.workflow_id": SignalWorkflowRequest(signal=Signal(name="a")),
    }
    for field, request in bad.items():
        if field != "workflow.workflow_id":
            request.workflow.CopyFrom(tenant.ref(run_id))
        refusal = await refused(tenant.workflows.SignalWorkflow(request))
        assert (refusal.code, refusal.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert await tenant.signals(run_id) == []


async def test_bad_fields_of_updates_are_named(tenant: Tenant) -> None:
    _, run_id = await begin(tenant)
    bad = {
        "name": UpdateWorkflowRequest(),
        "wait_for": UpdateWorkflowRequest(name="change", wait_for=9),  # type: ignore[arg-type]
        "wait": UpdateWorkflowRequest(name="change", wait=seconds(-1)),
        "request_id": UpdateWorkflowRequest(name="change", request_id="x" * 256),
    }
    for field, request in bad.items():
        request.workflow.CopyFrom(tenant.ref(run_id))
        assert (await refused(tenant.workflows.UpdateWorkflow(request))).field == field
    assert (await refused(tenant.signal("none"))).reason == "WORKFLOW_NOT_FOUND"
