"""Profile: where the processes spend their CPU time while they are measured, by py-spy.

Each process leaves `NAME.folded`: a line for each stack with how often it was seen, as flame graph programs read it. A
summary of it is printed. Sampling costs time itself, so figures of a profiled run are not to be kept.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.bench.process import Process
from tests.bench.system import System

_PY_SPY: Final = Path(sys.executable).parent / "py-spy"
_RATE: Final = 200
"""Samples a second and process."""
_TOP: Final = 40
_FINISH_S: Final = 30.0


class Profile:
    """Samples each process of a system for some seconds."""

    def __init__(self, running: System, folder: Path, seconds: float) -> None:
        """Begin. `finish` waits for the end."""
        if not _PY_SPY.exists():
            sys.exit("--profile needs py-spy beside this Python: python -m pip install py-spy")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        processes = [running.service, running.worker, *running.clients[-1:]]
        self._spies = {
            process.name: _spy(process, folder / f"{process.name}.folded", seconds)
            for process in processes
            if process is not None
        }

    def finish(self) -> None:
        """Wait until all is sampled, and print what was seen most."""
        for name, spy in self._spies.items():
            _, errors = spy.communicate(timeout=_FINISH_S)
            if spy.returncode != 0:
                print(f"{name} could not be profiled: {errors.strip()}", file=sys.stderr)
                continue
            print(f"\n{name}: where its time went")
            for line in summary(self._folder / f"{name}.folded"):
                print(line)


def _spy(process: Process, file: Path, seconds: float) -> subprocess.Popen[str]:
    command = [
        *(str(_PY_SPY), "record", "--pid", str(process.pid), "--output", str(file)),
        *(
            "--format",
            "raw",
            "--rate",
            str(_RATE),
            "--duration",
            str(max(1, int(seconds))),
            "--threads",
            "--nonblocking",
        ),
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def summary(file: Path) -> Iterator[str]:
    """The functions with the most time: by themselves, and with what they called."""
    alone: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for line in file.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [_function(frame) for frame in stack.split(";")]
        alone[frames[-1]] += int(count)
        within.update(dict.fromkeys(frames, int(count)))
    total = max(1, alone.total())
    yield f"  {'alone':>6} {'within':>6}  function ({total} samples)"
    for function in sorted(within, key=lambda name: -within[name])[:_TOP]:
        yield f"  {alone[function] / total:6.1%} {within[function] / total:6.1%}  {function}"
    yield f"  {'alone':>6} {'within':>6}  most by themselves"
    for function, samples in alone.most_common(_TOP):
        yield f"  {samples / total:6.1%} {within[function] / total:6.1%}  {function}"


def _function(frame: str) -> str:
    """A frame without its line: `carry (romancy_service/engine.py:240)` -> `carry (romancy_service/engine.py)`."""
    name, bracket, place = frame.rpartition(" (")
    path = place.rpartition(":")[0].removesuffix(")")
    return f"{name} ({'/'.join(Path(path).parts[-2:])})" if bracket else frame
