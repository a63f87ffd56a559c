"""Runs workflow tasks, on one thread of their own, and keeps the runs that it may need again in memory.

A run in memory is of use only while it is exactly what the service has recorded: whatever leaves that in doubt makes
the worker forget it, and the whole history comes with its next task.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Final, Protocol, TypeVar

from romancy.v1.command_pb2 import Command
from romancy.v1.history_pb2 import ActivityCompleted, HistoryEvent
from romancy.v1.worker_service_pb2 import (
    ACKNOWLEDGEMENT_RESULT_ACCEPTED,
    Acknowledgement,
    ActivityCompletion,
    ActivityTask,
    QueryAnswer,
    QueryTask,
    WorkflowTask,
    WorkflowTaskCommands,
    WorkflowTaskCompletion,
    WorkflowTaskMiss,
)

from romancy._compensations import Compensations
from romancy._failure import to_failure
from romancy._instance import Activation, WorkflowInstance
from romancy._interrupt import Interrupt
from romancy._watch import Watch
from romancy.errors import RomancyError
from romancy.workflow import WorkflowDefinition

_log = logging.getLogger("romancy.worker")
_T = TypeVar("_T")

_MAX_THEN_BYTES: Final = 1024 * 1024
"""A completion whose `then` makes it larger than this goes without: its commands must not endanger the result."""
_GATHER_S: Final = 0.005
"""Results of tasks that wait for each other go out together, but none waits longer than this."""


class UnknownWorkflowType(RomancyError):
    """A task came for a workflow that was not registered."""


@dataclass(slots=True)
class Results:
    """What the workflow thread has to say, in order."""

    activities: list[ActivityCompletion]
    workflows: list[WorkflowTaskCompletion]
    forgotten_runs: list[str]
    answers: list[QueryAnswer]


class Outlet(Protocol):
    """Where results go. Called from the workflow thread."""

    def workflow_results(self, results: Results) -> None:
        """Send these."""
        ...

    def service_ms(self) -> int:
        """The service's clock, by estimate."""
        ...


@dataclass(slots=True, eq=False)
class _Held:
    """A run in memory."""

    instance: WorkflowInstance
    last_event_id: int = 0
    """The run's last event when the service accepted what came from here last."""
    last_event_ms: int = 0
    outstanding: str = ""
    """The token of the task, or of the completion with a `then`, that is not acknowledged yet."""
    open_activities: set[str] = field(default_factory=set)
    """Their ids, as far as the code has seen."""
    queries: list[QueryTask] = field(default_factory=list)
    """Those that wait for the acknowledgement: what is not recorded yet must not be seen."""
    parked: tuple[ActivityTask, ActivityCompletion] | None = None
    """The end of the activity that the outstanding commands asked for; it overtook their acknowledgement."""


