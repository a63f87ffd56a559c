"""`romancy workflow signal`, `query` and `update`: talk to the code of a workflow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import click

from romancy.cli.connection import EXIT_NO_RESULT, EXIT_TIMEOUT, Failed, connected
from romancy.cli.output import Output
from romancy.cli.span import some_seconds
from romancy.cli.workflow import request_id_option, run_id_option, to_argument, workflow, workflow_id_argument
from romancy.client import Client
from romancy.errors import QueryError, RemoteError, UpdateError, UpdateRejected

_name: Final = click.argument("name", metavar="NAME")
_inputs: Final = click.option("--input", "inputs", multiple=True, metavar="JSON", help="An argument; once for each.")
_timeout: Final = click.option(
    "--timeout", type=float, callback=some_seconds, metavar="SECONDS", help="How long to wait for the answer at most."
)


def _values(inputs: tuple[str, ...]) -> list[Any]:
    return [to_argument(number, text) for number, text in enumerate(inputs, 1)]


@workflow.command()
@workflow_id_argument
@_name
@_inputs
@run_id_option
@request_id_option
@connected
async def signal(
    client: Client,
    output: Output,
    workflow_id: str,
    name: str,
    inputs: tuple[str, ...],
    run_id: str | None,
    request_id: str | None,
) -> None:
    """Send the signal NAME. It is recorded when this returns; when the code takes it is its own affair."""
    await client.get_handle(workflow_id, run_id).signal(name, *_values(inputs), request_id=request_id)
    if output.as_json:
        output.json({"workflow_id": workflow_id, "signal": name})
    else:
        output.line(f"Workflow {workflow_id} got the signal {name}.")


@workflow.command()
@workflow_id_argument
@_name
@_inputs
@run_id_option
@_timeout
@connected
async def query(
    client: Client,
    output: Output,
    workflow_id: str,
    name: str,
    inputs: tuple[str, ...],
    run_id: str | None,
    timeout: float | None,
) -> int | None:
    """Ask the query NAME and print the answer. Needs a worker that has the workflow's type."""
    handle = client.get_handle(workflow_id, run_id)
    try:
        async with asyncio.timeout(timeout):
            return await _answer(output, lambda: handle.query(name, *_values(inputs)), QueryError)
    except TimeoutError as error:
        text = f"workflow {workflow_id} did not answer the query {name} within {timeout} s"
        raise Failed(text, EXIT_TIMEOUT, "TIMEOUT", {"workflow_id": workflow_id}) from error


@workflow.command()
@workflow_id_argument
@_name
@_inputs
@run_id_option
@request_id_option
@_timeout
@connected
async def update(
    client: Client,
    output: Output,
    workflow_id: str,
    name: str,
    inputs: tuple[str, ...],
    run_id: str | None,
    request_id: str | None,
    timeout: float | None,
) -> int | None:
    """Ask for the update NAME, wait for its answer and print it.

    A workflow that refuses it, or fails at it, is exit code 1. After --timeout it may still be carried out.
    """
    handle = client.get_handle(workflow_id, run_id)

    async def ask() -> Any:
        return await handle.update(name, *_values(inputs), request_id=request_id)

    try:
        async with asyncio.timeout(timeout):
            return await _answer(output, ask, (UpdateRejected, UpdateError))
    except TimeoutError as error:
        text = f"workflow {workflow_id} did not answer the update {name} within {timeout} s; it may do so yet"
        raise Failed(text, EXIT_TIMEOUT, "TIMEOUT", {"workflow_id": workflow_id}) from error


async def _answer(
    output: Output, ask: Callable[[], Any], refusals: type[RemoteError] | tuple[type[RemoteError], ...]
) -> int | None:
    try:
        answer = await ask()
    except refusals as refusal:
        output.complain(f"{refusal.type}: {refusal.message}", refusal.type)
        return EXIT_NO_RESULT
    if output.as_json:
        output.json({"result": answer})
    else:
        output.value(answer)
    return None
