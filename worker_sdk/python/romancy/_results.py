"""Waits for the outcomes of many runs on one stream."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from itertools import islice
from typing import Final

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration

from romancy.v1.workflow_pb2 import WorkflowOutcome
from romancy.v1.workflow_service_pb2 import (
    GetWorkflowResultRequest,
    WaitResultsRequest,
    WaitResultsResponse,
    WorkflowRef,
)

from romancy._calls import PASSING, Calls, backoff_s, is_asked_to_stop, is_passing
from romancy._checks import check_text
from romancy.refusals import RequestRefused, refusal, refusal_of, status_code

_Call = grpc.aio.StreamStreamCall[WaitResultsRequest, WaitResultsResponse]
_Waiter = asyncio.Future[WorkflowOutcome]

_SILENCE_S: Final = 20.0
"""After so long without an answer ask for one of the runs by a call of its own: the stream may be dead unnoticed."""
_MAX_RUNS: Final = 1_000
"""Runs in one message."""
_MAX_RUN_ID: Final = 1_000
"""Characters. None has more than 255 bytes, and a message must hold so many."""
_GIVE_UP_S: Final = 1.0
"""Waits that were given up go with the next message, or in one after this: so they cost few, and the service little."""


class Results:
    """Subscribes each run that somebody waits for, again after every end of the stream."""

    def __init__(self, calls: Calls, namespace: str, patience_s: float) -> None:
        self._calls = calls
        self._namespace = namespace
        self._patience_s = patience_s
        self._waiters: dict[str, list[_Waiter]] = defaultdict(list)
        self._unsent: dict[str, None] = {}
        """What the service is to be asked for, in order."""
        self._given_up: dict[str, None] = {}
        """What the service may wait for although nobody here does."""
        self._wake = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._heard_at = 0.0

    @property
    def waiting(self) -> int:
        """How many runs somebody waits for."""
        return len(self._waiters)

    async def wait(self, run_id: str) -> WorkflowOutcome:
        """The run's outcome. Raises RequestRefused: WorkflowNotFound, or ServiceUnavailable after long trying."""
        _check_run_id(run_id)
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        waiters = self._waiters[run_id]
        waiters.append(waiter)
        if len(waiters) == 1:
            self._subscribe(run_id)
        try:
            return await waiter
        finally:
            self._leave(run_id, waiter)

    async def close(self) -> None:
        """Stop waiting; whoever still waits is cancelled."""
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
        for waiters in list(self._waiters.values()):
            for waiter in waiters:
                waiter.cancel()

    def _subscribe(self, run_id: str) -> None:
        if run_id not in self._waiters:
            return
        self._given_up.pop(run_id, None)
        self._unsent[run_id] = None
        self._wake.set()
        if self._runner is None or self._runner.done():
            self._runner = asyncio.get_running_loop().create_task(self._run())
            self._runner.add_done_callback(self._ended)

    def _leave(self, run_id: str, waiter: _Waiter) -> None:
        waiters = self._waiters.get(run_id)
        if waiters is not None and waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._waiters[run_id]
                self._give_up(run_id)

    def _give_up(self, run_id: str) -> None:
        self._unsent.pop(run_id, None)
        if not self._given_up:
            asyncio.get_running_loop().call_later(_GIVE_UP_S, self._wake.set)
        self._given_up[run_id] = None

    def _ended(self, runner: asyncio.Task[None]) -> None:
        """Nobody may wait for ever, whyever it ended."""
        error = None if runner.cancelled() else runner.exception()
        if error is None and not runner.cancelled():
            return
        for run_id in list(self._waiters):
            for waiter in self._waiters.pop(run_id):
                if error is None:
                    waiter.cancel()
                elif not waiter.done():
                    waiter.set_exception(error)

    # The stream -----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Streams one after the other, while somebody waits."""
        failures = 0
        self._heard_at = time.monotonic()
        while self._waiters:
            self._unsent, self._given_up = dict.fromkeys(self._waiters), {}
            began_at = time.monotonic()
            try:
                await self._serve()
            except grpc.aio.AioRpcError as error:
                impatient = failures > 0 and time.monotonic() - self._heard_at > self._patience_s
                if impatient or not is_passing(error):
                    self._fail_all(refusal_of(error))
                    return
            except asyncio.CancelledError:
                if is_asked_to_stop():
                    raise
            failures = 0 if self._heard_at > began_at else failures + 1
            await asyncio.sleep(backoff_s(failures))

    async def _serve(self) -> None:
        call = self._calls.workflows.WaitResults(None, metadata=self._calls.metadata)
        tasks = [asyncio.create_task(coroutine) for coroutine in (self._read(call), self._write(call), self._probe())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            call.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, call: _Call) -> None:
        while isinstance(answer := await call.read(), WaitResultsResponse):
            self._heard_at = time.monotonic()
            for result in answer.results:
                if result.HasField("outcome"):
                    self._resolve(result.run_id, result.outcome)
                elif (code := status_code(result.error.code)) in PASSING:
                    asyncio.get_running_loop().call_later(backoff_s(1), self._subscribe, result.run_id)
                else:
                    error = result.error
                    self._refuse(result.run_id, refusal(code, error.reason, error.message, error.metadata))

    async def _write(self, call: _Call) -> None:
        try:
            while True:
                self._wake.clear()
                while self._unsent or self._given_up:
                    run_ids, given_up = _taken(self._unsent), _taken(self._given_up)
                    await call.write(
                        WaitResultsRequest(namespace=self._namespace, run_ids=run_ids, given_up_run_ids=given_up)
                    )
                await self._wake.wait()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await asyncio.get_running_loop().create_future()  # the call has ended; the reader learns how

    async def _probe(self) -> None:
        """Return when the stream is to be replaced."""
        stub = self._calls.workflows
        while True:
            await asyncio.sleep(_SILENCE_S)
            run_id = next(iter(self._waiters), None)
            if run_id is None or time.monotonic() - self._heard_at < _SILENCE_S:
                continue
            request = GetWorkflowResultRequest(
                workflow=WorkflowRef(namespace=self._namespace, run_id=run_id), wait=Duration()
            )
            try:
                answer = await self._calls.call(lambda calls: calls.workflows.GetWorkflowResult, request)
            except RequestRefused as error:
                self._refuse(run_id, error)
                return
            self._heard_at = time.monotonic()
            if answer.HasField("outcome"):
                self._resolve(run_id, answer.outcome)
                return  # the stream owed us this one
            if stub is not self._calls.workflows:
                return

    # Answers --------------------------------------------------------------------------------------------------------

    def _resolve(self, run_id: str, outcome: WorkflowOutcome) -> None:
        for waiter in self._waiters.pop(run_id, ()):
            if not waiter.done():
                waiter.set_result(outcome)

    def _refuse(self, run_id: str, error: RequestRefused) -> None:
        for waiter in self._waiters.pop(run_id, ()):
            if not waiter.done():
                # One exception per waiter: a shared one would grow a traceback in each.
                waiter.set_exception(error.copy())

    def _fail_all(self, error: RequestRefused) -> None:
        for run_id in list(self._waiters):
            self._refuse(run_id, error)


def _check_run_id(run_id: str) -> None:
    """Raise ValueError for what cannot be asked for together with what others wait for."""
    check_text("run_id", run_id)
    if len(run_id) > _MAX_RUN_ID:
        raise ValueError(f"run_id begins with {run_id[:40]!r} and has {len(run_id):,} characters: no run is called so")


def _taken(run_ids: dict[str, None]) -> list[str]:
    """The first of them, as many as a message holds, taken out."""
    taken = list(islice(run_ids, _MAX_RUNS))
    for run_id in taken:
        del run_ids[run_id]
    return taken
