"""The `romancy` command, against the real service in this process."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import pytest
from structlog.testing import capture_logs

from romancy import Client, TerminalError, WorkflowContext, activity, compensation, testing, workflow
from romancy.cli import main
from romancy.cli.output import compact, escape
from romancy.worker import Worker

UNSAFE = "n\x1b[31m\u202e\x9b1"


@compensation
async def unbook(hotel: str) -> None:
    assert hotel


@activity(compensation=unbook)
async def book(hotel: str) -> str:
    return f"{hotel} booked"


@activity
async def pay(card: str) -> str:
    if card == "stolen":
        raise TerminalError(f"card {UNSAFE} is stolen")
    return "paid"


@workflow
async def trip(ctx: WorkflowContext, hotel: str, card: str = "good") -> dict[str, str]:
    return {"hotel": await book(hotel), "card": await pay(card)}


@workflow
async def stairs(ctx: WorkflowContext, steps: int) -> str:
    return "up" if steps <= 1 else await ctx.recur(steps - 1)


@workflow
async def sleeper(ctx: WorkflowContext) -> None:
    await ctx.sleep(3600)


@workflow
async def basket(ctx: WorkflowContext) -> list[str]:
    items: list[str] = []
    closed: list[bool] = []
    ctx.signal(lambda: closed.append(True), name="close")

    @ctx.query
    def content(prefix: str = "") -> list[str]:
        return [item for item in items if item.startswith(prefix)]

    def known(item: str) -> None:
        if item == "yacht":
            raise ValueError("no yachts")

    def add(item: str) -> int:
        if item == "stone":
            raise TerminalError(f"too heavy {UNSAFE}")
        items.append(item)
        return len(items)

    ctx.update(add, validator=known)
    await ctx.wait_condition(lambda: bool(closed))
    return items


@dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def json_lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Romancy = Callable[..., Awaitable[Answer]]


def run_main(arguments: list[str]) -> Answer:
    out, err = io.StringIO(), io.StringIO()
    # What the service logs, in this process too, is not what the command prints.
    with capture_logs(), redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return Answer(ended.value.code, out.getvalue(), err.getvalue())


@pytest.fixture
async def address() -> AsyncIterator[str]:
    async with (
        testing.service() as service,
        Worker(
            service.address,
            workflows=[trip, stairs, sleeper, basket],
            activities=[book, pay, unbook],
            worker_id="cli-worker",
        ),
    ):
        yield service.address


@pytest.fixture
def romancy(address: str, monkeypatch: pytest.MonkeyPatch) -> Romancy:
    monkeypatch.setenv("ROMANCY_ADDRESS", address)
    return lambda *arguments: asyncio.to_thread(run_main, list(arguments))


async def test_start_waits_and_prints_the_result(romancy: Romancy) -> None:
    answer = await romancy("workflow", "start", "trip", "--input", '"Ritz"', "--id", "t1", "--wait")
    assert (answer.code, answer.json) == (0, {"hotel": "Ritz booked", "card": "paid"})
    answer = await romancy("workflow", "result", "t1", "--json")
    assert answer.json["status"] == "COMPLETED"
    assert answer.json["result"]["card"] == "paid"


async def test_start_names_what_it_started(romancy: Romancy) -> None:
    answer = await romancy("workflow", "start", "sleeper", "--json")
    assert set(answer.json) == {"workflow_id", "run_id"}
    again = await romancy("workflow", "result", answer.json["workflow_id"], "--timeout", "0.1")
    assert again.code == 6
    assert "it goes on" in again.err


async def test_start_and_wait_for_programs_names_what_was_started_before_it_waits(romancy: Romancy) -> None:
    answer = await romancy("workflow", "start", "trip", "--input", '"Ritz"', "--wait", "--json")
    started, outcome = answer.json_lines
    assert set(started) == {"workflow_id", "run_id"}
    assert started.items() < outcome.items()
    late = await romancy("workflow", "start", "sleeper", "--wait", "--timeout", "0.1", "--json")
    assert late.code == 6
    assert json.loads(late.err)["reason"] == "TIMEOUT"
    assert json.loads(late.err)["metadata"] == late.json


async def test_errors_for_programs_have_a_reason_and_metadata(romancy: Romancy) -> None:
    await romancy("workflow", "start", "sleeper", "--id", "s")
    answer = await romancy("workflow", "start", "sleeper", "--id", "s", "--json")
    error = json.loads(answer.err)
    assert (answer.code, answer.out, error["reason"]) == (5, "", "WORKFLOW_ALREADY_OPEN")
    assert error["metadata"]["workflow_id"] == "s"
    assert "is open as run" in error["error"]
    gone = await romancy("workflow", "list", "--json", "--address", "127.0.0.1:1", "--patience", "0")
    assert (gone.code, json.loads(gone.err)["reason"]) == (4, "UNAVAILABLE")
    wrong = await romancy("workflow", "list", "--json", "--nonsense")
    assert (wrong.code, json.loads(wrong.err)["reason"]) == (2, "USAGE")


def test_what_nobody_expected_is_one_line_and_exit_code_7(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Client:
        raise LookupError("no\nsuch thing")

    monkeypatch.setattr("romancy.cli.connection.Client", broken)
    answer = run_main(["workflow", "list"])
    assert (answer.code, answer.out) == (7, "")
    assert answer.err.startswith("romancy: unexpected LookupError at test_cli.py:")
    assert answer.err.endswith(": no\\nsuch thing\n")
    assert json.loads(run_main(["workflow", "list", "--json"]).err)["reason"] == "UNEXPECTED"


async def test_a_workflow_that_failed_is_exit_code_1_and_says_why(romancy: Romancy) -> None:
    answer = await romancy("workflow", "start", "trip", "--input", '"Ritz"', "--input", '"stolen"', "--wait")
    assert answer.code == 1
    assert answer.out == ""
    assert answer.err == f"romancy: FAILED: TerminalError: card {escape(UNSAFE)} is stolen\n"


async def test_history_shows_each_event_and_its_values(romancy: Romancy) -> None:
    await romancy("workflow", "start", "trip", "--input", '"Ritz"', "--input", '"stolen"', "--id", "t1", "--wait")
    events = (await romancy("workflow", "history", "t1", "--follow", "--json")).json_lines
    assert [event["event_id"] for event in events] == list(range(1, len(events) + 1))
    completed = next(event["activity_completed"] for event in events if "activity_completed" in event)
    assert completed["result"] == "Ritz booked"
    shown = (await romancy("workflow", "history", "t1")).out
    assert "CompensationCompleted" in shown
    assert "Traceback" not in shown


async def test_lists_filter_and_count(romancy: Romancy) -> None:
    for number in range(3):
        await romancy("workflow", "start", "trip", "--input", '"Ritz"', "--id", f"t{number}", "--wait")
    await romancy("workflow", "start", "sleeper", "--id", "s")
    listed = (await romancy("workflow", "list", "--status", "completed", "--limit", "2", "--json")).json_lines
    assert [info["workflow_id"] for info in listed] == ["t2", "t1"]
    assert (await romancy("workflow", "count", "--type", "trip")).out == "3\n"
    assert "sleeper" in (await romancy("workflow", "list", "--id-prefix", "s")).out
    nothing = await romancy("workflow", "count", "--started-from", "2999-01-01", "--json")
    assert nothing.json == {"count": 0, "estimated": False}


async def test_get_says_what_a_workflow_waits_for(romancy: Romancy) -> None:
    await romancy("workflow", "start", "unserved", "--id", "u")
    assert "no worker of queue default has type unserved" in (await romancy("workflow", "get", "u")).out
    assert (await romancy("workflow", "get", "u", "--json")).json["info"]["status"] == "RUNNING"


async def test_why_says_what_blocks_first_and_what_to_do(romancy: Romancy) -> None:
    await romancy("workflow", "start", "unserved", "--id", "u", "--run-timeout", "3600")
    shown = await romancy("workflow", "why", "u")
    assert shown.code == 0
    first, blocked, remedy, *others = shown.out.splitlines()
    assert first.startswith("u is RUNNING, started 20")
    assert blocked.startswith("BLOCKED")
    assert "no worker of queue default has type unserved" in f"{blocked} {remedy}"
    assert "-> start a worker of queue default that has unserved" in shown.out
    assert others[-1].startswith("WAITING")
    found = (await romancy("workflow", "why", "u", "--json")).json
    assert (found["workflow_id"], found["status"]) == ("u", "RUNNING")
    assert [(wait["kind"], wait["state"]) for wait in found["waits"]] == [
        ("NO_WORKER", "BLOCKED"),
        ("TIMEOUT", "WAITING"),
    ]
    assert found["waits"][0]["remedy"].startswith("start a worker")
    assert (await romancy("workflow", "why", "none")).code == 3


async def test_why_of_a_closed_workflow_says_that_it_waits_for_nothing(romancy: Romancy) -> None:
    await romancy("workflow", "start", "trip", "--id", "t", "--input", '"Ritz"', "--wait")
    shown = await romancy("workflow", "why", "t")
    assert (shown.code, shown.out.count("\n")) == (0, 1)
    assert "t is COMPLETED" in shown.out
    assert "it waits for nothing" in shown.out


async def test_the_chain_of_a_workflow_is_listed(romancy: Romancy) -> None:
    for _ in range(2):  # an older chain of the same id is another one
        assert (await romancy("workflow", "start", "stairs", "--id", "s", "--input", "3", "--wait")).out == '"up"\n'
    runs = (await romancy("workflow", "chain", "s", "--json")).json_lines
    assert [info["status"] for info in runs] == ["COMPLETED", "CONTINUED", "CONTINUED"]
    assert [info.get("continued_from_run_id", "") for info in runs] == [runs[1]["run_id"], runs[2]["run_id"], ""]
    assert {info["first_run_id"] for info in runs} == {runs[2]["run_id"]}
    assert "CONTINUES" in (await romancy("workflow", "chain", "s", "--run-id", runs[1]["run_id"])).out
    shown = (await romancy("workflow", "get", "s", "--run-id", runs[1]["run_id"])).out
    assert re.search(rf"Continued by +{runs[0]['run_id']}", shown)
    assert re.search(rf"First run +{runs[2]['run_id']}", shown)


async def test_cancel_and_terminate_end_workflows(romancy: Romancy) -> None:
    await romancy("workflow", "start", "sleeper", "--id", "s1")
    await romancy("workflow", "start", "sleeper", "--id", "s2")
    assert (await romancy("workflow", "cancel", "s1", "--reason", "rain")).code == 0
    cancelled = await romancy("workflow", "result", "s1", "--json")
    assert (cancelled.code, cancelled.json["status"]) == (1, "CANCELLED")
    assert (await romancy("workflow", "terminate", "s2", "--json")).json == {"workflow_id": "s2", "not_undone": []}
    assert (await romancy("workflow", "terminate", "s2")).code == 5


async def test_a_workflow_is_told_and_asked_things(romancy: Romancy) -> None:
    await romancy("workflow", "start", "basket", "--id", "b")
    assert (await romancy("workflow", "update", "b", "add", "--input", '"apple"')).out == "1\n"
    answer = await romancy("workflow", "update", "b", "add", "--input", '"pear"', "--json")
    assert (answer.code, answer.json) == (0, {"result": 2})
    asked = await romancy("workflow", "query", "b", "content", "--input", '"a"')
    assert (asked.code, asked.json) == (0, ["apple"])
    assert (await romancy("workflow", "query", "b", "content", "--json")).json == {"result": ["apple", "pear"]}
    told = await romancy("workflow", "signal", "b", "close", "--json")
    assert told.json == {"workflow_id": "b", "signal": "close"}
    assert (await romancy("workflow", "result", "b")).json == ["apple", "pear"]
    assert (await romancy("workflow", "query", "b", "content", "--input", '"p"')).json == ["pear"]


async def test_what_the_code_refuses_or_fails_at_is_exit_code_1(romancy: Romancy) -> None:
    await romancy("workflow", "start", "basket", "--id", "b")
    refused = await romancy("workflow", "update", "b", "add", "--input", '"yacht"')
    assert (refused.code, refused.out, refused.err) == (1, "", "romancy: ValueError: no yachts\n")
    failed = await romancy("workflow", "update", "b", "add", "--input", '"stone"')
    assert (failed.code, failed.err) == (1, f"romancy: TerminalError: too heavy {escape(UNSAFE)}\n")
    unknown = await romancy("workflow", "query", "b", "price", "--json")
    assert (unknown.code, json.loads(unknown.err)["reason"]) == (1, "UnknownHandler")


async def test_telling_what_is_closed_is_exit_code_5_and_what_is_late_6(romancy: Romancy) -> None:
    await romancy("workflow", "start", "unserved", "--id", "u")
    late = await romancy("workflow", "update", "u", "add", "--timeout", "0.2", "--json")
    assert (late.code, json.loads(late.err)["reason"]) == (6, "TIMEOUT")
    await romancy("workflow", "terminate", "u")
    for command in ("signal", "update", "query"):
        answer = await romancy("workflow", command, "u", "add", "--json")
        assert (answer.code, json.loads(answer.err)["reason"]) == (5, "WORKFLOW_CLOSED"), command


async def test_what_is_not_there_is_exit_code_3(romancy: Romancy) -> None:
    told = (["signal", "no", "go"], ["query", "no", "state"], ["update", "no", "add"])
    for command in (["get", "no"], ["result", "no"], ["history", "no"], ["cancel", "no"], *told):
        answer = await romancy("workflow", *command)
        assert (answer.code, "no workflow or run 'no'" in answer.err) == (3, True), command


@pytest.mark.parametrize(
    "arguments",
    [
        ["start", "trip", "--input", "{x"],
        ["start", "trip", "--input", "NaN"],
        ["start", "trip", "--input", '{"a": [-Infinity]}'],
        ["start"],
        ["nonsense"],
        ["resolve", "a", "b", "nonsense"],
        ["start", "trip", "--run-timeout", "0"],
        ["start", "trip", "--run-timeout", "nan"],
        ["start", "trip", "--priority", "1000001"],
        ["start", "trip", "--timeout", "5"],
        ["result", "a", "--timeout", "-1"],
        ["list", "--patience", "inf"],
        ["signal", "a"],
        ["signal", "a", "go", "--input", "{x"],
        ["query", "a", "state", "--timeout", "-1"],
        ["update", "a", "add", "--timeout", "-1"],
        ["list", "--limit", "-1"],
        ["list", "--address", ""],
        ["list", "--tls-ca", "/"],
    ],
)
async def test_a_wrong_command_line_is_exit_code_2(romancy: Romancy, arguments: list[str]) -> None:
    assert (await romancy("workflow", *arguments)).code == 2


async def test_a_service_that_is_not_there_is_exit_code_4(romancy: Romancy) -> None:
    answer = await romancy("workflow", "list", "--address", "127.0.0.1:1", "--patience", "0.1")
    assert answer.code == 4
    assert answer.err.startswith("romancy: 127.0.0.1:1: ")


async def test_workers_and_queues_are_shown(romancy: Romancy) -> None:
    (session,) = (await romancy("worker", "list", "--json")).json_lines
    assert session["worker_id"] == "cli-worker"
    assert "cli-worker" in (await romancy("worker", "list")).out
    await romancy("workflow", "start", "unserved")
    queue = await romancy("queue", "describe")
    assert "unserved" in queue.out
    assert "by nobody" in queue.out


async def test_what_others_wrote_cannot_drive_the_terminal(romancy: Romancy) -> None:
    start = await romancy("workflow", "start", "trip", "--input", json.dumps(UNSAFE), "--id", "n\u202e1", "--wait")
    outputs = [start] + [
        await romancy("workflow", *command)
        for command in (["list"], ["get", "n\u202e1"], ["history", "n\u202e1"], ["get", "n\u202e1", "--json"])
    ]
    for answer in outputs:
        assert not set(answer.out + answer.err) & set("\x1b\u202e\x9b"), answer
    assert outputs[-1].json["info"]["workflow_id"] == "n\u202e1"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def test_on_a_terminal_values_are_cut_at_the_end_of_the_line_and_json_has_all_of_them(
    romancy: Romancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "Ritz" * 100
    await romancy("workflow", "start", "trip", "--input", json.dumps(long), "--id", "t1", "--wait")
    piped = [await romancy("workflow", command, "t1") for command in ("get", "history")]
    assert all(long in answer.out.replace("\n", "").replace(" ", "") for answer in piped)
    monkeypatch.setattr("tests.worker_sdk.test_cli.io.StringIO", Terminal)
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setenv("NO_COLOR", "1")
    for command in ("get", "history"):
        shown = (await romancy("workflow", command, "t1")).out
        lines = [re.sub(r"\x1b\[[\d;]*m", "", line).rstrip() for line in shown.splitlines()]
        assert max(map(len, lines)) == 70
        assert any(line.endswith("\u2026") for line in lines)
        assert long in (await romancy("workflow", command, "t1", "--json")).out


def test_escaped_json_is_the_same_json() -> None:
    value = {UNSAFE: [UNSAFE, "\ud800", "ü", "\n\t"]}
    assert json.loads(compact(value)) == value


def test_help_lists_the_exit_codes() -> None:
    answer = run_main(["--help"])
    assert answer.code == 0
    for code in range(8):
        assert f"    {code}  " in answer.out


def test_whoever_reads_only_the_beginning_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

        def fileno(self) -> int:
            return os.open(os.devnull, os.O_WRONLY)

    monkeypatch.setattr("sys.stdout", Closed())
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0, "and not the code of a workflow that failed"


# Schedules ------------------------------------------------------------------------------------------------------------


async def test_a_schedule_is_made_shown_paused_triggered_and_deleted(romancy: Romancy) -> None:
    options = (
        "--cron",
        "30 6 * * MON-FRI",
        "--time-zone",
        "Europe/Berlin",
        "--every",
        "3600",
        "--overlap",
        "buffer_one",
    )
    made = await romancy("schedule", "create", "s", "trip", *options, "--input", '"Ritz"', "--note", "first")
    assert (made.code, made.out) == (0, "Schedule s is made.\n")
    shown = await romancy("schedule", "describe", "s")
    for text in ("30 6 * * MON-FRI Europe/Berlin", "1:00:00", "buffer_one", "active", '["Ritz"]', "first"):
        assert text in shown.out
    assert (await romancy("schedule", "pause", "s", "--note", f"holiday {UNSAFE}")).code == 0
    listed = await romancy("schedule", "list")
    assert "paused" in listed.out
    assert UNSAFE not in listed.out
    triggered = await romancy("schedule", "trigger", "s", "--json")
    result = await romancy("workflow", "result", triggered.json["workflow_id"])
    assert result.json["hotel"] == "Ritz booked"
    assert triggered.json["workflow_id"] in (await romancy("schedule", "describe", "s")).out
    assert (await romancy("schedule", "resume", "s")).out == "Schedule s is active.\n"
    (line,) = (await romancy("schedule", "list", "--json")).json_lines
    assert (line["schedule_id"], line["workflow_type"], line["revision"]) == ("s", "trip", 1)
    assert (await romancy("schedule", "delete", "s", "--json")).json == {"schedule_id": "s"}
    gone = await romancy("schedule", "describe", "s", "--json")
    assert (gone.code, json.loads(gone.err)["reason"]) == (3, "SCHEDULE_NOT_FOUND")


async def test_a_schedule_is_changed_in_what_is_given_alone(romancy: Romancy) -> None:
    first = (
        "--every",
        "60",
        "--jitter",
        "1.5",
        "--max-actions",
        "9",
        "--pause-on-failure",
        "--input",
        "1",
        "--input",
        "2",
    )
    await romancy("schedule", "create", "s", "trip", *first, "--starts", "2026-01-01", "--paused")
    before = (await romancy("schedule", "describe", "s", "--json")).json["schedule"]
    for change, name, value in (
        (("--cron", "0 0 1 1 *"), "spec.crons", [{"expression": "0 0 1 1 *", "time_zone": "UTC"}]),
        (("--jitter", "2"), "spec.jitter", 2.0),
        (("--max-actions", "0"), "max_actions", None),
        (("--no-pause-on-failure",), "pause_on_failure", None),
        (("--overlap", "allow_all"), "overlap_policy", "ALLOW_ALL"),
        (("--input", "3"), "action.workflow.arguments", [3]),
        (("--type", "sleeper"), "action.workflow.workflow_type", "sleeper"),
        (("--prefix", "p"), "action.workflow_id_prefix", "p"),
        (("--run-timeout", "7"), "action.workflow.run_timeout", 7.0),
    ):
        assert (await romancy("schedule", "update", "s", *change)).code == 0
        if name == "spec.crons":
            del before["spec"]["intervals"]
        *path, last = name.split(".")
        owner = before
        for step in path:
            owner = owner[step]
        owner[last] = value
        if value is None:
            del owner[last]
        assert (await romancy("schedule", "describe", "s", "--json")).json["schedule"] == before, name


async def test_a_backfill_says_how_many_starts_it_asked_for(romancy: Romancy) -> None:
    await romancy("schedule", "create", "s", "trip", "--cron", "0 6 * * *", "--input", '"Ritz"', "--paused")
    answer = await romancy("schedule", "backfill", "s", "2026-01-01", "2026-01-04", "--overlap", "allow_all")
    assert answer.out == "Schedule s starts 3 more.\n"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("create", "s", "trip"), 5, "crons"),
        (("create", "s", "trip", "--cron", "0 0 30 2 *"), 5, "expression"),
        (("create", "s", "trip", "--every", "-1"), 2, "interval"),
        (("create", "s", "trip", "--every", "nan"), 2, "interval"),
        (("create", "s", "trip", "--every", "9", "--time-zone", "UTC"), 2, "--cron"),
        (("create", "s", "trip", "--cron", "0 0 1 1 *", "--offset", "1"), 2, "--every"),
        (("create", "s", "trip", "--every", "9", "--input", "{"), 2, "--input number 1"),
        (("create", "s", "trip", "--every", "9", "--overlap", "wait"), 2, "wait"),
        (("update", "none", "--every", "9"), 3, "none"),
        (("backfill", "none", "2026-01-01", "soon"), 2, "soon"),
        (("trigger", "none"), 3, "none"),
    ],
)
async def test_what_cannot_be_of_a_schedule_is_refused(
    romancy: Romancy, arguments: tuple[str, ...], code: int, text: str
) -> None:
    answer = await romancy("schedule", *arguments)
    assert answer.code == code
    assert text in answer.err


async def test_a_rule_is_made_shown_paused_and_deleted(romancy: Romancy) -> None:
    made = (
        "rule",
        "set",
        "ship",
        "paid",
        "trip",
        "--where",
        "data.order=7",
        "--where",
        "subject=vip",
        "--input",
        '"good"',
    )
    assert (await romancy(*made)).out == "Rule ship is made.\n"
    assert json.loads((await romancy(*made, "--priority", "3", "--json")).out) == {"rule_id": "ship", "created": False}
    said = json.loads((await romancy("rule", "describe", "ship", "--json")).out)
    assert said["rule"]["where"] == {"data.order": "7", "subject": '"vip"'}
    assert said["rule"]["workflow"] == {
        "workflow_type": "trip", "task_queue": "default", "arguments": ["good"], "priority": 3,
    }  # fmt: skip
    await romancy("rule", "pause", "ship", "--note", "closed")
    shown = (await romancy("rule", "describe", "ship")).out
    assert "paused" in shown
    assert "closed" in shown
    assert "ship" in (await romancy("rule", "list")).out
    assert (await romancy("rule", "resume", "ship")).out == "Rule ship is active.\n"
    event = ("event", "publish", "paid", "--data", '{"order": 7}', "--subject", "vip", "--source", "/shop", "--id", "1")
    assert (await romancy(*event)).code == 0
    async with asyncio.timeout(30):
        while True:
            if "1 started" in (await romancy("rule", "describe", "ship")).out:
                break
            await asyncio.sleep(0.05)
    history = (await romancy("workflow", "history", "ship#/shop#1", "--json")).out
    assert '"id": "1"' in history, "the event is shown as what it is"
    assert (await romancy("rule", "delete", "ship")).out == "Rule ship is deleted.\n"
    gone = await romancy("rule", "describe", "ship", "--json")
    assert gone.code == 3
    assert "EVENT_RULE_NOT_FOUND" in gone.err


@pytest.mark.parametrize("where", ["data.order", "data.order=[7]"])
async def test_a_value_that_no_event_could_have_is_no_rule(romancy: Romancy, where: str) -> None:
    assert (await romancy("rule", "set", "ship", "paid", "trip", "--where", where)).code == 2


async def test_an_id_of_an_event_needs_its_source(romancy: Romancy) -> None:
    answer = await romancy("event", "publish", "paid", "--id", "1")
    assert (answer.code, "--source" in answer.err) == (2, True), answer


async def test_a_query_that_nobody_answers_in_time_is_exit_code_6(romancy: Romancy) -> None:
    await romancy("workflow", "start", "unserved", "--id", "u")
    late = await romancy("workflow", "query", "u", "content", "--timeout", "0.2", "--json")
    assert (late.code, json.loads(late.err)["reason"]) == (6, "TIMEOUT")


async def test_a_closed_workflow_is_not_to_be_cancelled_any_more(romancy: Romancy) -> None:
    await romancy("workflow", "start", "unserved", "--id", "u")
    await romancy("workflow", "cancel", "u")
    assert "to be cancelled" in (await romancy("workflow", "get", "u")).out
    await romancy("workflow", "terminate", "u")
    shown = (await romancy("workflow", "get", "u")).out
    assert "TERMINATED" in shown
    assert "to be cancelled" not in shown


async def test_an_attribute_that_is_no_number_is_wrong_on_the_command_line(romancy: Romancy) -> None:
    for value in ("NaN", "-Infinity"):
        answer = await romancy("workflow", "list", "--attribute", f"x>={value}")
        assert (answer.code, "no number" in answer.err) == (2, True), answer
