"""Faults: named points at which tests let the process die or freeze, or lose a connection whose statement was sent.

Nothing happens unless the environment asks for it:

- ``ROMANCY_CRASH_AT=commit.before:3`` kills the process with SIGKILL the third time it comes there.
- ``ROMANCY_STOP_AT=commit.before:3`` freezes it there with SIGSTOP, until a test lets it go on.
- ``ROMANCY_AMBIGUOUS_AT=commit:2`` makes the second commit end with an unknown outcome, although it is carried out.
- ``ROMANCY_FAULT_LOG=FILE`` appends the name of each point that is reached.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import Final, Literal, get_args

Point = Literal["commit.before", "commit.after", "claim.after"]
"""Where to die or freeze: a commit is about to be made, was made and nobody knows, tasks were leased and not sent."""
SchedulePoint = Literal["schedule.before", "schedule.started", "schedule.after"]
"""The same for schedules: one is about to be written, its runs were started and nobody knows, it was written."""
ChangePoint = Literal["change.before", "change.after"]
"""The same for what people change about schedules: it is about to be written, it was and nobody knows."""
PublishPoint = Literal["publish.stored", "publish.delivered", "publish.counted"]
"""The same for events: one was stored and nobody knows, all have it and it is still open, its rules have counted it."""
OutboxPoint = Literal["outbox.claimed", "outbox.answered", "outbox.delivered", "outbox.buried", "outbox.put_off"]
"""The same for the outbox: events are claimed and not sent, the sink answered and nobody else knows, what became of an
event was written down: it was delivered, is dead, or is tried later."""
LetterPoint = Literal["letters.before", "letters.after"]
"""The same for dead letters: some are about to be sent again or dropped, that was written and nobody knows."""
ElsewherePoint = Literal["elsewhere.before", "elsewhere.after"]
"""The same for attempts that leave their workers: they are about to be handed over, they were and nobody knows."""
Between = Literal["retention.batch", "removal.before", "removal.after"]
"""Where to die too: a batch of what is past its retention is deleted, and the next one is not; a run is about to be
deleted, was deleted and nobody knows."""
Doubt = Literal["commit", "claim"]
"""What may be carried out without an answer."""
POINTS: Final[tuple[Point, ...]] = get_args(Point)
SCHEDULE_POINTS: Final[tuple[SchedulePoint, ...]] = get_args(SchedulePoint)
CHANGE_POINTS: Final[tuple[ChangePoint, ...]] = get_args(ChangePoint)
ELSEWHERE_POINTS: Final[tuple[ElsewherePoint, ...]] = get_args(ElsewherePoint)
OUTBOX_POINTS: Final[tuple[OutboxPoint, ...]] = get_args(OutboxPoint)
LETTER_POINTS: Final[tuple[LetterPoint, ...]] = get_args(LetterPoint)
PUBLISH_POINTS: Final[tuple[PublishPoint, ...]] = get_args(PublishPoint)
DOUBTS: Final[tuple[Doubt, ...]] = get_args(Doubt)

_reached: Counter[str] = Counter()


def _parse(variable: str) -> tuple[str, int]:
    name, _, count = os.environ.get(variable, "").partition(":")
    return name, int(count or 1)


_CRASH_AT = _parse("ROMANCY_CRASH_AT")
_STOP_AT = _parse("ROMANCY_STOP_AT")
_AMBIGUOUS_AT = _parse("ROMANCY_AMBIGUOUS_AT")
_LOG = os.environ.get("ROMANCY_FAULT_LOG", "")
_ACTIVE = bool(_CRASH_AT[0] or _STOP_AT[0] or _AMBIGUOUS_AT[0] or _LOG)


def point(
    name: Point | SchedulePoint | ChangePoint | PublishPoint | ElsewherePoint | OutboxPoint | LetterPoint | Between,
) -> None:
    """Die or freeze here if the environment says so."""
    if not _ACTIVE:
        return
    reached = _reach(name)
    if reached == _CRASH_AT:
        os.kill(os.getpid(), signal.SIGKILL)
    if reached == _STOP_AT:
        os.kill(os.getpid(), signal.SIGSTOP)


def ambiguous(name: Doubt) -> bool:
    """Whether to lose the connection here: what was sent is carried out, but nobody hears of it."""
    return _ACTIVE and _reach(name) == _AMBIGUOUS_AT


def _reach(name: str) -> tuple[str, int]:
    _reached[name] += 1
    if _LOG:
        with open(_LOG, "a", encoding="utf-8") as log:
            log.write(name + "\n")
    return name, _reached[name]
