"""Time limit: `asyncio.timeout` whose timer says what it is the timeout of, so that `why` can tell."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from romancy.options import Seconds, to_duration

_BLOCK: Final = "an asyncio.timeout block"
_WAIT: Final = "asyncio.wait or wait_for"
_TEXT_BYTES: Final = 255
"""What the service takes."""


def time_limit(what: str, length: Seconds | None) -> asyncio.Timeout:
    """`async with time_limit("wait_condition", 60): ...` raises TimeoutError after that; None: no limit."""
    limit = asyncio.timeout(None if length is None else to_duration(length).ToMilliseconds() / 1000)
    limit.of_what = what  # type: ignore[attr-defined]  # found again by the loop, to which asyncio gives a callback only
    return limit


def limited_by(callback: Any) -> str:
    """What the timer that calls this back is the timeout of; empty: it is no timeout."""
    # `asyncio.wait` brings no object that says so, nor does `wait_for` before Python 3.12.
    if getattr(callback, "__module__", "") == "asyncio.tasks" and callback.__name__ == "_release_waiter":
        return _WAIT
    limit = getattr(callback, "__self__", None)
    if not isinstance(limit, asyncio.Timeout):
        return getattr(callback, "of_what", "")
    text: str = getattr(limit, "of_what", _BLOCK)
    return text.encode()[:_TEXT_BYTES].decode(errors="ignore")
