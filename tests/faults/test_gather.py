"""Twenty activities at once, of which some are done, some fail, some are lost and some still run when the first one fails."""

from __future__ import annotations

import pytest

from romancy import WorkflowFailed, WorkflowHandle
from tests.faults.actor import Actor
from tests.faults.parts import COUNT, MIDDLE, tell, twenty
from tests.faults.scene import Scene, connected, until


def _worker(stage: Scene, name: str, kind: str) -> Actor:
    return stage.start(name, "tests.faults.parts", f"127.0.0.1:{stage.port}", name, kind)


def _begun(stage: Scene, attempt: int, worker: Actor) -> list[int]:
    """The numbers of the parts that a worker began."""
    return [
        int(e.activity_id.removeprefix("part:")) - 1
        for e in stage.ledger
        if (e.kind, e.attempt, e.worker) == ("begin", attempt, str(worker.pid)) and e.activity_id.startswith("part:")
    ]


def _count(stage: Scene, prefix: str) -> int:
    return sum(name.startswith(prefix) for name in stage.effects())


@pytest.mark.timeout(120)
async def test_what_was_done_or_may_have_been_is_undone_once_in_reverse_although_the_service_dies(stage: Scene) -> None:
    service = await stage.service()
    async with stage.client() as client:
        planner, one, two = (
            _worker(stage, name, kind)
            for name, kind in (("planner", "workflows"), ("one", "activities"), ("two", "activities"))
        )
        await until(lambda: connected(client, 3), "the workers are there", planner, one, two)
        handle = await client.start_workflow(twenty)
        await until(
            lambda: len(_begun(stage, 1, one)) + len(_begun(stage, 1, two)) == COUNT, "all run", one, two, service
        )
        mine, theirs = _begun(stage, 1, one), _begun(stage, 1, two)
        assert len(theirs) >= 9, "they are shared"

        done = [*mine[:4], *theirs[:3]]
        tell(stage.folder, "do", *done)
        await until(lambda: _count(stage, "part:") == len(done), "some are done", one, two)
        lost, had_effect = mine[4:], mine[4:6]
        tell(stage.folder, "hang", *had_effect)
        await until(lambda: _count(stage, "part:") == len(done) + 2, "two had their effect and did not answer", one)
        await until(lambda: _is_open(handle, COUNT - len(done)), "what is done is recorded", service)
        one.kill()
        again = [lost[0], lost[-1]]
        tell(stage.folder, "do", *again)
        (stage.folder / f"part-{had_effect[1]}").unlink()  # its next attempt waits like the others
        await until(lambda: sorted(_begun(stage, 2, two)) == sorted(lost), "what was lost runs again", two, service)
        await until(lambda: _is_open(handle, COUNT - len(done) - 2), "two of them are done this time", two)

        failed, deaf, stopped_or_finished = theirs[3:6], theirs[6], theirs[7:]
        tell(stage.folder, "deaf", deaf)
        tell(stage.folder, "fail", *failed)
        await until(lambda: (stage.folder / "asked").exists(), "what runs is asked to stop", two, service)
        await until(lambda: _is_open(handle, 1), "all but one have answered", two, service)
        assert not _count(stage, "undo/"), "nothing is undone while anything runs"
        two.kill()
        await until(lambda: len(_undoing(stage)) == MIDDLE + 1, "the rollback is under way", planner, service)
        assert _count(stage, "undo/") == MIDDLE, "the next one has begun, and waits"
        service.kill()
        (stage.folder / "go-on").touch()
        await until(lambda: _count(stage, "undo/") == MIDDLE + 1, "its answer waits for the service", planner)
        await stage.service()
        with pytest.raises(WorkflowFailed, match=r"part \d+ failed"):
            await handle.result()
    await stage.finish()  # which checks the order
    finished = [number for number in stopped_or_finished if number % 2]
    undone = [name for name in stage.effects() if name.startswith("undo/")]
    assert sorted(undone) == sorted(f"undo/part:{n + 1}" for n in {*done, *lost, *finished, deaf}), "each once"


def _undoing(stage: Scene) -> list[str]:
    return [
        entry.activity_id for entry in stage.ledger if entry.kind == "begin" and entry.activity_id.startswith("undo/")
    ]


async def _is_open(handle: WorkflowHandle[int], count: int) -> bool:
    return len((await handle.describe()).activities) == count
