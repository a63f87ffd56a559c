"""docs/channels.md: all of its code is one program, which is run here."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from romancy import Worker, testing

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "channels.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The page as a module."""
    path = tmp_path_factory.mktemp("channels") / "channels_page.py"
    path.write_text("\n\n".join(BLOCKS))
    spec = importlib.util.spec_from_file_location("channels_page", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["channels_page"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["channels_page"]


async def test_what_the_page_promises_is_so(guide: ModuleType) -> None:
    async with testing.service() as service, Worker(service.address, workflows=[guide.printer, guide.customer]):
        client = service.client
        printing = await client.start_workflow(guide.printer)
        asking = await client.start_workflow(guide.customer, ["Flyer", "Book"], id="bob")
        assert await asking.result() == ["Flyer is printed", "Book is printed"]
        waiting = await client.start_workflow(guide.customer, [], id="ann")
        await waiting.result()
        await service.skip(3_600)
        assert await printing.result() == 6
        await guide.send(client)
        (left,) = [each async for each in client.list_channels() if each.name == "jobs"]
        assert (left.mode, left.unread, left.subscribers) == ("competing", 1, 0)
