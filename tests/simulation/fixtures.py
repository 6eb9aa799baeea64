"""Fixtures of virtual time."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from storage.audit import audit_record
from storage.records import Records
from tests.simulation.cluster import Cluster, Node


@pytest.fixture
async def cluster(redis: Redis, redis_url: str, records: Records) -> AsyncIterator[Cluster]:
    """A cluster without processes yet."""
    made = Cluster(redis, redis_url, records)
    yield made
    await made.stop()
    await made.flush()
    # Whatever a test did, what is written down at its end adds up.
    assert await audit_record(records) == ()


@pytest.fixture
async def node(cluster: Cluster) -> Node:
    """A process of the cluster."""
    return await cluster.node()
