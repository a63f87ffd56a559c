"""`romancy workflow`: start, wait for, look at and stop workflows."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

import click

from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_COMPLETED, WorkflowOutcome

from romancy.cli.attribute import attribute_values
from romancy.cli.connection import EXIT_NO_RESULT, EXIT_TIMEOUT, Failed, connected
from romancy.cli.output import Output
from romancy.cli.plain import plain, status_name
from romancy.cli.span import some_seconds
from romancy.client import Client
from romancy.handle import WorkflowHandle

workflow_id_argument: Final = click.argument("workflow_id", metavar="ID")
run_id_option: Final = click.option("--run-id", help="This run; the newest one unless said.")
request_id_option: Final = click.option(
    "--request-id", metavar="ID", help="The same one acts once; a new one unless given."
)
_reason: Final = click.option("--reason", default="", help="Why; recorded.")
_timeout: Final = click.option(
    "--timeout", type=float, callback=some_seconds, metavar="SECONDS", help="How long to wait at most."
)


@click.group()
def workflow() -> None:
    """Start, look at and stop workflows."""


# Starting and waiting -------------------------------------------------------------------------------------------------


@workflow.command()
@click.argument("workflow_type", metavar="TYPE")
@click.option("--input", "inputs", multiple=True, metavar="JSON", help="An argument; once for each, in order.")
@click.option("--id", "workflow_id", metavar="ID", help="The name of the workflow; made up unless said.")
@click.option("--queue", default="default", show_default=True, help="The task queue of its workers.")
@click.option("--id-reuse", type=click.Choice(["allow", "allow_if_failed", "reject"]), default="allow")
@click.option("--id-conflict", type=click.Choice(["fail", "use_existing", "terminate_existing"]), default="fail")
@click.option("--run-timeout", type=float, callback=some_seconds, metavar="SECONDS", help="After this it is undone.")
@click.option(
    "--execution-timeout",
    type=float,
    callback=some_seconds,
    metavar="SECONDS",
    help="The same for all its runs together, should it recur.",
)
@click.option("--start-delay", type=float, callback=some_seconds, metavar="SECONDS", help="Its code begins after this.")
@click.option("--priority", type=click.IntRange(-1_000_000, 1_000_000), default=0, help="Smaller is sooner.")
@click.option(
    "--attribute",
    "attributes",
    multiple=True,
    callback=attribute_values,
    metavar="NAME=VALUE",
    help="Lists can be filtered on it.",
)
@click.option("--request-id", metavar="ID", help="The same one never starts twice.")
@click.option("--wait", is_flag=True, help="Wait for the result.")
@_timeout
@connected
async def start(
    client: Client,
    output: Output,
    workflow_type: str,
    inputs: tuple[str, ...],
    workflow_id: str | None,
    queue: str,
    id_reuse: Any,
    id_conflict: Any,
    run_timeout: float | None,
    execution_timeout: float | None,
    start_delay: float | None,
    priority: int,
    attributes: Any,
    request_id: str | None,
    wait: bool,
    timeout: float | None,
) -> int | None:
    """Start a workflow of TYPE.

    With --wait, standard output has the result alone; with --json as well, first a line that names what was started.
    """
    if timeout is not None and not wait:
        raise click.UsageError("--timeout says how long to wait: add --wait")
    handle = await client.start_workflow(
        workflow_type,
        *(to_argument(number, text) for number, text in enumerate(inputs, 1)),
        id=workflow_id,
        task_queue=queue,
        id_reuse=id_reuse,
        id_conflict=id_conflict,
        run_timeout=run_timeout,
        execution_timeout=execution_timeout,
        start_delay=start_delay,
        priority=priority,
        attributes=attributes,
        request_id=request_id or "",
    )
    if output.as_json:
        output.json({"workflow_id": handle.workflow_id, "run_id": handle.run_id})
    elif not wait:
        output.fields([("Workflow", handle.workflow_id), ("Run", handle.run_id)])
    return await _print_outcome(output, handle, timeout) if wait else None


@workflow.command()
@workflow_id_argument
@run_id_option
@_timeout
@connected
async def result(
    client: Client, output: Output, workflow_id: str, run_id: str | None, timeout: float | None
) -> int | None:
    """Wait for the result of a workflow and print it."""
    return await _print_outcome(output, client.get_handle(workflow_id, run_id), timeout)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"it has no {name}")


def to_argument(number: int, text: str) -> Any:
    """What an --input says."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise click.UsageError(f"--input number {number} is no JSON: {error}; text needs quotes: '\"text\"'") from error


