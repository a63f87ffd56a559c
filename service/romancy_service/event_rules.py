"""Event rules: starts the workflows that events are to start.

An event starts under a request id made of its position and of the rule, and under a workflow id made of its source and
id. So it does not matter how often, or by how many replicas, this is tried. What became of it is noted in the
transaction that closes the event, of which there is one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from romancy.v1.workflow_service_pb2 import ID_REUSE_POLICY_REJECT, StartWorkflowRequest

from romancy_service.clock import Clock
from romancy_service.core.event_rule import EventRuleRecord, spec_for, workflow_id_of
from romancy_service.core.limits import Limits
from romancy_service.core.own import own_request_id
from romancy_service.errors import (
    BatchRejected,
    InternalError,
    RomancyError,
    StoreUnavailable,
    TooMuchContention,
    WorkflowAlreadyOpen,
    WorkflowIdUsed,
)
from romancy_service.starter import Starter
from romancy_service.store.event_rules import Outcome
from romancy_service.store.events import OpenEvent
from romancy_service.store.store import Store

_log = structlog.get_logger("romancy.event_rules")

AT_ONCE: Final = 32
"""So many starts of one type of events are under way at a time: each looks first whether its id was used."""
SLACK_MS: Final = 3_000
"""So much later than an event may somebody seem to have asked for it who did so before it: two clocks are compared."""
_TRIES: Final = 3
"""So often, a second apart, may a start fail for no reason that it gives until it is given up."""
_FAILURES: Final = 10_000
"""Of so many starts is it remembered that they failed."""
_ERROR_CHARACTERS: Final = 400
"""So much is kept of why a start was refused."""


class EventRules:
    """Carries out what rules say."""

    def __init__(self, store: Store, clock: Clock, starter: Starter, limits: Limits) -> None:
        self._store = store
        self._clock = clock
        self._starter = starter
        self._limits = limits
        self._failures: dict[tuple[str, int], int] = {}
        """How often the starts of rules, by their uids, for events failed, for no reason that they gave."""

    async def start(self, namespace: str, event_type: str, events: Sequence[OpenEvent]) -> dict[int, Outcome]:
        """Start all that these events are to start. By position: what became of those that some rule wants.

        Raises StoreUnavailable or TooMuchContention if something is not started yet.
        """
        rules = await self._store.active_event_rules(namespace, event_type) if events else []
        outcomes: dict[int, Outcome] = {}
        places = asyncio.Semaphore(AT_ONCE)

        async def start(rule: EventRuleRecord, event: OpenEvent) -> None:
            async with places:
                await self._start(rule, event, outcomes.setdefault(event.position, Outcome()))

        starts = [
            start(rule, event)
            for event in events
            for rule in rules
            if rule.since_ms <= event.accepted_ms + SLACK_MS and _wants(rule, event)
        ]
        for error in await asyncio.gather(*starts, return_exceptions=True):
            if error is not None:
                raise error
        return outcomes

    async def _start(self, rule: EventRuleRecord, event: OpenEvent, outcome: Outcome) -> None:
        request = StartWorkflowRequest(
            workflow_id=workflow_id_of(rule.rule_id, event.event, self._limits),
            spec=spec_for(rule, event.event),
            request_id=own_request_id("rule", rule.uid, event.position),
            id_reuse_policy=ID_REUSE_POLICY_REJECT,
        )
        try:
            await self._starter.start(rule.namespace, request, f"event rule {rule.rule_id}")
        except (StoreUnavailable, TooMuchContention):
            raise
        except (WorkflowAlreadyOpen, WorkflowIdUsed):
            outcome.skipped.append(rule.uid)
        except (InternalError, BatchRejected) as error:
            if self._may_pass(rule, event):
                raise
            await self._fail(rule, event, outcome, error)
        except RomancyError as error:
            await self._fail(rule, event, outcome, error)
        else:
            outcome.started.append(rule.uid)
        self._failures.pop((rule.uid, event.position), None)

    def _may_pass(self, rule: EventRuleRecord, event: OpenEvent) -> bool:
        """Whether a start that failed, for no reason that it gave, is worth to try again."""
        which = rule.uid, event.position
        if len(self._failures) > _FAILURES:
            self._failures.clear()
        self._failures[which] = self._failures.get(which, 0) + 1
        return self._failures[which] < _TRIES

    async def _fail(self, rule: EventRuleRecord, event: OpenEvent, outcome: Outcome, error: Exception) -> None:
        _log.error("start refused", namespace=rule.namespace, rule_id=rule.rule_id, error=str(error))
        text = f"{event.event.source} {event.event.id}: {error}"[:_ERROR_CHARACTERS]
        await self._store.note_failed_start(rule.uid, text, self._clock.now_ms())
        outcome.failed.append(rule.uid)


def _wants(rule: EventRuleRecord, event: OpenEvent) -> bool:
    """As `EventRuleRecord.wants`. What cannot be read for one rule must not hold up the others, nor other events."""
    try:
        return rule.wants(event.event)
    except Exception:
        _log.exception("an event is kept from a rule that may want it", rule_id=rule.rule_id, position=event.position)
        return False
