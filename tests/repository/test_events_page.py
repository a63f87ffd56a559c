"""docs/events.md: all of its code is one program, which is run here."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from romancy import Client, Event, Worker, testing

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "events.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The page as a module."""
    path = tmp_path_factory.mktemp("events") / "events_page.py"
    path.write_text("\n\n".join(BLOCKS))
    spec = importlib.util.spec_from_file_location("events_page", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["events_page"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["events_page"]


async def listening(client: Client, workflow_id: str) -> None:
    """The workflow's code waits for an event."""
    async with asyncio.timeout(30):
        while True:
            if "event" in "".join(wait.sentence for wait in (await client.get_handle(workflow_id).describe()).waits):
                return
            await asyncio.sleep(0.02)


async def until_started(client: Client, workflow_id: str) -> None:
    """The workflow is there."""
    async with asyncio.timeout(30):
        while True:
            if workflow_id in [info.workflow_id async for info in client.list_workflows()]:
                return
            await asyncio.sleep(0.02)


async def test_what_the_page_promises_is_so(guide: ModuleType) -> None:
    workflows = [guide.wait_for_payment, guide.sum_up, guide.say_thanks]
    async with testing.service() as service, Worker(service.address, workflows=workflows):
        client = service.client
        waiting = await client.start_workflow(guide.wait_for_payment, 7, id="waiting")
        summing = await client.start_workflow(guide.sum_up, id="summing")
        for handle in (waiting, summing):
            await listening(client, handle.workflow_id)
        await client.publish_event(Event("payment.completed", guide.Payment(8, 1.0)))
        await guide.tell(client)
        assert (await waiting.result(), await summing.result()) == (99.0, 100.0)
        await guide.set_the_rule(client)
        for _ in range(2):
            await client.publish_event(Event("payment.completed", guide.Payment(7, 5.0), source="/bank", id="tx-2"))
        await until_started(client, "thanks#/bank#tx-2")
        assert await client.get_handle("thanks#/bank#tx-2").result() == "Many thanks for 5.00"
        timed_out = await client.start_workflow(guide.wait_for_payment, 9, id="timed out")
        await listening(client, timed_out.workflow_id)
        await service.skip(3 * 86_400)
        assert await timed_out.result() == 0.0
