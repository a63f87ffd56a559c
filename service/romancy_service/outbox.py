"""Outbox: delivers the events that runs sent to sinks, at least once, those of one workflow in their order.

The commit that records that an event was sent puts it into the outbox too. The events of one workflow for one sink are
a *line*; only its first one is tried. Who tries it has claimed the line, for longer than one try can take: so a crash
leaves nothing behind that time does not heal, and any number of replicas may deliver beside each other. An event is
gone from the outbox only after the sink answered; whoever dies in between, or was frozen, has it sent once more.

Each sink that is busy has a lane: some lines are tried at a time there, so that a slow sink holds up nothing but its
own events. When more sinks are busy than there are lanes, each hands its lane on after a turn, and comes last then. A
sink that cannot be reached at all is left alone for a while, then tried with one event, whatever waits for it. What its
own event makes it answer is that event's affair: the others go on.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import structlog

from romancy.v1.event_pb2 import CloudEvent

from romancy_service import faults
from romancy_service.clock import Clock
from romancy_service.core.limits import Limits
from romancy_service.core.run import Run
from romancy_service.core.sink import Verdict, message_id, read_secret, signatures
from romancy_service.errors import StoreUnavailable
from romancy_service.store.outbox import Outgoing
from romancy_service.store.sinks import SinkRow
from romancy_service.store.store import Store
from romancy_service.webhook import Answer, Webhooks, text_of, to_message

_log = structlog.get_logger("romancy.outbox")

_AFTER_ANSWER_MS: Final = 5_000
"""So much longer than a try is a line claimed: to write down what became of it, even on a busy database."""
_FIRST_WAIT_MS: Final = 1_000
_LONGEST_WAIT_MS: Final = 300_000
"""Between tries of one event the wait doubles, from the one to the other; from half of it to all of it by chance."""
_FIRST_PAUSE_MS: Final = 500
_LONGEST_PAUSE_MS: Final = 30_000
"""The same between tries to reach a sink."""
_SINK_KNOWN_S: Final = 1.0
"""So long is known how a sink is set: another replica's change counts after that."""

_Key = tuple[str, str]
"""Namespace and sink."""


@dataclass(slots=True)
class _Lane:
    """What is under way to one sink."""

    claim: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Who has the lines: this lane, and none before it."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    tries: asyncio.TaskGroup = field(default_factory=asyncio.TaskGroup)
    begun: int = 0
    """How many events were tried, or are."""
    handed_on: bool = False
    """Others wait for a lane, and this one's turn is over."""
    trying: set[int] = field(default_factory=set)
    """The lines whose first events are under way."""
    delivered: list[tuple[Outgoing, asyncio.Future[None]]] = field(default_factory=list)
    """What is to be taken out of the outbox, together."""
    writing: asyncio.Task[None] | None = None
    known: tuple[float, SinkRow | None] = (-1.0, None)
    """How the sink is set, and when that was read."""


@dataclass(slots=True)
class _Trouble:
    """A sink that could not be reached."""

    failures: int = 0
    until_ms: int = 0
    """It is left alone until then."""


