"""Channels: what each is taken for, and how many use it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import BigInteger, Integer, Text, TextClause, bindparam, select, text, update
from sqlalchemy.dialects.postgresql import insert

from romancy.v1.channel_pb2 import CHANNEL_MODE_UNSPECIFIED, ChannelMode

from romancy_service.core.channel import MODE_KEYS, RECEIVER, topic_of_channel
from romancy_service.core.limits import COUNTED
from romancy_service.core.task import NEVER_MS
from romancy_service.store.rows import Row
from romancy_service.store.sql import Statements
from romancy_service.store.tables import SUBSCRIBED, TEXT, UNDELIVERED, channels, tasks

SHOWN_TOGETHER: Final = 100
"""So many channels are counted by one statement, which takes at most a second."""


@dataclass(frozen=True, slots=True)
class ChannelInfo:
    """A channel, and how many use it; of each at most `COUNTED` are counted."""

    name: str
    mode: ChannelMode.ValueType
    subscribers: int
    receivers: int
    unread: int


_ADD: Final = (
    insert(channels)
    .values(
        namespace=bindparam("of_namespace", type_=TEXT),
        channel=bindparam("name", type_=TEXT),
        mode=int(CHANNEL_MODE_UNSPECIFIED),
        version=1,
        changed_ms=bindparam("now_ms", type_=BigInteger),
    )
    .on_conflict_do_update(
        index_elements=[channels.c.namespace, channels.c.channel],
        set_={"changed_ms": bindparam("now_ms", type_=BigInteger)},
    )
)
_OF_NAME: Final = (
    channels.c.namespace == bindparam("of_namespace", type_=TEXT),
    channels.c.channel == bindparam("name", type_=TEXT),
)
_GET: Final = select(channels.c.mode, channels.c.version).where(*_OF_NAME)
_TAKE: Final = (
    update(channels)
    .where(*_OF_NAME, channels.c.version == bindparam("seen", type_=BigInteger))
    .values(
        mode=bindparam("new_mode", type_=Integer),
        version=channels.c.version + 1,
        changed_ms=bindparam("now_ms", type_=BigInteger),
    )
    .returning(channels.c.version)
)
_USERS: Final = (
    text(SUBSCRIBED),
    tasks.c.namespace == bindparam("of_namespace", type_=TEXT),
    tasks.c.type == bindparam("topic", type_=TEXT),
    tasks.c.queue == bindparam("key", type_=TEXT),
)
_USED: Final = select(tasks.c.run_id).where(*_USERS).limit(1)

_TOPIC: Final = ":before || channels.channel"
_SUBSCRIBED: Final = f"from tasks where {SUBSCRIBED} and namespace = channels.namespace and type = {_TOPIC}"
_ANSWERED: Final = f"{_SUBSCRIBED} and due_ms = {NEVER_MS}"
"""Those that get messages. Others have asked, and are not in yet."""
_UNREAD: Final = f"from events where {UNDELIVERED} and namespace = channels.namespace and type = {_TOPIC}"
_KEY: Final = " ".join(f"when {int(mode)} then '{key}'" for mode, key in MODE_KEYS.items())


def _count(found: str) -> str:
    return f"(select count(*) from (select 1 {found} limit {COUNTED}) as found)"


_INFO: Final = f"""
select channel, mode,
    {_count(f"{_ANSWERED} and queue = case channels.mode {_KEY} else '' end")} as subscribers,
    {_count(f"{_ANSWERED} and queue = '{RECEIVER}'")} as receivers,
    {_count(_UNREAD)} as unread
