"""Courier: does the errands of runs: starts their children, closes them, reports their ends, delivers their messages.

An errand is a row of the run that asked for it, until it is done. It is done in two commits: one in the other run, safe
to repeat (by a request id, or by what the other run knows already), then one that takes the row away. So it does not
matter how often, or by how many replicas, an errand is done. What one run sends to another is sent in order: the next
message goes when the one before is recorded there, whoever recorded it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

import structlog

from romancy.v1.command_pb2 import PARENT_CLOSE_POLICY_TERMINATE, Send, StartChild, Subscribe
from romancy.v1.failure_pb2 import FAILURE_SOURCE_SERVICE, Failure
from romancy.v1.history_pb2 import Parent
from romancy.v1.workflow_service_pb2 import StartWorkflowRequest

from romancy_service.clock import Clock
from romancy_service.core import children
from romancy_service.core.channel import message, mode_name
from romancy_service.core.own import own_request_id, source_of_run
from romancy_service.core.run import OPEN_STATUSES, Run
from romancy_service.core.task import NEVER_MS, REPORT_TASK_ID, Fence, Task, TaskKind
from romancy_service.core.triggers import (
    AnswerSubscription,
    BeginChild,
    EndChild,
    FinishErrand,
    FinishSend,
    RequestCancel,
    SendSignal,
    TellChild,
    Terminate,
    Trigger,
)
from romancy_service.engine import Engine
from romancy_service.errors import (
    ChannelModeConflict,
    QueryTooSlow,
    RomancyError,
    StaleTask,
    StoreUnavailable,
    TooMuchContention,
    WorkflowClosed,
    WorkflowNotFound,
)
from romancy_service.publisher import Publisher
from romancy_service.starter import Starter
from romancy_service.store.store import Store
from romancy_service.submission import Recorded, RequestKey

_log = structlog.get_logger("romancy.courier")

ERRANDS: Final = (TaskKind.CHILD, TaskKind.SEND, TaskKind.REPORT, TaskKind.SUBSCRIPTION)
VISITS: Final = 64
"""So many runs are visited at a time."""
PAGE: Final = 128
"""So many errands of a run are read, and at most so many other workflows are seen to, at a time: as a commit takes."""
_TRIES: Final = 5
"""So often is a child looked for that closed between the look and the message, before it is left for later."""
_LEFT_OUT: Final = "LeftOut"
"""The method of requests that were not carried out, and never will be."""
_NOT_NOW: Final = (StoreUnavailable, QueryTooSlow, TooMuchContention)


class Courier:
    """Visits the runs that have errands."""

    def __init__(self, store: Store, clock: Clock, engine: Engine, starter: Starter, publisher: Publisher) -> None:
        self._store = store
        self._clock = clock
        self._publisher = publisher
        self._engine = engine
        self._starter = starter
        self._waiting: dict[str, None] = {}
        self._visiting: set[str] = set()
        self._wake = asyncio.Event()

    def observe(self, run: Run) -> None:
        """A run was written here."""
        for task_id in run.touched:
            task = run.tasks.get(task_id)
            if task is not None and task.kind in ERRANDS and task.due_ms < NEVER_MS:
                self.visit(run.run_id)
                return

    def visit(self, run_id: str) -> None:
        """A run has something to be done."""
        self._waiting[run_id] = None
        self._wake.set()

    async def run(self) -> None:
        """Visit runs, until cancelled. What fails for now is found again by the relay."""
        async with asyncio.TaskGroup() as visits:
            while True:
                await self._wake.wait()
                self._wake.clear()
                for run_id in [run_id for run_id in self._waiting if run_id not in self._visiting]:
                    if len(self._visiting) >= VISITS:
                        break
                    del self._waiting[run_id]
                    self._visiting.add(run_id)
                    visits.create_task(self._visit(run_id))

    async def _visit(self, run_id: str) -> None:
        try:
            await self._do_all(run_id)
        except _NOT_NOW as error:
            _log.warning("errands put off", run_id=run_id, error=str(error))
        except Exception:
            _log.exception("errands failed; they are tried again", run_id=run_id)
        finally:
            self._visiting.discard(run_id)
            self._wake.set()

    async def _do_all(self, run_id: str) -> None:
        """Do what the run has to be done, oldest first. What fails is left, and raised when the rest is done."""
        after, failed = (0, ""), dict[str, BaseException]()
        while errands := await self._store.errands(run_id, after, PAGE):
            # Read after them: of a run that closed, its errands are those of the closed run.
            run = await self._store.head(run_id)
            if run is None:
                return
            await self._do_page(run, [task for task in errands if _target(task) not in failed], failed)
            after = (errands[-1].scheduled_ms, errands[-1].task_id)
            if len(errands) < PAGE:
                break
        for error in failed.values():
            raise error

    async def _do_page(self, run: Run, errands: Iterable[Task], failed: dict[str, BaseException]) -> None:
        """One after the other for each other workflow, all of these at the same time."""
        by_target: dict[str, list[Task]] = defaultdict(list)
        for task in errands:
            by_target[_target(task)].append(task)
        outcomes = await asyncio.gather(*(self._do(run, tasks) for tasks in by_target.values()), return_exceptions=True)
        failed |= {target: error for target, error in zip(by_target, outcomes, strict=True) if error is not None}

    async def _do(self, run: Run, tasks: Sequence[Task]) -> None:
        for task in tasks:
            try:
                match task.kind:
                    case TaskKind.CHILD:
                        await self._see_to_child(run, task)
                    case TaskKind.SEND:
                        await self._send(run, task)
                    case TaskKind.SUBSCRIPTION:
                        await self._join(run, task)
                    case _:
                        await self._report(run)
            except StaleTask:
                pass  # another replica did it, or something else came first

    # Children -----------------------------------------------------------------------------------------------------

    async def _see_to_child(self, run: Run, task: Task) -> None:
        command = task.errand
        assert isinstance(command, StartChild)
        if task.attempt == children.START:
            await self._start(run, task, command)
        elif task.attempt == children.OPEN:
            await self._tell(run, command, terminate=False)
            await self._engine.submit(run.run_id, TellChild(_fence(task), command.child_id))
        # Of one that is known to be started the id of its start may be forgotten by now.
        elif task.attempt == children.CLOSE or not await self._prevent(run, task, command):
            await self._tell(run, command, terminate=command.parent_close_policy == PARENT_CLOSE_POLICY_TERMINATE)
            await self._engine.submit(run.run_id, FinishErrand(_fence(task)))

    async def _start(self, run: Run, task: Task, command: StartChild) -> None:
        request = StartWorkflowRequest(
            workflow_id=command.workflow_id, spec=command.spec, request_id=_start_id(run, command)
        )
        parent = Parent(workflow_id=run.workflow_id, run_id=run.run_id, child_id=command.child_id)
        try:
            started = await self._starter.start(run.namespace, request, f"run {run.run_id}", parent=parent)
            run_id = started.run_id
        except _NOT_NOW:
            raise
        except RomancyError as error:
            refused = BeginChild(_fence(task), command.child_id, command.workflow_id, failure=_failure(error))
            done = await self._instead(run, _start_id(run, command), refused)
            if done is None:
                return
            run_id = done.run_id
        begun = BeginChild(_fence(task), command.child_id, command.workflow_id, run_id)
        await self._engine.submit(run.run_id, begun)

    async def _prevent(self, run: Run, task: Task, command: StartChild) -> bool:
        """See to it that the child is never started. False: it was."""
        return await self._instead(run, _start_id(run, command), FinishErrand(_fence(task))) is None

    async def _instead(self, run: Run, request_id: str, trigger: Trigger) -> Recorded | None:
        """Record in the run that something is not brought about, and take the id by which it would be.

        So it cannot be recorded here as left out and be brought about by another replica all the same. Returns what
        was brought about under that id, if it was; then nothing is recorded here.
        """
        key = RequestKey(run.namespace, request_id, _LEFT_OUT, lambda _: b"")
        done = await self._engine.submit(run.run_id, trigger, key)
        return done if isinstance(done, Recorded) and done.method != _LEFT_OUT else None

    async def _tell(self, run: Run, command: StartChild, *, terminate: bool) -> None:
        """Ask the child to stop, or end it. Nothing happens when it is closed."""
        reason = f"its parent, run {run.run_id} of {run.workflow_id}, " + ("closed" if not run.is_open else "stops it")
        trigger: Trigger = Terminate(reason, "its parent") if terminate else RequestCancel(reason, "its parent")
        for _ in range(_TRIES):
            child = await self._child(run, command)
            if child is None:
                return
            try:
                await self._engine.submit(child, trigger)
            except (WorkflowClosed, WorkflowNotFound):
                continue  # it goes on in another run, or is closed
            return
        raise TooMuchContention(command.workflow_id)

    async def _child(self, run: Run, command: StartChild) -> str | None:
        """The open run of the child; by now somebody else may have its workflow id."""
        key = (run.namespace, command.workflow_id)
        latest = (await self._store.latest([key])).get(key)
        if latest is None or latest[1] not in OPEN_STATUSES:
            return None
        found = await self._store.head(latest[0])
        parent = None if found is None else found.counters.parent
        return latest[0] if parent is not None and parent[:2] == (run.run_id, command.child_id) else None

    async def _report(self, run: Run) -> None:
        """Tell the parent how its child ended."""
        parent, outcome = run.counters.parent, run.outcome
        assert parent is not None
        assert outcome is not None
        try:
            await self._engine.submit(parent[0], EndChild(parent[1], run.workflow_id, run.run_id, outcome))
        except (StaleTask, WorkflowNotFound):
            pass  # it knows, or does not want to
        await self._engine.submit(run.run_id, FinishErrand(Fence(REPORT_TASK_ID, 1, "")))

    # Messages -----------------------------------------------------------------------------------------------------

    async def _send(self, run: Run, task: Task) -> None:
        send = task.errand
        assert isinstance(send, Send)
        try:
            await self._deliver(run, send)
        except _NOT_NOW:
            raise
        except RomancyError as error:
            refused = FinishSend(_fence(task), send.send_id, _failure(error))
            if await self._instead(run, _send_id(run, send), refused) is None:
                return
        await self._engine.submit(run.run_id, FinishSend(_fence(task), send.send_id))

    async def _deliver(self, run: Run, send: Send) -> None:
        if send.HasField("channel_message"):
            what = send.channel_message
            event = message(
                what.channel, what.data, what.metadata,
                source=source_of_run(run.run_id), message_id=send.send_id, workflow_id=send.workflow_id,
            )  # fmt: skip
            await self._publisher.keep(run.namespace, [event], "channel_message")
        elif send.HasField("returned"):
            line = await self._store.reopen_event(send.returned.position, send.returned.count)
            if line is not None:
                await self._publisher.tell([(run.namespace, line)])
        else:
            await self._tell_workflow(run, send)

    async def _join(self, run: Run, task: Task) -> None:
        """Subscribe to a channel, if it is taken for the same."""
        wanted = task.errand
        assert isinstance(wanted, Subscribe)
        taken = await self._store.join_channel(run.namespace, wanted.channel, wanted.channel_mode, self._clock.now_ms())
        failure = None
        if taken is not None:
            failure = _failure(ChannelModeConflict(wanted.channel, mode_name(taken), mode_name(wanted.channel_mode)))
        answer = AnswerSubscription(_fence(task), wanted.subscription_id, failure)
        await self._engine.submit(run.run_id, answer)

    async def _tell_workflow(self, run: Run, send: Send) -> None:
        key = RequestKey(run.namespace, _send_id(run, send), "Send", lambda _: b"")
        identity = f"run {run.run_id}"
        trigger: Trigger
        if send.HasField("signal"):
            send.signal.identity = identity
            trigger = SendSignal(send.signal)
        else:
            trigger = RequestCancel(send.cancel.reason, identity)
        tried = ""
        while True:
            target = (await self._store.find_runs([(run.namespace, send.workflow_id, send.run_id)]))[0]
            if target is None:
                raise WorkflowNotFound(send.run_id or send.workflow_id)
            try:
                await self._engine.submit(target, trigger, key)
            except WorkflowClosed:
                if target == tried:
                    raise
                tried = target  # another run of it may go on
            else:
                return


def _target(task: Task) -> str:
    """Errands with the same one are done in their order."""
    match task.errand:
        case StartChild():
            return f"workflow {task.errand.workflow_id}"
        case Send() if task.errand.HasField("returned"):
            return task.task_id  # each message that goes back is one by itself
        case Send() if task.errand.workflow_id:
            return f"workflow {task.errand.workflow_id}"
        case Send():
            return f"channel {task.errand.channel_message.channel}"
        case _:
            return ""


def _fence(task: Task) -> Fence:
    return Fence(task.task_id, task.attempt, "")


def _start_id(run: Run, command: StartChild) -> str:
    """The request id of a child's start."""
    return own_request_id("child", run.run_id, command.child_id)


def _send_id(run: Run, send: Send) -> str:
    """The request id of a message."""
    return own_request_id("send", run.run_id, send.send_id)


def _failure(error: RomancyError) -> Failure:
    return Failure(type=error.reason, message=str(error), source=FAILURE_SOURCE_SERVICE)
