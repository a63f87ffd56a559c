"""The HTTP edge: who may send, how much and how slowly, and what is said while the service stops or cannot store."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from romancy.v1.event_pb2 import CloudEvent

from romancy_service import errors
from romancy_service.config import Address, CannotListen, Config, InvalidConfig, Security
from romancy_service.core.limits import Limits
from romancy_service.errors import BatchRejected, InternalError, InvalidField, RomancyError, StoreUnavailable
from romancy_service.http.edge import HttpEdge
from romancy_service.http.errors import STATUS, status_of
from romancy_service.http.event_path import EventPath
from romancy_service.rpc.auth import identity_of
from tests.rpc.certificates import Authority
from tests.service.cluster import until

HEADERS = {"ce-id": "1", "ce-source": "/shop", "ce-type": "paid", "ce-specversion": "1.0"}
HEAD = "POST /events HTTP/1.1\r\nHost: x\r\n" + "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
TEXT = "Content-Type: text/plain\r\n"
ANYWHERE = Address("127.0.0.1", 0)
TOKENS = {"writer": "orders write", "reader": "orders read", "worker": "orders work", "keeper": "* admin"}


_writers: list[asyncio.StreamWriter] = []


class Kept:
    """Keeps what is published, as the publisher would, or fails as `failure` says."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, CloudEvent]] = []
        self.failure: BaseException | None = None
        self.entered, self.go_on = asyncio.Event(), asyncio.Event()
        self.go_on.set()

    async def publish(self, namespace: str, events: Sequence[CloudEvent], field: str) -> list[bool]:
        self.entered.set()
        await self.go_on.wait()
        if self.failure is not None:
            raise self.failure
        self.events += [(namespace, identity_of(""), event) for event in events]
        return [False] * len(events)


@asynccontextmanager
async def serving(config: Config) -> AsyncIterator[tuple[HttpEdge, Kept]]:
    edge, kept = HttpEdge(config), Kept()
    await edge.bind()
    edge.answer(EventPath(kept, config.limits).publish)  # type: ignore[arg-type]
    await edge.start()
    try:
        yield edge, kept
    finally:
        kept.go_on.set()
        await edge.stop(1)
        while _writers:
            writer = _writers.pop()
            writer.close()
            try:
                await writer.wait_closed()
            except OSError:
                pass  # it was cut off


def here(**limits: int) -> Config:
    return Config(http=ANYWHERE, limits=replace(Limits(), **limits))


