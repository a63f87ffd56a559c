"""Workflows that talk: to their children, to another workflow, to clients, and to the run that goes on after them.

`python -m tests.faults.talkers ADDRESS WORKER_ID` is a worker that runs them. ROMANCY_TEST_DIE=PLACE kills it when code
of `host` comes to that place for the first time; once in a scene, whichever worker it is.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

from romancy import RetryPolicy, Worker, WorkflowContext, activity, activity_info, compensation, workflow
from tests.faults.ledger import Entry, write
from tests.faults.places import come_to

PLACES: Final = ("begin", "step", "child", "told", "update", "recur", "end")
KIDS: Final = 2
NOTES: Final = 3
_FOLDER: Final = Path(os.environ.get("ROMANCY_TEST_FOLDER", "."))
_AT_ONCE: Final = RetryPolicy(initial_interval=0.02, jitter=0)


def _have_effect() -> None:
    info = activity_info()
    write(_FOLDER / "ledger", Entry("effect", info.run_id, info.activity_id, info.attempt, str(os.getpid())))


@compensation(retry=_AT_ONCE)
async def shrink(number: int) -> None:
    _have_effect()


@activity(compensation=shrink, retry=_AT_ONCE)
async def grow(number: int) -> int:
    _have_effect()
    return number


@workflow
async def kid(ctx: WorkflowContext, number: int) -> int:
    return await grow(number)


@workflow
async def host(ctx: WorkflowContext, name: str, rounds: int = 1) -> list[int]:
    """Steps, starts children, tells `guest` something, is asked to go on, and does it all again in its next run."""
    go: list[int] = []

    def proceed(number: int) -> int:
        come_to("update")
        go.append(number)
        return number

    ctx.update(proceed)
    come_to("begin")
    base = await ctx.step(lambda: 100, name="base") if ctx.patched("with-step") else 0
    come_to("step")
    kids = await asyncio.gather(*(ctx.run_child(kid, base + number) for number in range(KIDS)))
    come_to("child")
    for number in range(NOTES):
        await ctx.workflow("guest").signal("note", f"{name}/{rounds}", number)
    come_to("told")
    await ctx.wait_condition(lambda: bool(go))
    if rounds:
        come_to("recur")
        return await ctx.recur(name, rounds - 1)
    come_to("end")
    return [*kids, *go]


@workflow
async def guest(ctx: WorkflowContext) -> dict[str, list[int]]:
    """Keeps what it is told, by who told it."""
    notes: dict[str, list[int]] = {}
    closed: list[bool] = []

    @ctx.signal
    def note(by: str, number: int) -> None:
        notes.setdefault(by, []).append(number)

    ctx.signal(lambda: closed.append(True), name="close")
    await ctx.wait_condition(lambda: bool(closed))
    return notes


@workflow
async def crier(ctx: WorkflowContext, expected: int, last: dict[str, int], wrong: list[str]) -> list[str]:
    """Takes signals that each client numbers from 1. Returns what was lost, doubled or out of order."""

    @ctx.signal
    def cry(by: str, number: int) -> None:
        if number != last.get(by, 0) + 1:
            wrong.append(f"{by}: {number} after {last.get(by, 0)}")
        last[by] = number

    at = sum(last.values())
    await ctx.wait_condition(lambda: sum(last.values()) >= min(expected, at + 200) or bool(wrong))
    if wrong or sum(last.values()) >= expected:
        return wrong
    return await ctx.recur(expected, last, wrong)


WORKFLOWS: Final = (host, kid, guest, crier)


def main(address: str, worker_id: str) -> None:
    """Work until SIGTERM."""
    Worker(address, worker_id=worker_id, workflows=WORKFLOWS, activities=[grow], drain_timeout=5).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
