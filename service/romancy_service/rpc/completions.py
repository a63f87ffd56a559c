"""Completions: what a worker says became of its tasks, turned into triggers, and each answered once it is recorded."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import structlog

from romancy.v1.command_pb2 import Command
from romancy.v1.failure_pb2 import FAILURE_SOURCE_SERVICE, Failure
from romancy.v1.history_pb2 import Author
from romancy.v1.worker_service_pb2 import (
    ACKNOWLEDGEMENT_RESULT_ACCEPTED,
    ACKNOWLEDGEMENT_RESULT_ACCEPTED_ALONE,
    ACKNOWLEDGEMENT_RESULT_DUPLICATE,
    ACKNOWLEDGEMENT_RESULT_INVALID,
    ACKNOWLEDGEMENT_RESULT_STALE,
    Acknowledgement,
    AcknowledgementResult,
    ActivityCompletion,
    Rejection,
    WorkflowTaskCompletion,
)

from romancy_service import faults
from romancy_service.core.check import check_failure, check_payload, check_payloads
from romancy_service.core.decide import Reply
from romancy_service.core.failures import cut
from romancy_service.core.limits import Limits
from romancy_service.core.outgoing import check_all_outgoing
from romancy_service.core.task import WORKFLOW_TASK_ID, Fence
from romancy_service.core.times import timestamp
from romancy_service.core.triggers import CompleteActivity, CompleteWorkflowTask, FailWorkflowTask
from romancy_service.errors import (
    InternalError,
    InvalidField,
    RomancyError,
    StaleTask,
    StoreUnavailable,
    TooMuchContention,
    WorkflowNotFound,
)
from romancy_service.node import Node
from romancy_service.rpc.errors import hidden
from romancy_service.sessions import InHand, Session
from romancy_service.starter import new_id
from romancy_service.store.store import LeasedRow
from romancy_service.tokens import InvalidToken, TaskRef

_log = structlog.get_logger("romancy.worker_service")

_UNKNOWN: Final = 2**62
"""What a task brought that came over an earlier stream; then any event of the run may have been seen."""
_CONTENTION_S: Final = (0.1, 1.0)
"""A run that changes faster than a completion can be recorded is left alone for so long."""
_Completion = CompleteActivity | CompleteWorkflowTask | FailWorkflowTask


class Completions:
    """Those that one stream brings."""

    def __init__(
        self, node: Node, session: Session, limits: Limits, give: Callable[[Coroutine[Any, Any, None]], None]
    ) -> None:
        """`give` has something done that must be before the worker has left."""
        self._node = node
        self._session = session
        self._limits = limits
        self._give = give
        self._author = Author(name=session.hello.worker_id, build_id=session.hello.build_id)

    def activity(self, completion: ActivityCompletion) -> None:
        """An attempt of an activity is over."""
        found = self._ref(completion.token, workflow=False)
        if found is None:
            return
        ref, held = found
        rejection: InvalidField | None = None
        kind = completion.WhichOneof("outcome")
        trigger = CompleteActivity(
            self._fence(ref),
            leased_ms=held.leased_ms if held is not None else self._node.clock.now_ms(),
            result=completion.result if kind == "result" else None,
            events=completion.events,
            failure=cut(completion.failure, self._limits) if kind == "failure" else None,
            cancel_details=completion.cancelled.details,
            nothing_done=completion.cancelled.nothing_done,
            then=completion.then if completion.HasField("then") else None,
            successor_run_id=_successor_run_id(completion.then.commands),
            author=self._author,
        )
        try:
            self._check_outcome(completion, kind)
        except InvalidField as error:
            rejection = error
            failure = Failure(message=str(error), type=error.reason, non_retryable=True, source=FAILURE_SOURCE_SERVICE)
            trigger = CompleteActivity(trigger.fence, trigger.leased_ms, failure=failure, author=self._author)
        if trigger.result is None and self._node.heartbeats.has_news(completion.token):
            self._session.reported.add(completion.token)
            self._node.background(self._submit_after_heartbeat(completion.token, ref, trigger, rejection))
        else:
            self._submit(completion.token, ref, trigger, rejection)

    async def _submit_after_heartbeat(
        self, token: str, ref: TaskRef, trigger: CompleteActivity, rejection: InvalidField | None
    ) -> None:
        await self._node.heartbeats.write(token)
        self._submit(token, ref, trigger, rejection)

    def hand_over(self, completions: Sequence[ActivityCompletion]) -> None:
        """Attempts leave the worker without being over."""
        leaving = [(each.token, found[0]) for each in completions if (found := self._ref(each.token, workflow=False))]
        self._session.reported.update(token for token, _ in leaving)
        if leaving:
            self._give(self._store_elsewhere(leaving))

    async def _store_elsewhere(self, leaving: Sequence[tuple[str, TaskRef]]) -> None:
        node, session = self._node, self._session
        rows = [
            LeasedRow(ref.run_id, ref.task_id, ref.attempt, session.session_id, session.epoch) for _, ref in leaving
        ]
        for token, _ in leaving:
            if node.heartbeats.has_news(token):
                await node.heartbeats.write(token)
        held: list[bool] | None = None
        while held is None:
            faults.point("elsewhere.before")
            try:
                held = await node.store.hand_over(rows, node.clock.now_ms())
            except StoreUnavailable as error:
                if session.closed:
                    return  # the worker comes back with them
                _log.warning("attempts not handed over", error=str(error), attempts=len(rows))
                await asyncio.sleep(random.uniform(*_CONTENTION_S))
        faults.point("elsewhere.after")
        for (token, ref), was_held in zip(leaving, held, strict=True):
            if was_held:
                session.acknowledge(Acknowledgement(token=token, result=ACKNOWLEDGEMENT_RESULT_ACCEPTED))
            else:
                await self._answer_stale(token, ref)

    def _check_outcome(self, completion: ActivityCompletion, kind: str | None) -> None:
        if kind is None:
            raise InvalidField("outcome", "is missing", "set result, failure, cancelled or elsewhere")
        if completion.events and kind != "result":
            raise InvalidField("events", f"come with a {kind}", "send events with a result, else nothing is sent")
        if kind == "result":
            check_payload("result", completion.result, self._limits)
            if completion.events:
                check_all_outgoing("events", completion.events, completion.result, self._limits)
        elif kind == "failure":
            check_failure("failure", completion.failure, self._limits)
        else:
            check_payloads("cancelled.details", completion.cancelled.details, self._limits)

    def workflow_task(self, completion: WorkflowTaskCompletion) -> None:
        """A workflow's code ran as far as it could, or failed, or needs the whole history."""
        session = self._session
        kind = completion.WhichOneof("outcome")
        if kind == "miss" and (missed := session.in_hand.get(completion.token)) is not None:
            self._node.background(self._node.dispatch.resend_whole(session, missed))
            return
        brought = session.brought.get(completion.token, _UNKNOWN)
        found = self._ref(completion.token, workflow=True)
        if found is None:
            return
        ref, held = found
        if held is None:
            # All workflow tasks of a run have one name; only the token tells an answered one from the one that is out.
            self._session.acknowledge(Acknowledgement(token=completion.token, result=ACKNOWLEDGEMENT_RESULT_STALE))
            return
        fence = self._fence(ref)
        trigger: _Completion
        rejection: InvalidField | None = None
        if kind == "commands" and completion.seen_event_id > brought:
            rejection = InvalidField(
                "seen_event_id", "is no event that the task brought", "give the task's last_event_id",
                value=completion.seen_event_id, limit=brought,
            )  # fmt: skip
            failure = Failure(message=str(rejection), type=rejection.reason, source=FAILURE_SOURCE_SERVICE)
            trigger = FailWorkflowTask(fence, failure)
        elif kind == "commands":
            commands = completion.commands
            trigger = CompleteWorkflowTask(
                fence,
                completion.seen_event_id,
                commands.commands,
                commands.holds_run,
                _successor_run_id(commands.commands),
                self._author,
            )
        elif kind == "failure":
            trigger = FailWorkflowTask(fence, cut(completion.failure, self._limits))
        else:
            rejection = InvalidField("outcome", "is missing", "set commands, failure or miss")
            failure = Failure(message=str(rejection), type=rejection.reason, source=FAILURE_SOURCE_SERVICE)
            trigger = FailWorkflowTask(fence, failure)
        self._submit(completion.token, ref, trigger, rejection)

    # Submitting ---------------------------------------------------------------------------------------------------

    def _ref(self, token: str, *, workflow: bool) -> tuple[TaskRef, InHand | None] | None:
        """What a completion is about; its slot is free from now on. None: it was answered INVALID."""
        session = self._session
        if (held := session.in_hand.get(token)) is not None:
            # We sent it ourselves: nothing about it is in doubt.
            ref = TaskRef(session.namespace, held.run_id, held.task_id, held.attempt)
        else:
            try:
                ref = self._node.tokens.read(token)
            except InvalidToken as error:
                self._reject(token, "INVALID_TOKEN", str(error), {})
                return None
        if ref.namespace != session.namespace:
            self._reject(token, "INVALID_TOKEN", "the token is of another namespace", {})
            return None
        if (ref.task_id == WORKFLOW_TASK_ID) != workflow:
            kind = "an activity" if workflow else "a workflow task"
            self._reject(token, "INVALID_TOKEN", f"the token is of {kind}, which has completions of its own", {})
            return None
        if held is not None:
            session.put_down(token)
            self._node.dispatch.freed(session)
        return ref, held

    def _submit(self, token: str, ref: TaskRef, trigger: _Completion, rejection: RomancyError | None) -> None:
        self._session.reported.add(token)
        future = self._node.engine.submit(ref.run_id, trigger)
        future.add_done_callback(lambda done: self._answer(token, ref, trigger, done, rejection))

    async def _submit_later(
        self, token: str, ref: TaskRef, trigger: _Completion, rejection: RomancyError | None
    ) -> None:
        await asyncio.sleep(random.uniform(*_CONTENTION_S))
        self._submit(token, ref, trigger, rejection)

    def _fence(self, ref: TaskRef) -> Fence:
        return Fence(ref.task_id, ref.attempt, self._session.session_id, self._session.epoch)

    # Acknowledging --------------------------------------------------------------------------------------------------

    def _answer(
        self,
        token: str,
        ref: TaskRef,
        trigger: _Completion,
        done: asyncio.Future[Any],
        rejection: RomancyError | None,
    ) -> None:
        if done.cancelled():
            self._session.reported.discard(token)
            return
        error = done.exception()
        if error is None:
            self._accept(token, done.result(), rejection)
        elif isinstance(error, StaleTask | WorkflowNotFound):
            self._node.background(self._answer_stale(token, ref))
        elif isinstance(error, TooMuchContention):
            self._node.background(self._submit_later(token, ref, trigger, rejection))
        elif rejection is None and isinstance(error, RomancyError):
            # Nothing of it is recorded, and the worker will drop it: what is recorded instead is that it failed.
            told = hidden(error)
            failure = Failure(message=str(told), type=told.reason, source=FAILURE_SOURCE_SERVICE)
            self._submit(token, ref, _failed(trigger, failure), told)
        else:
            told = rejection or InternalError("the service could not record it")
            _log.error("completion lost", run_id=ref.run_id, task_id=ref.task_id, error=repr(error))
            self._reject(token, told.reason, str(told), told.metadata)
            # The worker drops it, so the attempt must not stay the worker's: it times out, or somebody else gets it.
            row = LeasedRow(ref.run_id, ref.task_id, ref.attempt, self._session.session_id, self._session.epoch)
            self._node.background(self._node.dispatch.give_back([row]))

    def _accept(self, token: str, reply: Reply, rejection: RomancyError | None) -> None:
        rejected = rejection or reply.rejection
        if rejected is not None and not reply.alone:
            self._reject(token, rejected.reason, str(rejected), rejected.metadata)
            return
        result = ACKNOWLEDGEMENT_RESULT_ACCEPTED_ALONE if reply.alone else ACKNOWLEDGEMENT_RESULT_ACCEPTED
        self._session.acknowledge(
            Acknowledgement(
                token=token,
                result=result,
                last_event_id=0 if reply.alone else reply.last_event_id,
                last_event_time=None if reply.alone else timestamp(reply.last_event_ms),
                rejection=_rejection(rejected.reason, str(rejected), rejected.metadata) if rejected else None,
            )
        )

    async def _answer_stale(self, token: str, ref: TaskRef) -> None:
        """What consumed the row tells whether it was this very completion."""
        try:
            closed_by = await self._node.closing_attempt(ref.run_id, ref.task_id)
        except StoreUnavailable:
            closed_by = 0  # in doubt it is stale: either way the worker is done with it
        result: AcknowledgementResult.ValueType
        duplicate = closed_by == ref.attempt
        result = ACKNOWLEDGEMENT_RESULT_DUPLICATE if duplicate else ACKNOWLEDGEMENT_RESULT_STALE
        self._session.acknowledge(Acknowledgement(token=token, result=result))

    def _reject(self, token: str, reason: str, message: str, metadata: dict[str, str]) -> None:
        _log.warning(
            "completion refused", worker_id=self._session.hello.worker_id, reason=reason, error=message, **metadata
        )
        self._session.acknowledge(
            Acknowledgement(
                token=token,
                result=ACKNOWLEDGEMENT_RESULT_INVALID,
                rejection=_rejection(reason, message, metadata),
            )
        )


def _successor_run_id(commands: Sequence[Command]) -> str:
    """A new run id, if the commands continue the workflow."""
    return new_id() if commands and commands[-1].HasField("continue_workflow") else ""


def _failed(trigger: _Completion, failure: Failure) -> _Completion:
    """The same attempt, failed."""
    if isinstance(trigger, CompleteActivity):
        return CompleteActivity(trigger.fence, trigger.leased_ms, failure=failure, author=trigger.author)
    return FailWorkflowTask(trigger.fence, failure)


def _rejection(reason: str, message: str, metadata: dict[str, str]) -> Rejection:
    return Rejection(reason=reason, message=message, metadata=metadata)
