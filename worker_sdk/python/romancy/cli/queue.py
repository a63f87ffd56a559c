"""`romancy queue`: what waits, and who serves it."""

from __future__ import annotations

import click

from romancy.v1.admin_service_pb2 import TaskKind

from romancy.cli.connection import connected
from romancy.cli.output import Output
from romancy.cli.plain import enum_name, moment, plain
from romancy.cli.worker import SESSION_COLUMNS, session_rows
from romancy.client import Client


@click.group()
def queue() -> None:
    """Look at task queues."""


@queue.command()
@click.argument("name", default="default")
@connected
async def describe(client: Client, output: Output, name: str) -> None:
    """Show what waits in the queue NAME ("default" unless said), and who serves it."""
    answer = await client.describe_task_queue(name)
    if output.as_json:
        output.json(plain(answer))
        return
    output.table(
        ["WAITING", "KIND", "TYPE", "SINCE", "SERVED"],
        (
            (
                str(backlog.tasks),
                enum_name(TaskKind.DESCRIPTOR, backlog.kind).lower(),
                backlog.type,
                moment(backlog, "oldest_time"),
                "yes" if backlog.served else "by nobody",
            )
            for backlog in answer.backlogs
        ),
    )
    output.table(SESSION_COLUMNS, session_rows(answer.sessions), title="Workers")
