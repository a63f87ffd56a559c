"""`romancy schedule`: have workflows started at given times."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import click
from google.protobuf.message import Message

from romancy.v1.schedule_pb2 import OverlapPolicy, Schedule, ScheduledRun
from romancy.v1.schedule_service_pb2 import GetScheduleResponse

from romancy.cli.connection import connected
from romancy.cli.look import TIME_HELP, TIMES
from romancy.cli.output import Output
from romancy.cli.plain import enum_name, moment, plain
from romancy.cli.span import seconds, some_seconds
from romancy.cli.workflow import request_id_option, to_argument
from romancy.client import Client
from romancy.schedules import OVERLAPS, Cron, Every, to_schedule

_OVERLAPS: Final = click.Choice(list(OVERLAPS))
_id: Final = click.argument("schedule_id", metavar="ID")
_note: Final = click.option("--note", default="", help="Why; shown with the schedule.")
_overlap: Final = click.option(
    "--overlap", type=_OVERLAPS, help="What to do while a run is open; start anyway unless said."
)
_OPTIONS: Final = (
    click.option("--cron", "crons", multiple=True, metavar="EXPRESSION", help='As "30 6 * * MON-FRI".'),
    click.option("--time-zone", metavar="NAME", help='Of --cron, as "Europe/Berlin"; UTC unless said.'),
    click.option("--every", "intervals", multiple=True, type=float, metavar="SECONDS", help="May be repeated."),
    click.option("--offset", type=float, callback=seconds, metavar="SECONDS", help="Of --every, counted from 1970."),
    click.option("--starts", type=TIMES, metavar="TIME", help=f"No times before. {TIME_HELP}"),
    click.option("--ends", type=TIMES, metavar="TIME", help="No times at or after this."),
    click.option("--jitter", type=float, callback=seconds, metavar="SECONDS", help="Put each start off by up to this."),
    click.option("--overlap", type=_OVERLAPS, help="What to do at a time while a run is open; skip unless said."),
    click.option("--catch-up", type=float, callback=some_seconds, metavar="SECONDS", help="So late may one be; 60."),
    click.option("--pause-on-failure/--no-pause-on-failure", default=None, help="Pause when a run failed."),
    click.option("--max-actions", type=click.IntRange(0), help="So many starts in all; 0: any."),
    click.option("--prefix", "workflow_id_prefix", help="Runs have the id PREFIX-TIME; the schedule's id unless said."),
    click.option("--input", "inputs", multiple=True, metavar="JSON", help="An argument; once for each, in order."),
    click.option("--queue", "task_queue", help="The task queue of its workers; default unless said."),
    click.option("--run-timeout", type=float, callback=some_seconds, metavar="SECONDS", help="Then it is undone."),
    click.option("--priority", type=click.IntRange(-1_000_000, 1_000_000), help="Smaller is sooner."),
)  # fmt: skip


@click.group()
def schedule() -> None:
    """Have workflows started at given times."""


def _described(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """A command that gets `said`: what of a schedule was given, by the names of the SDK's options."""

    @functools.wraps(command)
    def run(**options: Any) -> int | None:
        said = {name: value for name in _NAMES if (value := options.pop(name)) not in (None, ())}
        if "time_zone" in said and "crons" not in said:
            raise click.UsageError("--time-zone is of --cron: give that too")
        if "offset" in said and "intervals" not in said:
            raise click.UsageError("--offset is of --every: give that too")
        return command(said=said, **options)

    for option in reversed(_OPTIONS):
        run = option(run)
    return run


_NAMES: Final = (
    *("crons", "time_zone", "intervals", "offset", "starts", "ends", "jitter", "overlap", "catch_up"),
    *("pause_on_failure", "max_actions", "workflow_id_prefix", "inputs", "task_queue", "run_timeout", "priority"),
)


_FIELDS: Final[Mapping[str, Callable[[Schedule], Message]]] = {
    **dict.fromkeys(("crons", "intervals", "starts", "ends", "jitter"), lambda schedule: schedule.spec),
    **dict.fromkeys(("overlap", "catch_up", "pause_on_failure", "max_actions"), lambda schedule: schedule),
    "workflow_id_prefix": lambda schedule: schedule.action,
    **dict.fromkeys(
        ("workflow_type", "inputs", "task_queue", "run_timeout", "priority"), lambda schedule: schedule.action.workflow
    ),
}
"""Where in the contract's form each option stands."""
_FIELD_NAMES: Final = {
    "starts": "start_time",
    "ends": "end_time",
    "overlap": "overlap_policy",
    "catch_up": "catch_up_window",
    "inputs": "arguments",
}


