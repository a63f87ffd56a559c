"""Publisher: keeps events and messages that come, and has each line of them delivered.

An event is kept first, and answered; then it is brought to the runs that want it, and is closed. Where somebody dies
does not matter: what is open is delivered again, by whichever replica, and is taken once. Events of one type are
delivered in their order, those of other types beside them; with several replicas each delivers its share of the types,
and those of others when they are late.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from zlib import crc32

import structlog

from romancy.v1.event_pb2 import CloudEvent

from romancy_service import faults
from romancy_service.clock import Clock
from romancy_service.core.channel import RECEIVER, address_of, aside_of, channel_of, line_before_aside, line_of
from romancy_service.core.cloud_event import check_cloud_event
from romancy_service.core.limits import Limits
from romancy_service.core.own import check_source
from romancy_service.core.run import Run
from romancy_service.core.task import TaskKind
from romancy_service.errors import (
    RomancyError,
    StoreUnavailable,
    WorkflowClosed,
    WorkflowNotFound,
)
from romancy_service.event_rules import EventRules
from romancy_service.postman import Brought, Postman
from romancy_service.store.event_rules import Outcome
from romancy_service.store.events import FIRST_LINE, NewEvent, OpenEvent
from romancy_service.store.store import Store

_log = structlog.get_logger("romancy.publisher")

LANES: Final = 64
"""So many types are delivered at a time."""
LEFT: Final = 1_000
"""So many lines are looked at each time for events that were left behind; the next time those after them."""
EVENTS: Final = 64
"""So many events of a type are looked up together."""
_LATE_MS: Final = 1_000
"""After so long events of another replica's types are anybody's: that replica may be gone."""
_CHANNELS: Final = 10_000
"""So many channels are remembered as stored."""

_Line = tuple[str, str]
"""Namespace and line: a type of events, or a channel."""


class Publisher:
    """Takes events in, and delivers them."""

    def __init__(self, store: Store, clock: Clock, postman: Postman, rules: EventRules, limits: Limits) -> None:
        self._store = store
        self._clock = clock
        self._postman = postman
        self._rules = rules
        self._limits = limits
        self.part, self.parts = 0, 1
        """Which share of the types this replica delivers, of how many."""
        self._waiting: dict[_Line, None] = {}
        self._awaited: dict[_Line, None] = {}
        """Where runs that were written here wait."""
        self._channels: dict[tuple[str, str], int] = {}
        """Channels that are known to be stored, by namespace and name, and until when."""
        self._resting: dict[_Line, int] = {}
        """Lines of what runs failed to take, and until when they are left alone."""
        self._lanes: set[_Line] = set()
        self._wake = asyncio.Event()
        self._look_wanted = asyncio.Event()

    # In -----------------------------------------------------------------------------------------------------------

    async def publish(self, namespace: str, events: Sequence[CloudEvent], field: str = "events[{}]") -> list[bool]:
        """Keep these events from outside, as `keep` does, unless they say that the service made them."""
        for number, event in enumerate(events):
            check_source(f"{field.format(number)}.source", event.source)
        return await self.keep(namespace, events, field)

    async def keep(self, namespace: str, events: Sequence[CloudEvent], field: str) -> list[bool]:
        """Keep these events, all or none. Returns for each whether it was known before.

        Raises InvalidField, naming the event by `field`, WorkflowNotFound, WorkflowClosed and StoreUnavailable.
        """
        for number, event in enumerate(events):
            check_cloud_event(field.format(number), event, self._limits)
        await self._check_addressees(namespace, events)
        now_ms = self._clock.now_ms()
        new = [self._new(event, now_ms) for event in events]
        for channel in sorted({channel for each in new if (channel := channel_of(each.line)) is not None}):
            await self._see_to_channel(namespace, channel, now_ms)
        added = await self._store.add_events(namespace, new, now_ms)
        faults.point("publish.stored")
        await self.tell(sorted({(namespace, each.line) for each in new}))
        duplicates = []
        for event in events:
            key = (event.source, event.id)
            duplicates.append(key not in added)
            added.discard(key)
        return duplicates

    async def _see_to_channel(self, namespace: str, channel: str, now_ms: int) -> None:
        """Say now and then that it is used."""
        if self._channels.get((namespace, channel), 0) < now_ms:
            await self._store.add_channel(namespace, channel, now_ms)
            if len(self._channels) >= _CHANNELS:
                self._channels.clear()
            self._channels[namespace, channel] = now_ms + self._limits.event_window_ms // 4

    def _new(self, event: CloudEvent, now_ms: int) -> NewEvent:
        line = line_of(event)
        kept_ms = self._limits.event_window_ms if channel_of(line) is None else self._limits.message_retention_ms
        return NewEvent(event.source, event.id, line, event.SerializeToString(), now_ms + kept_ms)

    async def _check_addressees(self, namespace: str, events: Sequence[CloudEvent]) -> None:
        """An event for a workflow that is not there would be kept for nobody. One that is known may have ended it."""
        named = [(event, address) for event in events if (address := address_of(event)) is not None]
        if not named:
            return
        known = await self._store.known_events(namespace, [(event.source, event.id) for event, _ in named])
        wanted = list({address: None for event, address in named if (event.source, event.id) not in known})
        there = await self._postman.addressees(namespace, wanted)
        for address in wanted:
            if address not in there:
                found = (await self._store.find_runs([(namespace, *address)]))[0]
                if found is None:
                    raise WorkflowNotFound(address[1] or address[0])
                raise WorkflowClosed(address[0], found)

    async def tell(self, lines: Sequence[_Line]) -> None:
        """Something came in these lines, or somebody waits there: whoever delivers them is to know."""
        others = self._keep_ours(lines)
        if others:
            # It may be lost, or too long: then these events count as late, and are found. They are stored already.
            try:
                await self._store.notify(json.dumps({"published": others}))
            except StoreUnavailable as error:
                _log.warning("database unavailable", error=str(error))

    def told(self, payload: str) -> None:
        """Another replica says so."""
        self._keep_ours([(namespace, name) for namespace, name in json.loads(payload).get("published", ())])

    def look_now(self) -> None:
        """There are open events: some may have been left behind."""
        self._look_wanted.set()

    def observe(self, run: Run) -> None:
        """A run was written here: it may wait for a message that is there already."""
        for task_id in run.touched:
            task = run.tasks.get(task_id)
            if task is not None and task.kind is TaskKind.SUBSCRIPTION and task.queue == RECEIVER:
                self._awaited[run.namespace, task.type] = None
                self._wake.set()

    def _keep_ours(self, lines: Iterable[_Line]) -> list[_Line]:
        """Deliver those that are ours; the others."""
        others = []
        for line in lines:
            if self._is_ours(line):
                self._waiting[line] = None
                self._wake.set()
            else:
                others.append(line)
        return others

    def _is_ours(self, line: _Line) -> bool:
        return crc32("\n".join(line).encode()) % self.parts == self.part

    # Out ----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Deliver, until cancelled."""
        async with asyncio.TaskGroup() as lanes:
            lanes.create_task(self._look())
            while True:
                await self._wake.wait()
                self._wake.clear()
                if self._awaited:
                    lanes.create_task(self.tell(list(self._awaited)))
                    self._awaited = {}
                for line in [each for each in self._waiting if each not in self._lanes]:
                    if len(self._lanes) >= LANES:
                        break
                    del self._waiting[line]
                    self._lanes.add(line)
                    lanes.create_task(self._lane(line))

    async def _look(self) -> None:
        """Find what was left behind: by a replica that is gone, or here while the database was away."""
        events_after = messages_after = FIRST_LINE
        while True:
            await self._look_wanted.wait()
            self._look_wanted.clear()
            if len(self._waiting) >= LEFT:
                continue
            try:
                now_ms = self._clock.now_ms()
                late_ms = now_ms - _LATE_MS
                left, events_after = await self._store.left_events(events_after, LEFT)
                messages, messages_after = await self._store.left_messages(messages_after, LEFT)
                for line, oldest_ms in left + messages:
                    if (oldest_ms < late_ms or self._is_ours(line)) and not self._is_resting(line, now_ms):
                        self._waiting[line] = None
                        self._wake.set()
            except StoreUnavailable as error:
                _log.warning("database unavailable", error=str(error))

    async def _lane(self, line: _Line) -> None:
        """Deliver the open events of one line, in their order, until there are none, or none that anybody takes."""
        namespace, name = line
        origin = line_before_aside(name)
        channel, last = channel_of(origin), 0
        try:
            while events := await self._store.open_events(namespace, name, EVENTS, after=last):
                outcomes: dict[int, Outcome] = {}
                if channel is None:
                    brought, outcomes = await self._deliver(namespace, origin, events)
                else:
                    brought = await self._postman.bring_messages(namespace, channel, events)
                if brought.done:
                    faults.point("publish.delivered")
                    await self._close(namespace, name, brought.done, outcomes, kept=channel is not None)
                if origin != name:
                    last = events[-1].position  # what failed again is passed by
                elif brought.failed:
                    await self._put_aside(line, brought.failed)
                elif not brought.done:
                    return
        except RomancyError as error:
            _log.warning("events are delivered later", namespace=namespace, line=name, error=str(error))
        except Exception:
            _log.exception("events were not delivered; they are tried again", namespace=namespace, line=name)
        finally:
            if origin != name:
                self._rest((namespace, name))
            self._lanes.discard(line)
            self._wake.set()

    async def _put_aside(self, line: _Line, failed: Sequence[OpenEvent]) -> None:
        """A run failed to take these. They are brought to it later, and keep nothing else from being delivered."""
        namespace, name = line
        self._rest((namespace, aside_of(name)))
        await self._store.put_aside(name, [each.position for each in failed])
        _log.error("events are put aside", namespace=namespace, line=name, count=len(failed))

    def _rest(self, line: _Line) -> None:
        now_ms = self._clock.now_ms()
        if len(self._resting) >= LEFT:
            self._resting = {each: until_ms for each, until_ms in self._resting.items() if until_ms > now_ms}
        if len(self._resting) < LEFT:
            self._resting[line] = now_ms + self._limits.aside_ms

    def _is_resting(self, line: _Line, now_ms: int) -> bool:
        """Whether it is too early for what runs failed to take. Another replica may have put it aside just now."""
        if line_before_aside(line[1]) == line[1]:
            return False
        if line not in self._resting:
            self._rest(line)
        return self._resting.get(line, 0) > now_ms

    async def _close(
        self,
        namespace: str,
        line: str,
        delivered: Sequence[OpenEvent],
        outcomes: Mapping[int, Outcome],
        *,
        kept: bool,
    ) -> None:
        """Note that these were delivered, and what rules made of them."""
        for event in delivered:
            if (outcome := outcomes.get(event.position)) is not None:
                await self._store.close_started(namespace, event, outcome, self._clock.now_ms())
                faults.point("publish.counted")
        if rest := [event for event in delivered if event.position not in outcomes]:
            await self._store.close_events(namespace, line, rest, kept=kept)

    async def _deliver(
        self, namespace: str, event_type: str, events: Sequence[OpenEvent]
    ) -> tuple[Brought, dict[int, Outcome]]:
        """Bring events to all who want them, and start what they start. Returns too what rules made of them."""
        brought = await self._postman.bring_events(namespace, event_type, events)
        for_all = [event for event in events if address_of(event.event) is None]
        return brought, await self._rules.start(namespace, event_type, for_all)
