"""Left: the statements that find lines in which events were left behind, a page at a time.

Each step of a page is a few looks into indexes, and a page has so many steps and no more: so it costs the same whatever
is stored. Who looks goes on where the page before ended, and begins again after the last line: so none hides another.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Integer, Text, bindparam, text
from sqlalchemy.sql.expression import TextClause

from romancy.v1.channel_pb2 import CHANNEL_MODE_BROADCAST

from romancy_service.core.channel import MODE_KEYS, RECEIVER
from romancy_service.store.tables import SUBSCRIBED, UNDELIVERED

_FIRST: Final = "order by namespace, type, position limit 1"
_OF_CHANNEL: Final = "(line.type >= :channels and line.type < :channels_end)"
_TAKERS: Final = (RECEIVER, MODE_KEYS[CHANNEL_MODE_BROADCAST])
"""The keys of whom a message reaches at once. Messages that nobody is there for are no work."""
_TAKEN: Final = f"""(select run_id from tasks where {SUBSCRIBED} and namespace = line.namespace and type = line.type
    and queue in {_TAKERS} limit 1) is not null"""


def _next(namespace: str, within: str) -> str:
    """The first open event of a namespace within a range of lines; or of the next namespace, whatever it is."""
    return f"""coalesce(
        (select position from events where {UNDELIVERED} and namespace = {namespace} and {within} {_FIRST}),
        (select position from events where {UNDELIVERED} and namespace > {namespace} {_FIRST}))"""


def _next_used(namespace: str, line: str) -> str:
    """The same for the next channel that somebody uses: the others are passed over, however many they are."""
    used = f"""(select type from tasks where {SUBSCRIBED} and namespace = {namespace} and type > {line}
        and type < :channels_end order by type limit 1)"""
    return _next(namespace, f"type >= {used} and type < :channels_end")


def _page(first: str, following: str, is_work: str) -> TextClause:
    """From one line to the next: the lines with work, and where it stopped if there may be more."""
    sql = f"""
with recursive line(step, namespace, type, accepted_ms) as (
    select 1, namespace, type, accepted_ms from events where position = {first}
    union all
    select line.step + 1, next.namespace, next.type, next.accepted_ms
    from line join events as next on next.position = {following} where line.step < :limit
)
select * from (
    select namespace, type, accepted_ms as oldest_ms, {is_work} as is_work, step = :limit as is_last from line
) as page where is_work or is_last
"""
    texts = ("after_namespace", "after_line", "channels", "channels_end")
    return text(sql).bindparams(*(bindparam(name, type_=Text) for name in texts), bindparam("limit", type_=Integer))


LEFT_EVENTS: Final = _page(
    _next(":after_namespace", "type > :after_line"),
    _next("line.namespace", f"type > case when {_OF_CHANNEL} then :channels_end else line.type end"),
    f"not {_OF_CHANNEL}",
)
"""Lines of events, whose number is that of types. Those of channels are passed over all at once."""
LEFT_MESSAGES: Final = _page(
    _next_used(":after_namespace", ":after_line"),
    _next_used("line.namespace", "line.type"),
    f"{_OF_CHANNEL} and {_TAKEN}",
)
"""Channels in which a message waits, and somebody whom it reaches."""
