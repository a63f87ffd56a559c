"""The demo: an order, an order that fails, a worker that dies, a service that dies. `make demo`, or run this file.

Everything that is claimed on the way is checked, and the exit code is 0 only if all of it was true.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from examples.demo_stage import ROOT, Actor, Failed, Stage, console
from examples.order_saga import Order, OrderItem, OrderResult, ShippingAddress, order_processing
from romancy import Client, RomancyError, WorkflowFailed, WorkflowHandle

LONGEST_S: Final = 60.0
"""For all chapters together; what is set up before them may take longer."""
LONGEST_BUILD_S: Final = 600.0
HANDWRITTEN: Final = ROOT / "worker_sdk" / "handwritten"
HAPPY, BROKEN, WORKER_DIES, SERVICE_DIES, IN_GO = "ORD-12345", "ORD-12346", "ORD-12347", "ORD-12348", "ORD-12349"


class Demo:
    """The chapters, in order, and what was found wrong on the way."""

    def __init__(self, stage: Stage, client: Client, without_go: str) -> None:
        """`without_go` says why there is no Go worker; empty if there is one."""
        self.stage = stage
        self.client = client
        self.without_go = without_go
        self.wrong: list[str] = []
        self.told: list[tuple[str, WorkflowHandle[OrderResult]]] = []

    async def play(self) -> None:
        """Everything."""
        service = await self.stage.service()
        console.print(
            f"A service on {self.stage.address}, its database one SQLite file. One worker, a process of its own."
        )
        worker = self.stage.worker("worker-1")
        await self._happy(worker)
        await self._broken(worker)
        worker = await self._worker_dies(worker)
        await self._service_dies(service, worker)
        await self._go()
        self._histories()

    def check(self, claim: str, holds: bool) -> None:
        """Say whether it is so, and remember if not."""
        console.print(f"  [green]true[/]   {claim}" if holds else f"  [bold red]FALSE  {claim}[/]")
        if not holds:
            self.wrong.append(claim)

    async def start(
        self, title: str, order_id: str, *, street: str = "1-2-3 Dogenzaka", queue: str = "default"
    ) -> WorkflowHandle[OrderResult]:
        """Place an order; `title` is what its history is shown under at the end."""
        order = an_order(order_id, street)
        handle = await self.client.start_workflow(order_processing, order, id=f"order-{order_id}", task_queue=queue)
        self.told.append((title, handle))
        return handle

    async def _happy(self, worker: Actor) -> None:
        chapter("1", "An order")
        console.print("Starting order processing workflow...\n")
        handle = await self.start("the order", HAPPY)
        result = await self.result(handle)
        await self.stage.until("the worker printed three lines", lambda: len(worker.lines) >= 3, worker)
        console.print(f"\n✅ Workflow started: {handle.workflow_id}")
        console.print("📊 Order completed:")
        console.print(f"   - Order ID: {result.order_id}")
        console.print(f"   - Total: ${result.total_amount:.2f}")
        console.print(f"   - Tracking: {result.confirmation_number}\n")
        self.check("reserved, paid, shipped: each once, in this order", worker.lines == steps(HAPPY))
        self.check("the result came back as it was made", result == shipped(HAPPY))

    async def _broken(self, worker: Actor) -> None:
        chapter("2", "An order that cannot be shipped")
        seen = len(worker.lines)
        handle = await self.start("the order that could not be shipped", BROKEN, street="FAIL")
        error: WorkflowFailed | None = None
        try:
            await self.result(handle)
        except WorkflowFailed as failed:
            error = failed
        expected = [
            *steps(BROKEN),
            "💥 Error: shipping service unavailable",
            f"❌ Refunding payment for {BROKEN}: $109.97",
            f"❌ Cancelling inventory reservation for {BROKEN}",
        ]
        await self.stage.until("what was done is undone", lambda: len(worker.lines) >= seen + len(expected), worker)
        console.print(f"\nError: {error.message if error else 'none, which is wrong'}\n")
        self.check("refunded first, then cancelled: newest first", worker.lines[seen:] == expected)
        self.check("the client was told why", error is not None and error.message == "shipping service unavailable")

    async def _worker_dies(self, first: Actor) -> Actor:
        chapter("3", "A worker dies after the payment")
        first.label = first.name
        self.stage.hold(WORKER_DIES, first)
        handle = await self.start("the order whose worker was killed", WORKER_DIES)
        await self.stage.held(WORKER_DIES, first)
        first.kill()
        said(f"kill -9 {first.pid}: worker-1 had been paid and was about to ship. Here is worker-2.")
        said("Its stream ended without a goodbye: after 3 s the service takes it for lost.")
        killed_at = time.monotonic()
        second = self.stage.worker("worker-2", label="worker-2")
        result = await self.result(handle)
        said(f"done {time.monotonic() - killed_at:.1f} s after the kill\n")
        self.check("worker-2 finished the order", result == shipped(WORKER_DIES))
        self.check("paid once, by worker-1", self.stage.entries("paid", WORKER_DIES) == ["worker-1"])
        self.check("shipped once, by worker-2", self.stage.entries("shipped", WORKER_DIES) == ["worker-2"])
        return second

    async def _service_dies(self, service: Actor, worker: Actor) -> None:
        chapter("4", "The service dies after the payment")
        self.stage.hold(SERVICE_DIES, worker)
        handle = await self.start("the order whose service was killed", SERVICE_DIES)
        await self.stage.held(SERVICE_DIES, worker)
        service.kill()
        said(f"kill -9 {service.pid}: no service any more. The worker goes on with what it has in hand.")
        self.stage.let_go(SERVICE_DIES)
        await self.stage.until(
            "the order is shipped", lambda: bool(self.stage.entries("shipped", SERVICE_DIES)), worker
        )
        said("Shipped, and nobody to tell. Here is the service again, on the same file.")
        back_at = time.monotonic()
        await self.stage.service()
        result = await self.result(handle)
        said(f"done {time.monotonic() - back_at:.1f} s after the new start\n")
        self.check("the order was finished", result == shipped(SERVICE_DIES))
        self.check("paid once", self.stage.entries("paid", SERVICE_DIES) == [worker.name])
        self.check(
            "shipped once, while the service was down", self.stage.entries("shipped", SERVICE_DIES) == [worker.name]
        )

    async def _go(self) -> None:
        chapter("5", "Shipped in Go")
        if self.without_go:
            console.print(f"Left out: {self.without_go}", markup=False)
            if os.environ.get("CI") and shutil.which("go"):
                self.check("Go is installed, so its worker can be built", False)
            return
        folder = HANDWRITTEN / "go"
        console.print(f"A worker written by hand in Go ({lines_of_code(folder)} lines, no SDK) ships this one.")
        queue = "orders-shipped-in-go"
        python = self.stage.worker("worker-3", "--queue", queue, "--without-shipping", label="python")
        shipper = self.stage.program("go", [str(folder / "ship")], "go", ROMANCY_TASK_QUEUE=queue)
        handle = await self.start("the order that was shipped in Go", IN_GO, queue=queue)
        result = await self.result(handle)
        await self.stage.until("Go printed its line", lambda: bool(shipper.lines), shipper)
        console.print()
        self.check("reserved and paid in Python", python.lines == steps(IN_GO)[:2])
        self.check("shipped in Go", shipper.lines == steps(IN_GO)[2:] and result == shipped(IN_GO))

    def _histories(self) -> None:
        chapter("6", "What was recorded")
        for title, handle in self.told:
            command = ["workflow", "history", handle.workflow_id]
            console.print(f"\n[bold]{title[0].upper()}{title[1:]}[/]  [dim]romancy {' '.join(command)}[/]")
            if not self.stage.romancy(*command):
                self.check(f"the command shows the history of {handle.workflow_id}", False)

    async def result(self, handle: WorkflowHandle[OrderResult]) -> OrderResult:
        """The order's result. Raises Failed when it takes too long."""
        try:
            async with asyncio.timeout(30):
                return await handle.result()
        except TimeoutError:
            waits = [wait.sentence for wait in (await handle.describe()).waits]
            raise Failed(f"{handle.workflow_id} is not done after 30 s; it waits: {'; '.join(waits)}") from None


