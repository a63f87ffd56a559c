"""Clusters for the tests of the service: on SQLite, on Postgres, and two replicas on one Postgres behind a proxy.

A cluster is shared by all tests of a process, each of which has a namespace of its own on it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.service.cluster import Cluster, Tenant, cluster

TOPOLOGIES = ("sqlite", "postgres", "replicas")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of these tests run on one event loop, since they share clusters."""
    for item in items:
        if "tests/service/" in item.path.as_posix() and item.get_closest_marker("asyncio") is not None:
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=TOPOLOGIES)
async def shared_cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Cluster]:
    """The service, up for the whole session."""
    if request.param == "sqlite":
        database = str(Path(tmp_path_factory.mktemp("service")) / "romancy.db")
    else:
        database = request.getfixturevalue("fresh_postgres")()
    async with cluster(database, replicas=2 if request.param == "replicas" else 1) as up:
        yield up


@pytest_asyncio.fixture(loop_scope="session")
async def tenant(shared_cluster: Cluster) -> AsyncIterator[Tenant]:
    """A namespace for one test; what is stored in it is compared with its histories at the end."""
    async with shared_cluster.tenant() as tenant:
        yield tenant
