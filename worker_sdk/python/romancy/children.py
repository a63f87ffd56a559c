"""Children: workflows that a run started, and others that it knows by their ids."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, Literal, ParamSpec, TypedDict, TypeVar, overload

from romancy.v1.command_pb2 import (
    PARENT_CLOSE_POLICY_ABANDON,
    PARENT_CLOSE_POLICY_CANCEL,
    PARENT_CLOSE_POLICY_TERMINATE,
    ParentClosePolicy,
    Send,
    SendCancel,
    StartChild,
)
from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_COMPLETED, Signal, WorkflowOutcome

from romancy._calls_by_name import encode_call
from romancy._failure import child_error, from_failure
from romancy._loop import WorkflowLoop
from romancy._methods import HandlerMethod
from romancy.attributes import Attribute
from romancy.errors import ChildNotStarted, SendError
from romancy.options import Seconds

_P = ParamSpec("_P")
_R_co = TypeVar("_R_co", covariant=True)

CLOSE_POLICIES: Final[dict[str, ParentClosePolicy.ValueType]] = {
    "cancel": PARENT_CLOSE_POLICY_CANCEL,
    "terminate": PARENT_CLOSE_POLICY_TERMINATE,
    "abandon": PARENT_CLOSE_POLICY_ABANDON,
}


class ChildOptions(TypedDict, total=False):
    """How a child is started."""

    id: str
    """Its workflow id; without one, it has one that no other workflow has."""
    task_queue: str
    """Where its workers are; without one, the parent's queue."""
    run_timeout: Seconds | None
    """Longest time until it is undone; without one, no limit."""
    priority: int
    """Smaller is sooner; the parent's unless said."""
    execution_timeout: Seconds | None
    """The same as `run_timeout` through all runs that continue it."""
    start_delay: Seconds | None
    """Its code runs so much later, and timeouts count from then on."""
    memo: Mapping[str, Any]
    """Values for people, shown with the workflow."""
    attributes: Mapping[Attribute[Any], Any]
    """Typed values that lists can be filtered on; its code can change them. The parent's are the parent's alone."""
    when_parent_closes: Literal["cancel", "terminate", "abandon"]
    """What becomes of it when its parent closes first; "cancel" unless said: it is asked to stop, and undoes itself."""


class OtherWorkflow:
    """A workflow that workflow code tells something, by its id."""

    def __init__(self, loop: WorkflowLoop, workflow_id: str, run_id: str = "") -> None:
        self._loop = loop
        self.workflow_id = workflow_id
        self.run_id = run_id

    @overload
    async def signal(self, signal: HandlerMethod[_P, Any], *args: _P.args, **kwargs: _P.kwargs) -> None: ...
    @overload
    async def signal(self, signal: str, *args: Any) -> None: ...
    async def signal(self, signal: Any, *args: Any, **kwargs: Any) -> None:
        """Tell it something, once, however often this code is replayed. Signals to one workflow keep their order.

        Raises SendError when there is no such workflow, or it is closed.
        """
        name, arguments = encode_call("signal", signal, args, kwargs)
        await self._send(Send(signal=Signal(name=name, arguments=arguments)))

    async def cancel(self, reason: str = "") -> None:
        """Ask it to stop and to undo what it did. Raises SendError when there is no such workflow, or it is closed."""
        await self._send(Send(cancel=SendCancel(reason=reason)))

    async def _send(self, send: Send) -> None:
        send.workflow_id, send.run_id = self.workflow_id, self.run_id
        finished = (await self._loop.run_send(send)).send_finished
        if finished.HasField("failure"):
            raise from_failure(SendError, finished.failure)


class Child(OtherWorkflow, Generic[_R_co]):
    """A child that is open, or was."""

    def __init__(self, loop: WorkflowLoop, decode: Callable[[Payload], _R_co]) -> None:
        super().__init__(loop, "")
        self._decode = decode
        self._started: asyncio.Future[HistoryEvent] = loop.create_future()
        self._closed: asyncio.Future[WorkflowOutcome] = loop.create_future()
        self._child_id = ""

    def request(self, command: StartChild) -> None:
        """Ask for it."""
        self._child_id = self._loop.machine.start_child(command, self._heard)

    def _heard(self, event: HistoryEvent) -> None:
        if event.HasField("child_closed"):
            if not self._closed.done():
                self._closed.set_result(event.child_closed.outcome)
        elif not self._started.done():
            self._started.set_result(event)

    async def started(self) -> None:
        """Wait until it is open. Raises ChildNotStarted. When the waiting is cancelled, so is the child."""
        try:
            event = await asyncio.shield(self._started)
        except asyncio.CancelledError:
            self.request_cancel()
            raise
        if event.HasField("child_start_failed"):
            raise from_failure(ChildNotStarted, event.child_start_failed.failure)
        self.workflow_id = event.child_started.workflow_id

    async def result(self) -> _R_co:
        """Wait for its end. Raises ChildError. When the waiting is cancelled the child goes on."""
        outcome = await asyncio.shield(self._closed)
        if outcome.status != WORKFLOW_STATUS_COMPLETED:
            raise child_error(outcome)
        return self._decode(outcome.result)

    def request_cancel(self) -> None:
        """Ask it to stop and to undo what it did; how it ends, `result` tells."""
        self._loop.machine.cancel_child(self._child_id)
