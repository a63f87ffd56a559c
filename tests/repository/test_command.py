"""`romancy-service` as its users run it: what it prints, and its exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PATIENCE_S = 60


def run(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "romancy_service", *arguments]
    return subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def test_options_that_do_not_fit_end_with_2_and_one_line(tmp_path: Path) -> None:
    done = run("serve", "--database", "x.db", "--listen", "0.0.0.0:0", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("romancy-service: others than this machine can connect to 0.0.0.0:0")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing was begun"


def test_a_database_that_cannot_be_used_ends_with_1_and_does_not_show_its_password(tmp_path: Path) -> None:
    done = run("migrate", folder=tmp_path, ROMANCY_DATABASE="mysql://root:hunter2@db/romancy")
    assert done.returncode == 1
    assert "mysql://root:***@db/romancy" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_a_database_that_does_not_answer_ends_with_1(tmp_path: Path) -> None:
    done = run("serve", "--database", "postgresql://romancy:hunter2@127.0.0.1:1/romancy", folder=tmp_path)
    assert done.returncode == 1
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr


def test_migrate_makes_the_tables_and_may_be_repeated(tmp_path: Path) -> None:
    for _ in range(2):
        assert run("migrate", "--database", "orders.db", folder=tmp_path).returncode == 0
    assert (tmp_path / "orders.db").stat().st_size > 0


@pytest.mark.parametrize("arguments", [["health", "--address", "127.0.0.1:1"]])
def test_health_of_what_is_not_there_ends_with_1(tmp_path: Path, arguments: list[str]) -> None:
    done = run(*arguments, folder=tmp_path)
    assert done.returncode == 1
    assert "is not serving" in done.stderr


def test_an_address_in_use_ends_with_2(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("dev", "--listen", address, folder=tmp_path)
    assert done.returncode == 2
    assert f"cannot listen on {address}" in done.stderr
