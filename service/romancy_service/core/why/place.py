"""Place: where an error was raised, read from a stack trace in the form that is usual in its language."""

from __future__ import annotations

import re
from typing import Final

_PYTHON: Final = re.compile(r'File "([^"\n]+)", line (\d+)')
"""The innermost call comes last; in the traces of all others, first."""
_INTERNAL: Final = re.compile(
    r"[/\\]romancy[/\\](?:_\w+|channels|children|context|converter|events)\.py$"
    r"|[/\\]lib[/\\]python3[.\d]*[/\\](?!site-packages|dist-packages)"
    r"|^<"
)
"""Files of the SDK and of Python itself, where an error often is raised that somebody else made."""
_LIBRARIES: Final = re.compile(rf"{_INTERNAL.pattern}|[/\\](site|dist)-packages[/\\]")
_FOLDERS: Final = re.compile(r"[/\\]")
_OTHERS: Final = re.compile(r"([^\s()]+\.(?:[cm]?[jt]sx?|java|kt|scala|go|rb|cs|rs|php)):(?:line )?(\d+)")


def raised_at(stack_trace: str) -> str:
    """File and line, as in order.py:31, of the user's own code where that can be told; empty if the trace is mute."""
    if calls := _PYTHON.findall(stack_trace):
        path, line = next(
            (call for ours in (_LIBRARIES, _INTERNAL) for call in reversed(calls) if not ours.search(call[0])),
            calls[-1],
        )
    elif call := _OTHERS.search(stack_trace):
        path, line = call.groups()
    else:
        return ""
    return f"{_FOLDERS.split(path)[-1]}:{line}"
