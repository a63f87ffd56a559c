"""Event rule: which events start which workflow, and under which id."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final

from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.event_rule_pb2 import EventRule
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import WorkflowSpec

from romancy_service.core.check import check_id, check_payloads
from romancy_service.core.limits import Limits
from romancy_service.core.spec import check_spec
from romancy_service.core.subscription import Content, check_wanted, topic_and_key
from romancy_service.errors import InvalidField

RULE: Final = "romancy.event_rule"
"""The attribute by which the runs of a rule are found."""
_BETWEEN: Final = "#"
"""Between the parts of a workflow id. Sources seldom have it; where one does the parts are hashed."""
_ID_BYTES: Final = 200
"""A rule's id: behind it a workflow id has 33 bytes at least."""
_HASH_DIGITS: Final = 32


@dataclass(slots=True)
class EventRuleRecord:
    """A rule with what became of it, as it is stored."""

    namespace: str
    rule_id: str
    uid: str
    """Tells it from rules of the same id that were deleted."""
    rule: EventRule
    since_ms: int
    """Events that came before are not for it."""
    create_ms: int
    update_ms: int
    paused: bool = False
    note: str = ""
    started_count: int = 0
    skipped_count: int = 0
    failed_count: int = 0
    start_ms: int = 0
    last_error: str = ""
    last_error_ms: int = 0

    def wants(self, event: CloudEvent) -> bool:
        """Whether an event of its type has the values that it asks for."""
        topic, key = topic_and_key(self.rule.event_type, self.rule.where)
        return Content(event).key(topic) == key


def check_rule_id(rule_id: str, limits: Limits) -> None:
    """Raise InvalidField for what is no name of a rule."""
    check_id("rule_id", rule_id, limits)
    if _BETWEEN in rule_id:
        raise InvalidField(
            "rule_id", f"has a {_BETWEEN!r}, which ends it in workflow ids", "leave it out", value=rule_id
        )
    if (size := len(rule_id.encode())) > _ID_BYTES:
        problem, remedy = f"has {size} bytes", f"give at most {_ID_BYTES}: workflow ids have the event behind it"
        raise InvalidField("rule_id", problem, remedy, value=size, limit=_ID_BYTES)


def check_event_rule(field: str, rule: EventRule, limits: Limits) -> None:
    """Raise InvalidField for what could start nothing."""
    check_wanted(field, rule.event_type, rule.where, limits)
    check_spec(f"{field}.workflow", rule.workflow, limits)
    # With the largest event they are still what one start may have.
    left = max(limits.payloads_bytes - limits.event_bytes, 0)
    at, arguments = f"{field}.workflow.arguments", rule.workflow.arguments
    check_payloads(at, arguments, replace(limits, payload_bytes=min(limits.payload_bytes, left), payloads_bytes=left))
    if len(rule.workflow.attributes) >= limits.attributes:
        problem, most = f"has {len(rule.workflow.attributes)} entries", limits.attributes - 1
        raise InvalidField(
            f"{field}.workflow.attributes", problem, f"give at most {most}: {RULE} comes on top", limit=most
        )


def workflow_id_of(rule_id: str, event: CloudEvent, limits: Limits) -> str:
    """The id of the workflow that the event starts: the same for the same event, another one for any other."""
    readable = _BETWEEN.join((rule_id, event.source, event.id))
    if _BETWEEN not in event.source and len(readable.encode()) <= limits.id_bytes:
        return readable
    digest = sha256(f"{event.source}\n{event.id}".encode()).hexdigest()
    return f"{rule_id}{_BETWEEN}{digest[:_HASH_DIGITS]}"


def spec_for(record: EventRuleRecord, event: CloudEvent) -> WorkflowSpec:
    """What the event starts: the event is the first argument, as any protobuf message would be."""
    spec = WorkflowSpec()
    spec.CopyFrom(record.rule.workflow)
    del spec.arguments[:]
    metadata = {"encoding": "protobuf", "type": event.DESCRIPTOR.full_name}
    spec.arguments.append(Payload(binary=event.SerializeToString(deterministic=True), metadata=metadata))
    spec.arguments.extend(record.rule.workflow.arguments)
    spec.attributes[RULE].text = record.rule_id
    return spec
