"""Lists: asks for lists and counts of workflows as a person would, and tells how long each took."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc

from romancy.v1.workflow_pb2 import WORKFLOW_STATUS_COMPLETED, WORKFLOW_STATUS_FAILED, WORKFLOW_STATUS_RUNNING
from romancy.v1.workflow_service_pb2 import CountWorkflowsRequest, ListWorkflowsRequest, WorkflowFilter
from romancy.v1.workflow_service_pb2_grpc import WorkflowServiceStub

from tests.bench.closed_loop import tell


async def look(address: str, times: int, open_orders: int) -> None:
    """Lists of 50 and counts, each so often: the newest, further down, of one type and status, of what is rare.

    And of orders that are open, where very many are closed: they must be so many, fewer than 50.
    """
    completed = WorkflowFilter(statuses=[WORKFLOW_STATUS_COMPLETED], workflow_type="order")
    rare = WorkflowFilter(statuses=[WORKFLOW_STATUS_FAILED])
    few_open = WorkflowFilter(statuses=[WORKFLOW_STATUS_RUNNING], workflow_type="order")
    took_s: dict[str, list[float]] = {}

    async with grpc.aio.insecure_channel(address) as channel:
        stub = WorkflowServiceStub(channel)

        async def ask(name: str, call: Callable[[], Awaitable[Any]]) -> Any:
            begin = time.perf_counter()
            answer = await call()
            took_s.setdefault(name, []).append(time.perf_counter() - begin)
            return answer

        deep = ListWorkflowsRequest(page_size=1_000)
        for _ in range(20):
            deep.page_token = (await stub.ListWorkflows(deep)).next_page_token
        deep.page_size = 50
        lists = {
            "list_page": ListWorkflowsRequest(page_size=50),
            "list_page_deep": deep,
            "list_page_filtered": ListWorkflowsRequest(page_size=50, filter=completed),
            "list_page_rare": ListWorkflowsRequest(page_size=50, filter=rare),
            "list_page_few_open": ListWorkflowsRequest(page_size=50, filter=few_open),
        }
        counts = {"count_all": None, "count_filtered": completed, "count_rare": rare, "count_few_open": few_open}
        listed = len((await stub.ListWorkflows(lists["list_page_few_open"])).workflows)
        if listed != open_orders:
            raise AssertionError(f"{listed} open orders were listed instead of {open_orders}")
        for _ in range(times):
            for name, request in lists.items():
                await ask(name, partial(stub.ListWorkflows, request))
            for name, wanted in counts.items():
                await ask(name, partial(stub.CountWorkflows, CountWorkflowsRequest(filter=wanted)))
    tell(at="looked", took_s=took_s)
