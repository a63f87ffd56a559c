"""Replay order: how a history is handed to workflow code, so that replay and life are the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
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
    }
)
"""The events that workflow code gets to see, as history.proto marks them."""


def is_input(event: HistoryEvent) -> bool:
    """Whether workflow code gets to see the event."""
    return event.WhichOneof("attributes") in INPUTS


def replay_order(events: Sequence[HistoryEvent]) -> list[HistoryEvent]:
    """Put a task's commands directly after the last input that the code had seen when it issued them.

    Inputs that arrived while the task was out have smaller numbers than its commands, but the code saw them later.
    Notes are left out: nobody who replays reads them.
    """
    ordered: list[HistoryEvent] = []
    arrived: deque[HistoryEvent] = deque()
    for event in events:
        if is_input(event):
            arrived.append(event)
        elif event.seen_event_id:
            while arrived and arrived[0].event_id <= event.seen_event_id:
                ordered.append(arrived.popleft())
            ordered.append(event)
    return [*ordered, *arrived]
