"""Event rules: workflows that the service starts when events come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from romancy.v1.event_rule_pb2 import EventRule

from romancy._checks import check_type, refuse_unknown
from romancy._spec import SpecOptions, check_spec, to_spec
from romancy.events import Event, EventCodec, Scalar, where_of
from romancy.workflow import WorkflowDefinition, definition_of


class EventRuleOptions(SpecOptions, total=False):
    """Which events start a workflow, and how that runs."""

    where: Mapping[str, Scalar]
    """Attributes, or fields of the data, and the values that they must have; all events of the type unless said."""
    request_id: str
    """The same one never undoes what was set since; without one, each call has its own."""


_PLACE: Final[Event[None]] = Event("", None, id="")
"""Stands for the event where the other arguments are looked at."""


def to_event_rule(event_type: str, workflow: Any, args: tuple[Any, ...], options: EventRuleOptions) -> EventRule:
    """What starts what, in the contract's form. Raises TypeError, ValueError and ConversionError."""
    refuse_unknown("set_event_rule", options, EventRuleOptions.__annotations__)
    check_type("event_type", event_type, str, 'a text, as "payment.completed"')
    check_type("request_id", options.get("request_id", ""), str, "a text")
    check_spec(options)
    definition = definition_of(workflow)
    if isinstance(definition, WorkflowDefinition):
        _check_takes_an_event(definition)
        args = (_PLACE, *args)
        spec = to_spec(workflow, args, options)
        del spec.arguments[0]
    else:
        spec = to_spec(workflow, args, options)
    return EventRule(event_type=event_type, where=where_of(options.get("where")), workflow=spec)


def _check_takes_an_event(definition: WorkflowDefinition[Any, Any]) -> None:
    first = next(iter(definition.codecs), None)
    if not isinstance(first, EventCodec):
        raise TypeError(
            f"{definition.name} gets the event as its first argument: annotate that as Event[...], as in "
            f"`async def {definition.name}(ctx: WorkflowContext, event: Event[Payment])`"
        )
