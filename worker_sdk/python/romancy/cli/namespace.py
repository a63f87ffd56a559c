"""`romancy namespace`: which there are, and how long they keep workflows."""

from __future__ import annotations

import re
from typing import Final

import click

from romancy.v1.admin_service_pb2 import Namespace

from romancy.cli.connection import connected
from romancy.cli.output import Output
from romancy.cli.plain import moment, plain
from romancy.cli.workflow import request_id_option
from romancy.client import Client

_UNITS: Final = {"h": 3_600, "d": 86_400}


def _length(context: click.Context, parameter: click.Parameter, text: str) -> int:
    """A length of time in whole hours or days, in seconds."""
    parts = re.fullmatch(r"(\d{1,6})([hd])", text)
    if parts is None:
        raise click.BadParameter(f"{text!r} is no length of time: write 36h or 30d")
    return int(parts[1]) * _UNITS[parts[2]]


@click.group()
def namespace() -> None:
    """Look at namespaces, and say how long they keep workflows."""


@namespace.command("list")
@connected
async def list_(client: Client, output: Output) -> None:
    """List the namespaces that were set or are used."""
    found = [row async for row in client.list_namespaces()]
    if output.as_json:
        for row in found:
            output.json(plain(row))
        return
    output.table(
        ["NAMESPACE", "RETENTION", "SET"], ((row.name, _retention(row), moment(row, "create_time")) for row in found)
    )


@namespace.command("set")
@click.option("--retention", required=True, callback=_length, metavar="LENGTH", help="36h, 30d: from 1h to ten years.")
@request_id_option
@connected
async def set_(client: Client, output: Output, retention: int, request_id: str | None) -> None:
    """Say how long the namespace (--namespace) keeps closed workflows. What is older is deleted within minutes."""
    row = await client.set_namespace(retention, request_id=request_id)
    if output.as_json:
        output.json(plain(row))
    else:
        output.line(f"Namespace {row.name} keeps closed workflows for {_retention(row)}.")


def _retention(row: Namespace) -> str:
    hours = row.retention.seconds / 3_600
    return f"{hours / 24:g} days" if hours >= 48 else f"{hours:g} hours"
