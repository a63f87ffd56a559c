"""Words: what sentences are made of."""

from __future__ import annotations

from typing import Final

from romancy.v1.failure_pb2 import Failure
from romancy.v1.wait_pb2 import Wait, WaitKind, WaitState

from romancy_service.core.task import COMPENSATION_PREFIX, Task
from romancy_service.core.times import rfc3339
from romancy_service.core.why.place import raised_at

_MESSAGE_CHARACTERS: Final = 300
"""So much of a failure's message stands in a sentence; the whole is beside it."""


def failure_text(failure: Failure) -> str:
    """A failure in a line: type, message, and where it was raised if its stack says so."""
    text = ": ".join(filter(None, (failure.type, one_line(failure.message))))
    place = raised_at(failure.stack_trace)
    return f"{text or 'a failure without a word'}{f' at {place}' if place and place not in text else ''}"


def span(ms: int) -> str:
    """A length of time, in the two largest units that it has."""
    tenths = max(ms, 0) // 100
    if tenths < 100:
        return f"{tenths / 10:g} s"
    seconds = tenths // 10
    for unit, size, lower, lower_size in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            rest = seconds % size // lower_size
            return f"{seconds // size} {unit}" + (f" {rest} {lower}" if rest else "")
    return f"{seconds} s"


def times(number: int, unit: str = "time") -> str:
    """A number of things."""
    return f"{number} {unit}{'s' * (number != 1)}"


def clock(ms: int) -> str:
    """A moment, to the second."""
    return rfc3339(ms // 1000 * 1000)


def one_line(text: str) -> str:
    """A text of the user's as part of a sentence."""
    return cut(" ".join(text.split()), _MESSAGE_CHARACTERS)


def cut(text: str, most: int) -> str:
    """At most so many characters of a text."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def name(task: Task) -> str:
    """What people call it: its id without what tells kinds apart."""
    return task.task_id.removeprefix(COMPENSATION_PREFIX) if task.is_compensation else task.task_id.partition("/")[2]


def say(wait: Wait, kind: WaitKind.ValueType, state: WaitState.ValueType, sentence: str, remedy: str = "") -> Wait:
    """The wait with what all of them have."""
    wait.kind, wait.state, wait.sentence, wait.remedy = kind, state, sentence, remedy
    return wait
