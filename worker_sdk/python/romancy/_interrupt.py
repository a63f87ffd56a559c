"""Interrupts workflow code that does not come to an end by itself: it would hold up all other runs of its worker."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from romancy._machine import Machine
from romancy.errors import WorkflowTaskError

LONGEST_S: Final = 8.0
"""Shorter than the 10 s after which the service gives the task to another worker, so that it is told why."""
_AGAIN_S: Final = 1.0
"""Code that catches an interruption gets the next one so much later."""


class _Interrupted(BaseException):
    """Raised in the middle of code that ran for too long. Its task has failed by then, whoever catches it."""


class Interrupt:
    """Watches over the code of one thread. `check` belongs to another one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._machine: Machine | None = None
        self._since = 0.0
        self._thread_id = 0

    @contextmanager
    def watching(self, machine: Machine) -> Iterator[None]:
        """Run the code of a machine's run inside of this. Raises WorkflowTaskError when it was interrupted."""
        with self._lock:
            self._machine, self._since, self._thread_id = machine, time.monotonic(), threading.get_ident()
        try:
            try:
                yield
            finally:
                # Whoever interrupts holds the lock: after this nothing is interrupted any more.
                with self._lock:
                    self._machine = None
        except _Interrupted:
            self._machine = None
            assert machine.failure is not None
            raise machine.failure from None

    def check(self) -> None:
        """Interrupt the code if it has run for too long; again and again, should it catch that."""
        with self._lock:
            ran_s = time.monotonic() - self._since
            if self._machine is None or ran_s < LONGEST_S:
                return
            self._machine.fail(
                WorkflowTaskError(
                    f"the workflow's code ran for {ran_s:.0f} s without waiting for anything, and was interrupted: "
                    "long computations belong into an activity"
                )
            )
            self._since += _AGAIN_S
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread_id), ctypes.py_object(_Interrupted))
