"""Starter: opens runs, by the rules for ids that were used before."""

from __future__ import annotations

import os
import time

from romancy.v1.history_pb2 import Parent
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_COMPENSATING, WORKFLOW_STATUS_COMPLETED, Signal, WorkflowInfo
from romancy.v1.workflow_service_pb2 import (
    ID_CONFLICT_POLICY_TERMINATE_EXISTING,
    ID_CONFLICT_POLICY_USE_EXISTING,
    ID_REUSE_POLICY_ALLOW,
    ID_REUSE_POLICY_ALLOW_IF_FAILED,
    ID_REUSE_POLICY_UNSPECIFIED,
    StartWorkflowRequest,
    StartWorkflowResponse,
)

from romancy_service.core.run import OPEN_STATUSES, Run
from romancy_service.core.triggers import Note, SendSignal, StartRun, Terminate
from romancy_service.engine import Engine
from romancy_service.errors import (
    BatchRejected,
    RequestIdReused,
    TooMuchContention,
    WorkflowAlreadyOpen,
    WorkflowClosed,
    WorkflowIdUsed,
)
from romancy_service.store.store import Store
from romancy_service.submission import Recorded, RequestKey

_METHOD = "StartWorkflow"
_WITH_SIGNAL = "SignalWithStart"
_TRIES = 10
"""So often may another start win between our look and our try."""


class Starter:
    """Carries out checked StartWorkflow requests."""

    def __init__(self, engine: Engine, store: Store) -> None:
        self._engine = engine
        self._store = store

    async def start(
        self,
        namespace: str,
        request: StartWorkflowRequest,
        identity: str,
        signal: Signal | None = None,
        parent: Parent | None = None,
        *,
        exact: bool = False,
    ) -> StartWorkflowResponse:
        """Start the run, or find the one that the request id or the policies name.

        With `signal`, the run that was started, or was open, gets it. With `parent`, it is that run's child. With
        `exact`, the request id is one of a client's own, and must not have been used for another workflow or type.

        Tries first and looks only when that was refused: nearly every start is of an id that was never used.
        Raises WorkflowAlreadyOpen, WorkflowIdUsed, RequestIdReused.
        """
        run = Run(namespace, request.workflow_id or new_id(), new_id(), memo=_memo(request))
        response = StartWorkflowResponse(workflow_id=run.workflow_id, run_id=run.run_id, started=True)
        # A start without a request id gets one, so that an unknown outcome is resolved by it and not by a second start.
        method = (_METHOD if signal is None else _WITH_SIGNAL) + (_of(request, signal) if exact else "")
        key = RequestKey(namespace, request.request_id or run.run_id, method, lambda _: response.SerializeToString())
        trigger = StartRun(request.spec, identity, [] if signal is None else [signal], parent=parent)
        look = request.id_reuse_policy not in (ID_REUSE_POLICY_UNSPECIFIED, ID_REUSE_POLICY_ALLOW)
        for _ in range(_TRIES):
            if look:
                existing = await self._existing(run, key, request, trigger)
                if existing is not None:
                    return existing
            try:
                done = await self._engine.start(run, trigger, key)
            except BatchRejected as refused:
                if not refused.conflict:
                    raise
                look = True
                continue
            return _recorded(done, key) if isinstance(done, Recorded) else response
        raise TooMuchContention(run.workflow_id)

    async def _existing(
        self, run: Run, key: RequestKey, request: StartWorkflowRequest, trigger: StartRun
    ) -> StartWorkflowResponse | None:
        """The answer from what is there already; None: the way is free."""
        latest = (await self._store.latest([(run.namespace, run.workflow_id)])).get((run.namespace, run.workflow_id))
        # Read after the run: if this same request opened it meanwhile, by another try, it is seen here.
        found = await self._store.find_requests([(key.namespace, key.request_id)])
        for recorded in found.values():
            return _recorded(Recorded(recorded.method, recorded.run_id, recorded.reply), key)
        if latest is None:
            return None
        run_id, status = latest
        if status == WORKFLOW_STATUS_COMPENSATING and trigger.inputs:
            raise WorkflowAlreadyOpen(run.workflow_id, run_id)  # its code has ended: nobody would read the signal
        if status in OPEN_STATUSES:
            return await self._conflict(run, run_id, key, request, trigger)
        policy = request.id_reuse_policy
        allowed = policy in (ID_REUSE_POLICY_UNSPECIFIED, ID_REUSE_POLICY_ALLOW) or (
            policy == ID_REUSE_POLICY_ALLOW_IF_FAILED and status != WORKFLOW_STATUS_COMPLETED
        )
        if not allowed:
            raise WorkflowIdUsed(run.workflow_id, run_id)
        return None

    async def _conflict(
        self, run: Run, run_id: str, key: RequestKey, request: StartWorkflowRequest, trigger: StartRun
    ) -> StartWorkflowResponse | None:
        """The answer when `run_id` is open; None: it closed meanwhile."""
        workflow_id = run.workflow_id
        try:
            if trigger.inputs or request.id_conflict_policy == ID_CONFLICT_POLICY_USE_EXISTING:
                answer = StartWorkflowResponse(workflow_id=workflow_id, run_id=run_id, started=False)
                noted = RequestKey(key.namespace, key.request_id, key.method, lambda _: answer.SerializeToString())
                told = [SendSignal(signal) for signal in trigger.inputs if isinstance(signal, Signal)]
                done = await self._engine.submit(run_id, told[0] if told else Note(), noted)
                return _recorded(done, key) if isinstance(done, Recorded) else answer
            if request.id_conflict_policy == ID_CONFLICT_POLICY_TERMINATE_EXISTING:
                reason = f"another run of {workflow_id} was started with the policy TERMINATE_EXISTING"
                done = await self._engine.replace(run_id, Terminate(reason, trigger.identity), run, trigger, key)
                started = StartWorkflowResponse(workflow_id=workflow_id, run_id=run.run_id, started=True)
                return _recorded(done, key) if isinstance(done, Recorded) else started
        except WorkflowClosed:
            return None
        raise WorkflowAlreadyOpen(workflow_id, run_id)


def _recorded(recorded: Recorded, key: RequestKey) -> StartWorkflowResponse:
    if recorded.method != key.method:
        raise RequestIdReused(key.request_id, recorded.method)
    return StartWorkflowResponse.FromString(recorded.reply)


def _of(request: StartWorkflowRequest, signal: Signal | None) -> str:
    """What a request id is used for, besides the rpc."""
    told = f" with {signal.name}" if signal is not None else ""
    return f" of {request.spec.workflow_type}" + (f" as {request.workflow_id}" if request.workflow_id else "") + told


def _memo(request: StartWorkflowRequest) -> bytes:
    return WorkflowInfo(memo=request.spec.memo).SerializeToString()


def new_id() -> str:
    """A UUID of version 7: unique, and later ones sort after earlier ones, so that indexes grow at their end."""
    number = (time.time_ns() // 1_000_000) << 80 | 0x7 << 76 | int.from_bytes(os.urandom(10)) & ((1 << 76) - 1)
    number = number & ~(0xC << 60) | 0x8 << 60
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
