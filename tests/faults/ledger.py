"""Ledger: the world outside, in which effects of activities stay whatever dies. One line a fact, appended and synced."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["begin", "effect"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One attempt of an activity began, or had its effect."""

    kind: Kind
    run_id: str
    activity_id: str
    """`pay:1`, or `undo/pay:1` for a compensation."""
    attempt: int
    worker: str


def write(path: Path, entry: Entry) -> None:
    """Add a line. One write of an O_APPEND file is not torn by others, and is there after a crash."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, json.dumps(asdict(entry)).encode() + b"\n")
        os.fsync(file)
    finally:
        os.close(file)


def read(path: Path) -> list[Entry]:
    """All lines, in their order."""
    if not path.exists():
        return []
    return [Entry(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
