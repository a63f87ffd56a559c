"""`romancy workflow get`, `list`, `count` and `history`: look at workflows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import click
from google.protobuf.timestamp_pb2 import Timestamp

from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.workflow_pb2 import WorkflowInfo, WorkflowStatus
from romancy.v1.workflow_service_pb2 import GetWorkflowResponse, WorkflowFilter

from romancy.cli.attribute import attribute_filters
from romancy.cli.connection import connected
from romancy.cli.output import Output, compact
from romancy.cli.plain import moment, plain, status_name
from romancy.cli.workflow import lament, run_id_option, workflow, workflow_id_argument
from romancy.client import Client

_STATUSES: Final = {name.removeprefix("WORKFLOW_STATUS_").lower(): name for name in WorkflowStatus.keys()[1:]}
TIMES: Final = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"])
TIME_HELP: Final = "In UTC: 2026-01-31 or 2026-01-31T10:00:00."
_FILTERS: Final = (
    click.option("--status", "statuses", multiple=True, type=click.Choice(list(_STATUSES)), help="Any of these."),
    click.option("--type", "workflow_type", default="", help="Exactly this type."),
    click.option("--id", "workflow_id", default="", help="Exactly this workflow id."),
    click.option("--id-prefix", default="", help="Workflow ids that begin so."),
    click.option(
        "--blocked",
        is_flag=True,
        help="Only those whose code fails, or whose compensation failed for good. Not those without a worker.",
    ),
    click.option("--started-from", type=TIMES, metavar="TIME", help=TIME_HELP),
    click.option("--started-before", type=TIMES, metavar="TIME", help=TIME_HELP),
    click.option(
        "--attribute",
        "attributes",
        multiple=True,
        callback=attribute_filters,
        metavar="NAME=VALUE",
        help="All of these; also !=, <, <=, >, >=, and NAME alone: it is there.",
    ),
)


def _filtered(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """A command that gets `where`, and the options that say it."""

    @functools.wraps(command)
    def run(
        statuses: tuple[str, ...],
        workflow_type: str,
        workflow_id: str,
        id_prefix: str,
        blocked: bool,
        started_from: datetime | None,
        started_before: datetime | None,
        attributes: Any,
        **options: Any,
    ) -> int | None:
        where = WorkflowFilter(
            statuses=[WorkflowStatus.Value(_STATUSES[status]) for status in statuses],
            workflow_type=workflow_type,
            workflow_id=workflow_id,
            workflow_id_prefix=id_prefix,
            blocked=blocked,
            started_from=_timestamp(started_from),
            started_before=_timestamp(started_before),
            attributes=attributes,
        )
        return command(where=where, **options)

    for option in reversed(_FILTERS):
        run = option(run)
    return run


def _timestamp(moment_utc: datetime | None) -> Timestamp | None:
    if moment_utc is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(moment_utc.replace(tzinfo=UTC))
    return timestamp


@workflow.command()
@workflow_id_argument
@run_id_option
@connected
async def get(client: Client, output: Output, workflow_id: str, run_id: str | None) -> None:
    """Show a workflow: status, open activities and timers, and what it waits for."""
    answer = await client.get_handle(workflow_id, run_id).describe()
    if output.as_json:
        output.json(plain(answer))
        return
    info, shown = answer.info, plain(answer)
    output.fields(
        [
            ("Workflow", info.workflow_id),
            ("Run", info.run_id),
            ("Type", info.workflow_type),
            ("Queue", info.task_queue),
            ("Status", status_name(info.status) + _is_to_stop(answer)),
            ("Asked to stop", _cancellation(answer)),
            ("Started", moment(info, "start_time")),
            ("Closed", moment(info, "close_time")),
            ("Events", _length(info)),
            ("Continues", info.continued_from_run_id),
            ("First run", info.first_run_id if info.first_run_id != info.run_id else ""),
            ("Continued by", answer.outcome.continued_run_id),
            ("Attributes", _attributes(shown["info"].get("attributes", {}))),
            ("Input", shown.get("spec", {}).get("arguments")),
            ("Result", shown.get("outcome", {}).get("result")),
            ("Failure", lament(answer.outcome) if answer.outcome.HasField("failure") else None),
            *(("Waits for", wait.sentence) for wait in answer.waits),
        ]
    )
    output.table(
        ["ACTIVITY", "ATTEMPT", "WORKER", "SINCE", "NEXT", "PROGRESS", "LAST FAILURE"],
        (
            (
                *(
                    a.activity_id,
                    a.attempt,
                    "elsewhere" if a.elsewhere else a.worker_id,
                    moment(a, "started_time"),
                    moment(a, "due_time"),
                ),
                plain(a.heartbeat_details) if a.HasField("heartbeat_details") else None,
                f"{a.last_failure.type}: {a.last_failure.message}" if a.HasField("last_failure") else None,
            )
            for a in answer.activities
        ),
        title="Open activities",
    )
    output.table(
        ["TIMER", "FIRES"],
        ((timer.timer_id, moment(timer, "fire_time")) for timer in answer.timers),
        title="Open timers",
    )


def _length(info: WorkflowInfo) -> str:
    long = ": so long that the run may be ended" if info.history_warning else ""
    return f"{info.history_length}, {info.history_bytes} bytes{long}"


def _is_to_stop(answer: GetWorkflowResponse) -> str:
    return ", to be cancelled" if answer.HasField("cancellation") and not answer.info.HasField("close_time") else ""


def _cancellation(answer: GetWorkflowResponse) -> str | None:
    """By whom, and why."""
    if not answer.HasField("cancellation"):
        return None
    asked = answer.cancellation
    return f"by {asked.identity or 'a client'}" + (f": {asked.reason}" if asked.reason else "")


def _attributes(shown: Mapping[str, Any]) -> dict[str, Any]:
    """Names and values, without the types."""
    values = {name: next(iter(value.values()), None) for name, value in shown.items()}
    return {name: value["values"] if isinstance(value, dict) else value for name, value in values.items()}


@workflow.command("list")
@_filtered
@click.option("--limit", type=click.IntRange(0), default=50, show_default=True, help="At most so many; 0: all.")
@connected
async def list_(client: Client, output: Output, where: WorkflowFilter, limit: int) -> None:
    """List workflows, newest first."""
    found = client.list_workflows(where, limit=limit or None)
    if output.as_json:
        async for info in found:
            output.json(plain(info))
        return
    output.table(
        ["WORKFLOW", "RUN", "TYPE", "STATUS", "STARTED", "CLOSED"],
        [
            (
                *(info.workflow_id, info.run_id, info.workflow_type, status_name(info.status)),
                *(moment(info, "start_time"), moment(info, "close_time")),
            )
            async for info in found
        ],
    )


@workflow.command()
@_filtered
@connected
async def count(client: Client, output: Output, where: WorkflowFilter) -> None:
    """Count workflows: exactly up to 10,000, about right above."""
    answer = await client.count_workflows(where)
    if output.as_json:
        output.json({"count": answer.count, "estimated": answer.estimated})
    else:
        output.line(f"{'about ' if answer.estimated else ''}{answer.count}")


@workflow.command()
@workflow_id_argument
@run_id_option
@click.option("--follow", "-f", is_flag=True, help="Go on as events are recorded, until the run is closed.")
@connected
async def history(client: Client, output: Output, workflow_id: str, run_id: str | None, follow: bool) -> None:
    """Print the history of a workflow."""
    handle = client.get_handle(workflow_id, run_id)
    async for event in handle.watch() if follow else handle.history():
        if output.as_json:
            output.json(plain(event))
        else:
            output.short_line(_history_line(event))


def _history_line(event: HistoryEvent) -> str:
    kind = event.WhichOneof("attributes") or "unknown"
    details = _without_stacks(plain(getattr(event, kind))) if kind != "unknown" else {}
    name = kind.title().replace("_", "")
    time = plain(event.time)[11:23]
    return f"{event.event_id:>4}  {time}  {name:<24}  {compact(details) if details else ''}".rstrip()


def _without_stacks(value: Any) -> Any:
    """Stack traces fill screens; --json has them."""
    if isinstance(value, dict):
        return {key: _without_stacks(item) for key, item in value.items() if key != "stack_trace"}
    return [_without_stacks(item) for item in value] if isinstance(value, list) else value
