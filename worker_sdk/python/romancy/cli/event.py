"""`romancy event`: publishes events."""

from __future__ import annotations

import uuid
from typing import Any

import click

from romancy.cli.connection import connected
from romancy.cli.output import Output
from romancy.cli.workflow import to_argument
from romancy.client import Client
from romancy.events import Event


@click.group()
def event() -> None:
    """Publish events to the workflows that wait for them."""


@event.command()
@click.argument("event_type", metavar="TYPE")
@click.option("--data", metavar="JSON", default="null", show_default=True, help="What is known about it.")
@click.option("--source", metavar="URI", help="Where it happened, a URI reference; /cli unless said.")
@click.option("--id", "event_id", help="With --source it names the event; a new one unless given.")
@click.option("--subject", default="", help="What it happened to.")
@click.option("--workflow-id", default="", help="The workflow that it is for.  [default: all that wait for it]")
@click.option("--run-id", default="", help="The run of that workflow.  [default: the open one]")
@click.option("--attribute", "attributes", multiple=True, metavar="NAME=TEXT", help="An extension; once for each.")
@connected
async def publish(
    client: Client,
    output: Output,
    event_type: str,
    data: str,
    source: str | None,
    event_id: str | None,
    subject: str,
    workflow_id: str,
    run_id: str,
    attributes: tuple[str, ...],
) -> None:
    """Publish an event of TYPE. It is stored when this returns; one with the same source and id happens once."""
    if event_id and not source:
        raise click.UsageError("--id names an event only together with --source: give it too")
    published: Event[Any] = Event(
        event_type,
        to_argument(1, data),
        source=source or "/cli",
        id=event_id or str(uuid.uuid4()),
        subject=subject,
        workflow_id=workflow_id,
        run_id=run_id,
        attributes=dict(_pair(attribute) for attribute in attributes),
    )
    new = await client.publish_event(published)
    if output.as_json:
        output.json({"source": published.source, "id": published.id, "duplicate": not new})
    else:
        output.line(f"Event {published.id} of {published.source} " + ("is stored." if new else "was stored before."))


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"--attribute {text!r} is no NAME=TEXT")
    return name, value
