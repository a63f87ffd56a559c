"""Pages: how much of a list one answer holds, and tokens to go on after it."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from hashlib import sha256
from typing import TypeVar

from romancy.v1.history_pb2 import HistoryEvent
from romancy.v1.workflow_pb2 import WorkflowInfo
from romancy.v1.workflow_service_pb2 import RunResult, WorkflowFilter

from romancy_service.core.check import check_id
from romancy_service.core.limits import Limits
from romancy_service.core.task import NEVER_MS
from romancy_service.errors import InvalidField

Item = TypeVar("Item", HistoryEvent, RunResult, WorkflowInfo)


def fit(items: Sequence[Item], most_bytes: int) -> list[Item]:
    """As many of the first as fit, but at least one: what a client's message can hold."""
    page: list[Item] = []
    room = most_bytes
    for item in items:
        room -= item.ByteSize()
        if room < 0 and page:
            break
        page.append(item)
    return page


def name_token(listed: str, name: str) -> str:
    """A token to go on after `name` in the list `listed`, which says of what it is: a namespace, for example."""
    # Not a secret: whoever forges one sees only what the list shows anyway.
    return base64.urlsafe_b64encode(json.dumps([listed, name]).encode()).decode()


def read_name_token(token: str, listed: str, limits: Limits) -> str:
    """The name after which the page begins; empty: it is the first page. Raises InvalidField."""
    if not token:
        return ""
    try:
        of_list, name = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
        if of_list == listed and isinstance(name, str):
            check_id("page_token", name, limits)
            return name
    except (ValueError, TypeError, RecursionError, InvalidField):
        pass
    remedy = "give next_page_token as it was, with the same namespace"
    raise InvalidField("page_token", "is not of this list", remedy, reason="INVALID_PAGE_TOKEN")


def runs_token(namespace: str, wanted: WorkflowFilter, start_ms: int, run_id: str) -> str:
    """A token to go on after this run in the list of `wanted`, which begins with the newest."""
    # Not a secret: whoever forges one sees only what the list shows anyway.
    return base64.urlsafe_b64encode(json.dumps([_digest(namespace, wanted), start_ms, run_id]).encode()).decode()


def read_runs_token(token: str, namespace: str, wanted: WorkflowFilter, limits: Limits) -> tuple[int, str]:
    """Start time and id of the run after which the page begins. Raises InvalidField."""
    try:
        digest, start_ms, run_id = json.loads(base64.urlsafe_b64decode(token))
        if digest == _digest(namespace, wanted) and type(start_ms) is int and abs(start_ms) < NEVER_MS:
            check_id("page_token", run_id, limits)
            return start_ms, run_id
    except (ValueError, TypeError, RecursionError, InvalidField):
        pass
    raise InvalidField(
        "page_token",
        "is not of this list",
        "give next_page_token with the same namespace and filter",
        reason="INVALID_PAGE_TOKEN",
    )


def _digest(namespace: str, wanted: WorkflowFilter) -> str:
    return sha256(namespace.encode() + b"\0" + wanted.SerializeToString(deterministic=True)).hexdigest()[:16]
