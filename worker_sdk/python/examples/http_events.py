"""Events by HTTP: what anything that can send a request may tell, here a shop by the standard library.

python http_events.py [ADDRESS] [HTTP]        with a service at ADDRESS, by default 127.0.0.1:7233, which takes events
                                              in by HTTP, by default at 127.0.0.1:7280
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from romancy import Client, Event, Worker, WorkflowContext, workflow


@dataclass
class Order:
    number: int
    goods: list[str]


@workflow
async def pack(ctx: WorkflowContext, ordered: Event[Order]) -> str:
    return f"order {ordered.data.number}: {', '.join(ordered.data.goods)}"


def send(http: str, body: Any, **headers: str) -> str:
    """Send an event to the namespace `default`; what the service says to it."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = Request(f"http://{http}/events", json.dumps(body).encode(), names, method="POST")
    try:
        with urlopen(request, timeout=30) as answer:  # noqa: S310 - http, as said above
            return f"{answer.status} {answer.read().decode().strip()}"
    except HTTPError as error:
        with error:
            return f"{error.code} {json.loads(error.read())['message']}"


async def main(address: str = "127.0.0.1:7233", http: str = "127.0.0.1:7280") -> None:
    async with Client(address) as client, Worker(address, workflows=[pack]):
        await client.set_event_rule("pack", "order.placed", pack)
        binary = {"ce_id": "1", "ce_source": "/shop", "ce_type": "order.placed", "ce_specversion": "1.0"}
        order = {"number": 1, "goods": ["tea"]}
        for _ in range(2):
            print(await asyncio.to_thread(send, http, order, **binary, Content_Type="application/json"))
        event = {"id": "2", "source": "/shop", "type": "order.placed", "specversion": "1.0"}
        batch = [event | {"data": {"number": 2, "goods": ["cup", "pot"]}}, event | {"id": "3", "type": "order.seen"}]
        print(await asyncio.to_thread(send, http, batch, Content_Type="application/cloudevents-batch+json"))
        print(await asyncio.to_thread(send, http, {}, **binary | {"ce_id": ""}, Content_Type="application/json"))
        for number in (1, 2):
            print(await result(client, f"pack#/shop#{number}"))


async def result(client: Client, workflow_id: str) -> str:
    """That of a workflow that is being started."""
    while True:
        if workflow_id in [info.workflow_id async for info in client.list_workflows()]:
            return await client.get_handle(workflow_id, workflow=pack).result()
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
