"""as_completed: asyncio's own starts coroutines in the order of a set, another one each time; this one in theirs.

Loading this module puts it in the place of asyncio's, for workflow code only; `romancy.workflow` loads it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

from romancy._loop import WorkflowLoop

_T = TypeVar("_T")
_stock: Callable[..., Any] = asyncio.as_completed


@functools.wraps(_stock)
def as_completed(fs: Iterable[Awaitable[Any]], *, timeout: float | None = None) -> Iterator[Any]:
    if type(asyncio._get_running_loop()) is WorkflowLoop:
        return _in_order(fs, timeout)
    stock: Iterator[Any] = _stock(fs, timeout=timeout)
    return stock


def _in_order(awaitables: Iterable[Awaitable[_T]], timeout: float | None) -> Iterator[Coroutine[Any, Any, _T]]:
    """Coroutines that give the results of `awaitables` as they come; TimeoutError for those that are late."""
    if asyncio.isfuture(awaitables) or asyncio.iscoroutine(awaitables):
        raise TypeError(f"expect an iterable of futures, not {type(awaitables).__name__}")
    loop = asyncio.get_running_loop()
    pending = dict.fromkeys(asyncio.ensure_future(awaitable) for awaitable in dict.fromkeys(awaitables))
    done: asyncio.Queue[asyncio.Future[_T] | None] = asyncio.Queue()

    def finish(future: asyncio.Future[_T]) -> None:
        if future in pending:
            del pending[future]
            done.put_nowait(future)
            if not pending and timer is not None:
                timer.cancel()

    def expire() -> None:
        for future in list(pending):
            future.remove_done_callback(finish)
            done.put_nowait(None)
        pending.clear()

    expire.of_what = "asyncio.as_completed"  # type: ignore[attr-defined]  # what the loop tells of its timer

    async def next_result() -> _T:
        future = await done.get()
        if future is None:
            raise TimeoutError
        return future.result()

    count = len(pending)
    timer = loop.call_later(timeout, expire) if timeout is not None and pending else None
    for future in list(pending):
        future.add_done_callback(finish)
    return (next_result() for _ in range(count))


asyncio.as_completed = asyncio.tasks.as_completed = as_completed  # type: ignore[assignment]