from channels where namespace = :of_namespace
"""


def _of_channels(sql: str) -> TextClause:
    texts, numbers = ("of_namespace", "before", "name", "after"), ("now_ms", "before_ms", "limit")
    named = {name: Text() for name in texts} | {name: BigInteger() for name in numbers}
    return text(sql).bindparams(*(bindparam(name, type_=of) for name, of in named.items() if f":{name}" in sql))


_SHOW: Final = _of_channels(f"{_INFO} and channel = :name")
PAGE: Final = _of_channels(f"{_INFO} and channel > :after order by channel limit :limit")
_OLD: Final = """changed_ms < :before_ms and (namespace, channel) in (
    select namespace, channel from channels where changed_ms < :before_ms order by changed_ms limit :limit)"""
_IN_USE: Final = (
    f"((select run_id {_SUBSCRIBED} limit 1) is not null or (select position {_UNREAD} limit 1) is not null)"
)
FORGET: Final = _of_channels(f"delete from channels where {_OLD} and not {_IN_USE} returning channel")
KEEP: Final = _of_channels(f"update channels set changed_ms = :now_ms where {_OLD} and {_IN_USE} returning channel")


class Channels(Statements):
    """Keeps what channels are taken for."""

    async def add_channel(self, namespace: str, channel: str, now_ms: int) -> None:
        """Somebody uses it."""
        await self._write(_ADD, of_namespace=namespace, name=channel, now_ms=now_ms)

    async def channel_mode(self, namespace: str, channel: str) -> ChannelMode.ValueType:
        """What the channel is taken for: what its last subscriber took it for."""
        rows = await self._read(_GET, of_namespace=namespace, name=channel)
        return ChannelMode.ValueType(rows[0]["mode"]) if rows else CHANNEL_MODE_UNSPECIFIED

    async def join_channel(
        self, namespace: str, channel: str, mode: ChannelMode.ValueType, now_ms: int
    ) -> ChannelMode.ValueType | None:
        """Whether somebody whose subscription is stored may take the channel for `mode`: None, or what others take it
        for.

        Who joins raises the channel's version, and who changes its mode does so only at the version at which it found
        nobody. So of two that want different modes at the same time, the later one sees the row of the other.
        """
        while True:
            rows = await self._read(_GET, of_namespace=namespace, name=channel)
            if not rows:
                await self.add_channel(namespace, channel, now_ms)
                continue
            taken, version = ChannelMode.ValueType(rows[0]["mode"]), rows[0]["version"]
            if taken not in (mode, CHANNEL_MODE_UNSPECIFIED) and await self._is_used(namespace, channel, taken):
                return taken
            took = await self._write(
                _TAKE, of_namespace=namespace, name=channel, seen=version, new_mode=int(mode), now_ms=now_ms
            )
            if took:
                return None

    async def _is_used(self, namespace: str, channel: str, mode: ChannelMode.ValueType) -> bool:
        topic = topic_of_channel(channel)
        return bool(await self._read(_USED, of_namespace=namespace, topic=topic, key=MODE_KEYS[mode]))

    async def show_channel(self, namespace: str, channel: str) -> ChannelInfo | None:
        """For a client."""
        rows = await self._search(_SHOW, of_namespace=namespace, name=channel, before=topic_of_channel(""))
        return _info(rows[0]) if rows else None

    async def list_channels(self, namespace: str, after: str, limit: int) -> list[ChannelInfo]:
        """For a client: by name, after one."""
        found: list[ChannelInfo] = []
        while (piece := min(limit - len(found), SHOWN_TOGETHER)) > 0:
            rows = await self._search(
                PAGE, of_namespace=namespace, before=topic_of_channel(""), after=after, limit=piece
            )
            found += [_info(row) for row in rows]
            if len(rows) < piece:
                break
            after = found[-1].name
        return found

    async def forget_channels(self, before_ms: int, now_ms: int, limit: int) -> int:
        """Of those that were used last before `before_ms`, look at the first ones, at most `limit`: delete those that
        nobody uses, and note that the others are used now. Returns how many; 0: there are no more.
        """
        values = {"before_ms": before_ms, "before": topic_of_channel(""), "limit": limit}
        forgotten = await self._sweep(FORGET, **values)
        kept = await self._sweep(KEEP, **values, now_ms=now_ms)
        return len(forgotten) + len(kept)


def _info(row: Row) -> ChannelInfo:
    mode = ChannelMode.ValueType(row["mode"])
    return ChannelInfo(row["channel"], mode, row["subscribers"], row["receivers"], row["unread"])
