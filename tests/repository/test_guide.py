"""docs/python.md: all of its code is one program, which is run here."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import romancy
from romancy import ActivityDefinition, Worker, WorkflowCancelled, WorkflowDefinition, testing

TEXT = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The guide as a module."""
    path = tmp_path_factory.mktemp("guide") / "guide.py"
    path.write_text("\n\n".join(BLOCKS))
    spec = importlib.util.spec_from_file_location("guide", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["guide"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["guide"]


@pytest.fixture
async def service(guide: ModuleType) -> AsyncIterator[testing.LocalService]:
    """A service, and a worker with all that the guide defines."""
    values = vars(guide).values()
    workflows = [value for value in values if isinstance(value, WorkflowDefinition)]
    activities = [value for value in values if isinstance(value, ActivityDefinition) and not value.is_declared]
    async with testing.service() as up, Worker(up.address, workflows=workflows, activities=activities):
        yield up


TESTS = re.findall(r"^async def (test_\w+)", TEXT, re.MULTILINE)


@pytest.mark.parametrize("name", TESTS)
async def test_the_tests_of_the_guide_pass(guide: ModuleType, name: str) -> None:
    await getattr(guide, name)()


async def test_what_the_guide_does_with_clients_and_workers_works(
    guide: ModuleType, service: testing.LocalService
) -> None:
    await guide.place_an_order(service.client)
    await guide.work_for_a_while(service.address)


async def test_the_workflows_of_the_guide_do_what_it_says(guide: ModuleType, service: testing.LocalService) -> None:
    client = service.client
    asking = await client.start_workflow(guide.asks, "ORD-1")
    await service.skip(timedelta(seconds=31))
    assert await asking.result() == "in stock"
    assert await client.execute_workflow(guide.undoes, "ORD-2") == "undone"
    assert await client.execute_workflow(guide.careful, "ORD-3", 5000.0) == "declined: over the limit"
    assert await client.execute_workflow(guide.careful, "ORD-4", 5.0) == (
        "TerminalError in attempt 1 of ship_order:1 (non_retryable)"
    )
    assert await client.execute_workflow(guide.reads_its_own_source) == len("import asyncio\n")
    assert guide.charges.keys() & {"ORD-2", "ORD-3", "ORD-4"} == {"ORD-4"}


async def test_what_the_guide_says_again_happens_once(guide: ModuleType, service: testing.LocalService) -> None:
    handle = await service.client.start_workflow(guide.waits_for_ever, "ORD-7", id="ORD-7")
    await guide.pay_out(service.client, "ORD-7")
    await handle.outcome()
    await guide.pay_out(service.client, "ORD-7")
    assert [event.HasField("signal_received") async for event in handle.history()].count(True) == 1


async def test_a_cancelled_workflow_of_the_guide_cleans_up_and_is_undone(
    guide: ModuleType, service: testing.LocalService
) -> None:
    handle = await service.client.start_workflow(guide.waits_for_ever, "ORD-5")
    await service.skip(1)
    assert "ORD-5" in guide.charges
    await handle.cancel()
    with pytest.raises(WorkflowCancelled):
        await handle.result()
    shipped = [event async for event in handle.history() if event.HasField("activity_scheduled")]
    assert [event.activity_scheduled.command.activity_id for event in shipped] == ["process_payment:1", "ship_order:1"]
    assert "ORD-5" not in guide.charges


def test_an_activity_that_is_only_declared_is_known_as_such_and_a_long_one_goes_on_where_it_was(
    guide: ModuleType,
) -> None:
    assert guide.ship_elsewhere.is_declared
    assert not guide.copy_pictures.is_async


def test_every_error_that_users_may_see_is_in_the_guide() -> None:
    table = TEXT.partition("## Errors")[2].partition("```")[0]
    roots = {"RemoteError", "RomancyError", "ApplicationError", "TerminalError", "WorkflowError", "WorkflowTaskError"}
    for name in set(romancy.__all__) - roots:
        value: Any = getattr(romancy, name)
        if inspect.isclass(value) and issubclass(value, romancy.RomancyError):
            assert f"`{name}`" in table, name


def test_whatever_the_documents_name_of_the_package_is_exported() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for text in (TEXT, readme):
        for names in re.findall(r"^from romancy import (?:\((.*?)\)|(.*?)$)", text, re.DOTALL | re.MULTILINE):
            for name in re.findall(r"\w+", "".join(names)):
                assert name in romancy.__all__ or name == "testing", name
