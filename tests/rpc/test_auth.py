"""Who may call what: every method of every service, unary calls and streams, tokens and certificates."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from romancy.v1 import (
    activity_service_pb2,
    admin_service_pb2,
    channel_service_pb2,
    event_service_pb2,
    outbox_service_pb2,
    schedule_service_pb2,
    worker_service_pb2,
    workflow_service_pb2,
)
from romancy.v1.admin_service_pb2_grpc import AdminServiceStub
from romancy.v1.worker_service_pb2 import ConnectRequest, Hello
from romancy.v1.worker_service_pb2_grpc import WorkerServiceStub
from romancy.v1.workflow_service_pb2 import (
    GetWorkflowRequest,
    ListWorkflowsRequest,
    StartWorkflowRequest,
    StartWorkflowsRequest,
    WaitResultsRequest,
    WorkflowRef,
)
from romancy.v1.workflow_service_pb2_grpc import WorkflowServiceStub

from romancy_service.config import Address, Config, InvalidConfig, Security
from romancy_service.core.limits import Limits
from romancy_service.errors import InvalidField, PermissionDenied
from romancy_service.rpc.auth import ANY_RIGHT, PUBLIC, RIGHTS, Grant, Right, read_access
from romancy_service.rpc.guard import namespace_paths
from tests.rpc.certificates import Authority
from tests.rpc.echo import Echo, echoing

OURS = (
    workflow_service_pb2,
    event_service_pb2,
    channel_service_pb2,
    outbox_service_pb2,
    schedule_service_pb2,
    worker_service_pb2,
    activity_service_pb2,
    admin_service_pb2,
)
SERVED = (*OURS, health_pb2, reflection_pb2)
LISTEN = Address("127.0.0.1", 0)
TOKENS = {
    "writer": "orders write",
    "reader": "orders read",
    "worker": "orders work",
    "operator": "* read,write,work",
    "keeper": "* admin",
    "approver": "* complete",
}


def methods(contracts: tuple[Any, ...]) -> Iterator[MethodDescriptor]:
    for contract in contracts:
        for service in contract.DESCRIPTOR.services_by_name.values():
            yield from service.methods


def path_of(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def token(name: str) -> str:
    return f"secret-of-{name}"


def bearer(name: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token(name)}"),)


def token_file(folder: Path) -> Path:
    lines = [f"token:{sha256(token(name).encode()).hexdigest()} {name} {rest}" for name, rest in TOKENS.items()]
    path = folder / "access.txt"
    path.write_text("# who may call\n\n" + "\n".join(lines))
    return path


@pytest.fixture
async def echo(tmp_path: Path) -> AsyncIterator[Echo]:
    async with echoing(Config(listen=LISTEN, security=Security(token_file=token_file(tmp_path)))) as running:
        yield running


def workflow_stub(channel: grpc.aio.Channel) -> Any:
    """The stub, untyped: its stubs do not know calls that are written to and read from."""
    return WorkflowServiceStub(channel)


def worker_stub(channel: grpc.aio.Channel) -> Any:
    """As above."""
    return WorkerServiceStub(channel)


async def call(channel: grpc.aio.Channel, method: MethodDescriptor, metadata: Any = ()) -> grpc.StatusCode:
    """Call a method with one empty request; the status that comes back."""
    arity = "_".join("stream" if s else "unary" for s in (method.client_streaming, method.server_streaming))
    stub = getattr(channel, arity)(path_of(method), request_serializer=None, response_deserializer=None)

    async def once() -> AsyncIterator[bytes]:
        yield b""

    answer = stub(once() if method.client_streaming else b"", metadata=metadata, timeout=60)
    try:
        if method.server_streaming:
            async for _ in answer:
                answer.cancel()
                return grpc.StatusCode.OK
        else:
            await answer
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_no_method_can_be_reached_without_credentials_but_the_health_check(echo: Echo) -> None:
    reached = set()
    async with echo.channel() as channel:
        for method in methods(SERVED):
            if await call(channel, method) is not grpc.StatusCode.UNAUTHENTICATED:
                reached.add(path_of(method))
    assert reached == {"/grpc.health.v1.Health/Check"}


@pytest.mark.parametrize("name", TOKENS)
async def test_every_method_needs_the_right_that_the_table_says(echo: Echo, name: str) -> None:
    rights = {Right(right) for right in TOKENS[name].split()[1].split(",")}
    if Right.ADMIN in rights:
        rights.add(Right.WRITE)
    if Right.WRITE in rights:
        rights.add(Right.READ)
    if rights & {Right.WRITE, Right.WORK}:
        rights.add(Right.COMPLETE)
    metadata = bearer(name)
    async with echo.channel() as channel:
        for method in methods(OURS):
            status = await call(channel, method, metadata)
            refused = status is grpc.StatusCode.PERMISSION_DENIED
            # The empty request of a method that needs no more than the right is of namespace `default`.
            namespace_refused = not TOKENS[name].startswith("*") and ("namespace",) in namespace_paths(
                method.input_type
            )
            assert refused == (RIGHTS[path_of(method)] not in rights or namespace_refused), (path_of(method), status)


def test_every_method_of_the_contract_has_a_right() -> None:
    assert {path_of(method) for method in methods(OURS)} == set(RIGHTS)
    assert {path_of(method) for method in methods((health_pb2, reflection_pb2))} == ANY_RIGHT | PUBLIC


def test_a_method_without_a_right_is_refused_to_everybody() -> None:
    everything = Grant("operator", frozenset({"*"}), frozenset(Right))
    with pytest.raises(PermissionDenied):
        everything.check_method("/romancy.v1.WorkflowService/DeleteEverything")


def test_every_request_of_the_contract_names_its_namespace() -> None:
    # One asks which there are, and is shown those that it may act in.
    without = {"/romancy.v1.AdminService/ListNamespaces"}
    assert {path_of(method) for method in methods(OURS) if not namespace_paths(method.input_type)} == without


def test_namespaces_are_found_at_any_depth() -> None:
    assert namespace_paths(StartWorkflowsRequest.DESCRIPTOR) == (("requests", "namespace"),)
    assert namespace_paths(GetWorkflowRequest.DESCRIPTOR) == (("workflow", "namespace"),)
    assert namespace_paths(ConnectRequest.DESCRIPTOR) == (("hello", "namespace"),)


@pytest.mark.parametrize(
    "metadata",
    [
        (("authorization", "Bearer wrong"),),
        (("authorization", "Bearer "),),
        (("authorization", token("operator")),),
        (("authorization", f"Basic {token('operator')}"),),
        (("authorization", f"Bearer {token('operator')}x"),),
        (("authorization", f"Bearer {token('operator').upper()}"),),
        (("authorization", f"Bearer {token('operator')[:-1]}"),),
        (("authorization", f"Bearer {sha256(token('operator').encode()).hexdigest()}"),),
        (*bearer("operator"), *bearer("operator")),
        (("authorization-bin", b"Bearer " + token("operator").encode()),),
    ],
)
async def test_what_is_not_exactly_one_known_token_is_refused(echo: Echo, metadata: Any) -> None:
    async with echo.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await workflow_stub(channel).StartWorkflow(StartWorkflowRequest(), metadata=metadata)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert token("operator") not in str(refused.value.details())


async def test_another_tenants_namespace_is_refused_in_every_place_of_a_request(echo: Echo) -> None:
    other, metadata = "returns", bearer("writer")
    async with echo.channel() as channel:
        stub = workflow_stub(channel)
        mixed = [StartWorkflowRequest(namespace="orders"), StartWorkflowRequest(namespace=other)]
        for attempt in (
            stub.StartWorkflow(StartWorkflowRequest(namespace=other), metadata=metadata),
            stub.StartWorkflow(StartWorkflowRequest(), metadata=metadata),
            stub.StartWorkflow(StartWorkflowRequest(namespace="Orders"), metadata=metadata),
            stub.StartWorkflows(StartWorkflowsRequest(requests=mixed), metadata=metadata),
            stub.ListWorkflows(ListWorkflowsRequest(namespace=other), metadata=metadata),
            stub.GetWorkflow(GetWorkflowRequest(workflow=WorkflowRef(namespace=other)), metadata=metadata),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await attempt
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        allowed = await stub.StartWorkflow(StartWorkflowRequest(namespace="orders"), metadata=metadata)
    assert allowed.run_id == "reached"


async def test_a_stream_is_refused_at_the_message_that_names_another_namespace(echo: Echo) -> None:
    async with echo.channel() as channel:
        wait = workflow_stub(channel).WaitResults(metadata=bearer("reader"))
        await wait.write(WaitResultsRequest(namespace="orders", run_ids=["a"]))
        answer = await wait.read()
        assert [result.run_id for result in answer.results] == ["a"]
        await wait.write(WaitResultsRequest(namespace="returns", run_ids=["b"]))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await wait.read()
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_worker_connects_only_to_its_namespaces(echo: Echo) -> None:
    async with echo.channel() as channel:
        stub = worker_stub(channel)
        good = stub.Connect(metadata=bearer("worker"))
        await good.write(ConnectRequest(hello=Hello(namespace="orders", worker_id="w")))
        assert (await good.read()).welcome.session_id == "w"
        good.cancel()
        bad = stub.Connect(metadata=bearer("worker"))
        await bad.write(ConnectRequest(hello=Hello(namespace="returns", worker_id="w")))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await bad.read()
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_who_asked_is_taken_from_the_credentials_not_from_the_request(echo: Echo) -> None:
    request = StartWorkflowRequest(namespace="orders", identity="somebody else")
    async with echo.channel() as channel:
        answer = await workflow_stub(channel).StartWorkflow(request, metadata=bearer("writer"))
    assert answer.workflow_id == "writer"


async def test_without_authentication_the_request_says_who_asks() -> None:
    async with echoing(Config(listen=LISTEN)) as echo, echo.channel() as channel:
        answer = await workflow_stub(channel).StartWorkflow(StartWorkflowRequest(identity="me"))
    assert answer.workflow_id == "me"


async def test_certificates_are_known_by_their_names(tmp_path: Path) -> None:
    authority = Authority()
    cert, key = authority.sign("localhost", ("localhost",)).write(tmp_path, "server")
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.certificate)
    access = tmp_path / "access.txt"
    access.write_text("cert:shop.internal shop orders write\ncert:common worker orders work\n")
    security = Security(tls_cert=cert, tls_key=key, tls_client_ca=ca, token_file=access)

    async def start(names: tuple[str, tuple[str, ...]], signer: Authority = authority) -> Any:
        pair = signer.sign(*names)
        credentials = grpc.ssl_channel_credentials(authority.certificate, pair.key, pair.certificate)
        async with running.channel(credentials) as channel:
            try:
                request = StartWorkflowRequest(namespace="orders")
                return (await workflow_stub(channel).StartWorkflow(request, timeout=5)).workflow_id
            except grpc.aio.AioRpcError as error:
                return error.code()

    async with echoing(Config(listen=LISTEN, security=security)) as running:
        assert await start(("ignored", ("shop.internal",))) == "shop"
        assert await start(("common", ())) is grpc.StatusCode.PERMISSION_DENIED
        assert await start(("stranger", ())) is grpc.StatusCode.UNAUTHENTICATED
        assert await start(("shop.internal", ()), Authority("tests")) is grpc.StatusCode.UNAVAILABLE
        async with running.channel() as channel:
            with pytest.raises(grpc.aio.AioRpcError) as plain:
                await AdminServiceStub(channel).ListSessions(admin_service_pb2.ListSessionsRequest(), timeout=5)
            assert plain.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("token:abc shop orders write", "64 hex digits"),
        (f"token:{'A' * 64} shop orders write", "64 hex digits"),
        ("my-secret-token shop orders write", "does not begin with"),
        (f"token:{'a' * 64} shop write", "3 fields"),
        (f"token:{'a' * 64} shop orders everything", "'everything'"),
        (f"token:{'a' * 64} shop * read\ntoken:{'a' * 64} other * read", "line 2"),
        ("# nobody", "nobody could call"),
    ],
)
def test_a_token_file_with_a_fault_is_refused_without_showing_secrets(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "access.txt"
    path.write_text(line)
    with pytest.raises(InvalidConfig, match=problem) as refused:
        read_access(Security(token_file=path))
    assert "my-secret-token" not in str(refused.value)


def test_a_missing_token_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="cannot read the token file"):
        read_access(Security(token_file=tmp_path / "none"))


SMALL = Limits(
    payload_bytes=100,
    payloads_bytes=100,
    client_message_bytes=1000,
    connect_message_bytes=1000,
    frame_bytes=1000,
    chunk_bytes=1000,
)


async def test_a_message_above_a_clients_limit_is_refused_with_its_size() -> None:
    config = Config(listen=LISTEN, limits=replace(SMALL, client_message_bytes=100))
    async with echoing(config) as echo, echo.channel() as channel:
        stub = workflow_stub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match="at most 100 are allowed") as refused:
            await stub.StartWorkflow(StartWorkflowRequest(workflow_id="x" * 101))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        connect = worker_stub(channel).Connect()
        await connect.write(ConnectRequest(hello=Hello(worker_id="w" * 500)))
        assert (await connect.read()).welcome.session_id == "w" * 500
        connect.cancel()


@pytest.mark.parametrize("data", [b"\xff\xff", b"\x0a\x02\xc3\x28", b"\x0a\xff\xff\xff\xff\x0f"])
async def test_bytes_that_are_no_message_are_invalid(data: bytes) -> None:
    async with echoing(Config(listen=LISTEN)) as echo, echo.channel() as channel:
        raw = channel.unary_unary(RAW, request_serializer=None, response_deserializer=None)
        with pytest.raises(grpc.aio.AioRpcError, match="cannot be read") as refused:
            await raw(data)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


RAW = "/romancy.v1.WorkflowService/StartWorkflow"


async def test_a_failure_in_a_stream_of_ours_ends_only_that_stream() -> None:
    async with echoing(Config(listen=LISTEN)) as echo, echo.channel() as channel:
        stub = workflow_stub(channel)
        echo.workflows.failure = InvalidField("run_ids", "is wrong")
        wait = stub.WaitResults()
        await wait.write(WaitResultsRequest(run_ids=["a"]))
        with pytest.raises(grpc.aio.AioRpcError, match="run_ids: is wrong"):
            await wait.read()
        echo.workflows.failure = None
        assert (await stub.StartWorkflow(StartWorkflowRequest())).run_id == "reached"
