"""Removal: what belongs to a run besides its row, and how much of it goes at a time."""

from __future__ import annotations

from typing import Final

from romancy_service.core.limits import MIB

BELONGINGS: Final = ("history", "tasks", "attributes")
"""The tables whose rows go with their run."""
PIECE_RUNS: Final = 200
PIECE_ROWS: Final = 1_000
PIECE_BYTES: Final = 2 * MIB
"""So much is cleared at a time, or one row: some milliseconds of the database."""
