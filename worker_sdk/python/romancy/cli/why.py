"""`romancy workflow why` and `chain`: what a workflow waits for, and the runs that it went on in."""

from __future__ import annotations

from collections.abc import Iterator

from romancy.v1.wait_pb2 import Wait, WaitState
from romancy.v1.workflow_pb2 import WorkflowInfo
from romancy.v1.workflow_service_pb2 import WorkflowFilter

from romancy.cli.connection import connected
from romancy.cli.output import Output
from romancy.cli.plain import enum_name, moment, plain, status_name
from romancy.cli.workflow import run_id_option, workflow, workflow_id_argument
from romancy.client import Client


@workflow.command()
@workflow_id_argument
@run_id_option
@connected
async def why(client: Client, output: Output, workflow_id: str, run_id: str | None) -> None:
    """Say what a workflow waits for or is blocked by, the most important first, and what can be done about it."""
    answer = await client.get_handle(workflow_id, run_id).describe()
    info = answer.info
    if output.as_json:
        shown = {"workflow_id": info.workflow_id, "run_id": info.run_id, "status": status_name(info.status)}
        output.json({**shown, "waits": [plain(wait) for wait in answer.waits]})
        return
    ended = info.HasField("close_time")
    when = f"since {moment(info, 'close_time')}" if ended else f"started {moment(info, 'start_time')}"
    nothing = "" if answer.waits else "; it waits for nothing"
    output.line(f"{info.workflow_id} is {status_name(info.status)}, {when}, {info.history_length} events{nothing}")
    output.fields(line for wait in answer.waits for line in _lines(wait))


def _lines(wait: Wait) -> Iterator[tuple[str, str]]:
    yield enum_name(WaitState.DESCRIPTOR, wait.state), wait.sentence
    if wait.remedy:
        yield "", f"-> {wait.remedy}"


@workflow.command()
@workflow_id_argument
@run_id_option
@connected
async def chain(client: Client, output: Output, workflow_id: str, run_id: str | None) -> None:
    """List the runs of a workflow that went on in each other, newest first: the newest chain, or that of --run-id."""
    first = (await client.get_handle(workflow_id, run_id).describe()).info.first_run_id
    runs: list[WorkflowInfo] = []
    async for info in client.list_workflows(WorkflowFilter(workflow_id=workflow_id), limit=None):
        if info.first_run_id == first:
            runs.append(info)
        if info.run_id == first:
            break
    if output.as_json:
        for info in runs:
            output.json(plain(info))
        return
    output.table(
        ["RUN", "STATUS", "STARTED", "CLOSED", "EVENTS", "BYTES", "CONTINUES"],
        [
            (
                *(info.run_id, status_name(info.status), moment(info, "start_time"), moment(info, "close_time")),
                *(info.history_length, info.history_bytes, info.continued_from_run_id),
            )
            for info in runs
        ],
    )
