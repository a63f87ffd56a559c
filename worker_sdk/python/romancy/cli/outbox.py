"""`romancy outbox`: where events that workflows send are delivered to, and what could not be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final, TextIO

import click

from romancy.cli.connection import connected
from romancy.cli.output import Output
from romancy.client import Client
from romancy.events import to_cloud_event
from romancy.outbox import DEFAULT_SINK, OutboxEvent, new_secret

_DAY_S: Final = 86_400
_request_id: Final = click.option("--request-id", metavar="ID", help="Makes it happen once; a new one unless given.")


@click.group()
def outbox() -> None:
    """Say where events that workflows send go, and look after those that could not be delivered."""


@outbox.command()
@connected
async def sinks(client: Client, output: Output) -> None:
    """List the namespace's sinks, and how much waits for each."""
    found = await client.outbox.list_sinks()
    if output.as_json:
        for each in found:
            output.json(_plain(asdict(each)))
        return
    output.table(
        ["SINK", "URL", "SIGNED", "WAITING", "SINCE", "DEAD"],
        (
            (
                each.name,
                each.url or "(not set)",
                _yes(each.signed),
                _count(each.waiting),
                _when(each.oldest_time),
                _count(each.dead),
            )
            for each in found
        ),
    )


@outbox.command("set-sink")
@click.argument("url")
@click.option("--name", default=DEFAULT_SINK, show_default=True, help="What code calls it.")
@click.option(
    "--new-secret", "makes_secret", is_flag=True, help="Make a secret that signs what is sent, and show it once."
)
@click.option(
    "--secret-file", type=click.File(encoding="utf-8"), help="Sign with the secret in it; - is standard input."
)
@click.option("--unsigned", is_flag=True, help="Take the secret away.")
@click.option(
    "--keep-days",
    type=click.IntRange(0, 30),
    default=1,
    show_default=True,
    help="With a new secret: so long is everything signed with the old one too.",
)
@_request_id
@connected
async def set_sink(
    client: Client,
    output: Output,
    url: str,
    name: str,
    makes_secret: bool,
    secret_file: TextIO | None,
    unsigned: bool,
    keep_days: int,
    request_id: str | None,
) -> None:
    """Have events delivered to URL. Without a word about secrets the sink keeps the one that it has."""
    if sum((makes_secret, secret_file is not None, unsigned)) > 1:
        raise click.UsageError("--new-secret, --secret-file and --unsigned exclude each other")
    if makes_secret and request_id is not None:
        raise click.UsageError("--new-secret and --request-id exclude each other: a repeated call makes another secret")
    secret = new_secret() if makes_secret else None
    if secret_file is not None:
        secret = secret_file.read().strip()
    keep = keep_days * _DAY_S if secret else 0
    found = await client.outbox.set_sink(
        url, name=name, secret=secret, unsigned=unsigned, keep_secret=keep, request_id=request_id
    )
    if output.as_json:
        output.json(_plain(asdict(found)) | ({"secret": secret} if makes_secret else {}))
        return
    output.line(f"Events for {found.name} go to {found.url}, {'signed' if found.signed else 'not signed'}.")
    if makes_secret:
        output.line(f"The secret, which is not shown again: {secret}")


@outbox.command("delete-sink")
@click.argument("name")
@_request_id
@connected
async def delete_sink(client: Client, output: Output, name: str, request_id: str | None) -> None:
    """Forget the sink NAME. What waits for it waits on."""
    await client.outbox.delete_sink(name, request_id=request_id)
    if output.as_json:
        output.json({"sink": name, "deleted": True})
    else:
        output.line(f"The sink {name} is deleted.")


def _choosing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options by which events are chosen."""
    for option in (
        click.option("--workflow-id", default="", help="Only those of this workflow."),
        click.option("--sink", default="", help="Only those for this sink."),
    ):
        command = option(command)
    return command


@outbox.command("list")
@_choosing
@connected
async def list_(client: Client, output: Output, sink: str, workflow_id: str) -> None:
    """List events that are not delivered yet, the oldest first."""
    await _show(client, output, dead=False, sink=sink, workflow_id=workflow_id)


@outbox.command()
@_choosing
@connected
async def dead(client: Client, output: Output, sink: str, workflow_id: str) -> None:
    """List dead letters: events that could not be delivered, the oldest first."""
    await _show(client, output, dead=True, sink=sink, workflow_id=workflow_id)


async def _show(client: Client, output: Output, *, dead: bool, sink: str, workflow_id: str) -> None:
    found = [each async for each in client.outbox.list_events(dead=dead, sink=sink, workflow_id=workflow_id)]
    if output.as_json:
        for each in found:
            output.json(_event_json(each))
        return
    when = "DEAD SINCE" if dead else "NEXT ATTEMPT"
    output.table(
        ["POSITION", "SINK", "WORKFLOW", "TYPE", "SENT", "ATTEMPTS", when, "ERROR"],
        (
            (
                str(each.position), each.sink, each.workflow_id, each.event.type, _when(each.since), str(each.attempts),
                _when(each.dead_time if dead else each.next_attempt_time), each.last_error,
            )
            for each in found
        ),
    )  # fmt: skip


def _chosen(command: Callable[..., Any]) -> Callable[..., Any]:
    """One dead letter, or all of a sink."""
    for option in (
        click.option("--sink", default=None, help="All of this sink."),
        click.argument("position", type=int, required=False),
    ):
        command = option(command)
    return command


@outbox.command()
@_chosen
@_request_id
@connected
async def retry(client: Client, output: Output, position: int | None, sink: str | None, request_id: str | None) -> None:
    """Send the dead letter at POSITION again, or all of --sink."""
    _told(output, "sent again", await client.outbox.retry(position, sink=sink, request_id=request_id))


@outbox.command()
@_chosen
@_request_id
@connected
async def drop(client: Client, output: Output, position: int | None, sink: str | None, request_id: str | None) -> None:
    """Delete the dead letter at POSITION, or all of --sink."""
    _told(output, "dropped", await client.outbox.drop(position, sink=sink, request_id=request_id))


def _told(output: Output, what: str, count: int) -> None:
    if output.as_json:
        output.json({"count": count})
    else:
        output.line(f"{count} dead letter{'s' if count != 1 else ''} {what}.")


def _event_json(found: OutboxEvent) -> dict[str, Any]:
    event = to_cloud_event(found.event)
    shown = _plain({name: getattr(found, name) for name in OutboxEvent.__slots__ if name != "event"})
    return shown | {"event": {"id": event.id, "source": event.source, "type": event.type, "data": _data(found)}}


def _data(found: OutboxEvent) -> Any:
    data = found.event.data
    return data.hex() if isinstance(data, bytes) else data


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: _when(value) if isinstance(value, datetime) else value for name, value in fields.items()}


def _when(moment: datetime | None) -> str:
    return "-" if moment is None else moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _yes(whether: bool) -> str:
    return "yes" if whether else "no"


def _count(number: int) -> str:
    return "10000+" if number >= 10_000 else str(number)
