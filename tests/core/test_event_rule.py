"""Event rules: which events start a workflow, under which id, and what may be asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.event_rule_pb2 import EventRule
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import WorkflowSpec

from romancy_service.core.event_rule import (
    EventRuleRecord,
    check_event_rule,
    check_rule_id,
    spec_for,
    workflow_id_of,
)
from romancy_service.core.limits import Limits
from romancy_service.errors import InvalidField
from tests.core.test_subscription import an_event

LIMITS = Limits()
SPEC = WorkflowSpec(workflow_type="order")


def a_rule(event_type: str = "paid", **where: str) -> EventRule:
    wanted = {path.replace("__", "."): value for path, value in where.items()}
    return EventRule(event_type=event_type, where=wanted, workflow=SPEC)


def a_record(rule: EventRule) -> EventRuleRecord:
    return EventRuleRecord("default", "ship", "uid", rule, 0, 0, 0)


def named(source: str, event_id: str) -> CloudEvent:
    return CloudEvent(source=source, id=event_id, spec_version="1.0", type="paid")


def test_the_workflow_is_named_for_the_rule_and_the_event() -> None:
    assert workflow_id_of("ship", named("/bank", "tx-1"), LIMITS) == "ship#/bank#tx-1"


def test_what_does_not_fit_into_an_id_or_would_be_ambiguous_is_hashed() -> None:
    for event in (named("/bank#1", "2"), named("/" + "x" * 200, "y" * 60)):
        workflow_id = workflow_id_of("ship", event, LIMITS)
        assert len(workflow_id) == len("ship#") + 32
        assert workflow_id == workflow_id_of("ship", event, LIMITS)


_TEXT = st.text(st.sampled_from("#a/"), min_size=1, max_size=4) | st.text(
    st.sampled_from("#a"), min_size=120, max_size=255
)


@given(
    st.tuples(st.sampled_from(["a", "a/", "aa"]), _TEXT, _TEXT),
    st.tuples(st.sampled_from(["a", "a/", "aa"]), _TEXT, _TEXT),
)
def test_different_events_and_rules_never_share_a_workflow_id(
    one: tuple[str, str, str], two: tuple[str, str, str]
) -> None:
    ids = [workflow_id_of(rule, named(source, event_id), LIMITS) for rule, source, event_id in (one, two)]
    assert (ids[0] == ids[1]) == (one == two)
    assert all(len(each.encode()) <= LIMITS.id_bytes for each in ids)


def test_a_rule_wants_the_events_that_have_its_values() -> None:
    record = a_record(a_rule(data__order="7", subject='"vip"'))
    assert record.wants(an_event(data='{"order": 7.0}', subject="vip"))
    assert not record.wants(an_event(data='{"order": 8}', subject="vip"))
    assert not record.wants(an_event(data='{"order": 7}'))
    assert a_record(a_rule()).wants(an_event())


def test_the_event_is_the_first_argument_and_the_runs_are_found_by_the_rule() -> None:
    rule = a_rule()
    rule.workflow.arguments.append(Payload(json="2"))
    event = an_event(data='{"order": 7}')
    spec = spec_for(a_record(rule), event)
    assert dict(spec.arguments[0].metadata) == {"encoding": "protobuf", "type": "romancy.v1.CloudEvent"}
    assert CloudEvent.FromString(spec.arguments[0].binary) == event
    assert [each.json for each in spec.arguments[1:]] == ["2"]
    assert spec.attributes["romancy.event_rule"].text == "ship"
    assert len(rule.workflow.arguments) == 1, "the rule itself is as it was"


@pytest.mark.parametrize(
    ("rule_id", "problem"), [("", "is empty"), ("a#b", "has a '#'"), ("x" * 201, "has 201 bytes"), ("a\n", "control")]
)
def test_names_of_rules_that_workflow_ids_could_not_begin_with_are_refused(rule_id: str, problem: str) -> None:
    with pytest.raises(InvalidField, match=problem) as refused:
        check_rule_id(rule_id, LIMITS)
    assert refused.value.field == "rule_id"


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        (EventRule(workflow=SPEC), "rule.event_type"),
        (EventRule(event_type="x" * 256, workflow=SPEC), "rule.event_type"),
        (EventRule(event_type="paid"), "rule.workflow.workflow_type"),
        (a_rule(Subject='"x"'), "rule.where"),
        (a_rule(data__order="[7]"), "rule.where['data.order']"),
        (a_rule(**{f"a{number}": "1" for number in range(9)}), "rule.where"),
        (
            EventRule(
                event_type="paid",
                workflow=WorkflowSpec(workflow_type="order", arguments=[Payload(json=f'"{"x" * 2**20}"')] * 2),
            ),
            "rule.workflow.arguments",
        ),
    ],
)
def test_rules_that_could_start_nothing_are_refused(rule: EventRule, field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        check_event_rule("rule", rule, LIMITS)
    assert refused.value.field == field


def test_the_service_needs_one_attribute_for_itself() -> None:
    rule = a_rule()
    for number in range(LIMITS.attributes):
        rule.workflow.attributes[f"a{number}"].integer = number
    with pytest.raises(InvalidField, match="at most 31"):
        check_event_rule("rule", rule, LIMITS)
