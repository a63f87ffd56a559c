"""Batch: the changes of one commit as rows, what they rest on, and which of them are written together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from romancy_service.store.rows import events_bytes, run_row, task_row, unowned_relay_ms
from romancy_service.store.store import Change

Rows = list[tuple[Any, ...]]


@dataclass(slots=True)
class Batch:
    """Every row begins with the number of its *unit*: one change, or two that are written together or not at all."""

    now_ms: int
    run: Rows = field(default_factory=list)
    """unit, the columns of `runs`, whether it is written, the run whose place it may take (or itself), the number of its
    first new event (or 0), its new events (or None). Its version is the one to be stored: 1 for a new run."""
    needed: Rows = field(default_factory=list)
    """unit, run id, task id, attempt, owner, epoch, relay_ms: tasks that must be there; 0 or -1: no matter which."""
    put: Rows = field(default_factory=list)
    """unit, the columns of `tasks`, `relay_ms` if it is not leased after all."""
    marked: Rows = field(default_factory=list)
    """unit, run id, task id: asked to stop, the lease left alone."""
    dropped: Rows = field(default_factory=list)
    """unit, run id, task id."""
    asked: Rows = field(default_factory=list)
    """unit, the columns of `requests`."""
    session_ids: set[str] = field(default_factory=set)
    """Who is to get tasks."""


def batch_of(changes: Sequence[Change], now_ms: int) -> Batch:
    """The rows of these changes."""
    batch = Batch(now_ms)
    units = {change.run.run_id: unit for unit, change in enumerate(changes)}
    for change in changes:
        if change.after and change.after not in units:
            raise ValueError(f"run {change.run.run_id} comes after {change.after}, which is not in its batch")
        unit = units[change.after or change.run.run_id]
        _add_run(batch, change, unit)
        _add_tasks(batch, change, unit)
    return batch


def _add_run(batch: Batch, change: Change, unit: int) -> None:
    run, events = change.run, change.run.new_events
    batch.run.append(
        (
            unit,
            *run_row(run),
            bool(events or run.touched),
            change.after or run.run_id,
            events[0].event_id if events else 0,
            events_bytes(events) if events else None,
        )
    )
    batch.asked.extend(
        (unit, asked.namespace, asked.request_id, asked.run_id, asked.method, asked.reply, batch.now_ms)
        for asked in change.requests
    )


def _add_tasks(batch: Batch, change: Change, unit: int) -> None:
    run = change.run
    for fence in change.fences:
        batch.needed.append((unit, run.run_id, fence.task_id, fence.attempt, fence.owner, fence.epoch, fence.relay_ms))
    for task_id, existed in run.touched.items():
        if existed:
            batch.needed.append((unit, run.run_id, task_id, 0, "", 0, -1))
        task = run.tasks.get(task_id)
        if task is None:
            if existed:
                batch.dropped.append((unit, run.run_id, task_id))
        elif task_id in run.rewritten:
            lease = change.leases.get(task_id)
            owner, epoch = ("", 0) if lease is None else (lease.session_id, lease.epoch)
            row = task_row(run, task, owner, epoch, batch.now_ms)
            batch.put.append((unit, *row, unowned_relay_ms(task, batch.now_ms)))
        else:
            batch.marked.append((unit, run.run_id, task_id))
    batch.session_ids.update(lease.session_id for lease in change.leases.values())
