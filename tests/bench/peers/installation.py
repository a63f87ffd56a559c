"""Installation: what peers need, fetched once into `.peers/` from files that pin it, and again when these change."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tests.bench.peers.entrant import CannotRun
from tests.bench.process import ROOT

HERE: Final = Path(__file__).parent
FOLDER: Final = ROOT / ".peers"
FETCH_S: Final = 600.0
"""So long may packages take to come."""
BUILD_S: Final = 3_600.0
"""So long may a server take to be built: on two busy cores it is a quarter of an hour."""


def tool(name: str) -> str:
    """Where a program is. Raises CannotRun."""
    found = shutil.which(name)
    if found is None:
        raise CannotRun(f"there is no {name} on this machine")
    return found


def carry_out(command: Sequence[str | Path], folder: Path, limit_s: float) -> None:
    """Run a command to its end. Raises CannotRun with its last words."""
    try:
        subprocess.run(
            command,
            cwd=folder,
            check=True,
            timeout=limit_s,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except subprocess.CalledProcessError as error:
        said = " / ".join(error.stdout.strip().splitlines()[-3:])
        raise CannotRun(f"{Path(command[0]).name} {command[1]} ended with {error.returncode}: {said}") from error
    except subprocess.TimeoutExpired as error:
        raise CannotRun(f"{Path(command[0]).name} {command[1]} took longer than {limit_s:.0f} s") from error


def installed(name: str, pins: Sequence[Path], install: Callable[[Path], None]) -> Path:
    """The folder of that name in `.peers/`, which `install` filled from these pins."""
    folder = FOLDER / name
    made_from = folder / "made-from"
    digest = hashlib.sha256(b"".join(pin.read_bytes() for pin in pins)).hexdigest()
    if made_from.exists() and made_from.read_text() == digest:
        return folder
    print(f"fetching {name} into {folder}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for pin in pins:
        shutil.copy(pin, folder)
    install(folder)
    made_from.write_text(digest)
    return folder


def interpreter() -> Path:
    """The Python that has the peers' SDKs."""
    requirements = HERE / "requirements.txt"

    def install(folder: Path) -> None:
        carry_out([sys.executable, "-m", "venv", folder], ROOT, FETCH_S)
        pip = (folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check")
        carry_out([*pip, "install", "--require-hashes", "-r", requirements], ROOT, FETCH_S)

    return installed("python", [requirements], install) / "bin" / "python"


def restate_server() -> Path:
    """Restate's server, as its npm package has it."""
    pins = [HERE / "restate_server" / name for name in ("package.json", "package-lock.json")]

    def install(folder: Path) -> None:
        # Its scripts are left out: one of them only reports that it was installed.
        carry_out([tool("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder, FETCH_S)

    folder = installed("restate", pins, install)
    found = sorted(folder.glob("node_modules/@restatedev/restate-server-*/bin/restate-server"))
    if not found:
        raise CannotRun("the npm package @restatedev/restate-server has no server for this kind of machine")
    return found[0]


def temporal_programs() -> Path:
    """A folder with Temporal's server and its tool for schemas, built from the Go module."""
    pins = [HERE / "temporal_server" / name for name in ("go.mod", "go.sum")]

    def install(folder: Path) -> None:
        go = tool("go")
        for name, package in (("temporal-server", "cmd/server"), ("temporal-sql-tool", "cmd/tools/sql")):
            carry_out([go, "build", "-o", name, f"go.temporal.io/server/{package}"], folder, BUILD_S)

    return installed("temporal", pins, install)
