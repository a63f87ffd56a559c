"""Which events code gets of those that are in its run: the same that the service finds it for."""

from __future__ import annotations

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from romancy.v1.event_pb2 import CloudEvent

from romancy.events import fits
from romancy_service.core.subscription import Content, topic_and_key
from tests.core.test_subscription import an_event


@pytest.mark.parametrize("value", ["true", "false", "1", "1.0", "0", '"1"', '"true"', "null", '"1970-01-01T00:00:01Z"'])
@pytest.mark.parametrize(
    ("path", "event"),
    [
        ("data.n", an_event(data='{"n": true}')),
        ("data.n", an_event(data='{"n": 1}')),
        ("data.n", an_event(data='{"n": 1.0}')),
        ("data.n", an_event(data='{"n": "1"}')),
        ("data.n", an_event(data='{"n": 0}')),
        ("data.n", an_event(data='{"n": false}')),
        ("data.n", an_event(data='{"n": null}')),
        ("data.n", an_event(data='{"n": [1]}')),
        ("data.n", an_event(data='{"n": 1}', datacontenttype="application/json; charset=utf-8")),
        ("data.n", an_event(data='{"n": 1}', datacontenttype="application/vnd.shop+json")),
        ("data.n", an_event(data='{"n": 1}', datacontenttype="text/plain")),
        ("data.n", an_event(data='{"n": 1}', datacontenttype="")),
        ("data.n", an_event(data="[" * 100_000, datacontenttype="application/json")),
        ("data.n", an_event()),
        ("n", an_event(n=1)),
        ("n", an_event(n=True)),
        ("n", an_event(n="1")),
        ("time", an_event(time=Timestamp(seconds=1, nanos=999_999))),
        ("time", an_event(time=Timestamp(seconds=1, nanos=1_000_000))),
    ],
)
def test_code_gets_what_the_service_brings(path: str, event: CloudEvent, value: str) -> None:
    topic, key = topic_and_key("paid", {path: value})
    assert fits(event, "paid", {path: value}) == (Content(event).key(topic) == key)
