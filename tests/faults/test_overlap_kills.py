"""The service dies at each step of replacing the open run of a schedule by its next one: the one before is ended once, as the
policy says, and each start is made once, after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pytest

from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.schedule_service_pb2 import TriggerScheduleRequest

from romancy import Client, Every
from romancy.schedules import OVERLAPS
from romancy_service.faults import CHANGE_POINTS, POINTS, SCHEDULE_POINTS
from tests.faults.families import teenager
from tests.faults.scene import Scene, until

Policy = Literal["cancel_other", "terminate_other"]
ASKED = ("change.before:1", "change.after:1", "commit.before:1", "commit.after:1")
"""It is asked for, and the open run is asked to end."""
DEATHS: dict[Policy, Sequence[str]] = {
    "cancel_other": (
        *ASKED,
        "schedule.started:1",  # it is asked to end, and nothing is started
        "schedule.before:1",
        "schedule.after:1",
        "commit.before:2",  # the run ends
        "commit.after:2",
        "commit.before:3",  # the next one starts
        "commit.after:3",
    ),
    "terminate_other": (
        *ASKED,
        "commit.before:2",
        "commit.after:2",
        "schedule.started:1",
        "schedule.before:1",
        "schedule.after:1",
    ),
}
END = {"cancel_other": "workflow_cancelled", "terminate_other": "workflow_terminated"}

pytestmark = pytest.mark.timeout(240)


def test_every_point_of_a_replacement_is_died_at() -> None:
    points = {*CHANGE_POINTS, *SCHEDULE_POINTS, *POINTS} - {"claim.after"}
    assert all({death.partition(":")[0] for death in deaths} == points for deaths in DEATHS.values())


@pytest.mark.parametrize("policy", DEATHS)
async def test_wherever_the_service_dies_the_run_before_is_ended_once_and_the_next_one_starts(
    stage: Scene, policy: Policy
) -> None:
    await stage.service()
    worker = stage.start("worker", "tests.faults.families", f"127.0.0.1:{stage.port}", "worker")
    async with stage.client() as client:

        async def trigger(request_id: str) -> str:
            request = TriggerScheduleRequest(
                namespace="default", schedule_id="s", overlap_policy=OVERLAPS[policy], request_id=request_id
            )
            return (await client.calls.call(lambda calls: calls.schedules.TriggerSchedule, request)).workflow_id

        await client.create_schedule("s", Every(60), teenager, paused=True)
        wanted = [await trigger("first")]
        await until(lambda: waits(client, wanted[-1]), "the first one waits", worker)
        for death in DEATHS[policy]:
            wanted.append(await stage.outlive(death, lambda: trigger(death)))  # noqa: B023
            await until(lambda: waits(client, wanted[-1]), f"the next one waits after {death}", worker)
            assert await trigger(death) == wanted[-1], "the same request, the same answer"
        await client.get_handle(wanted[-1]).signal("go")
        assert await client.get_handle(wanted[-1]).result() == "went"
        assert [info.workflow_id async for info in client.list_workflows()] == wanted[::-1], "each once"
        state = (await client.get_schedule_handle("s").describe()).state
        assert (state.requested_count, state.skipped_count, state.failed_count) == (len(wanted), 0, 0)
        run_ids = [info.run_id async for info in client.list_workflows()][::-1]
    histories = await stage.finish(losses=False)
    *replaced, last = [histories[run_id] for run_id in run_ids]
    for history, following in zip(replaced, [*replaced[1:], last], strict=True):
        kinds = [str(event.WhichOneof("attributes")) for event in history]
        assert kinds[-1] == END[policy]
        assert kinds.count("workflow_cancel_requested") == (1 if policy == "cancel_other" else 0)
        assert ended(history) <= begun(following), "one after the other"


async def waits(client: Client, workflow_id: str) -> bool:
    """Whether the workflow is the only one that is open, its code waits, and its schedule has nothing more to do."""
    state = (await client.get_schedule_handle("s").describe()).state
    if state.waiting or [run.workflow_id for run in state.running] != [workflow_id]:
        return False
    waits = (await client.get_handle(workflow_id).describe()).waits
    return any("wait_condition" in wait.sentence for wait in waits)


def ended(history: Sequence[HistoryEvent]) -> int:
    """When, in ms."""
    return history[-1].time.ToMilliseconds()


def begun(history: Sequence[HistoryEvent]) -> int:
    """When, in ms."""
    return history[0].time.ToMilliseconds()
