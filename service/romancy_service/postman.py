"""Postman: brings events and messages to the runs that want them.

Those that wait for an event are looked up, and it is submitted to each of them under a request id made of the event and
of the first run of the chain that asked for it. So it does not matter how often, or by how many replicas, an event is
brought: it is taken once, also when the run that asked for it went on anew.

A subscription that was stored before the event is found, since it is looked for after the event was stored. One that
came later may be found too, if it came within some seconds: its time is an estimate of a clock, as the event's is.

A message for which runs compete stays until one waits for it. It is submitted under a request id of its own, whichever
run it goes to: so only one can record it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from romancy.v1.channel_pb2 import CHANNEL_MODE_BROADCAST, CHANNEL_MODE_COMPETING, CHANNEL_MODE_UNSPECIFIED, Delivery
from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_COMPENSATING

from romancy_service.core.channel import MODE_KEYS, address_of, topic_of_channel
from romancy_service.core.decide import Reply
from romancy_service.core.limits import Limits
from romancy_service.core.own import own_request_id
from romancy_service.core.run import OPEN_STATUSES
from romancy_service.core.subscription import Content
from romancy_service.core.task import SUBSCRIPTION_PREFIX
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
from romancy_service.event_rules import SLACK_MS
from romancy_service.store.events import OpenEvent, Subscriber
from romancy_service.store.store import Store
from romancy_service.submission import Recorded, RequestKey

_log = structlog.get_logger("romancy.postman")

_TRIES: Final = 3
"""So often, a second apart, may a run fail to take events until others that wait behind them go on without it."""
_FAILURES: Final = 10_000
"""Of so many runs is it remembered that they fail."""
_NOT_NOW: Final = (StoreUnavailable, TooMuchContention)

_Key = tuple[str, str]
"""Topic and key of subscriptions."""
_Keys = Callable[[CloudEvent], Sequence[_Key]]
"""Those of the subscriptions that want an event."""
_Wanted = Mapping[int, Sequence[_Key]]
"""The same of several events, by their positions."""
_Known = Mapping[_Key, Sequence[Subscriber]]
"""All subscriptions that have these."""


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


@dataclass(frozen=True, slots=True)
class Brought:
    """What became of events."""

    done: Sequence[OpenEvent]
    """All have them who wanted them. Of messages for which runs compete, those that a run has."""
    failed: Sequence[OpenEvent]
    """The same, but for runs that failed to take them."""


def _brought(events: Sequence[OpenEvent], failed: set[int]) -> Brought:
    return Brought(
        [each for each in events if each.position not in failed], [each for each in events if each.position in failed]
    )


class Postman:
    """Brings what is kept to runs, and waits until they have it."""

    def __init__(self, store: Store, engine: Engine, limits: Limits) -> None:
        self._store = store
        self._limits = limits
        self._engine = engine
        self._failures: dict[str, int] = {}
        """How often in a row runs failed to take something."""

    async def bring_events(self, namespace: str, event_type: str, events: Sequence[OpenEvent]) -> Brought:
        """Bring events to all who want them. The engine records in order what it is given in order."""
        topics = await self._store.topics(namespace, event_type)

        def keys(event: CloudEvent) -> list[tuple[str, str]]:
            content = Content(event)
            found = [(topic, _key_of(content, topic, event)) for topic in topics]
            return [(topic, key) for topic, key in found if key is not None]

        for_all = [event for event in events if address_of(event.event) is None]
        failed = await self._bring_all(namespace, for_all, keys)
        for event in events:
            if address_of(event.event) is not None and not await self._bring_to_addressee(namespace, event):
                failed.add(event.position)
        return _brought(events, failed)

    async def bring_messages(self, namespace: str, channel: str, messages: Sequence[OpenEvent]) -> Brought:
        """Bring a channel's messages to whom they reach by its mode."""
        mode, topic = await self._store.channel_mode(namespace, channel), topic_of_channel(channel)
        if mode == CHANNEL_MODE_UNSPECIFIED:
            return Brought([], [])
        if mode == CHANNEL_MODE_COMPETING:
            return Brought(await self._hand_out(namespace, topic, messages), [])
        if mode == CHANNEL_MODE_BROADCAST:
            key = MODE_KEYS[mode]
            return _brought(messages, await self._bring_all(namespace, messages, lambda event: [(topic, key)]))
        return Brought(messages, [])

    async def _hand_out(self, namespace: str, topic: str, messages: Sequence[OpenEvent]) -> Sequence[OpenEvent]:
        """Give each message to one run that waits, those that wait longest first. Returns those that a run has."""
        enough = len(messages) + len(self._failures)
        receivers = await self._store.receivers(namespace, topic, min(enough, self._limits.page_subscriptions))
        # What a run failed to take another one takes.
        receivers.sort(key=lambda each: self._failures.get(each.run_id, 0))
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

    async def addressees(self, namespace: str, addresses: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """The runs that take what is sent to them: of each workflow the newest one, if it is open."""
        found = await self._store.latest(sorted({(namespace, workflow_id) for workflow_id, _ in addresses}))
        runs = {}
        for workflow_id, run_id in addresses:
            newest, status = found.get((namespace, workflow_id), ("", WORKFLOW_STATUS_COMPENSATING))
            if status in OPEN_STATUSES and status != WORKFLOW_STATUS_COMPENSATING and run_id in ("", newest):
                runs[workflow_id, run_id] = newest
        return runs

    async def _bring_all(self, namespace: str, events: Sequence[OpenEvent], keys: _Keys) -> set[int]:
        """Bring events to all subscriptions that have these topics and keys, to each of them in their order.

        Returns the positions of those that a run failed to take.
        """
        failed: set[int] = set()
        wanted = {event.position: keys(event.event) for event in events}
        left: list[tuple[Sequence[OpenEvent], set[str] | None]] = [(events, None)]
        while left:
            events, only = left.pop()
            together, known = await self._few(namespace, events, wanted)
            if rest := events[len(together) :]:
                left.append((rest, only))
            missed, chains, in_vain = await self._bring(namespace, together, wanted, known, only)
            failed |= in_vain
            if missed:
                # A run that went on anew while it was told has its subscriptions there. So these are looked up again,
                # before what comes after, until all that are found have taken what is for them.
                left.append((missed, chains))
        return failed

    async def _few(
        self, namespace: str, events: Sequence[OpenEvent], wanted: _Wanted
    ) -> tuple[Sequence[OpenEvent], _Known]:
        """As many of the events, from the first one on, as have few subscriptions, and these.

        Events that are delivered together see the same ones: else one could be brought to a run, and the next one to
        the run that went on after it, before it. One that has many comes alone, and they are read page by page.
        """
        known: dict[_Key, Sequence[Subscriber]] = {}
        room = self._limits.page_subscriptions
        for number, event in enumerate(events):
            for each in wanted[event.position]:
                if each in known:
                    continue
                page = await self._store.subscribers(namespace, *each, ("", ""), room + 1)
                if len(page) > room:
                    return events[: max(number, 1)], known if number else {}
                known[each] = page
                room -= len(page)
        return events, known

    async def _bring(
        self, namespace: str, events: Sequence[OpenEvent], wanted: _Wanted, known: _Known, only: set[str] | None
    ) -> tuple[list[OpenEvent], set[str] | None, set[int]]:
        """Bring events to those who want them, or to those of `only` these chains of runs.

        Returns the events that found a run closed, the chains of these runs, unless they are many, and the positions of
        the events that a run failed to take.
        """
        most = self._limits.page_subscriptions
        under_way: list[_UnderWay] = []
        missed: dict[int, OpenEvent] = {}
        chains: set[str] = set()
        failed: set[int] = set()

        async def settle() -> None:
            recorded = await self._recorded(under_way)
            failed.update(each.event.position for each in recorded.failed)
            for each in recorded.closed:
                missed[each.event.position] = each.event
                if len(chains) <= most:
                    chains.add(each.chain)
            under_way.clear()

        for event in events:
            until_ms = event.accepted_ms + SLACK_MS
            async for found in self._run_by_run(namespace, wanted[event.position], known):
                run_id, chain = found[0].run_id, found[0].chain
                ids = [each.task_id.removeprefix(SUBSCRIPTION_PREFIX) for each in found if each.since_ms <= until_ms]
                if not ids or (only is not None and chain not in only):
                    continue
                # Once for all runs that go on one after the other: what the next one asks for may seem to be older.
                request = _taking("event", namespace, event.position, chain)
                future = self._engine.submit(run_id, ReceiveEvent(event.event, ids), request)
                under_way.append(_UnderWay(event, run_id, chain, future))
                if len(under_way) >= most:
                    await settle()
        await settle()
        return [missed[position] for position in sorted(missed)], chains if len(chains) <= most else None, failed

    async def _run_by_run(
        self, namespace: str, keys: Sequence[_Key], known: _Known
    ) -> AsyncIterator[Sequence[Subscriber]]:
        """The subscriptions that have one of the keys, those of a run together. No more than a page of each is held."""
        walks = [self._walk(namespace, each, known) for each in keys]
        heads = {walk: head for walk in walks if (head := await anext(walk, None)) is not None}
        while heads:
            run_id = min(head.run_id for head in heads.values())
            found = []
            for walk in walks:
                head = heads.pop(walk, None)
                while head is not None and head.run_id == run_id:
                    found.append(head)
                    head = await anext(walk, None)
                if head is not None:
                    heads[walk] = head
            yield found

    async def _walk(self, namespace: str, key: _Key, known: _Known) -> AsyncIterator[Subscriber]:
        """The subscriptions of a topic that have a key, in the order of their runs."""
        for each in known.get(key, ()):
            yield each
        size = self._limits.page_subscriptions
        after, more = ("", ""), key not in known
        while more:
            page = await self._store.subscribers(namespace, *key, after, size)
            for each in page:
                yield each
            more = len(page) == size
            after = (page[-1].run_id, page[-1].task_id) if page else after

    async def _bring_to_addressee(self, namespace: str, event: OpenEvent) -> bool:
        """To the open run of the workflow that the event names. Returns False if that failed to take it."""
        address = address_of(event.event)
        assert address is not None
        tried = None
        while (run_id := (await self.addressees(namespace, [address])).get(address)) not in (None, tried):
            assert run_id is not None
            request = _taking("event", namespace, event.position)
            future = self._engine.submit(run_id, ReceiveEvent(event.event), request)
            done = await self._recorded([_UnderWay(event, run_id, "", future)])
            if not done.closed and not done.stale:
                return not done.failed
            tried = run_id  # another run of it may go on
        return True

    async def _recorded(self, under_way: Sequence[_UnderWay]) -> _Missed:
        """Wait until all is recorded that can be.

        Raises what may pass, when something is not recorded yet: StoreUnavailable, TooMuchContention, and, some times
        for each run, any error that is of this run alone. After these, others do not wait for it any more.
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
            _log.error("a run failed to take an event", **facts, error=str(errors[each.run_id]))
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


def _key_of(content: Content, topic: str, event: CloudEvent) -> str | None:
    """As `Content.key`. What cannot be read for one topic must not hold up those of the others, nor other events."""
    try:
        return content.key(topic)
    except Exception:
        _log.exception("an event is kept from some that may want it", topic=topic, source=event.source, id=event.id)
        return None


def _taking(what: str, namespace: str, *which: object) -> RequestKey:
    """The request of which only one is carried out, however often it is made."""
    return RequestKey(namespace, own_request_id(what, *which), "ReceiveEvent", lambda _: b"")
