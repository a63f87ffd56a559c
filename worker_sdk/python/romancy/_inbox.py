"""Inbox: the events that came to a run, and the parts of its code that wait for them.

An event goes to the subscriptions that it came for. One that came for the run itself goes to the first that waits for
such an event, and is kept if none does; so is one whose subscription was given up while it was on its way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from romancy.v1.command_pb2 import Subscribe
from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.history_pb2 import EventReceived

from romancy.errors import EventTimeout
from romancy.events import fits
from romancy.options import Seconds, to_duration

if TYPE_CHECKING:
    from romancy._loop import WorkflowLoop


class Listener:
    """One place in the code that wants events."""

    def __init__(self, inbox: Inbox, command: Subscribe) -> None:
        self._inbox = inbox
        self.command = command
        self.came: deque[tuple[int, CloudEvent]] = deque()
        """By the number of the input that brought them."""
        self._waiter: asyncio.Future[None] | None = None

    def fits(self, event: CloudEvent) -> bool:
        """Whether it wants the event."""
        return fits(event, self.command.event_type, self.command.where)

    @property
    def is_full(self) -> bool:
        """It wants one event, and has it."""
        return self.command.once and bool(self.came)

    def take(self, number: int, event: CloudEvent) -> None:
        """An event came for it."""
        self.came.append((number, event))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self, timeout: Seconds | None) -> CloudEvent:
        """The next event. Raises EventTimeout."""
        try:
            async with asyncio.timeout(None if timeout is None else to_duration(timeout).ToMilliseconds() / 1000):
                while not self.came:
                    self._waiter = self._inbox.create_future()
                    await self._waiter
        except TimeoutError:
            raise EventTimeout(f"no event {self.command.event_type!r} came within {timeout}") from None
        return self.came.popleft()[1]

    def close(self) -> None:
        """It wants no more."""
        self._inbox.leave(self)


class Inbox:
    """The events of one run. Its methods are called inside of the run's loop."""

    def __init__(self, loop: WorkflowLoop) -> None:
        self._loop = loop
        self._listeners: dict[str, Listener] = {}
        """Those that are subscribed, by subscription id."""
        self._unread: list[tuple[int, CloudEvent]] = []
        self._carried: list[Subscribe] = []

    def begin(self, carried: Sequence[Subscribe]) -> None:
        """The run goes on with these subscriptions of the run before."""
        self._carried = list(carried)

    def create_future(self) -> asyncio.Future[None]:
        """One of the run's."""
        return self._loop.create_future()

    def received(self, received: EventReceived) -> None:
        """An event came."""
        number, event = self._loop.last_event_id, received.event
        found = [self._listeners[each] for each in received.subscription_ids if each in self._listeners]
        if not received.subscription_ids:
            fitting = (each for each in self._listeners.values() if each.fits(event) and not each.is_full)
            found = list(fitting)[:1]
        for listener in found:
            listener.take(number, event)
        if not found:
            self._unread.append((number, event))
        for subscription_id in received.subscription_ids:
            listener_of_it = self._listeners.get(subscription_id)
            if listener_of_it is not None and listener_of_it.command.once:
                del self._listeners[subscription_id]
                self._loop.machine.end_subscription(subscription_id)

    def listen(self, event_type: str, where: Mapping[str, str], *, once: bool) -> Listener:
        """Want events from now on, and those that are kept."""
        listener = Listener(self, Subscribe(event_type=event_type, where=where, once=once))
        for kept in [kept for kept in self._unread if listener.fits(kept[1])][: 1 if once else None]:
            self._unread.remove(kept)
            listener.take(*kept)
        if listener.is_full:
            return listener
        carried = next((c for c in self._carried if (c.event_type, c.where) == (event_type, where)), None)
        if carried is None or once:
            self._loop.machine.subscribe(listener.command)
        else:
            self._carried.remove(carried)
            listener.command.subscription_id = carried.subscription_id
            self._loop.machine.adopt_subscription(listener.command)
        self._listeners[listener.command.subscription_id] = listener
        return listener

    def leave(self, listener: Listener) -> None:
        """It wants no more; what it has and did not give out is kept if it waited for one event."""
        subscription_id = listener.command.subscription_id
        if self._listeners.get(subscription_id) is listener:
            del self._listeners[subscription_id]
            self._loop.machine.unsubscribe(subscription_id)
        if listener.command.once:
            self._unread = sorted([*self._unread, *listener.came], key=lambda kept: kept[0])
            listener.came.clear()

    @property
    def unread(self) -> list[CloudEvent]:
        """What came and was not given out, in its order."""
        kept = [*self._unread, *(each for listener in self._listeners.values() for each in listener.came)]
        events: dict[int, CloudEvent] = dict(sorted(kept, key=lambda each: each[0]))
        return list(events.values())
