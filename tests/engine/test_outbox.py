"""The outbox part alone: how often a sink is tried that is away, and what a bad moment of ours costs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage
from sqlalchemy import text

from romancy.v1.event_pb2 import CloudEvent

from romancy_service.core.destinations import Destinations
from romancy_service.core.limits import Limits
from romancy_service.core.sink import Verdict
from romancy_service.core.task import NEVER_MS
from romancy_service.errors import StoreUnavailable
from romancy_service.outbox import Outbox
from romancy_service.store.sinks import SinkRow
from romancy_service.store.store import Request, Store
from romancy_service.webhook import Answer, Webhooks

T0 = 1_700_000_000_000
WORKFLOWS = 10_000
LIMITS = Limits()
AWAY = Answer(Verdict.LATER, "away", unreachable=True)
TAKEN = Answer(Verdict.DELIVERED)


class _Clock:
    """A test moves it."""

    def __init__(self) -> None:
        self.ms = T0

    def now_ms(self) -> int:
        return self.ms

    earliest_ms = latest_ms = now_ms

    def certain(self) -> bool:
        return True


class _Sinks(Webhooks):
    """Answers as it is told, and counts. Those that are busy answer when they are let."""

    def __init__(self) -> None:
        super().__init__(Destinations(), LIMITS)
        self.answer = AWAY
        self.tried: Counter[str] = Counter()
        """By URL."""
        self.let = asyncio.Event()
        self.begun_before_near = 0
        """The most that a busy sink had got when another one got its event."""

    async def post(self, url: str, message: HTTPMessage, headers: Mapping[str, str], now_ms: int) -> Answer:
        self.tried[url] += 1
        if "busy" in url:
            await self.let.wait()
        elif self.tried[url] == 1:
            self.begun_before_near = max(self.tried["http://busy-1/"], self.tried["http://busy-2/"])
        return self.answer if url == "http://away/" else TAKEN


async def fill(store: Store, sink: str, workflows: int, namespace: str = "default") -> None:
    """So many workflows sent one event each."""
    event = CloudEvent(id="1", source="/", spec_version="1.0", type="sent").SerializeToString().hex()
    blob = f"decode('{event}', 'hex')" if "Postgres" in type(store).__name__ else f"x'{event}'"
    numbers = f"with recursive n(n) as (select 1 union all select n + 1 from n where n < {workflows})"
    columns = "namespace, workflow_id, sink, run_id, event, since_ms, waiting, attempts, error, dead_ms, forget_ms"
    values = f"'{namespace}', 'order-' || n, '{sink}', 'run', {blob}, {T0}, true, 0, '', 0, 0"
    await store._write(text(f"insert into outbox ({columns}) {numbers} select {values} from n returning 1"))
    columns = "namespace, sink, workflow_id, version, due_ms, claim, attempts, error"
    values = f"'{namespace}', '{sink}', 'order-' || n, 1, {T0}, '', 0, ''"
    await store._write(text(f"insert into outbox_lines ({columns}) {numbers} select {values} from n returning 1"))
    await store.set_sink(SinkRow(sink, f"http://{sink}/", "", "", 0, T0), Request(namespace, sink, "", "SetSink", b""))


@asynccontextmanager
async def delivering(store: Store, clock: _Clock, sinks: _Sinks, limits: Limits = LIMITS) -> AsyncIterator[Outbox]:
    outbox = Outbox(store, clock, sinks, limits)
    running = asyncio.create_task(outbox.run())
    outbox.look_now()
    try:
        yield outbox
    finally:
        await outbox.drained()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def until(condition: Callable[[], Any], what: str) -> None:
    try:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 - as the tests of the service wait
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"{what}: not in time") from None


async def test_a_sink_that_is_away_is_tried_rarely_whatever_waits_for_it_and_others_go_on(store: Store) -> None:
    await fill(store, "away", WORKFLOWS)
    await fill(store, "near", 30)
    clock, sinks = _Clock(), _Sinks()
    async with delivering(store, clock, sinks) as outbox:
        await until(lambda: sinks.tried["http://near/"] == 30, "the other sink has everything")
        await until(lambda: not outbox._lanes, "all rest")
        first = sinks.tried["http://away/"]
        assert 1 <= first <= LIMITS.sink_requests
        for number in range(1, 11):
            clock.ms += 31_000
            outbox.look_now()
            await until(lambda: sinks.tried["http://away/"] >= first + number, "it is tried again")  # noqa: B023
            await until(lambda: not outbox._lanes, "all rest")
            assert sinks.tried["http://away/"] == first + number, "with one event after each pause"
        sinks.answer = TAKEN
        clock.ms += 31_000
        outbox.look_now()
        await until(lambda: sinks.tried["http://away/"] >= first + 10 + 200, "it gets everything now")
    assert (await store.count_outbox("default", "near")).waiting == 0


async def test_a_database_that_is_away_for_a_moment_costs_no_event(store: Store) -> None:
    await fill(store, "near", 40)
    clock, sinks = _Clock(), _Sinks()
    broken = 3
    take = store.take_delivered

    async def sometimes(*arguments: Any) -> None:
        nonlocal broken
        if broken:
            broken -= 1
            raise StoreUnavailable("away")
        await take(*arguments)

    store.take_delivered = sometimes  # type: ignore[assignment, method-assign]
    async with delivering(store, clock, sinks) as outbox:
        await until(lambda: sinks.tried["http://near/"] >= 40 and not outbox._lanes, "all is delivered")
    assert broken == 0
    assert sinks.tried["http://near/"] == 40, "and once"
    assert (await store.count_outbox("default", "near")).waiting == 0


FEW_LANES = replace(LIMITS, sink_lanes=2, sink_lanes_of_namespace=2, sink_requests=2, sink_turn=4)


async def test_more_busy_sinks_than_lanes_take_turns(store: Store) -> None:
    await fill(store, "busy-1", 50)
    await fill(store, "busy-2", 50)
    clock, sinks = _Clock(), _Sinks()
    async with delivering(store, clock, sinks, FEW_LANES) as outbox:
        await until(lambda: len(outbox._lanes) == 2, "both are busy")
        await fill(store, "near", 1)
        outbox.look_now()
        await until(lambda: ("default", "near") in outbox._waiting, "a third one waits")
        sinks.let.set()
        await until(lambda: sinks.tried["http://near/"] == 1, "it has its event")
        assert sinks.begun_before_near < 50, "it did not wait until one of them had everything"
        await until(lambda: sinks.tried.total() == 101 and not outbox._lanes, "the others have everything")
    assert not outbox._lanes_of


async def test_a_namespace_whose_sinks_are_slow_leaves_lanes_to_others(store: Store) -> None:
    await fill(store, "busy-1", 5)
    await fill(store, "busy-2", 5)
    await fill(store, "near", 1, namespace="another")
    clock, sinks = _Clock(), _Sinks()
    async with delivering(store, clock, sinks, replace(FEW_LANES, sink_lanes_of_namespace=1)) as outbox:
        await until(lambda: sinks.tried["http://near/"] == 1, "the other namespace has its event")
        assert sinks.begun_before_near <= FEW_LANES.sink_requests
        assert 0 in (sinks.tried["http://busy-1/"], sinks.tried["http://busy-2/"])
        sinks.let.set()
        await until(lambda: sinks.tried.total() == 11 and not outbox._lanes, "the others have everything")


async def test_what_was_claimed_too_long_ago_is_free_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(store, "near", 3)
    clock, sinks = _Clock(), _Sinks()
    stood_still_s = 0.0
    monkeypatch.setattr("romancy_service.outbox.time", SimpleNamespace(monotonic=lambda: monotonic() + stood_still_s))
    get_sink = store.get_sink

    async def slowly(namespace: str, name: str) -> SinkRow | None:
        nonlocal stood_still_s
        stood_still_s = 10.0  # once: from then on it passes as ever
        return await get_sink(namespace, name)

    store.get_sink = slowly  # type: ignore[method-assign]
    async with delivering(store, clock, sinks):
        await until(lambda: sinks.tried["http://near/"] == 3, "the lines are claimed again while the clock stands")


async def test_a_burst_leaves_nothing_behind_that_what_comes_after_it_has_to_pass(store: Store) -> None:
    await fill(store, "near", 500)
    clock, sinks = _Clock(), _Sinks()
    async with delivering(store, clock, sinks) as outbox:
        await until(lambda: sinks.tried["http://near/"] == 500 and not outbox._lanes, "all is delivered")
    assert await store.sinks_with_work(NEVER_MS, 10) == []


async def test_what_goes_wrong_while_an_event_is_sent_counts_as_a_try_and_says_so(store: Store) -> None:
    await fill(store, "near", 1)
    clock, sinks = _Clock(), _Sinks()

    async def broken(*_: object) -> Answer:
        sinks.tried["broken"] += 1
        raise LookupError("no\0 such\udc80 thing")

    sinks.post = broken  # type: ignore[assignment, method-assign]
    async with delivering(store, clock, sinks) as outbox:
        await until(lambda: sinks.tried["broken"] == 1 and not outbox._lanes, "it was tried")
        (waits,) = await store.list_outbox("default", dead=False, sink="near", workflow_id="", after=0, limit=9)
        assert (waits.attempts, waits.error) == (1, "LookupError: no such\\udc80 thing")
        clock.ms += LIMITS.outbox_ms
        outbox.look_now()
        await until(lambda: sinks.tried["broken"] == 2 and not outbox._lanes, "it was tried for the last time")
    assert (await store.count_outbox("default", "near")).dead == 1


async def test_what_is_under_way_is_finished_before_the_service_stops(store: Store) -> None:
    await fill(store, "near", 3)
    clock, sinks = _Clock(), _Sinks()
    let_go = asyncio.Event()
    post = sinks.post

    async def slowly(*arguments: Any) -> Answer:
        await let_go.wait()
        return await post(*arguments)

    sinks.post = slowly  # type: ignore[assignment, method-assign]
    outbox = Outbox(store, clock, sinks, LIMITS)
    running = asyncio.create_task(outbox.run())
    outbox.look_now()
    await until(lambda: outbox._lanes and any(len(lane.trying) == 3 for lane in outbox._lanes.values()), "all are sent")
    drained = asyncio.create_task(outbox.drained())
    await asyncio.sleep(0)
    assert not drained.done()
    let_go.set()
    await drained
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert (await store.count_outbox("default", "near")).waiting == 0
