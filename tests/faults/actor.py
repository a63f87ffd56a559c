"""Actor: a process of ours that a test starts, stops, freezes and kills. It is forked from one that has imported all that
they need, since importing takes most of the time until they are up.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import runpy
import signal
import sys
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Final

from romancy_service import faults

_PREPARED: Final = (
    "alembic.command",
    "romancy.client",
    "romancy.worker",
    "romancy_service.server",
    "romancy_service.store.postgres",
    "romancy_service.store.sqlite",
)
_END_S: Final = 20.0
_forks: Final = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload([*_PREPARED])


@dataclass(frozen=True)
class Actor:
    """One process, known by its name in the scene."""

    name: str
    process: ForkServerProcess
    log: Path

    @property
    def pid(self) -> int:
        """Its id, also after its end."""
        assert self.process.pid is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.is_alive()

    @property
    def exit_code(self) -> int | None:
        """How it ended: -9 after a SIGKILL. None: it has not."""
        return self.process.exitcode

    def signal(self, number: int) -> None:
        """Send a signal to this process, and to no other."""
        if self.alive:
            os.kill(self.pid, number)

    def wait(self) -> int:
        """Until it ended; its exit code."""
        self.process.join(_END_S)
        if self.exit_code is None:
            raise AssertionError(f"{self.name} does not end:\n{self.said()}")
        return self.exit_code

    def kill(self) -> None:
        """SIGKILL: it gets to do nothing more."""
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def said(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-4_000:]


def start(name: str, command: list[str], environment: dict[str, str], log: Path) -> Actor:
    """Run `python -m COMMAND` in a process of its own, which writes to `log`."""
    log.touch()
    process = _forks.Process(target=_become, args=(command, environment, log), name=name)
    process.start()
    return Actor(name, process, log)


def _become(command: list[str], environment: dict[str, str], log: Path) -> None:
    """In the new process: be what `python -m` would make of it."""
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, sys.stdout.fileno())
    os.dup2(output, sys.stderr.fileno())
    os.environ.update(environment)
    importlib.reload(faults)  # it reads the environment when it is imported
    sys.argv = command
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)
