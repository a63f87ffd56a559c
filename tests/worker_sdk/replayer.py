"""Replayer: code lives again through histories that were recorded, in a process that has never seen their runs.

`python -m tests.worker_sdk.replayer PROGRAM HISTORIES` replays each run of the file HISTORIES (as `save` writes it)
from its beginning, with the workflows that the file PROGRAM defines, and prints what is another than it was. Then it
replays each history without one of its recorded commands, for each of them, and prints those whose absence nobody
noticed: so there is nothing in a history that is not looked at. It ends with 1 if it printed anything.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict

from romancy.v1.command_pb2 import Command
from romancy.v1.failure_pb2 import Failure
from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_CANCELLED

from romancy import WorkflowDefinition, WorkflowTaskError
from romancy._instance import Activation, WorkflowInstance
from romancy._machine import ends_run, is_command, is_input, replay_order
from romancy.workflow import definition_of


class Difference(AssertionError):
    """Replayed code asks for something else than is recorded."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A run, as the service has it."""

    workflow_id: str
    run_id: str
    events: list[HistoryEvent]

    @property
    def workflow_type(self) -> str:
        """What it is a run of."""
        return self.events[0].workflow_started.spec.workflow_type


def save(recorded: Sequence[Recorded], path: Path) -> None:
    """Keep them as a file, one line a run."""
    lines = [
        json.dumps([each.workflow_id, each.run_id, [MessageToDict(event) for event in each.events]])
        for each in recorded
    ]
    path.write_text("".join(f"{line}\n" for line in lines))


def saved(path: Path) -> Iterator[Recorded]:
    """The runs of a file."""
    for line in path.read_text().splitlines():
        workflow_id, run_id, events = json.loads(line)
        yield Recorded(workflow_id, run_id, [ParseDict(event, HistoryEvent()) for event in events])


def replay(definition: WorkflowDefinition[..., Any], recorded: Recorded, *, cut_off: bool = False) -> None:
    """Raise Difference or Divergence unless the code asks for what is recorded, all of it and, unless the run was cut
    off, nothing else.
    """
    lived = replay_order(recorded.events)
    again = _live(definition, recorded, lived)
    if again.commands and not cut_off:
        raise Difference(f"it asks for more: {again.commands[0]}")
    last = next((event for event in reversed(lived) if is_command(event)), None)
    if last is None or not again.closed or lived[-1] is not last:
        return
    # Its end once more, to see that it comes to the same result.
    end = _live(definition, recorded, lived[:-1]).commands
    if len(end) != 1 or _end_of(end[0]) != _end_in(last):
        raise Difference(f"it ends otherwise: {end} where {last} is recorded")


def was_cut_off(recorded: Recorded) -> bool:
    """Whether the run was ended from outside before its code had answered the last thing that it was told."""
    lived = replay_order(recorded.events)
    return len(lived) > 1 and ends_run(lived[-1]) and is_input(lived[-2])


def _live(definition: WorkflowDefinition[..., Any], recorded: Recorded, lived: Sequence[HistoryEvent]) -> Activation:
    instance = WorkflowInstance(definition, workflow_id=recorded.workflow_id, run_id=recorded.run_id)
    try:
        return instance.activate(lived)
    finally:
        instance.close()


def _end_of(command: Command) -> object:
    """How the code ended, as far as it says so itself: stacks have the paths of a process in them."""
    match command.WhichOneof("attributes"):
        case "complete_workflow":
            return command.complete_workflow.result
        case "continue_workflow":
            return command.continue_workflow.spec.arguments
        case "fail_workflow":
            return _said(command.fail_workflow.failure)
        case other:
            return other


def _end_in(event: HistoryEvent) -> object:
    match event.WhichOneof("attributes"):
        case "workflow_completed":
            return event.workflow_completed.result
        case "workflow_continued":
            return event.workflow_continued.spec.arguments
        case "rollback_started" if event.rollback_started.closing_status == WORKFLOW_STATUS_CANCELLED:
            return "cancel_workflow"
        case "rollback_started":
            return _said(event.rollback_started.failure)
        case other:
            return other


def _said(failure: Failure) -> list[tuple[str, str]]:
    said = [(failure.type, failure.message)]
    return said + _said(failure.cause) if failure.HasField("cause") else said


def unnoticed(definition: WorkflowDefinition[..., Any], recorded: Recorded) -> list[str]:
    """The commands without which the history replays as well."""
    missed = []
    for absent in filter(is_command, recorded.events):
        rest = [event for event in recorded.events if event is not absent]
        try:
            replay(definition, Recorded(recorded.workflow_id, recorded.run_id, rest))
        except (WorkflowTaskError, Difference):
            continue
        missed.append(f"{recorded.workflow_id} without {absent}")
    return missed


def definitions(program: Path) -> Mapping[str, WorkflowDefinition[..., Any]]:
    """The workflows that a file defines. Of two with one name the later one: it is the code as it is now."""
    spec = importlib.util.spec_from_file_location(program.stem, program)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[program.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = (definition_of(value) for value in vars(module).values())
    return {each.name: each for each in found if isinstance(each, WorkflowDefinition)}


def main(program: str, histories: str) -> int:
    """Replay, and say what is wrong."""
    known = definitions(Path(program))
    wrong: list[str] = []
    for recorded in saved(Path(histories)):
        definition = known[recorded.workflow_type]
        try:
            replay(definition, recorded, cut_off=was_cut_off(recorded))
        except (WorkflowTaskError, Difference) as error:
            wrong.append(f"{recorded.workflow_id}: {type(error).__name__}: {error}")
        else:
            wrong += unnoticed(definition, recorded)
    sys.stdout.write("".join(f"{line}\n" for line in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