async def _print_outcome(output: Output, handle: WorkflowHandle[Any], timeout: float | None) -> int | None:
    run_id = handle.run_id or ""
    try:
        async with asyncio.timeout(timeout):
            run_id = run_id or (await handle.describe()).info.run_id
            outcome = await handle.outcome()
    except TimeoutError as error:
        text = f"workflow {handle.workflow_id} had no outcome within {timeout} s; it goes on"
        raise Failed(text, EXIT_TIMEOUT, "TIMEOUT", {"workflow_id": handle.workflow_id, "run_id": run_id}) from error
    if output.as_json:
        output.json({"workflow_id": handle.workflow_id, "run_id": run_id, **plain(outcome)})
    elif outcome.status == WORKFLOW_STATUS_COMPLETED:
        output.value(plain(outcome.result))
    else:
        output.complain(lament(outcome))
    return None if outcome.status == WORKFLOW_STATUS_COMPLETED else EXIT_NO_RESULT


def lament(outcome: WorkflowOutcome) -> str:
    """Why there is no result, with the causes."""
    lines = [status_name(outcome.status)]
    failure = outcome.failure
    while True:
        lines.append(f"{failure.type}: {failure.message}" if failure.type else failure.message)
        if not failure.HasField("cause"):
            return ", because of ".join([f"{lines[0]}: {lines[1]}", *lines[2:]])
        failure = failure.cause


# Stopping -------------------------------------------------------------------------------------------------------------


@workflow.command()
@workflow_id_argument
@run_id_option
@_reason
@request_id_option
@connected
async def cancel(
    client: Client, output: Output, workflow_id: str, run_id: str | None, reason: str, request_id: str | None
) -> None:
    """Ask a workflow to stop and to undo what it did."""
    await client.get_handle(workflow_id, run_id).cancel(reason, request_id=request_id)
    _done(output, workflow_id, "is to be cancelled")


@workflow.command()
@workflow_id_argument
@run_id_option
@_reason
@request_id_option
@connected
async def terminate(
    client: Client, output: Output, workflow_id: str, run_id: str | None, reason: str, request_id: str | None
) -> None:
    """End a workflow at once. Nothing is undone."""
    left = list(await client.get_handle(workflow_id, run_id).terminate(reason, request_id=request_id))
    if output.as_json:
        output.json({"workflow_id": workflow_id, "not_undone": left})
    else:
        _done(output, workflow_id, "is terminated" + (f"; not undone: {', '.join(left)}" if left else ""))


@workflow.command()
@workflow_id_argument
@click.argument("compensation_id", metavar="COMPENSATION")
@click.argument("resolution", type=click.Choice(["retry", "mark-done", "give-up"]))
@run_id_option
@_reason
@request_id_option
@connected
async def resolve(
    client: Client,
    output: Output,
    workflow_id: str,
    compensation_id: str,
    resolution: Any,
    run_id: str | None,
    reason: str,
    request_id: str | None,
) -> None:
    """Say what becomes of a COMPENSATION that failed for good: `get` names those that wait."""
    handle = client.get_handle(workflow_id, run_id)
    await handle.resolve_compensation(compensation_id, resolution.replace("-", "_"), reason, request_id=request_id)
    _done(output, workflow_id, f"goes on: {compensation_id} is resolved as {resolution}")


@workflow.command()
@workflow_id_argument
@run_id_option
@click.option("--reason", default="", help="Why; logged.")
@request_id_option
@connected
async def delete(
    client: Client, output: Output, workflow_id: str, run_id: str | None, reason: str, request_id: str | None
) -> None:
    """Forget a closed workflow, with its history. It cannot be found any more."""
    await client.get_handle(workflow_id, run_id).delete(reason, request_id=request_id)
    _done(output, workflow_id, "is deleted")


def _done(output: Output, workflow_id: str, what: str) -> None:
    if output.as_json:
        output.json({"workflow_id": workflow_id})
    else:
        output.line(f"Workflow {workflow_id} {what}.")
