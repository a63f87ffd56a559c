"""`romancy channel`: sends messages, and shows channels."""

from __future__ import annotations

from dataclasses import asdict

import click

from romancy.channels import ChannelInfo
from romancy.cli.connection import connected
from romancy.cli.output import Output
from romancy.cli.workflow import request_id_option, to_argument
from romancy.client import Client


@click.group()
def channel() -> None:
    """Send messages through channels, and look at channels."""


@channel.command()
@click.argument("name", metavar="CHANNEL")
@click.option("--data", metavar="JSON", default="null", show_default=True, help="What is told.")
@click.option(
    "--metadata", multiple=True, metavar="NAME=TEXT", help="What the receiver may want to know; once for each."
)
@click.option("--workflow-id", default="", help="The workflow that it is for.  [default: as the channel's mode says]")
@request_id_option
@connected
async def publish(
    client: Client,
    output: Output,
    name: str,
    data: str,
    metadata: tuple[str, ...],
    workflow_id: str,
    request_id: str | None,
) -> None:
    """Send a message to CHANNEL. It is stored when this returns."""
    pairs = dict(_pair(text) for text in metadata)
    new = await client.publish(
        name, to_argument(1, data), metadata=pairs, workflow_id=workflow_id, request_id=request_id
    )
    if output.as_json:
        output.json({"channel": name, "duplicate": not new})
    else:
        output.line(f"The message to {name} " + ("is stored." if new else "was stored before."))


@channel.command("list")
@connected
async def list_(client: Client, output: Output) -> None:
    """List the namespace's channels."""
    found = [each async for each in client.list_channels()]
    if output.as_json:
        for each in found:
            output.json(asdict(each))
        return
    output.table(["CHANNEL", "MODE", "SUBSCRIBERS", "RECEIVERS", "UNREAD"], (_row(each) for each in found))


@channel.command()
@click.argument("name", metavar="CHANNEL")
@connected
async def describe(client: Client, output: Output, name: str) -> None:
    """Show CHANNEL: who uses it, and what nobody has taken yet."""
    found = await client.describe_channel(name)
    if output.as_json:
        output.json(asdict(found))
    else:
        output.table(["CHANNEL", "MODE", "SUBSCRIBERS", "RECEIVERS", "UNREAD"], [_row(found)])


def _row(found: ChannelInfo) -> tuple[str, ...]:
    return (
        found.name,
        found.mode or "-",
        *(_count(each) for each in (found.subscribers, found.receivers, found.unread)),
    )


def _count(number: int) -> str:
    return "10000+" if number >= 10_000 else str(number)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"--metadata {text!r} is no NAME=TEXT")
    return name, value
