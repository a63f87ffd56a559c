"""Once: what is no trigger of a run is carried out once for each request id too, and answered alike each time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from google.protobuf.message import Message

from romancy.v1.workflow_service_pb2 import WorkflowRef

from romancy_service.errors import RequestIdReused, RomancyError
from romancy_service.store.store import Store

R = TypeVar("R", bound=Message)


async def once(
    store: Store,
    namespace: str,
    request_id: str,
    method: str,
    response: type[R],
    carry_out: Callable[[], Awaitable[R]],
) -> R:
    """What `carry_out`, which remembers the request with what it does, answers; or what it answered before.

    Raises RequestIdReused when the request id was used for another method.
    """
    if (before := await _recorded(store, namespace, request_id, method)) is not None:
        return response.FromString(before)
    try:
        return await carry_out()
    except RomancyError:
        # The same request may have overtaken this one, which therefore finds nothing to do any more.
        if (before := await _recorded(store, namespace, request_id, method)) is not None:
            return response.FromString(before)
        raise


async def is_of(store: Store, ref: WorkflowRef, run_id: str) -> bool:
    """Whether a run is one that a request names; of one that is deleted that is not known any more."""
    if ref.run_id:
        return run_id == ref.run_id
    found = (await store.load([run_id])).get(run_id)
    return found is None or found.workflow_id == ref.workflow_id


async def _recorded(store: Store, namespace: str, request_id: str, method: str) -> bytes | None:
    found = (await store.find_requests([(namespace, request_id)])).get((namespace, request_id))
    if found is None:
        return None
    if found.method != method:
        raise RequestIdReused(request_id, found.method)
    return found.reply
