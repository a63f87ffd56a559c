"""Service and workers die while parents start children, wait for them, and close: each child is started once, ends once,
and becomes what its parent said.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable

import pytest

from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.workflow_pb2 import (
    WORKFLOW_STATUS_CANCELLED,
    WORKFLOW_STATUS_RUNNING,
    WORKFLOW_STATUS_TERMINATED,
    WorkflowStatus,
)

from romancy import Client, WorkflowNotFound
from tests.faults.actor import Actor
from tests.faults.families import crowded, hasty, leaver
from tests.faults.scene import Scene, until

Fates = dict[str, WorkflowStatus.ValueType | None]

BECOMES: Fates = {
    "cancel": WORKFLOW_STATUS_CANCELLED,
    "terminate": WORKFLOW_STATUS_TERMINATED,
    "abandon": WORKFLOW_STATUS_RUNNING,
}
UNDONE: Fates = BECOMES | {"terminate": WORKFLOW_STATUS_CANCELLED}
"""A parent that is undone asks its children to stop, and waits until they have undone themselves."""
NEVER: Fates = {"cancel": None, "terminate": None, "abandon": WORKFLOW_STATUS_RUNNING}
"""What becomes of children whose start was not delivered when their parent closed."""
DEATHS = [f"commit.{when}:{hit}" for hit in (3,) for when in ("before", "after")]
ALL_DEATHS = [f"commit.{when}:{hit}" for hit in range(1, 16) for when in ("before", "after")]

pytestmark = pytest.mark.timeout(240)


def a_worker(stage: Scene, name: str) -> Actor:
    return stage.start(name, "tests.faults.families", f"127.0.0.1:{stage.port}", name)


def children_of(histories: Iterable[list[HistoryEvent]]) -> Counter[tuple[str, str]]:
    """How often each child was started, by its parent's run and its id there."""
    started = (events[0].workflow_started for events in histories)
    return Counter((each.parent.run_id, each.parent.child_id) for each in started if each.HasField("parent"))


@pytest.mark.parametrize("count", [200, pytest.param(1_000, marks=pytest.mark.slow)])
async def test_children_of_one_parent_all_start_and_report_once_while_all_else_dies(stage: Scene, count: int) -> None:
    await stage.service()
    a_worker(stage, "worker-1")
    async with stage.client() as client:
        parent = await client.start_workflow(crowded, count, id="parent")
        for third in (1, 2):

            async def closed() -> bool:
                return (await client.count_workflows()).count >= count * third // 3  # noqa: B023

            await until(closed, "a third of them is started")
            for actor in [actor for actor in stage.actors if actor.alive]:
                actor.kill()
            await stage.service()
            a_worker(stage, f"worker-{third + 1}")
        assert await parent.result() == list(range(count))
    histories = await stage.finish(losses=False)
    children = children_of(histories.values())
    assert len(children) == children.total() == count
    (events,) = [events for events in histories.values() if not events[0].workflow_started.HasField("parent")]
    kinds = Counter(event.WhichOneof("attributes") for event in events)
    assert (kinds["child_requested"], kinds["child_started"], kinds["child_closed"]) == (count, count, count)


@pytest.mark.parametrize("deaths", [DEATHS, pytest.param(ALL_DEATHS, marks=pytest.mark.slow)], ids=["some", "all"])
async def test_wherever_the_service_dies_children_become_what_their_parent_said_when_it_closed(
    stage: Scene, deaths: list[str]
) -> None:
    await _families(stage, deaths)


async def _families(stage: Scene, deaths: list[str]) -> None:
    worker: Actor | None = None
    families: dict[str, str] = {}
    async with stage.client() as client:
        for number, death in enumerate(deaths):
            service = await stage.service(ROMANCY_CRASH_AT=death)
            worker = worker or a_worker(stage, "worker-1")
            living = asyncio.gather(*(live(client, f"{how}-{number}", how) for how in ("done", "fail", "end", "hasty")))
            await until(lambda: not service.alive or living.done(), f"the service died at {death}", worker)  # noqa: B023
            assert not service.alive, f"{death} is not come to"
            service = await stage.service()
            families |= dict(await living)
            for name, how in families.items():
                await until(lambda: _have_become(client, name, how), f"the children of {name} are as they must be")  # noqa: B023
            service.kill()
        await stage.service()
        for name in families:
            await client.get_handle(f"{name}/abandon").signal("go")
            assert await client.get_handle(f"{name}/abandon").result() == "went"
        for name, how in families.items():
            assert await _have_become(client, name, how, abandoned=None)
    children = children_of((await stage.finish(losses=False)).values())
    assert set(children.values()) == {1}
    assert len(children) == sum(1 if how == "hasty" else 3 for how in families.values())


async def live(client: Client, name: str, how: str) -> tuple[str, str]:
    """A family that begins, and whose parent closes in this way."""
    handle = await client.start_workflow(hasty if how == "hasty" else leaver, name, id=name)
    if how == "end":
        await until(lambda: _have(client, name), f"{name} has its children")
        await handle.terminate("enough")
    elif how != "hasty":
        await handle.signal("close", how)
    await handle.outcome()
    return name, how


async def _have(client: Client, name: str) -> bool:
    return await status_of(client, f"{name}/abandon") is not None


async def _have_become(client: Client, name: str, how: str, *, abandoned: int | None = WORKFLOW_STATUS_RUNNING) -> bool:
    expected = NEVER if how == "hasty" else UNDONE if how == "fail" else BECOMES
    found = {policy: await status_of(client, f"{name}/{policy}") for policy in expected}
    if abandoned is None:
        del found["abandon"]
    return all(found[policy] == expected[policy] for policy in found)


async def status_of(client: Client, workflow_id: str) -> WorkflowStatus.ValueType | None:
    """None: there never was such a workflow."""
    try:
        return (await client.get_handle(workflow_id).describe()).info.status
    except WorkflowNotFound:
        return None
