"""Runs activities: async ones on an event loop of their own thread, sync ones on a pool of threads.

Whatever user code does ends in a completion: nothing that it raises gets further than here.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC
from functools import partial
from typing import Any, Final, Protocol

from romancy.v1.payload_pb2 import Payload
from romancy.v1.worker_service_pb2 import (
    ActivityCancelledOutcome,
    ActivityCompletion,
    ActivityElsewhere,
    ActivityHeartbeat,
    ActivityTask,
)

from romancy._failure import only_error, to_failure
from romancy._threads import DaemonPool, new_event_loop
from romancy._watch import Watch
from romancy.activity import ActivityContext, ActivityDefinition, ActivityInfo, current_activity
from romancy.errors import ApplicationError, CompleteElsewhere, NothingDone, RemoteError, RomancyError

_log = logging.getLogger("romancy.worker")

_HEARTBEAT_S: Final = 5.0
"""Heartbeats of an activity are sent this far apart at most, or three times in its heartbeat timeout."""

_CLEAN_UP_S: Final = 1.0
"""How long async functions may take to clean up when the worker stops in the middle of them."""


class UnknownActivityType(RomancyError):
    """A task came for an activity that was not registered."""


class Outlet(Protocol):
    """Where what activities have to say goes. Called from their threads."""

    def completed(self, task: ActivityTask, completion: ActivityCompletion) -> None:
        """An attempt ended."""
        ...

    def heartbeat(self, heartbeat: ActivityHeartbeat) -> None:
        """An attempt goes on."""
        ...

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call after a while, on a thread that is never blocked for long."""
        ...


class _Heartbeats:
    """The heartbeats of one attempt: the first goes out at once, of those that follow quickly only the last."""

    def __init__(self, task: ActivityTask, outlet: Outlet) -> None:
        self._token = task.token
        self._outlet = outlet
        timeout_s = task.heartbeat_timeout.ToMilliseconds() / 1000
        self._interval_s = min(timeout_s / 3, _HEARTBEAT_S) if timeout_s > 0 else _HEARTBEAT_S
        self._lock = threading.Lock()
        self._next_at = 0.0
        self._waits = False
        self._details: Payload | None = None

    def send(self, details: Payload | None) -> None:
        """Say that the attempt goes on, now or soon."""
        now = time.monotonic()
        with self._lock:
            if self._waits or now < self._next_at:
                self._details = details or self._details
                if not self._waits:
                    self._waits = True
                    self._outlet.later(self._next_at - now, self.flush)
                return
            self._next_at = now + self._interval_s
        self._outlet.heartbeat(ActivityHeartbeat(token=self._token, details=details))

    def flush(self) -> None:
        """Send what waits."""
        with self._lock:
            if not self._waits:
                return
            self._waits = False
            self._next_at = time.monotonic() + self._interval_s
            details, self._details = self._details, None
        self._outlet.heartbeat(ActivityHeartbeat(token=self._token, details=details))


class _Attempt:
    """One task that runs here."""

    def __init__(self, task: ActivityTask, definition: ActivityDefinition[..., Any], outlet: Outlet) -> None:
        self.task = task
        self.definition = definition
        self.heartbeats = _Heartbeats(task, outlet)
        self.context = ActivityContext(_info(task), self.heartbeats.send)
        self.asyncio_task: asyncio.Task[None] | None = None
        """Set once the function runs; None for a sync one."""
        self.begun = False
        """The function was called: from then on it may have had its effect."""

    def failed(self, error: BaseException) -> ActivityCompletion:
        """The completion after the function raised."""
        if self.context.cancelled.is_set() and isinstance(error, asyncio.CancelledError | NothingDone):
            # Where a cancellation interrupts an await nobody knows whether what was awaited has happened.
            nothing_done = isinstance(error, NothingDone) or not self.begun
            outcome = ActivityCancelledOutcome(nothing_done=nothing_done)
            return ActivityCompletion(token=self.task.token, cancelled=outcome)
        if isinstance(only_error(error), CompleteElsewhere):
            return ActivityCompletion(token=self.task.token, elsewhere=ActivityElsewhere())
        failure = self.definition.encode_failure(error)
        # An error that the code means to raise is no news to whoever runs it; any other one is to be found at once.
        meant = isinstance(error, (ApplicationError, RemoteError, asyncio.CancelledError, *self.definition.raises))
        _log.log(
            logging.INFO if meant else logging.WARNING,
            "attempt %d of %s in workflow %r failed: %s: %s",
            *(self.task.attempt, self.task.activity_id, self.task.workflow_id, failure.type, failure.message),
            exc_info=None if meant else error,
        )
        return ActivityCompletion(token=self.task.token, failure=failure)


