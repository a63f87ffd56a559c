"""Sink: a small HTTP server that takes events, and answers each as its script says."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web
from cloudevents.core.bindings.http import HTTPMessage, from_structured_event

RESET: Final = -1
"""Cut the connection instead of answering."""


@dataclass(frozen=True)
class Received:
    """A request that came."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def event(self) -> Any:
        """The event in it, as the official library reads it."""
        return from_structured_event(HTTPMessage(dict(self.headers), self.body))

    @property
    def type(self) -> str:
        """What happened."""
        return str(self.event.get_type())

    @property
    def data(self) -> Any:
        """What is known about it."""
        return self.event.get_data()

    def is_signed_with(self, secret: str) -> bool:
        """Whether one of its signatures was made with this secret, by Standard Webhooks."""
        key = base64.b64decode(secret.removeprefix("whsec_"))
        signed = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + self.body
        expected = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        return expected in self.headers.get("webhook-signature", "").split(" ")


@dataclass(frozen=True)
class Reply:
    """How a request is answered."""

    status: int = 204
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""


Script = Callable[[Received], Reply | int | Awaitable[Reply | int]]


def _takes_all(_: Received) -> int:
    return 204


@dataclass
class Sink:
    """The server."""

    script: Script = _takes_all
    port: int = 0
    received: list[Received] = field(default_factory=list)
    """All that came, in order."""
    taken: list[Received] = field(default_factory=list)
    """What was answered 2xx."""
    now: int = 0
    most: int = 0
    """So many requests were under way at the same time."""
    _runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}/events"

    async def open(self) -> None:
        """Listen, on the port that it had before."""
        application = web.Application(client_max_size=8 << 20)
        application.router.add_route("*", "/{path:.*}", self._take)
        self._runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        """Refuse connections."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _take(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        received = Received(request.path, headers, await request.read())
        self.received.append(received)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            answer = self.script(received)
            reply = await answer if isinstance(answer, Awaitable) else answer
        finally:
            self.now -= 1
        if reply == RESET:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        reply = Reply(reply) if isinstance(reply, int) else reply
        if 200 <= reply.status < 300:
            self.taken.append(received)
        return web.Response(status=reply.status, headers=dict(reply.headers), text=reply.body or None)

    async def until(self, count: int, patience_s: float = 30.0) -> list[Received]:
        """What was taken, when it is so much."""
        try:
            async with asyncio.timeout(patience_s):
                while len(self.taken) < count:
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"{len(self.taken)} of {count} events came: {[e.type for e in self.taken]}") from None
        return self.taken


@asynccontextmanager
async def sink(script: Script = _takes_all) -> AsyncIterator[Sink]:
    """A sink that is up inside the block."""
    server = Sink(script)
    await server.open()
    try:
        yield server
    finally:
        await server.close()
