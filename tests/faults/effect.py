"""Effect: what activities of workers that are to die have to show for it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Final

from romancy import activity_info
from tests.faults.ledger import Entry, Kind, write

_KINDS: Final[tuple[Kind, ...]] = ("begin", "effect")
_FOLDER: Final = Path(os.environ.get("ROMANCY_TEST_FOLDER", "."))
_DIE: Final = os.environ.get("ROMANCY_TEST_DIE", "")


def have_effect() -> None:
    """Note it in the ledger; then, in the first attempt of the activity that ROMANCY_TEST_DIE names, die."""
    info = activity_info()
    for kind in _KINDS:
        write(_FOLDER / "ledger", Entry(kind, info.run_id, info.activity_id, info.attempt, str(os.getpid())))
    if info.activity_type == _DIE and info.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
