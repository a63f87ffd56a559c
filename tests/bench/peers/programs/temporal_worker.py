"""Temporal's worker: `python -m tests.bench.peers.programs.temporal_worker ADDRESS SETTINGS`, the settings as JSON.

Tells `ready` once the server answers. With the settings `register` it makes the namespace instead, and ends.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from datetime import timedelta
from typing import Any, Final

import uvloop
from google.protobuf.duration_pb2 import Duration
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, RegisterNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError
from temporalio.worker import PollerBehaviorAutoscaling, PollerBehaviorSimpleMaximum, UnsandboxedWorkflowRunner, Worker

from tests.bench.closed_loop import tell
from tests.bench.peers.programs.temporal_saga import (
    TASK_QUEUE,
    OrderWorkflow,
    cancel_reservation,
    pay,
    refund,
    reserve,
    ship,
)

_START_S: Final = 60.0
_DAY_S: Final = 86_400


async def connected(address: str) -> Client:
    """A client, once the server answers."""
    async with asyncio.timeout(_START_S):
        while True:
            try:
                return await Client.connect(address)
            except (RPCError, RuntimeError):
                await asyncio.sleep(0.2)


async def register(client: Client) -> None:
    """Make the namespace `default`."""
    request = RegisterNamespaceRequest(
        namespace="default", workflow_execution_retention_period=Duration(seconds=_DAY_S)
    )
    async with asyncio.timeout(_START_S):
        while True:
            try:
                await client.workflow_service.register_namespace(request)
                return
            except RPCError as error:
                if "already" in str(error):
                    return
                await asyncio.sleep(0.2)


async def served(client: Client) -> None:
    """Return when the server knows the namespace."""
    async with asyncio.timeout(_START_S):
        while True:
            try:
                await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace="default"))
                return
            except RPCError:
                await asyncio.sleep(0.2)


def worker(client: Client, settings: dict[str, Any]) -> Worker:
    """A worker with many slots, a cache for all open workflows, and no sandbox."""
    pollers = PollerBehaviorSimpleMaximum(settings["pollers"]) if settings["pollers"] else PollerBehaviorAutoscaling()
    return Worker(
        client,
        task_queue=TASK_QUEUE,
        workflows=[OrderWorkflow],
        activities=[reserve, pay, ship, cancel_reservation, refund],
        workflow_runner=UnsandboxedWorkflowRunner(),
        workflow_task_poller_behavior=pollers,
        activity_task_poller_behavior=pollers,
        max_cached_workflows=settings["cached"],
        max_concurrent_workflow_tasks=settings["slots"],
        max_concurrent_activities=settings["slots"],
        graceful_shutdown_timeout=timedelta(seconds=1),
    )


async def main() -> None:
    """Serve until SIGTERM."""
    address, words = sys.argv[1:]
    client = await connected(address)
    if words == "register":
        await register(client)
        await served(client)
        return
    await served(client)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with worker(client, json.loads(words)):
        tell(at="ready")
        await stop.wait()


if __name__ == "__main__":
    uvloop.run(main())
