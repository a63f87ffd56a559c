"""Scene: the service, its workers and the world outside as processes of their own, which a test starts, stops and kills."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import select

from romancy.v1.history_pb2 import HistoryEvent

from romancy import Client
from romancy_service.store.store import Store, open_store
from romancy_service.store.tables import runs
from tests.faults import actor, checker, ledger
from tests.faults.actor import Actor
from tests.service.stored import assert_attributes_are_found, assert_run_is_folded

SHORT: Final = {"session_lease_ms": 3_000, "heartbeat_interval_ms": 600, "reconnect_grace_ms": 500, "drain_ms": 2_000}
"""The usual times in short: an outage of three leases takes seconds."""
USUAL: Final = {
    "session_lease_ms": 20_000,
    "heartbeat_interval_ms": 4_000,
    "reconnect_grace_ms": 3_000,
    "drain_ms": 10_000,
}
LIMITS: Final = dict(SHORT)
"""Of the services that are started from now on."""
PATIENCE_S: Final = 60.0
T = TypeVar("T")
EVERYTHING: Final = 2**40


@dataclass
class Scene:
    """A folder, a database, and what was started."""

    folder: Path
    database: str
    port: int
    actors: list[Actor] = field(default_factory=list)
    _services: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)

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

    async def service(self, *, port: int = 0, **environment: str) -> Actor:
        """Start a replica of the service, on the scene's port unless told otherwise."""
        port = port or self.port
        command = ["romancy_service", "serve", "--database", self.database, "--listen", f"127.0.0.1:{port}"]
        for name, value in LIMITS.items():
            command += ["--limit", f"{name}={value}"]
        self._services += 1
        service = self.start(f"service-{self._services}", *command, **environment)
        await until(lambda: '"serving"' in service.log.read_text(), "the service is up", service)
        return service

    def worker(self, name: str, *, port: int = 0, **environment: str) -> Actor:
        """Start a worker."""
        return self.start(name, "tests.faults.programs", f"127.0.0.1:{port or self.port}", name, **environment)

    def client(self, port: int = 0) -> Client:
        """A client of the service."""
        return Client(f"127.0.0.1:{port or self.port}")

    def start(self, name: str, *command: str, **environment: str) -> Actor:
        """Run a module of ours."""
        own = {"ROMANCY_TEST_FOLDER": str(self.folder)}
        self.actors.append(actor.start(name, [*command], own | environment, self.folder / f"{name}.log"))
        return self.actors[-1]

    async def outlive(self, death: str, call: Callable[[], Coroutine[Any, Any, T]], **environment: str) -> T:
        """Have a service die at a point while it is asked for something. Another one answers, and is there then."""
        self.kill_services()
        mortal = await self.service(ROMANCY_CRASH_AT=death, **environment)
        asked = asyncio.create_task(call())
        await until(lambda: not mortal.alive, f"it dies at {death}")
        assert mortal.exit_code == -signal.SIGKILL, mortal.said()
        await self.service(**environment)
        return await asked

    async def outlive_all(self, deaths: Iterable[str], ended: Callable[[], bool]) -> int:
        """Have services die at one point after the other, until it has ended. Returns how many died; one lives then."""
        died = 0
        for death in deaths:
            self.kill_services()
            mortal = await self.service(ROMANCY_CRASH_AT=death)
            await until(lambda: ended() or not mortal.alive, f"it dies at {death}, or all has ended")  # noqa: B023
            died += not mortal.alive
            if ended():
                break
        self.kill_services()  # the last one is to die still
        await self.service()
        return died

    def kill_services(self) -> None:
        """No replica is there any more."""
        for each in self.actors:
            if each.name.startswith("service"):
                each.kill()

    def clear(self) -> None:
        """Nothing of it stays."""
        for each in self.actors:
            each.kill()

    # The end --------------------------------------------------------------------------------------------------------

    async def finish(self, *, losses: bool = True, ledger: bool = True) -> dict[str, list[HistoryEvent]]:
        """Stop everything, which must go in order, and check all that is stored against all that happened.

        Without `ledger` against nothing: its activities have their effects elsewhere.
        """
        for each in reversed(self.actors):  # workers were started last
            if each.alive:
                code = await asyncio.to_thread(each.stop)
                # A worker that has only just been started may not catch the signal yet.
                fine = (0,) if each.name.startswith("service") else (0, -signal.SIGTERM)
                assert code in fine, f"{each.name} ended with {code}:\n{each.said()}"
        for each in self.actors:
            said = each.log.read_text(errors="replace")
            # Workers show where user code failed; anything else that is raised is a fault of ours.
            ours = "Traceback" if each.name.startswith("service") else "broke the worker's own code"
            assert ours not in said, f"{each.name}:\n{each.said()}"
        histories = await self.histories()
        assert histories, "nothing ran"
        wrong = checker.check(histories, self.ledger, losses=losses) if ledger else []
        assert not wrong, "\n".join(wrong[:20])
        return histories

    async def commits(self) -> int:
        """How often runs were written."""
        async with _opened(self.database) as store:
            return sum(row["version"] for row in await store._read(select(runs.c.version)))

    async def histories(self) -> dict[str, list[HistoryEvent]]:
        """All runs; what is stored of them is compared with their fold."""
        async with _opened(self.database) as store:
            rows = await store._read(select(runs.c.run_id))
            loaded = await store.load([row["run_id"] for row in rows])
            await assert_attributes_are_found(store, loaded)
            histories = {}
            for run_id, run in loaded.items():
                events = await store.show_history(run_id, 0, EVERYTHING, max_bytes=EVERYTHING)
                assert_run_is_folded(run, events)
                histories[run_id] = events
            return histories


_opening: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


@asynccontextmanager
async def _opened(database: str) -> AsyncIterator[Store]:
    """The database, once its service is gone."""
    store = open_store(database)
    # Alembic keeps what it works on in a module, so stores of one process are opened one after the other.
    async with _opening.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
        await store.open()
    try:
        yield store
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


async def connected(client: Client, count: int) -> bool:
    """Whether so many workers are there."""
    return sum(session.connected for session in await client.list_workers()) == count


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
                for each in needed:
                    assert each.alive, f"{what}: but {each.name} is gone:\n{each.said()}"
                await asyncio.sleep(0.05)
    except TimeoutError:
        said = "\n".join(f"--- {each.name}\n{each.said()}" for each in needed)
        raise AssertionError(f"{what}: not within {patience_s:g} s\n{said}") from None
