"""What a row keeps is what the contract says."""

from __future__ import annotations

import pytest

from romancy.v1.command_pb2 import ScheduleActivity
from romancy.v1.history_pb2 import ActivityScheduled, HistoryEvent
from romancy.v1.payload_pb2 import Payload
from romancy.v1.workflow_service_pb2 import GetHistoryResponse

from romancy_service.store.rows import events_bytes, events_of


def event(event_id: int, size: int) -> HistoryEvent:
    command = ScheduleActivity(activity_id="pay:1", activity_type="pay", arguments=[Payload(json="x" * size)])
    return HistoryEvent(event_id=event_id, activity_scheduled=ActivityScheduled(command=command))


@pytest.mark.parametrize("sizes", [[], [0], [100], [127, 128, 16_383, 16_384, 3_000_000]])
def test_the_events_of_a_commit_are_kept_as_the_message_that_answers_with_them(sizes: list[int]) -> None:
    events = [event(number, size) for number, size in enumerate(sizes, 1)]
    kept = events_bytes(events)
    assert kept == GetHistoryResponse(events=events).SerializeToString()
    assert list(events_of(kept)) == events
