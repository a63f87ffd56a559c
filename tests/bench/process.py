"""Process: one of the processes that are measured, from its start to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

import psutil

ROOT: Final = Path(__file__).parents[2]
_POLLER: Final = {"GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener"}
"""As docs/performance.md recommends for workers and clients; the service has it by itself."""
_STOP_S: Final = 15.0


class ProcessFailed(Exception):
    """A measured process ended when it should not have; the text says where its output is."""


class Process:
    """A program. Standard error goes to a file, and standard output to `lines` if it `tells`, else to the file too."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, *, tells: bool = True) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        paths = [str(ROOT), str(ROOT / "service"), str(ROOT / "worker_sdk" / "python")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", **_POLLER}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if tells else log,
                stderr=log,
                text=True,
            )
        self._usage = psutil.Process(self._process.pid)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def lines(self) -> IO[str]:
        """What it prints."""
        assert self._process.stdout is not None
        return self._process.stdout

    def line(self) -> str:
        """The next line that it prints. Raises ProcessFailed when it ends instead."""
        line = self.lines.readline()
        if not line:
            self.check(ended=True)
        return line

    def check(self, *, ended: bool = False) -> None:
        """Raise ProcessFailed if the process is gone, or has closed its output."""
        if ended or self._process.poll() is not None:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
            raise ProcessFailed(f"{self.name} ended with {self._process.wait(_STOP_S)}; its last words:\n{tail}")

    def cpu_s(self) -> float:
        """CPU time that it used so far."""
        times = self._usage.cpu_times()
        return times.user + times.system

    def rss_mb(self) -> float:
        """Memory that it occupies now."""
        return self._usage.memory_info().rss / 1e6

    def finish(self) -> None:
        """Wait for its end, which it is on its way to."""
        self._process.wait(_STOP_S)

    def kill(self) -> None:
        """Make it end at once."""
        self._process.kill()

    def stop(self) -> None:
        """Ask it to end, and make it end if it does not."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                print(f"{self.name} did not end within {_STOP_S:.0f} s of SIGTERM and was killed", file=sys.stderr)
                self._process.kill()
                self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def python(module: str, *arguments: object, interpreter: Path | str = sys.executable) -> list[str]:
    """The command that runs a module of this checkout."""
    return [str(interpreter), "-m", module, *map(str, arguments)]


def tree_cpu_s(pid: int) -> float:
    """CPU time of a process and its children, those that ended included."""
    parent = psutil.Process(pid)
    while True:
        before = parent.cpu_times()
        children = 0.0
        for child in parent.children(recursive=True):
            try:
                used = child.cpu_times()
            except psutil.NoSuchProcess:
                continue
            children += used.user + used.system
        after = parent.cpu_times()
        if (before.children_user, before.children_system) == (after.children_user, after.children_system):
            return after.user + after.system + after.children_user + after.children_system + children
        # One ended meanwhile: its time is the parent's from now on, and would be counted twice, or not at all.


def machine_cpu_s() -> float:
    """CPU time of everything that runs on this machine."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))
