"""Publisher: keeps events and messages that come, and brings each to the runs that want it.

An event is kept first, and answered; then those that wait for it are looked up, and it is submitted to each of them
under a request id made of the event and of the first run of the chain that asked for it. So it does not matter how
often, or by how many replicas, an event is delivered, or where somebody dies: what is open is delivered again, and is
taken once, also when the run that asked for it went on anew. Events of one type are delivered in their order, those of
other types beside them; with several replicas each delivers its share of the types, and those of others when they are
late.

A subscription that was stored before the event is found, since it is looked for after the event was stored. One that
came later may be found too, if it came within some seconds: its time is an estimate of a clock, as the event's is.

A message for which runs compete stays until one waits for it. It is submitted under a request id of its own, whichever
run it goes to: so only one can record it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from zlib import crc32

import structlog

from romancy.v1.channel_pb2 import CHANNEL_MODE_BROADCAST, CHANNEL_MODE_COMPETING, CHANNEL_MODE_UNSPECIFIED, Delivery
from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_COMPENSATING

from romancy_service import faults
from romancy_service.clock import Clock
from romancy_service.core.channel import MODE_KEYS, RECEIVER, address_of, channel_of, line_of, topic_of_channel
from romancy_service.core.cloud_event import check_cloud_event
from romancy_service.core.decide import Reply
from romancy_service.core.limits import Limits
from romancy_service.core.own import check_source, own_request_id
from romancy_service.core.run import OPEN_STATUSES, Run
from romancy_service.core.subscription import Content
from romancy_service.core.task import SUBSCRIPTION_PREFIX, TaskKind
from romancy_service.core.triggers import ReceiveEvent
from romancy_service.engine import Engine
from romancy_service.errors import (
    RomancyError,
    StaleTask,
    StoreUnavailable,
    TooMuchContention,
    WorkflowClosed,
    WorkflowNotFound,
)
from romancy_service.event_rules import SLACK_MS, EventRules
from romancy_service.store.event_rules import Outcome
from romancy_service.store.events import FIRST_LINE, NewEvent, OpenEvent, Subscriber
from romancy_service.store.store import Store
from romancy_service.submission import Recorded, RequestKey

_log = structlog.get_logger("romancy.publisher")

LANES: Final = 64
"""So many types are delivered at a time."""
LEFT: Final = 1_000
"""So many lines are looked at each time for events that were left behind; the next time those after them."""
EVENTS: Final = 64
"""So many events of a type are looked up together."""
SUBSCRIBERS: Final = 1_000
"""So many subscriptions are read at a time, and so many runs told before the next are."""
_LATE_MS: Final = 1_000
"""After so long events of another replica's types are anybody's: that replica may be gone."""
_CHANNELS: Final = 10_000
"""So many channels are remembered as stored."""
_TRIES: Final = 3
"""So often, a second apart, may a run fail to take events until they are given up for it: others wait behind them."""
_FAILURES: Final = 10_000
"""Of so many runs is it remembered that they fail."""
_NOT_NOW: Final = (StoreUnavailable, TooMuchContention)

_Line = tuple[str, str]
"""Namespace and line: a type of events, or a channel."""
_Keys = Callable[[CloudEvent], Sequence[tuple[str, str]]]
"""The topics and keys of the subscriptions that want an event."""


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """An event that is being recorded by a run."""

    event: OpenEvent
    run_id: str
    chain: str
    """The first of the runs that go on one after the other; empty when nobody asks."""
    future: asyncio.Future[Reply | Recorded]


@dataclass(frozen=True, slots=True)
class _Missed:
    """What was not recorded: because its run is closed, because its code does not wait any more, or in vain."""

    closed: list[_UnderWay] = field(default_factory=list)
    stale: list[_UnderWay] = field(default_factory=list)
    failed: list[_UnderWay] = field(default_factory=list)


class Publisher:
    """Takes events in, and delivers them."""

    def __init__(self, store: Store, clock: Clock, engine: Engine, rules: EventRules, limits: Limits) -> None:
        self._store = store
        self._clock = clock
        self._engine = engine
        self._rules = rules
        self._limits = limits
        self.part, self.parts = 0, 1
        """Which share of the types this replica delivers, of how many."""
        self._waiting: dict[_Line, None] = {}
        self._awaited: dict[_Line, None] = {}
        """Where runs that were written here wait."""
        self._channels: dict[tuple[str, str], int] = {}
        """Channels that are known to be stored, by namespace and name, and until when."""
        self._failures: dict[str, int] = {}
        """How often in a row runs failed to take something."""
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
        there = await self._addressees(namespace, wanted)
        for address in wanted:
            if address not in there:
                found = (await self._store.find_runs([(namespace, *address)]))[0]
                if found is None:
                    raise WorkflowNotFound(address[1] or address[0])
                raise WorkflowClosed(address[0], found)

    async def _addressees(self, namespace: str, addresses: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """The runs that take what is sent to them: of each workflow the newest one, if it is open."""
        found = await self._store.latest(sorted({(namespace, workflow_id) for workflow_id, _ in addresses}))
        runs = {}
        for workflow_id, run_id in addresses:
            newest, status = found.get((namespace, workflow_id), ("", WORKFLOW_STATUS_COMPENSATING))
            if status in OPEN_STATUSES and status != WORKFLOW_STATUS_COMPENSATING and run_id in ("", newest):
                runs[workflow_id, run_id] = newest
        return runs

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
                late_ms = self._clock.now_ms() - _LATE_MS
                left, events_after = await self._store.left_events(events_after, LEFT)
                messages, messages_after = await self._store.left_messages(messages_after, LEFT)
                for line, oldest_ms in left + messages:
                    if oldest_ms < late_ms or self._is_ours(line):
                        self._waiting[line] = None
                        self._wake.set()
            except StoreUnavailable as error:
                _log.warning("database unavailable", error=str(error))

    async def _lane(self, line: _Line) -> None:
        """Deliver the open events of one line, in their order, until there are none, or none that anybody takes."""
        namespace, name = line
        channel = channel_of(name)
        try:
            while events := await self._store.open_events(namespace, name, EVENTS):
                outcomes: dict[int, Outcome] = {}
                delivered: Sequence[OpenEvent]
                if channel is None:
                    outcomes = await self._deliver(namespace, name, events)
                    delivered = events
                else:
                    delivered = await self._deliver_messages(namespace, channel, events)
                if not delivered:
                    return
                faults.point("publish.delivered")
                await self._close(namespace, name, delivered, outcomes, kept=channel is not None)
        except RomancyError as error:
            _log.warning("events are delivered later", namespace=namespace, line=name, error=str(error))
        except Exception:
            _log.exception("events were not delivered; they are tried again", namespace=namespace, line=name)
        finally:
            self._lanes.discard(line)
            self._wake.set()

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

    async def _deliver_messages(
        self, namespace: str, channel: str, messages: Sequence[OpenEvent]
    ) -> Sequence[OpenEvent]:
        """Bring a channel's messages to whom they reach by its mode. Returns those that it need not keep any more."""
        mode, topic = await self._store.channel_mode(namespace, channel), topic_of_channel(channel)
        if mode == CHANNEL_MODE_UNSPECIFIED:
            return []
        if mode == CHANNEL_MODE_COMPETING:
            return await self._hand_out(namespace, topic, messages)
        if mode == CHANNEL_MODE_BROADCAST:
            key = MODE_KEYS[mode]
            await self._bring_all(namespace, messages, lambda event: [(topic, key)])
        return messages

    async def _hand_out(self, namespace: str, topic: str, messages: Sequence[OpenEvent]) -> Sequence[OpenEvent]:
        """Give each message to one run that waits, those that wait longest first. Returns those that a run has."""
        receivers = await self._store.subscribers(namespace, topic, RECEIVER, ("", ""), SUBSCRIBERS)
        # What a run failed to take another one takes.
        receivers.sort(key=lambda each: (self._failures.get(each.run_id, 0), each.since_ms))
        under_way = []
        for each, receiver in zip(messages, receivers, strict=False):
            # Its own id, whoever gets it: so only one run can record it.
            request = _taking("message", namespace, each.position, each.deliveries)
            delivery = Delivery(position=each.position, count=each.deliveries)
            subscription_id = receiver.task_id.removeprefix(SUBSCRIPTION_PREFIX)
            trigger = ReceiveEvent(each.event, [subscription_id], delivery)
            future = self._engine.submit(receiver.run_id, trigger, request)
            under_way.append(_UnderWay(each, receiver.run_id, receiver.chain, future))
        done = await self._recorded(under_way)
        missed = {each.event.position for each in (*done.closed, *done.stale, *done.failed)}
        return [each.event for each in under_way if each.event.position not in missed]

    async def _deliver(self, namespace: str, event_type: str, events: Sequence[OpenEvent]) -> dict[int, Outcome]:
        """Bring events to all who want them. The engine records in order what it is given in order.

        Returns what rules made of them, by position.
        """
        topics = await self._store.topics(namespace, event_type)

        def keys(event: CloudEvent) -> list[tuple[str, str]]:
            content = Content(event)
            keys = [(topic, _key(content, topic, event)) for topic in topics]
            return [(topic, key) for topic, key in keys if key is not None]

        for_all = [event for event in events if address_of(event.event) is None]
        await self._bring_all(namespace, for_all, keys)
        for event in events:
            if address_of(event.event) is not None:
                await self._bring_to_addressee(namespace, event)
        return await self._rules.start(namespace, event_type, for_all)

    async def _bring_all(self, namespace: str, events: Sequence[OpenEvent], keys: _Keys) -> None:
        """Bring events to all subscriptions that have these topics and keys."""
        left = list(events)
        only: set[str] | None = None
        while left:
            # A run that went on anew while it was told has its subscriptions there. So these are looked up again, until
            # all that are found have taken what is for them.
            left, only = await self._bring(namespace, keys, left, only)

    async def _bring(
        self, namespace: str, keys: _Keys, events: Sequence[OpenEvent], only: set[str] | None
    ) -> tuple[list[OpenEvent], set[str]]:
        """Bring events to those who want them, or to those of `only` these chains of runs.

        Returns the events that found a run closed, and the chains of these runs.
        """
        found: dict[tuple[str, str], list[Subscriber]] = {}
        under_way: list[_UnderWay] = []
        missed: dict[int, OpenEvent] = {}
        chains: set[str] = set()

        async def settle() -> None:
            for each in (await self._recorded(under_way)).closed:
                missed[each.event.position] = each.event
                chains.add(each.chain)
            under_way.clear()

        for event in events:
            until_ms = event.accepted_ms + SLACK_MS
            wanted: dict[tuple[str, str], list[str]] = {}
            for topic, key in keys(event.event):
                async for each in self._subscribers(namespace, topic, key, found):
                    if each.since_ms <= until_ms and (only is None or each.chain in only):
                        subscription_id = each.task_id.removeprefix(SUBSCRIPTION_PREFIX)
                        wanted.setdefault((each.run_id, each.chain), []).append(subscription_id)
            for (run_id, chain), subscription_ids in wanted.items():
                # Once for all runs that go on one after the other: what the next one asks for may seem to be older.
                request = _taking("event", namespace, event.position, chain)
                future = self._engine.submit(run_id, ReceiveEvent(event.event, subscription_ids), request)
                under_way.append(_UnderWay(event, run_id, chain, future))
                if len(under_way) >= SUBSCRIBERS:
                    await settle()
        await settle()
        return [missed[position] for position in sorted(missed)], chains

    async def _subscribers(
        self, namespace: str, topic: str, key: str, found: dict[tuple[str, str], list[Subscriber]]
    ) -> AsyncIterator[Subscriber]:
        """Subscriptions. Events that are delivered together see the same ones, if they are few: else one could be
        brought to a run, and the next one to the run that went on after it, before it."""
        if (topic, key) in found:
            for each in found[topic, key]:
                yield each
            return
        page = await self._store.subscribers(namespace, topic, key, ("", ""), SUBSCRIBERS)
        if len(page) < SUBSCRIBERS:
            found[topic, key] = page
        while page:
            for each in page:
                yield each
            if len(page) < SUBSCRIBERS:
                return
            after = (page[-1].run_id, page[-1].task_id)
            page = await self._store.subscribers(namespace, topic, key, after, SUBSCRIBERS)

    async def _bring_to_addressee(self, namespace: str, event: OpenEvent) -> None:
        """To the open run of the workflow that the event names."""
        address = address_of(event.event)
        assert address is not None
        tried = None
        while (run_id := (await self._addressees(namespace, [address])).get(address)) not in (None, tried):
            assert run_id is not None
            request = _taking("event", namespace, event.position)
            future = self._engine.submit(run_id, ReceiveEvent(event.event), request)
            done = await self._recorded([_UnderWay(event, run_id, "", future)])
            if not done.closed and not done.stale:
                return
            tried = run_id  # another run of it may go on

    async def _recorded(self, under_way: Sequence[_UnderWay]) -> _Missed:
        """Wait until all is recorded that can be.

        Raises what may pass, when something is not recorded yet: StoreUnavailable, TooMuchContention, and, some times
        for each run, any error that is of this run alone. After these the run misses what it failed to take.
        """
        later: RomancyError | None = None
        missed = _Missed()
        errors: dict[str, RomancyError] = {}
        for each in under_way:
            try:
                await each.future
            except (WorkflowClosed, WorkflowNotFound):
                missed.closed.append(each)
            except StaleTask:  # the code does not want it any more
                missed.stale.append(each)
            except _NOT_NOW as error:
                later = error
            except RomancyError as error:
                missed.failed.append(each)
                errors[each.run_id] = error
            else:
                self._failures.pop(each.run_id, None)
        later = self._failed(errors) or later
        if later is not None:
            raise later
        for each in missed.failed:
            event = each.event.event
            facts = {"run_id": each.run_id, "position": each.event.position, "source": event.source, "id": event.id}
            _log.error("a run failed to take an event, and is not asked again", **facts, error=str(errors[each.run_id]))
        return missed

    def _failed(self, errors: Mapping[str, RomancyError]) -> RomancyError | None:
        """These runs failed to take something. Returns an error of one with which it is worth to try again."""
        again = None
        for run_id, error in errors.items():
            self._failures[run_id] = self._failures.get(run_id, 0) + 1
            if self._failures[run_id] < _TRIES:
                _log.warning("a run failed to take an event", run_id=run_id, error=str(error))
                again = error
        if len(self._failures) > _FAILURES:
            self._failures.clear()
        return again


def _key(content: Content, topic: str, event: CloudEvent) -> str | None:
    """As `Content.key`. What cannot be read for one topic must not hold up those of the others, nor other events."""
    try:
        return content.key(topic)
    except Exception:
        _log.exception("an event is kept from some that may want it", topic=topic, source=event.source, id=event.id)
        return None


def _taking(what: str, namespace: str, *which: object) -> RequestKey:
    """The request of which only one is carried out, however often it is made."""
    return RequestKey(namespace, own_request_id(what, *which), "ReceiveEvent", lambda _: b"")
