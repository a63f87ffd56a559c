"""Workers: the programs under test, how each is built and started, and what its activity is known to do."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from romancy.v1.payload_pb2 import Payload
from romancy.v1.worker_service_pb2 import ActivityTask

from tests.conformance.peer import PATIENCE_S

ROOT: Final = Path(__file__).parents[2]
HANDWRITTEN: Final = ROOT / "worker_sdk" / "handwritten"
BUILD_S: Final = 600.0
"""A build may have to fetch its libraries first."""


@dataclass(frozen=True, slots=True)
class WorkerProgram:
    """A worker that serves one activity, and takes address, queue and duration of its work from the environment."""

    name: str
    tool: str
    """The program that the toolchain needs."""
    command: tuple[str, ...]
    activity_type: str
    compensation_type: str
    """Empty: it has none."""
    sources: tuple[Path, ...]
    """All that was written by hand."""

    def arguments(self, order_id: str) -> list[Payload]:
        """Arguments that its activity takes."""
        if self.activity_type == "ship_order":
            return payloads(order_id, {"city": "Shibuya", "country": "Japan"})
        return payloads(order_id, 109.97, "customer@example.com")

    def bad_arguments(self) -> list[Payload]:
        """Arguments that its activity refuses for good."""
        if self.activity_type == "ship_order":
            return payloads("ORD-1", {"city": "Atlantis"})
        return payloads("ORD-1", -1, "customer@example.com")

    def result(self, order_id: str) -> object:
        """What its activity returns."""
        if self.activity_type == "ship_order":
            return {"tracking_number": f"TRACK-{order_id}", "status": "shipped"}
        return {"transaction_id": f"TXN-{order_id}", "amount": 109.97, "status": "completed"}

    def line(self, order_id: str) -> str:
        """What its activity prints, once an attempt."""
        if self.activity_type == "ship_order":
            return f"🚚 Shipping {order_id} to Shibuya, Japan"
        return f"💳 Processing payment for {order_id}: $109.97"

    def task(self, token: str, order_id: str = "ORD-12345") -> ActivityTask:
        """One attempt of its activity."""
        return activity_task(token, self.activity_type, self.arguments(order_id))

    def build(self) -> None:
        """Build it, or skip the test when that cannot be. On CI a toolchain that is there has to work."""
        if shutil.which(self.tool) is None:
            pytest.skip(f"left out: {self.tool} is not installed, so the worker in {self.name} cannot be built")
        with _locked(HANDWRITTEN / ".lock"):
            made = subprocess.run(
                ["make", "-C", str(HANDWRITTEN), self.name],
                capture_output=True,
                text=True,
                timeout=BUILD_S,
                check=False,
            )
        if made.returncode == 0:
            return
        problem = f"the worker in {self.name} was not built:\n{made.stdout[-2000:]}\n{made.stderr[-2000:]}"
        if os.environ.get("CI") == "true":
            pytest.fail(problem)
        pytest.skip(problem)


GO: Final = WorkerProgram(
    "go", "go", (str(HANDWRITTEN / "go" / "ship"),), "ship_order", "", tuple((HANDWRITTEN / "go").glob("*.go"))
)
TYPESCRIPT: Final = WorkerProgram(
    "typescript",
    "npm",
    ("node", str(HANDWRITTEN / "typescript" / "dist" / "src" / "payments.js")),
    "process_payment",
    "refund_payment",
    tuple((HANDWRITTEN / "typescript" / "src").glob("**/*.ts")),
)


class RunningWorker:
    """A process of a worker."""

    def __init__(self, program: WorkerProgram, process: asyncio.subprocess.Process, printed: Path) -> None:
        self.program = program
        self._process = process
        self._printed = printed

    def printed(self) -> str:
        """All that it printed so far, errors included."""
        return self._printed.read_text()

    def terminate(self) -> None:
        """Ask it to leave."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def exit_code(self) -> int:
        """Wait until it has ended."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._process.wait()


@contextlib.asynccontextmanager
async def started(
    program: WorkerProgram, address: str, printed: Path, *, queue: str = "orders", work_s: float = 0
) -> AsyncIterator[RunningWorker]:
    """The worker, running; ended at the end."""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"ROMANCY_ADDRESS": address, "ROMANCY_TASK_QUEUE": queue, "WORK_SECONDS": str(work_s)}
    with printed.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *program.command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    worker = RunningWorker(program, process, printed)
    try:
        yield worker
    finally:
        worker.kill()
        await process.wait()


def payloads(*values: object) -> list[Payload]:
    """Values as arguments."""
    return [Payload(json=json.dumps(value)) for value in values]


def activity_task(token: str, activity_type: str, arguments: list[Payload]) -> ActivityTask:
    """One attempt of an activity."""
    return ActivityTask(
        token=token,
        workflow_id="order-1",
        run_id="run-1",
        workflow_type="order_processing",
        activity_id=f"{activity_type}:1",
        activity_type=activity_type,
        task_queue="orders",
        arguments=arguments,
        attempt=1,
        idempotency_key=f"run-1/{activity_type}:1",
    )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One build at a time, also when tests run in several processes."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
