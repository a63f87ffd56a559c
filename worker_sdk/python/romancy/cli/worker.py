"""`romancy worker`: who works."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import click

from romancy.v1.admin_service_pb2 import Session

from romancy.cli.connection import connected
from romancy.cli.output import Output
from romancy.cli.plain import moment, plain
from romancy.client import Client

SESSION_COLUMNS: Final = ("WORKER", "STATE", "QUEUES", "IN HAND", "SLOTS", "SINCE", "SDK", "REPLICA")


@click.group()
def worker() -> None:
    """Look at workers."""


@worker.command("list")
@click.option("--queue", default="", help="Only those that serve this queue.")
@connected
async def list_(client: Client, output: Output, queue: str) -> None:
    """List the workers that are connected, or may come back."""
    sessions = await client.list_workers(queue)
    if output.as_json:
        for session in sessions:
            output.json(plain(session))
    else:
        output.table(SESSION_COLUMNS, session_rows(sessions))


def session_rows(sessions: Iterable[Session]) -> Iterable[tuple[str, ...]]:
    """The rows of a table of sessions."""
    for session in sessions:
        state = "connected" if session.connected else "gone"
        yield (
            session.worker_id,
            "draining" if session.draining else state,
            ", ".join(session.task_queues),
            str(session.tasks_in_hand),
            f"{session.activity_slots} + {session.workflow_slots}",
            moment(session, "start_time"),
            session.sdk,
            session.replica_id,
        )
