"""What README and its neighbours say is so: code that runs, links that lead somewhere, commands that exist."""

from __future__ import annotations

import asyncio
import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from romancy import testing
from romancy_service.__main__ import parser
from romancy_service.core.limits import Limits

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def named(document: Path) -> str:
    return document.name


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_links_lead_to_files(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
        assert "://" in target or (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"\bmake ([a-z]+)\b(?= |`|$)", document.read_text(), re.MULTILINE):
        assert target in targets, target


async def test_the_readmes_program_runs_as_it_stands(tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    program = tmp_path / "orders.py"
    async with testing.service() as service:
        program.write_text(block.replace("127.0.0.1:7233", service.address))
        worker = await started(program, "work")
        try:
            assert await said(program, "ORD-1", "Japan") == (0, "TRACK-ORD-1")
            code, error = await said(program, "ORD-2", "Atlantis")
            assert code == 1
            assert "nobody ships to Atlantis" in error
        finally:
            worker.terminate()
            printed = (await worker.communicate())[0].decode()
    assert "refunding 99.90 for ORD-2" in printed
    assert "refunding 99.90 for ORD-1" not in printed


async def started(program: Path, *arguments: str) -> asyncio.subprocess.Process:
    output = asyncio.subprocess.PIPE
    command = (sys.executable, str(program), *arguments)
    return await asyncio.create_subprocess_exec(*command, stdout=output, stderr=asyncio.subprocess.STDOUT)


async def said(program: Path, *arguments: str) -> tuple[int | None, str]:
    """The exit code of a run of the program, and the last line that it printed."""
    process = await started(program, *arguments)
    printed = (await process.communicate())[0].decode().strip()
    return process.returncode, printed.splitlines()[-1]


@pytest.mark.parametrize("command", ["dev", "serve", "migrate", "health"])
def test_every_option_of_the_service_is_in_its_help_and_in_the_documents(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser({}).parse_args([command, "--help"])
    shown = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    told = (ROOT / "docs/operations.md").read_text() + (ROOT / "docs/security.md").read_text()
    assert {option for option in shown if option not in told} == set()


def test_every_limit_says_why() -> None:
    text = (ROOT / "service/romancy_service/core/limits.py").read_text()
    for field in fields(Limits):
        assert re.search(rf'    {field.name}: int = .*\n    """', text), f"{field.name} has no reason"
