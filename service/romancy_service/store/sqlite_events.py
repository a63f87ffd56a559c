"""What keeps events on SQLite. Called within a transaction of its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

from romancy_service.store.events import NewEvent

_ADD: Final = """
insert into events (namespace, source, event_id, type, event, accepted_ms, forget_ms, open, deliveries)
values (?, ?, ?, ?, ?, ?, ?, true, 1)
on conflict (namespace, source, event_id) do nothing
"""


def add_events(
    connection: sqlite3.Connection, namespace: str, new: Sequence[NewEvent], now_ms: int
) -> set[tuple[str, str]]:
    """Keep events in this order. Returns those, by source and id, that were not known before."""
    added = set()
    for each in new:
        row = (namespace, each.source, each.event_id, each.line, each.event, now_ms, each.forget_ms)
        if connection.execute(_ADD, row).rowcount:
            added.add((each.source, each.event_id))
    return added