def _schedule(workflow_type: str, said: Mapping[str, Any]) -> Schedule:
    """What was said, in the contract's form."""
    options = dict(said)
    times = [Cron(text, options.get("time_zone", "UTC")) for text in options.pop("crons", ())]
    every = [Every(interval, options.get("offset", 0)) for interval in options.pop("intervals", ())]
    arguments = tuple(to_argument(number, text) for number, text in enumerate(options.pop("inputs", ()), 1))
    for name in ("starts", "ends"):
        if name in options:
            options[name] = options[name].replace(tzinfo=UTC)
    for name in ("time_zone", "offset"):
        options.pop(name, None)
    return to_schedule([*times, *every], workflow_type, arguments, options)  # type: ignore[arg-type]  # names and values are those of ScheduleOptions


@schedule.command()
@_id
@click.argument("workflow_type", metavar="TYPE")
@_described
@click.option("--paused", is_flag=True, help="Make it paused.")
@_note
@click.option("--request-id", metavar="ID", help="The same one never makes two.")
@connected
async def create(
    client: Client,
    output: Output,
    schedule_id: str,
    workflow_type: str,
    said: Mapping[str, Any],
    paused: bool,
    note: str,
    request_id: str | None,
) -> None:
    """Start workflows of TYPE at the times of --cron and --every."""
    handle = client.get_schedule_handle(schedule_id)
    await handle.create(_schedule(workflow_type, said), paused=paused, note=note, request_id=request_id or "")
    _say(output, schedule_id, "is made")


@schedule.command()
@_id
@click.option("--type", "workflow_type", help="What to start.")
@_described
@request_id_option
@connected
async def update(
    client: Client,
    output: Output,
    schedule_id: str,
    workflow_type: str | None,
    said: Mapping[str, Any],
    request_id: str | None,
) -> None:
    """Change what is given, and leave the rest. --cron and --every together replace all times."""
    new = _schedule(workflow_type or "", said)
    given = {*said, *(("workflow_type",) if workflow_type else ())}
    if given & {"crons", "intervals"}:
        given |= {"crons", "intervals"}

    def change(schedule: Schedule) -> None:
        for name in given & _FIELDS.keys():
            place = _FIELDS[name]
            _replace(place(schedule), place(new), _FIELD_NAMES.get(name, name))

    await client.get_schedule_handle(schedule_id).update(change, request_id=request_id)
    _say(output, schedule_id, "is changed")


def _replace(message: Message, new: Message, field: str) -> None:
    """Give a field the value that it has in `new`."""
    message.ClearField(field)
    message.MergeFrom(type(message)(**{field: getattr(new, field)}))


@schedule.command("list")
@click.option("--limit", type=click.IntRange(0), default=50, show_default=True, help="At most so many; 0: all.")
@connected
async def list_(client: Client, output: Output, limit: int) -> None:
    """List schedules by their ids."""
    found = client.list_schedules(limit=limit or None)
    if output.as_json:
        async for info in found:
            output.json(plain(info))
        return
    output.table(
        ["SCHEDULE", "TYPE", "NEXT", "PAUSED", "NOTE"],
        [
            (
                *(info.schedule_id, info.workflow_type, moment(info, "next_time")),
                *("paused" if info.paused else "", info.note),
            )
            async for info in found
        ],
    )


@schedule.command()
@_id
@connected
async def describe(client: Client, output: Output, schedule_id: str) -> None:
    """Show a schedule: what it starts and when, what it started last, and what waits."""
    answer = await client.get_schedule_handle(schedule_id).describe()
    if output.as_json:
        output.json(plain(answer))
        return
    output.fields(_fields(answer))
    output.table(
        ["WORKFLOW", "RUN", "STARTED", "ERROR"],
        ((run.workflow_id, run.run_id, moment(run, "start_time"), run.error) for run in answer.state.recent),
        title="Started last",
    )
    output.table(
        ["WORKFLOW", "RUN", "SINCE"],
        (_running(run) for run in answer.state.running),
        title="Running",
    )


