"""Notices that user code blocks a thread which others share, and says where."""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final

_log = logging.getLogger("romancy.worker")

BLOCKED_S: Final = 2.0
"""A thread that did not get round for so long is reported, once for each time."""


class Watch:
    """Asks a thread, again and again, whether it gets round. `check` belongs to another thread."""

    def __init__(self, thread: threading.Thread, ask: Callable[[Callable[[], None]], object], remedy: str) -> None:
        """`ask` has a function called on the thread as soon as that gets round to it."""
        self._thread = thread
        self._ask = ask
        self._remedy = remedy
        self._asked_at = 0.0
        self._reported = False

    def check(self) -> None:
        """Ask, or see whether the last question was answered."""
        now = time.monotonic()
        if not self._asked_at:
            self._asked_at = now
            self._ask(self._answer)
        elif now - self._asked_at > BLOCKED_S and not self._reported:
            self._reported = True
            frame = sys._current_frames().get(self._thread.ident or 0)
            place = "".join(traceback.format_stack(frame)) if frame is not None else "  (it has ended)\n"
            _log.warning(
                "thread %s has been busy for %.1f s; %s. It is here:\n%s",
                *(self._thread.name, now - self._asked_at, self._remedy, place.rstrip()),
            )

    def _answer(self) -> None:
        self._asked_at = 0.0
        self._reported = False