def an_order(order_id: str, street: str) -> Order:
    items = [OrderItem("PROD-1", 2, 29.99), OrderItem("PROD-2", 1, 49.99)]
    return Order(order_id, "customer@example.com", items, ShippingAddress(street, "Shibuya", "150-0001", "Japan"))


def shipped(order_id: str) -> OrderResult:
    return OrderResult(order_id, "completed", 109.97, f"TRACK-{order_id}")


def steps(order_id: str) -> Sequence[str]:
    """What workers print of an order that goes well."""
    return [
        f"📦 Reserving inventory for {order_id}: $109.97",
        f"💳 Processing payment for {order_id}: $109.97",
        f"🚚 Shipping {order_id} to Shibuya, Japan",
    ]


def chapter(number: str, title: str) -> None:
    console.print(f"\n[bold]{number}  {title}[/]\n[dim]{'─' * 80}[/]")


def said(text: str) -> None:
    console.print(f"  [yellow]{text}[/]")


def lines_of_code(folder: Path) -> int:
    return sum(len(file.read_text().splitlines()) for file in folder.glob("*.go"))


def build_go() -> str:
    """Build the Go worker, if that is possible; otherwise return why not. Fetches Go's packages the first time."""
    if shutil.which("go") is None:
        return "Go is not installed here. With it, a worker written by hand in Go would ship an order."
    command = ["make", "-C", str(HANDWRITTEN), "go"]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=LONGEST_BUILD_S)
    except subprocess.TimeoutExpired:
        return f"the Go worker was not built within {LONGEST_BUILD_S:.0f} s."
    except subprocess.CalledProcessError as error:
        return f"the Go worker could not be built.\n{error.stderr.strip()}"
    return ""


async def main() -> int:
    """Play, and say how it went: 0, or 1 if anything was not as it should be."""
    console.print("Building the worker that is written in Go, if Go is here ...")
    without_go = await asyncio.to_thread(build_go)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="romancy-demo-") as folder:
        stage = Stage(Path(folder))
        async with Client(stage.address) as client:
            demo = Demo(stage, client, without_go)
            try:
                async with asyncio.timeout(LONGEST_S):
                    await demo.play()
            except (Failed, RomancyError) as error:
                demo.wrong.append(str(error))
            except TimeoutError:
                demo.wrong.append(f"the demo was not done after {LONGEST_S:.0f} s")
            finally:
                await asyncio.to_thread(stage.clear)
    took = f"{time.monotonic() - began:.0f} s"
    if demo.wrong:
        console.print(f"\n[bold red]Not as it should be[/], after {took}:")
        for problem in demo.wrong:
            console.print(f"  {problem}", markup=False)
        return 1
    console.print(f"\n[bold green]All of it was true.[/] It took {took}.")
    return 0


if __name__ == "__main__":
    # Whoever ends the demo ends what it started too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(asyncio.run(main()))
