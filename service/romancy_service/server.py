"""Server: builds everything, runs it in one task group, and stops it in order."""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

import structlog

from romancy.v1.activity_service_pb2_grpc import add_ActivityServiceServicer_to_server
from romancy.v1.admin_service_pb2_grpc import add_AdminServiceServicer_to_server
from romancy.v1.channel_service_pb2_grpc import add_ChannelServiceServicer_to_server
from romancy.v1.event_service_pb2_grpc import add_EventServiceServicer_to_server
from romancy.v1.outbox_service_pb2_grpc import add_OutboxServiceServicer_to_server
from romancy.v1.schedule_service_pb2_grpc import add_ScheduleServiceServicer_to_server
from romancy.v1.worker_service_pb2_grpc import add_WorkerServiceServicer_to_server
from romancy.v1.workflow_service_pb2_grpc import add_WorkflowServiceServicer_to_server

from romancy_service.clock import Clock, DatabaseClock
from romancy_service.config import Config
from romancy_service.courier import Courier
from romancy_service.dispatch import Dispatch
from romancy_service.engine import Engine
from romancy_service.errors import StoreUnavailable
from romancy_service.event_rules import EventRules
from romancy_service.heartbeats import Heartbeats
from romancy_service.http.edge import HttpEdge
from romancy_service.http.event_path import EventPath
from romancy_service.lobby import Lobby
from romancy_service.lookout import Lookout
from romancy_service.node import Node
from romancy_service.outbox import Outbox
from romancy_service.postman import Postman
from romancy_service.publisher import Publisher
from romancy_service.queries import Queries
from romancy_service.relay import Relay
from romancy_service.results import Results
from romancy_service.retention import Retention
from romancy_service.rpc.activity_service import ActivityService
from romancy_service.rpc.admin_service import AdminService
from romancy_service.rpc.channel_service import ChannelService
from romancy_service.rpc.edge import Edge
from romancy_service.rpc.event_service import EventService
from romancy_service.rpc.outbox_service import OutboxService
from romancy_service.rpc.schedule_service import ScheduleService
from romancy_service.rpc.worker_service import WorkerService
from romancy_service.rpc.workflow_service import WorkflowService
from romancy_service.schedules import Schedules
from romancy_service.starter import Starter
from romancy_service.store.store import Store, open_store
from romancy_service.tokens import Tokens
from romancy_service.updates import Updates
from romancy_service.webhook import Webhooks

_log = structlog.get_logger("romancy.server")

BEAT_S = 2.5
"""How often a replica says that it is alive."""
SYNC_S = 5.0
"""How often the clock is compared with the database's: 5 s of drift are a millisecond."""
ANSWER_S = 5.0
"""A database that does not answer a beat within this is away."""


class PartFailed(Exception):
    """A part of the service failed; the log says why. The process ends with exit code 1, to be started again."""


@dataclass(slots=True)
class Running:
    """A service that is up."""

    node: Node
    lobby: Lobby
    relay: Relay
    schedules: Schedules
    outbox: Outbox
    retention: Retention
    port: int
    """Where it listens, also when the configuration said 0."""
    http_port: int
    """Where it listens for HTTP; 0: nowhere."""
    broken: asyncio.Future[None]
    """Fails when a part of the service does: it cannot go on."""

    async def time_moved(self) -> None:
        """A test moved the clock: keep the leases of who is connected, and look at once for what has become due."""
        await self.lobby.renew()
        self.relay.look_now(whole=True)
        self.node.dispatch.look_now()
        await self.schedules.look(whole=True)
        self.outbox.look_now()
        self.retention.look_now()


async def serve(config: Config) -> None:
    """Run the service until SIGTERM or SIGINT, then drain and return."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(config) as service:
        _collect_garbage_rarely()
        _log.info("serving", replica_id=service.node.replica_id, **_addresses(config, service))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((stopping, service.broken), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        _log.info("draining")
    _log.info("stopped")
    if service.broken.done():
        service.broken.result()


def _addresses(config: Config, service: Running) -> dict[str, str]:
    addresses = {"address": str(replace(config.listen, port=service.port))}
    if config.http is not None:
        addresses["http"] = str(replace(config.http, port=service.http_port))
    return addresses


def _collect_garbage_rarely() -> None:
    """What is there by now stays; and nearly all that comes and goes is freed without the collector's help.

    Statements of lists are not, and everything waits while it frees these: 53 ms with 50,000 objects at a time, 9 now.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 100, 50)


