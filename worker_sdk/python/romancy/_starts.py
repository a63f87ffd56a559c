"""Joins concurrent starts into few calls, since a call costs far more than a start."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

from romancy.v1.workflow_service_pb2 import (
    Error,
    StartWorkflowRequest,
    StartWorkflowResponse,
    StartWorkflowsRequest,
)

from romancy._calls import PASSING, Calls, backoff_s
from romancy.refusals import RequestRefused, refusal, status_code

_LANES: Final = 2
"""Calls under way at a time. What is started meanwhile goes with the next one: batches grow with load by themselves."""
_MAX_STARTS: Final = 1_000
_MAX_BYTES: Final = 3 * 1024 * 1024
"""Of one call; the service takes 4 MiB. A larger start goes alone and is answered by the service."""
_ANSWER_S: Final = 30.0


@dataclass(slots=True, eq=False)
class _Start:
    request: StartWorkflowRequest
    future: asyncio.Future[StartWorkflowResponse]
    deadline: float
    size: int
    failures: int = 0


class Starts:
    """Starts workflows. Each succeeds or fails alone; a start that finds nothing else to go with goes at once."""

    def __init__(self, calls: Calls, patience_s: float) -> None:
        self._calls = calls
        self._patience_s = patience_s
        self._waiting: deque[_Start] = deque()
        self._lanes: set[asyncio.Task[None]] = set()
        self._again: dict[_Start, asyncio.TimerHandle] = {}
        """What the service could not do just now, and is sent again a little later."""

    async def start(self, request: StartWorkflowRequest) -> StartWorkflowResponse:
        """Start; `request` has a request id, so that it may be sent again. Raises RequestRefused."""
        loop = asyncio.get_running_loop()
        start = _Start(request, loop.create_future(), time.monotonic() + self._patience_s, request.ByteSize())
        self._enqueue(start)
        return await start.future

    async def close(self) -> None:
        """Give up what is under way."""
        for lane in self._lanes:
            lane.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)
        for timer in self._again.values():
            timer.cancel()
        for start in (*self._waiting, *self._again):
            start.future.cancel()
        self._waiting.clear()
        self._again.clear()

    def _enqueue(self, start: _Start) -> None:
        self._again.pop(start, None)
        self._waiting.append(start)
        if len(self._lanes) < _LANES:
            lane = asyncio.get_running_loop().create_task(self._lane())
            self._lanes.add(lane)
            lane.add_done_callback(self._lanes.discard)

    async def _lane(self) -> None:
        await asyncio.sleep(0)  # whatever else is started in this round of the event loop joins
        while batch := self._take():
            try:
                await self._send(batch)
            except BaseException as error:
                for start in batch:
                    _fail(start, error)
                if not isinstance(error, Exception):
                    raise

    def _take(self) -> list[_Start]:
        batch: list[_Start] = []
        room = _MAX_BYTES
        while self._waiting and len(batch) < _MAX_STARTS:
            start = self._waiting[0]
            if batch and start.size > room:
                break
            self._waiting.popleft()
            if not start.future.done():
                room -= start.size
                batch.append(start)
        return batch

    async def _send(self, batch: list[_Start]) -> None:
        request = StartWorkflowsRequest(requests=[start.request for start in batch])
        response = await self._calls.call(lambda calls: calls.workflows.StartWorkflows, request, answer_s=_ANSWER_S)
        for start, result in zip(batch, response.results, strict=True):
            if result.HasField("response"):
                if not start.future.done():
                    start.future.set_result(result.response)
            else:
                self._failed(start, result.error)

    def _failed(self, start: _Start, error: Error) -> None:
        code = status_code(error.code)
        if code in PASSING and time.monotonic() < start.deadline:
            loop = asyncio.get_running_loop()
            self._again[start] = loop.call_later(backoff_s(start.failures), self._enqueue, start)
            start.failures += 1
        else:
            _fail(start, refusal(code, error.reason, error.message, error.metadata))


def _fail(start: _Start, error: BaseException) -> None:
    if start.future.done():
        return
    if isinstance(error, asyncio.CancelledError):
        start.future.cancel()
    elif isinstance(error, RequestRefused):
        # One exception per waiter: a shared one would grow a traceback in each.
        start.future.set_exception(error.copy())
    else:
        start.future.set_exception(error)
