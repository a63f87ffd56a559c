"""One request to a sink: where it may lead, whatever names and redirects say, and what its answers come to."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from aiohttp.abc import AbstractResolver, ResolveResult

from romancy.v1.event_pb2 import CloudEvent

from romancy_service.core.destinations import Destinations
from romancy_service.core.limits import Limits
from romancy_service.core.sink import Verdict
from romancy_service.webhook import Answer, Webhooks, to_message
from tests.service.sink import Reply, Sink, sink

QUICK = replace(Limits(), sink_answer_ms=400, sink_connect_ms=300)
EVENT = CloudEvent(id="1", source="/", spec_version="1.0", type="tested", text_data="{}")


class Names(AbstractResolver):
    """Says where names lead, as an evil name server would: another address at each look, the last one for good."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        address = self.addresses.pop(0) if len(self.addresses) > 1 else self.addresses[0]
        kind = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=0)]

    async def close(self) -> None:
        """Nothing is open."""


@pytest_asyncio.fixture(loop_scope="session")
async def server() -> AsyncIterator[Sink]:
    async with sink() as up:
        yield up


async def post(url: str, *allowed: str, names: Names | None = None, limits: Limits = QUICK, now_ms: int = 0) -> Answer:
    async with Webhooks(Destinations.parse(allowed), limits, names) as webhooks:
        return await webhooks.post(url, to_message(EVENT), {"webhook-id": "msg_1"}, now_ms)


async def test_a_sink_that_is_allowed_gets_the_event(server: Sink) -> None:
    assert await post(server.url, "127.0.0.1") == Answer(Verdict.DELIVERED)
    (received,) = server.received
    assert received.event.get_id() == "1"
    assert received.headers["webhook-id"] == "msg_1"
    assert received.headers["user-agent"] == "romancy"
    assert "cookie" not in received.headers


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0.0.0.0", "[::ffff:127.0.0.1]",
     "[::1]", "[::]", "[64:ff9b::7f00:1]", "evil.example.com"],
)  # fmt: skip
async def test_what_was_not_allowed_is_not_connected_to(server: Sink, host: str) -> None:
    answer = await post(f"http://{host}:{server.port}/", "hooks.example.com", "10.0.0.0/8")
    assert (answer.verdict, answer.unreachable) == (Verdict.LATER, True)
    assert "is not allowed by --sink-allow" in answer.why
    assert server.received == []


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "192.168.0.1", "::1", "::ffff:127.0.0.1", "fe80::1"]
)
async def test_a_name_that_leads_to_an_address_that_is_not_public_is_refused(server: Sink, address: str) -> None:
    names = Names(address)
    answer = await post(f"http://hooks.example.com:{server.port}/", "hooks.example.com", names=names)
    assert (answer.verdict, answer.unreachable) == (Verdict.LATER, True)
    assert answer.why == f"{address} port {server.port} is not allowed by --sink-allow"
    assert names.asked == ["hooks.example.com"]
    assert server.received == []


@pytest.mark.parametrize(
    "text",
    [
        '{"amount": 12345678901234567.89}', '{"a":1e-400,"b":1.10,"c":-0.0}', " [1,2] ", '"\\u00e9 \\ud83d\\ude00 é"', "null",
        "123456789012345678901234567890",
    ],
)  # fmt: skip
def test_json_goes_out_as_it_was_sent(text: str) -> None:
    event = CloudEvent(id="1", source="/s", type="t", spec_version="1.0", text_data=text)
    event.attributes["datacontenttype"].ce_string = "application/json; charset=utf-8"
    body = to_message(event).body
    assert body.endswith(f', "data": {text}}}'.encode())
    assert json.loads(body)["id"] == "1"


@pytest.mark.parametrize("data", [b"{", b"\xff", b"[1e999]", b"NaN", b'{"a":1,"a":2}', b""])
def test_what_is_no_json_is_no_part_of_it(data: bytes) -> None:
    event = CloudEvent(id="1", source="/s", type="t", spec_version="1.0", binary_data=data)
    sent = json.loads(to_message(event).body)
    assert base64.b64decode(sent["data_base64"]) == data
    assert "data" not in sent


def test_every_kind_of_attribute_goes_out() -> None:
    event = CloudEvent(id="1", source="/s", type="t", spec_version="1.0")
    event.attributes["bytes"].ce_bytes = b"\0\xff"
    event.attributes["number"].ce_integer = -5
    event.attributes["flag"].ce_boolean = False
    event.attributes["schema"].ce_uri = "https://example.com/s"
    event.attributes["dataschema"].ce_uri_ref = "/s"
    event.attributes["time"].ce_timestamp.FromMilliseconds(1)
    sent = json.loads(to_message(event).body)
    assert sent.pop("time").startswith("1970-01-01T00:00:00.001")
    assert sent == {
        "id": "1", "source": "/s", "type": "t", "specversion": "1.0", "bytes": "AP8=", "number": -5, "flag": False,
        "schema": "https://example.com/s", "dataschema": "/s",
    }  # fmt: skip


async def test_a_name_of_other_letters_is_allowed_as_it_is_written_in_a_url(server: Sink) -> None:
    url = f"http://xn--mnchen-3ya.example.com:{server.port}/"
    answer = await post(url, "xn--mnchen-3ya.example.com", "127.0.0.1", names=Names("127.0.0.1"))
    assert answer == Answer(Verdict.DELIVERED)


