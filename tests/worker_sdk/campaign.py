"""Campaign: runs random programs against the simulated service and compares what live, sticky and replayed code saw."""

from __future__ import annotations

import gc
import random
from dataclasses import dataclass, field
from typing import Any

from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_pb2 import WorkflowSpec

from romancy._handlers import UnknownHandler
from romancy._instance import Activation, WorkflowInstance
from tests.worker_sdk import programs
from tests.worker_sdk.simulated import Rules, SimulatedService, timestamp

MAX_TASKS = 60
"""Programs end by themselves; this only stops what a mutant makes of them."""


class Difference(AssertionError):
    """Replayed code saw, or asked for, something else than live code."""


@dataclass(slots=True)
class Held:
    """A run in a worker's memory, with what its code has seen."""

    run_id: str
    instance: WorkflowInstance = field(init=False)
    trace: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.instance = WorkflowInstance(programs.program, workflow_id="w", run_id=self.run_id)

    def activate(self, events: list[HistoryEvent]) -> Activation:
        programs.trace = self.trace
        try:
            return self.instance.activate(events)
        finally:
            programs.trace = []

    def ask(self) -> Payload | str:
        """What the code answers a query, which must leave no trace."""
        try:
            return self.instance.query("state", [Payload(json="1")])
        except UnknownHandler as error:
            return str(error)  # it was cancelled before it began

    def drop(self) -> None:
        """Put it out of memory, which must not make its code see anything."""
        programs.trace = self.trace
        before = len(self.trace)
        self.instance.close()
        if len(self.trace) != before:
            raise Difference(f"putting the run out of memory ran code: {self.trace[before:]}")


@dataclass(slots=True)
class Campaign:
    """One program under one schedule, both by a seed."""

    seed: int
    rules: Rules = field(default_factory=Rules)
    collect: bool = False
    """Also let the collector run at random times."""
    tree: programs.Tree | None = None
    """The program, where the seed does not say it."""
    held: Held | None = None
    made: list[Held] = field(default_factory=list)
    boundaries: int = 0

    def run(self) -> None:
        """Raises Difference, Divergence or another error as soon as something is wrong."""
        try:
            self._run()
        finally:
            for held in self.made:  # what a failure left behind must not show up in the next program
                held.instance.close()

    def _hold(self) -> Held:
        held = Held(f"run-{self.seed}")
        self.made.append(held)
        return held

    def _run(self) -> None:
        rng = random.Random(self.seed)
        tree = self.tree or programs.random_tree(rng, rng.randint(1, 14))
        spec = WorkflowSpec(workflow_type="program", arguments=programs.program.encode_arguments((tree,), {}))
        service = SimulatedService(rng, spec, self.rules)
        if self.tree is not None:  # a race, in which signals must have a chance
            service.talks, service.talks_alone = 0.4, True
        while not service.closed and service.tasks < MAX_TASKS:
            if service.has_news():
                self._task(rng, service)
            elif self._then(rng, service) or service.deliver():
                continue
            elif service.cancel_requested:
                break
            else:
                service.request_cancel()  # the program waits for ever: see how it takes that
        if self.held is not None:
            self.held.drop()

    def _task(self, rng: random.Random, service: SimulatedService) -> None:
        task = service.send_task()
        fresh = self.held is None or rng.random() < 0.15
        if fresh:
            self._forget()
            self.held = self._hold()
        held = self.held
        assert held is not None
        activation = held.activate(task.full if fresh else task.news)
        self._collect(rng)
        for _ in range(rng.choice([0, 0, 1, 3])):  # meanwhile
            service.deliver()
        if rng.random() < 0.15:  # the task was lost, or taken from this worker
            if self.rules.refused_runs_are_forgotten:
                self._forget()
            if rng.random() < 0.5:
                return
            later, other = service.send_task(), self._hold()
            commands = other.activate(later.full).commands
            other.drop()
            completions = [(task, activation.commands), (later, commands)]  # it comes back after all
            rng.shuffle(completions)
            for completed, asked in completions:
                service.complete_task(completed, asked)
            return
        if not service.complete_task(task, activation.commands):
            raise Difference("a task that nobody else had was refused")
        self._compare(service, held, activation.closed)

    def _then(self, rng: random.Random, service: SimulatedService) -> bool:
        """Sometimes the worker that holds the run completes an activity and goes on by itself."""
        if self.held is None or service.closed or not service.activities or rng.random() < 0.6:
            return False
        activity_id = rng.choice(list(service.activities))
        completion = HistoryEvent(
            event_id=len(service.events) + 1,
            time=timestamp(service.now_ms + rng.choice([0, 3])),
            **service.close_activity(activity_id),
        )
        activation = self.held.activate([completion])
        service.complete_activity_then(completion, activation.commands)
        self._compare(service, self.held, activation.closed)
        return True

    def _compare(self, service: SimulatedService, live: Held, closed: bool) -> None:
        """Replay everything that was lived so far in a new instance."""
        self.boundaries += 1
        replayed = self._hold()
        # Objects must not lie where they lay before.
        _ = [object() for _ in range(self.boundaries * 7)]
        activation = replayed.activate(service.seen_history())
        if activation.commands:
            raise Difference(f"replay asks for more: {activation.commands[0]}")
        if activation.closed != closed:
            raise Difference("replay ends otherwise")
        if replayed.trace != live.trace:
            raise Difference(f"replay sees {_first_difference(replayed.trace, live.trace)}")
        if replayed.ask() != live.ask():
            raise Difference("replay answers a query otherwise")
        replayed.drop()

    def _forget(self) -> None:
        if self.held is not None:
            self.held.drop()
            self.held = None

    def _collect(self, rng: random.Random) -> None:
        if self.collect and rng.random() < 0.5:
            assert self.held is not None
            programs.trace = self.held.trace
            gc.collect()


def _first_difference(replayed: list[Any], live: list[Any]) -> str:
    for place, (ours, theirs) in enumerate(zip(replayed, live, strict=False)):
        if ours != theirs:
            return f"{ours} where live code saw {theirs} (step {place})"
    longer = max(replayed, live, key=len)
    return f"{len(replayed)} steps where live code saw {len(live)}: {longer[min(len(replayed), len(live))]}"
