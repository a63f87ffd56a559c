"""docs/outbox.md: all of its code is one program, which is run here."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from romancy import Worker, testing
from romancy.outbox import new_secret
from tests.service.sink import sink

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "outbox.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The page as a module."""
    path = tmp_path_factory.mktemp("outbox") / "outbox_page.py"
    path.write_text("\n\n".join(BLOCKS))
    spec = importlib.util.spec_from_file_location("outbox_page", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["outbox_page"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["outbox_page"]


async def test_what_the_page_promises_is_so(guide: ModuleType) -> None:
    async with sink() as server, testing.service() as service:
        client, secret = service.client, new_secret()
        server.script = lambda received: 410 if received.type == "order.placed" else 204
        async with Worker(service.address, workflows=[guide.order], activities=[guide.charge]):
            await guide.set_up(client, server.url, secret)
            assert await client.execute_workflow(guide.order, 7, id="order-7") == "payment-7"
        await server.until(2)
        (paid,) = [each for each in server.taken if each.type == "order.paid"]
        assert paid.is_signed_with(secret)
        assert paid.event.get_source() == "/workflows/order"
        assert [each.type for each in server.received if each is not paid] == ["order.placed", "payment.made"]
        assert [each.event.type async for each in client.outbox.list_events(dead=True)] == ["order.placed"]
        assert await guide.send_again(client) == 0
        assert [each async for each in client.outbox.list_events(dead=True)] == []