class Activities:
    """The activities of a worker. `start`, `cancel` and `stop` belong to one thread and do not block it."""

    def __init__(self, definitions: Mapping[str, ActivityDefinition[..., Any]], slots: int, outlet: Outlet) -> None:
        self._definitions = definitions
        self._outlet = outlet
        self._attempts: dict[str, _Attempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        """The loop itself holds tasks only weakly."""
        self._pool = DaemonPool(slots, "romancy-activity")
        self._loop = new_event_loop()
        self._stopping = False
        self._idle: threading.Event | None = None
        """Somebody waits for the end of all attempts."""
        self._thread = threading.Thread(target=self._main, name="romancy-activities", daemon=True)
        self._watch = Watch(
            self._thread,
            self._loop.call_soon_threadsafe,
            "no other async activity goes on meanwhile: make the activity a plain `def`, or await what it waits for",
        )
        if any(definition.is_async for definition in definitions.values()):
            self._thread.start()

    @property
    def running(self) -> int:
        """How many attempts run here."""
        return len(self._attempts)

    def start(self, tasks: Sequence[ActivityTask]) -> None:
        """Run these attempts."""
        of_loop: list[_Attempt] = []
        for task in tasks:
            try:
                attempt = self._attempt(task)
                if attempt.definition.is_async:
                    of_loop.append(attempt)
                else:
                    self._pool.submit(partial(contextvars.Context().run, self._run_sync, attempt))
            except Exception as error:
                self._attempts.pop(task.token, None)
                self._outlet.completed(task, ActivityCompletion(token=task.token, failure=to_failure(error)))
        if of_loop:
            self._loop.call_soon_threadsafe(self._begin, of_loop)

    def _attempt(self, task: ActivityTask) -> _Attempt:
        definition = self._definitions.get(task.activity_type)
        if definition is None:
            known = ", ".join(sorted(self._definitions)) or "none"
            raise UnknownActivityType(f"this worker has no activity {task.activity_type!r}; it has {known}")
        attempt = self._attempts[task.token] = _Attempt(task, definition, self._outlet)
        return attempt

    def cancel(self, token: str) -> None:
        """Tell an attempt to stop; it still completes, in its own way."""
        attempt = self._attempts.get(token)
        if attempt is not None and not attempt.context.cancelled.is_set():
            attempt.context.cancelled.set()
            if attempt.definition.is_async:
                self._loop.call_soon_threadsafe(_cancel, attempt)

    def check(self) -> None:
        """Report it when an activity blocks the others. To be called now and then."""
        if self._thread.ident is not None and not self._stopping:
            self._watch.check()

    def cancel_all(self) -> None:
        """Tell every attempt to stop."""
        for token in list(self._attempts):
            self.cancel(token)

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nothing runs here. From any thread but those of the activities."""
        self._idle = threading.Event()
        return not self._attempts or self._idle.wait(timeout_s)

    def stop(self) -> None:
        """Let the threads end; to be called once. Attempts that still run are left to the end of the process."""
        self._pool.stop()
        self._stopping = True
        if self._thread.ident is None:
            self._loop.close()
        else:
            self._loop.call_soon_threadsafe(self._loop.stop)

    # Async ----------------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        while not self._stopping:
            try:
                self._loop.run_forever()
            except BaseException:  # SystemExit in a task that user code made: not the worker's end
                _log.exception("a task in an activity raised what ends event loops; the worker goes on")
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        if left:
            self._loop.run_until_complete(asyncio.wait(left, timeout=_CLEAN_UP_S))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _begin(self, attempts: list[_Attempt]) -> None:
        for attempt in attempts:
            task = self._loop.create_task(self._run_async(attempt), name=attempt.task.activity_id)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run_async(self, attempt: _Attempt) -> None:
        definition, context = attempt.definition, attempt.context
        attempt.asyncio_task = asyncio.current_task()
        current_activity.set(context)
        try:
            if context.cancelled.is_set():
                raise asyncio.CancelledError
            args, kwargs = definition.decode_arguments(attempt.task.arguments)
            attempt.begun = True
            result = definition.encode_result(await definition.fn(*args, **kwargs))
            completion = ActivityCompletion(token=attempt.task.token, result=result, events=context.sent)
        except BaseException as error:
            completion = attempt.failed(error)
        self._completed(attempt, completion)

    # Sync -----------------------------------------------------------------------------------------------------------

    def _run_sync(self, attempt: _Attempt) -> None:
        definition, context = attempt.definition, attempt.context
        current_activity.set(context)
        try:
            if context.cancelled.is_set():
                raise asyncio.CancelledError
            args, kwargs = definition.decode_arguments(attempt.task.arguments)
            attempt.begun = True
            result = definition.encode_result(definition.fn(*args, **kwargs))
            completion = ActivityCompletion(token=attempt.task.token, result=result, events=context.sent)
        except BaseException as error:
            completion = attempt.failed(error)
        self._completed(attempt, completion)

    def _completed(self, attempt: _Attempt, completion: ActivityCompletion) -> None:
        del self._attempts[attempt.task.token]
        if completion.HasField("failure") or completion.HasField("elsewhere"):
            attempt.heartbeats.flush()  # whoever goes on wants to know how far this one got
        self._outlet.completed(attempt.task, completion)
        if self._idle is not None and not self._attempts:
            self._idle.set()


def _cancel(attempt: _Attempt) -> None:
    # Before the function runs there is no task to cancel: it sees the flag first.
    if attempt.asyncio_task is not None:
        attempt.asyncio_task.cancel()


def _info(task: ActivityTask) -> ActivityInfo:
    return ActivityInfo(
        workflow_id=task.workflow_id,
        run_id=task.run_id,
        workflow_type=task.workflow_type,
        activity_id=task.activity_id,
        activity_type=task.activity_type,
        task_queue=task.task_queue,
        attempt=task.attempt,
        token=task.token,
        idempotency_key=task.idempotency_key,
        scheduled_time=task.scheduled_time.ToDatetime(UTC),
        start_to_close_timeout=(
            task.start_to_close_timeout.ToTimedelta() if task.HasField("start_to_close_timeout") else None
        ),
        heartbeat_timeout=task.heartbeat_timeout.ToTimedelta() if task.HasField("heartbeat_timeout") else None,
        headers=task.headers,
        is_compensation=task.compensation,
        last_heartbeat=task.heartbeat_details if task.HasField("heartbeat_details") else None,
    )
