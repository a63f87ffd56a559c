"""Scenes for the fault tests, on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.faults import scene as scenes
from tests.faults.scene import SHORT, USUAL, Scene, free_port, scene


@pytest.fixture
async def stage(database_url: str, tmp_path: Path) -> AsyncIterator[Scene]:
    """A scene on a fresh database of each kind."""
    async with scene(tmp_path, database_url) as stage:
        yield stage


@pytest.fixture(params=["sqlite", "postgres"])
async def stages(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Callable[[], Scene]]:
    """Makes a scene on a fresh database at each call: for stories that mostly wait, and so are told all at once."""
    made: list[Scene] = []

    def make() -> Scene:
        folder = tmp_path / f"scene-{len(made)}"
        if request.param == "sqlite":
            database = str(folder / "romancy.db")
        else:
            database = request.getfixturevalue("fresh_postgres")()
        made.append(Scene(folder, database, free_port()))
        return made[-1]

    yield make
    for stage in made:
        stage.clear()


@pytest.fixture(params=[pytest.param(SHORT, id="short"), pytest.param(USUAL, id="usual", marks=pytest.mark.slow)])
def lease_s(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """How long leases are in the services that are started from now on; all times in proportion."""
    for name, value in request.param.items():
        monkeypatch.setitem(scenes.LIMITS, name, value)
    return float(request.param["session_lease_ms"]) / 1000
