"""`romancy activity`: ends activities from elsewhere than their workers, and says how far they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Final

import click

from romancy.cli.connection import connected
from romancy.cli.output import Output
from romancy.cli.workflow import request_id_option, to_argument
from romancy.client import Client
from romancy.elsewhere import ActivityRef
from romancy.errors import ApplicationError

_NAMES: Final = (
    click.argument("activity_token", metavar="[TOKEN]", required=False),
    click.option("--workflow-id", help="Instead of TOKEN: the workflow."),
    click.option("--activity-id", help="And which activity of it, for example approve:1."),
    click.option("--run-id", default="", help="This run; the newest one unless said."),
)


def _named(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the arguments that name an attempt, as `activity`."""

    @wraps(command)
    def call(
        *args: Any,
        activity_token: str | None,
        workflow_id: str | None,
        activity_id: str | None,
        run_id: str,
        **options: Any,
    ) -> Any:
        by_id = bool(workflow_id and activity_id)
        if bool(activity_token) == by_id or (activity_token and (workflow_id or activity_id or run_id)):
            raise click.UsageError("give TOKEN, or --workflow-id and --activity-id")
        activity = activity_token or ActivityRef(workflow_id or "", activity_id or "", run_id)
        return command(*args, activity=activity, **options)

    for name in reversed(_NAMES):
        call = name(call)
    return call


@click.group()
def activity() -> None:
    """End activities that are completed from elsewhere, and say how far they are."""


@activity.command()
@click.option("--result", metavar="JSON", default="null", show_default=True, help="What the activity returns.")
@request_id_option
@_named
@connected
async def complete(
    client: Client, output: Output, activity: str | ActivityRef, result: str, request_id: str | None
) -> None:
    """End the attempt with a result."""
    _ended(output, await client.complete_activity(activity, to_argument(1, result), request_id=request_id))


@activity.command()
@click.option("--message", required=True, help="What went wrong.")
@click.option("--type", "error_type", default="ApplicationError", show_default=True, help="What retry policies match.")
@click.option("--final", is_flag=True, help="Trying again cannot help.")
@request_id_option
@_named
@connected
async def fail(
    client: Client,
    output: Output,
    activity: str | ActivityRef,
    message: str,
    error_type: str,
    final: bool,
    request_id: str | None,
) -> None:
    """End the attempt with an error. It is retried, by its policy, unless --final."""
    error = ApplicationError(message, type=error_type, non_retryable=final)
    _ended(output, await client.fail_activity(activity, error, request_id=request_id))


@activity.command()
@click.option("--nothing-done", is_flag=True, help="It surely had no effect, or took it back: it is not undone.")
@request_id_option
@_named
@connected
async def cancel(
    client: Client, output: Output, activity: str | ActivityRef, nothing_done: bool, request_id: str | None
) -> None:
    """End an attempt that is asked to stop."""
    _ended(output, await client.cancel_activity(activity, nothing_done=nothing_done, request_id=request_id))


@activity.command()
@click.option("--details", metavar="JSON", help="How far it is.")
@_named
@connected
async def heartbeat(client: Client, output: Output, activity: str | ActivityRef, details: str | None) -> None:
    """Say that the attempt goes on, and print whether it is asked to stop."""
    value = None if details is None else to_argument(1, details)
    asked = await client.heartbeat_activity(activity, value)
    if output.as_json:
        output.json({"cancel_requested": asked})
    else:
        output.line("It is asked to stop." if asked else "It is to go on.")


def _ended(output: Output, ended: bool) -> None:
    if output.as_json:
        output.json({"duplicate": not ended})
    else:
        output.line("The activity is ended." if ended else "The activity had ended before.")
