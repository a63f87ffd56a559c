"""Scenes for the fault tests, on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.scene import Scene, scene


@pytest.fixture
async def stage(database_url: str, tmp_path: Path) -> AsyncIterator[Scene]:
    """A scene on a fresh database of each kind."""
    async with scene(tmp_path, database_url) as stage:
        yield stage
