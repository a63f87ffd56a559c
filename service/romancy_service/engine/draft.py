"""Draft: one run of a batch, decided and not committed yet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from romancy_service.core.decide import Reply
from romancy_service.core.run import Run
from romancy_service.errors import RomancyError
from romancy_service.store.store import Change
from romancy_service.submission import Submission


@dataclass(slots=True)
class Draft:
    """One run of a batch, decided and not committed yet."""

    run: Run
    change: Change
    decided: list[tuple[Submission, Reply | RomancyError]] = field(default_factory=list)
    successor: Draft | None = None
    """Written together with this one, or not at all."""
    bytes_before: int = field(init=False)
    """Of the run's history."""

    def __post_init__(self) -> None:
        self.bytes_before = self.run.history_bytes

    @property
    def submissions(self) -> list[Submission]:
        """What it decides."""
        return [submission for submission, _ in self.decided]

    @property
    def bytes(self) -> int:
        """Its new events."""
        own = self.run.history_bytes - self.bytes_before
        return own if self.successor is None else own + self.successor.bytes

    def both(self) -> Iterator[Draft]:
        """This one, and the one that is written with it."""
        yield self
        if self.successor is not None:
            yield self.successor
