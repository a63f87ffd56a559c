"""A shop that tells the world: events go out with the steps that they tell of, to a web server that is away at first.

python outbox.py [ADDRESS]        with a service at ADDRESS, by default the one of `dev`, which may send to this machine
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

from romancy import Client, Event, TerminalError, Worker, WorkflowContext, activity, compensation, send_event, workflow

ORDERS = 3


@compensation
def refund(order: int) -> None:
    send_event(Event("order.refunded", order))


@activity(compensation=refund)
def charge(order: int) -> int:
    send_event(Event("order.charged", order))
    return order * 10


@activity
def ship(order: int) -> None:
    send_event(Event("order.shipped", order))
    if order == ORDERS:
        raise TerminalError("there is nothing left")  # so nobody hears that it was shipped


@workflow
async def order(ctx: WorkflowContext, number: int) -> None:
    ctx.send_event(Event("order.placed", number))
    await charge(number)
    await ship(number)
    ctx.send_event(Event("order.done", number))


class Hook(BaseHTTPRequestHandler):
    """What a web server of yours would do: take each event once, in the order of its workflow."""

    told: ClassVar[dict[str, list[str]]] = {}
    known: ClassVar[set[tuple[str, str]]] = set()

    def do_POST(self) -> None:
        event: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if event["type"] == "order.placed" and event["data"] == 2:
            self.send_response(400)  # it knows better: this one becomes a dead letter, and the next ones go on
        else:
            self.send_response(204)
            if (key := (event["source"], event["id"])) not in self.known:
                self.known.add(key)
                self.told.setdefault(f"order {event['data']}", []).append(event["type"].removeprefix("order."))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Not here."""


async def main(address: str = "127.0.0.1:7233") -> None:
    server = HTTPServer(("127.0.0.1", 0), Hook)
    async with Client(address) as client, Worker(address, workflows=[order], activities=[charge, ship, refund]):
        runs = [await client.start_workflow(order, number) for number in range(1, ORDERS + 1)]
        results = await asyncio.gather(*(run.result() for run in runs), return_exceptions=True)
        print([type(result).__name__ for result in results])
        waiting = [each async for each in client.outbox.list_events()]
        print(f"{len(waiting)} events wait for a sink")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        await client.outbox.set_sink(f"http://127.0.0.1:{server.server_port}/")
        await delivered(client)
        for name in sorted(Hook.told):
            print(f"{name}: {', '.join(Hook.told[name])}")
        async for letter in client.outbox.list_events(dead=True):
            print(f"not taken: {letter.event.type} {letter.event.data}, {letter.last_error}")
            await client.outbox.drop(letter.position)
    server.shutdown()


async def delivered(client: Client) -> None:
    """Until nothing waits any more."""
    while [each async for each in client.outbox.list_events()]:  # noqa: ASYNC110 - nobody else could say so
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
