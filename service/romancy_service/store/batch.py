"""Batch: the changes of one commit as rows, what they rest on, and which of them are written together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from romancy_service.core.run import Run
from romancy_service.store.rows import attribute_rows, events_bytes, run_row, task_row, unowned_relay_ms
from romancy_service.store.store import Change

Rows = list[tuple[Any, ...]]


# What becomes of a task that a change uses.
KEEP: Final = 0
DROP: Final = 1
MARK: Final = 2
"""It is asked to stop; its lease is left alone."""


@dataclass(slots=True)
class Batch:
    """Every row begins with its *unit*: one change, or two that are written together. Units are numbered from 1."""

    now_ms: int
    run: Rows = field(default_factory=list)
    """unit, the columns of `runs`, whether it is written, the run whose place it may take (or itself), its new events
    (or None). Its version is the one to be stored: 1 for a new run."""
    used: Rows = field(default_factory=list)
    """Tasks that must be there: unit, run id, task id, attempt, owner, epoch, relay_ms, use. An attempt of 0, or a
    relay_ms of -1, means that it does not matter."""
    put: Rows = field(default_factory=list)
    """unit, the columns of `tasks`, `relay_ms` if it is not leased after all."""
    asked: Rows = field(default_factory=list)
    """unit, the columns of `requests`."""
    shown: Rows = field(default_factory=list)
    """unit, the columns of `attributes`."""
    hidden: Rows = field(default_factory=list)
    """Attributes that are stored by fewer rows than before: unit, run id, name, how many stay."""
    sent: Rows = field(default_factory=list)
    """Events for sinks: unit, their number in the batch, namespace, workflow id, sink, run id, event, since when."""
    lines: Rows = field(default_factory=list)
    """unit, namespace, sink and workflow id of those events, each once, since when."""
    session_ids: set[str] = field(default_factory=set)
    """Who is to get tasks."""

    @property
    def is_single(self) -> bool:
        """Whether it is one change, with no more than one row of each kind."""
        others = (self.used, self.put, self.asked, self.shown, self.hidden, self.sent, self.lines, self.session_ids)
        return len(self.run) == 1 and all(len(each) < 2 for each in others)


def batch_of(changes: Sequence[Change], now_ms: int) -> Batch:
    """The rows of these changes."""
    batch = Batch(now_ms)
    run_ids = {change.run.run_id for change in changes}
    units: dict[str, int] = {}
    for change in changes:
        if change.after and change.after not in run_ids:
            raise ValueError(f"run {change.run.run_id} comes after {change.after}, which is not in its batch")
        unit = units.setdefault(change.after or change.run.run_id, len(units) + 1)
        _add_run(batch, change, unit)
        _add_tasks(batch, change, unit)
        _add_attributes(batch, change.run, unit)
        _add_sent(batch, change.run, unit)
    return batch


def _add_run(batch: Batch, change: Change, unit: int) -> None:
    run, events = change.run, change.run.new_events
    batch.run.append(
        (
            unit,
            *run_row(run),
            bool(events or run.touched),
            change.after or run.run_id,
            events_bytes(events) if events else None,
        )
    )
    batch.asked.extend(
        (unit, asked.namespace, asked.request_id, asked.run_id, asked.method, asked.reply, batch.now_ms)
        for asked in change.requests
    )


def _add_tasks(batch: Batch, change: Change, unit: int) -> None:
    run = change.run
    uses = {task_id: _use(run, task_id) for task_id, existed in run.touched.items() if existed}
    for fence in change.fences:
        use = uses.pop(fence.task_id, KEEP)
        batch.used.append(
            (unit, run.run_id, fence.task_id, fence.attempt, fence.owner, fence.epoch, fence.relay_ms, use)
        )
    batch.used.extend((unit, run.run_id, task_id, 0, "", 0, -1, use) for task_id, use in uses.items())
    for task_id in run.rewritten:
        task = run.tasks[task_id]
        lease = change.leases.get(task_id)
        owner, epoch = ("", 0) if lease is None else (lease.session_id, lease.epoch)
        row = task_row(run, task, owner, epoch, batch.now_ms)
        batch.put.append((unit, *row, unowned_relay_ms(task, batch.now_ms)))
    batch.session_ids.update(lease.session_id for lease in change.leases.values())


def _add_attributes(batch: Batch, run: Run, unit: int) -> None:
    for name, before in run.set_attributes.items():
        rows = attribute_rows(run, name) if name in run.attributes else []
        batch.shown.extend((unit, *row) for row in rows)
        if len(rows) < before:
            batch.hidden.append((unit, run.run_id, name, len(rows)))


def _add_sent(batch: Batch, run: Run, unit: int) -> None:
    for each in run.outgoing:
        event = each.event.SerializeToString()
        number = len(batch.sent) + 1
        batch.sent.append((unit, number, run.namespace, run.workflow_id, each.sink, run.run_id, event, batch.now_ms))
    for sink in sorted({each.sink for each in run.outgoing}):
        batch.lines.append((unit, run.namespace, sink, run.workflow_id, batch.now_ms))


def _use(run: Run, task_id: str) -> int:
    if task_id not in run.tasks:
        return DROP
    return KEEP if task_id in run.rewritten else MARK
