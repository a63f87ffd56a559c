"""Events for sinks: what a run records of them, which ones it refuses, and where the service may send them."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from romancy.v1.command_pb2 import Command, SendEvent
from romancy.v1.event_pb2 import CloudEvent
from romancy.v1.payload_pb2 import Payload

from romancy_service.core.destinations import LOOPBACK, Destinations, is_public
from romancy_service.core.limits import Limits
from romancy_service.core.outgoing import as_recorded, check_all_outgoing
from romancy_service.core.run import Run
from romancy_service.core.sink import Verdict, check_url, message_id, read_secret, signatures, verdict
from romancy_service.core.triggers import CompleteActivity
from romancy_service.errors import InvalidField
from tests.core.life import Life, schedule

LIMITS = Limits()


def an_event(event_type: str = "paid", **fields: Any) -> CloudEvent:
    return CloudEvent(type=event_type, spec_version="1.0", **fields)


def send(sink: str = "", **fields: str) -> Command:
    return Command(send_event=SendEvent(event=an_event(**fields), sink=sink))


def test_an_event_is_recorded_with_all_that_was_left_open() -> None:
    life = Life.begin()
    life.code(send(), send("shop", id="mine", source="/me"))
    first, second = [e.event_sent.command for e in life.history if e.HasField("event_sent")]
    assert (first.sink, first.event.id, first.event.source) == ("default", f"{life.run.run_id}/1", "/workflows/order")
    assert first.event.attributes["time"].ce_timestamp.ToMilliseconds() == life.now_ms
    assert (second.sink, second.event.id, second.event.source) == ("shop", "mine", "/me")
    assert life.run.counters.events == 2
    assert life.run.outgoing == [], "it is stored, and is not to be again"


def test_events_of_activities_are_numbered_together_with_those_of_the_code() -> None:
    life = Life.begin()
    life.code(send(), schedule("pay:1"))
    fence = life.fence(life.task("pay:1"))
    events = [SendEvent(event=an_event()), SendEvent(event=an_event())]
    life.do(CompleteActivity(fence, life.now_ms, result=Payload(json="1"), events=events))
    (completed,) = [e.activity_completed for e in life.history if e.HasField("activity_completed")]
    assert [each.event.id for each in completed.events] == [f"{life.run.run_id}/{n}" for n in (2, 3)]
    assert events[0].event.id == "", "what came is left as it was"


def test_a_type_of_workflow_that_is_no_path_is_encoded() -> None:
    run = Run("default", "order-1", "run-1", workflow_type="a b/ä")
    (sent,) = as_recorded(run, [send().send_event], 0)
    assert sent.event.source == "/workflows/a%20b%2F%C3%A4"


BAD = [
    ("event.type", {"event_type": ""}),
    ("event.type", {"event_type": "x" * 256}),
    ("event.type", {"event_type": "a\nb"}),
    ("event.id", {"id": "a\x00"}),
    ("event.source", {"source": "x" * 256}),
    ("event.data", {"text_data": "[NaN]"}),
    ("event.data", {"text_data": "[" * 100_000}),
    ("event", {"text_data": f'"{"x" * LIMITS.event_bytes}"'}),
    ("sink", {"sink": "a\x00b"}),
    ("sink", {"sink": "x" * 256}),
]


@pytest.mark.parametrize(("field", "fields"), BAD, ids=range(len(BAD)))
def test_a_bad_event_fails_the_task_and_says_why(field: str, fields: dict[str, str]) -> None:
    rejection = Life.begin().code(send(**fields)).rejection
    assert isinstance(rejection, InvalidField)
    assert rejection.field == f"commands[0].send_event.{field}"


def test_events_of_an_attempt_are_limited_in_number_and_size() -> None:
    def refused(events: list[SendEvent], result: Payload) -> str:
        with pytest.raises(InvalidField) as raised:
            check_all_outgoing("events", events, result, LIMITS)
        return raised.value.field

    assert refused([SendEvent(event=an_event())] * 101, Payload()) == "events"
    large = SendEvent(event=an_event(text_data=f'"{"x" * 900_000}"'))
    check_all_outgoing("events", [large] * 3, Payload(), LIMITS)
    assert refused([large] * 3, Payload(json=f'"{"x" * 900_000}"')) == "events"
    assert refused([large, SendEvent(event=an_event(""))], Payload()) == "events[1].event.type"


# Sinks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example.com",
        "//hooks.example.com/",
        "ftp://hooks.example.com/",
        "file:///etc/passwd",
        "gopher://hooks.example.com/",
        "javascript:alert(1)",
        "https://user@hooks.example.com/",
        "https://user:secret@hooks.example.com/",
        "https://allowed.example.com@evil.example.com/",
        "https://hooks.example.com/#part",
        "https://hooks.example.com:0/",
        "https://hooks.example.com:65536/",
        "https://hooks.example.com:x/",
        "https://[::1/",
        "https:///path",
        "https://hooks.example.com\\@evil.example.com/",
        "https://hooks.example.com/a b",
        "https://hooks.example.com/\r\nx: y",
        "https://hööks.example.com/",
        "https://xn--a.example.com/",
        "https://xn--/",
        "https://hooks.example.com/" + "x" * 2_048,
    ],
)
def test_what_is_no_url_of_a_sink_is_refused(url: str) -> None:
    with pytest.raises(InvalidField) as raised:
        check_url("url", url, LIMITS)
    assert raised.value.field == "url"
    assert "secret" not in str(raised.value.metadata)


def test_a_url_of_a_sink_is_read() -> None:
    parts = check_url("url", "https://hooks.example.com:8443/in?key=1", LIMITS)
    assert (parts.hostname, parts.port) == ("hooks.example.com", 8443)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_YWJj", "abc", "whsec_%%%%", "whsec_" + "YWJj" * 30])
def test_what_is_no_secret_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(InvalidField) as raised:
        read_secret("secret", secret)
    assert "value" not in raised.value.metadata


def test_signatures_are_those_of_the_standard() -> None:
    key = read_secret("secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = signatures([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert len(signatures([key, key], "a", 1, b"").split(" ")) == 2
    assert message_id("/a", "b") == message_id("/a", "b") != message_id("/b", "b")


@pytest.mark.parametrize(
    ("statuses", "meaning"),
    [
        ((200, 201, 202, 204, 299), Verdict.DELIVERED),
        ((408, 429, 500, 502, 503, 504, 599), Verdict.LATER),
        ((300, 301, 302, 303, 307, 308, 400, 401, 403, 404, 409, 410, 413, 422), Verdict.DEAD),
    ],
)
def test_what_an_answer_means(statuses: tuple[int, ...], meaning: Verdict) -> None:
    assert {verdict(status) for status in statuses} == {meaning}


# Destinations ----------------------------------------------------------------------------------------------------


def test_nothing_is_allowed_that_was_not_said() -> None:
    nowhere = Destinations.parse([])
    assert not nowhere.allow_host("example.com", 443)
    assert not nowhere.allow_host("93.184.216.34", 443)
    assert not nowhere.allow_host("127.0.0.1", 80)


@pytest.mark.parametrize(
    ("pattern", "allowed", "refused"),
    [
        ("hooks.example.com", ["hooks.example.com", "HOOKS.example.com", "hooks.example.com."],
         ["example.com", "a.hooks.example.com", "hooks.example.com.evil.org", "xhooks.example.com"]),
        ("*.example.com", ["a.example.com", "a.b.example.com"], ["example.com", "aexample.com", ".example.com"]),
        ("10.1.0.0/16", ["10.1.2.3", "::ffff:10.1.2.3"], ["10.2.0.1", "ten.example.com", "::10.2.0.1"]),
        ("fd00::/8", ["fd00::7"], ["fe80::7"]),
        ("127.0.0.1", ["127.0.0.1"], ["127.0.0.2", "localhost", "2130706433", "0x7f000001", "127.1", "0177.0.0.1"]),
    ],
)  # fmt: skip
def test_a_host_is_allowed_by_its_name_or_its_network(pattern: str, allowed: list[str], refused: list[str]) -> None:
    destinations = Destinations.parse([pattern])
    assert [host for host in allowed if not destinations.allow_host(host, 443)] == []
    assert [host for host in refused if destinations.allow_host(host, 443)] == []


def test_a_port_that_was_said_is_the_only_one() -> None:
    destinations = Destinations.parse(["hooks.example.com:443", "10.0.0.1:8080", "[fd00::1]:8080"])
    assert destinations.allow_host("hooks.example.com", 443)
    assert not destinations.allow_host("hooks.example.com", 80)
    assert destinations.allow_host("10.0.0.1", 8080)
    assert not destinations.allow_address(ip_address("10.0.0.1"), 22)
    assert destinations.allow_address(ip_address("fd00::1"), 8080)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.255.255", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "192.0.0.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "fe80::1", "fc00::1",
        "fd00:ec2::254", "ff02::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a9fe:a9fe::",
        "2001:db8::1", "2001::1", "fec0::1", "feff:ffff::1", "::ffff:0:10.0.0.1", "64:ff9b:1::a00:1", "5f00::1",
        "3fff::1", "100::1", "100:0:0:1::1", "4000::1", "192.0.0.9", "192.0.0.192", "192.88.99.1", "168.63.129.16",
        "192.0.2.1", "198.51.100.1", "203.0.113.1", "100.100.100.200", "2002:c058:6301::", "::ffff:168.63.129.16",
        "2001:20::1",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public_is_reached_only_where_its_network_was_said(address: str) -> None:
    assert not is_public(ip_address(address))
    assert not Destinations.parse(["*.example.com", "example.com"]).allow_address(ip_address(address), 443)


@pytest.mark.parametrize("address", ["93.184.216.34", "1.1.1.1", "2606:4700::1111", "64:ff9b::101:101", "2a00::1"])
def test_a_public_address_is_reached_by_a_name_that_was_said(address: str) -> None:
    assert Destinations.parse(["example.com"]).allow_address(ip_address(address), 443)


def test_this_machine_is_allowed_where_it_was_said() -> None:
    here = Destinations.parse(LOOPBACK)
    assert here.allow_host("localhost", 1)
    assert here.allow_host("127.0.0.1", 1)
    assert here.allow_host("::1", 1)
    assert here.allow_address(ip_address("::ffff:127.0.0.1"), 1)
    assert not here.allow_address(ip_address("10.0.0.1"), 1)
    assert not here.allow_host("2130706433", 1)


@pytest.mark.parametrize(
    "text",
    ["", "*", "*.", "https://example.com", "example.com/path", "example.com:0", "example.com:x", "example.com:65536",
     "10.0.0.1/8", "10.0.0.0/33", "2130706433", "0x7f000001", "127.1", "a b", "[::1", "*.*.example.com"],
)  # fmt: skip
def test_what_is_no_destination_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"give|port"):
        Destinations.parse([text])
