"""Attributes in the SDK: typed keys, what the code sets and reads, replay, and the example as it stands."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from romancy import Attribute, DefinitionError, Divergence, Worker, WorkflowContext, activity, testing, workflow
from tests.worker_sdk.driver import Driver
from tests.worker_sdk.test_cli import run_main

CUSTOMER = Attribute("customer", str)
TOTAL = Attribute("total", float)
COUNT = Attribute("count", int)
URGENT = Attribute("urgent", bool)
DUE = Attribute("due", datetime)
TAGS = Attribute("tags", list[str])


@activity
async def step() -> None:
    pass


@workflow
async def stages(ctx: WorkflowContext) -> list[Any]:
    ctx.set_attributes({CUSTOMER: "ada", TOTAL: 3})
    await step()
    ctx.set_attributes({CUSTOMER: None, TAGS: ["a", "b"]})
    ctx.set_attributes({})
    return [ctx.attribute(CUSTOMER), ctx.attribute(TOTAL), ctx.attribute(TAGS), ctx.attribute(COUNT)]


def test_code_reads_what_it_set_last_and_sends_each_change_once() -> None:
    run = Driver(stages)
    assert run.start() == ["set_attributes", "schedule_activity step:1"]
    sent = run.commands[0].set_attributes
    assert (sent.set["customer"].text, sent.set["total"].number, list(sent.unset)) == ("ada", 3.0, [])
    assert run.complete("step:1") == ["set_attributes", "complete_workflow"]
    assert list(run.commands[0].set_attributes.unset) == ["customer"]
    assert run.result() == [None, 3.0, ["a", "b"], None]


@pytest.mark.parametrize(
    ("now_set", "difference"),
    [
        ({TOTAL: 3.0}, "recorded SetAttributes customer, total, the code now asks for SetAttributes total"),
        ({CUSTOMER: None, TOTAL: 3.0}, "the code now asks for SetAttributes total, without customer"),
    ],
)
def test_other_attributes_than_recorded_are_a_divergence(now_set: dict[Attribute[Any], Any], difference: str) -> None:
    run = Driver(stages)
    run.start()

    @workflow(name="stages")
    async def changed(ctx: WorkflowContext) -> None:
        ctx.set_attributes(now_set)
        await step()

    again = Driver(changed).new_instance()
    with pytest.raises(Divergence, match=difference):
        again.activate(run.history())


def test_other_values_of_the_same_attributes_are_no_divergence() -> None:
    run = Driver(stages)
    run.start()

    @workflow(name="stages")
    async def changed(ctx: WorkflowContext) -> None:
        ctx.set_attributes({TOTAL: 4.0, CUSTOMER: "bob"})
        await step()

    assert not Driver(changed).new_instance().activate(run.history()).commands


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (CUSTOMER, "ädä"),
        (CUSTOMER, ""),
        (TOTAL, 1e300),
        (COUNT, -(2**63)),
        (URGENT, False),
        (DUE, datetime(2026, 1, 31, 12, 30, 1, 123456, tzinfo=UTC)),
        (TAGS, ["a", ""]),
    ],
)
def test_a_value_comes_back_as_it_was_given(key: Attribute[Any], value: Any) -> None:
    assert key.read({key.name: key.encode(value)}) == value


def test_a_time_of_another_zone_is_the_same_moment() -> None:
    there = datetime(2026, 1, 31, 14, tzinfo=timezone(timedelta(hours=2)))
    assert DUE.read({"due": DUE.encode(there)}) == datetime(2026, 1, 31, 12, tzinfo=UTC)


def test_a_value_of_another_type_is_not_read() -> None:
    assert CUSTOMER.read({"customer": Attribute("customer", int).encode(1)}) is None
    assert CUSTOMER.read({}) is None


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        (CUSTOMER, 1, TypeError, "attribute 'customer' is 1, but must be a text"),
        (TOTAL, True, TypeError, "attribute 'total' is True, but must be a number"),
        (TOTAL, float("nan"), ValueError, "but must be a number"),
        (TOTAL, float("inf"), ValueError, "but must be a number"),
        (COUNT, 1.0, TypeError, "but must be a whole number"),
        (COUNT, 2**63, ValueError, "but must be a whole number"),
        (URGENT, 1, TypeError, "but must be True or False"),
        (DUE, datetime(2026, 1, 31), ValueError, "but must be a datetime with a time zone"),  # noqa: DTZ001
        (TAGS, [], ValueError, "but must be a list of texts, at least one"),
        (TAGS, "ab", TypeError, "but must be a list of texts"),
        (TAGS, ["a", 1], ValueError, "but must be a list of texts"),
    ],
)
def test_a_value_that_is_not_of_the_keys_type_is_refused(
    key: Attribute[Any], value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        key.encode(value)


def test_a_key_of_no_known_type_is_refused_when_it_is_made() -> None:
    with pytest.raises(DefinitionError, match=r"can have str, int, float, bool, datetime or list\[str\]"):
        Attribute("a", bytes)  # type: ignore[type-var]
    with pytest.raises(DefinitionError, match="the name of an attribute is 1"):
        Attribute(1, str)  # type: ignore[arg-type]


def test_names_and_doubles_are_refused_as_keys() -> None:
    @workflow
    async def wrong(ctx: WorkflowContext, which: int) -> None:
        given: list[Any] = [{"customer": "ada"}, {CUSTOMER: "ada", Attribute("customer", int): 1}]
        ctx.set_attributes(given[which])

    with pytest.raises(TypeError, match="must be an Attribute"):
        Driver(wrong, 0).start()
    twice = Driver(wrong, 1)
    twice.start()
    assert "given twice" in twice.failure().message


async def test_the_command_sets_finds_shows_and_deletes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with testing.service() as service, Worker(service.address, workflows=[stages], activities=[step]):
        monkeypatch.setenv("ROMANCY_ADDRESS", service.address)

        async def said(*arguments: str, code: int = 0) -> str:
            answer = await asyncio.to_thread(run_main, list(arguments))
            assert answer.code == code, answer
            return answer.out or answer.err

        given = [f"--attribute={text}" for text in ("customer=bob", "n=5", 'text="5"', "at=2026-01-31T10:00:00Z")]
        await said("workflow", "start", "unserved", "--id", "u", *given)
        await said("workflow", "start", "stages", "--id", "s", "--wait")
        for wanted, found in (
            (["n=5"], "u"),
            (["n=5.0"], ""),
            (["text=5"], ""),
            (['text="5"', "customer=bob"], "u"),
            (["n>=5", "n<6", "n!=4", "at<2026-02-01T00:00:00+02:00"], "u"),
            (["tags=a"], "s"),
            (["total"], "s"),
        ):
            options = [f"--attribute={text}" for text in wanted]
            listed = await said("workflow", "list", "--json", *options)
            assert [json.loads(line)["workflow_id"] for line in listed.splitlines()] == list(found), wanted
            assert await said("workflow", "count", *options) == f"{len(found)}\n"
        assert '{"tags": ["a", "b"], "total": 3.0}' in await said("workflow", "get", "s")
        for wrong in (["--attribute", "=5"], ["--attribute", ""], ["--attribute", "at=2026-13-31T10:00:00Z"]):
            await said("workflow", "list", *wrong, code=2)
        await said("workflow", "start", "stages", "--attribute", "n>5", code=2)

        assert "is open" in await said("workflow", "delete", "u", code=5)
        assert (await said("workflow", "delete", "s")).endswith("Workflow s is deleted.\n")
        await said("workflow", "get", "s", code=3)
        await said("workflow", "delete", "s", code=3)

        assert "keeps closed workflows for 36 hours" in await said("namespace", "set", "--retention", "36h")
        assert json.loads(await said("namespace", "list", "--json"))["retention"] == 129600.0
        assert "36 hours" in await said("namespace", "list")
        for length in ("1", "x", "-1d", "1.5d"):
            await said("namespace", "set", f"--retention={length}", code=2)
        await said("namespace", "set", "--retention", "0h", code=5)
