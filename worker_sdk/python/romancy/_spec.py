"""What a workflow is started with, by clients and by schedules: checked, and in the contract's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from google.protobuf.duration_pb2 import Duration

from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import WorkflowSpec

from romancy._checks import check_type
from romancy.attributes import Attribute, encode_attributes
from romancy.converter import codec
from romancy.options import Seconds, check_seconds, to_duration
from romancy.workflow import WorkflowDefinition, definition_of


class SpecOptions(TypedDict, total=False):
    """How a workflow runs."""

    task_queue: str
    """Where its workers are; without one, "default"."""
    run_timeout: Seconds | None
    """Longest time until it is undone; without one, no limit."""
    execution_timeout: Seconds | None
    """The same through all runs that continue it."""
    start_delay: Seconds | None
    """Its code runs so much later, and timeouts count from then on."""
    priority: int
    """Smaller is sooner; 0 is ordinary."""
    headers: Mapping[str, str]
    """Context that travels with every task of the workflow."""
    memo: Mapping[str, Any]
    """Values for people, shown with the workflow."""
    attributes: Mapping[Attribute[Any], Any]
    """Typed values that lists can be filtered on; the workflow's code can change them."""
    build_id: str
    """The build that it is for; any unless said."""


def check_spec(options: SpecOptions) -> None:
    """Raise TypeError or ValueError for what is not of its type."""
    for span in ("run_timeout", "execution_timeout", "start_delay"):
        check_seconds(span, options.get(span))
    check_type("priority", options.get("priority", 0), int, "a whole number")
    check_type("task_queue", options.get("task_queue", ""), str, "the name of a queue")
    for name in ("headers", "memo"):
        check_type(name, options.get(name, {}), Mapping, "a mapping of names to values")
    for name, value in options.get("headers", {}).items():
        check_type(f"header {name!r}", value, str, "a text")


def to_spec(workflow: Any, args: tuple[Any, ...], options: SpecOptions) -> WorkflowSpec:
    """The workflow, by its definition or its name, with its arguments. Raises TypeError and ConversionError."""
    name, arguments = _encode(definition_of(workflow), args)
    return WorkflowSpec(
        workflow_type=name,
        task_queue=options.get("task_queue", ""),
        arguments=arguments,
        run_timeout=_optional(options.get("run_timeout")),
        execution_timeout=_optional(options.get("execution_timeout")),
        start_delay=_optional(options.get("start_delay")),
        priority=options.get("priority", 0),
        headers=options.get("headers"),
        memo={key: codec(Any).encode(value, f"memo {key!r}") for key, value in options.get("memo", {}).items()},
        attributes=encode_attributes(options.get("attributes", {})),
        build_id=options.get("build_id", ""),
    )


def _encode(workflow: Any, args: tuple[Any, ...]) -> tuple[str, list[Payload]]:
    if isinstance(workflow, WorkflowDefinition):
        return workflow.name, workflow.encode_arguments(args, {})
    if isinstance(workflow, str):
        return workflow, [codec(Any).encode(value, f"argument {n} of {workflow}") for n, value in enumerate(args, 1)]
    raise TypeError(f"{workflow!r} is no workflow: give a function decorated with @workflow, or the name of one")


def _optional(span: Seconds | None) -> Duration | None:
    return None if span is None else to_duration(span)
