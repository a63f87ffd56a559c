"""Waiting: what one WaitResults stream waits for, and the answers that are ready for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence

from romancy.v1.workflow_pb2 import WorkflowOutcome
from romancy.v1.workflow_service_pb2 import RunResult, WaitResultsRequest

from romancy_service.core.check import check_id
from romancy_service.errors import Draining, InvalidField, WorkflowNotFound
from romancy_service.node import Node
from romancy_service.results import Waiter
from romancy_service.rpc.errors import error_of
from romancy_service.rpc.pages import fit
from romancy_service.rpc.validate import namespace_of


class Waiting:
    """The runs that one WaitResults stream waits for."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._open: dict[str, Waiter] = {}
        self._ready: list[RunResult] = []
        self._wake = asyncio.Event()
        self._complete = False
        self._broken: Exception | None = None

    async def read(self, requests: AsyncIterator[WaitResultsRequest]) -> None:
        """Take in what the client waits for, until it half-closes."""
        try:
            async for request in requests:
                namespace = namespace_of(request.namespace, self._node.limits)
                self._give_up(request.given_up_run_ids)
                wanted = [run_id for run_id in request.run_ids if run_id not in self._open]
                await self._add(namespace, [run_id for run_id in wanted if self._is_id(run_id)])
        except Exception as error:
            self._broken = error
            raise
        finally:
            self._complete = True
            self._wake.set()

    def _give_up(self, run_ids: Iterable[str]) -> None:
        for run_id in run_ids:
            waiter = self._open.pop(run_id, None)
            if waiter is not None:
                self._node.results.forget(run_id, waiter)

    def _is_id(self, run_id: str) -> bool:
        """Whether a run may be called so. If not that is its answer: what else is waited for does not suffer."""
        try:
            check_id("run_id", run_id, self._node.limits)
        except InvalidField as error:
            self._ready.append(RunResult(run_id=run_id, error=error_of(error)))
            self._wake.set()
            return False
        return True

    async def _add(self, namespace: str, run_ids: Sequence[str]) -> None:
        unknown = [run_id for run_id in run_ids if not self._runs_here(namespace, run_id)]
        if unknown:
            await self._look_up(namespace, unknown)

    def _runs_here(self, namespace: str, run_id: str) -> bool:
        """Whether this replica is carrying the run, so that nothing has to be read to wait for it."""
        run = None if self._node.results.has_peers else self._node.engine.held(run_id)
        if run is None or run.namespace != namespace or run.outcome is not None:
            return False
        self._open[run_id] = waiter = self._waiter(run_id)
        self._node.results.wait(run_id, waiter)
        return True

    async def _look_up(self, namespace: str, run_ids: Sequence[str]) -> None:
        known = await self._node.store.find_runs([(namespace, "", run_id) for run_id in run_ids])
        # Nothing is waited for before it is known to be the caller's to see.
        for run_id, found in zip(run_ids, known, strict=True):
            if found is None:
                self._ready.append(RunResult(run_id=run_id, error=error_of(WorkflowNotFound(run_id))))
                self._wake.set()
            elif run_id not in self._open:
                self._open[run_id] = waiter = self._waiter(run_id)
                self._node.results.wait(run_id, waiter)
        waited_for = [run_id for run_id in run_ids if run_id in self._open]
        kept = await self._node.store.outcomes(waited_for)
        for run_id in waited_for:
            _, outcome = kept.get(run_id, ("", None))
            if outcome is not None or run_id not in kept:
                self._waiter(run_id)(outcome)

    def _waiter(self, run_id: str) -> Waiter:
        def answer(outcome: WorkflowOutcome | None) -> None:
            error = error_of(WorkflowNotFound(run_id)) if outcome is None else None
            self._answer(RunResult(run_id=run_id, outcome=outcome, error=error))

        return answer

    def _answer(self, result: RunResult) -> None:
        waiter = self._open.pop(result.run_id, None)
        if waiter is not None:
            self._node.results.forget(result.run_id, waiter)
            self._ready.append(result)
            self._wake.set()

    async def answers(self) -> AsyncIterator[list[RunResult]]:
        """What is ready, as often as something is, until all are answered and no more can come."""
        while not (self._complete and not self._open and not self._ready):
            await self._wake.wait()
            self._wake.clear()
            if self._broken is not None:
                raise self._broken  # now, and not only when the runs that are waited for have ended
            while self._ready:
                page = fit(self._ready, self._node.limits.page_bytes)
                del self._ready[: len(page)]
                yield page

    def leave(self) -> None:
        """This replica stops: the client asks another one for what is still open."""
        self._broken = Draining()
        self._wake.set()

    def stop(self) -> None:
        """The stream ended."""
        for run_id, waiter in self._open.items():
            self._node.results.forget(run_id, waiter)
