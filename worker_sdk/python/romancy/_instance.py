"""Instance: one run of a workflow in a worker's memory. Feeds inputs to the machine one at a time and runs the code."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Final

from romancy.v1.command_pb2 import CancelWorkflow, Command, CompleteWorkflow, ContinueWorkflow, FailWorkflow
from romancy.v1.history_pb2 import HistoryEvent, WorkflowStarted
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import WorkflowSpec

from romancy import _guard
from romancy._failure import only_error, to_failure
from romancy._handlers import Handlers
from romancy._inbox import Inbox
from romancy._loop import WorkflowLoop
from romancy._machine import Machine, ends_run, is_command, is_input
from romancy.context import Recurrence, WorkflowContext, WorkflowInfo, from_ms
from romancy.errors import ActivityCancelled, ApplicationError, RemoteError, WorkflowTaskError, bug_in
from romancy.workflow import WorkflowDefinition

_log: Final = logging.getLogger("romancy.workflow")


@dataclass(frozen=True, slots=True)
class Activation:
    """What the code made of some events."""

    commands: list[Command]
    """New ones, in the order in which the code issued them."""
    closed: bool
    """The run ended: it will ask for nothing any more."""


class WorkflowInstance:
    """One run. Used by one thread at a time; any exception means that it must be forgotten."""

    def __init__(self, definition: WorkflowDefinition[..., Any], *, workflow_id: str, run_id: str) -> None:
        _guard.install()
        self._definition = definition
        self._workflow_id = workflow_id
        self._run_id = run_id
        self._loop = WorkflowLoop(run_id)  # type: ignore[abstract]  # the rest is set, refusing, in its module
        self._handlers = Handlers(self._loop)
        self._inbox = Inbox(self._loop)
        self._main: asyncio.Task[None] | None = None

    def activate(self, events: Sequence[HistoryEvent]) -> Activation:
        """Let the code live through `events`, in replay order: the whole history at first, then only what is new.

        The commands that are returned count as recorded from then on. Raises Divergence when the code does not fit the
        history, another WorkflowTaskError when it did what workflow code must not do, and what it raised by mistake.
        """
        machine, loop = self._loop.machine, self._loop
        if self._main is None and not (events and events[0].HasField("workflow_started")):
            raise WorkflowTaskError(
                f"run {self._run_id} is not held, but its events begin with "
                f"{events[0].event_id if events else 'nothing'}: send its history from event 1 on"
            )
        machine.expect(events)
        last_command = max((place for place, event in enumerate(events) if is_command(event)), default=-1)
        with loop:
            for place, event in enumerate(events):
                loop.replaying = place < last_command
                self._pass(event)
                if machine.failure is not None:
                    raise machine.failure
        return Activation(machine.take_commands(), machine.closed)

    def query(self, name: str, arguments: Sequence[Payload]) -> Payload:
        """Ask the code something; nothing changes by it. Raises what its handler raises."""
        with self._loop:
            return self._handlers.query(name, arguments)

    @property
    def last_event_id(self) -> int:
        """The last input that the code got."""
        return self._loop.last_event_id

    @property
    def machine(self) -> Machine:
        """What the code asked for."""
        return self._loop.machine

    def close(self) -> None:
        """Put the run out of memory. Its code is freed as it stands: no `finally` of it runs."""
        self._loop.forget()
        self._main = None

    def __del__(self) -> None:
        self.close()

    def _pass(self, event: HistoryEvent) -> None:
        machine = self._loop.machine
        if is_command(event):
            machine.pass_command(event)
        elif ends_run(event):
            machine.close()
        elif is_input(event):
            machine.pass_input(event)
            if not machine.halted:
                self._apply(event)

    def _apply(self, event: HistoryEvent) -> None:
        """Give the code one input, and let it run until it waits again."""
        loop = self._loop
        loop.advance(event.time.seconds * 1000 + event.time.nanos // 1_000_000, event.event_id)
        loop.should_recur |= event.suggests_recurring
        match event.WhichOneof("attributes"):
            case "workflow_started":
                self._start(event.workflow_started)
            case "signal_received":
                self._handlers.signal(event.signal_received.signal)
            case "event_received":
                self._inbox.received(event.event_received)
            case "update_received":
                self._handlers.update(event.update_received)
            case "workflow_cancel_requested":
                assert self._main is not None
                loop.cancellation = event.workflow_cancel_requested
                self._main.cancel(event.workflow_cancel_requested.reason or None)
            case _:
                loop.machine.resolve(event)
        try:
            loop.drain()
        except SystemExit as error:
            raise WorkflowTaskError(f"workflow code called sys.exit({error.code!r}): raise an error instead") from error
        loop.check_calls()

    def _start(self, started: WorkflowStarted) -> None:
        loop, spec = self._loop, started.spec
        loop.start_ms = loop.now_ms
        info = WorkflowInfo(
            workflow_id=self._workflow_id,
            run_id=self._run_id,
            workflow_type=spec.workflow_type,
            task_queue=spec.task_queue,
            start_time=from_ms(loop.now_ms),
            priority=spec.priority,
            headers=dict(spec.headers),
            continued_from_run_id=started.continued_from_run_id,
            first_run_id=started.first_run_id or self._run_id,
        )
        self._inbox.begin(started.subscriptions)
        context = WorkflowContext(loop, self._handlers, self._inbox, info, self._definition, spec.attributes)
        code = _live(loop, self._handlers, self._inbox, self._definition, context, spec)
        # A context of its own: what the worker's thread has set is no part of the history.
        self._main = loop.create_task(code, name="workflow", context=Context())


async def _live(
    loop: WorkflowLoop,
    handlers: Handlers,
    inbox: Inbox,
    definition: WorkflowDefinition[..., Any],
    context: WorkflowContext,
    spec: WorkflowSpec,
) -> None:
    """Run the workflow function and issue the command that ends the run; no code of the run runs after it.

    Holds nothing of the instance, which is therefore freed as soon as its worker lets go of it.
    """
    try:
        args, kwargs = definition.decode_arguments(spec.arguments)
        result = definition.encode_result(await definition.begin(context, handlers)(*args, **kwargs))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        if isinstance(error, GeneratorExit) and loop.is_closed():
            raise  # the run is put out of memory; raised by the code itself it is an error like any other
        loop.excuse_calls()
        if (bug := bug_in(error)) is not None:
            loop.machine.fail(bug)
            return
        if isinstance(recurrence := only_error(error), Recurrence):
            kind, command = "ContinueWorkflow", Command(continue_workflow=_next_run(recurrence, spec, handlers, inbox))
        elif loop.cancellation is not None and isinstance(
            only_error(error), asyncio.CancelledError | ActivityCancelled
        ):
            kind, command = "CancelWorkflow", Command(cancel_workflow=CancelWorkflow())
        else:
            kind, command = "FailWorkflow", Command(fail_workflow=FailWorkflow(failure=to_failure(error)))
            if not (loop.replaying or isinstance(only_error(error), ApplicationError | RemoteError)):
                _log.warning("workflow %r fails by an error of its code", context.info.workflow_id, exc_info=error)
    else:
        kind, command = "CompleteWorkflow", Command(complete_workflow=CompleteWorkflow(result=result))
    if kind in ("CompleteWorkflow", "ContinueWorkflow") and not loop.replaying:
        _warn_of_handlers(context.info.workflow_id, handlers)
    await loop.close_generators()
    inbox.give_back()
    loop.machine.end(kind, command)


def _warn_of_handlers(workflow_id: str, handlers: Handlers) -> None:
    if handlers.running:
        _log.warning(
            "workflow %r ends its run while %s half done, and the rest of it never runs; before it returns or recurs: "
            "await ctx.wait_condition(ctx.all_handlers_finished)",
            *(workflow_id, ", ".join(handlers.running) + (" is" if len(handlers.running) == 1 else " are")),
        )


def _next_run(recurrence: Recurrence, spec: WorkflowSpec, handlers: Handlers, inbox: Inbox) -> ContinueWorkflow:
    command = ContinueWorkflow(spec=spec, unread_signals=handlers.unread, unread_events=inbox.unread)
    command.spec.ClearField("start_delay")
    del command.spec.arguments[:]
    command.spec.arguments.extend(recurrence.arguments)
    return command
