"""Attributes: what a run was started with, what its code changes, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from romancy.v1.command_pb2 import Command, SetAttributes
from romancy.v1.workflow_pb2 import AttributeValue, TextList

from romancy_service.core.attributes import AttributeType, comparables
from romancy_service.core.run import Run
from tests.core.life import Life, complete


def text(value: str) -> AttributeValue:
    return AttributeValue(text=value)


def texts(*values: str) -> AttributeValue:
    return AttributeValue(texts=TextList(values=values))


def change(*unset: str, **values: AttributeValue) -> Command:
    """The command that sets and unsets attributes."""
    return Command(set_attributes=SetAttributes(set=values, unset=unset))


def shown(run: Run) -> dict[str, Any]:
    return {name: getattr(value, str(value.WhichOneof("value"))) for name, value in run.attributes.items()}


def test_a_run_begins_with_the_attributes_of_its_start() -> None:
    life = Life.begin(attributes={"customer": text("ada"), "total": AttributeValue(integer=7)})
    assert shown(life.run) == {"customer": "ada", "total": 7}


def test_code_sets_and_unsets_attributes_and_leaves_the_others() -> None:
    life = Life.begin(attributes={"customer": text("ada"), "stage": text("new")})
    life.code(change("customer", stage=text("paid"), urgent=AttributeValue(flag=True)))
    assert shown(life.run) == {"stage": "paid", "urgent": True}
    assert life.kinds() == ["workflow_started", "attributes_set"]


def test_unsetting_what_is_not_there_is_recorded_and_changes_nothing() -> None:
    life = Life.begin()
    life.code(change("customer"))
    assert not life.run.attributes
    assert life.kinds() == ["workflow_started", "attributes_set"]


def test_several_changes_in_one_task_are_one_net_change() -> None:
    life = Life.begin(attributes={"tags": texts("a", "b", "c")})
    task_commands = (
        change(tags=texts("x")),
        change("tags"),
        change(tags=texts("y", "z"), stage=text("s")),
        change("stage"),
    )
    life.code(*task_commands, complete())
    assert list(life.run.attributes["tags"].texts.values) == ["y", "z"]
    assert not life.run.set_attributes, "the commit is over"


def test_a_commit_knows_how_many_rows_each_changed_attribute_had() -> None:
    run = Run("default", "order-1", "run-1")
    run.set_attribute("tags", texts("a", "b", "a"))
    run.committed()
    run.set_attribute("tags", texts("x"))
    run.set_attribute("tags", None)
    run.set_attribute("other", None)
    run.set_attribute("new", text(""))
    assert run.set_attributes == {"tags": 2, "new": 0}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (change(), "sets and unsets nothing"),
        (change("a", a=text("x")), "names an attribute that is set too"),
        (change("\x00"), "control character"),
        (change(**{"": text("x")}), "is empty"),
        (change(a=AttributeValue()), "has no value"),
        (change(a=text("x" * 256)), "256 bytes, at most 255"),
        (change(a=text("\x00")), "control character"),
        (change(a=AttributeValue(number=float("nan"))), "give a finite number"),
        (change(a=AttributeValue(number=float("-inf"))), "give a finite number"),
        (change(a=AttributeValue(time=Timestamp(seconds=-(10**12)))), "no moment"),
        (change(a=texts()), "has 0 texts"),
        (change(a=texts(*map(str, range(33)))), "has 33 texts"),
        (change(a=texts("ok", "x" * 256)), "256 bytes"),
        (change(**{f"a{n}": text("x") for n in range(31)}), "33 entries, at most 32"),
        (
            change(**{f"a{n}": texts(*(f"{m:02}" + "x" * 250 for m in range(32))) for n in range(3)}),
            "bytes, at most 16384",
        ),
    ],
)
def test_a_change_that_cannot_be_is_refused_and_leaves_the_run_as_it_was(command: Command, message: str) -> None:
    life = Life.begin(attributes={"customer": text("ada")})
    reply = life.code(change(stage=text("paid")), command)
    assert reply.rejection is not None
    assert re.search(message, str(reply.rejection))
    assert str(reply.rejection).startswith("commands[1].set_attributes")
    assert shown(life.run) == {"customer": "ada"}


def test_the_limit_counts_all_that_the_run_has_after_the_change() -> None:
    life = Life.begin(attributes={f"a{n}": text("x") for n in range(32)})
    assert life.code(change(b=text("x"))).rejection is not None
    assert life.code(change("a0", b=text("x"))).rejection is None
    assert len(life.run.attributes) == 32


def test_values_are_compared_in_the_column_of_their_type() -> None:
    moment = Timestamp(seconds=-1, nanos=999_999_999)
    assert comparables(text("é")) == [(AttributeType.TEXT, "é", 0, 0.0)]
    assert comparables(AttributeValue(integer=-(2**63))) == [(AttributeType.INTEGER, "", -(2**63), 0.0)]
    assert comparables(AttributeValue(number=0.1)) == [(AttributeType.NUMBER, "", 0, 0.1)]
    assert comparables(AttributeValue(flag=False)) == [(AttributeType.FLAG, "", 0, 0.0)]
    assert comparables(AttributeValue(time=moment)) == [(AttributeType.TIME, "", -1, 0.0)]
    assert comparables(texts("b", "a", "b")) == [(AttributeType.TEXT, "b", 0, 0.0), (AttributeType.TEXT, "a", 0, 0.0)]
