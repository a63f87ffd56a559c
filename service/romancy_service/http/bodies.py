"""Bodies: reads what is sent, up to a limit for each, a time for each, and a limit for all together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from romancy_service.core.limits import Limits
from romancy_service.errors import InvalidField
from romancy_service.http.errors import BodyTooSlow, TooManyBodies, UnsupportedMedia


class Bodies:
    """Those that are under way in this process."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held = 0

    @asynccontextmanager
    async def read(self, request: web.BaseRequest) -> AsyncIterator[bytes]:
        """A request's body, which is held for as long as the block lasts.

        Raises InvalidField, UnsupportedMedia, BodyTooSlow and TooManyBodies.
        """
        encoding = request.headers.get("Content-Encoding", "identity")
        if encoding.lower() != "identity":
            # What is inflated may be of any size.
            raise UnsupportedMedia("Content-Encoding", f"is {encoding[:80]!r}", "send the body as it is")
        if request.content_length is not None:
            self._check_size(request.content_length)
        parts: list[bytes] = []
        size = 0
        try:
            async for part in self._parts(request):
                size += len(part)
                self._held += len(part)
                self._check_size(size)
                if self._held > self._limits.http_bodies_bytes:
                    raise TooManyBodies(self._limits.http_bodies_bytes)
                parts.append(part)
            yield b"".join(parts)
        finally:
            self._held -= size

    async def _parts(self, request: web.BaseRequest) -> AsyncIterator[bytes]:
        limit_s = self._limits.http_body_ms / 1000
        until = asyncio.get_running_loop().time() + limit_s
        while True:
            try:
                async with asyncio.timeout_at(until):
                    part = await request.content.readany()
            except TimeoutError:
                raise BodyTooSlow(limit_s) from None
            except (web.RequestPayloadError, ConnectionError, asyncio.IncompleteReadError) as error:
                problem, remedy = f"cannot be read: {error}"[:200], "send what the headers say"
                raise InvalidField("body", problem, remedy) from None
            if not part:
                return
            yield part

    def _check_size(self, size: int) -> None:
        most = self._limits.client_message_bytes
        if size > most:
            problem, remedy = f"has {size} bytes or more, at most {most} are allowed", "send less in one request"
            raise InvalidField("body", problem, remedy, value=size, limit=most, reason="MESSAGE_TOO_LARGE")
