"""Crew: processes of one program that share the orders of a client. Orders and receipts are lines of JSON."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Final, Self

from tests.bench.closed_loop import Place, tell
from tests.bench.order import Order, Receipt, order_of, receipt_of

END_S: Final = 5.0
"""So long may a member take to end when no more orders come; then it is killed."""


class MemberEnded(Exception):
    """A process of the crew is gone, though orders are placed."""


class Crew:
    """Members, for the time of the block. Each order goes to the one that has the fewest open.

    SIGTERM ends all of them at once: none may still be busy when another system is measured.
    """

    def __init__(self, commands: Sequence[Sequence[str]]) -> None:
        self._commands = commands
        self._members: list[_Member] = []

    async def __aenter__(self) -> Self:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._kill)
        # One after the other: the first may have to set up what all of them use.
        for command in self._commands:
            member = _Member(await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE))
            self._members.append(member)
            await member.start()
        return self

    async def place(self, placed: Order) -> Receipt:
        """Have one of them carry out the order. Raises MemberEnded."""
        return await min(self._members, key=lambda member: len(member.open)).place(placed)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(member.end() for member in self._members))
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)

    def _kill(self) -> None:
        for member in self._members:
            member.kill()


@dataclass(slots=True)
class _Member:
    process: Process
    open: dict[str, asyncio.Future[Receipt]] = field(default_factory=dict)
    """What it was given, by the order's id."""
    _reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        assert self.process.stdout is not None
        if not await self.process.stdout.readline():
            raise MemberEnded(f"a process of the crew ended with {await self.process.wait()} before it was ready")
        self._reading = asyncio.create_task(self._read())

    async def place(self, placed: Order) -> Receipt:
        assert self.process.stdin is not None
        assert self._reading is not None
        if self._reading.done():
            raise MemberEnded(f"a process of the crew ended with {self.process.returncode}")
        receipt = self.open[placed.order_id] = asyncio.get_running_loop().create_future()
        self.process.stdin.write(json.dumps(asdict(placed)).encode() + b"\n")
        return await receipt

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            receipt = receipt_of(json.loads(line))
            waiting = self.open.pop(receipt.order_id)
            if not waiting.done():
                waiting.set_result(receipt)
        code = await self.process.wait()
        for waiting in self.open.values():
            if not waiting.done():
                waiting.set_exception(MemberEnded(f"a process of the crew ended with {code}"))

    async def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            async with asyncio.timeout(END_S):
                await self.process.wait()
        except TimeoutError:
            self.kill()
            await self.process.wait()
        if self._reading is not None:
            await self._reading

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()


async def serve(place: Place) -> None:
    """Be a member: carry out orders from standard input, until it ends."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    tell(at="ready")
    open_orders: set[asyncio.Task[None]] = set()
    async with asyncio.TaskGroup() as group:
        async for line in lines:
            task = group.create_task(_carry_out(place, order_of(json.loads(line))))
            open_orders.add(task)
            task.add_done_callback(open_orders.discard)
        for task in open_orders:
            task.cancel()


async def _carry_out(place: Place, placed: Order) -> None:
    tell(**asdict(await place(placed)))
