"""What a client says again with the same request id, as after a crash, happens once and is answered alike."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from romancy.v1.schedule_pb2 import Schedule

from romancy import (
    Client,
    EventRuleNotFound,
    Every,
    RequestRefused,
    ScheduleNotFound,
    TerminalError,
    Worker,
    WorkflowClosed,
    WorkflowContext,
    WorkflowHandle,
    WorkflowNotFound,
    activity,
    compensation,
    testing,
    workflow,
)
from tests.worker_sdk.test_cli import run_main

DAY = timedelta(days=1)


@workflow
class Till:
    def __init__(self) -> None:
        self.amounts: list[int] = []
        self.closed = False

    @workflow.run
    async def run(self, ctx: WorkflowContext) -> list[int]:
        await ctx.wait_condition(lambda: self.closed)
        return self.amounts

    @workflow.signal
    def pay(self, amount: int) -> None:
        self.amounts.append(amount)

    @workflow.signal
    def close(self) -> None:
        self.closed = True

    @workflow.update
    def take(self, amount: int, note: str = "") -> int:
        self.amounts.append(-amount)
        return sum(self.amounts)

    @workflow.update
    def ask(self, request_id: str) -> str:
        return request_id


@compensation
async def unship(order: str) -> None:
    raise TerminalError(f"{order} has left")


@activity(compensation=unship)
async def ship(order: str) -> None:
    assert order


@workflow
async def fails(ctx: WorkflowContext, order: str) -> None:
    await ship(order)
    raise ValueError("no money")


@pytest.fixture
async def service() -> AsyncIterator[testing.LocalService]:
    async with (
        testing.service() as service,
        Worker(service.address, workflows=[Till, fails], activities=[ship, unship]),
    ):
        yield service


@pytest.fixture
def client(service: testing.LocalService) -> Client:
    return service.client


async def stuck(client: Client) -> WorkflowHandle[None]:
    """A workflow whose compensation failed for good."""
    handle = await client.start_workflow(fails, "tea", id="stuck")
    async with asyncio.timeout(30):
        async for event in handle.watch():
            if event.HasField("compensation_failed"):
                break
    return handle


async def test_a_signal_and_an_update_are_taken_once(client: Client) -> None:
    handle = await client.start_workflow(Till.run)
    for _ in range(2):
        await handle.signal(Till.pay, 7, request_id="pay")
        await handle.signal("pay", 5, request_id="pay by name")
        assert await handle.update(Till.take, 2, note="change", request_id="take") == 10
        asked = await handle.start_update("take", 1, request_id="take by name")
        assert (asked.update_id, await asked.result()) == ("take by name", 9)
    assert await handle.update(Till.take, 1) == 8
    await handle.signal(Till.close)
    assert await handle.result() == [7, 5, -2, -1, -1]


async def test_a_request_id_is_not_taken_for_an_argument_of_that_name(client: Client) -> None:
    handle = await client.start_workflow(Till.run)
    assert await handle.update(Till.ask, "mine") == "mine"
    assert await handle.update("ask", "mine", request_id="the call's") == "mine"
    with pytest.raises(TypeError, match="has a parameter request_id of its own: give that by position"):
        await handle.update(Till.ask, request_id="mine")
    with pytest.raises(TypeError, match="request_id is 7, but must be a text"):
        await handle.signal("pay", 1, request_id=7)  # type: ignore[call-overload]


@pytest.mark.parametrize("how", ["cancel", "terminate", "delete"])
async def test_stopping_and_deleting_again_is_answered_as_the_first_time(client: Client, how: str) -> None:
    handle = await client.start_workflow(Till.run)
    if how == "delete":
        await handle.terminate()
    first = await getattr(handle, how)("enough", request_id="stop")
    if how != "delete":
        await handle.outcome()
    assert await getattr(handle, how)("enough", request_id="stop") == first
    with pytest.raises((WorkflowClosed, WorkflowNotFound)):
        await getattr(handle, how)("enough")


async def test_a_compensation_is_resolved_once(client: Client) -> None:
    handle = await stuck(client)
    for _ in range(2):
        await handle.resolve_compensation("undo/ship:1", "give_up", request_id="give up")
    with pytest.raises(RequestRefused):
        await handle.resolve_compensation("undo/ship:1", "give_up")


async def test_what_is_asked_of_a_schedule_happens_once(client: Client) -> None:
    schedule = await client.create_schedule("s", Every(DAY), Till.run, overlap="allow_all")
    since = datetime(2026, 1, 1, tzinfo=UTC)
    for _ in range(2):
        await schedule.pause("lunch", request_id="pause")
        await schedule.resume(request_id="resume")
        assert await schedule.backfill(since, since + 3 * DAY, request_id="backfill") == 3
    triggered = [(await schedule.trigger(request_id="trigger")).workflow_id for _ in range(2)]
    assert triggered[0] == triggered[1] != (await schedule.trigger()).workflow_id

    def more(changed: Schedule) -> None:
        changed.max_actions += 7

    for _ in range(2):
        await schedule.update(more, request_id="more")
    shown = await schedule.describe()
    assert (shown.schedule.max_actions, shown.info.paused, shown.info.note) == (7, False, "")
    await schedule.pause("again")
    await schedule.resume(request_id="resume")
    assert (await schedule.describe()).info.paused, "it was resumed before the pause"
    for _ in range(2):
        await schedule.delete(request_id="delete")
    with pytest.raises(ScheduleNotFound):
        await schedule.delete()


async def test_what_is_asked_of_a_rule_and_a_namespace_happens_once(client: Client) -> None:
    await client.set_event_rule("r", "paid", "anything")
    await client.pause_event_rule("r", request_id="pause")
    await client.resume_event_rule("r", request_id="resume")
    await client.pause_event_rule("r", request_id="pause")
    assert not (await client.describe_event_rule("r")).paused
    await client.pause_event_rule("r")
    await client.resume_event_rule("r", request_id="resume")
    assert (await client.describe_event_rule("r")).paused
    for _ in range(2):
        await client.delete_event_rule("r", request_id="delete")
    with pytest.raises(EventRuleNotFound):
        await client.delete_event_rule("r")
    for days in (1, 2, 1):
        set_now = await client.set_namespace(days * DAY, request_id=f"{days} days")
        assert set_now.retention.ToTimedelta() == days * DAY
    (row,) = [row async for row in client.list_namespaces() if row.name == "default"]
    assert row.retention.ToTimedelta() == 2 * DAY


async def test_the_command_takes_request_ids(service: testing.LocalService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROMANCY_ADDRESS", service.address)

    async def twice(*arguments: str) -> Any:
        """What a command says both times, for programs."""
        told = [*arguments, "--request-id", " ".join(arguments), "--json"]
        first, again = [await asyncio.to_thread(run_main, told) for _ in range(2)]
        assert (first.code, again.code, again.out) == (0, 0, first.out), (arguments, again.err)
        return json.loads(first.out)

    client = service.client
    handle = await client.start_workflow(Till.run, id="till")
    await twice("workflow", "signal", "till", "pay", "--input", "7")
    assert (await twice("workflow", "update", "till", "take", "--input", "2"))["result"] == 5
    await handle.signal(Till.close)
    assert await handle.result() == [7, -2]
    for how in ("cancel", "terminate", "delete"):
        await client.start_workflow(Till.run, id=how)
        if how == "delete":
            await client.get_handle(how).terminate()
        await twice("workflow", how, how)
    await stuck(client)
    await twice("workflow", "resolve", "stuck", "undo/ship:1", "give-up")
    schedule = await client.create_schedule("s", Every(DAY), "anything", overlap="allow_all")
    assert (await twice("schedule", "backfill", "s", "2026-01-01", "2026-01-04"))["starts"] == 3
    assert (await twice("schedule", "trigger", "s"))["workflow_id"]
    await twice("schedule", "update", "s", "--max-actions", "9")
    await twice("schedule", "pause", "s")
    await schedule.resume()
    await twice("schedule", "pause", "s")
    shown = await schedule.describe()
    assert (shown.info.paused, shown.info.revision) == (False, 2)
    await twice("schedule", "resume", "s")
    await twice("schedule", "delete", "s")
    await client.set_event_rule("r", "paid", "anything")
    for how in ("pause", "resume", "delete"):
        await twice("rule", how, "r")
    await twice("namespace", "set", "--retention", "30d")
