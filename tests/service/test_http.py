"""Events by HTTP: in each mode they come to the runs that wait, and what is no event is refused with the reason."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from romancy.v1.event_pb2 import CloudEvent

from tests.core.test_subscription import subscribe
from tests.service.cluster import Tenant
from tests.service.test_events import ids, received, waiting

STRUCTURED = {"Content-Type": "application/cloudevents+json"}
BATCH = {"Content-Type": "application/cloudevents-batch+json"}
HEADERS = {"ce-id": "1", "ce-source": "/shop", "ce-type": "paid", "ce-specversion": "1.0"}
EVENT = {"id": "1", "source": "/shop", "type": "paid", "specversion": "1.0"}
JSON = {"Content-Type": "application/json"}
MIB = 1 << 20


class Sender:
    """Sends requests to a replica's HTTP port, each time to the next one."""

    def __init__(self, tenant: Tenant, session: aiohttp.ClientSession) -> None:
        self._tenant = tenant
        self._session = session
        self._sent = 0

    async def send(
        self, headers: dict[str, str], body: Any = b"", *, path: str = "", method: str = "POST"
    ) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer."""
        replicas = self._tenant.cluster.replicas
        port = replicas[self._sent % len(replicas)].http_port
        self._sent += 1
        data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
        path = path or f"/events/{self._tenant.namespace}"
        url = f"http://127.0.0.1:{port}{path}"
        skipped = ["Content-Type"] if "Content-Type" not in headers else []
        async with self._session.request(
            method, url, data=data, headers=headers, skip_auto_headers=skipped
        ) as response:
            return response.status, await response.json()


@pytest_asyncio.fixture(loop_scope="session")
async def sender(tenant: Tenant) -> AsyncIterator[Sender]:
    async with aiohttp.ClientSession() as session:
        yield Sender(tenant, session)


async def first_event(tenant: Tenant, run_id: str) -> CloudEvent:
    await received(tenant, run_id, 1)
    return next(e.event_received.event for e in await tenant.history(run_id) if e.HasField("event_received"))


async def test_a_binary_event_reaches_who_waits_for_its_values(tenant: Tenant, sender: Sender) -> None:
    _, run_id = await waiting(tenant, subscribe(1, "paid", False, data__order="7", subject='"Ä b"'))
    more = {"ce-subject": "%C3%84%20b", "ce-time": "2026-01-31T11:00:00.25+01:00", "ce-tenant": "7"}
    status, body = await sender.send(HEADERS | JSON | more, b'{"order": 7.0, "x": 1.10}')
    assert (status, body) == (202, {"duplicate": False})
    event = await first_event(tenant, run_id)
    assert (event.id, event.source, event.type, event.spec_version) == ("1", "/shop", "paid", "1.0")
    assert event.text_data == '{"order": 7.0, "x": 1.10}', "as it was sent"
    assert event.attributes["time"].ce_timestamp.ToJsonString() == "2026-01-31T10:00:00.250Z"
    assert event.attributes["tenant"].ce_string == "7"
    assert event.attributes["datacontenttype"].ce_string == "application/json"


async def test_a_structured_event_keeps_the_types_of_its_attributes(tenant: Tenant, sender: Sender) -> None:
    _, run_id = await waiting(tenant, subscribe(1, "paid", False, flag="true", number="7", data__order="7"))
    document = EVENT | {"flag": True, "number": 7, "subject": None, "data": {"order": 7, "name": "Ä"}}
    assert await sender.send(STRUCTURED, document) == (202, {"duplicate": False})
    event = await first_event(tenant, run_id)
    assert event.attributes["flag"].ce_boolean
    assert event.attributes["number"].ce_integer == 7
    assert json.loads(event.text_data) == {"order": 7, "name": "Ä"}
    assert set(event.attributes) == {"flag", "number"}


async def test_bytes_and_texts_travel_in_every_mode(tenant: Tenant, sender: Sender) -> None:
    _, run_id = await waiting(tenant, subscribe(1, "paid", False))
    raw = bytes(range(256))
    octets = {"Content-Type": "application/octet-stream"}
    text = {"Content-Type": "text/plain; charset=UTF-8"}
    await sender.send(HEADERS | octets, raw)
    await sender.send(HEADERS | {"ce-id": "2"} | text, "Ä".encode())
    encoded = {"id": "3", "datacontenttype": "application/octet-stream", "data_base64": base64.b64encode(raw).decode()}
    await sender.send(STRUCTURED, EVENT | encoded)
    await sender.send(STRUCTURED, EVENT | {"id": "4", "datacontenttype": "text/plain", "data": "Ä"})
    await sender.send(STRUCTURED, EVENT | {"id": "5", "data": "Ä"})
    await received(tenant, run_id, 5)
    events = [e.event_received.event for e in await tenant.history(run_id) if e.HasField("event_received")]
    assert [event.binary_data or event.text_data for event in events] == [raw, "Ä", raw, "Ä", '"Ä"']


async def test_a_batch_is_kept_whole_and_in_order(tenant: Tenant, sender: Sender) -> None:
    _, run_id = await waiting(tenant, subscribe(1, "paid", False))
    events = [EVENT | {"id": str(number % 4)} for number in range(5)]
    assert await sender.send(BATCH, events) == (202, {"duplicates": [False] * 4 + [True]})
    assert await received(tenant, run_id, 4) == ["0", "1", "2", "3"]


async def test_a_repeated_event_is_accepted_and_said_to_be_known_whichever_way_it_came(
    tenant: Tenant, sender: Sender
) -> None:
    _, run_id = await waiting(tenant, subscribe(1, "paid", False))
    assert await sender.send(HEADERS) == (202, {"duplicate": False})
    assert await sender.send(STRUCTURED, EVENT) == (202, {"duplicate": True})
    assert await sender.send(BATCH, [EVENT, EVENT | {"id": "2"}]) == (202, {"duplicates": [True, False]})
    assert await received(tenant, run_id, 2) == ["1", "2"]


async def test_an_event_for_one_workflow_reaches_it_or_is_not_found(tenant: Tenant, sender: Sender) -> None:
    for_it = HEADERS | {"ce-romancyworkflowid": "order"}
    status, body = await sender.send(for_it)
    assert (status, body["reason"]) == (404, "WORKFLOW_NOT_FOUND")
    _, run_id = await waiting(tenant)
    assert (await sender.send(for_it))[0] == 202
    assert await received(tenant, run_id, 1) == ["1"]
    await tenant.terminate(run_id)
    status, body = await sender.send(for_it | {"ce-id": "2"})
    assert (status, body["reason"]) == (404, "WORKFLOW_CLOSED")


async def test_without_a_name_the_namespace_is_default(tenant: Tenant, sender: Sender) -> None:
    unique = HEADERS | {"ce-source": f"/{tenant.namespace}"}
    for path, known in (("/events", False), ("/events/default", True), ("/events/default?x=y", True)):
        assert await sender.send(unique, path=path) == (202, {"duplicate": known})
    odd = f"/events/{tenant.namespace}%2F%C3%84%20"
    assert await sender.send(unique, path=odd) == (202, {"duplicate": False})


DEEP = b'{"id": "1", "source": "/shop", "type": "paid", "specversion": "1.0", "data": ' + b"[" * 100_000 + b"}"
REFUSED: dict[str, tuple[dict[str, str], Any, int, str, str]] = {
    **{
        f"no ce-{name}": (
            {key: value for key, value in HEADERS.items() if key != f"ce-{name}"}, b"", 400, "INVALID_FIELD", f"event.{name}"
        )
        for name in ("id", "source", "type", "specversion")
    },
    **{
        f"no {name}": (
            STRUCTURED, {key: value for key, value in EVENT.items() if key != name}, 400, "INVALID_FIELD", f"event.{name}"
        )
        for name in ("id", "source", "type", "specversion")
    },
    "an empty id": (HEADERS | {"ce-id": ""}, b"", 400, "INVALID_FIELD", "event.id"),
    "an id that is a number": (STRUCTURED, EVENT | {"id": 7}, 400, "INVALID_FIELD", "event.id"),
    "an id that is too long": (HEADERS | {"ce-id": "x" * 256}, b"", 400, "INVALID_FIELD", "event.id"),
    "an id with a control character": (HEADERS | {"ce-id": "a%0Ab"}, b"", 400, "INVALID_FIELD", "event.id"),
    "a null type": (STRUCTURED, EVENT | {"type": None}, 400, "INVALID_FIELD", "event.type"),
    "another specversion": (HEADERS | {"ce-specversion": "0.3"}, b"", 400, "INVALID_FIELD", "event.specversion"),
    "a later specversion": (STRUCTURED, EVENT | {"specversion": "1.1"}, 400, "INVALID_FIELD", "event.specversion"),
    "a specversion that is a number": (STRUCTURED, EVENT | {"specversion": 1.0}, 400, "INVALID_FIELD", "event.specversion"),
    "an attribute in upper case": (STRUCTURED, EVENT | {"tenantId": "a"}, 400, "INVALID_FIELD", "event.tenantId"),
    "an attribute with an underscore": (HEADERS | {"ce-tenant_id": "a"}, b"", 400, "INVALID_FIELD", "event.tenant_id"),
    "an attribute of 21 letters": (HEADERS | {f"ce-{'a' * 21}": "a"}, b"", 400, "INVALID_FIELD", "event.attributes"),
    "an attribute with a newline": (STRUCTURED, EVENT | {"tenant\n": "a"}, 400, "INVALID_FIELD", "event.attributes"),
    "an attribute without a name": (STRUCTURED, EVENT | {"": "a"}, 400, "INVALID_FIELD", "event."),
    "an attribute of a megabyte": (STRUCTURED, EVENT | {"x" * MIB + "_": "a"}, 400, "INVALID_FIELD", f"event.{'x' * 80}"),
    "65 attributes": (STRUCTURED, EVENT | {f"a{number}": "" for number in range(65)}, 400, "INVALID_FIELD", "event.attributes"),
    "a fractional attribute": (STRUCTURED, EVENT | {"x": 1.5}, 400, "INVALID_FIELD", "event.x"),
    "a whole number above 32 bits": (STRUCTURED, EVENT | {"x": 2**31}, 400, "INVALID_FIELD", "event.x"),
    "a list as an attribute": (STRUCTURED, EVENT | {"x": []}, 400, "INVALID_FIELD", "event.x"),
    "half a surrogate pair": (STRUCTURED, EVENT | {"x": "\ud800"}, 400, "INVALID_FIELD", "body"),
    "half a surrogate pair in the id": (STRUCTURED, EVENT | {"id": "\ud800"}, 400, "INVALID_FIELD", "body"),
    "half a surrogate pair in the data": (STRUCTURED, EVENT | {"data": "\ud800"}, 400, "INVALID_FIELD", "body"),
    "bytes that are no UTF-8": (HEADERS | {"ce-subject": "%FF"}, b"", 400, "INVALID_FIELD", "event.subject"),
    "a header that is no UTF-8": (HEADERS | {"ce-subject": "%C3%28"}, b"", 400, "INVALID_FIELD", "event.subject"),
    "a time that is none": (HEADERS | {"ce-time": "yesterday"}, b"", 400, "INVALID_FIELD", "event.time"),
    "a time without a zone": (HEADERS | {"ce-time": "2026-01-31T10:00:00"}, b"", 400, "INVALID_FIELD", "event.time"),
    "a time that is a number": (STRUCTURED, EVENT | {"time": 5}, 400, "INVALID_FIELD", "event.time"),
    "a time before all times": (
        STRUCTURED, EVENT | {"time": "0001-01-01T00:00:00+23:59"}, 400, "INVALID_FIELD", "event.time"
    ),
    "the media type as an attribute": (
        HEADERS | {"ce-datacontenttype": "text/plain"}, b"", 400, "INVALID_FIELD", "event.datacontenttype"
    ),
    "data as an attribute": (HEADERS | {"ce-data": "x"}, b"", 400, "INVALID_FIELD", "event.data"),
    "data that is no JSON": (HEADERS | JSON, b"{", 400, "INVALID_FIELD", "event.data"),
    "data that is NaN": (HEADERS | JSON, b'{"x": NaN}', 400, "INVALID_FIELD", "event.data"),
    "data that is infinite": (HEADERS | JSON, b'{"x": -Infinity}', 400, "INVALID_FIELD", "event.data"),
    "data that is as good as infinite": (HEADERS | JSON, b"1e999", 400, "INVALID_FIELD", "event.data"),
    "data with a name twice": (HEADERS | JSON, b'{"x": 1, "x": 2}', 400, "INVALID_FIELD", "event.data"),
    "data that is nested deeply": (HEADERS | JSON, b"[" * 100_000, 400, "INVALID_FIELD", "event.data"),
    "data that is nested 101 deep": (HEADERS | JSON, b"[" * 101 + b"]" * 101, 400, "INVALID_FIELD", "event.data"),
    "metadata that are no JSON": (HEADERS | {"ce-romancymetadata": "notjson"}, b"", 400, "INVALID_FIELD", "event.attributes"),
    "metadata that are no object": (HEADERS | {"ce-romancymetadata": "[]"}, b"", 400, "INVALID_FIELD", "event.attributes"),
    "metadata that are no texts": (STRUCTURED, EVENT | {"romancymetadata": '{"n": 1}'}, 400, "INVALID_FIELD", "event.attributes"),
    "data that is no UTF-8": (HEADERS | JSON, b'"\xff"', 400, "INVALID_FIELD", "event.data"),
    "a document that is no JSON": (STRUCTURED, b'{"id": ', 400, "INVALID_FIELD", "body"),
    "a document that is nothing": (STRUCTURED, b"", 400, "INVALID_FIELD", "body"),
    "a document that is no UTF-8": (STRUCTURED, b"\xff", 400, "INVALID_FIELD", "body"),
    "a document that is a list": (STRUCTURED, [EVENT], 400, "INVALID_FIELD", "event"),
    "a document that is NaN": (STRUCTURED, b'{"id": NaN}', 400, "INVALID_FIELD", "body"),
    "a document with an id twice": (STRUCTURED, b'{"id": "1", "id": "2"}', 400, "INVALID_FIELD", "body"),
    "a document with data in two ways": (
        STRUCTURED, EVENT | {"data": 1, "data_base64": "eA=="}, 400, "INVALID_FIELD", "event.data_base64"
    ),
    "data that is no base64": (STRUCTURED, EVENT | {"data_base64": "x"}, 400, "INVALID_FIELD", "event.data_base64"),
    "data that is no text in base64": (STRUCTURED, EVENT | {"data_base64": 5}, 400, "INVALID_FIELD", "event.data_base64"),
    "an object of plain text": (
        STRUCTURED, EVENT | {"datacontenttype": "text/plain", "data": {}}, 400, "INVALID_FIELD", "event.data"
    ),
    "a document whose data is nested 101 deep": (
        STRUCTURED, EVENT | {"data": json.loads('{"x":' * 101 + "1" + "}" * 101)}, 400, "INVALID_FIELD", "event.data"
    ),
    "a document that is nested deeply": (STRUCTURED, DEEP, 400, "INVALID_FIELD", "body"),
    "attributes that are nested deeply": (
        STRUCTURED, b'{"x": ' + b"[" * 900 + b"]" * 900 + json.dumps(EVENT)[1:].encode().join([b", ", b""]), 400,
        "INVALID_FIELD", "event.x",
    ),
    "a batch that is no list": (BATCH, EVENT, 400, "INVALID_FIELD", "body"),
    "an empty batch": (BATCH, [], 400, "INVALID_FIELD", "events"),
    "a batch of something else": (BATCH, [EVENT, "x"], 400, "INVALID_FIELD", "events[1]"),
    "a batch with one that is wrong": (BATCH, [EVENT, EVENT | {"id": ""}], 400, "INVALID_FIELD", "events[1].id"),
    "a batch over the limit": (BATCH, [EVENT] * 1_001, 413, "MESSAGE_TOO_LARGE", "events"),
    "an event over the limit": (HEADERS | {"Content-Type": "text/plain"}, b"x" * MIB, 413, "PAYLOAD_TOO_LARGE", "event"),
    "a body over the limit": (BATCH, b" " * (4 * MIB + 1), 413, "MESSAGE_TOO_LARGE", "body"),
    "no event at all": (JSON, b"{}", 415, "UNSUPPORTED_MEDIA", "Content-Type"),
    "no type and no attributes": ({}, b"{}", 415, "UNSUPPORTED_MEDIA", "Content-Type"),
    "a format that is not read": (
        {"Content-Type": "application/cloudevents+avro"}, b"x", 415, "UNSUPPORTED_MEDIA", "Content-Type"
    ),
    "data of no type": (HEADERS, b"{}", 415, "UNSUPPORTED_MEDIA", "Content-Type"),
    "another charset": (
        {"Content-Type": "application/cloudevents+json; charset=utf-16"}, b"{}", 415, "UNSUPPORTED_MEDIA", "Content-Type"
    ),
    "data in another charset": (
        HEADERS | {"Content-Type": 'application/json; charset="latin-1"'}, b"{}", 415, "UNSUPPORTED_MEDIA", "Content-Type"
    ),
    "a body that is packed": (
        STRUCTURED | {"Content-Encoding": "gzip"}, b"x", 415, "UNSUPPORTED_MEDIA", "Content-Encoding"
    ),
}  # fmt: skip


async def test_what_is_no_event_is_refused_with_the_reason_and_nothing_of_it_is_kept(
    tenant: Tenant, sender: Sender
) -> None:
    _, run_id = await waiting(tenant, subscribe(1, "paid", False))
    for case, (headers, body, status, reason, field) in REFUSED.items():
        answer = await sender.send(headers, body)
        said = (answer[0], answer[1].get("reason"), answer[1].get("field", "").partition("['")[0])
        assert said == (status, reason, field), f"{case}: {answer}"
        assert len(answer[1]["message"]) < 1_000, case
    assert await sender.send(HEADERS) == (202, {"duplicate": False})
    assert await received(tenant, run_id, 1) == ["1"]
    assert ids(await tenant.history(run_id)) == ["1"]


@pytest.mark.parametrize("path", ["/", "/event", "/events/", "/events/a/b", "/healthy", "/events/a/"])
async def test_other_paths_are_not_found(sender: Sender, path: str) -> None:
    status, body = await sender.send(HEADERS, path=path)
    assert (status, body["reason"]) == (404, "NO_SUCH_PATH")


async def test_namespaces_that_are_none_are_refused(sender: Sender) -> None:
    for name in ("%00", "%FF", "x" * 256):
        status, body = await sender.send(HEADERS, path=f"/events/{name}")
        assert (status, body["field"]) == (400, "namespace")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_other_methods_are_not_allowed(sender: Sender, method: str) -> None:
    status, body = await sender.send(HEADERS, method=method)
    assert (status, body["reason"], body["allowed"]) == (405, "METHOD_NOT_ALLOWED", "POST")


async def test_a_quoted_header_is_read_as_what_it_says(tenant: Tenant, sender: Sender) -> None:
    _, run_id = await waiting(tenant, subscribe(1, "paid", False))
    await sender.send(HEADERS | {"ce-subject": '"a \\"b\\""', "ce-tenant": "100%"})
    event = await first_event(tenant, run_id)
    assert event.attributes["subject"].ce_string == 'a "b"'
    assert event.attributes["tenant"].ce_string == "100%"
    assert set(event.attributes) == {"subject", "tenant"}, "what was not sent is not made up"


async def test_what_is_nested_as_deeply_as_is_allowed_is_kept(tenant: Tenant, sender: Sender) -> None:
    """Breadth is no depth, and the document and the batch around the data count for nothing."""
    await waiting(tenant, subscribe(1, "paid", False))
    deep, wide = "[" * 100 + "]" * 100, "[" + ",".join(["[]"] * 1_000) + "]"
    assert (await sender.send(HEADERS | JSON, deep.encode()))[0] == 202
    assert (await sender.send(HEADERS | {"ce-id": "2"} | JSON, wide.encode()))[0] == 202
    assert (await sender.send(BATCH, [EVENT | {"id": "3", "data": json.loads(deep)}]))[0] == 202
    assert (await sender.send(HEADERS | {"ce-id": "4", "ce-romancymetadata": '{"n": "1"}'}))[0] == 202
