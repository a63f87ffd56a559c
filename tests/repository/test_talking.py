"""docs/talking.md: all of its code is one program, which is run here."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from romancy import Worker, testing

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "talking.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The page as a module."""
    path = tmp_path_factory.mktemp("talking") / "talking.py"
    path.write_text("\n\n".join(BLOCKS))
    spec = importlib.util.spec_from_file_location("talking", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["talking"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["talking"]


async def test_what_the_page_promises_is_so(guide: ModuleType) -> None:
    workflows = [guide.Auction, guide.Cart, guide.build_house, guide.build_floor, guide.announce]
    async with (
        testing.service() as service,
        Worker(service.address, workflows=workflows, activities=[guide.tear_down]),
    ):
        await guide.hold_an_auction(service.client)
        await guide.fill_a_cart(service.client)
        assert await service.client.execute_workflow(guide.build_house, 3) == ["floor 0", "floor 1", "floor 2"]
        assert await service.client.execute_workflow(guide.build_house, 5) == ["no house: too high"]
        await service.client.start_workflow(guide.Auction.run, 10, id="auction")
        assert await service.client.execute_workflow(guide.announce, "auction") == "closed"
        assert await service.client.get_handle("auction").result() == 10
        assert await service.client.execute_workflow(guide.announce, "nobody") == "WORKFLOW_NOT_FOUND"


async def test_the_test_of_the_page_passes(guide: ModuleType) -> None:
    await guide.test_savings_grow()
