"""The package as users install it: a wheel in an environment of its own, with types and commands."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE_S = 110


def run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel; what the wheel needs comes from ours, but nothing of this checkout does."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for line in (ROOT / "Dockerfile").read_text().splitlines():  # made of what the image has to make it of
        if line.startswith("COPY "):
            *copied, _ = line.split()[1:]
            for name in copied:
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                copy(ROOT / name, source / name)
    offline = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
    pip = (sys.executable, "-m", "pip")
    built = run(*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", folder, source, folder=folder)
    assert built.returncode == 0, built.stderr
    venv.create(folder / "env", symlinks=True)
    python = folder / "env" / "bin" / "python"
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    # Packages of ours are found, but not their `.pth` files, one of which leads to this checkout.
    (packages / "ours.pth").write_text(sysconfig.get_path("purelib"))
    installed = run(*pip, "--python", python, "install", *offline, *folder.glob("*.whl"), folder=folder)
    assert installed.returncode == 0, installed.stderr
    return folder / "env"


@pytest.mark.parametrize("document", ["README.md", "docs/python.md"])
def test_mypy_accepts_the_programs_of_the_documents_against_the_installed_package(
    environment: Path, tmp_path: Path, document: str
) -> None:
    program = tmp_path / "program.py"
    program.write_text("\n\n".join(re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)))
    mypy = (sys.executable, "-m", "mypy", "--strict", "--python-executable", environment / "bin" / "python")
    cache = environment.parent / "mypy-cache"
    checked = run(*mypy, "--cache-dir", cache, program, folder=tmp_path)
    assert checked.returncode == 0, checked.stdout
    program.write_text(program.read_text() + "\nWorker(workflows=3)\n")
    wrong = run(*mypy, "--cache-dir", cache, program, folder=tmp_path)
    assert 'Argument "workflows" to "Worker" has incompatible type "int"' in wrong.stdout


def test_both_commands_come_with_the_wheel(environment: Path, tmp_path: Path) -> None:
    said = run(environment / "bin" / "romancy", "--version", folder=tmp_path)
    assert said.stdout.startswith("romancy, version 0.")
    for command in ("romancy", "romancy-service"):
        helped = run(environment / "bin" / command, "--help", folder=tmp_path)
        assert helped.returncode == 0, helped.stderr
    places = run(environment / "bin" / "python", "-c", "import romancy; print(romancy.__file__)", folder=tmp_path)
    assert places.stdout.startswith(str(environment))
