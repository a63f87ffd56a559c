"""The service dies at each step of starting a workflow, whatever is to happen when its id is taken, of starting it with a
signal, and of deleting one: each call is carried out once, and is answered by what it brought about.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from romancy import Client, WorkflowHandle, WorkflowNotFound
from tests.faults.programs import STAGE
from tests.faults.scene import Scene, until
from tests.faults.talkers import guest

Call = Callable[[Client, str, str], Awaitable[WorkflowHandle[Any]]]


async def _start(client: Client, name: str, request_id: str) -> WorkflowHandle[Any]:
    about: Any = {"memo": {"by": "Ann"}, "attributes": {STAGE: "begun"}}
    return await client.start_workflow(guest, id=name, request_id=request_id, **about)


async def _use_existing(client: Client, name: str, request_id: str) -> WorkflowHandle[Any]:
    return await client.start_workflow(guest, id=name, request_id=request_id, id_conflict="use_existing")


async def _terminate_existing(client: Client, name: str, request_id: str) -> WorkflowHandle[Any]:
    return await client.start_workflow(guest, id=name, request_id=request_id, id_conflict="terminate_existing")


async def _start_after_failure(client: Client, name: str, request_id: str) -> WorkflowHandle[Any]:
    return await client.start_workflow(guest, id=name, request_id=request_id, id_reuse="allow_if_failed")


async def _signal_with_start(client: Client, name: str, request_id: str) -> WorkflowHandle[Any]:
    return await client.signal_with_start(guest, id=name, signal="note", signal_args=["told", 1], request_id=request_id)


CALLS: dict[str, tuple[Call, str, int]] = {
    "new": (_start, "", 1),
    "used": (_start, "closed", 2),
    "taken": (_use_existing, "open", 1),
    "taken over": (_terminate_existing, "open", 2),
    "after failure": (_start_after_failure, "closed", 2),
    "signalled new": (_signal_with_start, "", 1),
    "signalled open": (_signal_with_start, "open", 1),
    "signalled closed": (_signal_with_start, "closed", 2),
}
"""What is called, what is there before, and how many runs of the id there are after."""
MOST_LIVES = 3 * len(CALLS)

pytestmark = pytest.mark.timeout(240)


async def test_wherever_the_service_dies_each_start_happens_once(stage: Scene) -> None:
    service = await stage.service()
    async with stage.client() as client:
        for name, (_, before, _) in CALLS.items():
            if before:
                handle = await client.start_workflow(guest, id=name)
                if before == "closed":
                    await handle.terminate()
        service.kill()
        calls = {
            name: asyncio.create_task(call(client, name, f"request {name}")) for name, (call, _, _) in CALLS.items()
        }
        mortal, lives = service, 0

        def all_answered() -> bool:
            return all(call.done() for call in calls.values())

        while not all_answered() and lives < MOST_LIVES:
            # First nothing is stored; then in each life something is, and nobody knows.
            mortal = await stage.service(ROMANCY_CRASH_AT="commit.after:1" if lives else "commit.before:1")
            lives += 1
            await until(lambda: not mortal.alive or all_answered(), "it dies, or all are answered")  # noqa: B023
        assert lives > 2, "it did not die"
        if not mortal.alive:
            await stage.service()
        answered = {name: (await call).run_id for name, call in calls.items()}
        await _check(stage, client, answered)


async def _check(stage: Scene, client: Client, answered: dict[str, str]) -> None:
    for name, (call, _, runs) in CALLS.items():
        assert (await call(client, name, f"request {name}")).run_id == answered[name], "the same call, the same answer"
        assert len([info async for info in client.list_workflows() if info.workflow_id == name]) == runs, name
    stage.start("worker", "tests.faults.talkers", f"127.0.0.1:{stage.port}", "worker")
    for name, run_id in answered.items():
        handle = client.get_handle(name)
        await handle.signal("close")
        assert await handle.result() == ({"told": [1]} if name.startswith("signalled") else {})
        assert (await handle.describe()).info.run_id == run_id
    shown = (await client.get_handle("new").describe()).info
    assert (shown.memo["by"].json, STAGE.read(shown.attributes)) == ('"Ann"', "begun")
    await stage.finish(losses=False)


async def test_wherever_the_service_dies_a_deleted_run_stays_deleted(stage: Scene) -> None:
    service = await stage.service()
    async with stage.client() as client:
        names = [f"doomed-{number}" for number in range(4)]
        for name in (*names, "kept"):
            await (await client.start_workflow(guest, id=name)).terminate()
        for name, death in zip(names, ("removal.before", "removal.after") * 2, strict=True):
            service.kill()
            service = await stage.service(ROMANCY_CRASH_AT=f"{death}:1")
            deleting = asyncio.create_task(client.get_handle(name).delete("it was asked for"))
            await until(lambda: not service.alive, f"it dies at {death}")  # noqa: B023
            service = await stage.service()
            await deleting
            with pytest.raises(WorkflowNotFound):
                await client.get_handle(name).describe()
        assert [info.workflow_id async for info in client.list_workflows()] == ["kept"]
        # What is left of them is nobody's: the id is free, and the history is not found.
        again = await client.start_workflow(guest, id=names[0], id_reuse="reject")
        assert [event.event_id async for event in again.history()] == [1]
        await again.terminate()
    assert len(await stage.finish(losses=False)) == 2
