"""Places in workflow code at which a worker dies: ROMANCY_TEST_DIE=PLACE kills the first one whose code comes there."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Final

from romancy import unguarded

_FOLDER: Final = Path(os.environ.get("ROMANCY_TEST_FOLDER", "."))
_DIE_AT: Final = os.environ.get("ROMANCY_TEST_DIE", "")


def come_to(place: str) -> None:
    """Die here, if that was asked for and nobody did before in this scene."""
    if place == _DIE_AT:
        with unguarded():
            died = _FOLDER / f"died-{place}"
            if not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
