"""Replay order: how a history is handed to workflow code, so that replay and life are the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from romancy.v1.history_pb2 import HistoryEvent

INPUTS: Final = frozenset(
    {
        "workflow_started",
        "workflow_cancel_requested",
        "activity_completed",
        "activity_failed",
        "activity_cancelled",
        "timer_fired",
        "compensate_finished",
        "signal_received",
        "update_received",
        "child_started",
        "child_start_failed",
        "child_closed",
        "send_finished",
        "event_received",
        "subscription_answered",
    }
)
"""The events that workflow code gets to see, as history.proto marks them."""


def is_input(event: HistoryEvent) -> bool:
    """Whether workflow code gets to see the event."""
    return event.WhichOneof("attributes") in INPUTS


class ReplayOrder:
    """Puts a task's commands directly after the last input that the code had seen when it issued them.

    Inputs that arrived while the task was out have smaller numbers than its commands, but the code saw them later.
    Notes are left out: nobody who replays reads them.
    """

    def __init__(self) -> None:
        self._arrived: deque[HistoryEvent] = deque()
        """Inputs whose place is not known yet."""

    def take(self, events: Iterable[HistoryEvent]) -> list[HistoryEvent]:
        """The next events of the history: those whose place is known by now, in their order."""
        ordered: list[HistoryEvent] = []
        for event in events:
            if is_input(event):
                self._arrived.append(event)
            elif event.seen_event_id:
                while self._arrived and self._arrived[0].event_id <= event.seen_event_id:
                    ordered.append(self._arrived.popleft())
                ordered.append(event)
        return ordered

    def rest(self) -> list[HistoryEvent]:
        """The history is over: what is left comes last."""
        left = list(self._arrived)
        self._arrived.clear()
        return left
