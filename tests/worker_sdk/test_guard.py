"""Workflow code that would be another one on replay is stopped, and told what to use instead."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import random
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
import uuid
import zoneinfo
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from romancy import (
    DeterminismWarning,
    NonDeterminism,
    Worker,
    WorkflowContext,
    WorkflowTaskError,
    _loop,
    activity,
    unguarded,
    workflow,
)
from romancy._lint import lint
from tests.worker_sdk.driver import Driver

calls: list[Callable[[], Any]] = []


@workflow
async def does(ctx: WorkflowContext) -> None:
    try:
        calls[0]()
    except Exception:
        await asyncio.sleep(1)  # swallowing it does not help


def refusal(call: Callable[[], Any]) -> str:
    calls[:] = [call]
    run = Driver(does)
    with pytest.raises(NonDeterminism) as raised:
        run.start()
    run.instance.close()
    return str(raised.value)


@pytest.mark.parametrize(
    ("call", "remedy"),
    [
        (lambda: time.time(), r"time.time\(\) at test_guard.py:\d+: use ctx.now\(\)"),
        (lambda: time.monotonic(), r"use ctx.now\(\)"),
        (lambda: time.sleep(1), r"use await ctx.sleep"),
        (lambda: random.random(), r"random.random\(\) at test_guard.py:\d+: use ctx.random\(\)"),
        (lambda: random.choice([1]), r"use ctx.random\(\)"),
        (lambda: uuid.uuid4(), r"use ctx.uuid4\(\)"),
        (lambda: os.urandom(4), r"use ctx.random\(\).randbytes"),
        (lambda: secrets.token_hex(), r"use ctx.random\(\)"),
        (lambda: Path(__file__).read_text(), r"open\(.*files belong into an activity"),
        (lambda: os.listdir("."), "files belong into an activity"),
        (lambda: socket.create_connection(("127.0.0.1", 1)), "sockets belong into an activity"),
        (lambda: subprocess.run(["true"], check=True), "belong into an activity"),
        (lambda: threading.Thread(target=print).start(), "threads belong into an activity"),
        (lambda: asyncio.to_thread(print).send(None), r"loop.run_in_executor.*threads, sockets"),
        (lambda: asyncio.get_running_loop().add_signal_handler(1, print), "loop.add_signal_handler"),
    ],
)
def test_what_differs_on_replay_fails_the_task_and_not_the_workflow(call: Callable[[], Any], remedy: str) -> None:
    assert re.search(remedy, refusal(call))


def test_everything_is_allowed_outside_of_workflow_code() -> None:
    Driver(does)  # puts the guard up
    assert time.time() > 0
    assert random.random() < 1
    assert uuid.uuid4().version == 4
    assert Path(__file__).read_text()


def test_logging_and_imports_are_allowed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "imported_late.py").write_text("value = 3")
    sys.path.insert(0, str(tmp_path))
    handler = logging.FileHandler(tmp_path / "log", delay=True)
    logger = logging.getLogger("a user's")
    logger.addHandler(handler)
    try:
        calls[:] = [lambda: logger.warning("%s", importlib.import_module("imported_late").value)]
        assert Driver(does).start() == ["complete_workflow"]
    finally:
        sys.path.remove(str(tmp_path))
        handler.close()
    assert (tmp_path / "log").read_text() == "3\n3\n"  # once live, once replayed


def test_time_zones_are_allowed() -> None:
    calls[:] = [lambda: zoneinfo.ZoneInfo.no_cache("Europe/Paris")]
    assert Driver(does).start() == ["complete_workflow"]


def test_users_can_answer_for_what_they_do() -> None:
    def read() -> None:
        with unguarded():
            Path(__file__).read_text()

    calls[:] = [read]
    assert Driver(does).start() == ["complete_workflow"]


def test_polling_for_ever_fails_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**9))
    monkeypatch.setattr(_loop, "monotonic", lambda: next(ticks))

    @workflow
    async def polls(ctx: WorkflowContext) -> None:
        while True:  # noqa: ASYNC110 - that is the mistake
            await asyncio.sleep(0)

    with pytest.raises(WorkflowTaskError, match="without waiting for anything"):
        Driver(polls).start()


def test_code_that_holds_up_the_worker_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ticks = iter(range(10**9))
    monkeypatch.setattr(_loop, "monotonic", lambda: next(ticks) * 2)
    calls[:] = [lambda: None]
    with caplog.at_level(logging.WARNING, "romancy.workflow"):
        Driver(does).start()
    assert "workflow code ran for" in caplog.text


def test_leaving_the_process_fails_the_task() -> None:
    @workflow
    async def leaves(ctx: WorkflowContext) -> None:
        sys.exit(3)

    with pytest.raises(WorkflowTaskError, match=r"sys.exit\(3\)"):
        Driver(leaves).start()


# The lint. These functions are read, not run.


async def suspicious(ctx: WorkflowContext) -> None:
    time.time()
    uuid.uuid4()
    random.random()
    random.Random(3).random()
    [n + "" for n in {"a", "b"}]
    for _ in set("ab"):
        open("x")  # noqa: SIM115, ASYNC230
    sorted({"a"})
    ctx.random().random()


def test_the_source_is_read_for_what_differs_on_replay() -> None:
    findings = lint(suspicious)
    assert sorted(finding.text.split(" ")[0] for finding in findings) == sorted(
        ["time.time", "uuid.uuid4", "random.random", "the", "the", "builtins.open"]
    )
    first = min(findings, key=lambda finding: finding.line)
    assert first.filename.endswith("test_guard.py")
    assert first.line == suspicious.__code__.co_firstlineno + 1


def now_in_tokyo() -> float:
    return time.time()


def test_what_a_step_calls_may_differ_and_what_is_called_beside_it_may_not() -> None:
    async def steps(ctx: WorkflowContext, more: Any) -> None:
        await ctx.step(now_in_tokyo)
        await ctx.step(lambda: random.random())
        await more.context.step(now_in_tokyo, name="again")

    async def misuses(ctx: WorkflowContext) -> None:
        await ctx.step(len, str(time.time()))
        now_in_tokyo()

    assert lint(steps) == []
    assert [finding.text.partition(" gives")[0] for finding in lint(misuses)] == ["time.time", "time.time"]


def test_what_is_defined_for_steps_alone_may_differ_and_what_the_code_calls_too_may_not() -> None:
    async def steps(ctx: WorkflowContext) -> None:
        def now() -> float:
            return time.time()

        async def look() -> float:
            return now_in_tokyo()

        def twice() -> float:
            return time.time() + now_in_tokyo()

        chance = lambda: random.random()  # noqa: E731
        there = now_in_tokyo
        await ctx.step(now)
        await ctx.step(look)
        await ctx.step(twice)
        await ctx.step(twice, name="again")
        await ctx.step(chance)
        await ctx.step(there)

    async def misuses(ctx: WorkflowContext) -> None:
        def now(since: float = time.time()) -> float:
            return time.time() - since

        def both() -> float:
            return 1 + random.random()

        await ctx.step(now)
        await ctx.step(both)
        both()

    assert lint(steps) == []
    assert [finding.text.partition(" gives")[0] for finding in lint(misuses)] == ["time.time", "random.random"]


def test_names_that_were_imported_are_found_and_local_ones_left_alone() -> None:
    from datetime import datetime
    from time import time as clock

    async def aliased(ctx: WorkflowContext) -> None:
        clock()
        datetime.now()  # noqa: DTZ005
        open = ctx.now  # noqa: A001
        open()

    assert {finding.text.split(" ")[0] for finding in lint(aliased)} == {"time.time", "datetime.datetime.now"}


class Prices:
    currency = "EUR"

    def __init__(self) -> None:
        self.made = time.time()

    def total(self) -> float:
        return self.tax() * len(os.environ)

    def tax(self) -> float:
        return random.random()

    @property
    def day(self) -> str:
        return str(uuid.uuid4())


def stamp() -> float:
    return further()


def further() -> float:
    return max(map(monotonic_ms, [1.0]))


def monotonic_ms(_: float) -> float:
    return time.monotonic()


def never_used() -> float:
    return time.time()


async def waits(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def by_way_of_others(ctx: WorkflowContext, prices: Prices) -> None:
    stamp()
    await asyncio.gather(waits(1), waits(2))
    assert prices.day + str(Prices().total()) + str(ctx.now()) + prices.currency


def place(text: str) -> int:
    """The line of this file that ends with `text`."""
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.endswith(text))


def test_functions_and_methods_of_the_module_are_read_too_and_named_with_their_lines() -> None:
    found = {finding.line: finding.text for finding in lint(by_way_of_others)}
    assert found.keys() == {
        place("self.made = time.time()"),
        place("len(os.environ)"),
        place("return random.random()"),
        place("return str(uuid.uuid4())"),
        place("return time.monotonic()"),
    }
    assert found[place("return time.monotonic()")] == (
        "time.monotonic gives something else on replay: use ctx.now() (in monotonic_ms, which by_way_of_others uses)"
    )


@activity
async def pay(amount: int) -> None: ...


async def forgets(ctx: WorkflowContext) -> None:
    pay(1)  # type: ignore[unused-coroutine]
    ctx.sleep(1)  # type: ignore[unused-coroutine]
    waits(1)  # type: ignore[unused-coroutine]
    await pay(2)
    asyncio.create_task(pay(3))  # noqa: RUF006


def test_calls_that_are_not_awaited_are_found() -> None:
    texts = [finding.text for finding in lint(forgets)]
    assert sorted(text.partition("(")[0] for text in texts) == ["ctx.sleep", "pay", "waits"]
    assert "pay(...) is not awaited, so it never runs: write await" in texts


def test_what_the_user_vouches_for_is_not_warned_of() -> None:
    async def vouched(ctx: WorkflowContext) -> None:
        with unguarded():
            Path(os.environ["HOME"], str(time.time()))

    assert lint(vouched) == []


def test_a_module_that_is_imported_in_the_function_is_known() -> None:
    async def imports(ctx: WorkflowContext) -> None:
        import time as clock
        from os import environ

        clock.time()
        environ.get("HOME")

    assert [finding.text.split(" ")[0] for finding in lint(imports)] == ["time.time", "os.environ"]


def test_a_worker_of_a_suspicious_workflow_warns_at_the_line() -> None:
    @workflow
    async def warned(ctx: WorkflowContext) -> None:
        defined_further_down()

    def defined_further_down() -> None:
        time.time()

    with pytest.warns(DeterminismWarning, match="time.time gives something else on replay: use ctx.now") as warnings:
        Worker(workflows=[warned])
    assert (warnings[0].filename, warnings[0].lineno) == (__file__, place("        time.time()"))
