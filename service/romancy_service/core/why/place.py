"""Place: where an error was raised, read from a stack trace in the form that is usual in its language."""

from __future__ import annotations

import re
from typing import Final

_PYTHON: Final = re.compile(r'File "([^"\n]+)", line (\d+)')
"""The innermost call comes last; in the traces of all others, first."""
_FOLDERS: Final = re.compile(r"[/\\]")
_OTHERS: Final = re.compile(r"([^\s()]+\.(?:[cm]?[jt]sx?|java|kt|scala|go|rb|cs|rs|php)):(?:line )?(\d+)")


def raised_at(stack_trace: str) -> str:
    """File and line, as in order.py:31; empty if the trace does not say it."""
    if calls := _PYTHON.findall(stack_trace):
        path, line = calls[-1]
    elif call := _OTHERS.search(stack_trace):
        path, line = call.groups()
    else:
        return ""
    return f"{_FOLDERS.split(path)[-1]}:{line}"
