"""Live, sticky and replayed code see the same; and each way of getting that wrong is noticed."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any

import pytest

from romancy.v1.command_pb2 import Command, RecordStep
from romancy.v1.history_pb2 import HistoryEvent

from romancy import _drop
from romancy._as_completed import _stock
from romancy._instance import Activation, WorkflowInstance
from romancy._loop import WorkflowLoop, _Task
from romancy._machine import Machine, is_input
from tests.worker_sdk.campaign import Campaign
from tests.worker_sdk.programs import WAITS, race
from tests.worker_sdk.simulated import Rules

PROGRAMS = int(os.environ.get("ROMANCY_PROGRAMS", "2000"))
MUTANT_PROGRAMS = 600
RACES = int(os.environ.get("ROMANCY_RACES", "16"))
"""For each two kinds of waits."""
AT_ONCE = {"step"}
"""What waits for nothing always comes first."""
RACERS = ("sleep", "event", "call", "signalled", "message", "child")

Patch = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The programs fail on purpose, also in tasks that nobody awaits."""
    log = logging.getLogger("romancy.workflow")
    level = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(level)


@pytest.mark.parametrize("part", range(3))
def test_live_sticky_and_replayed_code_see_the_same(part: int) -> None:
    boundaries = 0
    for seed in range(part, PROGRAMS, 3):
        campaign = Campaign(seed)
        try:
            campaign.run()
        except Exception as error:
            error.add_note(f"Campaign({seed}).run() does it again")
            raise
        boundaries += campaign.boundaries
    assert boundaries > PROGRAMS / 3


@pytest.mark.parametrize("one", WAITS)
def test_any_two_waits_that_race_have_the_same_winner_on_replay(one: str) -> None:
    for other in WAITS[WAITS.index(one) :]:
        won: Counter[str] = Counter()
        for seed in range(RACES):
            won[_winner(_race(seed, one, other), one)] += 1
        if one != other and one not in AT_ONCE and other not in AT_ONCE:
            assert min(won["this"], won["that"]) > 0, f"{one} against {other} is no race: {won}"


def _race(seed: int, one: str, other: str) -> Campaign:
    """Live through one race; raises what `test_live_sticky_and_replayed_code_see_the_same` would."""
    campaign = Campaign(seed, tree=race(random.Random(f"{seed} {one} {other}"), one, other))
    try:
        campaign.run()
    except Exception as error:
        error.add_note(f"_race({seed}, {one!r}, {other!r}) does it again")
        raise
    return campaign


def _winner(campaign: Campaign, one: str) -> str:
    """Whose end the code saw first: `this` is that of `one`; empty if both were given up."""
    trace = max((held.trace for held in campaign.made), key=len)
    begun = {seen[2]: seen[1] for seen in trace if seen[0] == "begin"}
    racing = {number for number, operation in begun.items() if operation in WAITS}
    for seen in trace:
        if seen[0] == "end" and seen[1] in racing:
            return "this" if begun[seen[1]] == one else "that"
    return ""


def test_a_race_that_is_decided_anew_on_replay_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        _apply_all_inputs_before_the_code_runs(patch)
        pairs = [(one, other) for one in RACERS for other in RACERS if _is_noticed_in_a_race(one, other)]
        assert len(pairs) == len(RACERS) ** 2, pairs
    _let_timers_win_on_replay(monkeypatch)
    assert [other for other in RACERS if _is_noticed_in_a_race("sleep", other)] == [*RACERS]


def _is_noticed_in_a_race(one: str, other: str) -> bool:
    for seed in range(RACES):
        try:
            _race(seed, one, other)
        except Exception:
            return True
    return False


def test_the_collector_changes_nothing_that_code_sees() -> None:
    gc.freeze()  # only what the programs make is looked through
    try:
        for seed in range(100):
            Campaign(seed, collect=True).run()
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("rule", Rules.__dataclass_fields__)
def test_a_service_or_worker_that_breaks_the_rule_is_noticed(rule: str) -> None:
    assert _is_noticed(rules=Rules(**{rule: False}))


def _apply_all_inputs_before_the_code_runs(patch: pytest.MonkeyPatch) -> None:
    drain, take, pass_command = WorkflowLoop.drain, Machine.take_commands, Machine.pass_command
    loops: dict[Machine, WorkflowLoop] = {}

    def drain_late(self: WorkflowLoop) -> None:
        loops[self.machine] = self

    def then_pass(self: Machine, event: HistoryEvent) -> None:
        drain(loops[self])
        pass_command(self, event)

    def then_take(self: Machine) -> list[Command]:
        drain(loops[self])
        return take(self)

    patch.setattr(WorkflowLoop, "drain", drain_late)
    patch.setattr(Machine, "pass_command", then_pass)
    patch.setattr(Machine, "take_commands", then_take)


