"""Proxy: a TCP proxy for tests. It moves connections between targets, cuts them, freezes them, delays them, or holds
what one side said and delivers it after that side is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Address = tuple[str, int] | str
"""Host and port, or the path of a Unix socket."""

_PIECE = 64 * 1024


@dataclass(eq=False)
class Link:
    """One connection through the proxy."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    target: int
    """Which of the proxy's targets it leads to."""
    pumps: list[asyncio.Task[None]] = field(default_factory=list)
    abandoned: bool = False
    """The client was cut off; what it had sent still goes to the server."""

    def cut(self) -> None:
        """Reset both ends: whatever was under way is lost."""
        for pump in self.pumps:
            pump.cancel()
        for writer in (self.client, self.server):
            if not writer.transport.is_closing():
                writer.transport.abort()


class Proxy:
    """Listens on `port`; each new connection goes to `targets[turn]`, and with `alternate` the next one to the next."""

    def __init__(self, targets: Sequence[Address], *, alternate: bool = False) -> None:
        self.targets = list(targets)
        self.turn = 0
        self.alternate = alternate
        self.delay_s = 0.0
        self.refusing = False
        """New connections are closed at once, as if nobody listened."""
        self.accepted = 0
        self.holding = asyncio.Event()
        """Something was held back since it froze."""
        self.links: set[Link] = set()
        self.port = 0
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._up.set()
        self._down.set()
        self._server: asyncio.Server | None = None

    # Faults ---------------------------------------------------------------------------------------------------------

    def cut(self, target: int | None = None) -> int:
        """Reset all connections, or those to one target. Returns how many there were."""
        chosen = [link for link in self.links if target in (None, link.target)]
        for link in chosen:
            link.cut()
        return len(chosen)

    def move(self, target: int) -> int:
        """Send all connections to `target` from now on: the open ones are cut, since TCP cannot be moved."""
        self.turn = target
        return self.cut()

    def freeze(self, *, up: bool = True, down: bool = True) -> None:
        """Hold back what is sent up (to the targets), or down; the connections stay open."""
        self.holding.clear()
        if up:
            self._up.clear()
        if down:
            self._down.clear()

    def thaw(self) -> None:
        """Let everything pass again, also what was held back."""
        self._up.set()
        self._down.set()

    def abandon(self) -> None:
        """Cut the clients off, but deliver to the servers what had been held back, as soon as it thaws."""
        for link in list(self.links):
            link.abandoned = True
            link.pumps[1].cancel()
            if not link.client.transport.is_closing():
                link.client.transport.abort()

    # Carrying -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Cut everything and listen no more."""
        assert self._server is not None
        self._server.close()
        pumps = [pump for link in self.links for pump in link.pumps]
        self.cut()
        await asyncio.gather(*pumps, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        number = self.turn
        if self.alternate:
            self.turn = (self.turn + 1) % len(self.targets)
        target = self.targets[number]
        try:
            if self.refusing:
                raise ConnectionRefusedError
            if isinstance(target, str):
                answers, server = await asyncio.open_unix_connection(target)
            else:
                answers, server = await asyncio.open_connection(*target)
        except OSError:
            client.transport.abort()
            return
        self.accepted += 1
        link = Link(client, server, number)
        link.pumps = [
            asyncio.create_task(self._pump(link, reader, server, self._up)),
            asyncio.create_task(self._pump(link, answers, client, self._down)),
        ]
        self.links.add(link)
        try:
            await asyncio.gather(*link.pumps, return_exceptions=True)
        finally:
            self.links.discard(link)
            link.cut()

    async def _pump(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, open_: asyncio.Event
    ) -> None:
        try:
            while piece := await reader.read(_PIECE):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if not open_.is_set():
                    self.holding.set()
                await open_.wait()
                writer.write(piece)
                await writer.drain()
        except OSError:
            pass
        finally:
            if not link.abandoned and not writer.transport.is_closing():
                writer.close()


@asynccontextmanager
async def proxy(targets: Sequence[Address], *, alternate: bool = False) -> AsyncIterator[Proxy]:
    """A proxy that listens inside the block."""
    between = Proxy(targets, alternate=alternate)
    await between.start()
    try:
        yield between
    finally:
        between.thaw()
        await between.stop()
