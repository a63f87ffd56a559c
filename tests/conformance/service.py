"""Service: the real orchestrator as a process of its own, to be killed and started again on the same address."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.conformance.peer import PATIENCE_S
from tests.conformance.workers import ROOT

_PATHS: Final = os.pathsep.join((str(ROOT / "service"), str(ROOT / "worker_sdk" / "python")))


class Service:
    """Enter it to start the service on a database; it is killed at the end."""

    def __init__(self, database: str, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self._database = database
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it; returns when it takes calls."""
        command = (sys.executable, "-m", "romancy_service", "serve", "--database", self._database)
        environment = os.environ | {"PYTHONPATH": _PATHS}
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, "--listen", self.address, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        async with asyncio.timeout(PATIENCE_S):
            while not await self._listens():
                assert self._process.returncode is None, f"the service ended:\n{self._log.read_text()}"
                await asyncio.sleep(0.05)

    async def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.returncode is None:
            await self.kill()

    async def _listens(self) -> bool:
        host, _, port = self.address.partition(":")
        try:
            _, writer = await asyncio.open_connection(host, int(port))
        except OSError:
            return False
        writer.close()
        return True
