"""The server around the services: health, reflection, TLS, the port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from romancy_service.config import Address, CannotListen, Config, InvalidConfig, Security
from romancy_service.probe import is_serving
from romancy_service.rpc.edge import SERVICES, Edge
from tests.rpc.certificates import Authority
from tests.rpc.echo import Echo, echoing

LISTEN = Address("127.0.0.1", 0)
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    async with echoing(Config(listen=LISTEN)) as running:
        yield running


async def test_health_is_serving_until_the_service_begins_to_stop() -> None:
    edge = Edge(Config(listen=LISTEN))
    await edge.bind()
    await edge.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{edge.port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", *SERVICES):
            assert (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status == SERVING
        assert await is_serving(Address("127.0.0.1", edge.port))
        await edge.not_serving()
        for service in ("", *SERVICES):
            assert (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status == NOT_SERVING
        assert not await is_serving(Address("127.0.0.1", edge.port))
    await edge.stop(0)
    assert not await is_serving(Address("127.0.0.1", edge.port))


def pool_of(files: Sequence[bytes]) -> DescriptorPool:
    """What the files describe; each is added after those that it imports."""
    pool, waiting = DescriptorPool(), {file.name: file for file in map(FileDescriptorProto.FromString, files)}

    def add(name: str) -> None:
        if (file := waiting.pop(name, None)) is not None:
            for imported in file.dependency:
                add(imported)
            pool.Add(file)

    for name in list(waiting):
        add(name)
    return pool


async def test_a_call_can_be_made_from_what_reflection_tells_alone(echo: Echo) -> None:
    async with echo.channel() as channel:
        reflected: Any = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await reflected.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = {service.name for service in (await reflected.read()).list_services_response.service}
        assert listed == {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}

        await reflected.write(
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="romancy.v1.WorkflowService")
        )
        pool = pool_of((await reflected.read()).file_descriptor_response.file_descriptor_proto)
        await reflected.done_writing()

        method = pool.FindServiceByName("romancy.v1.WorkflowService").FindMethodByName("StartWorkflow")
        request = ParseDict({"identity": "me", "spec": {"workflow_type": "o"}}, GetMessageClass(method.input_type)())
        start = channel.unary_unary("/romancy.v1.WorkflowService/StartWorkflow", None, None)
        answer: Any = GetMessageClass(method.output_type)()
        answer.ParseFromString(await start(request.SerializeToString()))
        assert (answer.workflow_id, answer.run_id) == ("me", "reached")


async def test_a_method_that_is_not_there_is_unimplemented(echo: Echo) -> None:
    async with echo.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary("/romancy.v1.WorkflowService/Nothing", None, None)(b"")
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_two_services_cannot_share_a_port(echo: Echo) -> None:
    second = Edge(Config(listen=Address.parse(echo.address)))
    with pytest.raises(CannotListen, match=f"cannot listen on {echo.address}: end the process"):
        await second.bind()


async def test_with_tls_a_probe_knows_the_service_by_its_authority_alone(tmp_path: Path) -> None:
    authority = Authority()
    cert, key = authority.sign("localhost", ("localhost",)).write(tmp_path, "server")
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    (tmp_path / "other.pem").write_bytes(Authority("other").certificate)
    async with echoing(Config(listen=LISTEN, security=Security(tls_cert=cert, tls_key=key))) as echo:
        address = Address.parse(echo.address)
        assert await is_serving(address, tmp_path / "ca.pem")
        assert not await is_serving(address, tmp_path / "other.pem")
        assert not await is_serving(address)
        with pytest.raises(InvalidConfig, match="cannot read"):
            await is_serving(address, tmp_path / "none.pem")


async def test_a_certificate_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "none.pem"
    with pytest.raises(InvalidConfig, match=r"cannot read .*none\.pem"):
        Edge(Config(listen=LISTEN, security=Security(tls_cert=missing, tls_key=missing)))


async def test_certificates_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    authority = Authority()
    cert, key = authority.sign("localhost", ("localhost",)).write(tmp_path, "server")
    _, other_key = authority.sign("localhost", ("localhost",)).write(tmp_path, "other")
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("garbage")
    for security, named in (
        (Security(tls_cert=cert, tls_key=other_key), "other"),
        (Security(tls_cert=garbage, tls_key=key), "--tls-cert .*garbage"),
        (Security(tls_cert=cert, tls_key=key, tls_client_ca=garbage), "--tls-client-ca .*garbage"),
    ):
        with pytest.raises(InvalidConfig, match=f"cannot use .*{named}"):
            Edge(Config(listen=LISTEN, security=security))
