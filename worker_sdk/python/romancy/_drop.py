"""Drop: how a run is put out of memory. Its suspended code is freed as it stands; no `finally` of the user's runs.

An interpreter that frees a suspended coroutine or generator throws GeneratorExit into it, once: then a flag in the
header of the object says that its finalizer has run. There is no call that only sets the flag, so it is set in place.
Where that does not work (found out by trying, below) the code is unwound, and what it asks for is ignored.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import sysconfig
from collections.abc import Iterable
from types import AsyncGeneratorType, CodeType, CoroutineType, FunctionType, GeneratorType, ModuleType
from typing import Any, Final

_SUSPENDABLE: Final = (CoroutineType, GeneratorType, AsyncGeneratorType)
_ELSEWHERE: Final = (ModuleType, FunctionType, CodeType, type)
"""What is reached through these belongs to the program, not to the run."""


def drop(roots: Iterable[Any], *, keep: Iterable[Any] = ()) -> None:
    """Mark all suspended code that is reached from `roots`, but not through `keep`, so that freeing it runs nothing."""
    if not _WORKS:
        return
    seen = {id(kept) for kept in keep}
    found = list(roots)
    while found:
        fresh = []
        for thing in found:
            # Not isinstance: it asks proxies of the user's for their class, which is code of theirs.
            kind = type(thing)
            if id(thing) not in seen and gc.is_tracked(thing) and not issubclass(kind, _ELSEWHERE):
                seen.add(id(thing))
                fresh.append(thing)
                if kind in _SUSPENDABLE:
                    _mark_finalized(thing)
        found = gc.get_referents(*fresh)


def _mark_finalized(suspended: Any) -> None:
    # The header of two words lies before the object; the lowest bit of the second word is the flag.
    word = ctypes.c_size_t.from_address(id(suspended) - ctypes.sizeof(ctypes.c_size_t))
    word.value |= 1


def _try_out() -> bool:
    """Whether the flag is where it is taken to be, and is heeded."""
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return False
    unwound: list[bool] = []

    def suspend() -> Any:
        try:
            yield
        finally:
            unwound.append(True)

    probe = suspend()
    next(probe)
    if gc.is_finalized(probe):
        return False
    _mark_finalized(probe)
    heeded = gc.is_finalized(probe)
    del probe
    return heeded and not unwound


_WORKS: Final = _try_out()
