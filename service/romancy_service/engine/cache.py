"""Cache: the open runs that this replica keeps in memory, as many as fit, those used last."""

from __future__ import annotations

from collections import OrderedDict

from romancy_service.core.run import Run


class RunCache:
    """Runs as they are stored, or as they are being committed. Another replica may have changed one since."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._runs: OrderedDict[str, tuple[Run, int]] = OrderedDict()
        self._bytes = 0

    def get(self, run_id: str) -> Run | None:
        """The run, if it is kept."""
        kept = self._runs.get(run_id)
        return kept[0] if kept is not None else None

    def put(self, run: Run) -> None:
        """Keep a run that was committed, as large as it is now, in place of those that were not used for longest."""
        if not run.is_open:
            self.drop(run.run_id)
            return
        size = run.bytes_in_memory
        before = self._runs.get(run.run_id)
        self._runs[run.run_id] = (run, size)
        self._runs.move_to_end(run.run_id)
        self._bytes += size - (before[1] if before is not None else 0)
        while self._bytes > self._most_bytes:
            _, (_, freed) = self._runs.popitem(last=False)
            self._bytes -= freed

    def runs(self) -> list[Run]:
        """All that are kept."""
        return [run for run, _ in self._runs.values()]

    def drop(self, run_id: str) -> None:
        """Read the run again before anything else is decided on it."""
        if (dropped := self._runs.pop(run_id, None)) is not None:
            self._bytes -= dropped[1]
