"""Probe: asks a service over the wire whether it serves, as load balancers do."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from romancy_service.config import Address, InvalidConfig

_PATIENCE_S: Final = 3


async def is_serving(address: Address, tls_ca: Path | None = None) -> bool:
    """Whether the service there takes calls. Raises InvalidConfig when `tls_ca` cannot be read."""
    channel = _channel(str(address), tls_ca)
    async with channel:
        try:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_PATIENCE_S)
        except grpc.aio.AioRpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _channel(target: str, tls_ca: Path | None) -> grpc.aio.Channel:
    if tls_ca is None:
        return grpc.aio.insecure_channel(target)
    try:
        return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(tls_ca.read_bytes()))
    except OSError as error:
        raise InvalidConfig(f"cannot read {tls_ca}: {error.strerror}") from error