def _let_timers_win_on_replay(patch: pytest.MonkeyPatch) -> None:
    """In a history, of inputs that came one after the other timers are looked at first."""
    activate = WorkflowInstance.activate

    def timers_first(self: WorkflowInstance, events: Sequence[HistoryEvent]) -> Activation:
        ordered = list(events)
        if events[0].HasField("workflow_started"):
            for place in range(2, len(ordered)):
                before, event = ordered[place - 1 : place + 1]
                if event.HasField("timer_fired") and is_input(before):
                    ordered[place - 1 : place + 1] = event, before
        return activate(self, ordered)

    patch.setattr(WorkflowInstance, "activate", timers_first)


def _take_loop_time_from_the_process(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(WorkflowLoop, "time", lambda self: monotonic() * 1000)


def _take_now_from_the_process(patch: pytest.MonkeyPatch) -> None:
    def advance(self: WorkflowLoop, time_ms: int, event_id: int) -> None:
        self.now_ms, self.last_event_id = int(monotonic() * 1e6), event_id

    patch.setattr(WorkflowLoop, "advance", advance)


def _run_on_after_the_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Machine, "close", lambda self: None)


def _hash_tasks_by_address(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_Task, "__hash__", object.__hash__)


def _hash_gather_futures_by_address(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(asyncio.tasks._GatheringFuture, "__hash__", object.__hash__)  # type: ignore[attr-defined]


def _name_tasks_by_the_process(patch: pytest.MonkeyPatch) -> None:
    create_task = WorkflowLoop.create_task
    count = iter(range(10**9))

    def name(self: WorkflowLoop, coro: Any, *, name: str | None = None, context: Any = None) -> asyncio.Task[Any]:
        return create_task(self, coro, name=name or f"Task-{next(count)}", context=context)

    patch.setattr(WorkflowLoop, "create_task", name)


def _use_stock_as_completed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(asyncio, "as_completed", _stock)


def _hold_tasks_weakly(patch: pytest.MonkeyPatch) -> None:
    create_task = WorkflowLoop.create_task

    def forget(self: WorkflowLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task = create_task(self, coro, **options)
        self._tasks.clear()
        return task

    patch.setattr(WorkflowLoop, "create_task", forget)


def _leave_async_generators_to_the_collector(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(WorkflowLoop, "_hold_generator", lambda self, generator: None)


def _unwind_what_is_put_out_of_memory(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_drop, "_WORKS", False)


def _make_local_steps_again(patch: pytest.MonkeyPatch) -> None:
    record_step = Machine.record_step

    def make_again(self: Machine, name: str, make: Callable[[], RecordStep]) -> RecordStep | None:
        return make() if record_step(self, name, make) is not None else None

    patch.setattr(Machine, "record_step", make_again)


def _let_queries_leave_a_trace(patch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def anything(self: WorkflowLoop, who: str) -> Iterator[None]:
        yield

    patch.setattr(WorkflowLoop, "only_reading", anything)


def _answer_updates_out_of_turn(patch: pytest.MonkeyPatch) -> None:
    """The answer of an update does not wait for its place among the commands."""
    patch.setattr(Machine, "complete_update", lambda self, command: self.commands.append(Command()))


@pytest.mark.parametrize(
    ("mutate", "collect"),
    [
        (_make_local_steps_again, False),
        (_let_queries_leave_a_trace, False),
        (_answer_updates_out_of_turn, False),
        (_apply_all_inputs_before_the_code_runs, False),
        (_take_loop_time_from_the_process, False),
        (_take_now_from_the_process, False),
        (_run_on_after_the_end, False),
        (_hash_tasks_by_address, False),
        (_hash_gather_futures_by_address, False),
        (_name_tasks_by_the_process, False),
        (_use_stock_as_completed, False),
        (_hold_tasks_weakly, True),
        (_leave_async_generators_to_the_collector, True),
        (_unwind_what_is_put_out_of_memory, False),
    ],
)
@pytest.mark.filterwarnings("ignore")  # broken on purpose
def test_an_sdk_that_is_broken_like_this_is_noticed(
    mutate: Patch, collect: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    assert _is_noticed(collect=collect)
    gc.collect()  # here its warnings are ignored: what is broken is not put out of memory in order


def _is_noticed(rules: Rules | None = None, *, collect: bool = False) -> bool:
    until = monotonic() + 60
    for seed in range(MUTANT_PROGRAMS):
        try:
            Campaign(seed, rules or Rules(), collect).run()
        except Exception:
            return True
        if monotonic() > until:
            break
    return False
