"""Channels: what each is taken for, and how many use it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import BigInteger, Integer, Select, bindparam, delete, exists, func, literal, select, text, update
from sqlalchemy.dialects.postgresql import insert

from romancy.v1.channel_pb2 import CHANNEL_MODE_UNSPECIFIED, ChannelMode

from romancy_service.core.channel import MODE_KEYS, RECEIVER, topic_of_channel
from romancy_service.core.limits import COUNTED
from romancy_service.store.sql import Statements
from romancy_service.store.tables import SUBSCRIBED, TEXT, UNDELIVERED, channels, events, tasks


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
_PAGE: Final = (
    select(channels.c.channel, channels.c.mode)
    .where(
        channels.c.namespace == bindparam("of_namespace", type_=TEXT),
        channels.c.channel > bindparam("after", type_=TEXT),
    )
    .order_by(channels.c.channel)
    .limit(bindparam("limit", type_=Integer))
)
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


def _counted(found: Select[Any]) -> Select[Any]:
    return select(func.count().label("count")).select_from(found.limit(COUNTED).subquery())


_COUNT_USERS: Final = _counted(select(tasks.c.run_id).where(*_USERS))
_COUNT_UNREAD: Final = _counted(
    select(events.c.position).where(
        text(UNDELIVERED),
        events.c.namespace == bindparam("of_namespace", type_=TEXT),
        events.c.type == bindparam("topic", type_=TEXT),
    )
)
_TOPIC: Final = literal(topic_of_channel(""), TEXT) + channels.c.channel
_FORGET: Final = (
    delete(channels)
    .where(
        channels.c.changed_ms < bindparam("before_ms", type_=BigInteger),
        ~exists(
            select(tasks.c.run_id).where(
                text(SUBSCRIBED), tasks.c.namespace == channels.c.namespace, tasks.c.type == _TOPIC
            )
        ),
        ~exists(
            select(events.c.position).where(
                text(UNDELIVERED), events.c.namespace == channels.c.namespace, events.c.type == _TOPIC
            )
        ),
    )
    .returning(channels.c.channel)
)


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
        rows = await self._show(_GET, of_namespace=namespace, name=channel)
        mode = ChannelMode.ValueType(rows[0]["mode"]) if rows else None
        return None if mode is None else await self._info(namespace, channel, mode)

    async def list_channels(self, namespace: str, after: str, limit: int) -> list[ChannelInfo]:
        """For a client: by name, after one."""
        rows = await self._show(_PAGE, of_namespace=namespace, after=after, limit=limit)
        return [await self._info(namespace, row["channel"], ChannelMode.ValueType(row["mode"])) for row in rows]

    async def _info(self, namespace: str, channel: str, mode: ChannelMode.ValueType) -> ChannelInfo:
        at = {"of_namespace": namespace, "topic": topic_of_channel(channel)}
        users = [
            (await self._search(_COUNT_USERS, **at, key=key))[0]["count"] if key else 0
            for key in (MODE_KEYS.get(mode), RECEIVER)
        ]
        unread = (await self._search(_COUNT_UNREAD, **at))[0]["count"]
        return ChannelInfo(channel, mode, users[0], users[1], unread)

    async def forget_channels(self, before_ms: int) -> int:
        """Delete those that nobody has used since. Returns how many."""
        return len(await self._write_apart(_FORGET, before_ms=before_ms))
