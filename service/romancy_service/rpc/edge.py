"""Edge: the gRPC server with all that no service of ours does: address, TLS, limits, guard, health, reflection."""

from __future__ import annotations

from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

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

from romancy_service.config import CannotListen, Config
from romancy_service.core.limits import Limits
from romancy_service.rpc.auth import read_access
from romancy_service.rpc.guard import Guard
from romancy_service.rpc.tls import grpc_credentials

SERVICES: Final = tuple(
    service.full_name
    for contract in (
        workflow_service_pb2,
        event_service_pb2,
        channel_service_pb2,
        outbox_service_pb2,
        schedule_service_pb2,
        worker_service_pb2,
        activity_service_pb2,
        admin_service_pb2,
    )
    for service in contract.DESCRIPTOR.services_by_name.values()
)


class Edge:
    """A gRPC server that serves health and reflection, and whatever is added to `server` before it starts."""

    def __init__(self, config: Config) -> None:
        """Raises InvalidConfig when a file of `config` cannot be used."""
        self._address = str(config.listen)
        self._credentials = grpc_credentials(config.security)
        self.port = 0
        """Where it listens, once `bind` took the address."""
        self.server: grpc.aio.Server = grpc.aio.server(
            interceptors=[Guard(read_access(config.security), config.limits)],
            options=_options(config.limits),
            maximum_concurrent_rpcs=config.limits.concurrent_calls,
        )
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # its stubs leave `aio` out
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self.server)

    async def bind(self) -> None:
        """Take the address; callers wait there until `start`. Raises CannotListen."""
        try:
            if self._credentials is None:
                self.port = self.server.add_insecure_port(self._address)
            else:
                self.port = self.server.add_secure_port(self._address, self._credentials)
        except RuntimeError as error:
            await self.server.stop(0)
            raise CannotListen(
                f"cannot listen on {self._address}: end the process that has this port, or give another --listen"
            ) from error

    async def start(self) -> None:
        """Serve."""
        await self.server.start()
        await self.serves(True)

    async def serves(self, able: bool) -> None:
        """Tell load balancers whether calls can be answered now: not while the database is away."""
        status = health_pb2.HealthCheckResponse.SERVING if able else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", *SERVICES):
            await self._health.set(service, status)

    async def not_serving(self) -> None:
        """Tell load balancers to send nobody here any more; calls in flight go on."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, and end those in flight after `grace_s`."""
        await self.server.stop(grace_s)


def _options(limits: Limits) -> list[tuple[str, Any]]:
    return [
        # The largest that any method takes; the guard has the limit of each.
        ("grpc.max_receive_message_length", limits.connect_message_bytes),
        # Two processes on one port would each get some of the calls, and nobody would notice.
        ("grpc.so_reuseport", 0),
        # A peer that vanished without a word is noticed, and its calls are ended, within 15 s.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        # Clients may ask for signs of life as often, also between calls.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
