"""Refusals: whatever the service refuses with, clients have a class for it."""

from __future__ import annotations

from typing import Final

import pytest

from romancy.refusals import _BY_REASON, LimitReached, RequestRefused, ServiceBusy, refusal
from romancy_service.errors import (
    ChannelModeConflict,
    InvalidField,
    RomancyError,
    SessionSuperseded,
    TooManySessions,
)
from romancy_service.rpc.errors import STATUS

NOT_OF_CALLS: Final[set[type[RomancyError]]] = {
    ChannelModeConflict,  # recorded in the run, whose code sees it as romancy.errors.ChannelModeConflict
    SessionSuperseded,  # of a worker's stream
    TooManySessions,  # of a worker's stream
}


def reason_of(kind: type[RomancyError]) -> str:
    return "INVALID_FIELD" if kind is InvalidField else kind.reason


@pytest.mark.parametrize("kind", [each for each in STATUS if each not in NOT_OF_CALLS], ids=reason_of)
def test_each_error_of_the_service_has_a_class(kind: type[RomancyError]) -> None:
    found = refusal(STATUS[kind], reason_of(kind), "no", {})
    assert type(found) is not RequestRefused
    assert type(found).__doc__


def test_each_class_is_of_a_reason_that_the_service_gives() -> None:
    assert set(_BY_REASON) <= {reason_of(kind) for kind in STATUS}


def test_what_there_is_too_much_of_tells_whether_to_wait_or_to_delete() -> None:
    too_many = {kind for kind in STATUS if kind.__name__.startswith("TooMany")} - NOT_OF_CALLS
    waits = {kind.reason: refusal(STATUS[kind], kind.reason, "no", {"limit": "7"}) for kind in too_many}
    assert {reason: type(found) for reason, found in waits.items()} == {
        "TOO_MANY_QUERIES": ServiceBusy,
        "TOO_MANY_UPDATES": ServiceBusy,
        "TOO_MANY_SINKS": LimitReached,
        "TOO_MANY_EVENT_RULES": LimitReached,
    }
    assert all(found.metadata["limit"] == "7" for found in waits.values())