class Outbox:
    """Delivers what waits."""

    def __init__(self, store: Store, clock: Clock, webhooks: Webhooks, limits: Limits) -> None:
        self._store = store
        self._clock = clock
        self._webhooks = webhooks
        self._limits = limits
        self._lease_ms = limits.sink_answer_ms + _AFTER_ANSWER_MS
        self._waiting: dict[_Key, None] = {}
        self._lanes: dict[_Key, _Lane] = {}
        self._lanes_of: Counter[str] = Counter()
        """By namespace."""
        self._troubles: dict[_Key, _Trouble] = {}
        self._wake = asyncio.Event()
        self._look = asyncio.Event()
        self._ended = asyncio.Event()
        """A lane is empty."""
        self._stopping = False

    # Waking -------------------------------------------------------------------------------------------------------

    def observe(self, run: Run) -> None:
        """A run was written here."""
        for each in run.outgoing:
            self._work_for((run.namespace, each.sink))

    async def sink_changed(self, namespace: str, sink: str) -> None:
        """It may be reached now, or elsewhere: all replicas are to know."""
        self._try_anew((namespace, sink))
        await self._store.notify(json.dumps({"sink": [namespace, sink]}))

    def told(self, payload: str) -> None:
        """Another replica says so."""
        if (key := json.loads(payload).get("sink")) is not None:
            self._try_anew((key[0], key[1]))

    def _try_anew(self, key: _Key) -> None:
        self._troubles.pop(key, None)
        if (lane := self._lanes.get(key)) is not None:
            lane.known = (-1.0, None)
        self._work_for(key)

    def look_now(self) -> None:
        """Something is due: what is tried again, or what others left behind."""
        self._look.set()

    def _work_for(self, key: _Key) -> None:
        self._waiting[key] = None
        self._wake.set()

    # Lanes --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Deliver, until cancelled."""
        async with self._webhooks, asyncio.TaskGroup() as lanes:
            lanes.create_task(self._look_when_told())
            while True:
                await self._wake.wait()
                self._wake.clear()
                for key in [] if self._stopping else list(self._waiting):
                    if key in self._lanes:
                        self._lanes[key].wake.set()
                    elif not self._is_left_alone(key):
                        if not self._has_room(key[0]):
                            continue
                        lanes.create_task(self._keep_lane(key, self._open_lane(key)))
                    del self._waiting[key]

    def _has_room(self, namespace: str) -> bool:
        """Whether a lane is free for it."""
        limits = self._limits
        return len(self._lanes) < limits.sink_lanes and self._lanes_of[namespace] < limits.sink_lanes_of_namespace

    def _open_lane(self, key: _Key) -> _Lane:
        lane = self._lanes[key] = _Lane()
        self._lanes_of[key[0]] += 1
        return lane

    def _close_lane(self, key: _Key) -> None:
        lane = self._lanes.pop(key)
        self._lanes_of[key[0]] -= 1
        if not self._lanes_of[key[0]]:
            del self._lanes_of[key[0]]
        if lane.handed_on:
            self._waiting[key] = None  # the last one now
        self._ended.set()
        self._wake.set()

    def _is_over(self, key: _Key, lane: _Lane) -> bool:
        """Whether the lane had its turn, and another sink would get its place."""
        if lane.begun >= self._limits.sink_turn and not self._has_room(key[0]):
            most = self._limits.sink_lanes_of_namespace
            lane.handed_on = any(
                waits not in self._lanes and (waits[0] == key[0] or self._lanes_of[waits[0]] < most)
                for waits in self._waiting
            )
        else:
            lane.handed_on = False
        return lane.handed_on

    async def drained(self) -> None:
        """Claim nothing more, and wait for what is under way."""
        self._stopping = True
        while self._lanes:
            self._ended.clear()
            await self._ended.wait()

    async def _look_when_told(self) -> None:
        while True:
            await self._look.wait()
            self._look.clear()
            try:
                for key in await self._store.sinks_with_work(self._clock.latest_ms(), self._limits.due_sinks):
                    self._work_for(key)
            except StoreUnavailable as error:
                _log.warning("database unavailable", error=str(error))

    async def _keep_lane(self, key: _Key, lane: _Lane) -> None:
        try:
            async with lane.tries:
                await self._drive(key, lane)
        finally:
            self._close_lane(key)

    async def _drive(self, key: _Key, lane: _Lane) -> None:
        """Have as many lines tried as may be, until there is nothing to do."""
        while True:
            lane.wake.clear()
            found: list[Outgoing] = []
            last_moment = time.monotonic() + _AFTER_ANSWER_MS / 2000
            with self._going_on(key):
                found = await self._claim(key, lane)
            for line in found:
                if line.event is not None and line.line_id not in lane.trying:
                    lane.trying.add(line.line_id)
                    lane.begun += 1
                    lane.tries.create_task(self._see_to(key, lane, line, last_moment))
            if empty := [line for line in found if line.event is None]:
                with self._going_on(key):
                    await self._store.forget_empty(lane.claim, empty, self._clock.latest_ms())
            if not found and lane.trying:
                await lane.wake.wait()
            elif not found and not lane.wake.is_set():
                return

    @contextmanager
    def _going_on(self, key: _Key) -> Iterator[None]:
        """What fails in here keeps nothing else from being delivered. What was claimed is found again."""
        try:
            yield
        except StoreUnavailable as error:
            _log.warning("events are delivered later", namespace=key[0], sink=key[1], error=str(error))
        except Exception:
            _log.exception("events were not delivered; they are tried again", namespace=key[0], sink=key[1])

    async def _see_to(self, key: _Key, lane: _Lane, line: Outgoing, last_moment: float) -> None:
        try:
            with self._going_on(key):
                await self._try(key, lane, line, last_moment)
        finally:
            lane.trying.discard(line.line_id)
            lane.wake.set()

    async def _claim(self, key: _Key, lane: _Lane) -> list[Outgoing]:
        """Lines to try now; some may turn out to be empty."""
        if self._stopping or self._is_left_alone(key) or self._is_over(key, lane):
            return []
        most = 1 if key in self._troubles else self._limits.sink_requests
        room = most - len(lane.trying)
        if room <= 0:
            return []
        now_ms = self._clock.latest_ms()
        found = await self._store.claim_lines(*key, lane.claim, now_ms, now_ms + self._lease_ms, room)
        if any(line.event is not None for line in found):
            faults.point("outbox.claimed")
        return found

    def _is_left_alone(self, key: _Key) -> bool:
        trouble = self._troubles.get(key)
        return trouble is not None and self._clock.now_ms() < trouble.until_ms

    # One event ----------------------------------------------------------------------------------------------------

    async def _try(self, key: _Key, lane: _Lane, line: Outgoing, last_moment: float) -> None:
        """Try the first event of a line, if it is not too late, and write down what became of it."""
        assert line.event is not None
        trouble = self._troubles.get(key)
        failures = trouble.failures if trouble is not None else 0
        sink = await self._sink(key, lane)
        if time.monotonic() > last_moment:
            # This process stood still, or the database did: the line may be another one's by now. If not, it is free.
            await self._store.release_lines(lane.claim, [line], self._clock.latest_ms())
            return
        try:
            answer = await self._send(key, sink, line.event)
        except Exception as error:  # it counts as a try, or the event would be tried for ever, and nobody would know
            _log.exception("an event cannot be sent", namespace=key[0], sink=key[1], position=line.position)
            answer = Answer(Verdict.LATER, text_of(error))
        faults.point("outbox.answered")
        if not answer.unreachable:
            self._troubles.pop(key, None)
        match answer.verdict:
            case Verdict.DELIVERED:
                await self._take(lane, line)
                faults.point("outbox.delivered")
            case Verdict.DEAD:
                await self._bury(key, lane, line, answer.why)
            case Verdict.LATER if answer.unreachable:
                await self._leave_alone(key, lane, line, answer.why, failures)
            case Verdict.LATER if self._is_too_old(line):
                await self._bury(key, lane, line, f"{answer.why}, and so for too long")
            case Verdict.LATER:
                wait_ms = max(_by_chance(_FIRST_WAIT_MS, line.attempts, _LONGEST_WAIT_MS), answer.wait_ms)
                now_ms = self._clock.latest_ms()
                await self._store.put_off(lane.claim, line, now_ms + wait_ms, answer.why, now_ms)
                faults.point("outbox.put_off")

    async def _sink(self, key: _Key, lane: _Lane) -> SinkRow | None:
        read_at, sink = lane.known
        if time.monotonic() - read_at > _SINK_KNOWN_S:
            sink = await self._store.get_sink(*key)
            lane.known = (time.monotonic(), sink)
        return sink

    async def _send(self, key: _Key, sink: SinkRow | None, event: CloudEvent) -> Answer:
        if sink is None:
            why = f"there is no sink {key[1]!r} in the namespace; `romancy outbox set-sink` makes it"
            return Answer(Verdict.LATER, why, unreachable=True)
        try:
            message = to_message(event)
        except Exception as error:  # whatever its library finds in it, it would find again
            _log.exception("an event cannot be written", namespace=key[0], sink=key[1], event_id=event.id)
            return Answer(Verdict.DEAD, f"it cannot be written: {text_of(error)}")
        now_ms = self._clock.now_ms()
        headers = {"webhook-id": message_id(event.source, event.id), "webhook-timestamp": str(now_ms // 1000)}
        secrets = [sink.secret, sink.old_secret if now_ms < sink.old_until_ms else ""]
        if keys := [read_secret("secret", secret) for secret in secrets if secret]:
            headers["webhook-signature"] = signatures(keys, headers["webhook-id"], now_ms // 1000, message.body)
        return await self._webhooks.post(sink.url, message, headers, now_ms)

    async def _take(self, lane: _Lane, line: Outgoing) -> None:
        """Take what was delivered out of the outbox, together with what was delivered meanwhile."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        lane.delivered.append((line, done))
        if lane.writing is None:
            lane.writing = lane.tries.create_task(self._write(lane))
        await done

    async def _write(self, lane: _Lane) -> None:
        last_moment = time.monotonic() + _AFTER_ANSWER_MS / 2000
        while lane.delivered:
            batch, lane.delivered = lane.delivered, []
            try:
                await self._store.take_delivered(lane.claim, [line for line, _ in batch], self._clock.latest_ms())
            except StoreUnavailable as error:
                if time.monotonic() < last_moment:
                    lane.delivered = [*batch, *lane.delivered]
                    await asyncio.sleep(random.uniform(0.05, 0.5))
                    continue
                _settle(batch, error)  # they are delivered once more
            except Exception as error:
                _settle(batch, error)
            else:
                _settle(batch, None)
                last_moment = time.monotonic() + _AFTER_ANSWER_MS / 2000
        lane.writing = None

    def _is_too_old(self, line: Outgoing) -> bool:
        return self._clock.earliest_ms() - line.since_ms >= self._limits.outbox_ms

    async def _bury(self, key: _Key, lane: _Lane, line: Outgoing, why: str) -> None:
        now_ms = self._clock.now_ms()
        await self._store.bury(lane.claim, line, why, now_ms, await self._forget_ms(key, now_ms))
        faults.point("outbox.buried")
        _log.warning("an event is a dead letter", namespace=key[0], sink=key[1], position=line.position, error=why)

    async def _forget_ms(self, key: _Key, now_ms: int) -> int:
        """Until when a dead letter is kept."""
        namespace = await self._store.get_namespace(key[0])
        return now_ms + (namespace.retention_ms or self._limits.retention_ms)

    async def _leave_alone(self, key: _Key, lane: _Lane, line: Outgoing, why: str, failures: int) -> None:
        """The sink cannot be reached. Of many that find out at the same time the first one counts."""
        trouble = self._troubles.setdefault(key, _Trouble())
        if trouble.failures <= failures:
            trouble.failures = failures + 1
            pause_ms = _by_chance(_FIRST_PAUSE_MS, failures, _LONGEST_PAUSE_MS)
            trouble.until_ms = self._clock.now_ms() + pause_ms
            _log.info("a sink is left alone", namespace=key[0], sink=key[1], pause_ms=pause_ms, error=why)
        now_ms = self._clock.latest_ms()
        await self._store.put_off(lane.claim, line, max(trouble.until_ms, now_ms), why, now_ms)
        faults.point("outbox.put_off")
        # What waits behind this one would never be tried while nothing can be.
        now_ms = self._clock.earliest_ms()
        before_ms, old = now_ms - self._limits.outbox_ms, f"{why}, and so for too long"
        forget_ms = await self._forget_ms(key, now_ms)
        most = self._limits.buried_events
        while count := await self._store.bury_old(*key, before_ms, old, now_ms, forget_ms, most):
            _log.warning("events are dead letters", namespace=key[0], sink=key[1], count=count, error=old)
            if count < most:
                break


def _by_chance(first_ms: int, times: int, longest_ms: int) -> int:
    """How long to wait after so many times before."""
    whole_ms = min(first_ms << min(times, 30), longest_ms)
    return round(whole_ms * random.uniform(0.5, 1.0))


def _settle(batch: list[tuple[Outgoing, asyncio.Future[None]]], error: BaseException | None) -> None:
    for _, done in batch:
        if not done.done():
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)
