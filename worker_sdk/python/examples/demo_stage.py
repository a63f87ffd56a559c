"""The demo's stage: the processes that it starts and kills, what they say, and the books that outlive them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[2]
console: Final = Console(highlight=False, soft_wrap=True)


class Failed(Exception):
    """The demo cannot go on; the text says why."""


class Actor:
    """A process of ours. What it prints appears as it comes, behind its name if it has one."""

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str], *, label: str = "") -> None:
        self.name = name
        self.lines: list[str] = []
        self.log: list[str] = []
        self.label = label
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        self._readers = [
            threading.Thread(target=self._read_output, daemon=True),
            threading.Thread(target=self._read_log, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """kill -9: it gets to do nothing more."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Let it end what it has in hand."""
        if self.alive:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
        for reader in self._readers:
            reader.join(2)

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text = line.rstrip("\n")
            console.print(f"  [dim]{self.label:<9} |[/] {text}" if self.label else text)
            if text:
                self.lines.append(text)

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.log.append(line.rstrip("\n"))


class Stage:
    """A folder, a service on a SQLite file in it, and workers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"127.0.0.1:{_free_port()}"
        self._actors: list[Actor] = []
        paths = (ROOT / "service", ROOT / "worker_sdk" / "python")
        self._environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PYTHONUNBUFFERED": "1",
            "PYTHONIOENCODING": "utf-8",
            "DEMO_FOLDER": str(folder),
            "ROMANCY_ADDRESS": self.address,
        }

    async def service(self) -> Actor:
        """Start the service, and wait until it can be called."""
        database = str(self.folder / "orders.db")
        command = [sys.executable, "-m", "romancy_service", "dev", "--database", database, "--listen", self.address]
        service = self._enter(Actor("service", command, self._environment))
        await self.until("the service listens", lambda: _listens(self.address), service)
        return service

    def worker(self, name: str, *arguments: str, label: str = "") -> Actor:
        """Start a worker with the order saga."""
        command = [sys.executable, "-m", "examples.demo_worker", self.address, *arguments]
        return self._enter(Actor(name, command, self._environment | {"DEMO_WORKER": name}, label=label))

    def program(self, name: str, command: Sequence[str], label: str, **environment: str) -> Actor:
        """Start something else that speaks to the service."""
        return self._enter(Actor(name, command, self._environment | environment, label=label))

    def _enter(self, actor: Actor) -> Actor:
        self._actors.append(actor)
        return actor

    def clear(self) -> None:
        """End everything, the service last."""
        for actor in sorted(self._actors, key=lambda actor: actor.name == "service"):
            actor.stop()

    async def until(self, what: str, condition: Callable[[], bool], *needed: Actor, seconds: float = 30) -> None:
        """Wait for `condition`. Raises Failed when it does not come, or when a process that it needs is gone."""
        deadline = time.monotonic() + seconds
        while not condition():
            for actor in needed:
                if not actor.alive:
                    raise Failed(f"{actor.name} ended before {what}; it said:\n" + "\n".join(actor.log[-15:]))
            if time.monotonic() > deadline:
                raise Failed(f"waited {seconds:.0f} s in vain for this: {what}")
            await asyncio.sleep(0.02)

    # The door and the books -----------------------------------------------------------------------------------------

    def hold(self, order_id: str, worker: Actor) -> None:
        """Have `worker` wait before it ships the order."""
        (self.folder / f"{order_id}.hold").write_text(worker.name)

    async def held(self, order_id: str, worker: Actor) -> None:
        """Wait until the order is there."""
        await self.until(f"{order_id} is about to be shipped", (self.folder / f"{order_id}.waiting").exists, worker)

    def let_go(self, order_id: str) -> None:
        """Open the door."""
        (self.folder / f"{order_id}.go").touch()

    def entries(self, what: str, order_id: str) -> list[str]:
        """Who did this to the order, by name, once for each time."""
        books = self.folder / "books"
        lines = books.read_text().splitlines() if books.exists() else []
        return [line.split()[-1] for line in lines if line.startswith(f"{what} {order_id} ")]

    def romancy(self, *arguments: str) -> bool:
        """Run the `romancy` command, which prints by itself. Returns whether it succeeded."""
        command = [sys.executable, "-c", "from romancy.cli import main; main()", *arguments]
        return subprocess.run(command, env=self._environment, timeout=30, check=False).returncode == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0
