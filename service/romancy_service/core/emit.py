"""Emitter: numbers new events, stamps them, applies them. The only way in which decisions come about."""

from __future__ import annotations

from typing import Any

from romancy.v1.history_pb2 import Author, HistoryEvent

from romancy_service.core.apply import apply
from romancy_service.core.limits import Limits
from romancy_service.core.replay import is_input
from romancy_service.core.run import Run
from romancy_service.core.times import timestamp


class Emitter:
    """Records events on one run, in one decision."""

    def __init__(self, run: Run, now_ms: int, limits: Limits) -> None:
        self.run = run
        self._limits = limits
        self.now_ms = max(now_ms, run.last_event_ms)
        """The time of the events: event times of a run never go back, whatever the clock does."""
        self.seen_event_id = 0
        """While the commands of a task are recorded: the last event that the code had seen."""
        self.author: Author | None = None
        """Who answered: said by the next event that is recorded."""

    def note(self, **attributes: Any) -> HistoryEvent:
        """Record an input or a note; the keyword is the event's kind, as in HistoryEvent."""
        event = HistoryEvent(event_id=self.run.last_event_id + 1, time=self._time(), **attributes)
        if self.suggests_recurring and is_input(event):
            event.suggests_recurring = True
        return self._record(event)

    def command(self, **attributes: Any) -> HistoryEvent:
        """Record a command of the task whose `seen_event_id` is set."""
        return self._record(
            HistoryEvent(
                event_id=self.run.last_event_id + 1,
                time=self._time(),
                seen_event_id=self.seen_event_id,
                **attributes,
            )
        )

    @property
    def suggests_recurring(self) -> bool:
        """Whether the next input tells the code that the history is long. It is recorded, for replay."""
        run, limits = self.run, self._limits
        if run.counters.told_to_recur:
            return False
        return run.last_event_id >= limits.history_recur_events or run.history_bytes >= limits.history_recur_bytes

    def _time(self) -> Any:
        return timestamp(self.now_ms)

    def _record(self, event: HistoryEvent) -> HistoryEvent:
        if self.author is not None:
            event.author.CopyFrom(self.author)
            self.author = None
        apply(self.run, event)
        self.run.new_events.append(event)
        return event
