"""Inbox: the events and messages that came to a run, and the parts of its code that wait for them.

An event goes to the subscriptions that it came for. One that came for the run itself goes to the first that waits for
such an event, and is kept if none does; so is one whose subscription was given up while it was on its way. But what
only this run was given goes back when its code does not take it: somebody else is to have it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from romancy.v1.channel_pb2 import Delivery
from romancy.v1.command_pb2 import Send, Subscribe
from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.history_pb2 import EventReceived

from romancy._time_limit import time_limit
from romancy.channels import MODE_NUMBERS, ChannelMode, channel_of
from romancy.events import fits
from romancy.options import Seconds

if TYPE_CHECKING:
    from romancy._loop import WorkflowLoop


@dataclass(frozen=True, slots=True)
class Arrival:
    """An event that came."""

    number: int
    """Of the input that brought it."""
    event: CloudEvent
    delivery: Delivery | None
    """Set where nobody else gets it."""


class Listener:
    """One place in the code that wants events."""

    def __init__(self, inbox: Inbox, command: Subscribe) -> None:
        self._inbox = inbox
        self.command = command
        self.came: deque[Arrival] = deque()
        """What was not given out yet. The first of it is for who waits longest, the next for the next, and so on."""
        self._waiters: deque[asyncio.Future[None]] = deque()

    def fits(self, event: CloudEvent) -> bool:
        """Whether it wants the event."""
        if self.command.channel:
            return channel_of(event) == self.command.channel
        return fits(event, self.command.event_type, self.command.where)

    @property
    def is_full(self) -> bool:
        """It wants one event, and has it."""
        return self.command.once and bool(self.came)

    def take(self, arrival: Arrival) -> None:
        """An event came for it."""
        self.came.append(arrival)
        self._wake()

    def _wake(self) -> None:
        """Wake those that have something for them now."""
        for waiter in islice(self._waiters, len(self.came)):
            if not waiter.done():
                waiter.set_result(None)

    async def next(self, timeout: Seconds | None) -> Arrival:
        """The next event that nobody who came before waits for. Raises TimeoutError."""
        async with time_limit(self._name(), timeout):
            # An event stays here until its waiter runs: one whose waiter gives up is for the next, and none is lost.
            if len(self.came) > len(self._waiters):
                return self._give_out(len(self._waiters))
            waiter = self._inbox.create_future()
            self._waiters.append(waiter)
            try:
                await waiter
                return self._give_out(self._waiters.index(waiter))
            finally:
                self._waiters.remove(waiter)
                self._wake()

    def _give_out(self, place: int) -> Arrival:
        arrival = self.came[place]
        del self.came[place]
        return arrival

    @property
    def lasts(self) -> bool:
        """The code has left for the next run, which is to have what this one subscribed to."""
        return self._inbox.recurs

    def _name(self) -> str:
        """As the code says it."""
        if self.command.channel:
            return f"receive from channel {self.command.channel}"
        return f"{'wait_event' if self.command.once else 'receive of event'} {self.command.event_type}"

    def close(self) -> None:
        """It wants no more."""
        self._inbox.leave(self)


class Inbox:
    """The events of one run. Its methods are called inside of the run's loop."""

    def __init__(self, loop: WorkflowLoop) -> None:
        self._loop = loop
        self._listeners: dict[str, Listener] = {}
        """Those that are subscribed, by subscription id."""
        self._open: list[Listener] = []
        """Those that are not closed, full ones too."""
        self._joining = asyncio.Lock()
        self._unread: list[Arrival] = []
        self._carried: list[Subscribe] = []
        self._channels: dict[str, Listener] = {}
        """Those that the run is subscribed to, by name."""
        self.recurs = False
        """The code has asked to go on in its next run."""

    def begin(self, carried: Sequence[Subscribe]) -> None:
        """The run goes on with these subscriptions of the run before."""
        self._carried = list(carried)

    def create_future(self) -> asyncio.Future[None]:
        """One of the run's."""
        return self._loop.create_future()

    def received(self, received: EventReceived) -> None:
        """An event came."""
        delivery = received.delivery if received.HasField("delivery") else None
        arrival = Arrival(self._loop.last_event_id, received.event, delivery)
        found = [self._listeners[each] for each in received.subscription_ids if each in self._listeners]
        if not received.subscription_ids:
            fitting = (each for each in self._listeners.values() if each.fits(arrival.event) and not each.is_full)
            found = list(fitting)[:1]
        for listener in found:
            listener.take(arrival)
        if not found:
            self._keep([arrival])
        for subscription_id in received.subscription_ids:
            listener_of_it = self._listeners.get(subscription_id)
            if listener_of_it is not None and listener_of_it.command.once:
                del self._listeners[subscription_id]
                self._loop.machine.end_subscription(subscription_id)

    def _keep(self, arrivals: Iterable[Arrival]) -> None:
        """Nobody took these: they stay for whoever wants them next, in this run or in another one."""
        for arrival in arrivals:
            if arrival.delivery is None:
                self._unread.append(arrival)
            else:
                self._loop.machine.send(Send(returned=arrival.delivery), lambda event: None)
        self._unread.sort(key=lambda kept: kept.number)

    def listen(self, event_type: str, where: Mapping[str, str], *, once: bool) -> Listener:
        """Want events from now on, and those that are kept."""
        return self._listen(Subscribe(event_type=event_type, where=where, once=once))

    def _listen(self, command: Subscribe) -> Listener:
        listener = Listener(self, command)
        self._open.append(listener)
        for kept in [kept for kept in self._unread if listener.fits(kept.event)][: 1 if command.once else None]:
            self._unread.remove(kept)
            listener.take(kept)
        if not listener.is_full:
            self._subscribe(listener)
        return listener

    def _subscribe(self, listener: Listener) -> None:
        """Ask the service, unless the run has the subscription from the run before."""
        wanted = listener.command
        carried = None if wanted.once else next((each for each in self._carried if _is_same(each, wanted)), None)
        if carried is None:
            self._loop.machine.subscribe(wanted)
        else:
            self._carried.remove(carried)
            wanted.subscription_id = carried.subscription_id
            self._loop.machine.adopt_subscription(wanted)
        self._listeners[wanted.subscription_id] = listener

    async def join(self, channel: str, mode: ChannelMode) -> None:
        """Subscribe to a channel. Raises ChannelModeConflict, and ValueError if the run has it in another mode."""
        async with self._joining:
            joined = self._channels.get(channel)
            if joined is None:
                await self._join(Subscribe(channel=channel, channel_mode=MODE_NUMBERS[mode]))
            elif joined.command.channel_mode != MODE_NUMBERS[mode]:
                problem = f"this workflow is subscribed to channel {channel!r} in another mode"
                raise ValueError(f"{problem}: ctx.unsubscribe({channel!r}) first")

    async def _join(self, command: Subscribe) -> None:
        channel = command.channel
        for stale in [each for each in self._carried if each.channel == channel and not _is_same(each, command)]:
            self._carried.remove(stale)
            self._loop.machine.adopt_subscription(stale)
            self._loop.machine.unsubscribe(stale.subscription_id)
        listener = self._listen(command)
        try:
            if not _is_carried(command):
                await self._loop.run_subscription(command.subscription_id)
        except BaseException:
            listener.close()
            raise
        self._channels[channel] = listener

    def channel(self, name: str) -> Listener:
        """The run's subscription to a channel. Raises ValueError."""
        if name not in self._channels:
            raise ValueError(
                f"this workflow is not subscribed to channel {name!r}: await ctx.subscribe({name!r}, mode)"
            )
        return self._channels[name]

    def compete(self, channel: str) -> Listener:
        """Want one message of those for which all compete."""
        return self._listen(Subscribe(channel=channel, once=True))

    def part(self, channel: str) -> None:
        """Unsubscribe from a channel. What came and was not received is dropped."""
        self.channel(channel).close()
        del self._channels[channel]

    def leave(self, listener: Listener) -> None:
        """It wants no more; what it has and did not give out is kept if it waited for one event."""
        if listener in self._open:
            self._open.remove(listener)
        subscription_id = listener.command.subscription_id
        if self._listeners.get(subscription_id) is listener:
            del self._listeners[subscription_id]
            self._loop.machine.unsubscribe(subscription_id)
        if listener.command.once:
            self._keep(listener.came)
            listener.came.clear()

    def give_back(self) -> None:
        """The code ended: what only this run was given, and it did not take, goes back."""
        came = [arrival for listener in self._open for arrival in listener.came]
        self._keep(sorted((each for each in came if each.delivery is not None), key=lambda each: each.number))

    @property
    def unread(self) -> list[CloudEvent]:
        """What came and was not given out, in its order."""
        kept = [*self._unread, *(each for listener in self._open for each in listener.came)]
        events = {each.number: each.event for each in sorted(kept, key=lambda each: each.number) if not each.delivery}
        return list(events.values())


def _is_carried(subscription: Subscribe) -> bool:
    """Whether a run before this one asked for it."""
    return "/" in subscription.subscription_id


def _is_same(one: Subscribe, other: Subscribe) -> bool:
    """Whether they ask for the same."""
    return (one.event_type, one.where, one.channel, one.channel_mode) == (
        other.event_type, other.where, other.channel, other.channel_mode,
    )  # fmt: skip