async def send(
    edge: HttpEdge, *, path: str = "/events", method: str = "POST", tls: Any = None, data: Any = None, **more: str
) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers of the answer to an event."""
    url = f"{'http' if tls is None else 'https'}://127.0.0.1:{edge.port}{path}"
    headers = HEADERS | {name.replace("_", "-"): value for name, value in more.items()}
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, headers=headers, data=data, ssl=True if tls is None else tls) as answer,
    ):
        return answer.status, await answer.json(), dict(answer.headers)


async def raw(edge: HttpEdge, sent: str | bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    _writers.append(writer)
    writer.write(sent if isinstance(sent, bytes) else sent.encode())
    return reader, writer


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, Any]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.lower().startswith("content-length"))
    return int(head.split()[1]), json.loads(await reader.readexactly(length))


# Who may send -------------------------------------------------------------------------------------------------------


def token_file(folder: Path) -> Path:
    lines = [f"token:{sha256(name.encode()).hexdigest()} {name} {rest}" for name, rest in TOKENS.items()]
    path = folder / "access.txt"
    path.write_text("\n".join(lines))
    return path


async def test_who_publishes_by_grpc_may_publish_by_http_and_nobody_else(tmp_path: Path) -> None:
    config = Config(http=ANYWHERE, security=Security(token_file=token_file(tmp_path)))
    async with serving(config) as (edge, kept):
        for name, path, expected in (
            ("", "/events/orders", 401),
            ("nobody", "/events/orders", 401),
            ("reader", "/events/orders", 403),
            ("worker", "/events/orders", 403),
            ("writer", "/events/orders", 202),
            ("writer", "/events/other", 403),
            ("writer", "/events", 403),
            ("keeper", "/events/other", 202),
            ("", "/nothing", 401),
        ):
            status, body, headers = await send(edge, path=path, Authorization=f"Bearer {name}")
            assert status == expected, f"{name} {path}"
            if status == 401:
                assert headers["WWW-Authenticate"] == "Bearer"
                assert body["reason"] == "UNAUTHENTICATED"
        assert [(namespace, who) for namespace, who, _ in kept.events] == [("orders", "writer"), ("other", "keeper")]
        assert (await send(edge, path="/health", method="GET"))[0] == 200, "strangers may ask this"


async def test_a_stranger_sends_no_body(tmp_path: Path) -> None:
    config = Config(http=ANYWHERE, security=Security(token_file=token_file(tmp_path)))
    async with serving(config) as (edge, _):
        reader, writer = await raw(edge, HEAD + TEXT + "Content-Length: 1000000\r\n\r\n")
        assert (await answer(reader))[0] == 401
        writer.close()


async def test_the_wire_is_tls_where_the_other_port_has_it_and_certificates_count(tmp_path: Path) -> None:
    authority = Authority()
    cert, key = authority.sign("service", ("localhost",)).write(tmp_path, "service")
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.certificate)
    access = tmp_path / "access.txt"
    access.write_text("cert:shop shop orders write")
    config = Config(http=ANYWHERE, security=Security(cert, key, ca, access))
    trusting = ssl.create_default_context(cafile=str(ca))
    async with serving(config) as (edge, kept):
        with pytest.raises(aiohttp.ClientError):
            await send(edge, path="/events/orders")
        with pytest.raises(aiohttp.ClientError):
            await send(edge, path="/events/orders", tls=trusting)
        for name, status in (("shop", 202), ("stranger", 401)):
            context = ssl.create_default_context(cafile=str(ca))
            context.load_cert_chain(*authority.sign(name).write(tmp_path, name))
            assert (await send(edge, path="/events/orders", tls=context))[0] == status
        assert [who for _, who, _ in kept.events] == ["shop"]


def test_others_than_this_machine_need_tls_and_credentials_here_too(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"--http needs TLS .* and authentication"):
        Config(http=Address("0.0.0.0", 1))
    with pytest.raises(InvalidConfig, match="cannot read"):
        HttpEdge(Config(http=ANYWHERE, security=Security(tmp_path / "no.pem", tmp_path / "no.key")))


async def test_an_address_that_is_taken_is_named() -> None:
    async with serving(here()) as (edge, _):
        with pytest.raises(CannotListen, match=f"127.0.0.1:{edge.port}.*--http"):
            await HttpEdge(Config(http=Address("127.0.0.1", edge.port))).bind()


# How much, and how slowly --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_refused_before_it_is_read_whole(chunked: bool) -> None:
    most = 100_000
    async with serving(here(client_message_bytes=most)) as (edge, kept):
        if chunked:
            part = b"x" * 50_000
            sent = (HEAD + TEXT + "Transfer-Encoding: chunked\r\n\r\n").encode() + (b"c350\r\n" + part + b"\r\n") * 3
        else:
            sent = (HEAD + TEXT + f"Content-Length: {most + 1}\r\n\r\n").encode()
        reader, writer = await raw(edge, sent)  # and no more: nobody waits for the rest
        status, body = await answer(reader)
        assert (status, body["reason"], body["field"], body["limit"]) == (413, "MESSAGE_TOO_LARGE", "body", str(most))
        writer.close()
        assert kept.events == []


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async with serving(here(http_body_ms=50)) as (edge, _):
        reader, writer = await raw(edge, HEAD + TEXT + "Content-Length: 10\r\n\r\nslow")
        assert await answer(reader) == (408, {"limit_s": "0.05", "message": ANY, "reason": "BODY_TOO_SLOW"})
        writer.close()
        assert (await send(edge))[0] == 202


async def test_a_head_that_does_not_come_is_not_waited_for_however_it_trickles() -> None:
    async with serving(here(http_head_ms=200)) as (edge, _):
        slow = [await raw(edge, sent) for sent in ("", HEAD, "POST")]
        for reader, writer in slow:
            async with asyncio.timeout(10):
                while not reader.at_eof():
                    writer.write(b"x")
                    try:
                        async with asyncio.timeout(0.02):
                            await reader.read(100)
                    except TimeoutError:
                        continue
                    except ConnectionError:
                        break  # it is closed
            writer.close()


async def test_there_are_only_so_many_connections_and_places_become_free() -> None:
    async with serving(here(http_connections=2)) as (edge, _):
        first, second = await raw(edge, "P"), await raw(edge, "P")
        reader, writer = await raw(edge, "")
        status, body = await answer(reader)
        assert (status, body["reason"]) == (503, "TOO_MANY_CONNECTIONS")
        assert await reader.read() == b""
        for _, open_writer in (first, second, (reader, writer)):
            open_writer.close()

        async def is_taken() -> bool:
            return (await send(edge))[0] == 202

        await until(is_taken, "there is room again")


async def test_there_is_only_so_much_room_for_bodies_and_it_becomes_free() -> None:
    limits = {"client_message_bytes": 1_000, "http_bodies_bytes": 1_000}
    async with serving(here(**limits)) as (edge, kept):
        kept.go_on.clear()
        first = asyncio.create_task(send(edge, data=b"x" * 900, Content_Type="text/plain"))
        await kept.entered.wait()
        status, body, headers = await send(edge, data=b"x" * 900, Content_Type="text/plain")
        assert (status, body["reason"], headers["Retry-After"]) == (503, "TOO_MANY_BODIES", "1")
        kept.go_on.set()
        assert (await first)[0] == 202
        assert (await send(edge, data=b"x" * 900, Content_Type="text/plain"))[0] == 202


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS where there is none
        b"nonsense\r\n\r\n",
        b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /events HTTP/1.1\r\nHost: x\r\nce-id: " + b"x" * 9_000 + b"\r\n\r\n",
        b"POST /events HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
    ],
)
async def test_what_is_no_request_is_answered_and_the_connection_ends(sent: bytes) -> None:
    async with serving(here()) as (edge, kept):
        reader, writer = await raw(edge, sent)
        status, body = await answer(reader)
        assert (status, body["reason"]) == (400, "BAD_REQUEST")
        assert await reader.read() == b""
        writer.close()
        assert (await send(edge))[0] == 202
        assert len(kept.events) == 1


async def test_a_body_that_breaks_off_or_is_chunked_wrongly_is_no_event() -> None:
    async with serving(here()) as (edge, kept):
        _, writer = await raw(edge, HEAD + TEXT + "Content-Length: 10\r\n\r\nhalf")
        await writer.drain()
        writer.close()
        reader, writer = await raw(edge, HEAD + TEXT + "Transfer-Encoding: chunked\r\n\r\nnonsense\r\n\r\n")
        status, body = await answer(reader)
        assert (status, body["reason"]) in ((400, "INVALID_FIELD"), (400, "BAD_REQUEST"))
        writer.close()
        assert kept.events == []


async def test_a_header_that_comes_twice_means_nothing() -> None:
    async with serving(here()) as (edge, kept):
        reader, _ = await raw(edge, HEAD + "CE-ID: 2\r\nContent-Length: 0\r\n\r\n")
        status, body = await answer(reader)
        assert (status, body["message"]) == (400, "event.id: is given twice; send each header once")
        reader, _ = await raw(edge, HEAD + TEXT * 2 + "Content-Length: 0\r\n\r\n")
        assert (await answer(reader))[0] == 400
        assert kept.events == []


async def test_requests_on_one_connection_are_answered_in_order() -> None:
    async with serving(here()) as (edge, kept):
        reader, writer = await raw(edge, (HEAD + "Content-Length: 0\r\n\r\n") * 3)
        for _ in range(3):
            assert await answer(reader) == (202, {"duplicate": False})
        writer.close()
        assert len(kept.events) == 3


# Errors, health, drain -----------------------------------------------------------------------------------------------


class _Any:
    def __eq__(self, other: object) -> bool:
        return True


ANY = _Any()


async def test_while_the_database_is_away_senders_are_told_to_come_back() -> None:
    async with serving(here()) as (edge, kept):
        kept.failure = StoreUnavailable("the database is away")
        await edge.serves(False)
        status, body, headers = await send(edge)
        assert (status, body["reason"], headers["Retry-After"]) == (503, "STORE_UNAVAILABLE", "1")
        assert (await send(edge, path="/health", method="GET"))[:2] == (503, {"status": "NOT_SERVING"})
        kept.failure = None
        await edge.serves(True)
        assert (await send(edge))[0] == 202
        assert (await send(edge, path="/health", method="GET"))[:2] == (200, {"status": "SERVING"})
        assert (await send(edge, path="/health"))[0] == 405


@pytest.mark.parametrize("failure", [ValueError("secret"), BatchRejected("secret"), InternalError("secret")])
async def test_what_is_our_fault_is_told_as_a_number(failure: Exception) -> None:
    async with serving(here()) as (edge, kept):
        kept.failure = failure
        status, body, _ = await send(edge)
        assert (status, body["reason"]) == (500, "INTERNAL")
        assert "secret" not in json.dumps(body)
        assert body["error_id"] in body["message"]


async def test_a_stopping_service_finishes_what_is_in_flight_and_takes_no_more() -> None:
    async with serving(here()) as (edge, kept):
        kept.go_on.clear()
        reader, writer = await raw(edge, HEAD + "Content-Length: 0\r\n\r\n")
        await kept.entered.wait()
        late_reader, late_writer = await raw(edge, "")
        idle_reader, idle_writer = await raw(edge, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await answer(idle_reader))[0] == 200
        await edge.not_serving()
        late_writer.write((HEAD + "Content-Length: 0\r\n\r\n").encode())
        status, body = await answer(late_reader)
        assert (status, body["reason"]) == (503, "DRAINING")
        assert await late_reader.read() == b"", "the connection ends"
        stopping = asyncio.create_task(edge.stop(10))
        assert await idle_reader.read() == b"", "who is idle is told"
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await raw(edge, "")
        kept.go_on.set()
        assert await answer(reader) == (202, {"duplicate": False})
        await stopping
        for each in (writer, late_writer, idle_writer):
            each.close()


def test_every_error_that_publishing_may_end_with_has_a_status_of_its_own() -> None:
    assert status_of(InvalidField("x", "y", reason="PAYLOAD_TOO_LARGE")) == 413
    assert status_of(InvalidField("x", "y")) == 400
    ours = {each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, RomancyError)}
    assert {each for each in STATUS if each not in ours and not each.__module__.endswith("http.errors")} == set()
    assert len({each.reason for each in STATUS if each is not InvalidField}) == len(STATUS) - 1
