"""Guard: refuses, while workflow code runs, what would be another one on replay or would block the worker.

Two nets: functions of the standard library are replaced by ones that look whether workflow code calls them, and an
audit hook sees files, sockets and processes. Outside of workflow code both let everything through. Neither
sees what compiled code does by itself; the lint of a workflow's source helps there.
"""

from __future__ import annotations

import asyncio
import functools
import pkgutil
import sys
import time
import zoneinfo
from collections.abc import Callable
from typing import Any, Final

from romancy._frames import frames_of_run
from romancy._loop import WorkflowLoop
from romancy._remedies import REMEDIES

_REPLACED: Final = {
    "time": ("time", "time_ns", "monotonic", "monotonic_ns", "sleep"),
    "threading:Thread": ("start",),
    "uuid": ("uuid1", "uuid4"),
    "os": ("urandom",),
    "secrets": ("token_bytes", "token_hex", "token_urlsafe", "randbelow", "randbits", "choice"),
    "random": (
        "random", "uniform", "randint", "randrange", "choice", "choices", "sample", "shuffle", "getrandbits",
        "randbytes", "gauss", "normalvariate", "lognormvariate", "expovariate", "betavariate", "gammavariate",
        "triangular", "paretovariate", "vonmisesvariate", "weibullvariate", "seed",
    ),
}  # fmt: skip

_AUDITED: Final = {
    "open": "files belong into an activity",
    "os.listdir": "files belong into an activity",
    "os.scandir": "files belong into an activity",
    "os.mkdir": "files belong into an activity",
    "os.remove": "files belong into an activity",
    "os.rename": "files belong into an activity",
    "os.rmdir": "files belong into an activity",
    "socket.connect": "sockets belong into an activity",
    "socket.bind": "sockets belong into an activity",
    "socket.getaddrinfo": "sockets belong into an activity",
    "socket.sendto": "sockets belong into an activity",
    "sqlite3.connect": "databases belong into an activity",
    "subprocess.Popen": "processes belong into an activity",
    "os.system": "processes belong into an activity",
    "os.exec": "processes belong into an activity",
    "os.fork": "processes belong into an activity",
    "os.posix_spawn": "processes belong into an activity",
}

_TRUSTED: Final = frozenset(
    {
        "importlib", "linecache", "logging", "loguru", "opentelemetry", "sentry_sdk", "structlog", "traceback",
        "warnings",
    }
)  # fmt: skip
"""Packages that do such things on the way, without an effect on what the code does: logs, traces, imports."""

_installed = False

monotonic: Final = time.monotonic
"""Not guarded: for the worker's own event loops, which ask for the time several times for each message."""


def install() -> None:
    """Put the nets up, once in a process: neither can be taken down again."""
    global _installed
    if _installed:
        return
    _installed = True
    for owner_name, names in _REPLACED.items():
        owner = pkgutil.resolve_name(owner_name)
        for name in names:
            full_name = f"{owner_name}.{name}".replace(":", ".")
            remedy = REMEDIES.get(full_name, "use ctx.random()")
            setattr(owner, name, _guarded(getattr(owner, name), full_name, remedy))
    sys.addaudithook(_audit)


def _guarded(original: Callable[..., Any], name: str, remedy: str) -> Callable[..., Any]:
    running_loop = asyncio._get_running_loop

    @functools.wraps(original)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        loop = running_loop()
        if type(loop) is WorkflowLoop:
            _refuse_in_run(loop, f"{name}()", remedy)
        return original(*args, **kwargs)

    return guarded


def _audit(
    event: str,
    args: tuple[Any, ...],
    audited: dict[str, str] = _AUDITED,  # bound here: a process that ends empties modules before it stops asking
    running_loop: Callable[[], object] = asyncio._get_running_loop,
) -> None:
    if event in audited:
        loop = running_loop()
        if type(loop) is WorkflowLoop and not _opens_time_zone(event, args):
            what = f"{event}({args[0]!r})" if args and isinstance(args[0], str) else event
            _refuse_in_run(loop, what, audited[event])


def _opens_time_zone(event: str, args: tuple[Any, ...]) -> bool:
    # ZoneInfo reads files by itself; they are the same wherever a run is replayed.
    return event == "open" and isinstance(args[0], str) and args[0].startswith(zoneinfo.TZPATH)


def _refuse_in_run(loop: WorkflowLoop, what: str, remedy: str) -> None:
    if loop.unguarded:
        return
    frames = list(frames_of_run())
    if frames and frames[-1].f_back is None:
        return  # the worker's own code, between two steps of the run
    if any(str(frame.f_globals.get("__name__")).partition(".")[0] in _TRUSTED for frame in frames):
        return
    raise loop.refuse(what, remedy)
