"""`romancy rule`: has events start workflows."""

from __future__ import annotations

import json
from typing import Any

import click

from romancy.v1.event_rule_pb2 import EventRuleInfo

from romancy.cli.connection import connected
from romancy.cli.output import Output
from romancy.cli.plain import moment, plain
from romancy.cli.span import some_seconds
from romancy.cli.workflow import request_id_option, to_argument
from romancy.client import Client

_id = click.argument("rule_id", metavar="ID")
_note = click.option("--note", default="", help="Why; shown with the rule.")


@click.group()
def rule() -> None:
    """Have events start workflows."""


@rule.command("set")
@_id
@click.argument("event_type", metavar="EVENT_TYPE")
@click.argument("workflow_type", metavar="WORKFLOW_TYPE")
@click.option("--where", "wheres", multiple=True, metavar="PATH=VALUE", help="As data.order=7 or subject=vip.")
@click.option("--input", "inputs", multiple=True, metavar="JSON", help="An argument after the event; once for each.")
@click.option("--queue", "task_queue", default="", help="The task queue of its workers; default unless said.")
@click.option("--run-timeout", type=float, callback=some_seconds, metavar="SECONDS", help="Then it is undone.")
@click.option("--priority", type=click.IntRange(-1_000_000, 1_000_000), default=0, help="Smaller is sooner.")
@click.option("--request-id", metavar="ID", help="The same one never undoes what was set since.")
@connected
async def set_(
    client: Client,
    output: Output,
    rule_id: str,
    event_type: str,
    workflow_type: str,
    wheres: tuple[str, ...],
    inputs: tuple[str, ...],
    task_queue: str,
    run_timeout: float | None,
    priority: int,
    request_id: str | None,
) -> None:
    """Have each event of EVENT_TYPE start a workflow of WORKFLOW_TYPE. Replaces what the rule ID said before."""
    arguments = [to_argument(number, text) for number, text in enumerate(inputs, 1)]
    created = await client.set_event_rule(
        rule_id,
        event_type,
        workflow_type,
        *arguments,
        where=dict(_pair(text) for text in wheres),
        task_queue=task_queue,
        run_timeout=run_timeout,
        priority=priority,
        request_id=request_id or "",
    )
    if output.as_json:
        output.json({"rule_id": rule_id, "created": created})
    else:
        output.line(f"Rule {rule_id} is {'made' if created else 'changed'}.")


@rule.command("list")
@connected
async def list_(client: Client, output: Output) -> None:
    """List the namespace's rules."""
    found = [each async for each in client.list_event_rules()]
    if output.as_json:
        for each in found:
            output.json(plain(each))
        return
    output.table(
        ["RULE", "EVENT", "WORKFLOW", "PAUSED", "STARTED", "SKIPPED", "FAILED"],
        (
            (
                *(each.rule_id, each.rule.event_type, each.rule.workflow.workflow_type),
                *("paused" if each.paused else "", *map(str, _counts(each))),
            )
            for each in found
        ),
    )


@rule.command()
@_id
@connected
async def describe(client: Client, output: Output, rule_id: str) -> None:
    """Show a rule, how many workflows it started, and what went wrong last."""
    found = await client.describe_event_rule(rule_id)
    if output.as_json:
        output.json(plain(found))
        return
    started, skipped, failed = _counts(found)
    output.fields(
        [
            ("Rule", found.rule_id),
            ("Event", found.rule.event_type),
            *(("Where", f"{path}={value}") for path, value in sorted(found.rule.where.items())),
            ("Workflow", found.rule.workflow.workflow_type),
            ("Queue", found.rule.workflow.task_queue),
            ("Input", plain(found.rule.workflow).get("arguments")),
            ("State", "paused" if found.paused else "active"),
            ("Note", found.note),
            ("Starts", f"{started} started, {skipped} skipped, {failed} failed"),
            ("Last", moment(found, "start_time")),
            ("Error", " ".join(filter(None, (moment(found, "last_error_time"), found.last_error)))),
        ]
    )


def _counts(found: EventRuleInfo) -> tuple[int, int, int]:
    return found.started_count, found.skipped_count, found.failed_count


@rule.command()
@_id
@_note
@request_id_option
@connected
async def pause(client: Client, output: Output, rule_id: str, note: str, request_id: str | None) -> None:
    """Have it start nothing until it is resumed."""
    await client.pause_event_rule(rule_id, note, request_id=request_id)
    _say(output, rule_id, "is paused")


@rule.command()
@_id
@_note
@request_id_option
@connected
async def resume(client: Client, output: Output, rule_id: str, note: str, request_id: str | None) -> None:
    """End a pause. Events that came meanwhile start nothing any more."""
    await client.resume_event_rule(rule_id, note, request_id=request_id)
    _say(output, rule_id, "is active")


@rule.command()
@_id
@request_id_option
@connected
async def delete(client: Client, output: Output, rule_id: str, request_id: str | None) -> None:
    """Forget a rule. Workflows that it started go on."""
    await client.delete_event_rule(rule_id, request_id=request_id)
    _say(output, rule_id, "is deleted")


def _say(output: Output, rule_id: str, what: str) -> None:
    if output.as_json:
        output.json({"rule_id": rule_id})
    else:
        output.line(f"Rule {rule_id} {what}.")


def _pair(text: str) -> tuple[str, Any]:
    path, equals, value = text.partition("=")
    try:
        read = json.loads(value)
    except ValueError:
        read = value
    if not equals or isinstance(read, list | dict):
        raise click.UsageError(f"--where {text!r} is no PATH=VALUE")
    return path, read
