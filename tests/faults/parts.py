"""Parts: twenty activities at once that end as a test tells each, by a word in a file. `python -m tests.faults.parts ADDRESS
WORKER_ID KIND...` is a worker that runs `workflows`, with the compensations, or `activities`.

A part that is asked to stop does so if its number is even, finishes nevertheless if it is odd, and if it was told to be
`deaf` notes that it was asked and goes on for ever.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

from romancy import NothingDone, TerminalError, Worker, WorkflowContext, activity, activity_info, compensation, workflow
from tests.faults.ledger import Entry, Kind, read, write

COUNT: Final = 20
MIDDLE: Final = 3
"""After so many compensations the next one waits for the file `go-on`."""
_FOLDER = Path(os.environ.get("ROMANCY_TEST_FOLDER", "."))


def tell(folder: Path, word: str, *numbers: int) -> None:
    """Say how parts end: `do`, `fail`, `hang` after the effect, or `deaf`."""
    for number in numbers:
        (folder / f"part-{number}").write_text(word)


def _note(kind: Kind) -> None:
    info = activity_info()
    write(_FOLDER / "ledger", Entry(kind, info.run_id, info.activity_id, info.attempt, str(os.getpid())))


async def _told(number: int) -> str:
    file = _FOLDER / f"part-{number}"
    while not (file.exists() and (word := file.read_text())):
        await asyncio.sleep(0.05)
    return word


@compensation
async def undo(number: int) -> None:
    _note("begin")
    undone = sum(e.kind == "effect" and e.activity_id.startswith("undo/") for e in read(_FOLDER / "ledger"))
    while undone == MIDDLE and not (_FOLDER / "go-on").exists():
        await asyncio.sleep(0.05)
    _note("effect")


@activity(compensation=undo)
async def part(number: int) -> int:
    _note("begin")
    try:
        word = await _told(number)
        if word == "deaf":
            await asyncio.Event().wait()
    except asyncio.CancelledError:
        if (file := _FOLDER / f"part-{number}").exists() and file.read_text() == "deaf":
            (_FOLDER / "asked").touch()
            await asyncio.Event().wait()
        if number % 2 == 0:
            raise NothingDone("it waited, and did nothing yet") from None
        word = "do"
    if word == "fail":
        raise TerminalError(f"part {number} failed")
    _note("effect")
    if word == "hang":
        await asyncio.Event().wait()
    return number


@workflow
async def twenty(ctx: WorkflowContext) -> int:
    return sum(await asyncio.gather(*(part(number) for number in range(COUNT))))


def main(address: str, worker_id: str, *kinds: str) -> None:
    """Work until SIGTERM."""
    Worker(
        address,
        worker_id=worker_id,
        workflows=[twenty] if "workflows" in kinds else (),
        activities=[undo] if "workflows" in kinds else [part],
        activity_slots=COUNT,
        drain_timeout=5,
    ).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