class Workflows:
    """The runs of a worker. Its methods may be called from any thread and do not block."""

    def __init__(
        self,
        definitions: Mapping[str, WorkflowDefinition[..., Any]],
        compensations: Compensations,
        cached_runs: int,
        outlet: Outlet,
    ) -> None:
        """`cached_runs` is how many runs are kept in memory; with 0 each task is replayed from the beginning."""
        self._definitions = definitions
        self._compensations = compensations
        self._cached_runs = cached_runs
        self._outlet = outlet
        self._runs: OrderedDict[str, _Held] = OrderedDict()
        self._outstanding: dict[str, str] = {}
        self._results = Results([], [], [], [])
        self._jobs: SimpleQueue[tuple[Callable[[Any], None], Any] | None] = SimpleQueue()
        self._unread: deque[list[Acknowledgement]] = deque()
        """Acknowledgements that nothing waits for: they are read before the next job, and wake nobody by themselves."""
        self._expecting = 0
        """Ends of activities, and queries, that wait for an acknowledgement."""
        self._thread = threading.Thread(target=self._main, name="romancy-workflows", daemon=True)
        self._interrupt = Interrupt()
        self._watch = Watch(
            self._thread,
            lambda answer: self._post(lambda _: answer(), None),
            "no other workflow goes on meanwhile: what takes long belongs into an activity",
        )
        self._thread.start()

    def run(self, tasks: Sequence[WorkflowTask]) -> None:
        """Run these tasks."""
        self._post(self._run_all, tasks)

    def answer(self, queries: Sequence[QueryTask]) -> None:
        """Answer these."""
        self._post(self._answer_all, queries)

    def holds(self, run_id: str) -> bool:
        """Whether an activity's completion may be followed by a workflow task of its run here."""
        return run_id in self._runs

    def complete(self, task: ActivityTask, completion: ActivityCompletion) -> None:
        """An activity ended: send its completion, with the workflow task that follows from it if the run is held."""
        self._post(self._complete, (task, completion))

    def acknowledge(self, acknowledgements: Iterable[Acknowledgement]) -> None:
        """Learn what became of what was sent. Those of activities alone are passed over."""
        ours = [acknowledgement for acknowledgement in acknowledgements if acknowledgement.token in self._outstanding]
        if ours:
            self._unread.append(ours)
            if self._expecting:
                self._post(self._acknowledge_all, None)

    def check(self) -> None:
        """Report it when a workflow's code blocks the others, and end it at last. To be called now and then."""
        self._watch.check()
        self._interrupt.check()
        if self._unread:
            self._post(self._acknowledge_all, None)

    def forget_all(self) -> None:
        """The service knows nothing of what is held here."""
        self._post(self._forget_all, None)

    def stop(self) -> None:
        """End the thread after what waits."""
        self._jobs.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait until the thread ended."""
        self._thread.join(timeout_s)

    # The thread -----------------------------------------------------------------------------------------------------

    def _post(self, job: Callable[[_T], None], what: _T) -> None:
        self._jobs.put((job, what))

    def _main(self) -> None:
        gathering_since = time.monotonic()
        while (posted := self._jobs.get()) is not None:
            job, what = posted
            try:
                self._acknowledge_all(None)
                job(what)
                if self._expecting:  # one may have come while that was not known yet
                    self._acknowledge_all(None)
            except BaseException:  # a bug: the thread must go on for the other runs
                _log.exception("a workflow task broke the worker's own code")
            now = time.monotonic()
            if self._jobs.empty() or now - gathering_since > _GATHER_S:
                self._flush()
                gathering_since = now
        self._flush()

    def _flush(self) -> None:
        results = self._results
        if results.activities or results.workflows or results.forgotten_runs or results.answers:
            self._results = Results([], [], [], [])
            self._outlet.workflow_results(results)

    # Tasks ----------------------------------------------------------------------------------------------------------

    def _run_all(self, tasks: Sequence[WorkflowTask]) -> None:
        for task in tasks:
            self._results.workflows.append(self._run(task))

    def _run(self, task: WorkflowTask) -> WorkflowTaskCompletion:
        try:
            return self._run_code(task)
        except BaseException as error:
            self._drop(task.run_id)
            failure = to_failure(error)
            _log.error(
                "workflow %r (%s, run %s) cannot go on: %s: %s",
                *(task.workflow_id, task.workflow_type, task.run_id, failure.type, failure.message),
            )
            return WorkflowTaskCompletion(token=task.token, seen_event_id=task.last_event_id, failure=failure)

    def _run_code(self, task: WorkflowTask) -> WorkflowTaskCompletion:
        held = self._runs.get(task.run_id)
        if not task.after_event_id:
            held = self._open(task)
        elif held is None or held.outstanding or held.last_event_id != task.after_event_id:
            self._drop(task.run_id)
            return WorkflowTaskCompletion(token=task.token, miss=WorkflowTaskMiss())
        activation = self._activate(held, task.events)
        holds_run = not activation.closed and self._cached_runs > 0
        if holds_run:
            self._hold(task.run_id, held, task.token)
        else:
            self._drop(task.run_id)
        return WorkflowTaskCompletion(
            token=task.token,
            # What the task brought after the code ended, nobody took.
            seen_event_id=held.instance.last_event_id if activation.closed else task.last_event_id,
            commands=WorkflowTaskCommands(commands=activation.commands, holds_run=holds_run),
        )

    def _open(self, task: WorkflowTask) -> _Held:
        """Begin with a run whose whole history came."""
        self._drop(task.run_id)
        held = _Held(self._new_instance(task.workflow_type, task.workflow_id, task.run_id))
        self._runs[task.run_id] = held
        return held

    def _new_instance(self, workflow_type: str, workflow_id: str, run_id: str) -> WorkflowInstance:
        definition = self._definitions.get(workflow_type)
        if definition is None:
            known = ", ".join(sorted(self._definitions)) or "none"
            raise UnknownWorkflowType(f"this worker has no workflow {workflow_type!r}; it has {known}")
        return WorkflowInstance(definition, workflow_id=workflow_id, run_id=run_id)

    def _activate(self, held: _Held, events: Sequence[HistoryEvent]) -> Activation:
        with self._interrupt.watching(held.instance.machine):
            activation = held.instance.activate(events)
        opened = held.open_activities
        for event in events:
            match event.WhichOneof("attributes"):
                case "activity_scheduled":
                    opened.add(event.activity_scheduled.command.activity_id)
                case "activity_completed":
                    opened.discard(event.activity_completed.activity_id)
                case "activity_failed":
                    opened.discard(event.activity_failed.activity_id)
                case "activity_cancelled":
                    opened.discard(event.activity_cancelled.activity_id)
        for command in activation.commands:
            self._compensations.check(command)
            if command.HasField("schedule_activity"):
                opened.add(command.schedule_activity.activity_id)
        return activation

    # Queries --------------------------------------------------------------------------------------------------------

    def _answer_all(self, queries: Sequence[QueryTask]) -> None:
        for query in queries:
            held = self._runs.get(query.run_id)
            if query.after_event_id and held is not None and held.outstanding:
                held.queries.append(query)
                self._expecting += 1
            else:
                self._results.answers.append(self._answer(query, held))

    def _answer(self, query: QueryTask, held: _Held | None) -> QueryAnswer:
        answer = QueryAnswer(query_id=query.query_id)
        try:
            if not query.after_event_id:
                # An instance of its own: the one that is held may be ahead, and must not be replaced.
                instance = self._new_instance(query.workflow_type, query.workflow_id, query.run_id)
                instance.activate(query.events)
                answer.result.CopyFrom(instance.query(query.name, query.arguments))
            elif held is None or held.last_event_id < query.after_event_id:
                answer.miss.SetInParent()
            else:
                answer.result.CopyFrom(held.instance.query(query.name, query.arguments))
        except BaseException as error:
            answer.failure.CopyFrom(to_failure(error))
        return answer

    # Carried commands -------------------------------------------------------------------------------------------------

    def _complete(self, ended: tuple[ActivityTask, ActivityCompletion]) -> None:
        task, completion = ended
        held = self._runs.get(task.run_id)
        if held is not None and _may_carry(held, task, completion):
            if held.outstanding and held.parked is None:
                held.parked = ended
                self._expecting += 1
                return
            if not held.outstanding:
                self._carry(held, task, completion)
        self._results.activities.append(completion)

    def _carry(self, held: _Held, task: ActivityTask, completion: ActivityCompletion) -> None:
        """Let the code see the result before the service has recorded it; undone by forgetting the run."""
        event = HistoryEvent(
            event_id=held.last_event_id + 1,
            activity_completed=ActivityCompleted(
                activity_id=task.activity_id, attempt=task.attempt, result=completion.result
            ),
        )
        event.time.FromMilliseconds(max(self._outlet.service_ms(), held.last_event_ms))
        try:
            activation = self._activate(held, [event])
        except BaseException as error:
            # Without a workflow task there is nothing to fail: the one that follows will fail the same way.
            _log.warning("workflow %r cannot go on from memory: %s", task.workflow_id, error)
            self._forget(task.run_id)
            return
        commands: list[Command] = activation.commands
        completion.then.after_event_id = held.last_event_id
        completion.then.time.CopyFrom(event.time)
        completion.then.commands.extend(commands)
        if completion.ByteSize() > _MAX_THEN_BYTES:
            completion.ClearField("then")
            self._forget(task.run_id)
        elif activation.closed:
            self._drop(task.run_id)
        else:
            self._hold(task.run_id, held, task.token)

    # What is held -----------------------------------------------------------------------------------------------------

    def _hold(self, run_id: str, held: _Held, token: str) -> None:
        held.outstanding = token
        self._outstanding[token] = run_id
        self._runs.move_to_end(run_id)
        if len(self._runs) > self._cached_runs:
            self._forget(next(iter(self._runs)))

    def _drop(self, run_id: str) -> None:
        """Free a run, if it is held, that the service does not think is held here, or will not by the next task."""
        held = self._runs.pop(run_id, None)
        if held is not None:
            held.instance.close()
            self._outstanding.pop(held.outstanding, None)
            self._expecting -= len(held.queries) + (held.parked is not None)
            if held.parked is not None:
                self._results.activities.append(held.parked[1])
            for query in held.queries:
                self._results.answers.append(QueryAnswer(query_id=query.query_id, miss=WorkflowTaskMiss()))

    def _forget(self, run_id: str) -> None:
        """Free a run and tell the service so."""
        if run_id in self._runs:
            self._drop(run_id)
            self._results.forgotten_runs.append(run_id)

    def _forget_all(self, _: None) -> None:
        for run_id in list(self._runs):
            self._drop(run_id)

    def _acknowledge_all(self, _: None) -> None:
        while self._unread:
            self._acknowledge(self._unread.popleft())

    def _acknowledge(self, acknowledgements: list[Acknowledgement]) -> None:
        for acknowledgement in acknowledgements:
            run_id = self._outstanding.pop(acknowledgement.token, "")
            held = self._runs.get(run_id)
            if held is None or held.outstanding != acknowledgement.token:
                continue
            held.outstanding = ""
            if acknowledgement.result == ACKNOWLEDGEMENT_RESULT_ACCEPTED:
                held.last_event_id = acknowledgement.last_event_id
                held.last_event_ms = acknowledgement.last_event_time.ToMilliseconds()
                queries, held.queries = held.queries, []
                self._expecting -= len(queries)
                self._answer_all(queries)
                if held.parked is not None:
                    ended, held.parked = held.parked, None
                    self._expecting -= 1
                    self._complete(ended)
            else:
                self._forget(run_id)


def _may_carry(held: _Held, task: ActivityTask, completion: ActivityCompletion) -> bool:
    """Whether in all likelihood nothing else was recorded meanwhile: the only open activity ended, at once.

    If something was, only the result is accepted and the run in memory is lost.
    """
    return task.attempt == 1 and held.open_activities == {task.activity_id} and completion.HasField("result")
