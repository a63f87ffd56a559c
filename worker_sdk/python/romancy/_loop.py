"""Loop: a deterministic asyncio event loop on a machine. Timers are durable, order depends on the history alone.

Tasks and futures hash by number, because asyncio keeps them in sets and walks those; all tasks and async generators are
held, because what the collector finds it finds at any time.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import logging
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context, ContextVar
from dataclasses import dataclass
from time import monotonic
from types import CodeType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, TypeVarTuple
from weakref import ref

from google.protobuf.duration_pb2 import Duration

from romancy.v1.command_pb2 import Command, FailWorkflow, RecordStep, ScheduleActivity, Send
from romancy.v1.history_pb2 import HistoryEvent, WorkflowCancelRequested
from romancy.v1.payload_pb2 import Payload

from romancy import _drop
from romancy._asked import check_timer
from romancy._failure import from_failure, to_failure
from romancy._frames import place, user_place
from romancy._machine import Machine
from romancy._time_limit import limited_by
from romancy.errors import ChannelModeConflict, NonDeterminism, OutsideWorkflow, WorkflowTaskError, bug_in
from romancy.options import to_duration

_log: Final = logging.getLogger("romancy.workflow")
_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)
_Ts = TypeVarTuple("_Ts")

shielded: Final = ContextVar("shielded", default=False)
"""Whether what the code asks for is not to be stopped by a request to cancel the run."""
SLOW_S: Final = 1.0
"""Code that takes longer between two waits is warned of: a worker runs all its workflows on one thread."""
SPIN_LIMIT_S: Final = 5.0
"""So long may code go on yielding (`sleep(0)`) without waiting for anything, before its task is failed."""
_STEPS_BETWEEN_CHECKS: Final = 1024


class Activity(Protocol[_T_co]):
    """What the loop needs of an activity's definition."""

    name: str

    def schedule_command(self, arguments: Sequence[Payload]) -> ScheduleActivity: ...
    def outcome(self, event: HistoryEvent) -> _T_co: ...


def _number(future: Any) -> int:
    """The hash of a future: its number among those of its run that were hashed."""
    try:
        number: int = future._romancy_number
    except AttributeError:
        loop = future.get_loop()
        number = loop.next_number() if isinstance(loop, WorkflowLoop) else object.__hash__(future)
        future._romancy_number = number
    return number


if TYPE_CHECKING:
    _FutureBase = asyncio.Future[Any]
    _TaskBase = asyncio.Task[Any]
else:
    _FutureBase = asyncio.Future
    _TaskBase = asyncio.Task


class _Future(_FutureBase):
    __slots__ = ("_romancy_number",)
    __hash__ = _number


class _Task(_TaskBase):
    __slots__ = ("_romancy_number",)
    __hash__ = _number


