"""Entrant: a system that can be measured, and its processes while it is."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tests.bench.database import PostgresCluster
from tests.bench.process import Process, tree_cpu_s


class CannotRun(Exception):
    """This machine lacks something that the system needs; the text says what."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How it is loaded."""

    in_flight: int
    warm_up_s: float
    seconds: float

    @property
    def words(self) -> tuple[str, str, str]:
        """The same for a command line; see closed_loop.py."""
        return str(self.in_flight), str(self.warm_up_s), str(self.seconds)


class Running(Protocol):
    """An entrant that was started, with nothing to do yet."""

    def start_client(self, terms: Terms) -> Process:
        """Start the load; the client tells as closed_loop.py does."""
        ...

    def cpu_s(self) -> float:
        """CPU time of all processes so far: servers, database, workers and client."""
        ...


class Entrant(Protocol):
    """A system on a database of its own kind."""

    name: str
    database: str
    variant: str
    """Which of `variants` is in use. May be changed between runs."""

    @property
    def variants(self) -> Sequence[str]:
        """The ways to set it up that are worth a try, by name; none: there is one way."""
        ...

    def prepare(self, cluster: PostgresCluster) -> None:
        """Fetch, build and set up what all its runs need. Raises CannotRun."""
        ...

    def running(self) -> AbstractContextManager[Running]:
        """Start it with nothing stored, and end it after the block."""
        ...


@dataclass(slots=True)
class Processes:
    """A Running that is made of processes and, maybe, of the shared Postgres."""

    folder: Path
    cluster: PostgresCluster | None = None
    client_command: Callable[[Terms], list[str]] = lambda terms: []
    started: list[Process] = field(default_factory=list)

    def start(self, name: str, command: list[str], *, tells: bool = False) -> Process:
        """Start one of them."""
        process = Process(name, command, self.folder, tells=tells)
        self.started.append(process)
        return process

    def start_client(self, terms: Terms) -> Process:
        """See Running."""
        return self.start("client", self.client_command(terms), tells=True)

    def cpu_s(self) -> float:
        """See Running."""
        ours = sum(tree_cpu_s(process.pid) for process in self.started)
        return ours + (tree_cpu_s(self.cluster.pid) if self.cluster is not None else 0.0)


@contextlib.contextmanager
def processes(cluster: PostgresCluster | None = None) -> Iterator[Processes]:
    """Processes that end after the block, the last one first."""
    with tempfile.TemporaryDirectory(prefix="romancy-bench-", ignore_cleanup_errors=True) as folder:
        made = Processes(Path(folder), cluster)
        try:
            yield made
        finally:
            for process in reversed(made.started):
                process.stop()