async def test_a_name_that_is_none_is_no_end_of_the_event_and_says_so() -> None:
    answer = await post("http://xn--a.example.com/", "*.example.com")
    assert (answer.verdict, answer.unreachable) == (Verdict.LATER, True)
    assert answer.why.startswith("the sink's URL is none: UnicodeError: ")


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "127.1"])
async def test_a_number_that_resolvers_take_for_an_address_is_judged_as_that_address(server: Sink, host: str) -> None:
    """Also where somebody managed to have it allowed as a name."""
    destinations = Destinations(hosts=((host, 0),))
    async with Webhooks(destinations, QUICK) as webhooks:
        answer = await webhooks.post(f"http://{host}:{server.port}/", to_message(EVENT), {}, 0)
    assert answer.unreachable
    assert server.received == []


async def test_a_name_that_leads_elsewhere_the_second_time_is_judged_by_where_it_leads_then(server: Sink) -> None:
    names = Names("127.0.0.1", "10.9.9.9")
    async with Webhooks(Destinations.parse(["hooks.example.com", "127.0.0.1"]), QUICK, names) as webhooks:
        url = f"http://hooks.example.com:{server.port}/"
        assert (await webhooks.post(url, to_message(EVENT), {}, 0)).verdict is Verdict.DELIVERED
        server.script = lambda _: Reply(204, {"connection": "close"})
        await webhooks.post(url, to_message(EVENT), {}, 0)
        webhooks._session.connector.clear_dns_cache()  # type: ignore[union-attr]
        answer = await webhooks.post(url, to_message(EVENT), {}, 0)
    assert answer.why == f"10.9.9.9 port {server.port} is not allowed by --sink-allow"


async def test_an_internal_name_needs_its_network_too(server: Sink) -> None:
    url = f"http://hooks.internal:{server.port}/"
    assert (await post(url, "hooks.internal", names=Names("127.0.0.1"))).unreachable
    assert (await post(url, "hooks.internal", "127.0.0.0/8", names=Names("127.0.0.1"))).verdict is Verdict.DELIVERED
    assert len(server.received) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_this_machine_is_not_followed(server: Sink, status: int) -> None:
    async with sink() as secret:
        server.script = lambda _: Reply(status, {"location": secret.url})
        answer = await post(server.url, "127.0.0.1")
        assert answer.verdict is Verdict.DEAD
        assert "redirects are not followed" in answer.why
        assert secret.received == []


async def test_no_proxy_of_the_environment_is_asked(server: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    async with sink() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert (await post(server.url, "127.0.0.1")).verdict is Verdict.DELIVERED
        assert proxy.received == []


async def test_cookies_are_not_kept(server: Sink) -> None:
    server.script = lambda _: Reply(204, {"set-cookie": "a=b"})
    async with Webhooks(Destinations.parse(["127.0.0.1"]), QUICK) as webhooks:
        for _ in range(2):
            await webhooks.post(server.url, to_message(EVENT), {}, 0)
    assert ["cookie" in each.headers for each in server.received] == [False, False]


# Answers ---------------------------------------------------------------------------------------------------------


async def test_who_does_not_answer_in_time_is_asked_later(server: Sink) -> None:
    async def never(_: Any) -> int:
        await asyncio.sleep(30)
        return 204

    server.script = never
    answer = await post(server.url, "127.0.0.1")
    assert (answer.verdict, answer.unreachable) == (Verdict.LATER, False)
    assert answer.why == "no answer within 0.4 s"


async def test_who_answers_drop_by_drop_has_no_more_time() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for _ in range(100):
                writer.write(b"HTTP/1.1 200 OK\r\nx: "[:1])
                await writer.drain()
                await asyncio.sleep(0.05)
        except OSError:
            pass
        finally:
            writer.close()

    raw = await asyncio.start_server(drip, "127.0.0.1", 0)
    async with raw:
        answer = await post(f"http://127.0.0.1:{raw.sockets[0].getsockname()[1]}/", "127.0.0.1")
    assert (answer.verdict, answer.unreachable) == (Verdict.LATER, False)


@pytest.mark.parametrize(
    "said",
    [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 999999 x\r\n\r\n", b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000],
    ids=["nothing", "nonsense", "no status", "endless header"],
)
async def test_what_is_no_answer_is_tried_again(said: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(said)
        writer.close()

    raw = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with raw:
        answer = await post(f"http://127.0.0.1:{raw.sockets[0].getsockname()[1]}/", "127.0.0.1")
    assert (answer.verdict, answer.unreachable) == (Verdict.LATER, False)


async def test_of_an_endless_answer_only_the_beginning_is_read() -> None:
    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad\r\ncontent-length: 100000000000\r\n\r\n")
        try:
            while True:
                writer.write(b"x" * 65_536)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    raw = await asyncio.start_server(pour, "127.0.0.1", 0)
    async with raw:
        answer = await post(f"http://127.0.0.1:{raw.sockets[0].getsockname()[1]}/", "127.0.0.1")
    assert answer.verdict is Verdict.DEAD
    assert len(answer.why) < 300


async def test_nobody_there_is_unreachable() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    answer = await post(f"http://127.0.0.1:{port}/", "127.0.0.1")
    assert (answer.verdict, answer.unreachable) == (Verdict.LATER, True)


@pytest.mark.parametrize(
    ("said", "wait_ms"),
    [
        ("7", 7_000), (" 7 ", 7_000), ("0", 0), ("-7", 0), ("7.5", 0), ("soon", 0), ("", 0), ("\u0667", 0),
        ("9" * 5_000, 3_600_000), ("99999", 3_600_000),
        ("Thu, 01 Jan 1970 00:01:00 GMT", 60_000), ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3_600_000), ("Thu, 99 Jan 1970 00:01:00 GMT", 0),
    ],
)  # fmt: skip
async def test_retry_after_is_seconds_or_a_date_within_limits(server: Sink, said: str, wait_ms: int) -> None:
    server.script = lambda _: Reply(503, {"retry-after": said.encode("ascii", "replace").decode()})
    assert (await post(server.url, "127.0.0.1")).wait_ms == wait_ms
