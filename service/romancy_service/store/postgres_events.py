"""The statement on Postgres that keeps events."""

from __future__ import annotations

from typing import Final

from romancy_service.store.arrays import Arrays

NEW_EVENTS: Final = Arrays(
    new=(("source", "text"), ("event_id", "text"), ("type", "text"), ("event", "bytea"), ("forget_ms", "bigint"))
)
_NAMESPACE: Final = f"${NEW_EVENTS.next_parameter}::text"
_NOW: Final = f"${NEW_EVENTS.next_parameter + 1}::bigint"

# In one order, so that two batches with the same events do not wait for each other: in that of the sender, which counts
# for events of one type, among those that are not known; a clash is tried again.
ADD_EVENTS: Final = f"""
insert into events (namespace, source, event_id, type, event, accepted_ms, forget_ms, open, deliveries)
select {_NAMESPACE}, new.source, new.event_id, new.type, new.event, {_NOW}, new.forget_ms, true, 1
from (select row_number() over () as number, new.* from {NEW_EVENTS.rows("new")}) as new
order by new.number
on conflict (namespace, source, event_id) do nothing
returning source, event_id
"""
