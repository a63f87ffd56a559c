"""Lookout: asks the database, once a second, whether anything is to be done that nobody here was told of.

The backstop of all parts: what another replica left behind, what a lost notification said, what becomes due later than
anybody here remembers. One statement for all of them; only who has something to do asks for more. A replica that is
alone, and neither wrote nor found anything, asks half as often: what could have been left behind is its own.

Who looks by itself all the same: `results`, for runs that somebody waits for here, and only beside other replicas or
after a doubt; `retention`, whose work never hurries; `lobby` and `server` say who is alive rather than look for work.
What an event rule is to start is an open event until it is started; an attempt that left its worker is looked at when
it may time out, and is nobody's to lose or to stop.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog

from romancy_service.clock import Clock
from romancy_service.dispatch import Dispatch
from romancy_service.engine import Engine
from romancy_service.errors import StoreUnavailable
from romancy_service.outbox import Outbox
from romancy_service.publisher import Publisher
from romancy_service.queries import Queries
from romancy_service.relay import FROZEN_S, HORIZON_MS, Relay
from romancy_service.schedules import Schedules
from romancy_service.store.agenda import Agenda
from romancy_service.store.store import Store

_log = structlog.get_logger("romancy.lookout")

PACE_S: Final = 1.0
"""How often it is asked."""
IDLE_PACE_S: Final = 2.0
"""How often while there is nothing; HORIZON_MS is more, so no timer becomes due between two looks unnoticed."""


class Lookout:
    """Asks for all parts."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        engine: Engine,
        dispatch: Dispatch,
        relay: Relay,
        publisher: Publisher,
        outbox: Outbox,
        schedules: Schedules,
        queries: Queries,
    ) -> None:
        self._store = store
        self._clock = clock
        self._engine = engine
        self._dispatch = dispatch
        self._relay = relay
        self._publisher = publisher
        self._outbox = outbox
        self._schedules = schedules
        self._queries = queries
        self._commits = 0

    async def run(self) -> None:
        """Until cancelled."""
        pace_s = PACE_S
        while True:
            await asyncio.sleep(pace_s)
            pace_s = PACE_S
            asked = time.monotonic()
            try:
                agenda = await self._store.agenda(self._clock.earliest_ms(), self._dispatch.types())
            except StoreUnavailable as error:
                _log.warning("database unavailable", error=str(error))
                self._relay.distrust()
                continue
            if time.monotonic() - asked > FROZEN_S:
                self._relay.distrust()
            if not self._tell(agenda) and not self._dispatch.has_peers and self._engine.commits == self._commits:
                pace_s = IDLE_PACE_S
            self._commits = self._engine.commits

    def _tell(self, agenda: Agenda) -> bool:
        """Have the parts look that have something to do. Whether there are any."""
        soon_ms = self._clock.latest_ms() + HORIZON_MS
        relays = agenda.lost or agenda.task_ms <= soon_ms
        starts = agenda.schedule_ms <= soon_ms
        sends = agenda.outgoing_ms <= soon_ms
        if agenda.outgoing_ms <= self._clock.latest_ms():
            self._outbox.look_now()
        if relays:
            self._relay.look_now(whole=True)
        if starts:
            self._schedules.look_now()
        if agenda.events:
            self._publisher.look_now()
        if agenda.questions:
            self._queries.look_now()
        if agenda.waiting or agenda.cancelled:
            self._dispatch.noticed(agenda.waiting, cancelled=agenda.cancelled)
        return (
            relays or starts or sends or agenda.events or agenda.questions or agenda.cancelled or bool(agenda.waiting)
        )
