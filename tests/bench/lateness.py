"""Lateness: how late timers fired, as the histories have it."""

from __future__ import annotations

from romancy_service.core.times import timestamp_ms
from romancy_service.store.rows import events_of
from tests.bench.seed import execute


async def lateness_ms(url: str, workflow_type: str) -> list[float]:
    """How long after its time each timer of such runs was recorded as fired, in order; less than 0: too early."""
    parts = await execute(
        url,
        "select run_id, events from history where run_id in"
        f" (select run_id from runs where workflow_type = '{workflow_type}') order by run_id, last_event_id",
    )
    due_ms: dict[str, int] = {}
    late_ms = []
    for run_id, events in parts:
        for event in events_of(events):
            if event.HasField("timer_started"):
                due_ms[run_id] = timestamp_ms(event.timer_started.fire_time)
            elif event.HasField("timer_fired"):
                late_ms.append(float(timestamp_ms(event.time) - due_ms[run_id]))
    return sorted(late_ms)
