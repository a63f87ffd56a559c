"""Scene: the service, its workers and the world outside as processes of their own, which a test starts, stops and kills."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sqlalchemy import select

from romancy.v1.history_pb2 import HistoryEvent

from romancy import Client
from romancy_service.store.store import open_store
from romancy_service.store.tables import runs
from tests.faults import checker, ledger
from tests.service.proxy import Proxy
from tests.service.stored import assert_run_is_folded

ROOT: Final = Path(__file__).parents[2]
LEASE_S: Final = 9.0
LIMITS: Final = {
    # Above the longest pause between two tries of a worker to reconnect, 5 s, and what it takes to notice, 3 s.
    "session_lease_ms": int(LEASE_S * 1000),
    "heartbeat_interval_ms": 1_000,
    "reconnect_grace_ms": 1_000,
    "drain_ms": 2_000,
}
PATIENCE_S: Final = 60.0
EVERYTHING: Final = 2**40


@dataclass
class Actor:
    """One process of ours."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def signal(self, number: int) -> None:
        """Send a signal to this process, and to no other."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: it gets to do nothing more."""
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.terminate()
        return self.process.wait(20)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def said(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-4_000:]


@dataclass
class Scene:
    """A folder, a database, and what was started."""

    folder: Path
    database: str
    port: int
    actors: list[Actor] = field(default_factory=list)
    _services: int = 0

    @property
    def ledger(self) -> list[ledger.Entry]:
        """What happened outside so far."""
        return ledger.read(self.folder / "ledger")

    def effects(self) -> list[str]:
        """The activities that had their effect so far, in order."""
        return [entry.activity_id for entry in self.ledger if entry.kind == "effect"]

    def open_gates(self, *numbers: int) -> None:
        """Let held activities go on."""
        for number in numbers:
            (self.folder / f"gate-{number}").touch()

    # Processes ------------------------------------------------------------------------------------------------------

    async def service(self, *, port: int = 0, database: str = "", wait: bool = True, **environment: str) -> Actor:
        """Start a replica of the service, on the scene's port unless told otherwise."""
        port = port or self.port
        command = ["romancy_service", "serve", "--database", database or self.database, "--listen", f"127.0.0.1:{port}"]
        for name, value in LIMITS.items():
            command += ["--limit", f"{name}={value}"]
        self._services += 1
        actor = self._start(f"service-{self._services}", command, environment)
        if wait:
            await until(lambda: _listens(port), "the service listens", actor)
        return actor

    def worker(self, name: str, *, port: int = 0, **environment: str) -> Actor:
        """Start a worker."""
        return self._start(name, ["tests.faults.programs", f"127.0.0.1:{port or self.port}", name], environment)

    def client(self, port: int = 0) -> Client:
        """A client of the service."""
        return Client(f"127.0.0.1:{port or self.port}")

    def _start(self, name: str, command: list[str], environment: dict[str, str]) -> Actor:
        log = self.folder / f"{name}.log"
        paths = (ROOT, ROOT / "service", ROOT / "worker_sdk" / "python")
        own = {"PYTHONPATH": os.pathsep.join(map(str, paths)), "ROMANCY_TEST_FOLDER": str(self.folder)}
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *command], env=os.environ | own | environment, stdout=output, stderr=output
            )
        self.actors.append(Actor(name, process, log))
        return self.actors[-1]

    def clear(self) -> None:
        """Nothing of it stays."""
        for actor in self.actors:
            if actor.alive:
                actor.signal(signal.SIGCONT)
                actor.kill()

    # The end --------------------------------------------------------------------------------------------------------

    async def finish(self, *, losses: bool = True) -> dict[str, list[HistoryEvent]]:
        """Stop everything, which must go in order, and check all that is stored against all that happened."""
        for actor in reversed(self.actors):  # workers were started last
            if actor.alive:
                code = await asyncio.to_thread(actor.stop)
                # A worker that has only just been started may not catch the signal yet.
                fine = (0,) if actor.name.startswith("service") else (0, -signal.SIGTERM)
                assert code in fine, f"{actor.name} ended with {code}:\n{actor.said()}"
        for actor in self.actors:
            assert "Traceback" not in actor.log.read_text(errors="replace"), f"{actor.name}:\n{actor.said()}"
        histories = await self.histories()
        assert histories, "nothing ran"
        wrong = checker.check(histories, self.ledger, losses=losses)
        assert not wrong, "\n".join(wrong[:20])
        return histories

    async def histories(self) -> dict[str, list[HistoryEvent]]:
        """All runs; what is stored of them is compared with their fold."""
        store = open_store(self.database)
        await store.open()
        try:
            rows = await store._read(select(runs.c.run_id))
            loaded = await store.load([row["run_id"] for row in rows])
            histories = {}
            for run_id, run in loaded.items():
                events = await store.show_history(run_id, 0, EVERYTHING, max_bytes=EVERYTHING)
                assert_run_is_folded(run, events)
                histories[run_id] = events
            return histories
        finally:
            await store.close()


@asynccontextmanager
async def scene(folder: Path, database: str) -> AsyncIterator[Scene]:
    """A scene that is cleared after the block."""
    stage = Scene(folder, database, free_port())
    try:
        yield stage
    finally:
        stage.clear()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def until(condition: Callable[[], Any], what: str, *needed: Actor, patience_s: float = PATIENCE_S) -> None:
    """Ask again and again until the answer is true; give up when a process that is needed for it is gone."""
    try:
        async with asyncio.timeout(patience_s):
            while True:
                answer = condition()
                if asyncio.iscoroutine(answer):
                    answer = await answer
                if answer:
                    return
                for actor in needed:
                    assert actor.alive, f"{what}: but {actor.name} is gone:\n{actor.said()}"
                await asyncio.sleep(0.05)
    except TimeoutError:
        said = "\n".join(f"--- {actor.name}\n{actor.said()}" for actor in needed)
        raise AssertionError(f"{what}: not within {patience_s:g} s\n{said}") from None


@asynccontextmanager
async def outage(database: Proxy) -> AsyncIterator[None]:
    """The database cannot be reached inside the block."""
    database.refusing = True
    database.cut()
    try:
        yield
    finally:
        database.refusing = False
