"""Fixtures of virtual time."""

import logging
from collections.abc import AsyncIterator, Iterator

import pytest
import structlog
from redis.asyncio import Redis

from storage.audit import audit_record
from storage.postgres.records import Records
from tests.simulation.cluster import Cluster, Node
from tests.simulation.driver import Laboratory
from tests.simulation.laboratory import laboratory


@pytest.fixture
async def cluster(redis: Redis, redis_url: str, records: Records) -> AsyncIterator[Cluster]:
    """A cluster that has no processes yet."""
    made = Cluster(redis, redis_url, records)
    yield made
    await made.stop()
    await made.flush()
    # Whatever a test did, the record at its end must add up.
    assert await audit_record(records) == ()


@pytest.fixture
async def node(cluster: Cluster) -> Node:
    """A process of the cluster."""
    return await cluster.node()


@pytest.fixture(scope="session")
def lab() -> Iterator[Laboratory]:
    """A laboratory with its own engines, for one world after another."""
    with laboratory() as made:
        yield made


@pytest.fixture
def quiet_logs() -> Iterator[None]:
    """Silences the logs: faults in a simulated world are intended."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)
