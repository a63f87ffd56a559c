"""Worker: a process's registry of workflows and activities, and its life from hello to goodbye."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from romancy.v1.worker_service_pb2 import (
    ACKNOWLEDGEMENT_RESULT_INVALID,
    ActivityCompletion,
    ActivityHeartbeat,
    ActivityTask,
    Hello,
)

from romancy._activities import Activities
from romancy._channel import DEFAULT_TARGET, Endpoint
from romancy._checks import check_choice, check_type
from romancy._compensations import Compensations
from romancy._session import Received, Session
from romancy._stream import Stream, StreamRefused
from romancy._workflows import Results, Workflows
from romancy.activity import ActivityDefinition
from romancy.errors import DefinitionError, RomancyError
from romancy.options import Seconds, check_seconds, in_seconds
from romancy.workflow import WorkflowDefinition, definition_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_D = TypeVar("_D")

_log = logging.getLogger("romancy.worker")

_STOCK_THRESHOLDS: Final = (700, 10, 10)
"""The garbage collector's, as Python has them unless a program sets others."""
_GIVE_UP_S: Final = 2.0
"""How long activities that are cancelled at the end of a drain may take to end."""
_THREADS_S: Final = 10.0
"""How long the worker's threads may take to end after the goodbye."""


class WorkerStopped(RomancyError):
    """The service refuses this worker for good: its hello is invalid, or another process took its session over."""