def _running(run: ScheduledRun) -> tuple[str, str, str]:
    return run.workflow_id, run.run_id, moment(run, "start_time")


def _fields(answer: GetScheduleResponse) -> list[tuple[str, Any]]:
    info, schedule, state = answer.info, answer.schedule, answer.state
    workflow = schedule.action.workflow
    counts = {
        "started": state.started_count,
        "on request": state.requested_count,
        "skipped": state.skipped_count,
        "missed": state.missed_count,
        "failed": state.failed_count,
        "waiting": len(state.waiting),
    }
    return [
        ("Schedule", info.schedule_id),
        ("Type", workflow.workflow_type),
        ("Queue", workflow.task_queue),
        ("Input", plain(workflow).get("arguments")),
        *(("Cron", f"{cron.expression} {cron.time_zone or 'UTC'}") for cron in schedule.spec.crons),
        *(("Every", _span(interval)) for interval in schedule.spec.intervals),
        ("Overlap", enum_name(OverlapPolicy.DESCRIPTOR, schedule.overlap_policy).lower()),
        ("State", "paused" if info.paused else "active"),
        ("Note", info.note),
        ("Starts", ", ".join(f"{count} {name}" for name, count in counts.items() if count)),
        *(("Next", plain(time)[:19].replace("T", " ")) for time in answer.next_times),
    ]


def _span(interval: Any) -> str:
    offset = interval.offset.ToTimedelta()
    return f"{interval.interval.ToTimedelta()}{f' + {offset}' if offset else ''}"


@schedule.command()
@_id
@_note
@request_id_option
@connected
async def pause(client: Client, output: Output, schedule_id: str, note: str, request_id: str | None) -> None:
    """Start nothing at its times until it is resumed."""
    await client.get_schedule_handle(schedule_id).pause(note, request_id=request_id)
    _say(output, schedule_id, "is paused")


@schedule.command()
@_id
@_note
@request_id_option
@connected
async def resume(client: Client, output: Output, schedule_id: str, note: str, request_id: str | None) -> None:
    """End a pause. Times that passed meanwhile are not made up for."""
    await client.get_schedule_handle(schedule_id).resume(note, request_id=request_id)
    _say(output, schedule_id, "is active")


@schedule.command()
@_id
@_overlap
@request_id_option
@connected
async def trigger(client: Client, output: Output, schedule_id: str, overlap: Any, request_id: str | None) -> None:
    """Start its workflow now."""
    handle = await client.get_schedule_handle(schedule_id).trigger(overlap=overlap, request_id=request_id)
    if output.as_json:
        output.json({"schedule_id": schedule_id, "workflow_id": handle.workflow_id})
    else:
        output.fields([("Workflow", handle.workflow_id)])


@schedule.command()
@_id
@click.argument("start", type=TIMES, metavar="FROM")
@click.argument("end", type=TIMES, metavar="BEFORE")
@_overlap
@request_id_option
@connected
async def backfill(
    client: Client,
    output: Output,
    schedule_id: str,
    start: datetime,
    end: datetime,
    overlap: Any,
    request_id: str | None,
) -> None:
    """Start its workflow for each of its times FROM one moment on and BEFORE another, in UTC."""
    handle = client.get_schedule_handle(schedule_id)
    times = start.replace(tzinfo=UTC), end.replace(tzinfo=UTC)
    starts = await handle.backfill(*times, overlap=overlap, request_id=request_id)
    if output.as_json:
        output.json({"schedule_id": schedule_id, "starts": starts})
    else:
        _say(output, schedule_id, f"starts {starts} more")


@schedule.command()
@_id
@request_id_option
@connected
async def delete(client: Client, output: Output, schedule_id: str, request_id: str | None) -> None:
    """Forget a schedule. Workflows that it started go on."""
    await client.get_schedule_handle(schedule_id).delete(request_id=request_id)
    _say(output, schedule_id, "is deleted")


def _say(output: Output, schedule_id: str, what: str) -> None:
    if output.as_json:
        output.json({"schedule_id": schedule_id})
    else:
        output.line(f"Schedule {schedule_id} {what}.")
