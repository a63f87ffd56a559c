"""`romancy-service` as its users run it: what it prints, and its exit codes."""

from __future__ import annotations

import socket
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


@pytest.mark.parametrize("command", ["migrate", "serve"])
def test_a_name_of_no_database_ends_with_2_and_does_not_show_its_password(tmp_path: Path, command: str) -> None:
    done = run(command, folder=tmp_path, ROMANCY_DATABASE="mysql://root:hunter2@db/romancy")
    assert done.returncode == 2
    assert "mysql://root:***@db/romancy" in done.stderr
    assert "give the name of a SQLite file, or a postgresql:// URL" in done.stderr
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


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["--tls-cert", "none.pem", "--tls-key", "none.pem"],
            "cannot read none.pem: No such file or directory; give the name of a PEM file",
        ),
        (["--tls-cert", "c.pem", "--tls-key", "k.pem"], "cannot use --tls-cert c.pem with --tls-key k.pem"),
        (["--token-file", "none.txt"], "cannot read the token file none.txt"),
        (["--limit", "session_lease_ms=1"], "the limit reconnect_grace_ms is 3000, which is above session_lease_ms"),
        (["--listen", "7233"], "cannot listen on '7233': give HOST:PORT"),
    ],
)
def test_options_that_cannot_be_used_end_with_2_before_the_database_is_touched(
    tmp_path: Path, arguments: list[str], text: str
) -> None:
    for name in ("c.pem", "k.pem"):
        (tmp_path / name).write_text("nothing of the kind")
    done = run("serve", "--database", "new.db", "--listen", "127.0.0.1:0", *arguments, folder=tmp_path)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new.db").exists()


def test_an_address_in_use_ends_with_1_before_the_database_is_touched(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("dev", "--listen", address, folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith(
        f"cannot listen on {address}: end the process that has this port, or give another --listen\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["serve"], ["dev", "--nonsense"], ["migrate"]])
def test_a_wrong_command_line_ends_with_2(tmp_path: Path, arguments: list[str]) -> None:
    assert run(*arguments, folder=tmp_path).returncode == 2
