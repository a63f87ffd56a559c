"""Lobby: where sessions begin, come back and end."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import structlog

from romancy.v1.worker_service_pb2 import Hello, Welcome

from romancy_service.core.task import Fence
from romancy_service.core.times import duration
from romancy_service.core.triggers import LoseTask
from romancy_service.errors import Draining, SessionGone, SessionSuperseded, StoreUnavailable, TooManySessions
from romancy_service.node import Node
from romancy_service.sessions import Session, open_session
from romancy_service.store.presence import SessionRow
from romancy_service.store.store import LeasedRow

_log = structlog.get_logger("romancy.lobby")

MANY_AT_ONCE: Final = 3
"""When so many streams end within the grace the fault is taken to be ours: their sessions keep their whole lease."""


class Lobby:
    """Admits workers, keeps their leases alive, and decides how long one that is gone is waited for."""

    def __init__(self, node: Node, saw_end: Callable[[Session], None]) -> None:
        self._node = node
        self._saw_end = saw_end
        self._ended: deque[tuple[float, Session]] = deque(maxlen=MANY_AT_ONCE)
        self.draining = False

    async def admit(self, hello: Hello) -> tuple[Session, Welcome]:
        """A checked hello becomes a session, new or come back, that gets tasks from now on."""
        if self.draining:
            raise Draining()
        node, limits = self._node, self._node.limits
        if len(node.dispatch.sessions) >= limits.sessions:
            raise TooManySessions(limits.sessions)
        welcome = Welcome(
            heartbeat_interval=duration(limits.heartbeat_interval_ms),
            lease=duration(limits.session_lease_ms),
            max_payload_bytes=limits.payload_bytes,
            max_frame_bytes=limits.connect_message_bytes,
        )
        session = await self._come_back(hello) if hello.session_id else None
        if session is None:
            session = await self._begin(hello)
            session.disown(hello.tokens_in_hand)
        welcome.session_id = session.session_id
        node.dispatch.connect(session)
        _log.info("worker connected", worker_id=hello.worker_id, epoch=session.epoch, sdk=hello.sdk)
        return session, welcome

    async def _begin(self, hello: Hello) -> Session:
        node = self._node
        now_ms = node.clock.now_ms()
        row = SessionRow(
            session_id=secrets.token_urlsafe(24),
            namespace=hello.namespace,
            worker_id=hello.worker_id,
            replica_id=node.replica_id,
            epoch=1,
            lease_ms=now_ms + node.limits.session_lease_ms,
            connected=True,
            draining=False,
            start_ms=now_ms,
            hello=_without_secrets(hello),
        )
        await node.store.open_session(row)
        if hello.workflow_types:
            # It may bring code that is put right; nobody should wait for what the old code earned.
            await node.store.retry_failing(hello.namespace, hello.task_queues, hello.workflow_types, now_ms)
        return open_session(row.session_id, row.epoch, hello)

    async def _come_back(self, hello: Hello) -> Session | None:
        """The session as it was, under a new epoch; None if it is gone. An older stream of it ends."""
        node = self._node
        older = node.dispatch.sessions.get(hello.session_id)
        if older is not None and older.namespace == hello.namespace:
            node.dispatch.disconnect(older, SessionSuperseded())
        lease_ms = node.clock.now_ms() + node.limits.session_lease_ms
        epoch = await node.store.resume_session(
            hello.session_id, hello.namespace, node.replica_id, _without_secrets(hello), lease_ms
        )
        if epoch is None:
            return None
        session = open_session(hello.session_id, epoch, hello)
        in_hand = set(hello.tokens_in_hand)
        for row in await node.store.leased_tasks(hello.session_id, epoch):
            token = node.dispatch.token(row)
            node.dispatch.resume(session, row, running=token in in_hand)
            in_hand.discard(token)
        session.disown(in_hand)
        return session

    async def leave(self, session: Session, *, goodbye: bool) -> None:
        """Its stream ended. After a goodbye its tasks are free at once; else it may come back for a while."""
        node = self._node
        current = node.dispatch.sessions.get(session.session_id) is session
        node.dispatch.disconnect(session)
        # Not before: what it was asked would be asked of it again.
        node.queries.left(session)
        unsent = [
            LeasedRow(held.run_id, held.task_id, held.attempt, session.session_id, session.epoch)
            for token in session.unsent()
            if (held := session.in_hand.get(token)) is not None
        ]
        try:
            await node.dispatch.give_back(unsent)
            if goodbye:
                await self._free_tasks(session)
                await node.store.close_session(session.session_id, session.epoch, node.clock.now_ms())
                # A claim that was under way may have found something for it up to that moment.
                await self._free_tasks(session)
            elif current:
                await self._wait_for(session)
                self._saw_end(session)
        except StoreUnavailable as error:
            # The lease in the database runs out by itself.
            _log.warning("the end of a session was not written", error=str(error))
        _log.info("worker left", worker_id=session.hello.worker_id, goodbye=goodbye)

    async def _wait_for(self, session: Session) -> None:
        """It may come back: soon, or within its lease when many are gone, those that went first included."""
        node, now = self._node, time.monotonic()
        self._ended.append((now, session))
        grace_ms, lease_ms = node.limits.reconnect_grace_ms, node.limits.session_lease_ms
        many = len(self._ended) == MANY_AT_ONCE and now - self._ended[0][0] < grace_ms / 1000
        until_ms = node.clock.now_ms() + (lease_ms if many or self.draining else grace_ms)
        for _, gone in list(self._ended) if many else [(now, session)]:
            await node.store.disconnect_session(gone.session_id, gone.epoch, until_ms)

    async def _free_tasks(self, session: Session) -> None:
        """What it has in the database is lost if the worker ever had it, and else simply free."""
        node = self._node
        never_sent = []
        for row in await node.store.leased_tasks(session.session_id, session.epoch):
            token, task = node.dispatch.token(row), row.task
            if token in session.in_hand or token in session.reported:
                fence = Fence(task.task_id, task.attempt, session.session_id, session.epoch)
                node.engine.submit(row.run_id, LoseTask(fence)).add_done_callback(lambda lost: lost.exception())
            else:
                never_sent.append(LeasedRow(row.run_id, task.task_id, task.attempt, session.session_id, session.epoch))
        await node.dispatch.give_back(never_sent)

    async def run(self) -> None:
        """Renew the leases of all connected sessions, until cancelled."""
        while True:
            await asyncio.sleep(self._node.limits.heartbeat_interval_ms / 1000)
            await self.renew()

    async def renew(self) -> None:
        """Renew the leases of all connected sessions."""
        node = self._node
        connected = dict(node.dispatch.sessions)
        if not connected:
            return
        try:
            gone = await node.store.renew_sessions(
                [(session.session_id, session.epoch) for session in connected.values()],
                node.clock.now_ms() + node.limits.session_lease_ms,
                [session.session_id for session in connected.values() if session.draining],
            )
        except StoreUnavailable as error:
            _log.warning("leases not renewed", error=str(error), sessions=len(connected))
            return
        for session_id in gone:
            # It said hello to another replica, or was declared lost: its tasks are not ours to send any more. If it is
            # still there it must come back, for all that this replica knows.
            session = connected[session_id]
            if node.dispatch.sessions.get(session_id) is session:
                node.dispatch.disconnect(session, SessionGone())

    def start_drain(self) -> None:
        """Admit nobody, give no more tasks, and tell the workers."""
        self.draining = True
        self._node.dispatch.stop()
        for session in list(self._node.dispatch.sessions.values()):
            session.start_drain()

    def close_all(self) -> None:
        """End all streams: workers reconnect to whoever is there."""
        for session in list(self._node.dispatch.sessions.values()):
            self._node.dispatch.disconnect(session, Draining())


def _without_secrets(hello: Hello) -> bytes:
    kept = Hello()
    kept.CopyFrom(hello)
    kept.session_id = ""
    kept.ClearField("tokens_in_hand")
    return kept.SerializeToString()
