"""The worker's threads: daemons, since a sync function that never returns must not keep the process from ending."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue

from romancy._guard import monotonic

_Job = Callable[[], None]


def new_stream_loop() -> asyncio.AbstractEventLoop:
    """A loop for a thread on which no code of users runs: uvloop's if that is installed, which wakes up for less."""
    try:
        import uvloop
    except ImportError:
        return new_event_loop()
    return uvloop.new_event_loop()


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop for a thread on which no workflow's code runs."""
    loop = asyncio.new_event_loop()
    loop.time = monotonic  # type: ignore[method-assign]
    return loop


class DaemonPool:
    """Runs jobs on up to `most` threads, which are made when no idle one is there. Jobs must not raise."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads = 0

    def submit(self, job: _Job) -> None:
        """Run `job` soon. To be called from one thread only. Raises RuntimeError if not even one thread can be made."""
        if not self._idle.acquire(blocking=False) and self._threads < self._most:
            self._add_thread()
        self._jobs.put(job)

    def _add_thread(self) -> None:
        name = f"{self._name}-{self._threads + 1}"
        try:
            threading.Thread(target=self._work, name=name, daemon=True).start()
            self._threads += 1
        except RuntimeError:  # the process may have no more of them: those that are there must do
            if not self._threads:
                raise

    def stop(self) -> None:
        """Let the threads end when they have nothing more to do."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # or the last job's arguments would live until the next one
            self._idle.release()
