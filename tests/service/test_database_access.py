"""A database that will not have the service for a while: it says that it does not serve, and goes on by itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.core.life import complete
from tests.service.cluster import Cluster, Tenant, cluster, refused, until


def _as_role(url: str, role: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.replace("postgres:", f"{role}:")).geturl()


async def _execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def _health(tenant: Tenant, status: health_pb2.HealthCheckResponse.ServingStatus) -> Callable[[], Awaitable[bool]]:
    stub = health_pb2_grpc.HealthStub(tenant.channel)

    async def is_so() -> bool:
        answer = await stub.Check(health_pb2.HealthCheckRequest(service="romancy.v1.WorkflowService"))
        return bool(answer.status == status)

    return is_so


async def _by_http(up: Cluster, method: str, path: str) -> tuple[int, dict[str, Any], str | None]:
    """Status, body and Retry-After of the answer to an event."""
    headers = {"ce-id": "1", "ce-source": "/shop", "ce-type": "paid", "ce-specversion": "1.0"}
    url = f"http://127.0.0.1:{up.replicas[0].http_port}{path}"
    async with aiohttp.ClientSession() as session, session.request(method, url, headers=headers) as answer:
        return answer.status, await answer.json(), answer.headers.get("Retry-After")


async def test_a_role_that_may_not_log_in_for_a_while_ends_nothing(
    postgres_url: str, empty_postgres: Callable[[], str]
) -> None:
    url = empty_postgres()
    database = urlsplit(url).path[1:]
    await _execute(postgres_url, "create role moody login superuser")
    async with cluster(_as_role(url, "moody")) as up, up.tenant() as tenant:
        worker = await tenant.worker()
        run = await tenant.start("order")
        task = await worker.workflow_task()
        await _execute(
            postgres_url,
            "alter role moody nologin",
            f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{database}'",
        )
        await until(_health(tenant, health_pb2.HealthCheckResponse.NOT_SERVING), "it says that it does not serve")
        refusal = await refused(tenant.get(run.run_id))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        assert "not permitted to log in" in refusal.message
        assert await _by_http(up, "GET", "/health") == (503, {"status": "NOT_SERVING"}, None)
        status, body, retry_after = await _by_http(up, "POST", "/events")
        assert (status, body["reason"], retry_after) == (503, "STORE_UNAVAILABLE", "1")

        await _execute(postgres_url, "alter role moody login")
        await until(_health(tenant, health_pb2.HealthCheckResponse.SERVING), "it serves again")
        assert await _by_http(up, "GET", "/health") == (200, {"status": "SERVING"}, None)
        assert await _by_http(up, "POST", "/events") == (202, {"duplicate": False}, None)
        await worker.command(task, complete())
        assert await tenant.result(run.run_id) is not None
        assert not up.replicas[0].broken.done()
