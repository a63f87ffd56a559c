"""Frames: where in the user's code something happens, for errors that say so."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

_STDLIB: Final = sysconfig.get_path("stdlib")
_OURS: Final = str(Path(__file__).parent)


def frames_of_run() -> Iterator[FrameType]:
    """The frames of the workflow code that is running, innermost first, down to the loop that runs it."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not (frame.f_code.co_name == "drain" and frame.f_code.co_filename.startswith(_OURS)):
        yield frame
        frame = frame.f_back


def user_place() -> str:
    """` at file.py:line` of the user's code that is running; empty in a task that is an activity and nothing else."""
    for frame in frames_of_run():
        filename = frame.f_code.co_filename
        if not (filename.startswith((_OURS, "<")) or (filename.startswith(_STDLIB) and "-packages" not in filename)):
            return f" at {place(frame.f_code, frame.f_lineno)}"
    return ""


def place(code: CodeType, line: int) -> str:
    """`file.py:line`."""
    return f"{Path(code.co_filename).name}:{line}"
