"""Lists: asks for lists and counts of workflows as a person would, and tells how long each took."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import grpc

from romancy.v1.workflow_pb2 import (
    WORKFLOW_STATUS_COMPLETED,
    WORKFLOW_STATUS_FAILED,
    WORKFLOW_STATUS_RUNNING,
    WorkflowInfo,
)
from romancy.v1.workflow_service_pb2 import (
    CountWorkflowsRequest,
    ListWorkflowsRequest,
    ListWorkflowsResponse,
    WorkflowFilter,
)
from romancy.v1.workflow_service_pb2_grpc import WorkflowServiceStub

from romancy_service.core.times import timestamp
from tests.bench.closed_loop import tell

_CLOSED_WITHIN_MS: Final = 10
_TELLING: Final = len("copy-01234567-89ab")
"""So much of an id tells in which millisecond it was made."""
_USUAL: Final = len("copy-")


async def look(address: str, times: int, open_orders: int) -> None:
    """Lists of 50 and counts, each so often: the newest, further down, and those of many filters.

    Of orders that are open, where very many are closed, there must be so many, fewer than 50.
    """
    took_s: dict[str, list[float]] = {}

    async with grpc.aio.insecure_channel(address) as channel:
        stub = WorkflowServiceStub(channel)

        async def ask(name: str, call: Callable[[], Awaitable[Any]]) -> Any:
            begin = time.perf_counter()
            answer = await call()
            took_s.setdefault(name, []).append(time.perf_counter() - begin)
            return answer

        deep = ListWorkflowsRequest(page_size=1_000)
        page = ListWorkflowsResponse()
        for _ in range(20):
            page = await stub.ListWorkflows(deep)
            deep.page_token = page.next_page_token
        deep.page_size = 50
        filters = _filters(page.workflows[-1])
        lists = {
            "list_page": ListWorkflowsRequest(page_size=50),
            "list_page_deep": deep,
            **{f"list_page_{name}": ListWorkflowsRequest(page_size=50, filter=each) for name, each in filters.items()},
        }
        counts = {"count_all": None, **{f"count_{name}": each for name, each in filters.items()}}
        listed = len((await stub.ListWorkflows(lists["list_page_few_open"])).workflows)
        if listed != open_orders:
            raise AssertionError(f"{listed} open orders were listed instead of {open_orders}")
        for _ in range(times):
            for name, request in lists.items():
                await ask(name, partial(stub.ListWorkflows, request))
            for name, wanted in counts.items():
                await ask(name, partial(stub.CountWorkflows, CountWorkflowsRequest(filter=wanted)))
    tell(at="looked", took_s=took_s)


def _filters(old: WorkflowInfo) -> dict[str, WorkflowFilter]:
    """What is asked for; of prefixes and times those of one that is far down the list."""
    completed, failed = WORKFLOW_STATUS_COMPLETED, WORKFLOW_STATUS_FAILED
    then_ms = old.close_time.ToMilliseconds()
    closed_then = WorkflowFilter(closed_from=timestamp(then_ms), closed_before=timestamp(then_ms + _CLOSED_WITHIN_MS))
    return {
        "filtered": WorkflowFilter(statuses=[completed], workflow_type="order"),
        "rare": WorkflowFilter(statuses=[failed]),
        "rare_of_type": WorkflowFilter(statuses=[failed], workflow_type="order"),
        "few_open": WorkflowFilter(statuses=[WORKFLOW_STATUS_RUNNING], workflow_type="order"),
        "of_type": WorkflowFilter(workflow_type="order"),
        "closed": closed_then,
        "closed_rare": WorkflowFilter(statuses=[failed], closed_from=timestamp(1)),
        "prefix": WorkflowFilter(workflow_id_prefix=old.workflow_id[:_TELLING]),
        "prefix_of_many": WorkflowFilter(workflow_id_prefix=old.workflow_id[:_USUAL]),
    }