@asynccontextmanager
async def running(
    config: Config, make_clock: Callable[[Callable[[], Awaitable[int]]], Clock] = DatabaseClock
) -> AsyncIterator[Running]:
    """A service that is up inside the block, and drained and gone after it."""
    # What is wrong with the options shows before the database is touched.
    store = open_store(config.database)
    edges = _Edges(Edge(config), None if config.http is None else HttpEdge(config))
    try:
        await edges.bind()
        await store.open()
        clock = make_clock(store.now_ms)
        if isinstance(clock, DatabaseClock):
            await clock.sync()
        async with _parts(config, edges, store, clock) as service:
            yield service
    finally:
        await edges.stop(0)
        await store.close()


@dataclass(frozen=True, slots=True)
class _Edges:
    """All that callers can connect to, as one."""

    grpc: Edge
    http: HttpEdge | None

    @property
    def _all(self) -> Sequence[Edge | HttpEdge]:
        return (self.grpc,) if self.http is None else (self.grpc, self.http)

    async def bind(self) -> None:
        """Take the addresses. Raises CannotListen."""
        for each in self._all:
            await each.bind()

    async def start(self) -> None:
        """Serve."""
        for each in self._all:
            await each.start()

    async def serves(self, able: bool) -> None:
        """Whether calls can be answered now."""
        for each in self._all:
            await each.serves(able)

    async def not_serving(self) -> None:
        """Nobody is to be sent here any more."""
        for each in self._all:
            await each.not_serving()

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, and end those in flight after `grace_s`."""
        await asyncio.gather(*(each.stop(grace_s) for each in self._all))


@asynccontextmanager
async def _parts(config: Config, edges: _Edges, store: Store, clock: Clock) -> AsyncIterator[Running]:
    limits, edge = config.limits, edges.grpc
    replica_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    keys = await store.signing_keys()
    tokens = Tokens(dict(keys), newest=keys[0][0])
    engine: Engine
    dispatch = Dispatch(store, clock, tokens, lambda run_id: engine.cached(run_id))
    engine = Engine(store, clock, limits, dispatch)
    heartbeats, results = Heartbeats(store, clock), Results(store)
    queries, updates = Queries(store, clock, dispatch, results, limits), Updates(store, results, limits)
    node = Node(replica_id, store, clock, limits, tokens, engine, dispatch, heartbeats, results, queries, updates)
    starter = Starter(engine, store)
    rules = EventRules(store, clock, starter, limits)
    publisher = Publisher(store, clock, Postman(store, engine, limits), rules, limits)
    courier = Courier(store, clock, engine, starter, publisher)
    relay = Relay(store, clock, engine, courier, limits.session_lease_ms)
    schedules = Schedules(store, clock, engine, results)
    outbox = Outbox(store, clock, Webhooks(config.destinations, limits), limits)
    retention = Retention(store, clock, limits)
    lookout = Lookout(store, clock, engine, dispatch, relay, publisher, outbox, schedules, queries)
    lobby = Lobby(node, relay.saw_end)
    engine.observe(results.observe)
    engine.doubt(results.doubt)
    engine.observe(relay.observe)
    engine.observe(courier.observe)
    engine.observe(publisher.observe)
    engine.observe(outbox.observe)
    peers = _Peers(node, relay, schedules, publisher, outbox, retention, edges.serves)
    await peers.beat()

    add_WorkflowServiceServicer_to_server(WorkflowService(node), edge.server)
    add_ScheduleServiceServicer_to_server(ScheduleService(node, schedules), edge.server)
    add_WorkerServiceServicer_to_server(WorkerService(node, lobby, limits), edge.server)
    add_EventServiceServicer_to_server(EventService(node, publisher), edge.server)
    add_ChannelServiceServicer_to_server(ChannelService(node, publisher), edge.server)
    add_ActivityServiceServicer_to_server(ActivityService(node), edge.server)
    add_OutboxServiceServicer_to_server(OutboxService(node, outbox, config.destinations), edge.server)
    add_AdminServiceServicer_to_server(AdminService(node), edge.server)
    if edges.http is not None:
        edges.http.answer(EventPath(publisher, limits).publish)

    tasks = [
        asyncio.create_task(work, name=name)
        for name, work in (
            ("engine", engine.run()),
            ("dispatch", dispatch.run()),
            ("relay", relay.run()),
            ("courier", courier.run()),
            ("schedules", schedules.run()),
            ("publisher", publisher.run()),
            ("outbox", outbox.run()),
            ("retention", retention.run()),
            ("heartbeats", heartbeats.run()),
            ("results", results.run()),
            ("queries", queries.run()),
            ("lobby", lobby.run()),
            ("lookout", lookout.run()),
            ("peers", peers.run()),
        )
    ]
    broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    for task in tasks:
        task.add_done_callback(partial(_note_failure, broken))
    await edges.start()
    http_port = 0 if edges.http is None else edges.http.port
    try:
        yield Running(node, lobby, relay, schedules, outbox, retention, edge.port, http_port, broken)
    finally:
        await _drain(edges, node, lobby, outbox, config)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await peers.leave()


def _note_failure(broken: asyncio.Future[None], task: asyncio.Task[None]) -> None:
    """A part that ends by itself is a bug; the service must not go on without it."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.critical("a part of the service failed", part=task.get_name(), exc_info=error)
        if not broken.done():
            broken.set_exception(PartFailed(task.get_name()))