class Worker:
    """Runs workflows and activities for the service, until it is stopped.

        Worker("localhost:7233", workflows=[order_processing], activities=[reserve, pay, ship]).run()

    In programs that have an event loop: `async with Worker(...):`, or `start` and `stop`.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        workflows: Iterable[WorkflowDefinition[..., Any] | type[Any]] = (),
        activities: Iterable[ActivityDefinition[..., Any]] = (),
        task_queues: str | Sequence[str] = ("default",),
        worker_id: str | None = None,
        namespace: str = "default",
        activity_slots: int = 100,
        workflow_slots: int = 100,
        cached_runs: int = 1_000,
        replay_always: bool = False,
        drain_timeout: Seconds = 30.0,
        lease_lost: Literal["go_on", "cancel"] = "go_on",
        build_id: str = "",
        token: str | None = None,
        tls: bool = False,
        tls_ca: str | Path | None = None,
        tls_cert: str | Path | None = None,
        tls_key: str | Path | None = None,
    ) -> None:
        """Compensations of the given activities are registered with them; declarations without a body are left out.

        `cached_runs`: runs kept in memory, so that their history need not be sent and replayed again. `replay_always`
        (or ROMANCY_REPLAY_ALWAYS=1) keeps none, which finds what does not replay. `drain_timeout`: how long activities
        may take to end after a stop was asked for. `lease_lost`: what becomes of running activities when nothing was
        heard of the service for a lease, after which it may have given them to others, or may be down itself.
        `task_queues`: one, or several. Raises DefinitionError when a definition cannot be used.
        """
        check_choice("lease_lost", lease_lost, ("go_on", "cancel"))
        check_seconds("drain_timeout", drain_timeout)
        self._task_queues = _queues(task_queues)
        self._workflow_definitions = _by_name("workflow", _listed("workflows", workflows))
        self._activity_definitions = _by_name("activity", _implemented(_listed("activities", activities)))
        for definition in (*self._workflow_definitions.values(), *self._activity_definitions.values()):
            definition.check()
        endpoint = Endpoint(target, token, tls, tls_ca, tls_cert, tls_key)
        hello = Hello(
            namespace=namespace,
            worker_id=worker_id or f"{socket.gethostname()}-{os.getpid()}",
            task_queues=self._task_queues,
            workflow_types=sorted(self._workflow_definitions),
            activity_types=sorted(self._activity_definitions),
            workflow_slots=workflow_slots if self._workflow_definitions else 0,
            activity_slots=activity_slots if self._activity_definitions else 0,
            build_id=build_id,
            sdk=f"romancy-python/{_version()}",
            accepts_chunks=True,
        )
        self._drain_timeout_s = in_seconds(drain_timeout)
        self._cancels_on_lost_lease = lease_lost == "cancel"
        self._session = Session(hello)
        self._stream = Stream(endpoint, self._session, self)
        self._cached_runs = 0 if replay_always or os.environ.get("ROMANCY_REPLAY_ALWAYS") == "1" else cached_runs
        self._activity_slots = activity_slots
        self._activities: Activities
        self._workflows: Workflows
        self._connected: Future[None] = Future()
        self._drained: Future[None] = Future()
        self._ended: Future[None] = Future()
        self._started = False
        self._stopping = False

    # Life -----------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until SIGTERM or SIGINT, then drain. Raises WorkerStopped when the service refuses this worker.

        The process is taken to be the worker's: garbage is collected rarely, unless the program set its own thresholds.
        """
        _collect_garbage_rarely()
        asyncio.run(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        asked = asyncio.Event()
        with _signals(loop, asked.set):
            self._launch()
            ended = asyncio.wrap_future(self._ended)
            waiting = loop.create_task(asked.wait())
            await asyncio.wait((ended, waiting), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            await self.stop()
            await ended

    async def __aenter__(self) -> Worker:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Begin to work; returns when the service has welcomed the worker. Raises WorkerStopped if it never will."""
        self._launch()
        try:
            await asyncio.wrap_future(self._connected)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Take no new tasks, finish those in hand (for `drain_timeout` at most), say goodbye."""
        if not self._started:
            return
        if self._stopping:
            await asyncio.wait((asyncio.wrap_future(self._ended),))
            return
        self._stopping = True
        self._stream.post(self._drain, None)
        await asyncio.wait((asyncio.wrap_future(self._drained),), timeout=self._drain_timeout_s)
        if not self._drained.done():
            await self._give_up()
        self._stream.post(self._stream.finish, None)
        await asyncio.to_thread(self._join)

    def _launch(self) -> None:
        if self._started:
            raise RuntimeError("a worker is started once; make a new one")
        self._started = True
        self._activities = Activities(self._activity_definitions, self._activity_slots, self)
        compensations = Compensations(self._activity_definitions, self._task_queues)
        self._workflows = Workflows(self._workflow_definitions, compensations, self._cached_runs, self)
        self._stream.start()

    async def _give_up(self) -> None:
        """Cancel what did not end in time. It is not reported: the goodbye gives it to others at once."""
        _log.warning("%d activities did not end in time; others get them", self._activities.running)
        self._stream.post(self._abandon, None)
        await asyncio.to_thread(self._activities.wait_idle, _GIVE_UP_S)

    def _join(self) -> None:
        self._stream.join(_THREADS_S)
        self._activities.stop()
        self._workflows.stop()
        self._workflows.join(_THREADS_S)

    # On the stream's thread -----------------------------------------------------------------------------------------

    def received(self, received: Received) -> None:
        """One frame from the service."""
        if received.new_session:
            self._workflows.forget_all()
        if not self._connected.done():
            self._connected.set_result(None)
        if received.acknowledgements:
            self._acknowledged(received)
        for cancellation in received.cancellations:
            self._activities.cancel(cancellation.token)
        if self._session.draining:
            self._return_tasks(received)
        if received.activity_tasks:
            self._activities.start(received.activity_tasks)
        if received.workflow_tasks:
            self._workflows.run(received.workflow_tasks)
        if received.queries:
            self._workflows.answer(received.queries)

    def tick(self) -> None:
        """Some time passed."""
        self._activities.check()
        self._workflows.check()

    def lease_lost(self) -> None:
        """Nothing was heard for a lease."""
        fate = "is cancelled" if self._cancels_on_lost_lease else "goes on"
        _log.error("nothing was heard of the service for a lease; what runs here %s", fate)
        if self._cancels_on_lost_lease:
            self._activities.cancel_all()

    def ended(self, error: StreamRefused | None) -> None:
        """There will be no further frame."""
        if error is not None:
            _log.error("the service refuses this worker: %s", error)
            self._activities.cancel_all()
        refused = WorkerStopped(str(error)) if error is not None else None
        for future in (self._connected, self._drained, self._ended):
            if future.done():
                continue
            if refused is not None and future is not self._drained:
                future.set_exception(refused)
            else:
                future.set_result(None)

    def _acknowledged(self, received: Received) -> None:
        self._workflows.acknowledge(received.acknowledgements)
        for acknowledgement in received.acknowledgements:
            if acknowledgement.result == ACKNOWLEDGEMENT_RESULT_INVALID:
                rejection = acknowledgement.rejection
                _log.error("the service refused a result: %s: %s", rejection.reason, rejection.message)
        self._check_drained()

    def _return_tasks(self, received: Received) -> None:
        """What comes after the drain was asked for is not begun."""
        for task in received.activity_tasks:
            self._session.give_back(task.token)
        for workflow_task in received.workflow_tasks:
            self._session.give_back(workflow_task.token)
        received.activity_tasks.clear()
        received.workflow_tasks.clear()
        self._check_drained()

    def _drain(self, _: None) -> None:
        self._session.drain()
        self._check_drained()

    def _check_drained(self) -> None:
        if self._session.draining and self._session.idle and not self._drained.done():
            self._drained.set_result(None)

    def _abandon(self, _: None) -> None:
        for token in self._session.tokens_in_hand:
            self._session.give_up(token)
        self._activities.cancel_all()

    # From the activities' and the workflows' threads ------------------------------------------------------------------

    def completed(self, task: ActivityTask, completion: ActivityCompletion) -> None:
        """An activity ended."""
        if self._workflows.holds(task.run_id):
            self._workflows.complete(task, completion)
        else:
            self._stream.post(self._session.complete, completion)

    def heartbeat(self, heartbeat: ActivityHeartbeat) -> None:
        """An activity goes on."""
        self._stream.post(self._session.heartbeat, heartbeat)

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call on the stream's thread after a while."""
        self._stream.post(lambda _: self._stream.later(delay_s, call), None)

    def workflow_results(self, results: Results) -> None:
        """Workflow tasks, and activities with what followed from them, ended."""
        self._stream.post(self._say, results)

    def _say(self, results: Results) -> None:
        for activity_completion in results.activities:
            self._session.complete(activity_completion)
        for workflow_completion in results.workflows:
            self._session.complete(workflow_completion)
        for run_id in results.forgotten_runs:
            self._session.forget_run(run_id)
        for answer in results.answers:
            self._session.answer(answer)

    def service_ms(self) -> int:
        """The service's clock, by estimate."""
        return self._session.service_ms(time.monotonic())


def _queues(given: str | Sequence[str]) -> list[str]:
    names = [given] if isinstance(given, str) else list(given)
    if not names:
        raise ValueError("task_queues is empty: name the queues that the worker serves")
    for name in names:
        check_type("a name in task_queues", name, str, "a text")
        if names.count(name) > 1:
            raise ValueError(f"task_queues has {name!r} more than once: name each queue once")
    return names


def _listed(name: str, given: Iterable[_D]) -> Iterable[_D]:
    if not isinstance(given, Iterable):
        raise DefinitionError(f"{name} is {given!r}: put it into a list, as in {name}=[...]")
    return given


def _by_name(kind: str, definitions: Iterable[Any]) -> Mapping[str, Any]:
    named: dict[str, Any] = {}
    expected = WorkflowDefinition if kind == "workflow" else ActivityDefinition
    for given in definitions:
        definition = definition_of(given)
        if not isinstance(definition, expected):
            raise DefinitionError(f"{definition!r} is no {kind}: decorate it with @{kind}")
        if named.setdefault(definition.name, definition).fn is not definition.fn:
            raise DefinitionError(
                f"two functions are registered as {kind} {definition.name!r}: give one of them another name"
            )
    return named


def _implemented(activities: Iterable[ActivityDefinition[..., Any]]) -> Iterator[ActivityDefinition[..., Any]]:
    """The activities and what undoes them, as far as they have a body."""
    for activity in activities:
        compensation = getattr(activity, "compensation", None)
        if getattr(activity, "is_declared", False):
            _log.warning("%r is only declared: its body is `...`, so this worker does not run it", activity)
        else:
            yield activity
        if compensation is not None and not compensation.is_declared:
            yield compensation


def _collect_garbage_rarely() -> None:
    """Nearly all that comes and goes with a task is freed without the collector, which took a tenth of the time."""
    if gc.get_threshold() == _STOCK_THRESHOLDS:
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)


@contextmanager
def _signals(loop: asyncio.AbstractEventLoop, asked: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT ask for a stop; a second one ends the process as it would without us."""
    # Only the main thread may handle signals; elsewhere whoever runs the worker must stop it.
    is_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT) if is_main else ()

    def ask(number: signal.Signals) -> None:
        _log.info("%s: finishing what is in hand; the same once more ends at once", number.name)
        for other in numbers:
            loop.remove_signal_handler(other)
        asked()

    for number in numbers:
        loop.add_signal_handler(number, ask, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _version() -> str:
    try:
        return version("romancy")
    except PackageNotFoundError:  # run from a checkout
        return "0"