class _TimerHandle(asyncio.TimerHandle):
    __slots__ = ("timer_id",)
    timer_id: str


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of an activity that is not awaited yet."""

    name: str
    coroutine: ref[Any]
    code: CodeType
    line: int


class WorkflowLoop(asyncio.AbstractEventLoop):
    """The loop of one run. It runs only inside of `with loop:`, by `drain()`."""

    def __init__(self, run_id: str) -> None:
        self.machine: Final = Machine()
        self.now_ms = 0
        """The time of the last input, in ms since 1970; it never goes back."""
        self.start_ms = 0
        self.replaying = False
        """True while the code does again what is recorded."""
        self.cancellation: WorkflowCancelRequested | None = None
        """Set when somebody asked the run to stop."""
        self.unguarded = 0
        """Above 0 while the user vouches for what the code does."""
        self.last_event_id = 0
        """The number of the last input."""
        self.should_recur = False
        """An input said that the history is long."""
        self._conditions: list[tuple[Callable[[], bool], asyncio.Future[Any]]] = []
        self._ready: deque[asyncio.Handle] = deque()
        self._tasks: list[_Task] = []
        self._task_count = 0
        self._tasks_before_pruning = 64
        self._calls: dict[int, _Call] = {}
        self._call_count = 0
        self._generators: list[AsyncGenerator[Any, Any]] = []
        self._generators_before_pruning = 64
        # All runs' tasks meet in asyncio's own weak sets: there they must not all have the same few numbers.
        self._next_number = int.from_bytes(hashlib.sha256(run_id.encode()).digest()[:6], "big") << 8
        self._outer: Any = None
        self._forgotten = False

    # Running.

    def __enter__(self) -> WorkflowLoop:
        self._outer = (asyncio._get_running_loop(), sys.get_asyncgen_hooks())
        asyncio._set_running_loop(self)
        sys.set_asyncgen_hooks(firstiter=self._hold_generator, finalizer=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        outer, hooks = self._outer
        self._outer = None
        asyncio._set_running_loop(outer)
        sys.set_asyncgen_hooks(*hooks)

    def drain(self) -> None:
        """Let the code run until it waits for inputs, or must not run on."""
        ready, machine = self._ready, self.machine
        steps, since = 0, monotonic()
        while (ready or self._wake_conditions()) and not machine.halted:
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()
            steps += 1
            if steps % _STEPS_BETWEEN_CHECKS == 0 and monotonic() - since > SPIN_LIMIT_S:
                machine.fail(
                    WorkflowTaskError(
                        f"the workflow's code ran {steps} steps in {SPIN_LIMIT_S} s without waiting for anything; "
                        "wait with ctx.sleep, an activity or an asyncio.Event instead of polling"
                    )
                )
        if monotonic() - since > SLOW_S:
            _log.warning(
                "workflow code ran for %.1f s without waiting for anything, and holds up all other runs of its worker; "
                "long computations belong into an activity",
                monotonic() - since,
            )

    def advance(self, time_ms: int, event_id: int) -> None:
        """The time and number of the next input."""
        self.now_ms = max(self.now_ms, time_ms)
        self.last_event_id = event_id

    def _wake_conditions(self) -> bool:
        """Wake those whose condition is met, in the order in which they were asked. Only when the code waits."""
        waiting, self._conditions = self._conditions, []
        for condition, answer in waiting:
            try:
                met = answer.done() or _met(condition)
            except Exception as error:
                if (bug := bug_in(error)) is not None:
                    self.machine.fail(bug)
                    break
                answer.set_exception(error)
                continue
            if not met:
                self._conditions.append((condition, answer))
            elif not answer.done():
                answer.set_result(None)
        return bool(self._ready)

    def fail_run(self, error: BaseException) -> None:
        """End the run as failed: something raised that nobody waits for."""
        self.machine.end("FailWorkflow", Command(fail_workflow=FailWorkflow(failure=to_failure(error))))

    @contextmanager
    def only_reading(self, who: str) -> Iterator[None]:
        """Refuse all commands meanwhile."""
        self.machine.reading = who
        try:
            yield
        finally:
            self.machine.reading = ""

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Run code as if it were not the workflow's: nothing is refused, and its event loop is its own."""
        asyncio._set_running_loop(None)
        try:
            yield
        finally:
            asyncio._set_running_loop(self)

    def refuse(self, what: str, remedy: str) -> NonDeterminism:
        """Fail the task because of what the code is about to do. Raise the error as well, so that it is not done."""
        error = NonDeterminism(f"workflow code called {what}{user_place()}: {remedy}")
        self.machine.fail(error)
        return error

    def forget(self) -> None:
        """Free the run's code as it stands. Nothing of it runs on."""
        self.machine.close()
        self._forgotten = True
        for task in self._tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        _drop.drop([*self._tasks, *self._generators, *self._ready], keep=[self])
        self._ready.clear()
        self._tasks.clear()
        self._generators.clear()
        self._conditions.clear()
        self.machine.forget()

    async def close_generators(self) -> None:
        """Close async generators that were not read to their end, oldest first."""
        for generator in list(self._generators):
            try:
                await generator.aclose()
            except Exception:
                _log.exception("an async generator failed to close")

    # What workflow code waits for.

    def call_activity(self, activity: Activity[_T], arguments: Sequence[Payload]) -> Coroutine[Any, Any, _T]:
        """A coroutine that schedules an activity and waits for its result. Called by what user code calls.

        When the waiting is cancelled, the activity is asked to stop. The cancellation is raised at once: the activity's
        answer is not waited for, and dropped when it comes.
        """
        self._call_count += 1
        coroutine = self._run_activity(self._call_count, activity, arguments)
        coroutine.__qualname__ = activity.name  # type: ignore[attr-defined]  # Python says it when the call is never awaited
        caller = sys._getframe(2)
        self._calls[self._call_count] = _Call(activity.name, ref(coroutine), caller.f_code, caller.f_lineno)
        return coroutine

    def check_calls(self) -> None:
        """Fail the task when a call of an activity was thrown away: it would never run, and nobody would notice."""
        for call in self._calls.values():
            if call.coroutine() is None:
                self.machine.fail(
                    WorkflowTaskError(
                        f"the activity {call.name} was called at {place(call.code, call.line)}, but its call was not "
                        f"awaited, so it would never run: write `await {call.name}(...)`, or give it to asyncio.gather "
                        "or a task"
                    )
                )
                return

    def excuse_calls(self) -> None:
        """The workflow failed: what it had called and not awaited yet is no mistake."""
        self._calls.clear()

    async def _run_activity(self, number: int, activity: Activity[_T], arguments: Sequence[Payload]) -> _T:
        self._calls.pop(number, None)
        answer = self.create_future()
        command = activity.schedule_command(arguments)
        command.shielded = shielded.get()
        activity_id = self.machine.schedule_activity(command, answer.set_result)
        try:
            event = await answer
        except asyncio.CancelledError:
            self.machine.cancel_activity(activity_id)
            raise
        return activity.outcome(event)

    async def run_timer(self, duration: Duration) -> None:
        """Wait for a durable timer."""
        answer = self.create_future()
        timer_id = self.machine.start_timer(check_timer(duration), answer.set_result)
        try:
            await answer
        except asyncio.CancelledError:
            self.machine.cancel_timer(timer_id)
            raise

    async def run_send(self, command: Send) -> HistoryEvent:
        """Tell another workflow something, and wait until it is recorded there."""
        answer = self.create_future()
        send_id = self.machine.send(command, answer.set_result)
        try:
            event: HistoryEvent = await answer
        except asyncio.CancelledError:
            self.machine.drop_send(send_id)
            raise
        return event

    async def run_subscription(self, subscription_id: str) -> None:
        """Wait until it is known whether a subscription may be. Raises ChannelModeConflict."""
        answer = self.create_future()
        self.machine.await_answer(subscription_id, answer.set_result)
        event: HistoryEvent = await answer
        if event.subscription_answered.HasField("failure"):
            self.machine.end_subscription(subscription_id)
            raise from_failure(ChannelModeConflict, event.subscription_answered.failure)

    async def run_condition(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition is met. It is when this returns: what another waiter undid meanwhile is waited for."""
        while not self._is_met(condition):
            answer = self.create_future()
            self._conditions.append((condition, answer))
            await answer

    def _is_met(self, condition: Callable[[], bool]) -> bool:
        """Whether it is. Raises what it raises; where that is a mistake, so that it cannot be caught."""
        try:
            return _met(condition)
        except Exception as error:
            if (bug := bug_in(error)) is not None:
                self.machine.fail(bug)
            raise

    async def run_step(self, name: str, make: Callable[[], RecordStep]) -> RecordStep:
        """Make a local step, or take it from the history."""
        step = self.machine.record_step(name, make)
        if step is None:
            await self.create_future()  # for ever: the code must not run on
            raise AssertionError("a run that is halted went on")
        return step

    async def run_compensate(self) -> HistoryEvent:
        """Undo what is on the saga's list. It is not interrupted by cancelling the waiting."""
        answer = self.create_future()
        compensate_id = self.machine.compensate(answer.set_result)
        try:
            event: HistoryEvent = await answer
        except asyncio.CancelledError:
            self.machine.drop_compensate(compensate_id)
            raise
        return event

    # What asyncio asks of a loop.

    def time(self) -> float:
        """Seconds from the start of the run to the last input: small numbers, so that sums of them are exact."""
        return (self.now_ms - self.start_ms) / 1000

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        if self.machine.reading:
            raise NonDeterminism(f"{self.machine.reading} woke or started something{user_place()}: it may only read")
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = _TimerHandle(self.time() + delay, callback, args, self, context)
        handle.timer_id = ""
        if delay > 0:
            handle.timer_id = self.machine.start_timer(
                check_timer(to_duration(delay)), lambda _: self._ready.append(handle), limited_by(callback)
            )
        else:
            self._ready.append(handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_later(when - self.time(), callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        assert isinstance(handle, _TimerHandle)
        self.machine.cancel_timer(handle.timer_id)

    def create_future(self) -> asyncio.Future[Any]:
        return _Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> asyncio.Task[Any]:
        self._task_count += 1
        if getattr(coro, "cr_code", None) is _ACTIVITY_CALL and coro.cr_frame is not None:
            # The task has it now; one that is cancelled before its first step never runs it, and that is no mistake.
            self._calls.pop(coro.cr_frame.f_locals["number"], None)
        task = _Task(coro, loop=self, name=name or f"Task-{self._task_count}", context=context)
        self._tasks.append(task)
        if len(self._tasks) > self._tasks_before_pruning:
            self._tasks = [held for held in self._tasks if not held.done()]
            self._tasks_before_pruning = 64 + 2 * len(self._tasks)
        return task

    def _hold_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._generators.append(generator)
        if len(self._generators) > self._generators_before_pruning:
            self._generators = [held for held in self._generators if held.ag_frame is not None]  # type: ignore[attr-defined]
            self._generators_before_pruning = 64 + 2 * len(self._generators)

    def next_number(self) -> int:
        """The hash of the next future."""
        self._next_number += 1
        return self._next_number

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._outer is not None

    def is_closed(self) -> bool:
        return self._forgotten

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not (self._forgotten or self.replaying):
            _log.error("in workflow code: %s", context.get("message"), exc_info=context.get("exception"))

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)


def _met(condition: Callable[[], bool]) -> bool:
    """What a condition says now. Raises TypeError when that is no answer."""
    met: Any = condition()
    if inspect.iscoroutine(met):
        met.close()
        raise TypeError(
            f"the condition {condition!r} is async, but must be a plain function that returns True or False"
        )
    return bool(met)


_ACTIVITY_CALL: Final = WorkflowLoop._run_activity.__code__


def running_loop(what: str, remedy: str) -> WorkflowLoop:
    """The loop of the workflow code that calls this. Raises OutsideWorkflow, naming `what` is called, elsewhere."""
    loop = asyncio._get_running_loop()
    if type(loop) is WorkflowLoop:
        return loop
    raise OutsideWorkflow(f"{what} can be called only inside of a workflow; {remedy}")


def _refusing(name: str) -> Callable[..., Any]:
    def refuse(self: WorkflowLoop, *_: Any, **__: Any) -> Any:
        raise self.refuse(f"loop.{name}", "threads, sockets, processes and files belong into an activity")

    return refuse


def _refuse_the_rest() -> None:
    for name in dir(asyncio.AbstractEventLoop):
        if not name.startswith("_") and name not in vars(WorkflowLoop):
            setattr(WorkflowLoop, name, _refusing(name))


_refuse_the_rest()
# Futures of gather are made by asyncio itself, and may lie in sets as well.
asyncio.tasks._GatheringFuture.__hash__ = _number  # type: ignore[attr-defined]