async def _drain(edges: _Edges, node: Node, lobby: Lobby, outbox: Outbox, config: Config) -> None:
    """Stop claiming first, so that what others recover is not claimed back; then finish what is under way."""
    lobby.start_drain()
    await edges.not_serving()
    try:
        async with asyncio.timeout(config.limits.drain_ms / 1000):
            await node.engine.drained()
            await outbox.drained()
    except TimeoutError:
        _log.warning("not everything that was under way is finished")
    node.results.start_drain()
    lobby.close_all()
    await edges.stop(config.limits.drain_ms / 1000)


class _Peers:
    """The other replicas on the same database: who is alive, and what they tell."""

    def __init__(
        self,
        node: Node,
        relay: Relay,
        schedules: Schedules,
        publisher: Publisher,
        outbox: Outbox,
        retention: Retention,
        serves: Callable[[bool], Awaitable[None]],
    ) -> None:
        self._node = node
        self._relay = relay
        self._schedules = schedules
        self._publisher = publisher
        self._outbox = outbox
        self._retention = retention
        self._serves = serves
        self._synced_at = 0.0

    async def beat(self) -> None:
        """Say that this replica is alive, and learn which are."""
        node = self._node
        alive = await node.store.beat(node.replica_id, node.clock.now_ms())
        for part in (self._relay, self._schedules, self._publisher):
            part.part, part.parts = alive.index(node.replica_id), len(alive)
        self._retention.lead(alive[0] == node.replica_id)
        node.dispatch.has_peers = node.results.has_peers = node.queries.has_peers = len(alive) > 1

    async def run(self) -> None:
        """Until cancelled."""
        node = self._node
        await node.store.listen(self._told)
        while True:
            await asyncio.sleep(BEAT_S)
            beat = asyncio.create_task(self._sync_and_beat())
            try:
                # One that does not answer is away too; it is asked no second time meanwhile.
                if not (await asyncio.wait((beat,), timeout=ANSWER_S))[0]:
                    await self._serves(False)
                await beat
            except StoreUnavailable as error:
                _log.warning("database unavailable", error=str(error))
                await self._serves(False)
            else:
                await self._serves(True)
            finally:
                beat.cancel()

    async def _sync_and_beat(self) -> None:
        now = time.monotonic()
        if isinstance(self._node.clock, DatabaseClock) and now - self._synced_at >= SYNC_S - BEAT_S / 2:
            await self._node.clock.sync()
            self._synced_at = now
        await self.beat()

    def _told(self, payload: str) -> None:
        self._node.dispatch.told(payload)
        self._node.results.told(payload)
        self._node.queries.told(payload)
        self._publisher.told(payload)
        self._outbox.told(payload)

    async def leave(self) -> None:
        """This replica stops."""
        try:
            await self._node.store.leave(self._node.replica_id)
        except StoreUnavailable as error:
            _log.warning("not signed off", error=str(error))
