"""Errands: what a run owes others is found without its other tasks, and what is stuck holds up nothing else."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from romancy.v1.channel_pb2 import Delivery
from romancy.v1.command_pb2 import Command, Send, SendMessage, StartChild
from romancy.v1.payload_pb2 import Payload

from romancy_service import courier as courier_module
from romancy_service.core.task import Task, TaskKind
from romancy_service.courier import Courier, _target
from romancy_service.errors import TooMuchContention
from romancy_service.store import rows
from romancy_service.store import store as store_module
from romancy_service.store.rows import Row
from romancy_service.store.store import Change
from tests.core.life import complete
from tests.core.talk import child, send
from tests.service.cluster import Tenant, cluster, until
from tests.service.scripted_worker import ScriptedWorker
from tests.store.drive import begin, code, store_all

CHILDREN = 120
MESSAGES = 120


def message(number: int) -> Command:
    sent = SendMessage(channel="news", data=Payload(json=str(number)))
    return Command(send=Send(send_id=str(number), channel_message=sent))


async def open_children(tenant: Tenant, worker: ScriptedWorker, run_id: str) -> None:
    """Have the parent see all of its children begin."""

    async def begun() -> bool:
        return (await tenant.kinds(run_id)).count("child_started") == CHILDREN

    await until(begun, "the children are open")
    seen = 0
    while seen < CHILDREN:
        task = await worker.workflow_task()
        seen += sum(event.HasField("child_started") for event in task.events)
        await worker.command(task)


@pytest.mark.asyncio(loop_scope="function")
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_the_errands_of_a_parent_of_many_cost_no_look_at_its_children(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    make: Callable[[], str] = request.getfixturevalue("fresh_postgres") if kind == "postgres" else lambda: ""
    decoded: Counter[TaskKind] = Counter()

    def counted(row: Row) -> Task:
        task = task_of(row)
        decoded[task.kind] += 1
        return task

    task_of = rows.task_of
    async with cluster(make() or str(tmp_path / "romancy.db")) as up, up.tenant() as tenant:
        worker = await tenant.worker(workflows=["order"])
        run_id = (await tenant.start("parent")).run_id
        children = (child(f"kid:{n}") for n in range(1, CHILDREN + 1))
        await worker.command(await worker.workflow_task(), *children)
        await open_children(tenant, worker, run_id)
        for module in (rows, store_module):
            monkeypatch.setattr(module, "task_of", counted)
        await tenant.signal(run_id, "begin")
        for number in range(1, MESSAGES + 1):
            await worker.command(await worker.workflow_task(), message(number))
        await worker.command(await worker.workflow_task())
        monkeypatch.undo()
        assert (await tenant.kinds(run_id)).count("send_finished") == MESSAGES
    assert MESSAGES <= decoded[TaskKind.SEND] < 6 * MESSAGES
    assert decoded[TaskKind.CHILD] < CHILDREN * 3, "it is read by the test of what is stored, and not for each message"


async def test_what_one_workflow_is_owed_is_done_although_another_one_is_stuck(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier_module, "PAGE", 2)
    stuck, tried = asyncio.Event(), list[str]()
    tell = Courier._tell_workflow

    async def tell_but_one(self: Courier, run: object, sent: Send) -> None:
        if sent.workflow_id == "stuck" and not stuck.is_set():
            tried.append(sent.send_id)
            raise TooMuchContention(sent.workflow_id)
        await tell(self, run, sent)  # type: ignore[arg-type]

    monkeypatch.setattr(Courier, "_tell_workflow", tell_but_one)
    worker = await tenant.worker(workflows=["order"])
    targets = [(await tenant.start(each, workflow_type="other")).run_id for each in ("stuck", "free")]
    run_id = (await tenant.start("sender")).run_id
    sends = [send(str(n), "stuck", f"m{n:02}") for n in range(1, 8)] + [send("8", "free", "hello")]
    await worker.command(await worker.workflow_task(), *sends, complete())

    async def free_is_told() -> bool:
        return await tenant.signals(targets[1]) == ["hello"]

    await until(free_is_told, "the other one is told")
    assert set(tried) == {"1"}, "none overtakes the first"
    stuck.set()
    await tenant.errands_done(run_id)
    assert await tenant.signals(targets[0]) == [f"m{n:02}" for n in range(1, 8)]


async def test_errands_are_read_in_the_order_in_which_they_were_asked_for(tenant: Tenant) -> None:
    store = tenant.cluster.store
    run = begin(f"order-of-{tenant.namespace}")
    await store_all(store, Change(run))
    await store_all(store, code(run, *(message(number) for number in range(1, 13)), child("kid:1")))
    read: list[Task] = []
    after = (0, "")
    while page := await store.errands(run.run_id, after, 5):
        assert len(page) <= 5
        read += page
        after = (page[-1].scheduled_ms, page[-1].task_id)
    assert [each.errand.send_id for each in read[:12] if isinstance(each.errand, Send)] == [
        str(n) for n in range(1, 13)
    ]
    assert isinstance(read[12].errand, StartChild)
    assert await store.errands("nobody", (0, ""), 5) == []


def targets_of(*errands: Send | StartChild) -> Sequence[str]:
    return [_target(Task(f"s/{number}", TaskKind.SEND, errand=errand)) for number, errand in enumerate(errands)]


def test_only_what_must_be_in_order_waits_for_each_other() -> None:
    returned = [Send(send_id=str(n), returned=Delivery(position=n, count=1)) for n in (1, 2)]
    one, other = targets_of(*returned)
    assert one != other, "messages that go back do not wait for each other"
    to_channel = Send(channel_message=SendMessage(channel="a"))
    to_one_run = Send(workflow_id="a", channel_message=SendMessage(channel="a"))
    channel, again, run, start, named_alike = targets_of(
        to_channel, to_channel, to_one_run, StartChild(workflow_id="a"), StartChild(workflow_id="channel a")
    )
    assert channel == again
    assert run == start
    assert len({channel, run, named_alike}) == 3
