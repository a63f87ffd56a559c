"""Compensations: warns when code asks for one that its worker does not run, before something is to be undone."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Final

from romancy.v1.command_pb2 import Command, Compensation

_log: Final = logging.getLogger("romancy.worker")


class Compensations:
    """What undoes children, or belongs to no activity: no activity that is registered brings it along."""

    def __init__(self, activity_types: Collection[str], task_queues: Collection[str]) -> None:
        self._known = set(activity_types)
        self._task_queues = frozenset(task_queues)

    def check(self, command: Command) -> None:
        """Warn, once for each, of what this worker should have and has not."""
        wanted = _of(command)
        if wanted is None or wanted.activity_type in self._known:
            return
        if wanted.task_queue and wanted.task_queue not in self._task_queues:
            return  # of others
        self._known.add(wanted.activity_type)
        _log.warning(
            "workflow code asked for the compensation %r, which this worker does not have: unless another worker of "
            "the queue has it, nothing is undone; give it to the worker: Worker(..., activities=[..., %s])",
            *(wanted.activity_type, wanted.activity_type),
        )


def _of(command: Command) -> Compensation | None:
    if command.HasField("register_compensation"):
        return command.register_compensation.compensation
    if command.HasField("start_child") and command.start_child.HasField("compensation"):
        return command.start_child.compensation
    return None
